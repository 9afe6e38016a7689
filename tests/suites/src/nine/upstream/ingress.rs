//! Who may send to a pod.

use netpol_testbed::sandbox::Families;
use serde_json::{Value, json};

use crate::nine::case::Case;
use crate::nine::{NAME, POD, TCP_80, TCP_81, expression, ingress, namespace, ns, pod};

/// To `x/a` from these peers only.
fn from(case: Case, peers: Value) -> Case {
    case.policy("p", ingress(pod("a"), json!([{ "from": peers }])))
}

/// To `x/a` from namespace y, on one port.
fn from_y_on(port: u16) -> Value {
    let rule = json!({ "from": [{ "namespaceSelector": ns("y") }], "ports": [{ "protocol": "TCP", "port": port }] });
    ingress(pod("a"), json!([rule]))
}

pub(super) fn default_deny(case: Case, _: Families) -> Case {
    case.policy("p", ingress(json!({}), json!([]))).expect(TCP_80, |_, to| namespace(to) == "x")
}

pub(super) fn default_deny_of_both(case: Case, _: Families) -> Case {
    case.policy("p", json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }))
        .expect(TCP_80, |from, to| namespace(from) == "x" || namespace(to) == "x")
}

pub(super) fn pod_selector(case: Case, _: Families) -> Case {
    from(case, json!([{ "podSelector": pod("b") }])).expect(TCP_80, |from, to| to == "x/a" && from != "x/b")
}

pub(super) fn for_a_target(case: Case, _: Families) -> Case {
    from(case, json!([{ "podSelector": {}, "namespaceSelector": {} }]))
        .policy("deny", ingress(json!({}), json!([])))
        .expect(TCP_80, |_, to| ["x/b", "x/c"].contains(&to))
}

pub(super) fn all_namespaces(case: Case, _: Families) -> Case {
    from(case, json!([{ "namespaceSelector": {} }])).expect_open(TCP_80)
}

pub(super) fn namespace_selector(case: Case, _: Families) -> Case {
    from(case, json!([{ "namespaceSelector": ns("y") }]))
        .expect(TCP_80, |from, to| to == "x/a" && namespace(from) != "y")
}

pub(super) fn pod_expressions(case: Case, _: Families) -> Case {
    from(case, json!([{ "podSelector": expression(POD, "In", &["b"]) }]))
        .expect(TCP_80, |from, to| to == "x/a" && from != "x/b")
}

pub(super) fn namespace_expressions(case: Case, _: Families) -> Case {
    from(case, json!([{ "namespaceSelector": expression(NAME, "In", &["y"]) }]))
        .expect(TCP_80, |from, to| to == "x/a" && namespace(from) != "y")
}

pub(super) fn pod_or_namespace(case: Case, _: Families) -> Case {
    from(case, json!([{ "namespaceSelector": expression(NAME, "NotIn", &["x"]) }, { "podSelector": pod("b") }]))
        .expect(TCP_80, |from, to| to == "x/a" && from == "x/c")
}

pub(super) fn pod_and_namespace(case: Case, _: Families) -> Case {
    from(case, json!([{ "namespaceSelector": expression(NAME, "NotIn", &["x"]), "podSelector": pod("b") }]))
        .expect(TCP_80, |from, to| to == "x/a" && !["y/b", "z/b"].contains(&from))
}

pub(super) fn pods_and_namespaces(case: Case, _: Families) -> Case {
    let peer = json!({
        "namespaceSelector": expression(NAME, "NotIn", &["x"]),
        "podSelector": expression(POD, "In", &["b", "c"]),
    });
    from(case, json!([peer]))
        .expect(TCP_80, |from, to| to == "x/a" && (namespace(from) == "x" || ["y/a", "z/a"].contains(&from)))
}

pub(super) fn any_pod_selector(case: Case, _: Families) -> Case {
    from(case, json!([{ "podSelector": pod("b") }, { "podSelector": pod("c") }]))
        .expect(TCP_80, |from, to| to == "x/a" && !["x/b", "x/c"].contains(&from))
}

pub(super) fn pod_of_another_namespace(case: Case, _: Families) -> Case {
    from(case, json!([{ "namespaceSelector": ns("y"), "podSelector": pod("a") }]))
        .expect(TCP_80, |from, to| to == "x/a" && from != "y/a")
}

pub(super) fn ports(case: Case, _: Families) -> Case {
    case.policy("p", from_y_on(81)).expect(TCP_81, |from, to| to == "x/a" && namespace(from) != "y")
}

pub(super) fn stacked(case: Case, _: Families) -> Case {
    case.policy("p81", from_y_on(81))
        .expect(TCP_81, |from, to| to == "x/a" && namespace(from) != "y")
        .expect(TCP_80, |_, to| to == "x/a")
        .policy("p80", from_y_on(80))
        .expect(TCP_80, |from, to| to == "x/a" && namespace(from) != "y")
}

pub(super) fn allow_all(case: Case, _: Families) -> Case {
    case.policy("p", ingress(json!({}), json!([{}]))).expect_open(TCP_80).expect_open(TCP_81)
}

pub(super) fn named_port(case: Case, _: Families) -> Case {
    case.policy("p", ingress(json!({}), json!([{ "ports": [{ "port": "serve-81-tcp" }] }])))
        .expect_open(TCP_81)
        .expect(TCP_80, |_, to| namespace(to) == "x")
}

pub(super) fn named_port_from_a_namespace(case: Case, _: Families) -> Case {
    let ports = json!([{ "protocol": "TCP", "port": "serve-80-tcp" }]);
    case.policy("p", ingress(pod("a"), json!([{ "from": [{ "namespaceSelector": ns("y") }], "ports": ports }])))
        .expect(TCP_80, |from, to| to == "x/a" && namespace(from) != "y")
        .expect(TCP_81, |_, to| to == "x/a")
}

pub(super) fn own_namespace(case: Case, _: Families) -> Case {
    case.policy("p", ingress(json!({}), json!([{ "from": [{ "podSelector": {} }] }])))
        .expect(TCP_80, |from, to| namespace(to) == "x" && namespace(from) != "x")
}

pub(super) fn allow_all_takes_precedence(case: Case, _: Families) -> Case {
    case.policy("p80", ingress(json!({}), json!([{ "ports": [{ "port": 80 }] }])))
        .expect(TCP_81, |_, to| namespace(to) == "x")
        .expect_open(TCP_80)
        .policy("all", ingress(json!({}), json!([{}])))
        .expect_open(TCP_81)
}
