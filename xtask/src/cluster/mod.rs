//! `cargo xtask cluster`: a real Kubernetes with Flannel, in namespaces of this machine and without a container engine.
//!
//! Each node, and the control plane, is a [`machine`]: process, network and mount namespaces of its own. `up` starts
//! them, connects them ([`network`]), tells each what to run ([`control`], [`components`]), and returns when every node
//! is ready; they go on by themselves. [`state`] keeps what `down` needs to end them, and [`recipe`] says what the
//! binaries and images are built from.

pub(crate) mod access;
mod capabilities;
mod cgroups;
pub(crate) mod client;
mod components;
mod control;
pub(crate) mod images;
mod machine;
mod network;
mod nodes;
pub(crate) mod outside;
pub(crate) mod recipe;
mod state;
mod up;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use netpol_testbed::control_plane::installation;
use serde::{Deserialize, Serialize};

use self::control::{Request, Running};
use self::state::State;
use crate::process;
use crate::setup::{self, Need};

/// The name of the control plane's machine; the nodes' begin with "node", and come after it.
const CONTROL_PLANE: &str = "control-plane";

/// The most nodes that `up` starts: addresses of the underlay and of pods end soon after.
const MOST_NODES: u8 = 50;

/// Commands of `cargo xtask cluster`.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Start a cluster, and return when its nodes are ready
    Up(Options),
    /// End the cluster and remove all that belongs to it
    Down,
    /// Say what runs, and whether it is well; the exit status is 1 if it is not
    Status,
    /// Run kubectl as the cluster's administrator
    #[command(disable_help_flag = true)]
    Kubectl {
        /// kubectl's own arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Give every node an image, from an archive that `docker save`, `cargo xtask image` or any other tool has written
    Load {
        /// The archive: docker's or OCI's
        archive: PathBuf,
    },
    /// Start a node that was killed, or one more than `up` has started, and return when it is ready
    StartNode {
        /// Its name: node1, node2, …
        name: String,
    },
    /// End a node as a power failure does
    KillNode {
        /// Its name
        name: String,
    },
    /// Print where a program of the cluster is, such as kube-proxy; build it if it is not there
    #[command(hide = true)]
    Binary {
        /// Its name
        name: String,
    },
    /// Be a machine: what `up` starts
    #[command(hide = true)]
    Machine(machine::Args),
}

/// What a cluster is like.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
pub(crate) struct Options {
    /// Nodes, beside the control plane, which runs no pods
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
    pub(crate) nodes: u8,
    /// How Flannel carries packets of pods between nodes
    #[arg(long, value_enum, default_value = "vxlan")]
    pub(crate) backend: Backend,
    /// How kube-proxy rewrites the addresses of Services
    #[arg(long, value_enum, default_value = "nftables")]
    pub(crate) proxy: Proxy,
    /// Families of pods', Services' and nodes' addresses
    #[arg(long, value_enum, default_value = "ipv4")]
    pub(crate) families: Families,
}

/// How Flannel carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Backend {
    /// In UDP packets of the node
    Vxlan,
    /// As they are, by routes: the nodes share a network
    HostGw,
}

/// kube-proxy's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Proxy {
    Nftables,
    Iptables,
}

/// Families of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Families {
    Ipv4,
    Ipv6,
    /// Both
    Dual,
}

impl Options {
    /// What `up` does unless it is told otherwise, with these families.
    fn of(families: Families) -> Self {
        Self { nodes: 3, backend: Backend::Vxlan, proxy: Proxy::Nftables, families }
    }
}

impl fmt::Display for Options {
    /// As `up` takes them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, backend, proxy, families } = self;
        let (backend, proxy, families) = (name(*backend), name(*proxy), name(*families));
        write!(f, "--nodes {nodes} --backend {backend} --proxy {proxy} --families {families}")
    }
}

/// What a value is called on the command line.
pub(crate) fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Runs `cargo xtask cluster`.
///
/// # Errors
/// It could not run.
pub(crate) fn main(command: Command) -> Result<ExitCode> {
    if !process::is_root() {
        bail!("namespaces and mounts need root");
    }
    let state = State::find()?;
    match command {
        Command::Up(options) => up::main(&state, &options),
        Command::Down => down(&state),
        Command::Status => status(&state),
        Command::Kubectl { arguments } => kubectl(&state, &arguments),
        Command::Load { archive } => load(&state, &archive).map(|()| ExitCode::SUCCESS),
        Command::StartNode { name } => locked(&state, || nodes::start(&state, &name)),
        Command::KillNode { name } => locked(&state, || nodes::kill(&state, &name)),
        Command::Binary { name } => binary(&name),
        Command::Machine(args) => machine::main(args),
    }
}

