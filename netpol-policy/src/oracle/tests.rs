//! The oracle against the API's text, point by point. The ids (A6, P3, …) number the points of NetworkPolicy v1 that an
//! implementation can get wrong: A selectors and rules, P ports, B blocks, W pods and nodes, X packets without ports.
//!
//! Three namespaces x, y, z have pods a, b, c each, as in the upstream end-to-end tests: TCP, UDP and SCTP 80 and 81,
//! named like `serve-80-tcp`. Pod n of the m-th namespace has 10.0.m.n and fd00::m:n.

use serde_json::{Value, json};

use super::*;
use crate::decode::{Kind, object_of};
use crate::model::ObjectName;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const GRE: u8 = 47;
const OUTSIDE: &str = "198.51.100.7";
pub(super) const NODE: &str = "192.0.2.1";

pub(super) fn add(cluster: &mut Cluster, kind: Kind, value: &Value) {
    cluster.insert(object_of(kind, value).expect("valid object"));
}

fn pod(namespace: &str, name: &str, addresses: &[&str]) -> Value {
    let serve = |port: u16, protocol: &str| json!({ "name": format!("serve-{port}-{}", protocol.to_lowercase()), "containerPort": port, "protocol": protocol });
    let ports: Vec<Value> =
        [80, 81].iter().flat_map(|port| ["TCP", "UDP", "SCTP"].map(|name| serve(*port, name))).collect();
    let addresses: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
    json!({
        "metadata": { "namespace": namespace, "name": name, "labels": { "pod": name } },
        "spec": { "nodeName": "n1", "containers": [{ "ports": ports }] },
        "status": { "phase": "Running", "podIPs": addresses },
    })
}

pub(super) fn cluster(policies: &[Value]) -> Cluster {
    let mut cluster = Cluster::default();
    for (m, namespace) in ["x", "y", "z"].iter().enumerate() {
        add(
            &mut cluster,
            Kind::Namespace,
            &json!({ "metadata": { "name": namespace, "labels": { "ns": namespace } } }),
        );
        for (n, name) in ["a", "b", "c"].iter().enumerate() {
            let (four, six) = (format!("10.0.{}.{}", m + 1, n + 1), format!("fd00::{}:{}", m + 1, n + 1));
            add(&mut cluster, Kind::Pod, &pod(namespace, name, &[&four, &six]));
        }
    }
    let node =
        json!({ "metadata": { "name": "n1" }, "status": { "addresses": [{ "type": "InternalIP", "address": NODE }] } });
    add(&mut cluster, Kind::Node, &node);
    apply(&mut cluster, policies);
    cluster
}

/// Policies of namespace x, named by their position.
pub(super) fn apply(cluster: &mut Cluster, policies: &[Value]) {
    for (index, spec) in policies.iter().enumerate() {
        let policy = json!({ "metadata": { "namespace": "x", "name": format!("p{index}") }, "spec": spec });
        add(cluster, Kind::Policy, &policy);
    }
}

/// An address, or that of a pod written as `x/a`; `x/a6` is its IPv6 address.
pub(super) fn address(text: &str) -> IpAddr {
    let Some((namespace, name)) = text.split_once('/') else { return text.parse().expect("address") };
    let m = 1 + ["x", "y", "z"].iter().position(|known| *known == namespace).expect("namespace");
    let n = 1 + ["a", "b", "c"].iter().position(|known| name.starts_with(known)).expect("pod");
    let text = if name.ends_with('6') { format!("fd00::{m}:{n}") } else { format!("10.0.{m}.{n}") };
    text.parse().expect("address")
}

pub(super) fn flow(from: &str, to: &str, protocol: u8, port: Option<u16>) -> Flow {
    Flow { source: address(from), destination: address(to), protocol, port, from_node: None }
}

fn connects(cluster: &Cluster, from: &str, to: &str, protocol: u8, port: u16) -> bool {
    allowed(cluster, &flow(from, to, protocol, Some(port))).allowed
}

