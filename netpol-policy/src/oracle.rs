//! The verdict from the text of the Kubernetes API, one policy, rule and peer after the other, without tables, ids or
//! any other thing that a compiler needs. It shares nothing with [`crate::compile`] but the model and the evaluation of
//! label selectors, so that agreement of the two means something.
//!
//! [`allowed`] answers for a connection between two addresses; [`egress`] and [`ingress`] for one pod's one direction.
//! Only who starts a connection is judged: replies are allowed by being replies (F1). [`service_backends`] tells where a
//! proxy may lead a connection, and [`through_service`] what is to be said of it there.

mod services;

use std::net::IpAddr;

pub use self::services::{Backend, service_backends, through_service};
use crate::model::{Cluster, NamespaceScope, Peer, Pod, PortMatch, PortSpec, Rule};

/// The first packet of a connection, as its destination gets it: after any Service's rewriting (P11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who starts it.
    pub source: IpAddr,
    /// Whom it reaches.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; `None` for protocols without ports, and where it cannot be known.
    pub port: Option<u16>,
    /// The node whose own process (kubelet, a host-network pod) sends it; `None` for pods and all others.
    pub from_node: Option<String>,
}

/// The answer, by direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Both of the following.
    pub allowed: bool,
    /// Whether the source's egress side allows it; true where the source is no pod.
    pub egress: bool,
    /// Whether the destination's ingress side allows it; true where the destination is no pod.
    pub ingress: bool,
}

/// Judges both ends. A flow is allowed if the egress side of its source and the ingress side of its destination allow
/// it (A16).
///
/// Two live pods may claim one address for a while (W9). Then only what holds for each of them is allowed, as source,
/// destination and peer.
#[must_use]
pub fn allowed(cluster: &Cluster, flow: &Flow) -> Answer {
    let Flow { source, destination, protocol, port, from_node } = flow;
    let senders = match from_node {
        Some(_) => Vec::new(),
        None => owners(cluster, *source),
    };
    let receivers = owners(cluster, *destination);
    // A pod that connects to its own address never leaves its network namespace (W4).
    if !senders.is_empty() && senders.iter().all(|pod| owns(pod, *destination)) {
        return Answer { allowed: true, egress: true, ingress: true };
    }
    let egress = senders.iter().all(|pod| egress(cluster, pod, *destination, *protocol, *port));
    // The node is always let in to its own pods (W2); the exemption is for ingress only (W3).
    let ingress = receivers.iter().all(|pod| {
        from_node.as_ref().is_some_and(|node| *node == pod.node) || ingress(cluster, pod, *source, *protocol, *port)
    });
    Answer { allowed: egress && ingress, egress, ingress }
}

/// Whether policies let the pod start a connection to the peer. The pod's own addresses are peers like others here:
/// what a hook sees of them came back through a Service (W5).
#[must_use]
pub fn egress(cluster: &Cluster, pod: &Pod, peer: IpAddr, protocol: u8, port: Option<u16>) -> bool {
    one_direction(cluster, Direction::Egress, pod, peer, protocol, port)
}

/// Whether policies let the peer start a connection to the pod. The exemption of the pod's own node is not in here:
/// who sent a packet cannot be told from its address.
#[must_use]
pub fn ingress(cluster: &Cluster, pod: &Pod, peer: IpAddr, protocol: u8, port: Option<u16>) -> bool {
    one_direction(cluster, Direction::Ingress, pod, peer, protocol, port)
}

#[derive(Clone, Copy)]
enum Direction {
    Ingress,
    Egress,
}

/// Live pods with their own network that claim the address. Finished ones do not own it any more (W6); that of a
/// host-network pod is the node's (W1).
fn owners(cluster: &Cluster, address: IpAddr) -> Vec<&Pod> {
    cluster.pods.values().filter(|pod| owns(pod, address)).collect()
}

fn owns(pod: &Pod, address: IpAddr) -> bool {
    pod.takes_part() && pod.addresses.iter().any(|own| own.to_canonical() == address.to_canonical())
}

