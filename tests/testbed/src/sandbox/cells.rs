//! The connectivity matrix: which cells there are, and what the policies say of each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_policy::model::{Cluster, ContainerPort, ObjectName, Peer, Pod, PortMatch, PortSpec, Protocol, Rule};
use netpol_policy::oracle::{self, Flow};

/// A port, with its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub number: u16,
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.protocol.name(), self.number)
    }
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// A pod.
    Pod(ObjectName),
    /// A host outside.
    Host(IpAddr),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(name) => name.fmt(f),
            Self::Host(address) => address.fmt(f),
        }
    }
}

/// A connection that can be tried.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    /// Who starts it.
    pub from: End,
    /// Who is to answer.
    pub to: End,
    /// The address it starts from.
    pub source: IpAddr,
    /// The address it goes to.
    pub destination: IpAddr,
    /// The port it goes to.
    pub port: Port,
}

/// For a rule that names no port number at all, which would leave nothing to probe.
const ANY_PORT: u16 = 80;

/// The ports on which hosts outside listen: all that policies name. A range stands for its ends, a name for the numbers
/// that pods give it, a rule without ports for one port.
#[must_use]
pub fn named_ports(cluster: &Cluster) -> BTreeSet<Port> {
    let rules = cluster.policies.values().flat_map(|policy| [&policy.ingress, &policy.egress]).flatten().flatten();
    let mut named = BTreeSet::new();
    for Rule { index: _, peers, ports } in rules {
        let Some(ports) = ports else {
            let is_about_hosts =
                peers.as_ref().is_none_or(|peers| peers.iter().any(|peer| matches!(peer, Peer::Block { .. })));
            if is_about_hosts {
                named.insert(Port { protocol: Protocol::Tcp, number: ANY_PORT });
            }
            continue;
        };
        for PortMatch { protocol, ports } in ports {
            let protocol = *protocol;
            let mut name = |number| {
                named.insert(Port { protocol, number });
            };
            match ports {
                PortSpec::All => name(ANY_PORT),
                PortSpec::Range(first, last) => {
                    name(*first);
                    name(*last);
                }
                PortSpec::Named(wanted) => {
                    let declared = cluster.pods.values().flat_map(|pod| &pod.ports);
                    let of_name =
                        |port: &&ContainerPort| port.name.as_ref() == Some(wanted) && port.protocol == protocol;
                    declared.filter(of_name).for_each(|port| name(port.port));
                }
            }
        }
    }
    named
}

/// The ports on which a pod listens: all that its containers declare.
#[must_use]
pub fn declared_ports(pod: &Pod) -> BTreeSet<Port> {
    pod.ports.iter().map(|port| Port { protocol: port.protocol, number: port.port }).collect()
}

/// Every pod and outside host as source; every pod on its ports, and every outside host on the ports that policies name,
/// as destination; once for each address of the destination. Connections between outside hosts do not pass the node.
#[must_use]
pub fn cells<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    hosts: impl IntoIterator<Item = IpAddr>,
    host_ports: &BTreeSet<Port>,
) -> Vec<Cell> {
    let mut ends = BTreeMap::<End, (Vec<IpAddr>, BTreeSet<Port>)>::new();
    for pod in pods {
        ends.insert(End::Pod(pod.name.clone()), (pod.addresses.clone(), declared_ports(pod)));
    }
    for host in hosts {
        ends.insert(End::Host(host), (vec![host], host_ports.clone()));
    }
    let mut cells = Vec::new();
    for (from, (sources, _)) in &ends {
        for (to, (destinations, ports)) in &ends {
            if matches!((from, to), (End::Host(_), End::Host(_))) {
                continue;
            }
            for destination in destinations {
                let Some(source) = sources.iter().find(|source| source.is_ipv4() == destination.is_ipv4()) else {
                    continue;
                };
                cells.extend(ports.iter().map(|port| Cell {
                    from: from.clone(),
                    to: to.clone(),
                    source: *source,
                    destination: *destination,
                    port: *port,
                }));
            }
        }
    }
    cells
}

/// What the policies say of a cell: the answer of the oracle, which knows nothing of how they are enforced.
#[must_use]
pub fn is_allowed(cluster: &Cluster, cell: &Cell) -> bool {
    let node = match &cell.from {
        End::Pod(name) => cluster.pods.get(name).filter(|pod| pod.host_network).map(|pod| pod.node.clone()),
        End::Host(_) => None,
    };
    let flow = Flow {
        source: cell.source,
        destination: cell.destination,
        protocol: cell.port.protocol.number(),
        port: Some(cell.port.number),
        from_node: node,
    };
    oracle::allowed(cluster, &flow).allowed
}
