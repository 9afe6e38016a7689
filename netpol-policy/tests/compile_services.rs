//! What proxies rewrite: rows, the backends on this node that they name, and whose flows are judged anew.

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;

use netpol_common::abi::{EndpointWord, LOCAL_BACKENDS, ServiceRow, names};
use netpol_policy::compile::{Capacities, Change, Endpoint, MapOp, Refusal, Refused, Snapshot};
use netpol_policy::decode::{Kind, Object};
use netpol_policy::model::{
    EndpointPort, EndpointSlice, HostPort, Labels, Namespace, Node as ClusterNode, ObjectName, Phase, Pod, Policy,
    Protocol, Selector, Service, ServiceCidr, ServicePort, TargetPort,
};
use netpol_policy::testing::NODE;
use support::{Node, local_backends as local, service_key as key};

/// This node's own addresses.
const HERE: [&str; 3] = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn upsert(object: Object) -> Change {
    Change::Upsert(object)
}

fn pod(name: &str, address: &str, app: &str) -> Pod {
    Pod {
        name: ObjectName::new("shop", name),
        uid: format!("uid-of-{name}"),
        labels: Labels::from([("app".to_owned(), app.to_owned())]),
        node: NODE.to_owned(),
        host_network: false,
        phase: Phase::Live,
        addresses: addresses(&[address]),
        ports: Vec::new(),
        host_ports: Vec::new(),
        address_check_off: false,
        started: None,
    }
}

fn service_of(namespace: &str, name: &str, at: &[&str], port: u16, node_port: u16) -> Service {
    let port = ServicePort {
        name: "http".to_owned(),
        protocol: Protocol::Tcp,
        port,
        node_port,
        target: TargetPort::Number(8080),
    };
    Service {
        name: ObjectName::new(namespace, name),
        addresses: addresses(at),
        ports: vec![port],
        selector: Labels::new(),
    }
}

fn service(at: &[&str], port: u16, node_port: u16) -> Change {
    upsert(Object::Service(service_of("shop", "web", at, port, node_port)))
}

fn slice(name: &str, at: &[&str], port: u16) -> Change {
    upsert(Object::EndpointSlice(EndpointSlice {
        name: ObjectName::new("shop", name),
        service: "web".to_owned(),
        addresses: addresses(at),
        ports: vec![EndpointPort { name: "http".to_owned(), protocol: Protocol::Tcp, port }],
    }))
}

/// Endpoint 1 is isolated for ingress only, endpoint 2 for egress, endpoint 3 not at all.
fn start_with(capacities: Capacities) -> Node {
    let mut node = Node::new(capacities, Snapshot::default());
    node.apply([
        upsert(Object::Namespace(Namespace { name: "shop".to_owned(), labels: Labels::new() })),
        Change::NodeAddresses(addresses(&HERE).into_iter().collect()),
    ]);
    let isolating = |name: &str, ingress: bool| {
        let selector = Selector::new(vec![netpol_policy::model::Requirement {
            key: "app".to_owned(),
            operator: netpol_policy::model::Operator::In(vec![name.to_owned()]),
        }]);
        let (ingress, egress) = if ingress { (Some(vec![]), None) } else { (None, Some(vec![])) };
        upsert(Object::Policy(Policy { name: ObjectName::new("shop", name), selector, ingress, egress }))
    };
    node.apply([isolating("server", true), isolating("client", false)]);
    for (number, app) in [(1, "server"), (2, "client"), (3, "free")] {
        let pod = pod(app, &format!("10.0.0.{number}"), app);
        let named = Some((pod.name.clone(), pod.uid.clone()));
        node.apply([
            upsert(Object::Pod(pod)),
            Change::EndpointUp(Endpoint { number, pod: named, adopted: false, extra_addresses: vec![] }),
        ]);
    }
    let _plan = node.program();
    node
}

fn start() -> Node {
    start_with(Capacities::default())
}

/// Local backends of a row; `None`: there is no row.
fn row(node: &Node, address: &str, port: u16) -> Option<Vec<String>> {
    let row = node.tables.snapshot().services.get(&key(address, port))?;
    assert!(row.count as usize <= LOCAL_BACKENDS, "there are more");
    Some(local(row).into_iter().map(|(address, port)| format!("{address} {port}")).collect())
}

