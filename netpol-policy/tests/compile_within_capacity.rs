//! Maps that are too small: nothing is cut off in silence, nothing is permitted that policies do not permit, and what
//! is withheld is named.

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;

use netpol_common::abi::{SET_DENY_ALL, names};
use netpol_policy::compile::memory::MemoryTables;
use netpol_policy::compile::{Capacities, Change, Endpoint, Refused, Snapshot};
use netpol_policy::decode::{Kind, Object};
use netpol_policy::model::{
    Labels, Namespace, NamespaceScope, ObjectName, Peer, Phase, Pod, Policy, PortMatch, PortSpec, Protocol,
    Requirement, Rule, Selector,
};
use netpol_policy::testing::{NODE, Random, World};
use support::{Cell, Node, answer, cases, cells, expected, first_seed};

const FEW_PACKETS: [(u8, Option<u16>); 7] =
    [(1, None), (6, None), (6, Some(80)), (6, Some(8080)), (17, Some(53)), (132, None), (132, Some(9090))];

fn small(random: &mut Random) -> Capacities {
    let roomy = Capacities::default();
    let mut some = |normal: u32, most: usize| if random.chance(50) { normal } else { random.below(most) as u32 };
    Capacities {
        endpoints: roomy.endpoints,
        addresses: some(roomy.addresses, 16),
        class4: some(roomy.class4, 24),
        class6: some(roomy.class6, 16),
        cidr4: some(roomy.cidr4, 24),
        cidr6: some(roomy.cidr6, 12),
        rules: some(roomy.rules, 120),
        ports: some(roomy.ports, 60),
        digests: some(roomy.digests, 60),
        services: some(roomy.services, 12),
        service_cidrs: some(roomy.service_cidrs, 3),
    }
}

fn assert_fits(tables: &MemoryTables, capacities: &Capacities, context: &str) {
    let Snapshot {
        digests,
        ports,
        rules,
        classes,
        cidrs,
        words: _,
        addresses,
        options: _,
        services,
        service_cidrs,
        epoch: _,
    } = tables.snapshot();
    let of = |v6: bool| classes.keys().filter(|address| address.is_ipv6() == v6).count();
    let prefixes = |v6: bool| cidrs.keys().filter(|prefix| prefix.addr().is_ipv6() == v6).count();
    for (map, rows, most) in [
        (names::DIGESTS, digests.len(), capacities.digests),
        (names::PORTS, ports.len(), capacities.ports),
        (names::RULES, rules.len(), capacities.rules),
        (names::CLASS4, of(false), capacities.class4),
        (names::CLASS6, of(true), capacities.class6),
        (names::CIDR4, prefixes(false), capacities.cidr4),
        (names::CIDR6, prefixes(true), capacities.cidr6),
        (names::ADDRESSES, addresses.len(), capacities.addresses),
        (names::SERVICES, services.len(), capacities.services),
        (names::SERVICE_CIDRS, service_cidrs.len(), capacities.service_cidrs),
    ] {
        assert!(rows <= most as usize, "{context}: {map} holds {rows} of {most}");
    }
}

