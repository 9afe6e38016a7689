//! `cargo xtask lint`: formatting, clippy on every crate, and the size of modules.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::process;
use crate::setup::{self, Need};

/// Options of `cargo xtask lint`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// A module that is longer does more than one thing, or does not fit into a reader's head.
const LINES: usize = 600;

/// Runs all checks; the status is 1 if one of them objects.
///
/// # Errors
/// Something is missing and cannot be installed, or a check cannot be started.
pub(crate) fn main(_args: &Args) -> Result<ExitCode> {
    setup::ensure(&Need::BPF_TOOLCHAIN)?;
    let mut clean = true;
    for mut check in [format(), clippy(), clippy_of_programs()] {
        eprintln!("lint: {}", process::line(&check));
        clean &= check.status().with_context(|| format!("cannot start `{}`", process::line(&check)))?.success();
    }
    for (path, lines) in long_modules(process::workspace())? {
        eprintln!("lint: {} has {lines} lines, more than {LINES}: split it", path.display());
        clean = false;
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn format() -> Command {
    let mut format = process::cargo();
    format.args(["fmt", "--all", "--check"]);
    format
}

fn clippy() -> Command {
    let mut clippy = process::cargo();
    clippy.args(["clippy", "--workspace", "--exclude", "netpol-ebpf", "--all-targets", "--", "--deny", "warnings"]);
    clippy
}

/// The programs, for the target that they run on, whose core library is compiled from source.
fn clippy_of_programs() -> Command {
    let mut clippy = process::cargo();
    clippy.args(["clippy", "--package", "netpol-ebpf", "--target", "bpfel-unknown-none", "-Z", "build-std=core"]);
    clippy.args(["--release", "--", "--deny", "warnings"]);
    // build-std is unstable on every channel; for the programs alone, since build scripts of other crates would take
    // the variable as leave to use unstable features.
    clippy.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\"");
    clippy
}

/// Modules of more than [`LINES`] lines, of all that git knows or would add.
fn long_modules(root: &Path) -> Result<Vec<(PathBuf, usize)>> {
    let mut list = process::command("git");
    list.current_dir(root).args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"]);
    let mut long = Vec::new();
    for name in process::output(&mut list)?.lines() {
        let path = root.join(name);
        // Deleted, and still in the index.
        if !path.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = text.lines().count();
        if lines > LINES {
            long.push((PathBuf::from(name), lines));
        }
    }
    Ok(long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_of_more_than_the_limit_is_named_with_its_length() {
        let root = tempfile::tempdir().unwrap();
        process::output(process::command("git").current_dir(root.path()).args(["init", "--quiet"])).unwrap();
        std::fs::write(root.path().join("just-right.rs"), "//\n".repeat(LINES)).unwrap();
        std::fs::write(root.path().join("long.rs"), "//\n".repeat(LINES + 1)).unwrap();
        std::fs::write(root.path().join("long.md"), "-\n".repeat(LINES + 1)).unwrap();
        assert_eq!(long_modules(root.path()).unwrap(), [(PathBuf::from("long.rs"), LINES + 1)]);
    }
}
