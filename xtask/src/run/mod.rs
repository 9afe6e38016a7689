//! `cargo xtask run`: the agent in a cluster on this machine, every connection probed and held against the policies.

#[cfg(test)]
mod example;
mod manifests;
mod matrix;
mod report;
mod sandbox;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use netpol_testbed::interrupt;
use serde_json::Value;

use crate::process;
use crate::setup::{self, Need};

/// Options of `cargo xtask run`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the agent runs
    #[arg(long, value_enum, default_value = "sandbox")]
    backend: Backend,
    /// Folder with the manifests of pods and policies [default: examples/payments]
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Address families of pods
    #[arg(long, value_enum, default_value = "dual")]
    families: Families,
    /// End after the first matrix: status 0 if every cell is as the policies say, 1 if one differs, 2 if it could not run
    #[arg(long)]
    once: bool,
    /// What is printed on standard output
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
    /// Run this agent instead of building one
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backend {
    /// A node, pods and outside hosts made of network namespaces, the agent reading manifests
    Sandbox,
    /// A real cluster in namespaces (not part of this version)
    Cluster,
    /// A cluster made by kind (not part of this version)
    Kind,
}

#[derive(Clone, Copy, ValueEnum)]
enum Families {
    /// IPv4 only
    Ipv4,
    /// IPv6 only
    Ipv6,
    /// Both
    Dual,
}

impl From<Families> for netpol_testbed::sandbox::Families {
    fn from(families: Families) -> Self {
        match families {
            Families::Ipv4 => Self::Ipv4,
            Families::Ipv6 => Self::Ipv6,
            Families::Dual => Self::Dual,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON document, and nothing else
    Json,
}

/// Runs the cluster and returns 0 if every connection is as the policies say, 1 if not.
///
/// # Errors
/// It could not run.
pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let Args { backend, manifests, families, once, output, agent } = args;
    let name = match backend {
        Backend::Sandbox => None,
        Backend::Cluster => Some("cluster"),
        Backend::Kind => Some("kind"),
    };
    if let Some(name) = name {
        bail!("--backend {name} is not part of this version; --backend sandbox is");
    }
    if !process::is_root() {
        bail!("network namespaces and BPF need root");
    }
    // Before anything is run in the background: a request to end must find somebody who listens.
    interrupt::listen()?;
    let manifests = manifests.unwrap_or_else(|| process::workspace().join("examples/payments"));
    let manifests = manifests.canonicalize().with_context(|| format!("--manifests {}", manifests.display()))?;
    let agent = match agent {
        Some(agent) => {
            setup::ensure(&[Need::Packages])?;
            agent.canonicalize().with_context(|| format!("--agent {}", agent.display()))?
        }
        None => {
            setup::ensure(&[&[Need::Packages][..], &Need::BPF_TOOLCHAIN].concat())?;
            build_agent()?
        }
    };
    let run = sandbox::Run { manifests, families: families.into(), once, output, agent };
    match run.main() {
        Err(error) if error.is::<interrupt::Interrupted>() => {
            eprintln!("run: interrupted");
            Ok(ExitCode::from(130))
        }
        outcome => outcome,
    }
}

/// Builds the agent as it is shipped, and returns its path.
fn build_agent() -> Result<PathBuf> {
    eprintln!("run: building the agent");
    process::run(process::cargo().args(["build", "--release", "--package", "netpol-agent", "--bins"]))?;
    let metadata = process::output(process::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata: no target_directory")?;
    Ok(Path::new(target).join("release/netpol-agent"))
}