/// Which of the nine pods reach the pod by TCP 80, without itself.
fn sources(cluster: &Cluster, to: &str) -> String {
    everyone().filter(|from| from != to && connects(cluster, from, to, TCP, 80)).collect::<Vec<_>>().join(" ")
}

/// Which of the nine pods the pod reaches by TCP 80, without itself.
fn destinations(cluster: &Cluster, from: &str) -> String {
    everyone().filter(|to| to != from && connects(cluster, from, to, TCP, 80)).collect::<Vec<_>>().join(" ")
}

fn everyone() -> impl Iterator<Item = String> {
    ["x", "y", "z"].into_iter().flat_map(|namespace| ["a", "b", "c"].map(|name| format!("{namespace}/{name}")))
}

pub(super) fn to_a(rules: Value) -> Value {
    json!({ "podSelector": { "matchLabels": { "pod": "a" } }, "policyTypes": ["Ingress"], "ingress": rules })
}

pub(super) fn from_a(rules: Value) -> Value {
    json!({ "podSelector": { "matchLabels": { "pod": "a" } }, "policyTypes": ["Egress"], "egress": rules })
}

pub(super) fn pods(name: &str) -> Value {
    json!({ "podSelector": { "matchLabels": { "pod": name } } })
}

const OTHERS_OF_XA: &str = "x/b x/c y/a y/b y/c z/a z/b z/c";

#[test]
fn without_policies_everything_is_allowed() {
    let cluster = cluster(&[]);
    for from in everyone().chain([OUTSIDE.to_owned(), NODE.to_owned()]) {
        for to in everyone().chain([OUTSIDE.to_owned()]) {
            for (protocol, port) in [(TCP, Some(80)), (UDP, Some(1)), (SCTP, Some(80)), (ICMP, None), (GRE, None)] {
                assert!(allowed(&cluster, &flow(&from, &to, protocol, port)).allowed);
            }
        }
    }
}

#[test]
fn a5_a_policy_without_rules_denies_its_direction_only() {
    for empty in [json!([]), json!(null)] {
        let ingress = cluster(&[to_a(empty.clone())]);
        assert_eq!(sources(&ingress, "x/a"), "");
        assert_eq!(destinations(&ingress, "x/a"), OTHERS_OF_XA);
        assert_eq!(sources(&ingress, "x/b"), "x/a x/c y/a y/b y/c z/a z/b z/c");
        let egress = cluster(&[from_a(empty)]);
        assert_eq!(destinations(&egress, "x/a"), "");
        assert_eq!(sources(&egress, "x/a"), OTHERS_OF_XA);
    }
}

#[test]
fn a6_the_empty_rule_allows_every_protocol_from_everywhere() {
    let cluster = cluster(&[to_a(json!([{}]))]);
    for from in ["x/b", "y/a", OUTSIDE] {
        for (protocol, port) in [(TCP, Some(1)), (SCTP, Some(80)), (ICMP, None), (GRE, None), (255, None)] {
            assert!(allowed(&cluster, &flow(from, "x/a", protocol, port)).allowed);
        }
    }
}

#[test]
fn a7_peers_that_are_absent_are_all_inside_and_outside() {
    let cluster = cluster(&[to_a(json!([{ "from": [], "ports": [{ "port": 80 }] }]))]);
    for from in ["x/b", "y/a", OUTSIDE, NODE] {
        assert!(connects(&cluster, from, "x/a", TCP, 80));
        assert!(!connects(&cluster, from, "x/a", TCP, 81));
    }
}

#[test]
fn a8_x1_x5_a_rule_without_ports_allows_protocols_without_ports_and_one_with_ports_never() {
    let with = cluster(&[to_a(
        json!([{ "from": [pods("b")], "ports": [{}, { "protocol": "UDP" }, { "protocol": "SCTP" }] }]),
    )]);
    let without = cluster(&[to_a(json!([{ "from": [pods("b")] }]))]);
    for protocol in [ICMP, 58, GRE, 50, 136] {
        assert!(!allowed(&with, &flow("x/b", "x/a", protocol, None)).allowed, "{protocol}");
        assert!(allowed(&without, &flow("x/b", "x/a", protocol, None)).allowed, "{protocol}");
        assert!(!allowed(&without, &flow("x/c", "x/a", protocol, None)).allowed, "{protocol}");
    }
}

