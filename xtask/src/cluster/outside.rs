//! Hosts outside of the cluster, as the nodes see them: one namespace that answers to any address it is given.
//!
//! Two links join it to the control plane's machine, which is the nodes' router. What nodes send to a host goes by way of
//! that router over the first; what a host sends to a pod goes to the pod's node at once, over the second, which is a port of
//! the underlay: another node would rewrite its source. Both links go with the namespace, and the routes over them with
//! the links, so that nothing has to be removed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;
use netpol_testbed::namespace::Namespace;
use netpol_testbed::place::Place;

use super::Families;
use super::network::{BRIDGE, OUTSIDE, ip, prefix};
use super::state::Machine;

/// The router's end of the first link, and the addresses of both: link-local ones are nobody else's.
const LINK: &str = "outside";
const ROUTER: &str = "fe80::1";
const HOSTS: &str = "fe80::2";

/// The hosts; they are gone when this value is.
#[derive(Debug)]
pub(crate) struct Outside {
    network: Namespace,
    router: Place,
    hosts: BTreeSet<IpAddr>,
}

impl Outside {
    pub(super) fn new(router: &Machine, families: Families, nodes: &[(IpNet, IpAddr)]) -> Result<Self> {
        let network = Namespace::new().context("the network outside")?;
        // A link-local address such as a metadata service's is to be answered from as well.
        network.set_sysctls(&[("net/ipv4/conf/all/arp_announce", "0")])?;
        let router = router.network();
        let path = network.path();
        let path = path.display();
        let links = [
            format!("link add {LINK} type veth peer name uplink netns {path}"),
            format!("link set {LINK} up"),
            format!("addr add {ROUTER}/64 dev {LINK} nodad"),
            format!("link add {LINK}-port type veth peer name eth0 netns {path}"),
            format!("link set {LINK}-port master {BRIDGE} up"),
        ];
        ip(&router, &links).context("the links to hosts outside")?;
        let mut lines = vec![
            "link set uplink up".to_owned(),
            format!("addr add {HOSTS}/64 dev uplink nodad"),
            "link set eth0 up".to_owned(),
        ];
        for address in families.addresses(OUTSIDE) {
            let options = if address.is_ipv6() { "nodad" } else { "" };
            lines.push(format!("addr add {address}/{} dev eth0 {options}", prefix(address)));
        }
        lines.extend(nodes.iter().map(|(block, node)| format!("route replace {block} via {node} dev eth0")));
        ip(&network.place(), &lines).context("the network outside")?;
        Ok(Self { network, router, hosts: BTreeSet::new() })
    }

    /// The network namespace of all hosts.
    pub(crate) fn network(&self) -> &Namespace {
        &self.network
    }

    /// Lets hosts with these addresses exist.
    ///
    /// # Errors
    /// The kernel refuses an address or a route.
    pub(crate) fn add_hosts(&mut self, addresses: &[IpAddr]) -> Result<()> {
        let new: Vec<IpAddr> = addresses.iter().copied().filter(|address| !self.hosts.contains(address)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let own = |address: &IpAddr| {
            format!("addr add {} dev lo {}", IpNet::from(*address), if address.is_ipv6() { "nodad" } else { "" })
        };
        ip(&self.network.place(), &new.iter().map(own).collect::<Vec<_>>()).context("hosts outside")?;
        let route = |address: &IpAddr| format!("route replace {} via inet6 {HOSTS} dev {LINK}", IpNet::from(*address));
        ip(&self.router, &new.iter().map(route).collect::<Vec<_>>()).context("routes to hosts outside")?;
        self.hosts.extend(new);
        Ok(())
    }
}
