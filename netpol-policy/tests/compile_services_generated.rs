//! Services of generated clusters: the compiled rows against the API's text, and in maps that are too small.

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;

use netpol_common::abi::{LOCAL_BACKENDS, ServiceKey, ServiceRow};
use netpol_policy::compile::{Capacities, Refused, Snapshot};
use netpol_policy::model::Node as ClusterNode;
use netpol_policy::oracle::service_backends;
use netpol_policy::testing::{NODE, Random, World};
use support::{Node, cases, first_seed, local_backends as local, service_key as key};

/// Each address and port that anything may be rewritten at.
fn asked(world: &World) -> BTreeSet<(IpAddr, u16, u8)> {
    let mut at: BTreeSet<IpAddr> = world.addresses().into_iter().collect();
    at.extend(world.cluster.services.values().flat_map(|service| &service.addresses));
    // No packet is sent to it, and a key with it stands for the node.
    at.retain(|address| !address.is_unspecified());
    let mut ports: BTreeSet<u16> = [1, 53, 80, 443, 8080, 30_053, 30_080, 30_443].into();
    ports.extend(world.cluster.pods.values().flat_map(|pod| &pod.host_ports).map(|host_port| host_port.port));
    let mut asked = BTreeSet::new();
    for address in at {
        for port in &ports {
            asked.extend([6, 17, 132].map(|protocol| (address, *port, protocol)));
        }
    }
    asked
}

#[test]
fn rows_name_the_local_backends_that_services_have_by_the_api_text() {
    let (mut checked, mut named) = (0_u64, 0_u64);
    let (first, cases) = (first_seed(), cases(60));
    for seed in first..first + cases {
        let mut world = World::new(seed);
        let mut random = Random::new(seed ^ 0xd6);
        let mut node = Node::new(Capacities::default(), Snapshot::default());
        node.apply(world.everything());
        for _ in 0..8 {
            for _ in 0..random.below(6) {
                let change = world.step();
                node.apply([change]);
            }
            let _plan = node.program();
            // The text knows a node's addresses by its Node alone.
            let mut cluster = world.cluster.clone();
            let own = cluster.nodes.entry(NODE.to_owned()).or_insert_with(|| ClusterNode {
                name: NODE.to_owned(),
                addresses: Vec::new(),
                overlay: Vec::new(),
            });
            own.addresses.extend(&world.local);
            let here: BTreeSet<IpAddr> = own.addresses.iter().copied().collect();
            let services = &node.tables.snapshot().services;
            for (address, port, protocol) in asked(&world) {
                let at = |address: &str| ServiceKey { protocol, ..key(address, port) };
                let rows = [Some(at(&address.to_string())), here.contains(&address).then(|| at(""))];
                let rows: Vec<&ServiceRow> = rows.iter().flatten().filter_map(|key| services.get(key)).collect();
                let mut expected = service_backends(&cluster, address, port, protocol);
                // Other nodes' node ports and host ports are rewritten there.
                let is_elsewhere =
                    cluster.nodes.values().any(|node| node.name != NODE && node.addresses.contains(&address));
                if is_elsewhere && rows.is_empty() {
                    expected = None;
                }
                let context = format!("seed {seed}: {address} {port} {protocol}");
                assert_eq!(rows.is_empty(), expected.is_none(), "{context}: {rows:?} {expected:?}");
                checked += 1;
                let Some(expected) = expected else { continue };
                let expected: BTreeSet<_> = expected.into_iter().filter(|(to, _)| here.contains(to)).collect();
                if is_elsewhere || rows.iter().any(|row| row.count as usize > LOCAL_BACKENDS) {
                    continue;
                }
                let found = rows.iter().flat_map(|row| local(row));
                let found: BTreeSet<_> = found.filter(|(to, _)| to.is_ipv4() == address.is_ipv4()).collect();
                named += found.len() as u64;
                assert_eq!(found, expected, "{context}");
            }
        }
    }
    println!("{cases} histories, {checked} addresses and ports, {named} local backends, 0 disagreements");
    assert!(named > 0, "some backends must be local");
}

#[test]
fn services_that_do_not_fit_are_reported_and_the_others_have_the_rows_of_a_roomy_map() {
    let (mut kept, mut withheld) = (0_u64, 0_u64);
    let (first, cases) = (first_seed(), cases(60));
    for seed in first..first + cases {
        let mut world = World::new(seed);
        let mut random = Random::new(seed ^ 0xf17);
        let services = random.below(24) as u32;
        let mut small = Node::new(Capacities { services, ..Capacities::default() }, Snapshot::default());
        let mut roomy = Node::new(Capacities::default(), Snapshot::default());
        for node in [&mut small, &mut roomy] {
            node.apply(world.everything());
        }
        for step in 0..10 {
            let context = format!("seed {seed}, step {step}, room for {services}");
            let mut reported: BTreeSet<String> = small.compiler.refusals().map(ToString::to_string).collect();
            let plan = small.program();
            reported.extend(plan.refused.iter().map(ToString::to_string));
            let _plan = roomy.program();
            let (here, all) = (&small.tables.snapshot().services, &roomy.tables.snapshot().services);
            assert!(here.len() <= services as usize, "{context}");
            for refusal in small.compiler.refusals() {
                assert!(reported.contains(&refusal.to_string()), "{context}: {refusal} is not reported");
            }
            let refused = small.compiler.refusals().filter(|refusal| matches!(refusal.what, Refused::Service { .. }));
            assert_eq!(here.len() + refused.count(), all.len(), "{context}");
            for (key, row) in here {
                assert_eq!(all.get(key), Some(row), "{context}: {key:?}");
            }
            kept += here.len() as u64;
            withheld += (all.len() - here.len()) as u64;
            small.now_ms += *random.pick(&[0, 500, 1000, 5000]);
            if random.chance(20) {
                let snapshot = small.tables.snapshot().clone();
                small = Node::new(Capacities { services, ..Capacities::default() }, snapshot);
                small.apply(world.everything());
            }
            for _ in 0..random.below(4) {
                let change = world.step();
                small.apply([change.clone()]);
                roomy.apply([change]);
            }
        }
        small.quiesce();
    }
    println!("{cases} histories, {kept} rows kept, {withheld} withheld and reported");
    assert!(kept > 0 && withheld > 0);
}
