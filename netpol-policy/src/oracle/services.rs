//! Where a connection leads that a proxy rewrites, and what is to be said of it there.
//!
//! Which of several backends a proxy picks is its own business; policies speak of the one that it has picked (P11).

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Answer, Flow, egress, ingress, owners, owns};
use crate::model::{Cluster, HostPort, Service, ServicePort};

/// An address and port behind a Service or host port.
pub type Backend = (IpAddr, u16);

/// The backends that a connection to this address and port may reach; `None` if no proxy rewrites it. It may be several
/// Services', a node's (node ports, and the host ports of its pods), or both.
#[must_use]
pub fn service_backends(cluster: &Cluster, address: IpAddr, port: u16, protocol: u8) -> Option<BTreeSet<Backend>> {
    let address = address.to_canonical();
    let mut backends = None;
    let of_node = cluster.nodes.values().filter(|node| node.addresses.iter().any(|own| own.to_canonical() == address));
    let nodes: Vec<&str> = of_node.map(|node| node.name.as_str()).collect();
    for service in cluster.services.values().filter(|service| !service.addresses.is_empty()) {
        let is_its_own = service.addresses.iter().any(|own| own.to_canonical() == address);
        for entry in service.ports.iter().filter(|entry| entry.protocol.number() == protocol) {
            if (is_its_own && entry.port == port) || (!nodes.is_empty() && entry.node_port == port) {
                let found = backends.get_or_insert_with(BTreeSet::new);
                found.extend(endpoints(cluster, service, entry).filter(|(to, _)| to.is_ipv4() == address.is_ipv4()));
            }
        }
    }
    for pod in cluster.pods.values().filter(|pod| pod.takes_part() && nodes.contains(&pod.node.as_str())) {
        for HostPort { address: at, protocol: of, port: host_port, container_port } in &pod.host_ports {
            let is_meant = at.is_none_or(|at| at.to_canonical() == address);
            if is_meant && *host_port == port && of.number() == protocol {
                let found = backends.get_or_insert_with(BTreeSet::new);
                let own = pod.addresses.iter().map(IpAddr::to_canonical);
                found.extend(own.filter(|to| to.is_ipv4() == address.is_ipv4()).map(|to| (to, *container_port)));
            }
        }
    }
    backends
}

fn endpoints(cluster: &Cluster, service: &Service, entry: &ServicePort) -> impl Iterator<Item = Backend> {
    let slices = cluster
        .slices
        .values()
        .filter(|slice| slice.name.namespace == service.name.namespace && slice.service == service.name.name);
    slices.flat_map(|slice| {
        let ports = slice.ports.iter().filter(|port| port.name == entry.name && port.protocol == entry.protocol);
        ports.flat_map(|port| slice.addresses.iter().map(|address| (address.to_canonical(), port.port)))
    })
}

/// Judges a connection to a Service for which the proxy has picked this backend. `seen_as` is the address that the
/// proxy has put in the place of the source, if it has: the receiver's ingress is judged by what it can see, except of
/// a pod that reaches itself, where its own address counts on both sides (W5).
#[must_use]
pub fn through_service(cluster: &Cluster, flow: &Flow, backend: Backend, seen_as: Option<IpAddr>) -> Answer {
    let Flow { source, destination: _, protocol, port: _, from_node } = flow;
    let (address, port) = backend;
    let senders = if from_node.is_some() { Vec::new() } else { owners(cluster, *source) };
    let egress = senders.iter().all(|pod| egress(cluster, pod, address, *protocol, Some(port)));
    let ingress = owners(cluster, address).iter().all(|pod| {
        let seen = if owns(pod, *source) { *source } else { seen_as.unwrap_or(*source) };
        from_node.as_ref().is_some_and(|node| *node == pod.node) || ingress(cluster, pod, seen, *protocol, Some(port))
    });
    Answer { allowed: egress && ingress, egress, ingress }
}
