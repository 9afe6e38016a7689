//! The sources of Rust's core library, which the BPF target has no compiled form of.
//!
//! Normally a component that rustup downloads. Where only a Debian mirror is in reach, the package of the same version
//! holds the same files: it is unpacked into the cache, without installing it, and linked into the toolchain. Another
//! version would not compile: core and rustc belong together.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use netpol_testbed::control_plane::installation::cache_directory;

use crate::process;

/// The suite of Debian that offers several releases of rustc side by side.
const SUITE: &str = "trixie-backports";

pub(super) fn missing() -> Result<Option<String>> {
    let there = library_directory()?.join("core/src/lib.rs").is_file();
    Ok((!there).then(|| "rust-src, the sources of Rust's core library".to_owned()))
}

pub(super) fn install() -> Result<()> {
    let by_rustup = from_rustup();
    if by_rustup.is_ok() && missing()?.is_none() {
        return Ok(());
    }
    let why = by_rustup.err().map_or_else(|| "it left nothing".to_owned(), |error| format!("{error:#}"));
    eprintln!("setup:   rustup cannot provide it ({why}); trying Debian's package");
    from_debian()
}

/// `lib/rustlib/src/rust/library` of the pinned toolchain.
fn library_directory() -> Result<PathBuf> {
    let sysroot = process::output(process::command("rustc").args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library"))
}

fn from_rustup() -> Result<()> {
    if process::find("rustup").is_none() {
        bail!("rustup is not installed");
    }
    // Without a network rustup waits for long before it gives up.
    process::run(process::command("timeout").args(["180", "rustup", "component", "add", "rust-src"]))
}

fn from_debian() -> Result<()> {
    let version = rustc_version()?;
    let cache = cache_directory()?.join(format!("rust-src-{version}"));
    let library = cache.join(format!("usr/src/rustc-{version}/library"));
    if !library.is_dir() {
        let work = cache.with_extension("fetch");
        std::fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
        let mirror = mirror()?;
        let package = find_package(&mirror, &version, &work)?;
        let archive = work.join("rust-src.deb");
        eprintln!("setup:   downloading {mirror}/{}", package.path);
        download(&format!("{mirror}/{}", package.path), &archive)?;
        let sum = process::output(Command::new("sha256sum").arg(&archive))?;
        if sum.split_whitespace().next() != Some(&package.sha256) {
            bail!("{} is not what the mirror's list says: sha256 {sum}, wanted {}", package.path, package.sha256);
        }
        let unpacked = work.join("unpacked");
        process::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&unpacked))?;
        std::fs::rename(&unpacked, &cache).with_context(|| format!("cannot create {}", cache.display()))?;
        std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    let link = library_directory()?;
    let parent = link.parent().context("the toolchain has no folder for sources")?;
    std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    // A link into a cache that has been emptied since.
    if link.is_symlink() {
        std::fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))?;
    }
    std::os::unix::fs::symlink(&library, &link).with_context(|| format!("cannot create {}", link.display()))
}

/// `1.95.0`, as rustc says it.
fn rustc_version() -> Result<String> {
    let printed = process::output(process::command("rustc").arg("--version"))?;
    printed.split_whitespace().nth(1).map(str::to_owned).with_context(|| format!("rustc calls itself {printed:?}"))
}

fn download(from: &str, to: &Path) -> Result<()> {
    process::run(
        process::command("curl")
            .args(["--fail", "--silent", "--show-error", "--location", "--output"])
            .arg(to)
            .arg(from),
    )
}

#[derive(Debug, Eq, PartialEq)]
struct Package {
    path: String,
    sha256: String,
}

/// The Debian mirror that this machine's apt uses: it holds all suites, also those that apt was not told of.
fn mirror() -> Result<String> {
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

fn find_package(mirror: &str, version: &str, work: &Path) -> Result<Package> {
    // The package is the same on all architectures, so any architecture's list has it.
    let list = work.join("Packages.xz");
    download(&format!("{mirror}/dists/{SUITE}/main/binary-amd64/Packages.xz"), &list)?;
    let text = process::output(Command::new("xz").args(["--decompress", "--stdout"]).arg(&list))?;
    package_of_version(&text, version)
        .with_context(|| format!("{SUITE} has no rust-src of version {version}, which is rustc's"))
}

/// The newest rust-src of an upstream version in Debian's list of packages.
fn package_of_version(list: &str, version: &str) -> Option<Package> {
    list.split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
            };
            let upstream = field("Version")?;
            // 1.95.0+dfsg1-2~bpo13+1: the packaging's revision begins at the first sign that upstream's never has.
            let upstream = upstream.split(['+', '-', '~']).next()?.to_owned();
            (field("Package")? == "rust-src" && upstream == version)
                .then(|| Some(Package { path: field("Filename")?, sha256: field("SHA256")? }))?
        })
        .last()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "Package: rust-src\nSource: rustc\nVersion: 1.94.1+dfsg1-1~bpo13+3\nFilename: pool/a.deb\nSHA256: aa\n\n\
                        Package: rust-src\nVersion: 1.95.0+dfsg1-2~bpo13+1\nFilename: pool/b.deb\nSHA256: bb\n\n\
                        Package: rust-src-extra\nVersion: 1.95.0+dfsg1-2~bpo13+1\nFilename: pool/c.deb\nSHA256: cc\n";

    #[test]
    fn the_mirror_is_the_main_archive_of_apt() {
        let uris =
            "http://mirror.example/debian-security/\nhttp://mirror.example/debian/\nhttp://other.example/debian/\n";
        assert_eq!(main_archive(uris).as_deref(), Some("http://mirror.example/debian"));
        assert_eq!(main_archive("http://packages.example/apt/\n"), None);
    }

    #[test]
    fn only_the_sources_of_rustcs_own_version_are_taken() {
        let found = package_of_version(LIST, "1.95.0");
        assert_eq!(found, Some(Package { path: "pool/b.deb".to_owned(), sha256: "bb".to_owned() }));
        assert_eq!(package_of_version(LIST, "1.95"), None);
    }
}
