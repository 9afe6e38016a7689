//! What an endpoint gets in the course of its life, and who counts as its pod.

mod support;

use std::net::IpAddr;

use netpol_common::abi::{
    AddressKey, EndpointOptions, EndpointWord, SET_ALLOW_ALL, SET_DENY_ALL, SET_FIRST, address_kind, endpoint_flags,
};
use netpol_policy::compile::{Capacities, Change, Endpoint, MapOp, Snapshot};
use netpol_policy::decode::{Kind, Object};
use netpol_policy::model::{
    ContainerPort, Labels, Namespace, NamespaceScope, Node as ClusterNode, ObjectName, Operator, Peer, Phase, Pod,
    Policy, PortMatch, PortSpec, Protocol, Requirement, Rule, Selector,
};
use netpol_policy::testing::NODE;
use support::{Cell, Node, answer};

fn start() -> Node {
    let mut node = Node::new(Capacities::default(), Snapshot::default());
    let labels = [("kubernetes.io/metadata.name".to_owned(), "shop".to_owned())].into();
    node.apply([Change::Upsert(Object::Namespace(Namespace { name: "shop".to_owned(), labels }))]);
    node
}

fn pod(name: &str, addresses: &[&str], app: &str) -> Pod {
    Pod {
        name: ObjectName::new("shop", name),
        uid: format!("uid-of-{name}"),
        labels: Labels::from([("app".to_owned(), app.to_owned())]),
        node: NODE.to_owned(),
        host_network: false,
        phase: Phase::Live,
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ports: Vec::new(),
        host_ports: Vec::new(),
        address_check_off: false,
        started: None,
    }
}

fn endpoint(number: u32, pod: &Pod) -> Endpoint {
    Endpoint { number, pod: Some((pod.name.clone(), pod.uid.clone())), adopted: false, extra_addresses: Vec::new() }
}

fn upsert(pod: &Pod) -> Change {
    Change::Upsert(Object::Pod(pod.clone()))
}

fn app(name: &str) -> Selector {
    let operator = Operator::In(vec![name.to_owned()]);
    Selector::new(vec![Requirement { key: "app".to_owned(), operator }])
}

fn from_app(name: &str) -> Peer {
    Peer::Pods { namespaces: NamespaceScope::Own("shop".to_owned()), pods: app(name) }
}

fn allow(name: &str, peers: Option<Vec<Peer>>, ports: Option<Vec<PortMatch>>) -> Change {
    Change::Upsert(Object::Policy(Policy {
        name: ObjectName::new("shop", name),
        selector: app("server"),
        ingress: Some(vec![Rule { index: 0, peers, ports }]),
        egress: None,
    }))
}

fn ask(node: &Node, endpoint: u32, peer: &str, port: u16) -> bool {
    let cell = Cell { endpoint, egress: false, peer: peer.parse().unwrap(), protocol: 6, port: Some(port) };
    answer(&node.tables, &cell)
}

fn word(node: &Node, endpoint: u32) -> EndpointWord {
    node.tables.snapshot().words.get(&endpoint).copied().unwrap_or(EndpointWord(0))
}

fn owns(node: &Node, endpoint: u32, address: &str) -> bool {
    let address = match address.parse().unwrap() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    node.tables.snapshot().addresses.contains(&AddressKey { endpoint, address })
}

#[test]
fn an_endpoint_whose_pod_is_not_known_stays_pending() {
    let mut node = start();
    let server = pod("server", &["10.0.0.1"], "server");
    node.apply([Change::EndpointUp(endpoint(1, &server))]);
    assert!(node.program().ops.is_empty(), "a zeroed word is pending already");
    node.apply([Change::EndpointUp(Endpoint { number: 2, pod: None, adopted: false, extra_addresses: vec![] })]);
    assert!(node.program().ops.is_empty());
    assert!(node.compiler.endpoint_state(1).is_some_and(|state| !state.ready));

    node.apply([upsert(&server)]);
    let _plan = node.program();
    assert_eq!(word(&node, 1).set(), SET_ALLOW_ALL);
    assert_ne!(word(&node, 1).epoch(), 0);
    assert!(owns(&node, 1, "10.0.0.1"));
    assert!(node.compiler.endpoint_state(1).is_some_and(|state| state.ready && !state.ingress_isolated));
}