#[test]
fn a9_a10_an_empty_port_entry_is_all_of_tcp_and_nothing_else() {
    let cluster = cluster(&[to_a(json!([{ "ports": [{}] }]))]);
    assert!(connects(&cluster, "y/a", "x/a", TCP, 1));
    assert!(connects(&cluster, "y/a", "x/a", TCP, 65535));
    assert!(!connects(&cluster, "y/a", "x/a", UDP, 80));
    assert!(!connects(&cluster, "y/a", "x/a", SCTP, 80));
}

#[test]
fn a11_a_peer_that_means_nothing_matches_nothing() {
    let mut cluster = cluster(&[to_a(json!([{ "from": [pods("b")] }]))]);
    for policy in cluster.policies.values_mut() {
        for rule in policy.ingress.iter_mut().flatten() {
            rule.peers = Some(vec![Peer::Nothing]);
        }
    }
    assert_eq!(sources(&cluster, "x/a"), "");
    assert!(!connects(&cluster, OUTSIDE, "x/a", TCP, 80));
}

#[test]
fn a12_a_pod_selector_alone_means_the_policys_namespace() {
    assert_eq!(sources(&cluster(&[to_a(json!([{ "from": [{ "podSelector": {} }] }]))]), "x/a"), "x/b x/c");
    assert_eq!(sources(&cluster(&[to_a(json!([{ "from": [pods("b")] }]))]), "x/a"), "x/b");
}

#[test]
fn a13_namespace_and_pod_selector_in_one_entry_are_and_in_two_entries_or() {
    let not_x = json!({ "matchExpressions": [{ "key": "ns", "operator": "NotIn", "values": ["x"] }] });
    let both = json!([{ "from": [{ "namespaceSelector": not_x, "podSelector": { "matchLabels": { "pod": "b" } } }] }]);
    assert_eq!(sources(&cluster(&[to_a(both)]), "x/a"), "y/b z/b");
    let either = json!([{ "from": [{ "namespaceSelector": not_x }, pods("b")] }]);
    assert_eq!(sources(&cluster(&[to_a(either)]), "x/a"), "x/b y/a y/b y/c z/a z/b z/c");
}

#[test]
fn a13_every_namespace_is_not_every_source() {
    let cluster = cluster(&[to_a(json!([{ "from": [{ "namespaceSelector": {} }] }]))]);
    assert_eq!(sources(&cluster, "x/a"), OTHERS_OF_XA);
    for no_pod in [OUTSIDE, NODE, "10.0.1.200"] {
        assert!(!connects(&cluster, no_pod, "x/a", TCP, 80));
    }
}

#[test]
fn a14_not_in_and_does_not_exist_match_where_the_key_is_absent() {
    let by = |operator: &str, values: Value| {
        let selector = json!({ "matchExpressions": [{ "key": "tier", "operator": operator, "values": values }] });
        let mut cluster = cluster(&[to_a(json!([{ "from": [{ "podSelector": selector }] }]))]);
        let labelled = cluster.pods.get_mut(&ObjectName::new("x", "b")).expect("x/b");
        labelled.labels.insert("tier".to_owned(), "gold".to_owned());
        sources(&cluster, "x/a")
    };
    assert_eq!(by("In", json!(["gold"])), "x/b");
    assert_eq!(by("NotIn", json!(["gold"])), "x/c");
    assert_eq!(by("Exists", json!([])), "x/b");
    assert_eq!(by("DoesNotExist", json!([])), "x/c");
}

#[test]
fn a15_namespaces_can_be_selected_by_name() {
    let by_name = json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "y" } } });
    assert_eq!(sources(&cluster(&[to_a(json!([{ "from": [by_name] }]))]), "x/a"), "y/a y/b y/c");
}

