//! `cargo xtask run`: the agent in a cluster on this machine, every connection probed and held against the policies.

mod cluster;
#[cfg(test)]
mod example;
mod image;
mod kind;
mod live;
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

use self::image::Image;
use crate::process;
use crate::setup::{self, Need};

/// Options of `cargo xtask run`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the agent runs [default: kind if it and a container engine are there, else sandbox]
    #[arg(long, value_enum)]
    backend: Option<Backend>,
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
    /// Print what --backend kind would run, and run nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// A node, pods and outside hosts made of network namespaces, the agent reading manifests
    Sandbox,
    /// Kubernetes with Flannel in namespaces of this machine, the agent as a DaemonSet: the cluster that
    /// `cargo xtask cluster up` has started, else one that ends with this
    Cluster,
    /// A cluster whose nodes are containers, made by kind
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

impl From<Families> for crate::cluster::Families {
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

impl Output {
    /// Prints for people, if a person reads standard output.
    fn say(self, text: impl FnOnce() -> String) {
        match self {
            Self::Text => print!("{}", text()),
            Self::Json => {}
        }
    }
}

/// Runs the cluster and returns 0 if every connection is as the policies say, 1 if not.
///
/// # Errors
/// It could not run.
pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let Args { backend, manifests, families, once, output, agent, dry_run } = args;
    if dry_run {
        return match backend {
            Some(Backend::Kind) | None => {
                print!("{}", kind::dry_run(families.into(), agent.as_deref())?);
                Ok(ExitCode::SUCCESS)
            }
            Some(Backend::Sandbox | Backend::Cluster) => bail!("--dry-run is of --backend kind alone"),
        };
    }
    if !process::is_root() {
        bail!("network namespaces and BPF need root");
    }
    // Before anything is run in the background: a request to end must find somebody who listens.
    interrupt::listen()?;
    let manifests = manifests.unwrap_or_else(|| process::workspace().join("examples/payments"));
    let manifests = manifests.canonicalize().with_context(|| format!("--manifests {}", manifests.display()))?;
    let backend = backend.unwrap_or_else(|| {
        if !kind::is_available() {
            return Backend::Sandbox;
        }
        eprintln!("run: in a kind cluster, since kind and a container engine are here; --backend names another place");
        Backend::Kind
    });
    let live = |manifests| live::Run { manifests, once, output, cluster_stays: false };
    let outcome = match backend {
        Backend::Sandbox => in_sandbox(manifests, families, once, output, agent.as_deref()),
        Backend::Cluster => {
            Image::make(agent.as_deref()).and_then(|image| cluster::main(live(manifests), families.into(), &image))
        }
        Backend::Kind => kind::main(&live(manifests), families.into(), agent.as_deref()),
    };
    match outcome {
        // Ctrl-C ends the programs that are run at the moment too, whose failure then comes first.
        Err(_ended) if interrupt::requested() => {
            eprintln!("run: interrupted");
            Ok(ExitCode::from(130))
        }
        outcome => outcome,
    }
}

fn in_sandbox(
    manifests: PathBuf,
    families: Families,
    once: bool,
    output: Output,
    agent: Option<&Path>,
) -> Result<ExitCode> {
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
    sandbox::Run { manifests, families: families.into(), once, output, agent }.main()
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