#[test]
fn a_pod_of_the_same_name_and_another_uid_is_not_the_endpoints_pod() {
    let mut node = start();
    let old = pod("server-0", &["10.0.0.1"], "server");
    let new = Pod { uid: "another".to_owned(), addresses: vec!["10.0.0.9".parse().unwrap()], ..old.clone() };
    node.apply([upsert(&new), Change::EndpointUp(endpoint(1, &old))]);
    let _plan = node.program();
    assert_eq!(word(&node, 1), EndpointWord(0));
    assert!(!owns(&node, 1, "10.0.0.9"));
}

#[test]
fn an_adopted_endpoint_lets_everything_pass_until_its_policy_is_ready() {
    let mut node = start();
    let server = pod("server", &["10.0.0.1"], "server");
    node.apply([allow("none", Some(vec![Peer::Nothing]), None)]);
    node.apply([Change::EndpointUp(Endpoint { number: 1, pod: None, adopted: true, extra_addresses: vec![] })]);
    let _plan = node.program();
    assert_eq!(word(&node, 1).set(), SET_ALLOW_ALL);
    assert_eq!(node.tables.snapshot().options[&1].flags, endpoint_flags::NO_ADDRESS_CHECK);

    node.apply([upsert(&server), Change::EndpointUp(Endpoint { adopted: true, ..endpoint(1, &server) })]);
    let plan = node.program();
    assert!(word(&node, 1).set() >= SET_FIRST && !ask(&node, 1, "192.0.2.1", 80));
    assert_eq!(node.tables.snapshot().options[&1], EndpointOptions::default());
    let position = |wanted: fn(&MapOp) -> bool| plan.ops.iter().position(wanted).unwrap();
    let address = position(|op| matches!(op, MapOp::PutAddress(_)));
    let options = position(|op| matches!(op, MapOp::SetOptions { .. }));
    let word = position(|op| matches!(op, MapOp::SetWord { .. }));
    assert!(address < options && options < word, "its addresses are known before they are checked");
}

#[test]
fn an_adopted_endpoint_whose_addresses_are_not_known_is_not_cut() {
    let mut node = start();
    let server = pod("server", &[], "server");
    let adopted = Endpoint { adopted: true, ..endpoint(1, &server) };
    node.apply([upsert(&server), Change::EndpointUp(adopted.clone())]);
    let _plan = node.program();
    assert_eq!(node.tables.snapshot().options[&1].flags, endpoint_flags::NO_ADDRESS_CHECK);
    let extra_addresses = vec!["10.0.0.1".parse().unwrap()];
    node.apply([Change::EndpointUp(Endpoint { extra_addresses, ..adopted })]);
    let _plan = node.program();
    assert_eq!(node.tables.snapshot().options[&1].flags, 0);
    assert!(owns(&node, 1, "10.0.0.1"));
}

#[test]
fn an_adopted_endpoint_does_not_go_back_to_letting_everything_pass() {
    let mut node = start();
    let server = pod("server", &["10.0.0.1"], "server");
    let adopted = Change::EndpointUp(Endpoint { adopted: true, ..endpoint(1, &server) });
    node.apply([upsert(&server), adopted.clone(), allow("ssh", None, Some(vec![port(22)]))]);
    node.quiesce();
    assert!(ask(&node, 1, "192.0.2.1", 22) && !ask(&node, 1, "192.0.2.1", 80));
    node.apply([upsert(&Pod { addresses: Vec::new(), ..server.clone() })]);
    let _plan = node.program();
    assert!(ask(&node, 1, "192.0.2.1", 22) && !ask(&node, 1, "192.0.2.1", 80));

    // Nor for a new agent, which does not find the pod any more.
    let mut again = Node::new(Capacities::default(), node.tables.snapshot().clone());
    again.apply([adopted]);
    let _plan = again.program();
    assert_eq!(word(&again, 1).set(), SET_DENY_ALL);
}

#[test]
fn a_pod_is_enforced_as_long_as_its_sandbox_is_there() {
    let mut node = start();
    let server = pod("server", &["10.0.0.1"], "server");
    node.apply([upsert(&server), Change::EndpointUp(endpoint(1, &server)), allow("ssh", None, Some(vec![port(22)]))]);
    node.quiesce();
    let before = word(&node, 1);
    assert!(before.set() >= SET_FIRST);
    node.apply([Change::Remove(Kind::Pod, server.name.clone())]);
    let _plan = node.program();
    assert_eq!(word(&node, 1), before);
    assert!(owns(&node, 1, "10.0.0.1"));
    assert!(!node.tables.snapshot().classes.contains_key(&server.addresses[0]), "as a peer it is gone");

    // Policies that change meanwhile still apply to it.
    node.apply([allow("ssh", None, Some(vec![port(23)]))]);
    let _plan = node.program();
    assert!(ask(&node, 1, "192.0.2.1", 23) && !ask(&node, 1, "192.0.2.1", 22));

    node.apply([Change::EndpointDown(1)]);
    node.quiesce();
    assert_eq!(word(&node, 1), EndpointWord(0));
    let Snapshot { addresses, rules, ports, digests, .. } = node.tables.snapshot();
    assert!(addresses.is_empty() && rules.is_empty() && ports.is_empty() && digests.is_empty());
}

