//! Running other programs: always by name and arguments, never through a shell, and with an error that says which
//! command it was. What they print goes to standard error, so that standard output stays the command's own.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::setup;

/// The workspace's root.
pub(crate) fn workspace() -> &'static Path {
    // xtask lies directly below the root, in the checkout that it was compiled from.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."))
}

/// A command that runs in the workspace's root, where rustup finds the pinned toolchain, with [`path`].
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace()).env("PATH", path());
    command
}

/// The PATH of everything that is run: what setup has installed for this project alone, the caller's, and the
/// directories of system tools, which root's PATH lacks in some shells although the tools are there.
pub(crate) fn path() -> OsString {
    let own = setup::private_tools().map(|root| root.join("bin"));
    let callers = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let all: Vec<PathBuf> = own.into_iter().chain(std::env::split_paths(&callers)).chain(system).collect();
    // Fails for a directory with a colon in its name only, which no PATH can hold.
    std::env::join_paths(all).unwrap_or(callers)
}

/// The cargo that runs this xtask.
pub(crate) fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Cargo's target folder of this workspace.
///
/// # Errors
/// Cargo does not say.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    metadata["target_directory"].as_str().map(PathBuf::from).context("cargo metadata: no target_directory")
}

/// Runs a command to its end, its output going to standard error.
///
/// # Errors
/// The command cannot be started, or ends with a status other than 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status =
        command.stdout(Stdio::from(std::io::stderr())).status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a command and returns what it printed on standard output.
///
/// # Errors
/// The command cannot be started, or ends with a status other than 0; its standard error is part of the message.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}\n{}", String::from_utf8_lossy(&stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// The command as a person would type it, for messages.
pub(crate) fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Where a program would be found: in the first directory of [`path`] that has it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&path()).map(|directory| directory.join(program)).find(|candidate| candidate.is_file())
}

/// Whether this process has root's user id, which privileged tests and package installation need.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
