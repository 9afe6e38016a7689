//! `cargo xtask test`: every test of the project, in the order of what it proves cheapest.
//!
//! Cargo's own output goes through unchanged. A step that fails does not stop the others: one run shows all that is
//! wrong, and the list at the end names the steps.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::process;
use crate::setup::{self, Need};

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only what needs no root: unit and property tests
    #[arg(long)]
    unprivileged: bool,
    /// Only these suites, and nothing else: packets, conformance, cluster, …; upstream is a third of upstream's own,
    /// oldest-kernel the packets in a virtual machine
    #[arg(long, value_delimiter = ',', conflicts_with = "unprivileged")]
    suite: Vec<String>,
    /// Given to the test binaries: a test's name, --nocapture, …
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// The packages whose tests need no root. The agent's are built with the BPF toolchain; the others need only Rust.
const UNPRIVILEGED: [&str; 5] = ["netpol-common", "netpol-policy", "netpol-testbed", "xtask", "netpol-agent"];

/// What upstream's own suite is called among suites.
const UPSTREAM: &str = "upstream";

/// The part of it that is run here, on one combination: the third with most about egress through Services. All of it on
/// every combination takes an hour: `cargo xtask conformance --all`.
const THIRD: [&str; 4] = ["conformance", "--third", "1", "--image"];

/// What the packet tests on the oldest kernel are called among suites.
const OLDEST: &str = "oldest-kernel";

/// How they are run: all of them, with what the design takes for granted of a kernel. In a minute they are through, on an
/// emulated processor of its own. The other kernels, and the agent on each: `cargo xtask vm`.
const ON_OLDEST: [&str; 4] = ["vm", "5.10", "--suite", "packets,kernels"];

/// Suites in which the agent runs in a cluster, from its image.
const FROM_IMAGE: [&str; 2] = ["kubernetes", UPSTREAM];

/// Suites that take programs of the cluster without starting one.
const OF_THE_CLUSTER: [&str; 1] = ["services"];

/// The variable by which suites take an image instead of building one.
const IMAGE: &str = "NETPOL_IMAGE";

/// Runs the tests; the status is 1 if one fails.
///
/// # Errors
/// Something that the tests need is missing and cannot be installed.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if !args.unprivileged && !process::is_root() {
        bail!("the suites need root for namespaces and BPF; --unprivileged runs what does not");
    }
    setup::ensure(&Need::BPF_TOOLCHAIN)?;
    let mut steps: Vec<(String, Command)> = Vec::new();
    if args.suite.is_empty() {
        let mut unit = process::cargo();
        unit.args(["test", "--no-fail-fast"]);
        for package in UNPRIVILEGED {
            unit.args(["--package", package]);
        }
        steps.push(("unit and property tests".to_owned(), forward(unit, &[], &args.arguments)));
    }
    if !args.unprivileged {
        setup::ensure(&[Need::Packages, Need::ControlPlane])?;
        let suites = if args.suite.is_empty() { all()? } else { args.suite.clone() };
        let any_of = |names: &[&str]| suites.iter().any(|suite| names.contains(&suite.as_str()));
        if any_of(&FROM_IMAGE) || any_of(&OF_THE_CLUSTER) {
            setup::ensure(&[Need::Cluster])?;
        }
        let mut agent = process::cargo();
        agent.args(["build", "--package", "netpol-agent", "--bins"]);
        steps.push(("the agent, which the suites run".to_owned(), agent));
        let own = || std::env::current_exe().context("the path of this program").map(process::command);
        let image = process::target_directory()?.join("test-image.tar");
        if any_of(&FROM_IMAGE) {
            let mut build = own()?;
            // Compiled as the other suites' agent is: an optimised build takes minutes.
            build.args(["image", "--profile", "dev", "--output"]).arg(&image);
            steps.push(("the agent's image".to_owned(), build));
        }
        for suite in suites {
            let command = match suite.as_str() {
                UPSTREAM => {
                    let mut upstream = own()?;
                    upstream.args(THIRD).arg(&image);
                    upstream
                }
                OLDEST => {
                    let mut vm = own()?;
                    vm.args(ON_OLDEST);
                    vm
                }
                _ => {
                    let mut tests = process::cargo();
                    tests.args(["test", "--package", "netpol-suites", "--no-fail-fast", "--test", &suite]);
                    tests.env(IMAGE, &image);
                    // Suites make namespaces, pins and links on one machine: one test at a time.
                    forward(tests, &["--test-threads=1"], &args.arguments)
                }
            };
            steps.push((format!("suite {suite}"), command));
        }
    }
    let mut failed = Vec::new();
    for (name, mut command) in steps {
        eprintln!("test: {name}: {}", process::line(&command));
        let status = command.status().with_context(|| format!("cannot start `{}`", process::line(&command)))?;
        if !status.success() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        // The last word is cargo's own summary.
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("\ntest: FAILED: {}", failed.join(", "));
    Ok(ExitCode::from(1))
}

/// Every suite: the test binaries, and what other programs run.
fn all() -> Result<Vec<String>> {
    let mut all = suites()?;
    all.extend([OLDEST, UPSTREAM].map(str::to_owned));
    Ok(all)
}

/// The test binaries of the suites, as cargo finds them: files, and folders with a `main.rs`. Read from the folder, so
/// that a new one is never forgotten here.
fn suites() -> Result<Vec<String>> {
    let folder = process::workspace().join("tests/suites/tests");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut suites = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        let is_suite = path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file();
        if is_suite && let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            suites.push(name.to_owned());
        }
    }
    suites.sort();
    Ok(suites)
}

/// Adds what follows `--`.
fn forward(mut command: Command, own: &[&str], callers: &[String]) -> Command {
    if !own.is_empty() || !callers.is_empty() {
        command.arg("--").args(own).args(callers);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_of_the_folder_is_run() {
        let suites = suites().unwrap();
        assert!(suites.iter().any(|suite| suite == "cluster"), "{suites:?}");
        for suite in suites {
            let folder = process::workspace().join("tests/suites/tests");
            let (file, main) = (folder.join(format!("{suite}.rs")), folder.join(&suite).join("main.rs"));
            assert!(file.is_file() || main.is_file(), "{suite}");
        }
    }

    #[test]
    fn suites_that_need_a_cluster_are_suites() {
        let all = all().unwrap();
        for suite in FROM_IMAGE.iter().chain(&OF_THE_CLUSTER) {
            assert!(all.iter().any(|name| name == suite), "{suite}");
        }
    }

    #[test]
    fn suites_run_one_test_at_a_time_and_take_the_callers_arguments() {
        let command = forward(Command::new("cargo"), &["--test-threads=1"], &["a_name".to_owned()]);
        assert_eq!(process::line(&command), "cargo -- --test-threads=1 a_name");
        assert_eq!(process::line(&forward(Command::new("cargo"), &[], &[])), "cargo");
    }

    #[test]
    fn every_package_of_the_workspace_is_tested_by_some_step() {
        let manifest = std::fs::read_to_string(process::workspace().join("Cargo.toml")).unwrap();
        let members = manifest.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
        for member in members.split(',').map(|member| member.trim().trim_matches('"')).filter(|name| !name.is_empty()) {
            let manifest = std::fs::read_to_string(process::workspace().join(member).join("Cargo.toml")).unwrap();
            let name = manifest.split_once("name = \"").unwrap().1.split_once('"').unwrap().0;
            // The suites are steps of their own; the programs have no tests but those that load them.
            let elsewhere = ["netpol-suites", "netpol-ebpf"].contains(&name);
            assert!(elsewhere || UNPRIVILEGED.contains(&name), "{name}");
        }
    }
}