fn none() -> Option<Vec<String>> {
    Some(Vec::new())
}

fn some(backends: &[&str]) -> Option<Vec<String>> {
    Some(backends.iter().map(ToString::to_string).collect())
}

fn epoch(node: &Node, endpoint: u32) -> u32 {
    node.tables.snapshot().words.get(&endpoint).copied().unwrap_or(EndpointWord(0)).epoch()
}

/// The endpoints that a change bumps.
fn bumped(node: &mut Node, change: Change) -> Vec<u32> {
    let before = [1, 2, 3].map(|endpoint| epoch(node, endpoint));
    node.apply([change]);
    let plan = node.program();
    let position = |wanted: &dyn Fn(&MapOp) -> bool| plan.ops.iter().rposition(wanted);
    let last_row = position(&|op| {
        matches!(
            op,
            MapOp::PutService(..) | MapOp::RemoveService(_) | MapOp::PutServiceCidr(_) | MapOp::RemoveServiceCidr(_)
        )
    });
    let first_word = plan.ops.iter().position(|op| matches!(op, MapOp::SetWord { .. }));
    if let (Some(row), Some(word)) = (last_row, first_word) {
        assert!(row < word, "rows come before words: {:?}", plan.ops);
    }
    [1, 2, 3].into_iter().zip(before).filter(|(endpoint, old)| epoch(node, *endpoint) != *old).map(|(n, _)| n).collect()
}

#[test]
fn a_service_has_a_row_at_each_address_and_one_for_its_node_port() {
    let mut node = start();
    node.apply([service(&["10.96.0.1", "fd00:96::1", "198.51.100.1"], 80, 30080)]);
    let _plan = node.program();
    for (address, port) in [("10.96.0.1", 80), ("fd00:96::1", 80), ("198.51.100.1", 80), ("", 30080)] {
        assert_eq!(row(&node, address, port), none(), "{address}:{port}");
    }
    assert_eq!(node.tables.snapshot().services.len(), 4);
    node.apply([Change::Remove(Kind::Service, ObjectName::new("shop", "web"))]);
    let _plan = node.program();
    assert!(node.tables.snapshot().services.is_empty());
}

#[test]
fn a_service_that_no_proxy_looks_at_has_no_row() {
    let mut node = start();
    node.apply([service(&[], 80, 30080), slice("a", &["192.0.2.1"], 8080)]);
    assert!(node.program().ops.is_empty());
}

#[test]
fn a_row_names_only_backends_on_this_node_and_of_its_own_family() {
    let mut node = start();
    node.apply([slice("a", &["192.0.2.1", "10.0.0.1", "192.0.2.9"], 8080), slice("b", &["2001:db8::1"], 8081)]);
    assert!(node.program().ops.is_empty(), "a slice without its Service");
    node.apply([service(&["10.96.0.1", "fd00:96::1"], 80, 30080)]);
    let _plan = node.program();
    assert_eq!(row(&node, "10.96.0.1", 80), some(&["192.0.2.1 8080"]));
    assert_eq!(row(&node, "fd00:96::1", 80), some(&["2001:db8::1 8081"]));
    assert_eq!(row(&node, "", 30080), some(&["192.0.2.1 8080", "2001:db8::1 8081"]));
    node.apply([Change::Remove(Kind::EndpointSlice, ObjectName::new("shop", "a"))]);
    let _plan = node.program();
    assert_eq!(row(&node, "10.96.0.1", 80), none());
}

#[test]
fn a_slice_serves_the_port_of_its_name_and_protocol() {
    let mut node = start();
    let other = |name: &str, protocol| EndpointPort { name: name.to_owned(), protocol, port: 1 };
    node.apply([
        service(&["10.96.0.1"], 80, 0),
        upsert(Object::EndpointSlice(EndpointSlice {
            name: ObjectName::new("shop", "a"),
            service: "web".to_owned(),
            addresses: addresses(&["192.0.2.1"]),
            ports: vec![other("https", Protocol::Tcp), other("http", Protocol::Udp)],
        })),
    ]);
    let _plan = node.program();
    assert_eq!(row(&node, "10.96.0.1", 80), none());
}