#[test]
fn a16_policies_add_up_and_both_ends_must_allow() {
    let stacked = cluster(&[
        to_a(json!([])),
        to_a(json!([{ "from": [pods("b")], "ports": [{ "port": 80 }] }])),
        to_a(json!([{ "from": [pods("c")], "ports": [{ "port": 81 }] }])),
    ]);
    assert!(connects(&stacked, "x/b", "x/a", TCP, 80) && connects(&stacked, "x/c", "x/a", TCP, 81));
    assert!(!connects(&stacked, "x/b", "x/a", TCP, 81) && !connects(&stacked, "x/c", "x/a", TCP, 80));

    let both = cluster(&[to_a(json!([{ "from": [pods("b")] }])), from_a(json!([{ "to": [pods("c")] }]))]);
    let answer = |from, to| allowed(&both, &flow(from, to, TCP, Some(80)));
    assert_eq!(answer("x/b", "x/a"), Answer { allowed: true, egress: true, ingress: true });
    assert_eq!(answer("x/a", "x/c"), Answer { allowed: true, egress: true, ingress: true });
    assert_eq!(answer("x/a", "x/b"), Answer { allowed: false, egress: false, ingress: true });
    assert_eq!(answer("x/c", "x/a"), Answer { allowed: false, egress: true, ingress: false });
}

#[test]
fn a16_a_policy_speaks_of_its_own_namespace_only() {
    let cluster = cluster(&[json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] })]);
    assert_eq!(sources(&cluster, "y/a"), "y/b y/c z/a z/b z/c");
    assert_eq!(sources(&cluster, "x/a"), "");
}

