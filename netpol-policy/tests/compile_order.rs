//! Objects come in any order, and some of them late.

mod support;

use netpol_policy::compile::{Capacities, Change, Endpoint, Snapshot};
use netpol_policy::decode::Object;
use netpol_policy::model::{
    Labels, Namespace, NamespaceScope, ObjectName, Operator, Peer, Phase, Pod, Policy, Requirement, Rule, Selector,
};
use netpol_policy::testing::NODE;
use support::{Cell, Node, answer};

const SERVER: u32 = 1;
const CLIENT: &str = "10.244.1.2";

fn labels(key: &str, value: &str) -> Labels {
    Labels::from([(key.to_owned(), value.to_owned())])
}

fn selector(key: &str, value: &str) -> Selector {
    Selector::new(vec![Requirement { key: key.to_owned(), operator: Operator::In(vec![value.to_owned()]) }])
}

fn pod(namespace: &str, name: &str, address: &str) -> Pod {
    Pod {
        name: ObjectName::new(namespace, name),
        uid: format!("uid-of-{name}"),
        labels: labels("app", name),
        node: NODE.to_owned(),
        host_network: false,
        phase: Phase::Live,
        addresses: vec![address.parse().unwrap()],
        ports: Vec::new(),
        address_check_off: false,
        started: None,
    }
}

fn server() -> Pod {
    pod("shop", "server", "10.244.1.1")
}

fn namespace(name: &str, team: &str) -> Change {
    Change::Upsert(Object::Namespace(Namespace { name: name.to_owned(), labels: labels("team", team) }))
}

/// To the server from clients of one team's namespaces.
fn policy() -> Change {
    let peer = Peer::Pods {
        namespaces: NamespaceScope::Matching(selector("team", "friends")),
        pods: selector("app", "client"),
    };
    Change::Upsert(Object::Policy(Policy {
        name: ObjectName::new("shop", "p"),
        selector: selector("app", "server"),
        ingress: Some(vec![Rule { index: 0, peers: Some(vec![peer]), ports: None }]),
        egress: None,
    }))
}

/// A node on which the server runs, and nothing else is known.
fn start() -> Node {
    let mut node = Node::new(Capacities::default(), Snapshot::default());
    let Pod { name, uid, .. } = server();
    node.apply([
        namespace("shop", "owners"),
        Change::Upsert(Object::Pod(server())),
        Change::EndpointUp(Endpoint {
            number: SERVER,
            pod: Some((name, uid)),
            adopted: false,
            extra_addresses: Vec::new(),
        }),
    ]);
    node
}

fn is_let_in(node: &Node) -> bool {
    let cell = Cell { endpoint: SERVER, egress: false, peer: CLIENT.parse().unwrap(), protocol: 6, port: Some(80) };
    answer(&node.tables, &cell)
}

#[test]
fn w12_a_namespace_that_comes_after_its_policy_and_its_pods_counts_from_then_on() {
    let mut node = start();
    node.apply([policy()]);
    assert!(!is_let_in(&node));
    node.apply([Change::Upsert(Object::Pod(pod("yard", "client", CLIENT)))]);
    assert!(!is_let_in(&node), "its namespace has no labels that anybody knows");
    node.apply([namespace("yard", "friends")]);
    assert!(is_let_in(&node));
    node.apply([Change::Remove(netpol_policy::decode::Kind::Namespace, ObjectName::new("", "yard"))]);
    assert!(!is_let_in(&node), "the pod may outlive what is known of its namespace");
    node.apply([namespace("yard", "others")]);
    assert!(!is_let_in(&node), "made anew, it is another namespace");
    node.apply([namespace("yard", "friends")]);
    assert!(is_let_in(&node));
}

#[test]
fn w12_the_order_of_arrival_means_nothing_in_the_end_and_opens_nothing_on_the_way() {
    let objects = [policy(), namespace("yard", "friends"), Change::Upsert(Object::Pod(pod("yard", "client", CLIENT)))];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut node = start();
        let mut has_policy = false;
        for (step, object) in order.into_iter().enumerate() {
            node.apply([objects[object].clone()]);
            has_policy |= object == 0;
            let is_complete = step + 1 == order.len();
            assert_eq!(is_let_in(&node), is_complete || !has_policy, "{order:?}, step {step}");
        }
    }
}
