//! The cluster as other commands of this program use it: started, asked, entered, ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use netpol_testbed::interrupt;
use netpol_testbed::place::Place;

use super::outside::Outside;
use super::state::{Machine, State};
use super::{CONTROL_PLANE, Families, Options, network, up};

/// The cluster, whether it is up or not.
pub(crate) struct Access {
    state: State,
}

/// What [`Access::up`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Nothing: it has been started.
    Fresh,
    /// It was up.
    WasUp,
}

impl Access {
    /// The cluster that `NETPOL_CLUSTER` names, else the one.
    pub(crate) fn find() -> Result<Self> {
        Ok(Self { state: State::find()? })
    }

    /// Returns when a cluster with these families is up: one that is up already, however it carries and rewrites packets,
    /// else a fresh one.
    ///
    /// # Errors
    /// One with other families is up, the cluster does not start, or the user interrupts.
    pub(crate) fn up(&self, families: Families) -> Result<Start> {
        if let Some(there) = self.state.cluster()?
            && there.options.families == families
            && self.state.records()?.iter().all(Machine::is_alive)
        {
            eprintln!("cluster: it is up already, started with {}", there.options);
            return Ok(Start::WasUp);
        }
        up::main(&self.state, &Options::of(families))?;
        if interrupt::requested() {
            bail!(interrupt::Interrupted);
        }
        Ok(Start::Fresh)
    }

    /// Ends it and removes all that belongs to it.
    pub(crate) fn down(&self) -> Result<()> {
        let _lock = self.state.lock()?;
        self.state.remove()
    }

    /// Gives every node an image.
    pub(crate) fn load(&self, archive: &Path) -> Result<()> {
        super::load(&self.state, archive)
    }

    /// kubectl as the administrator; it ends with the thread that starts it.
    pub(crate) fn kubectl(&self) -> Result<Command> {
        up::admin(&self.state)
    }

    /// The nodes that run, by name, each with the place of its processes.
    pub(crate) fn nodes(&self) -> Result<BTreeMap<String, Place>> {
        let running = self.state.records()?.into_iter().filter(|machine| machine.name != CONTROL_PLANE);
        Ok(running.filter(Machine::is_alive).map(|node| (node.name.clone(), node.place())).collect())
    }

    /// How a user gets into a node.
    pub(crate) fn enter_line(&self, node: &str) -> Result<String> {
        Ok(format!("nsenter --target={} --all", self.state.record(node)?.pid))
    }

    /// A node's files, as this program sees them.
    pub(crate) fn root(&self, node: &str) -> Result<PathBuf> {
        Ok(format!("/proc/{}/root", self.state.record(node)?.pid).into())
    }

    /// Networks in which no host outside can be: the nodes', the pods' and the Services'.
    pub(crate) fn reserved(families: Families) -> Vec<IpNet> {
        let underlay = families.addresses(network::CONTROL_PLANE).into_iter();
        let underlay = underlay.filter_map(|address| IpNet::new(address, network::prefix(address)).ok());
        let ranges = families.ranges().into_iter().filter_map(|range| range.parse().ok());
        underlay.map(|net| net.trunc()).chain(ranges).collect()
    }

    /// A place for hosts outside of the cluster. `nodes` are the blocks of pods' addresses, each with its node's address.
    ///
    /// # Errors
    /// The cluster is not up, or the kernel refuses a link or a route.
    pub(crate) fn outside(&self, families: Families, nodes: &[(IpNet, std::net::IpAddr)]) -> Result<Outside> {
        let control_plane = self.state.record(CONTROL_PLANE).context("the cluster is not up")?;
        Outside::new(&control_plane, families, nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_host_outside_is_in_a_network_of_the_cluster() {
        let reserved = Access::reserved(Families::Dual);
        let texts: Vec<String> = reserved.iter().map(ToString::to_string).collect();
        let expected =
            ["198.18.0.0/24", "2001:db8::/64", "10.244.0.0/16", "fd00:10:244::/56", "10.96.0.0/16", "fd00:10:96::/112"];
        assert_eq!(texts, expected);
    }
}
