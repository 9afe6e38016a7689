//! bpf-linker, in the one release that goes with the pinned toolchain: it reads bitcode with the toolchain's own LLVM,
//! and LLVM reads no bitcode that is newer than itself.

use anyhow::{Context, Result};

use super::private_tools;
use crate::process;

/// The newest that opens rustc's own libLLVM (22) instead of asking for an LLVM of its own.
const VERSION: &str = "0.10.4";

pub(super) fn missing() -> Result<Option<String>> {
    Ok((found_version().as_deref() != Some(VERSION)).then(|| format!("bpf-linker {VERSION}")))
}

pub(super) fn install() -> Result<()> {
    let mut install = process::cargo();
    install.args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"]);
    // A developer's own bpf-linker of another release is theirs; ours then comes first in the PATH of what we run.
    if found_version().is_some() {
        install.arg("--root").arg(private_tools().context("there is no cache folder for it")?);
    }
    process::run(&mut install)
}

/// The version of the first bpf-linker in the PATH.
fn found_version() -> Option<String> {
    let linker = process::find("bpf-linker")?;
    let printed = process::output(process::command(linker).arg("--version")).ok()?;
    printed.split_whitespace().nth(1).map(str::to_owned)
}