#[test]
fn what_does_not_fit_is_never_permitted_and_always_reported() {
    let (mut checked, mut withheld) = (0_u64, 0_u64);
    let (mut sets, mut classes, mut owned, mut services) = (0, 0, 0, 0);
    let (first, cases) = (first_seed(), cases(150));
    for seed in first..first + cases {
        let mut world = World::new(seed);
        let mut random = Random::new(seed ^ 0xca9);
        let capacities = small(&mut random);
        let mut node = Node::new(capacities, Snapshot::default());
        node.apply(world.everything());
        let mut restarted = false;
        for step in 0..10 {
            let context = format!("seed {seed}, step {step}");
            let numbers: Vec<u32> = world.endpoints.keys().copied().collect();
            let asked: Vec<Cell> = cells(&numbers, &world.addresses(), &FEW_PACKETS[..4])
                .into_iter()
                .filter(|cell| random.chance(5) && !world.owns(cell.endpoint, cell.peer))
                .collect();
            let before: Vec<bool> = asked.iter().map(|cell| answer(&node.tables, cell)).collect();
            let plan = node.compiler.plan(node.now_ms);
            let mut after = MemoryTables::of_snapshot(node.tables.snapshot().clone());
            plan.ops.iter().for_each(|op| after.apply(op));
            for op in &plan.ops {
                node.tables.apply(op);
                assert_fits(&node.tables, &capacities, &context);
                for (cell, before) in asked.iter().zip(&before) {
                    let now = answer(&node.tables, cell);
                    // A new agent that has no room to go on as before denies until it has its own policies in force.
                    if restarted && !now {
                        continue;
                    }
                    assert!(now == *before || now == answer(&after, cell), "{context}: {cell:?} is {now} after {op:?}");
                }
            }
            for refusal in &plan.refused {
                match refusal.what {
                    Refused::PolicySet { .. } => sets += 1,
                    Refused::Class(_) => classes += 1,
                    Refused::EndpointAddress { .. } | Refused::Endpoint(_) => owned += 1,
                    Refused::Service { .. } | Refused::ServiceRange(_) => services += 1,
                }
            }
            let mut endpoints: BTreeSet<u32> = BTreeSet::new();
            let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
            for refusal in node.compiler.refusals() {
                match refusal.what {
                    Refused::PolicySet { endpoint }
                    | Refused::Endpoint(endpoint)
                    | Refused::EndpointAddress { endpoint, .. } => drop(endpoints.insert(endpoint)),
                    Refused::Class(address) => drop(addresses.insert(address)),
                    Refused::Service { .. } | Refused::ServiceRange(_) => {}
                }
            }
            for cell in cells(&numbers, &world.addresses(), &FEW_PACKETS) {
                let Some(expected) = expected(&world, &cell) else { continue };
                let answer = answer(&node.tables, &cell);
                checked += 1;
                if answer != expected {
                    assert!(expected, "{context}: {cell:?} is permitted: {capacities:?}");
                    assert!(
                        endpoints.contains(&cell.endpoint) || addresses.contains(&cell.peer),
                        "{context}: {cell:?} is withheld in silence: {capacities:?}"
                    );
                    withheld += 1;
                }
            }
            let change = world.step();
            node.now_ms += *random.pick(&[0, 500, 1000, 5000]);
            restarted = random.chance(20);
            if restarted {
                let snapshot = node.tables.snapshot().clone();
                node = Node::new(capacities, snapshot);
                node.apply(world.everything());
            } else {
                node.apply([change]);
            }
        }
    }
    println!(
        "{cases} histories, {checked} cells, {withheld} withheld, none permitted in excess; \
         refused: {sets} policy sets, {classes} classes, {owned} endpoint addresses, {services} services"
    );
    assert!(
        withheld > 0 && sets > 0 && classes > 0 && owned > 0 && services > 0,
        "the maps must be too small in every way"
    );
}