#[test]
fn p1_p2_a_named_port_is_that_of_the_destination_pod() {
    let mut ingress = cluster(&[json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": "serve-80-tcp" }] }] })]);
    rename(&mut ingress, "x", "b", "serve-80-tcp", 8080);
    assert!(connects(&ingress, "y/a", "x/a", TCP, 80) && !connects(&ingress, "y/a", "x/a", TCP, 8080));
    assert!(connects(&ingress, "y/a", "x/b", TCP, 8080) && !connects(&ingress, "y/a", "x/b", TCP, 80));

    let mut egress =
        cluster(&[from_a(json!([{ "to": [{ "podSelector": {} }], "ports": [{ "port": "serve-80-tcp" }] }]))]);
    rename(&mut egress, "x", "b", "serve-80-tcp", 8080);
    assert!(connects(&egress, "x/a", "x/c", TCP, 80) && !connects(&egress, "x/a", "x/c", TCP, 8080));
    assert!(connects(&egress, "x/a", "x/b", TCP, 8080) && !connects(&egress, "x/a", "x/b", TCP, 80));
}

fn rename(cluster: &mut Cluster, namespace: &str, pod: &str, name: &str, port: u16) {
    let pod = cluster.pods.get_mut(&ObjectName::new(namespace, pod)).expect("pod");
    for declared in &mut pod.ports {
        if declared.name.as_deref() == Some(name) {
            declared.port = port;
        }
    }
}

#[test]
fn p3_a_named_port_without_peers_means_pods_of_every_namespace_and_nothing_outside() {
    let cluster = cluster(&[from_a(json!([{ "ports": [{ "port": "serve-80-tcp" }] }]))]);
    assert_eq!(destinations(&cluster, "x/a"), OTHERS_OF_XA);
    assert!(!connects(&cluster, "x/a", "y/b", TCP, 81));
    assert!(!connects(&cluster, "x/a", OUTSIDE, TCP, 80));
    assert!(!connects(&cluster, "x/a", NODE, TCP, 80));
}

#[test]
fn p4_a_named_port_with_a_block_means_the_subject_for_ingress_and_pods_in_it_for_egress() {
    let block = json!({ "ipBlock": { "cidr": "0.0.0.0/0" } });
    let ingress = cluster(&[to_a(json!([{ "from": [block], "ports": [{ "port": "serve-80-tcp" }] }]))]);
    assert!(connects(&ingress, OUTSIDE, "x/a", TCP, 80));
    assert!(!connects(&ingress, OUTSIDE, "x/a", TCP, 81));
    let egress = cluster(&[from_a(json!([{ "to": [block], "ports": [{ "port": "serve-80-tcp" }] }]))]);
    assert!(connects(&egress, "x/a", "y/b", TCP, 80));
    assert!(!connects(&egress, "x/a", "y/b", TCP, 81));
    assert!(!connects(&egress, "x/a", OUTSIDE, TCP, 80));
}

#[test]
fn p5_a_named_port_of_another_protocol_matches_nothing_and_the_pod_is_isolated() {
    let cluster = cluster(&[to_a(json!([{ "ports": [{ "protocol": "TCP", "port": "serve-81-udp" }] }]))]);
    for protocol in [TCP, UDP] {
        assert!(!connects(&cluster, "y/a", "x/a", protocol, 81));
    }
}

#[test]
fn p5_one_name_may_stand_for_two_protocols() {
    let mut cluster = cluster(&[to_a(json!([{ "ports": [{ "port": "dns" }] }]))]);
    let pod = cluster.pods.get_mut(&ObjectName::new("x", "a")).expect("x/a");
    let port = |protocol| crate::model::ContainerPort { name: Some("dns".to_owned()), protocol, port: 53 };
    pod.ports = vec![port(crate::model::Protocol::Udp), port(crate::model::Protocol::Tcp)];
    assert!(connects(&cluster, "y/a", "x/a", TCP, 53));
    assert!(!connects(&cluster, "y/a", "x/a", UDP, 53));
}

#[test]
fn p6_a_name_that_a_pod_has_twice_means_either_port() {
    let mut cluster = cluster(&[to_a(json!([{ "ports": [{ "port": "http" }] }]))]);
    let pod = cluster.pods.get_mut(&ObjectName::new("x", "a")).expect("x/a");
    let port = |port| crate::model::ContainerPort {
        name: Some("http".to_owned()),
        protocol: crate::model::Protocol::Tcp,
        port,
    };
    pod.ports = vec![port(80), port(8080)];
    assert!(connects(&cluster, "y/a", "x/a", TCP, 80) && connects(&cluster, "y/a", "x/a", TCP, 8080));
    assert!(!connects(&cluster, "y/a", "x/a", TCP, 81));
}

#[test]
fn p8_a_port_number_needs_no_declaration() {
    let cluster = cluster(&[to_a(json!([{ "ports": [{ "port": 9999 }] }]))]);
    assert!(connects(&cluster, "y/a", "x/a", TCP, 9999));
}

#[test]
fn p9_a_range_includes_both_ends() {
    let cluster =
        cluster(&[to_a(json!([{ "ports": [{ "port": 80, "endPort": 90 }, { "port": 100, "endPort": 100 }] }]))]);
    let open: Vec<u16> = (70..110).filter(|port| connects(&cluster, "y/a", "x/a", TCP, *port)).collect();
    assert_eq!(open, (80..=90).chain([100]).collect::<Vec<u16>>());
    let all = self::cluster(&[to_a(json!([{ "ports": [{ "port": 1, "endPort": 65535 }] }]))]);
    for port in [1, 80, 65535] {
        assert!(connects(&all, "y/a", "x/a", TCP, port));
    }
    assert!(!connects(&all, "y/a", "x/a", UDP, 80));
}

#[test]
fn p10_sctp_is_no_tcp_and_a_rule_for_it_isolates_the_rest() {
    let cluster = cluster(&[to_a(json!([{ "ports": [{ "protocol": "SCTP", "port": 80 }] }]))]);
    assert!(connects(&cluster, "y/a", "x/a", SCTP, 80));
    for (protocol, port) in [(SCTP, 81), (TCP, 80), (UDP, 80)] {
        assert!(!connects(&cluster, "y/a", "x/a", protocol, port));
    }
}

#[test]
fn x6_where_the_port_cannot_be_known_only_rules_that_need_none_allow() {
    let numbered = cluster(&[to_a(json!([{ "ports": [{ "port": 1, "endPort": 65535 }] }]))]);
    let named = cluster(&[to_a(json!([{ "ports": [{ "port": "serve-80-tcp" }] }]))]);
    let whole_protocol = cluster(&[to_a(json!([{ "ports": [{ "protocol": "TCP" }] }]))]);
    let fragment = flow("y/a", "x/a", TCP, None);
    assert!(!allowed(&numbered, &fragment).allowed);
    assert!(!allowed(&named, &fragment).allowed);
    assert!(allowed(&whole_protocol, &fragment).allowed);
}

#[test]
fn b1_except_takes_out_of_its_own_peer_only() {
    let narrow = json!({ "ipBlock": { "cidr": "198.51.100.0/24", "except": ["198.51.100.0/28"] } });
    let wide = json!({ "ipBlock": { "cidr": "198.51.0.0/16" } });
    let alone = cluster(&[from_a(json!([{ "to": [narrow] }]))]);
    assert!(!connects(&alone, "x/a", OUTSIDE, TCP, 80));
    assert!(connects(&alone, "x/a", "198.51.100.16", TCP, 80));
    assert!(!connects(&alone, "x/a", "198.51.101.1", TCP, 80));
    let same_rule = cluster(&[from_a(json!([{ "to": [narrow, wide] }]))]);
    let two_rules = cluster(&[from_a(json!([{ "to": [narrow] }, { "to": [wide], "ports": [{ "port": 80 }] }]))]);
    let two_policies = cluster(&[from_a(json!([{ "to": [wide] }])), from_a(json!([{ "to": [narrow] }]))]);
    for cluster in [same_rule, two_rules, two_policies] {
        assert!(connects(&cluster, "x/a", OUTSIDE, TCP, 80));
    }
}

#[test]
fn b2_an_excepted_address_that_is_a_selected_pod_is_allowed_as_that_pod() {
    let block = json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.0.1.0/24"] } });
    assert_eq!(destinations(&cluster(&[from_a(json!([{ "to": [block] }]))]), "x/a"), "y/a y/b y/c z/a z/b z/c");
    assert_eq!(
        destinations(&cluster(&[from_a(json!([{ "to": [block, pods("b")] }]))]), "x/a"),
        "x/b y/a y/b y/c z/a z/b z/c"
    );
}

#[test]
fn b5_b9_a_block_of_all_addresses_means_pods_and_nodes_too_but_one_family_only() {
    let cluster = cluster(&[from_a(json!([{ "to": [{ "ipBlock": { "cidr": "0.0.0.0/0" } }] }]))]);
    for to in ["x/b", "z/c", OUTSIDE, NODE] {
        assert!(connects(&cluster, "x/a", to, TCP, 80));
    }
    assert!(!connects(&cluster, "x/a6", "x/b6", TCP, 80));
    assert!(!connects(&cluster, "x/a6", "2001:db8::1", TCP, 80));
}

#[test]
fn b6_b7_blocks_match_pod_and_node_addresses() {
    let block = |cidr: &str| cluster(&[from_a(json!([{ "to": [{ "ipBlock": { "cidr": cidr } }] }]))]);
    assert_eq!(destinations(&block("10.0.2.2/32"), "x/a"), "y/b");
    let node = block("192.0.2.1/32");
    assert!(connects(&node, "x/a", NODE, TCP, 80));
    assert!(!connects(&node, "x/a", "192.0.2.2", TCP, 80));
}

#[test]
fn b9_selectors_mean_pods_by_all_of_their_addresses() {
    let cluster = cluster(&[to_a(json!([{ "from": [pods("b")] }]))]);
    assert!(connects(&cluster, "x/b6", "x/a6", TCP, 80));
    assert!(!connects(&cluster, "x/c6", "x/a6", TCP, 80));
    assert!(connects(&cluster, "::ffff:10.0.1.2", "x/a", TCP, 80), "an IPv4-mapped address is the IPv4 one");
}

fn host_network(cluster: &mut Cluster, namespace: &str, name: &str) {
    let pod = cluster.pods.get_mut(&ObjectName::new(namespace, name)).expect("pod");
    pod.host_network = true;
    pod.addresses = vec![address(NODE)];
}

#[test]
fn w1_host_network_pods_are_neither_subjects_nor_peers_by_label() {
    let deny_all = json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] });
    let mut subject = cluster(&[deny_all]);
    host_network(&mut subject, "x", "a");
    assert!(connects(&subject, OUTSIDE, NODE, TCP, 80));
    assert!(connects(&subject, NODE, OUTSIDE, TCP, 80));
    let host_pod = &subject.pods[&ObjectName::new("x", "a")];
    assert!(egress(&subject, host_pod, address(OUTSIDE), TCP, Some(80)));
    assert!(ingress(&subject, host_pod, address(OUTSIDE), TCP, Some(80)));

    let mut peer = cluster(&[
        to_a(json!([{ "from": [{ "podSelector": {} }] }])),
        from_a(json!([{ "ports": [{ "port": "serve-80-tcp" }] }])),
    ]);
    host_network(&mut peer, "x", "b");
    assert!(!connects(&peer, NODE, "x/a", TCP, 80));
    assert!(!connects(&peer, "x/a", NODE, TCP, 80), "a host-network pod has no named ports to a policy");
    let mut by_block = cluster(&[to_a(json!([{ "from": [{ "ipBlock": { "cidr": "192.0.2.0/24" } }] }]))]);
    host_network(&mut by_block, "x", "b");
    assert!(connects(&by_block, NODE, "x/a", TCP, 80));
}

