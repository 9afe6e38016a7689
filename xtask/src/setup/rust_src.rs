//! The sources of Rust's core library, which the BPF target has no compiled form of.
//!
//! Normally a component that rustup downloads. Where only a Debian mirror is in reach, the package of the same version
//! holds the same files: it is unpacked into the cache, without installing it, and linked into the toolchain. Another
//! version would not compile: core and rustc belong together.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use netpol_testbed::control_plane::installation::cache_directory;

use super::debian::{self, Package};
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
        let mirror = debian::mirror()?;
        let package = package_of_version(debian::packages(&mirror, SUITE, &work)?, &version)
            .with_context(|| format!("{SUITE} has no rust-src of version {version}, which is rustc's"))?;
        let unpacked = work.join("unpacked");
        debian::unpack(&mirror, &package, &work, &unpacked)?;
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

/// The newest rust-src of an upstream version; a list has the newest last.
fn package_of_version(packages: Vec<Package>, version: &str) -> Option<Package> {
    packages.into_iter().rfind(|package| package.name == "rust-src" && package.upstream() == version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> Package {
        let path = format!("pool/{name}_{version}.deb");
        Package { name: name.to_owned(), version: version.to_owned(), path, sha256: String::new() }
    }

    #[test]
    fn only_the_sources_of_rustcs_own_version_are_taken() {
        let list = [
            package("rust-src", "1.94.1+dfsg1-1~bpo13+3"),
            package("rust-src", "1.95.0+dfsg1-2~bpo13+1"),
            package("rust-src-extra", "1.95.0+dfsg1-2~bpo13+1"),
        ];
        assert_eq!(package_of_version(list.to_vec(), "1.95.0").as_ref(), Some(&list[1]));
        assert_eq!(package_of_version(list.to_vec(), "1.95"), None);
    }
}