fn one_direction(
    cluster: &Cluster,
    direction: Direction,
    pod: &Pod,
    peer: IpAddr,
    protocol: u8,
    port: Option<u16>,
) -> bool {
    if !pod.takes_part() {
        return true;
    }
    let claims = owners(cluster, peer);
    let as_claimed_by = |peer_pod: Option<&Pod>| {
        let peer = PeerSide { address: peer.to_canonical(), pod: peer_pod };
        // Named ports are the destination's (P1, P2).
        let destination = match direction {
            Direction::Ingress => Some(pod),
            Direction::Egress => peer_pod,
        };
        let packet = Packet { protocol, port, destination };
        judged(cluster, direction, pod, &peer, &packet)
    };
    if claims.is_empty() { as_claimed_by(None) } else { claims.into_iter().all(|claim| as_claimed_by(Some(claim))) }
}

struct PeerSide<'a> {
    address: IpAddr,
    pod: Option<&'a Pod>,
}

struct Packet<'a> {
    protocol: u8,
    port: Option<u16>,
    destination: Option<&'a Pod>,
}

/// The union of all policies that select the pod: not isolated, or allowed by any rule of any of them.
fn judged(cluster: &Cluster, direction: Direction, pod: &Pod, peer: &PeerSide<'_>, packet: &Packet<'_>) -> bool {
    let mut isolated = false;
    for policy in cluster.policies.values() {
        if policy.name.namespace != pod.name.namespace || !policy.selector.matches(&pod.labels) {
            continue;
        }
        let rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        if let Some(rules) = rules {
            isolated = true;
            if rules.iter().any(|rule| rule_matches(cluster, rule, peer, packet)) {
                return true;
            }
        }
    }
    !isolated
}

fn rule_matches(cluster: &Cluster, rule: &Rule, peer: &PeerSide<'_>, packet: &Packet<'_>) -> bool {
    let Rule { index: _, peers, ports } = rule;
    let peer_matches = peers.as_ref().is_none_or(|peers| peers.iter().any(|entry| peer_matches(cluster, entry, peer)));
    let port_matches = ports.as_ref().is_none_or(|ports| ports.iter().any(|entry| port_matches(entry, packet)));
    peer_matches && port_matches
}

fn peer_matches(cluster: &Cluster, entry: &Peer, peer: &PeerSide<'_>) -> bool {
    match entry {
        // Addresses of pods and nodes too (B5–B7).
        Peer::Block { cidr, except } => {
            cidr.contains(&peer.address) && !except.iter().any(|except| except.contains(&peer.address))
        }
        // Selectors mean pods only, never other addresses (A13).
        Peer::Pods { namespaces, pods } => peer.pod.is_some_and(|pod| {
            let namespace = &pod.name.namespace;
            let in_scope = match namespaces {
                NamespaceScope::Own(own) => namespace == own,
                NamespaceScope::Matching(selector) => {
                    cluster.namespaces.get(namespace).is_some_and(|namespace| selector.matches(&namespace.labels))
                }
            };
            in_scope && pods.matches(&pod.labels)
        }),
        Peer::Nothing => false,
    }
}

fn port_matches(entry: &PortMatch, packet: &Packet<'_>) -> bool {
    let PortMatch { protocol, ports } = entry;
    if protocol.number() != packet.protocol {
        return false;
    }
    match (ports, packet.port) {
        (PortSpec::All, _) => true,
        (PortSpec::Range(first, last), Some(port)) => (*first..=*last).contains(&port),
        // Any port of that name and protocol, should a pod have several (P5, P6).
        (PortSpec::Named(name), Some(port)) => packet.destination.is_some_and(|pod| {
            pod.ports.iter().any(|declared| {
                declared.name.as_ref() == Some(name) && declared.protocol == *protocol && declared.port == port
            })
        }),
        (PortSpec::Range(..) | PortSpec::Named(_), None) => false,
    }
}

#[cfg(test)]
mod service_tests;
#[cfg(test)]
mod tests;