#[test]
fn w2_the_own_node_is_let_in_whatever_policies_say_and_another_node_is_not() {
    let cluster = cluster(&[json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] })]);
    let from = |node: Option<&str>| {
        let from_node = node.map(str::to_owned);
        allowed(&cluster, &Flow { from_node, ..flow(NODE, "x/a", TCP, Some(80)) })
    };
    assert_eq!(from(Some("n1")), Answer { allowed: true, egress: true, ingress: true });
    assert_eq!(from(Some("n2")), Answer { allowed: false, egress: true, ingress: false });
    // Forwarded traffic that masquerade gave the node's address is no process of the node.
    assert_eq!(from(None), Answer { allowed: false, egress: true, ingress: false });
}

#[test]
fn w3_egress_to_the_own_node_is_policed() {
    let cluster = cluster(&[from_a(json!([{ "to": [{ "podSelector": {} }] }]))]);
    assert!(!connects(&cluster, "x/a", NODE, TCP, 80));
}

#[test]
fn w4_a_pod_reaches_its_own_addresses_always() {
    let cluster = cluster(&[json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] })]);
    for (from, to) in [("x/a", "x/a"), ("x/a6", "x/a6")] {
        assert_eq!(
            allowed(&cluster, &flow(from, to, TCP, Some(80))),
            Answer { allowed: true, egress: true, ingress: true }
        );
    }
}

