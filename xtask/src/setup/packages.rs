//! Debian packages, asked for by the program that is run and not by the package's name: what is installed in another
//! way, or on another distribution, is as good.

use anyhow::{Result, bail};

use crate::process;

/// Programs that the testbed runs, and the package that brings each.
const PROGRAMS: [(&str, &str); 2] = [
    // The testbed's bridges, veths, addresses and routes.
    ("ip", "iproute2"),
    // Connection tracking is off in a namespace until a rule asks for it.
    ("nft", "nftables"),
];

/// A program, and the Debian package that brings it.
type Program = (&'static str, &'static str);

/// Packages whose program is not there.
fn wanted(programs: &[Program]) -> Vec<&'static str> {
    programs.iter().filter(|(program, _)| process::find(program).is_none()).map(|(_, package)| *package).collect()
}

pub(super) fn missing() -> Option<String> {
    missing_of(&PROGRAMS)
}

pub(super) fn install() -> Result<()> {
    install_of(&PROGRAMS)
}

/// What is missing of other programs than the testbed's.
pub(super) fn missing_of(programs: &[Program]) -> Option<String> {
    let wanted = wanted(programs);
    (!wanted.is_empty()).then(|| format!("Debian packages: {}", wanted.join(", ")))
}

/// Installs what is missing of other programs than the testbed's.
pub(super) fn install_of(programs: &[Program]) -> Result<()> {
    let wanted = wanted(programs);
    if wanted.is_empty() {
        return Ok(());
    }
    if process::find("apt-get").is_none() {
        bail!("there is no apt-get here: install {} in your distribution's way", wanted.join(", "));
    }
    if !process::is_root() {
        bail!("this needs root: apt-get install {}", wanted.join(" "));
    }
    let apt = || {
        let mut apt = process::command("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(["--quiet", "--assume-yes"]);
        apt
    };
    let install = || process::run(apt().args(["install", "--no-install-recommends"]).args(&wanted));
    // The lists of a fresh machine are empty, and an old machine's name versions that are gone.
    install().or_else(|_stale| process::run(apt().arg("update")).and_then(|()| install()))
}