fn port(port: u16) -> PortMatch {
    PortMatch { protocol: Protocol::Tcp, ports: PortSpec::Range(port, port) }
}

#[test]
fn addresses_that_the_cni_gave_count_before_the_status_shows_them() {
    let mut node = start();
    let (server, client) = (pod("server", &["10.0.0.1"], "server"), pod("client", &[], "client"));
    let extra_addresses = vec!["10.0.0.2".parse().unwrap()];
    node.apply([upsert(&server), upsert(&client), allow("in", Some(vec![from_app("client")]), None)]);
    node.apply([Change::EndpointUp(endpoint(1, &server))]);
    let _plan = node.program();
    assert!(!ask(&node, 1, "10.0.0.2", 80));
    node.apply([Change::EndpointUp(Endpoint { extra_addresses, ..endpoint(2, &client) })]);
    let _plan = node.program();
    assert!(ask(&node, 1, "10.0.0.2", 80));
    assert!(owns(&node, 2, "10.0.0.2"));
    node.apply([Change::EndpointDown(2)]);
    let _plan = node.program();
    assert!(!ask(&node, 1, "10.0.0.2", 80));
}

#[test]
fn a_finished_pod_owns_no_address_and_another_may_have_it() {
    let mut node = start();
    let server = pod("server", &["10.0.0.1"], "server");
    let old = pod("job", &["10.0.0.2"], "client");
    node.apply([upsert(&server), upsert(&old), allow("in", Some(vec![from_app("client")]), None)]);
    node.apply([Change::EndpointUp(endpoint(1, &server)), Change::EndpointUp(endpoint(2, &old))]);
    let _plan = node.program();
    assert!(ask(&node, 1, "10.0.0.2", 80) && owns(&node, 2, "10.0.0.2"));
    node.apply([upsert(&Pod { phase: Phase::Finished, ..old })]);
    let _plan = node.program();
    assert!(!ask(&node, 1, "10.0.0.2", 80) && !owns(&node, 2, "10.0.0.2"));
}

#[test]
fn of_two_live_claims_to_an_address_only_what_both_allow_holds() {
    let mut node = start();
    let server = pod("server", &["10.0.0.1"], "server");
    node.apply([upsert(&server), Change::EndpointUp(endpoint(1, &server))]);
    node.apply([upsert(&pod("a", &["10.0.0.2"], "a")), upsert(&pod("b", &["10.0.0.2"], "b"))]);
    node.apply([allow("a", Some(vec![from_app("a")]), Some(vec![port(80), port(81)]))]);
    let _plan = node.program();
    assert!(!ask(&node, 1, "10.0.0.2", 80), "b is not allowed");
    node.apply([allow("b", Some(vec![from_app("b")]), Some(vec![port(81), port(82)]))]);
    let _plan = node.program();
    assert!(!ask(&node, 1, "10.0.0.2", 80) && ask(&node, 1, "10.0.0.2", 81) && !ask(&node, 1, "10.0.0.2", 82));
    node.apply([Change::Remove(Kind::Pod, ObjectName::new("shop", "a"))]);
    let _plan = node.program();
    assert!(!ask(&node, 1, "10.0.0.2", 80) && ask(&node, 1, "10.0.0.2", 82));
}

#[test]
fn an_address_of_a_node_is_no_pods_by_label() {
    let mut node = start();
    let server = pod("server", &["10.0.0.1"], "server");
    let client = pod("client", &["10.0.0.2"], "client");
    node.apply([upsert(&server), upsert(&client), Change::EndpointUp(endpoint(1, &server))]);
    node.apply([allow("in", Some(vec![from_app("client")]), None)]);
    let _plan = node.program();
    assert!(ask(&node, 1, "10.0.0.2", 80));
    let epoch = word(&node, 1).epoch();
    let address: IpAddr = "10.0.0.2".parse().unwrap();
    node.apply([Change::NodeAddresses([address].into())]);
    let _plan = node.program();
    assert!(!ask(&node, 1, "10.0.0.2", 80));
    assert_eq!(node.tables.snapshot().classes[&address].kind, address_kind::THIS_NODE);
    assert_ne!(word(&node, 1).epoch(), epoch, "what was allowed is judged again");
}