#[test]
fn w5_what_comes_back_through_a_service_is_subject_to_policy() {
    let cluster = cluster(&[json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] })]);
    let pod = &cluster.pods[&ObjectName::new("x", "a")];
    assert!(!egress(&cluster, pod, address("x/a"), TCP, Some(80)));
    assert!(!ingress(&cluster, pod, address("x/a"), TCP, Some(80)));
}

#[test]
fn w6_a_finished_pod_owns_no_address() {
    let mut cluster = cluster(&[to_a(json!([{ "from": [pods("b")] }]))]);
    for (namespace, name) in [("x", "b"), ("x", "a")] {
        cluster.pods.get_mut(&ObjectName::new(namespace, name)).expect("pod").phase = crate::model::Phase::Finished;
        if name == "b" {
            assert!(!connects(&cluster, "x/b", "x/a", TCP, 80), "not as a peer");
        } else {
            assert!(connects(&cluster, "x/c", "x/a", TCP, 80), "not as a subject");
        }
    }
}

#[test]
fn w6_the_address_of_a_finished_pod_means_the_live_pod_that_has_it_now() {
    let mut cluster = cluster(&[to_a(json!([{ "from": [pods("b")] }]))]);
    cluster.pods.get_mut(&ObjectName::new("x", "b")).expect("pod").phase = crate::model::Phase::Finished;
    let mut successor = pod("x", "b-2", &["10.0.1.2"]);
    successor["metadata"]["labels"]["pod"] = json!("b");
    add(&mut cluster, Kind::Pod, &successor);
    assert!(connects(&cluster, "x/b", "x/a", TCP, 80));
}

