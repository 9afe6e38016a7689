//! The compiled rows of Services against the API's text.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netpol_common::abi::{LOCAL_BACKENDS, ServiceKey, ServiceRow};

use super::{NODE, Random, World};
use crate::compile::memory::MemoryTables;
use crate::model;
use crate::oracle::{Backend, service_backends};

/// The backends that a row names.
#[must_use]
pub fn local_backends(row: &ServiceRow) -> BTreeSet<Backend> {
    let meant = row.local.iter().take(row.count as usize);
    meant.map(|to| (IpAddr::from(to.address).to_canonical(), u16::from_be_bytes(to.port))).collect()
}

/// Each address and port that anything may be rewritten at.
fn asked(world: &World) -> Vec<(IpAddr, u16, u8)> {
    let mut at: BTreeSet<IpAddr> = world.addresses().into_iter().collect();
    at.extend(world.cluster.services.values().flat_map(|service| &service.addresses));
    // No packet is sent to it, and a key with it stands for the node.
    at.retain(|address| !address.is_unspecified());
    let mut ports: BTreeSet<u16> = [1, 53, 80, 443, 8080, 30_053, 30_080, 30_443].into();
    ports.extend(world.cluster.pods.values().flat_map(|pod| &pod.host_ports).map(|host_port| host_port.port));
    let mut asked = Vec::new();
    for address in at {
        for port in &ports {
            asked.extend([6, 17, 132].map(|protocol| (address, *port, protocol)));
        }
    }
    asked
}

/// Compares the rows for one in `share` of all addresses and ports: whether a proxy rewrites there, and to which backends
/// on this node. Returns how many were asked about, and how many backends they had; or what differs.
pub fn compare(world: &World, tables: &MemoryTables, share: usize, random: &mut Random) -> Result<(u64, u64), String> {
    // The text knows a node's addresses by its Node alone.
    let mut cluster = world.cluster.clone();
    let nobody =
        || model::Node { name: NODE.to_owned(), addresses: Vec::new(), overlay: Vec::new(), broadcasts: Vec::new() };
    let own = cluster.nodes.entry(NODE.to_owned()).or_insert_with(nobody);
    own.addresses.extend(&world.local);
    let here: BTreeSet<IpAddr> = own.addresses.iter().copied().collect();
    let services = &tables.snapshot().services;
    let (mut checked, mut named) = (0, 0);
    for (address, port, protocol) in asked(world).into_iter().skip(random.below(share)).step_by(share) {
        let at = |address| ServiceKey { address, port: port.to_be_bytes(), protocol, pad: 0 };
        let mapped = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let rows = [Some(at(mapped)), here.contains(&address).then(|| at([0; 16]))];
        let rows: Vec<&ServiceRow> = rows.iter().flatten().filter_map(|key| services.get(key)).collect();
        let mut expected = service_backends(&cluster, address, port, protocol);
        // Other nodes' node ports and host ports are rewritten there.
        let is_elsewhere = cluster.nodes.values().any(|node| node.name != NODE && node.addresses.contains(&address));
        if is_elsewhere && rows.is_empty() {
            expected = None;
        }
        if rows.is_empty() != expected.is_none() {
            return Err(format!("{address} {port} {protocol}: rows {rows:?}, the text says {expected:?}"));
        }
        checked += 1;
        let Some(expected) = expected else { continue };
        let expected: BTreeSet<_> = expected.into_iter().filter(|(to, _)| here.contains(to)).collect();
        if is_elsewhere || rows.iter().any(|row| row.count as usize > LOCAL_BACKENDS) {
            continue;
        }
        let found = rows.iter().flat_map(|row| local_backends(row));
        let found: BTreeSet<_> = found.filter(|(to, _)| to.is_ipv4() == address.is_ipv4()).collect();
        named += found.len() as u64;
        if found != expected {
            return Err(format!("{address} {port} {protocol}: rows name {found:?}, the text {expected:?}"));
        }
    }
    Ok((checked, named))
}
