//! Protocols: upstream's cases that tell TCP, UDP and SCTP apart, and those that it repeats over UDP and SCTP.

use netpol_policy::model::Protocol;
use netpol_testbed::sandbox::cells::Port;
use serde_json::json;

use crate::world::{TCP_80, TCP_81, ingress, namespace, ns, pod, world};

#[test]
fn t30_any_port_of_one_protocol() {
    world()
        .policy("p", ingress(pod("a"), json!([{ "ports": [{ "protocol": "TCP" }] }])))
        .expect_open(TCP_80)
        .expect(Port { protocol: Protocol::Udp, number: 80 }, |_, to| to == "x/a");
}

#[test]
fn t38_sctp_is_not_taken_for_tcp() {
    world()
        .policy("deny", ingress(json!({}), json!([])))
        .policy("sctp", ingress(pod("a"), json!([{ "ports": [{ "protocol": "SCTP", "port": 81 }] }])))
        .expect(TCP_81, |_, to| namespace(to) == "x");
}

#[test]
fn t39_a_policy_that_allows_sctp_isolates() {
    world()
        .policy("p", ingress(pod("a"), json!([{ "ports": [{ "protocol": "SCTP", "port": 80 }] }])))
        .expect(TCP_81, |_, to| to == "x/a");
}

#[test]
fn t40_a_policy_for_udp_does_not_allow_tcp() {
    world()
        .policy("p", ingress(pod("a"), json!([{ "ports": [{ "protocol": "UDP", "port": 81 }] }])))
        .expect(TCP_81, |_, to| to == "x/a");
}

#[test]
fn u1_s1_default_deny_ingress() {
    let mut world = world();
    world.policy("p", ingress(json!({}), json!([])));
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        world.expect(Port { protocol, number: 80 }, |_, to| namespace(to) == "x");
    }
}

#[test]
fn u2_s2_ports() {
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        let ports = json!([{ "protocol": protocol.name(), "port": 81 }]);
        world()
            .policy("p", ingress(pod("a"), json!([{ "from": [{ "namespaceSelector": ns("y") }], "ports": ports }])))
            .expect(Port { protocol, number: 81 }, |from, to| to == "x/a" && namespace(from) != "y")
            .expect(Port { protocol, number: 80 }, |_, to| to == "x/a");
    }
}

#[test]
fn u3_s3_only_a_pod_in_a_different_namespace() {
    let from = json!([{ "namespaceSelector": ns("y"), "podSelector": pod("a") }]);
    let mut world = world();
    world.policy("p", ingress(pod("a"), json!([{ "from": from }])));
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        world.expect(Port { protocol, number: 80 }, |from, to| to == "x/a" && from != "y/a");
    }
}
