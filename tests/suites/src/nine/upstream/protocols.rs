//! Protocols: the tests that tell TCP, UDP and SCTP apart, and those that upstream repeats over UDP and SCTP.

use netpol_policy::model::Protocol;
use netpol_testbed::sandbox::Families;
use netpol_testbed::sandbox::cells::Port;
use serde_json::json;

use crate::nine::case::Case;
use crate::nine::{TCP_80, TCP_81, ingress, namespace, ns, pod};

/// To `x/a` on one port only.
fn on(case: Case, protocol: Protocol, port: u16) -> Case {
    case.policy("p", ingress(pod("a"), json!([{ "ports": [{ "protocol": protocol.name(), "port": port }] }])))
}

pub(super) fn any_port(case: Case, _: Families) -> Case {
    case.policy("p", ingress(pod("a"), json!([{ "ports": [{ "protocol": "TCP" }] }])))
        .expect_open(TCP_80)
        .expect(Port { protocol: Protocol::Udp, number: 80 }, |_, to| to == "x/a")
}

pub(super) fn sctp_is_not_tcp(case: Case, _: Families) -> Case {
    on(case, Protocol::Sctp, 81)
        .policy("deny", ingress(json!({}), json!([])))
        .expect(TCP_81, |_, to| namespace(to) == "x")
}

pub(super) fn sctp_isolates(case: Case, _: Families) -> Case {
    on(case, Protocol::Sctp, 80).expect(TCP_81, |_, to| to == "x/a")
}

pub(super) fn udp_is_not_tcp(case: Case, _: Families) -> Case {
    on(case, Protocol::Udp, 81).expect(TCP_81, |_, to| to == "x/a")
}

fn default_deny(case: Case, protocol: Protocol) -> Case {
    case.policy("p", ingress(json!({}), json!([]))).expect(Port { protocol, number: 80 }, |_, to| namespace(to) == "x")
}

fn ports(case: Case, protocol: Protocol) -> Case {
    let ports = json!([{ "protocol": protocol.name(), "port": 81 }]);
    case.policy("p", ingress(pod("a"), json!([{ "from": [{ "namespaceSelector": ns("y") }], "ports": ports }])))
        .expect(Port { protocol, number: 81 }, |from, to| to == "x/a" && namespace(from) != "y")
}

fn pod_of_another_namespace(case: Case, protocol: Protocol) -> Case {
    let from = json!([{ "namespaceSelector": ns("y"), "podSelector": pod("a") }]);
    case.policy("p", ingress(pod("a"), json!([{ "from": from }])))
        .expect(Port { protocol, number: 80 }, |from, to| to == "x/a" && from != "y/a")
}

pub(super) fn default_deny_of_udp(case: Case, _: Families) -> Case {
    default_deny(case, Protocol::Udp)
}

pub(super) fn default_deny_of_sctp(case: Case, _: Families) -> Case {
    default_deny(case, Protocol::Sctp)
}

pub(super) fn ports_of_udp(case: Case, _: Families) -> Case {
    ports(case, Protocol::Udp)
}

pub(super) fn ports_of_sctp(case: Case, _: Families) -> Case {
    ports(case, Protocol::Sctp)
}

pub(super) fn pod_of_another_namespace_over_udp(case: Case, _: Families) -> Case {
    pod_of_another_namespace(case, Protocol::Udp)
}

pub(super) fn pod_of_another_namespace_over_sctp(case: Case, _: Families) -> Case {
    pod_of_another_namespace(case, Protocol::Sctp)
}
