//! The backend `cluster`: Kubernetes in namespaces of this machine, which [`crate::cluster`] makes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use ipnet::IpNet;
use netpol_testbed::place::Place;

use super::image::Image;
use super::live::{Run, Site};
use crate::cluster::Families;
use crate::cluster::access::{Access, Start};
use crate::cluster::outside::Outside;
use crate::process;

/// The cluster, and the agent that is to run in it.
struct Cluster {
    access: Access,
    families: Families,
    agent: PathBuf,
}

/// Ends the cluster, whatever happens in it.
struct Ending<'a>(&'a Access);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        eprintln!("run: removing the cluster");
        if let Err(error) = self.0.down() {
            eprintln!("run: the cluster is not removed (`cargo xtask cluster down` tries again): {error:#}");
        }
    }
}

/// Runs it in the cluster that is up, else in one that ends with this; see [`super::main`] for the status.
pub(super) fn main(run: Run, families: Families, image: &Image) -> Result<ExitCode> {
    let access = Access::find()?;
    let start = access.up(families)?;
    let cluster = Cluster { access, families, agent: image.binary.clone() };
    let _ending = match start {
        Start::Fresh => Some(Ending(&cluster.access)),
        Start::WasUp => None,
    };
    cluster.access.load(&image.archive)?;
    Run { cluster_stays: start == Start::WasUp, ..run }.main(&cluster)
}

impl Site for Cluster {
    fn kubectl(&self) -> Result<Command> {
        self.access.kubectl()
    }

    fn kubectl_line(&self) -> String {
        "cargo xtask cluster kubectl".to_owned()
    }

    fn nodes(&self) -> Result<BTreeMap<String, Place>> {
        self.access.nodes()
    }

    fn node_line(&self, node: &str) -> String {
        self.access.enter_line(node).unwrap_or_else(|_gone| "is gone".to_owned())
    }

    fn uninstall(&self, node: &str) -> Result<()> {
        let nodes = self.access.nodes()?;
        let network = nodes.get(node).and_then(Place::network).context("the node is gone")?;
        // The agent's own file need not be seen from inside of the node; the node's files are seen from here.
        let root = self.access.root(node)?;
        let inside = |path: &str| root.join(Path::new(path));
        let mut command = process::command(&self.agent);
        command.arg("uninstall").arg("--bpf-root").arg(inside("sys/fs/bpf"));
        command.arg("--runtime-dir").arg(inside("run/netpol-agent")).args(["--log-level", "warn"]);
        Place::namespace(network).prepare(&mut command)?;
        process::run(&mut command)
    }

    fn kustomization(&self) -> PathBuf {
        process::workspace().join("deploy/base")
    }

    fn outside(&self, nodes: &[(IpNet, IpAddr)]) -> Result<Result<Outside, &'static str>> {
        self.access.outside(self.families, nodes).map(Ok)
    }

    fn reserved(&self) -> Vec<IpNet> {
        Access::reserved(self.families)
    }
}