#[test]
fn w9_an_address_of_two_live_pods_has_what_both_may() {
    let second_claim = |policies: &[Value]| {
        let mut cluster = cluster(policies);
        add(&mut cluster, Kind::Pod, &pod("x", "d", &["10.0.1.2"]));
        cluster
    };
    let peer = second_claim(&[to_a(json!([{ "from": [pods("b")] }]))]);
    assert!(!connects(&peer, "x/b", "x/a", TCP, 80), "as a peer");
    let both = second_claim(&[to_a(json!([{ "from": [pods("b")] }, { "from": [pods("d")] }]))]);
    assert!(connects(&both, "x/b", "x/a", TCP, 80), "each may, by its own rule");
    let deny_d = json!({ "podSelector": { "matchLabels": { "pod": "d" } }, "policyTypes": ["Ingress", "Egress"] });
    let subject = second_claim(&[deny_d]);
    assert!(!connects(&subject, "x/b", "x/a", TCP, 80), "as a source");
    assert!(!connects(&subject, "x/a", "x/b", TCP, 80), "as a destination");
    let named = second_claim(&[from_a(json!([{ "ports": [{ "port": "serve-80-tcp" }] }]))]);
    let mut other_number = named.clone();
    assert!(connects(&named, "x/a", "x/b", TCP, 80));
    rename(&mut other_number, "x", "d", "serve-80-tcp", 8080);
    assert!(!connects(&other_number, "x/a", "x/b", TCP, 80), "both must have the port of that name");
}

#[test]
fn w10_labels_are_those_of_now() {
    let mut cluster =
        cluster(&[to_a(json!([{ "from": [{ "namespaceSelector": { "matchLabels": { "ns2": "new" } } }] }]))]);
    assert_eq!(sources(&cluster, "x/a"), "");
    cluster.namespaces.get_mut("y").expect("y").labels.insert("ns2".to_owned(), "new".to_owned());
    assert_eq!(sources(&cluster, "x/a"), "y/a y/b y/c");
}

#[test]
fn w12_pods_of_an_unknown_namespace_match_no_namespace_selector_but_their_own_namespaces_policies() {
    let mut every = cluster(&[to_a(json!([{ "from": [{ "namespaceSelector": {} }] }]))]);
    every.namespaces.remove("y");
    assert_eq!(sources(&every, "x/a"), "x/b x/c z/a z/b z/c");
    let mut own = cluster(&[to_a(json!([{ "from": [{ "podSelector": {} }] }]))]);
    own.namespaces.remove("x");
    assert_eq!(sources(&own, "x/a"), "x/b x/c");
}

#[test]
fn d15_what_is_left_of_an_unreadable_policy_denies_what_it_selects() {
    let unreadable = json!({
        "metadata": { "namespace": "x", "name": "p" },
        "spec": { "podSelector": { "matchLabels": { "pod": "a" } }, "ingress": [{ "from": [{ "ipBlock": { "cidr": "x" } }] }] },
    });
    let isolation = object_of(Kind::Policy, &unreadable).expect_err("cidr").isolate.expect("isolation");
    let mut cluster = cluster(&[]);
    cluster.policies.insert(isolation.name.clone(), isolation);
    assert_eq!(sources(&cluster, "x/a"), "");
    assert_eq!(destinations(&cluster, "x/a"), OTHERS_OF_XA);
    assert_eq!(sources(&cluster, "x/b"), "x/a x/c y/a y/b y/c z/a z/b z/c");
}
