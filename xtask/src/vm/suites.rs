//! What runs inside: the suites' binaries, as cargo says where it has put them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;

/// The first process of a machine, a binary of the suites' package.
const INIT: &str = "netpol-vm-init";

/// Programs that were built on this machine.
#[derive(Debug)]
pub(super) struct Built {
    /// The machine's first process.
    pub(super) init: PathBuf,
    /// The agent, which suites look for in the folder above their own.
    pub(super) agent: PathBuf,
    /// The suites' names and binaries, in the order that was asked for.
    pub(super) suites: Vec<(String, PathBuf)>,
}

/// Builds the suites, the agent, and the machine's first process.
///
/// # Errors
/// One of them does not compile.
pub(super) fn build(suites: &[String], release: bool) -> Result<Built> {
    let mut tests = process::cargo();
    tests.args(["test", "--no-run", "--package", "netpol-suites"]);
    for suite in suites {
        tests.args(["--test", suite]);
    }
    let tests = artifacts(&mut tests, release)?;
    // As `cargo xtask test` builds it, so that neither builds anew what the other has built.
    let mut agent = process::cargo();
    agent.args(["build", "--package", "netpol-agent", "--bins"]);
    let agent = artifacts(&mut agent, release)?;
    let find = |all: &[Artifact], kind: &str, name: &str| {
        let found = all.iter().find(|artifact| artifact.kind == kind && artifact.name == name);
        found.map(|artifact| artifact.path.clone()).with_context(|| format!("cargo has built no {kind} {name}"))
    };
    let suites = suites.iter().map(|name| Ok((name.clone(), find(&tests, "test", name)?))).collect::<Result<_>>()?;
    // With its tests, cargo builds a package's own binaries.
    Ok(Built { init: find(&tests, "bin", INIT)?, agent: find(&agent, "bin", "netpol-agent")?, suites })
}

/// An executable that cargo has built, or found to be up to date.
#[derive(Debug, PartialEq, Eq)]
struct Artifact {
    /// `bin`, `test`, …
    kind: String,
    name: String,
    path: PathBuf,
}

fn artifacts(command: &mut Command, release: bool) -> Result<Vec<Artifact>> {
    if release {
        command.arg("--release");
    }
    // Compiler messages stay readable, on standard error.
    command.args(["--message-format", "json-render-diagnostics"]);
    let line = process::line(command);
    eprintln!("vm: {line}");
    let output = command.stderr(std::process::Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(artifact).collect())
}

/// Reads one of cargo's messages; `None` for those of another kind, and for libraries.
fn artifact(line: &str) -> Option<Artifact> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = Path::new(message["executable"].as_str()?).to_owned();
    let target = &message["target"];
    Some(Artifact { kind: target["kind"][0].as_str()?.to_owned(), name: target["name"].as_str()?.to_owned(), path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_told_from_other_messages() {
        let test =
            r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"packets"},"executable":"/t/packets-1"}"#;
        let library = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"executable":null}"#;
        let found = artifact(test);
        let expected =
            Artifact { kind: "test".to_owned(), name: "packets".to_owned(), path: PathBuf::from("/t/packets-1") };
        assert_eq!(found, Some(expected));
        assert_eq!(artifact(library), None);
        assert_eq!(artifact(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(artifact("no JSON"), None);
    }
}