fn labels(of: &[(&str, &str)]) -> Labels {
    of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn namespace(name: &str) -> Change {
    Change::Upsert(Object::Namespace(Namespace { name: name.to_owned(), labels: labels(&[("name", name)]) }))
}

fn pod(namespace: &str, name: &str, address: &str, of: &[(&str, &str)]) -> Pod {
    Pod {
        name: ObjectName::new(namespace, name),
        uid: format!("{namespace}-{name}"),
        labels: labels(of),
        node: NODE.to_owned(),
        host_network: false,
        phase: Phase::Live,
        addresses: vec![address.parse().unwrap()],
        ports: Vec::new(),
        host_ports: Vec::new(),
        address_check_off: false,
        started: None,
    }
}

fn endpoint(number: u32, pod: &Pod) -> Change {
    let pod = Some((pod.name.clone(), pod.uid.clone()));
    Change::EndpointUp(Endpoint { number, pod, adopted: false, extra_addresses: Vec::new() })
}

/// A policy that lets pods of its namespace with `app` = each name in, on TCP ports of their own.
fn ingress_from(namespace: &str, name: &str, apps: impl IntoIterator<Item = (String, u16)>) -> Policy {
    let rules = apps.into_iter().enumerate().map(|(index, (app, port))| Rule {
        index,
        peers: Some(vec![Peer::Pods {
            namespaces: NamespaceScope::Own(namespace.to_owned()),
            pods: Selector::new(vec![Requirement {
                key: "app".to_owned(),
                operator: netpol_policy::model::Operator::In(vec![app]),
            }]),
        }]),
        ports: Some(vec![PortMatch { protocol: Protocol::Tcp, ports: PortSpec::Range(port, port) }]),
    });
    Policy {
        name: ObjectName::new(namespace, name),
        selector: Selector::everything(),
        ingress: Some(rules.collect()),
        egress: None,
    }
}

fn upsert(policy: &Policy) -> Change {
    Change::Upsert(Object::Policy(policy.clone()))
}

#[test]
fn a_namespace_gets_no_more_than_half_of_a_map_and_others_keep_theirs() {
    let capacities = Capacities { ports: 20, ..Capacities::default() };
    let mut node = Node::new(capacities, Snapshot::default());
    let (greedy, modest) = (pod("greedy", "a", "10.0.0.1", &[]), pod("modest", "b", "10.0.0.2", &[]));
    let client = pod("modest", "client", "10.0.0.3", &[("app", "x")]);
    node.apply([namespace("greedy"), namespace("modest")]);
    for pod in [&greedy, &modest, &client] {
        node.apply([Change::Upsert(Object::Pod(pod.clone()))]);
    }
    // Each app is a pod, so that each port list is asked for.
    for app in 0..15 {
        let peer = pod("greedy", &format!("p{app}"), &format!("10.0.1.{app}"), &[("app", &format!("a{app}"))]);
        node.apply([Change::Upsert(Object::Pod(peer))]);
    }
    node.apply([endpoint(1, &greedy), endpoint(2, &modest)]);
    let too_many = ingress_from("greedy", "many", (0..15).map(|app| (format!("a{app}"), 1000 + app)));
    node.apply([upsert(&too_many), upsert(&ingress_from("modest", "one", [("x".to_owned(), 80)]))]);
    let plan = node.program();

    let refused: Vec<_> = plan.refused.iter().map(|refusal| (refusal.map, refusal.objects.clone())).collect();
    assert_eq!(refused, [(names::PORTS, vec![ObjectName::new("greedy", "many")])]);
    assert_eq!(plan.refused[0].what, Refused::PolicySet { endpoint: 1 });
    assert_eq!(node.tables.snapshot().words[&1].set(), SET_DENY_ALL);
    let cell = |endpoint, peer: &str| Cell {
        endpoint,
        egress: false,
        peer: peer.parse().unwrap(),
        protocol: 6,
        port: Some(80),
    };
    assert!(answer(&node.tables, &cell(2, "10.0.0.3")), "the other namespace's policy is in force");
    assert!(node.compiler.endpoint_state(1).is_some_and(|state| state.refused && state.ingress_isolated));

    // Less is asked for: after a while there is room.
    node.apply([upsert(&ingress_from("greedy", "many", [("a1".to_owned(), 80)]))]);
    node.quiesce();
    assert_eq!(node.compiler.refusals().count(), 0);
    assert!(answer(&node.tables, &cell(1, "10.0.1.1")));
}

#[test]
fn a_grant_that_does_not_fit_is_withheld_and_a_revocation_that_does_not_fit_denies() {
    let capacities = Capacities { ports: 8, ..Capacities::default() };
    let mut node = Node::new(capacities, Snapshot::default());
    let server = pod("shop", "server", "10.0.0.1", &[]);
    node.apply([namespace("shop"), Change::Upsert(Object::Pod(server.clone())), endpoint(1, &server)]);
    for app in 0..10_u8 {
        let peer = pod("shop", &format!("p{app}"), &format!("10.0.1.{app}"), &[("app", &format!("a{app}"))]);
        node.apply([Change::Upsert(Object::Pod(peer))]);
    }
    let allow =
        |apps: std::ops::Range<u16>| ingress_from("shop", "allow", apps.map(|app| (format!("a{app}"), 1000 + app)));
    let asks = |node: &Node, app: u16| {
        let peer = format!("10.0.1.{app}").parse().unwrap();
        let port = Some(1000 + app);
        answer(&node.tables, &Cell { endpoint: 1, egress: false, peer, protocol: 6, port })
    };
    node.apply([upsert(&allow(0..3))]);
    node.quiesce();
    assert!(asks(&node, 0) && asks(&node, 2) && !asks(&node, 3));

    // Three more than half of the map can hold: the old set permits no more than the new one would, and stays.
    node.apply([upsert(&allow(0..7))]);
    let plan = node.program();
    assert_eq!(plan.refused.len(), 1);
    node.quiesce();
    assert!(asks(&node, 0) && asks(&node, 2) && !asks(&node, 3), "what was granted stays, what is new is withheld");

    // Rule 0 now means another app, so keeping the old set would keep what was taken back.
    node.apply([upsert(&allow(1..8))]);
    let _plan = node.program();
    assert_eq!(node.tables.snapshot().words[&1].set(), SET_DENY_ALL);
    node.quiesce();
    assert!((0..10).all(|app| !asks(&node, app)));

    node.apply([upsert(&allow(1..4))]);
    node.quiesce();
    assert!(!asks(&node, 0) && asks(&node, 1) && asks(&node, 3));
    assert_eq!(node.compiler.refusals().count(), 0);
}

#[test]
fn what_old_labels_were_granted_goes_although_what_the_new_ones_are_granted_does_not_fit() {
    // Room for the digests of one set, one rule and two classes, or thereabouts; found by trying below.
    let mut denied = 0;
    for digests in 3..12 {
        let capacities = Capacities { digests, ..Capacities::default() };
        let mut node = Node::new(capacities, Snapshot::default());
        let server = pod("shop", "server", "10.0.0.1", &[]);
        let client = pod("shop", "client", "10.0.0.2", &[("app", "a0")]);
        node.apply([namespace("shop"), Change::Upsert(Object::Pod(server.clone())), endpoint(1, &server)]);
        node.apply([Change::Upsert(Object::Pod(client.clone()))]);
        let mut policy = ingress_from("shop", "allow", [("a0".to_owned(), 80)]);
        if let Some(rules) = &mut policy.ingress {
            rules.push(Rule { index: 1, peers: rules[0].peers.clone(), ports: None });
            rules[1].peers = ingress_from("shop", "other", [("a1".to_owned(), 80)]).ingress.unwrap()[0].peers.clone();
            rules[1].ports = Some(vec![PortMatch { protocol: Protocol::Tcp, ports: PortSpec::Range(81, 81) }]);
        }
        node.apply([upsert(&policy)]);
        node.quiesce();
        let asks = |node: &Node, port| {
            let peer = "10.0.0.2".parse().unwrap();
            answer(&node.tables, &Cell { endpoint: 1, egress: false, peer, protocol: 6, port: Some(port) })
        };
        let fitted = asks(&node, 80);
        node.apply([Change::Upsert(Object::Pod(Pod { labels: labels(&[("app", "a1")]), ..client }))]);
        let _plan = node.program();
        assert!(!asks(&node, 80), "what the old labels were granted is gone, whatever fits");
        if fitted && !asks(&node, 81) {
            assert!(node.compiler.refusals().next().is_some());
            denied += 1;
        }
        // The old class goes after its grace period, and makes room.
        node.quiesce();
        assert_eq!(asks(&node, 81), fitted);
    }
    assert!(denied > 0, "one of the capacities must be the one that is too small by a class");
}

#[test]
fn an_endpoint_number_beyond_the_maps_is_refused_and_stays_pending() {
    let capacities = Capacities { endpoints: 4, ..Capacities::default() };
    let mut node = Node::new(capacities, Snapshot::default());
    let server = pod("shop", "server", "10.0.0.1", &[]);
    node.apply([namespace("shop"), Change::Upsert(Object::Pod(server.clone())), endpoint(4, &server)]);
    let plan = node.program();
    assert_eq!(plan.refused.len(), 1);
    assert_eq!(plan.refused[0].what, Refused::Endpoint(4));
    assert_eq!(plan.refused[0].to_string(), "endpoint 4 in map ENDPOINT_WORDS (shop/server)");
    assert!(node.tables.snapshot().words.is_empty());
    node.apply([Change::EndpointDown(4), Change::Remove(Kind::Pod, server.name)]);
    node.quiesce();
    assert_eq!(node.compiler.refusals().count(), 0);
}