#[test]
fn a_backend_becomes_local_when_its_address_becomes_the_nodes_and_back() {
    let mut node = start();
    node.apply([service(&["10.96.0.1"], 80, 0), slice("a", &["192.0.2.9", "192.0.2.8"], 8080)]);
    let _plan = node.program();
    assert_eq!(row(&node, "10.96.0.1", 80), none());
    let more: BTreeSet<IpAddr> = addresses(&["192.0.2.1", "192.0.2.9"]).into_iter().collect();
    node.apply([Change::NodeAddresses(more)]);
    let _plan = node.program();
    assert_eq!(row(&node, "10.96.0.1", 80), some(&["192.0.2.9 8080"]));
    let object = ClusterNode {
        name: NODE.to_owned(),
        addresses: addresses(&["192.0.2.8"]),
        overlay: Vec::new(),
        broadcasts: Vec::new(),
    };
    node.apply([upsert(Object::Node(object))]);
    let _plan = node.program();
    assert_eq!(row(&node, "10.96.0.1", 80), some(&["192.0.2.8 8080", "192.0.2.9 8080"]));
    node.apply([Change::NodeAddresses(BTreeSet::new()), Change::Remove(Kind::Node, ObjectName::new("", NODE))]);
    let _plan = node.program();
    assert_eq!(row(&node, "10.96.0.1", 80), none());
}