#[test]
fn an_address_of_a_nodes_overlay_is_a_nodes_until_a_pod_has_it_and_policies_see_no_difference() {
    let mut node = start();
    let server = pod("server", &["10.0.0.1"], "server");
    node.apply([upsert(&server), Change::EndpointUp(endpoint(1, &server))]);
    node.apply([allow("in", Some(vec![from_app("client")]), None)]);
    let address: IpAddr = "10.0.2.0".parse().unwrap();
    let overlay =
        ClusterNode { name: "other".to_owned(), addresses: Vec::new(), overlay: vec![address], broadcasts: Vec::new() };
    let kind = |node: &Node| node.tables.snapshot().classes.get(&address).map(|row| row.kind);
    node.apply([Change::Upsert(Object::Node(overlay))]);
    let _plan = node.program();
    assert_eq!(kind(&node), Some(address_kind::OTHER_NODE));
    assert!(!ask(&node, 1, "10.0.2.0", 80));

    let client = pod("client", &["10.0.2.0"], "client");
    node.apply([upsert(&client)]);
    let _plan = node.program();
    assert_eq!(kind(&node), Some(address_kind::POD));
    assert!(ask(&node, 1, "10.0.2.0", 80));

    node.apply([Change::Remove(Kind::Pod, client.name.clone())]);
    let _plan = node.program();
    assert_eq!(kind(&node), Some(address_kind::OTHER_NODE));
    node.apply([Change::Remove(Kind::Node, ObjectName::new("", "other"))]);
    node.quiesce();
    assert_eq!(kind(&node), None);
}

#[test]
fn the_broadcast_address_is_the_own_nodes_alone_until_a_pod_has_it_and_policies_see_no_difference() {
    let mut node = start();
    let server = pod("server", &["10.0.0.1"], "server");
    node.apply([upsert(&server), Change::EndpointUp(endpoint(1, &server))]);
    node.apply([allow("in", Some(vec![from_app("client")]), None)]);
    let [here, elsewhere]: [IpAddr; 2] = ["10.0.0.255", "10.0.2.255"].map(|text| text.parse().unwrap());
    let kind = |node: &Node, address| node.tables.snapshot().classes.get(&address).map(|row| row.kind);
    for (name, address) in [(NODE, here), ("other", elsewhere)] {
        let (addresses, overlay) = (Vec::new(), Vec::new());
        let object = ClusterNode { name: name.to_owned(), addresses, overlay, broadcasts: vec![address] };
        node.apply([Change::Upsert(Object::Node(object))]);
    }
    let _plan = node.program();
    assert_eq!((kind(&node, here), kind(&node, elsewhere)), (Some(address_kind::BROADCAST), None));
    assert!(!ask(&node, 1, "10.0.0.255", 80));

    let client = pod("client", &["10.0.0.255"], "client");
    node.apply([upsert(&client)]);
    let _plan = node.program();
    assert_eq!(kind(&node, here), Some(address_kind::POD));
    assert!(ask(&node, 1, "10.0.0.255", 80));
}

#[test]
fn a_change_bumps_only_the_endpoints_whose_answers_it_changes() {
    let mut node = start();
    let (server, other) = (pod("server", &["10.0.0.1"], "server"), pod("other", &["10.0.0.3"], "other"));
    let client = pod("client", &["10.0.0.2"], "client");
    node.apply([upsert(&server), upsert(&other), upsert(&client)]);
    node.apply([Change::EndpointUp(endpoint(1, &server)), Change::EndpointUp(endpoint(2, &other))]);
    node.apply([allow("in", Some(vec![from_app("client")]), None)]);
    node.quiesce();
    let (server_word, other_word) = (word(&node, 1), word(&node, 2));

    let mut labelled = client.clone();
    let _none = labelled.labels.insert("version".to_owned(), "2".to_owned());
    node.apply([upsert(&labelled)]);
    assert!(node.program().ops.is_empty(), "a label that no policy names");

    // Another policy names the client too: sets in use answer alike for its old and new class.
    let mut policy = match allow("more", Some(vec![from_app("client")]), Some(vec![port(80)])) {
        Change::Upsert(Object::Policy(policy)) => policy,
        other => panic!("{other:?}"),
    };
    policy.selector = app("other");
    node.apply([Change::Upsert(Object::Policy(policy))]);
    let _plan = node.program();
    assert_eq!(word(&node, 1), server_word);
    assert_ne!(word(&node, 2), other_word);

    let bumped = word(&node, 2);
    node.apply([upsert(&Pod { labels: Labels::new(), ..client })]);
    let _plan = node.program();
    assert_ne!(word(&node, 1).epoch(), server_word.epoch());
    assert_ne!(word(&node, 2).epoch(), bumped.epoch());
    assert_eq!(word(&node, 1).set(), server_word.set());
}

