//! Everything beyond a node's uplink: one namespace that answers to any address it is given.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::PoisonError;

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::command;
use crate::namespace::Namespace;
use crate::node::gateway;
use crate::place::Place;

/// The node's end of the uplink.
pub const UPLINK: &str = "eth0";

/// The world as a node sees it. All hosts in it are one namespace; only their addresses tell them apart.
#[derive(Debug)]
pub struct Outside {
    network: Namespace,
    hosts: Mutex<BTreeSet<IpAddr>>,
}

impl Outside {
    pub(crate) fn new(node: &Place, uplink: &[IpNet], pod_cidrs: &[IpNet]) -> Result<Self> {
        let network = Namespace::new().context("the network outside")?;
        network.set_sysctls(&[
            // A link-local address such as a metadata service's is to be answered from as well.
            ("net/ipv4/conf/all/arp_announce", "0"),
        ])?;
        let path = network.path();
        command::ip(
            node,
            &[
                format!("link add {UPLINK} type veth peer name uplink netns {}", path.display()),
                format!("link set {UPLINK} up"),
            ],
        )?;
        let mut lines = vec!["link set uplink up".to_owned()];
        let mut node_lines = Vec::new();
        for own in uplink {
            let router = Self::router(own);
            let options = if own.addr().is_ipv6() { "nodad" } else { "" };
            lines.push(format!("addr add {router}/{} dev uplink {options}", own.prefix_len()));
            node_lines.push(format!("addr add {own} dev {UPLINK} {options}"));
            node_lines.push(format!("route add default via {router} dev {UPLINK} onlink"));
            for block in pod_cidrs.iter().filter(|block| block.addr().is_ipv4() == own.addr().is_ipv4()) {
                lines.push(format!("route add {} via {} dev uplink onlink", block.trunc(), own.addr()));
            }
        }
        // Both ends must be up before a route can name a router on them.
        command::ip(&network.place(), &lines).context("the uplink outside")?;
        command::ip(node, &node_lines).context("the uplink")?;
        Ok(Self { network, hosts: Mutex::default() })
    }

    /// Its network namespace.
    #[must_use]
    pub fn network(&self) -> &Namespace {
        &self.network
    }

    /// The router of a node's uplink: the first address of that network.
    #[must_use]
    pub fn router(own: &IpNet) -> IpAddr {
        gateway(&own.trunc())
    }

    /// Lets hosts with these addresses exist.
    ///
    /// # Errors
    /// The kernel refuses an address.
    pub fn add_hosts(&self, addresses: &[IpAddr]) -> Result<()> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<IpAddr> = addresses.iter().copied().filter(|address| !hosts.contains(address)).collect();
        let lines: Vec<String> = new
            .iter()
            .map(|address| {
                format!("addr add {} dev lo{}", IpNet::from(*address), if address.is_ipv6() { " nodad" } else { "" })
            })
            .collect();
        command::ip(&self.network.place(), &lines).context("hosts outside")?;
        hosts.extend(new);
        Ok(())
    }
}