#[test]
fn more_local_backends_than_fit_are_counted_and_none_is_named() {
    let mut node = start();
    let many: Vec<String> = (1..=6).map(|last| format!("192.0.2.{last}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    node.apply([Change::NodeAddresses(addresses(&many).into_iter().collect())]);
    node.apply([service(&["10.96.0.1"], 80, 0), slice("a", &many[..4], 8080), slice("b", &many[4..5], 8080)]);
    let _plan = node.program();
    let of = |node: &Node| node.tables.snapshot().services[&key("10.96.0.1", 80)];
    assert_eq!(of(&node), ServiceRow { count: LOCAL_BACKENDS as u32 + 1, ..ServiceRow::default() });
    node.apply([slice("b", &many[4..], 8080)]);
    assert!(node.program().ops.is_empty(), "how many more is of no consequence");
    node.apply([slice("b", &[], 8080)]);
    let _plan = node.program();
    assert_eq!(local(&of(&node)).len(), LOCAL_BACKENDS);
}

#[test]
fn of_two_services_with_one_address_the_backends_of_both_count() {
    let mut node = start();
    node.apply([
        service(&["198.51.100.1"], 80, 0),
        slice("a", &["192.0.2.1"], 8080),
        upsert(Object::Service(service_of("bank", "web", &["198.51.100.1"], 80, 0))),
        upsert(Object::EndpointSlice(EndpointSlice {
            name: ObjectName::new("bank", "a"),
            service: "web".to_owned(),
            addresses: addresses(&["192.0.2.2"]),
            ports: vec![EndpointPort { name: "http".to_owned(), protocol: Protocol::Tcp, port: 22 }],
        })),
    ]);
    let _plan = node.program();
    assert_eq!(row(&node, "198.51.100.1", 80), some(&["192.0.2.1 8080", "192.0.2.2 22"]));
    node.apply([Change::Remove(Kind::Service, ObjectName::new("shop", "web"))]);
    let _plan = node.program();
    assert_eq!(row(&node, "198.51.100.1", 80), some(&["192.0.2.2 22"]));
}

#[test]
fn a_host_port_has_a_row_while_its_pod_runs_on_this_node() {
    let mut node = start();
    let with = |address: Option<&str>, port| HostPort {
        address: address.map(|text| text.parse().unwrap()),
        protocol: Protocol::Tcp,
        port,
        container_port: 80,
    };
    let web =
        Pod { host_ports: vec![with(None, 8080), with(Some("192.0.2.1"), 8081)], ..pod("web", "10.0.0.9", "web") };
    node.apply([upsert(Object::Pod(Pod { node: "another".to_owned(), ..web.clone() }))]);
    let _plan = node.program();
    assert!(node.tables.snapshot().services.is_empty());
    node.apply([upsert(Object::Pod(web.clone()))]);
    let _plan = node.program();
    assert_eq!((row(&node, "", 8080), row(&node, "192.0.2.1", 8081)), (none(), none()));
    node.apply([upsert(Object::Pod(Pod { phase: Phase::Finished, ..web }))]);
    let _plan = node.program();
    assert!(node.tables.snapshot().services.is_empty());
}

#[test]
fn a_change_of_local_backends_bumps_those_that_are_isolated_for_egress_and_no_others() {
    let mut node = start();
    assert_eq!(bumped(&mut node, service(&["10.96.0.1"], 80, 0)), [0_u32; 0], "it leads nowhere on this node");
    assert_eq!(bumped(&mut node, slice("a", &["10.0.0.1", "192.0.2.9"], 8080)), [0_u32; 0]);
    assert_eq!(bumped(&mut node, slice("a", &["192.0.2.1"], 8080)), [2]);
    assert_eq!(bumped(&mut node, slice("a", &["192.0.2.1", "10.0.0.7"], 8080)), [0_u32; 0]);
    assert_eq!(bumped(&mut node, slice("a", &["192.0.2.1"], 8081)), [2]);
    assert_eq!(bumped(&mut node, service(&["10.96.0.2"], 80, 0)), [2]);
    assert_eq!(bumped(&mut node, Change::Remove(Kind::Service, ObjectName::new("shop", "web"))), [2]);
}

#[test]
fn an_address_that_was_judged_finally_bumps_when_it_becomes_a_services_and_when_it_ceases_to_be() {
    for at in ["10.0.0.1", "192.0.2.1"] {
        let mut node = start();
        assert_eq!(bumped(&mut node, service(&[at], 80, 0)), [2], "{at}");
        assert_eq!(bumped(&mut node, service(&["10.96.0.1"], 80, 0)), [2], "{at}");
    }
    let mut node = start();
    assert_eq!(bumped(&mut node, service(&["10.96.0.1"], 80, 30080)), [2], "node ports are at this node");
}

#[test]
fn ranges_come_from_objects_and_from_the_option() {
    let mut node = start();
    let range = |name: &str, cidrs: &[&str]| {
        let cidrs = cidrs.iter().map(|text| text.parse().unwrap()).collect();
        upsert(Object::ServiceCidr(ServiceCidr { name: name.to_owned(), cidrs }))
    };
    let held =
        |node: &Node| -> Vec<String> { node.tables.snapshot().service_cidrs.iter().map(ToString::to_string).collect() };
    assert_eq!(bumped(&mut node, range("kubernetes", &["10.96.0.0/16", "fd00:96::/108"])), [2]);
    assert_eq!(held(&node), ["10.96.0.0/16", "fd00:96::/108"]);
    node.apply([Change::ServiceCidrs(vec!["10.96.0.0/16".parse().unwrap(), "10.97.1.1/16".parse().unwrap()])]);
    let _plan = node.program();
    assert_eq!(held(&node), ["10.96.0.0/16", "10.97.0.0/16", "fd00:96::/108"]);
    node.apply([Change::Remove(Kind::ServiceCidr, ObjectName::new("", "kubernetes"))]);
    let _plan = node.program();
    assert_eq!(held(&node), ["10.96.0.0/16", "10.97.0.0/16"]);
    node.apply([Change::ServiceCidrs(vec![])]);
    let _plan = node.program();
    assert!(held(&node).is_empty());
}

#[test]
fn a_new_agent_writes_only_what_differs() {
    let mut node = start();
    node.apply([service(&["10.96.0.1", "10.96.0.2"], 80, 0), slice("a", &["192.0.2.1"], 8080)]);
    node.apply([Change::ServiceCidrs(vec!["10.96.0.0/16".parse().unwrap()])]);
    node.quiesce();
    let mut again = start_with(Capacities::default());
    again = Node { tables: node.tables, ..again };
    let snapshot = again.tables.snapshot().clone();
    again.compiler = netpol_policy::compile::Compiler::new(NODE, Capacities::default(), snapshot);
    again.apply([
        Change::NodeAddresses(addresses(&HERE).into_iter().collect()),
        service(&["10.96.0.1"], 80, 0),
        slice("a", &["192.0.2.1"], 8080),
    ]);
    let plan = again.program();
    let rows: Vec<&MapOp> = plan
        .ops
        .iter()
        .filter(|op| {
            matches!(
                op,
                MapOp::PutService(..)
                    | MapOp::RemoveService(_)
                    | MapOp::PutServiceCidr(_)
                    | MapOp::RemoveServiceCidr(_)
            )
        })
        .collect();
    assert_eq!(
        rows,
        [&MapOp::RemoveService(key("10.96.0.2", 80)), &MapOp::RemoveServiceCidr("10.96.0.0/16".parse().unwrap()),]
    );
}

fn refused(node: &Node) -> Vec<String> {
    node.compiler.refusals().map(ToString::to_string).collect()
}

#[test]
fn a_namespace_gets_no_more_than_half_of_the_services() {
    let mut node = start_with(Capacities { services: 16, ..Capacities::default() });
    let many: Vec<String> = (1..=12).map(|last| format!("10.96.0.{last}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    node.apply([service(&many, 80, 0)]);
    let plan = node.program();
    assert_eq!(node.tables.snapshot().services.len(), 8);
    assert_eq!(plan.refused.len(), 4);
    let Some(Refusal { what: Refused::Service { port: 80, .. }, objects, map: names::SERVICES }) = plan.refused.first()
    else {
        panic!("{:?}", plan.refused)
    };
    assert_eq!(objects, &[ObjectName::new("shop", "web")]);
    assert_eq!(refused(&node)[0], "service at 10.96.0.9:80/TCP in map SERVICES (shop/web)");
    node.apply([upsert(Object::Service(service_of("bank", "web", &["10.96.1.1"], 80, 0)))]);
    assert!(node.program().refused.is_empty(), "another namespace has its own share");
    node.apply([service(&many[4..], 80, 0)]);
    node.quiesce();
    assert_eq!(refused(&node), [""; 0], "there is room again");
    assert_eq!(node.tables.snapshot().services.len(), 9);
}

#[test]
fn the_last_quarter_is_kept_for_addresses_of_this_node() {
    let mut node = start_with(Capacities { services: 8, ..Capacities::default() });
    for (namespace, at) in [("a", "10.96.0.1"), ("b", "10.96.0.2"), ("c", "10.96.0.3"), ("d", "10.96.0.4")] {
        let at = [at, &format!("{at}0")].map(str::to_owned);
        let at: Vec<&str> = at.iter().map(String::as_str).collect();
        node.apply([upsert(Object::Service(service_of(namespace, "web", &at, 80, 0)))]);
    }
    let _plan = node.program();
    assert_eq!((node.tables.snapshot().services.len(), refused(&node).len()), (6, 2));
    node.apply([service(&["192.0.2.1"], 80, 30080), slice("a", &["192.0.2.2"], 8080)]);
    let plan = node.program();
    assert_eq!(plan.refused, []);
    assert_eq!(
        (row(&node, "192.0.2.1", 80), row(&node, "", 30080)),
        (some(&["192.0.2.2 8080"]), some(&["192.0.2.2 8080"]))
    );
}

#[test]
fn ranges_that_do_not_fit_are_refused_and_those_of_the_option_come_first() {
    let mut node = start_with(Capacities { service_cidrs: 1, ..Capacities::default() });
    let range = ServiceCidr { name: "kubernetes".to_owned(), cidrs: vec!["10.96.0.0/16".parse().unwrap()] };
    node.apply([upsert(Object::ServiceCidr(range))]);
    node.apply([Change::ServiceCidrs(vec!["10.97.0.0/16".parse().unwrap()])]);
    let plan = node.program();
    assert!(node.tables.snapshot().service_cidrs.contains(&"10.97.0.0/16".parse().unwrap()));
    assert_eq!(plan.refused.len(), 1);
    assert_eq!(refused(&node), ["service range 10.96.0.0/16 in map SERVICE_CIDRS (kubernetes)"]);
}