#[test]
fn pods_that_policies_treat_alike_share_a_set_unless_their_own_named_ports_differ() {
    let mut node = start();
    let named = |name: &str, address: &str, number: u16| {
        let http = ContainerPort { name: Some("http".to_owned()), protocol: Protocol::Tcp, port: number };
        Pod { ports: vec![http], ..pod(name, &[address], "server") }
    };
    let pods = [named("a", "10.0.0.1", 80), named("b", "10.0.0.2", 80), named("c", "10.0.0.3", 8080)];
    for (number, pod) in (1..).zip(&pods) {
        node.apply([upsert(pod), Change::EndpointUp(endpoint(number, pod))]);
    }
    let http = PortMatch { protocol: Protocol::Tcp, ports: PortSpec::Named("http".to_owned()) };
    node.apply([allow("http", None, Some(vec![http]))]);
    let _plan = node.program();
    assert_eq!(word(&node, 1).set(), word(&node, 2).set());
    assert_ne!(word(&node, 1).set(), word(&node, 3).set());
    assert!(ask(&node, 1, "192.0.2.1", 80) && !ask(&node, 1, "192.0.2.1", 8080));
    assert!(ask(&node, 3, "192.0.2.1", 8080) && !ask(&node, 3, "192.0.2.1", 80));
}

#[test]
fn a_broad_peer_costs_a_row_and_not_one_for_each_class() {
    let mut node = start();
    let server = pod("server", &["10.0.0.1"], "server");
    node.apply([upsert(&server), Change::EndpointUp(endpoint(1, &server))]);
    let everything =
        Peer::Pods { namespaces: NamespaceScope::Matching(Selector::everything()), pods: Selector::everything() };
    // Other policies make many classes of pods.
    let peers: Vec<Peer> = (0..50).map(|number| from_app(&format!("app-{number}"))).collect();
    for number in 0..50 {
        node.apply([upsert(&pod(&format!("p{number}"), &[&format!("10.0.1.{number}")], &format!("app-{number}")))]);
    }
    node.apply([allow("broad", Some(vec![everything]), None), allow("many", Some(peers), None)]);
    node.quiesce();
    let counts = node.compiler.counts();
    let rules = counts.maps.iter().find(|(name, ..)| *name == "RULES").map(|(_, rows, _)| *rows);
    assert!(counts.classes > 50);
    // Class 0 (in no peer: denied), class any in both directions.
    assert_eq!(rules, Some(3), "{:?}", node.tables.snapshot().rules);
    assert!(ask(&node, 1, "10.0.1.7", 80) && !ask(&node, 1, "192.0.2.1", 80));
}

#[test]
fn flows_from_before_the_address_checks_are_judged_again() {
    let mut node = start();
    let server = pod("server", &["10.0.0.1"], "server");
    node.apply([Change::EndpointUp(Endpoint { number: 1, pod: None, adopted: true, extra_addresses: vec![] })]);
    let _plan = node.program();
    let before = word(&node, 1);
    // Nothing isolates it: the set stays the same, the checks begin.
    node.apply([upsert(&server), Change::EndpointUp(Endpoint { adopted: true, ..endpoint(1, &server) })]);
    let _plan = node.program();
    assert_eq!(word(&node, 1).set(), before.set());
    assert_ne!(word(&node, 1).epoch(), before.epoch());
    let checked = word(&node, 1);
    node.apply([upsert(&pod("server", &["10.0.0.2"], "server"))]);
    let _plan = node.program();
    assert_ne!(word(&node, 1).epoch(), checked.epoch(), "an address was taken away");
}

#[test]
fn an_address_that_becomes_a_nodes_makes_flows_to_it_be_judged_again() {
    let mut node = start();
    let server = pod("server", &["10.0.0.1"], "server");
    node.apply([upsert(&server), Change::EndpointUp(endpoint(1, &server))]);
    let _plan = node.program();
    let before = word(&node, 1);
    node.apply([Change::NodeAddresses(["192.168.0.9".parse().unwrap()].into())]);
    let _plan = node.program();
    assert_eq!(word(&node, 1).set(), before.set());
    assert_ne!(word(&node, 1).epoch(), before.epoch());
}