/// Does something to the cluster that is there.
fn locked(state: &State, work: impl FnOnce() -> Result<()>) -> Result<ExitCode> {
    if !state.exists() {
        bail!("there is no cluster: `cargo xtask cluster up`");
    }
    let _lock = state.lock()?;
    work().map(|()| ExitCode::SUCCESS)
}

fn down(state: &State) -> Result<ExitCode> {
    if !state.exists() {
        cgroups::Hierarchies::read()?.sweep();
        eprintln!("cluster: there is none");
        return Ok(ExitCode::SUCCESS);
    }
    let _lock = state.lock()?;
    remove(state)?;
    eprintln!("cluster: removed");
    Ok(ExitCode::SUCCESS)
}

/// Ends the cluster, and waits for machines whose records were gone: those end by themselves, and only their control
/// groups are known, by name.
fn remove(state: &State) -> Result<()> {
    state.remove()?;
    let hierarchies = cgroups::Hierarchies::read()?;
    let names = (1..=usize::from(MOST_NODES) + nodes::SPARE).map(nodes::name);
    for name in names.chain([CONTROL_PLANE.to_owned()]) {
        hierarchies.groups(&state.group(&name)).iter().try_for_each(|group| state::remove_when_empty(group))?;
    }
    Ok(())
}

fn status(state: &State) -> Result<ExitCode> {
    let Some(cluster) = state.cluster()? else {
        println!("{}", if state.exists() { "not ready: `up` is at work, or was interrupted" } else { "there is none" });
        return Ok(ExitCode::from(1));
    };
    let mut well = true;
    let mut nodes = 0;
    for machine in state.records()? {
        if !machine.is_alive() {
            println!("{:<14} is gone", machine.name);
            well = false;
            continue;
        }
        println!("{:<14} process {}", machine.name, machine.pid);
        nodes += usize::from(machine.name != CONTROL_PLANE);
        let socket = state.machines().join(format!("{}.sock", machine.name));
        for Running { name, pid: _, ended, log } in control::ask::<Vec<Running>>(&socket, &Request::List)? {
            well &= ended.is_none();
            let how = ended.map_or_else(|| "runs".to_owned(), |how| format!("ended: {how}"));
            println!("  {name:<24} {how:<20} {}", log.display());
        }
    }
    println!("started with {}", cluster.options);
    print!("{}", up::kubectl(state, &["get", "nodes", "--output=wide"])?);
    well &= up::ready_nodes(state)? == nodes;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn load(state: &State, archive: &Path) -> Result<()> {
    let cluster = recipe::Recipe::read()?.installation()?;
    let nodes: Vec<_> = state.records()?.into_iter().filter(|machine| machine.name != CONTROL_PLANE).collect();
    if nodes.is_empty() {
        bail!("there is no cluster: `cargo xtask cluster up`");
    }
    for node in nodes {
        nodes::import(&cluster, &node, archive)?;
        eprintln!("cluster: {} has it", node.name);
    }
    Ok(())
}

fn binary(name: &str) -> Result<ExitCode> {
    setup::ensure(&[Need::Packages, Need::Cluster])?;
    let path = recipe::Recipe::read()?.installation()?.binary(name);
    if !path.is_file() {
        bail!("the cluster has no program {name}");
    }
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}

fn kubectl(state: &State, arguments: &[String]) -> Result<ExitCode> {
    let record = state.record(CONTROL_PLANE).context("there is no cluster: `cargo xtask cluster up`")?;
    let installation = installation::Installation::find()?;
    let mut command = process::command(installation.component("kubectl")?);
    // Paths in arguments are the caller's.
    command.current_dir(std::env::current_dir().context("the working directory")?);
    command.arg("--kubeconfig").arg(state.kubeconfig("admin")).args(arguments);
    // No proxy reaches the cluster's own network.
    command.env("NO_PROXY", "*").env("no_proxy", "*");
    record.network().prepare(&mut command)?;
    let status = command.status().context("cannot start kubectl")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn other_commands_start_the_cluster_that_up_starts() {
        let line = Line::parse_from(["up", "--families", "dual"]);
        assert_eq!(Options::of(Families::Dual), line.options);
    }

    #[test]
    fn options_are_printed_as_they_are_given() {
        let text = "--nodes 2 --backend host-gw --proxy iptables --families dual";
        let line = Line::parse_from(std::iter::once("up").chain(text.split(' ')));
        assert_eq!(line.options.to_string(), text);
    }
}
