//! Packages of Debian that are unpacked and not installed, from the mirror that this machine's apt uses.
//!
//! A mirror holds all suites, also those that apt was not told of. What is downloaded is held against a checksum; one that
//! comes from the mirror's own list of packages protects against a broken download and not against the mirror, since
//! the list's signature is not checked.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// A package in a mirror's pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Package {
    /// Its name; empty if nobody asked.
    pub(crate) name: String,
    /// Debian's version: upstream's and the packaging's.
    pub(crate) version: String,
    /// Below the mirror's root.
    pub(crate) path: String,
    /// In hexadecimal digits.
    pub(crate) sha256: String,
}

impl Package {
    /// The part of the version that upstream chose: 1.95.0 of 1.95.0+dfsg1-2~bpo13+1. The packaging's begins at the first
    /// sign that upstream's, here, never has.
    pub(crate) fn upstream(&self) -> &str {
        self.version.split(['+', '-', '~']).next().unwrap_or_default()
    }
}

/// The Debian mirror that this machine's apt uses, without a final slash.
///
/// # Errors
/// There is no apt, or it knows no mirror of Debian.
pub(crate) fn mirror() -> Result<String> {
    let targets = process::command("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
        .output()
        .context("apt-get indextargets")?;
    let uris = String::from_utf8_lossy(&targets.stdout).into_owned();
    main_archive(&uris).with_context(|| format!("apt knows no Debian mirror:\n{uris}"))
}

/// The first archive that is Debian's own and not the one of security updates, which has no backports.
fn main_archive(uris: &str) -> Option<String> {
    let is_main = |uri: &&str| uri.trim_end_matches('/').ends_with("/debian");
    uris.lines().map(str::trim).find(is_main).map(|uri| uri.trim_end_matches('/').to_owned())
}

/// All packages of a suite's `main` for amd64, which has also those that are the same on all architectures.
///
/// # Errors
/// The mirror has no such suite, or the list cannot be read.
pub(crate) fn packages(mirror: &str, suite: &str, work: &Path) -> Result<Vec<Package>> {
    let list = work.join("Packages.xz");
    download(&format!("{mirror}/dists/{suite}/main/binary-amd64/Packages.xz"), &list)?;
    let text = process::output(Command::new("xz").args(["--decompress", "--stdout"]).arg(&list))?;
    Ok(parse(&text))
}

fn parse(list: &str) -> Vec<Package> {
    let package = |stanza: &str| {
        let field =
            |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned);
        let (name, version) = (field("Package")?, field("Version")?);
        Some(Package { name, version, path: field("Filename")?, sha256: field("SHA256")? })
    };
    list.split("\n\n").filter_map(package).collect()
}

/// Downloads a package, checks it, and unpacks it into a folder, beside what other packages have put there.
///
/// # Errors
/// The mirror does not have it, or something else than what was asked for.
pub(crate) fn unpack(mirror: &str, package: &Package, work: &Path, into: &Path) -> Result<()> {
    let from = format!("{mirror}/{}", package.path);
    let archive = work.join("package.deb");
    eprintln!("setup:   downloading {from}");
    download(&from, &archive)?;
    let sum = process::output(Command::new("sha256sum").arg(&archive))?;
    if sum.split_whitespace().next() != Some(&package.sha256) {
        bail!("{} is not what it should be: sha256 {sum}, wanted {}", package.path, package.sha256);
    }
    process::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(into))
}

fn download(from: &str, to: &Path) -> Result<()> {
    process::run(
        process::command("curl")
            .args(["--fail", "--silent", "--show-error", "--location", "--output"])
            .arg(to)
            .arg(from),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_main_archive_of_apt() {
        let uris =
            "http://mirror.example/debian-security/\nhttp://mirror.example/debian/\nhttp://other.example/debian/\n";
        assert_eq!(main_archive(uris).as_deref(), Some("http://mirror.example/debian"));
        assert_eq!(main_archive("http://packages.example/apt/\n"), None);
    }

    #[test]
    fn a_list_of_packages_is_read_stanza_by_stanza() {
        let list = "Package: rust-src\nSource: rustc\nVersion: 1.95.0+dfsg1-2~bpo13+1\nFilename: pool/b.deb\nSHA256: bb\n\n\
                    Package: half\nVersion: 1\n";
        let packages = parse(list);
        let [package] = &packages[..] else { panic!("{packages:?}") };
        assert_eq!((&*package.name, package.upstream(), &*package.path), ("rust-src", "1.95.0", "pool/b.deb"));
    }
}
