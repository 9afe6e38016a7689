//! Objects come in any order, and some of them late.

mod support;

use netpol_policy::compile::{Capacities, Change, Endpoint, Snapshot};
use netpol_policy::decode::{self, Kind, Object};
use netpol_policy::model::ObjectName;
use netpol_policy::testing::NODE;
use serde_json::{Value, json};
use support::{Cell, Node, answer};

const SERVER: u32 = 1;
const CLIENT: &str = "10.244.1.2";

fn object(kind: &str, api: &str, metadata: Value, rest: Value) -> Object {
    let mut object = json!({ "apiVersion": api, "kind": kind, "metadata": metadata });
    for (key, value) in rest.as_object().unwrap() {
        object[key] = value.clone();
    }
    decode::object(&object).unwrap()
}

fn pod(namespace: &str, name: &str, address: &str) -> Object {
    let metadata =
        json!({ "namespace": namespace, "name": name, "uid": format!("uid-of-{name}"), "labels": { "app": name } });
    let rest = json!({ "spec": { "nodeName": NODE }, "status": { "phase": "Running", "podIPs": [{ "ip": address }] } });
    object("Pod", "v1", metadata, rest)
}

fn namespace(name: &str, team: &str) -> Change {
    Change::Upsert(object("Namespace", "v1", json!({ "name": name, "labels": { "team": team } }), json!({})))
}

/// To the server from clients of one team's namespaces.
fn policy() -> Change {
    let peer = json!({
        "namespaceSelector": { "matchLabels": { "team": "friends" } },
        "podSelector": { "matchLabels": { "app": "client" } },
    });
    let spec = json!({ "podSelector": { "matchLabels": { "app": "server" } }, "ingress": [{ "from": [peer] }] });
    let metadata = json!({ "namespace": "shop", "name": "p" });
    Change::Upsert(object("NetworkPolicy", "networking.k8s.io/v1", metadata, json!({ "spec": spec })))
}

/// A node on which the server runs, and nothing else is known.
fn start() -> Node {
    let mut node = Node::new(Capacities::default(), Snapshot::default());
    let pod = pod("shop", "server", "10.244.1.1");
    let known = Some((pod.name(), "uid-of-server".to_owned()));
    node.apply([
        namespace("shop", "owners"),
        Change::Upsert(pod),
        Change::EndpointUp(Endpoint { number: SERVER, pod: known, adopted: false, extra_addresses: Vec::new() }),
    ]);
    node.quiesce();
    node
}

/// What the agent does with an event.
fn tell(node: &mut Node, change: Change) {
    node.apply([change]);
    node.quiesce();
}

fn is_let_in(node: &Node) -> bool {
    let cell = Cell { endpoint: SERVER, egress: false, peer: CLIENT.parse().unwrap(), protocol: 6, port: Some(80) };
    answer(&node.tables, &cell)
}

#[test]
fn w12_a_namespace_that_comes_after_its_policy_and_its_pods_counts_from_then_on() {
    let mut node = start();
    tell(&mut node, policy());
    assert!(!is_let_in(&node));
    tell(&mut node, Change::Upsert(pod("yard", "client", CLIENT)));
    assert!(!is_let_in(&node), "its namespace has no labels that anybody knows");
    tell(&mut node, namespace("yard", "friends"));
    assert!(is_let_in(&node));
    tell(&mut node, Change::Remove(Kind::Namespace, ObjectName::new("", "yard")));
    assert!(!is_let_in(&node), "the pod may outlive what is known of its namespace");
    tell(&mut node, namespace("yard", "others"));
    assert!(!is_let_in(&node), "made anew, it is another namespace");
    tell(&mut node, namespace("yard", "friends"));
    assert!(is_let_in(&node));
}

#[test]
fn w12_the_order_of_arrival_means_nothing_in_the_end_and_opens_nothing_on_the_way() {
    let objects = [policy(), namespace("yard", "friends"), Change::Upsert(pod("yard", "client", CLIENT))];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut node = start();
        let mut has_policy = false;
        for (step, object) in order.into_iter().enumerate() {
            tell(&mut node, objects[object].clone());
            has_policy |= object == 0;
            let is_complete = step + 1 == order.len();
            assert_eq!(is_let_in(&node), is_complete || !has_policy, "{order:?}, step {step}");
        }
    }
}
