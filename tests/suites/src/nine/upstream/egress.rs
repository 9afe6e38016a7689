//! Whom a pod may send to, and both directions together.

use netpol_testbed::sandbox::Families;
use serde_json::{Value, json};

use crate::nine::case::Case;
use crate::nine::{NAME, TCP_80, TCP_81, blocks, blocks_except, egress, expression, ingress, namespace, ns, pod};

/// From `x/a` to these peers only.
fn to(case: Case, peers: Value) -> Case {
    case.policy("p", egress(pod("a"), json!([{ "to": peers }])))
}

pub(super) fn named_port(case: Case, _: Families) -> Case {
    case.policy("p", egress(json!({}), json!([{ "ports": [{ "port": "serve-80-tcp" }] }])))
        .expect_open(TCP_80)
        .expect(TCP_81, |from, _| namespace(from) == "x")
}

pub(super) fn denied_by_pod_selector(case: Case, _: Families) -> Case {
    case.policy("p", egress(pod("a"), json!([]))).expect(TCP_80, |from, _| from == "x/a")
}

pub(super) fn denied_to_a_namespace(case: Case, _: Families) -> Case {
    case.policy("p", egress(json!({}), json!([]))).expect(TCP_80, |from, _| namespace(from) == "x")
}

pub(super) fn together_with_ingress(case: Case, _: Families) -> Case {
    let spec = json!({
        "podSelector": pod("a"),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": [{ "podSelector": pod("b") }] }],
        "egress": [{ "ports": [{ "port": 80 }] }],
    });
    case.policy("p", spec)
        .expect(TCP_80, |from, to| to == "x/a" && from != "x/b")
        .expect(TCP_81, |from, to| from == "x/a" || (to == "x/a" && from != "x/b"))
}

pub(super) fn denied_on_the_client_side(case: Case, _: Families) -> Case {
    let from_client = json!([{ "from": [{ "namespaceSelector": ns("x"), "podSelector": pod("a") }] }]);
    to(case, json!([{ "namespaceSelector": ns("y"), "podSelector": pod("a") }]))
        .policy_in("y", "server-a", ingress(pod("a"), from_client.clone()))
        .policy_in("y", "server-b", ingress(pod("b"), from_client))
        .expect(TCP_80, |from, to| match to {
            "y/a" => from != "x/a",
            "y/b" => true,
            _ => from == "x/a",
        })
}

pub(super) fn server_of_another_namespace(case: Case, _: Families) -> Case {
    to(case, json!([{ "namespaceSelector": ns("y"), "podSelector": pod("a") }]))
        .expect(TCP_80, |from, to| from == "x/a" && to != "y/a")
}

pub(super) fn allow_all_takes_precedence(case: Case, _: Families) -> Case {
    case.policy("p80", egress(json!({}), json!([{ "ports": [{ "port": 80 }] }])))
        .expect(TCP_81, |from, _| namespace(from) == "x")
        .expect_open(TCP_80)
        .policy("all", egress(json!({}), json!([{}])))
        .expect_open(TCP_81)
}

pub(super) fn block(case: Case, families: Families) -> Case {
    let only = blocks(families, |family| family.block("y/b", family.host()));
    to(case, json!(only)).expect(TCP_80, |from, to| from == "x/a" && to != "y/b")
}

/// A quarter or an eighth of all addresses around the pod itself, written with its host bits as upstream writes it,
/// without `x/b`.
fn around_but_not_b(case: Case, families: Families) -> Case {
    let peers =
        blocks_except(families, |family| (format!("{}/4", family.address("x/a")), family.block("x/b", family.host())));
    to(case, json!(peers))
}

pub(super) fn block_with_except(case: Case, families: Families) -> Case {
    around_but_not_b(case, families).expect(TCP_80, |from, to| from == "x/a" && to == "x/b")
}

pub(super) fn excepted_address_given_back(case: Case, families: Families) -> Case {
    let case = around_but_not_b(case, families).expect(TCP_80, |from, to| from == "x/a" && to == "x/b");
    let only = blocks(families, |family| family.block("x/b", family.host()));
    to(case, json!(only)).expect(TCP_80, |from, to| from == "x/a" && to != "x/b")
}

pub(super) fn independent_of_ingress(case: Case, _: Families) -> Case {
    case.policy("egress", egress(pod("a"), json!([{}])))
        .expect_open(TCP_80)
        .policy("ingress", ingress(pod("a"), json!([])))
        .expect(TCP_80, |_, to| to == "x/a")
}

pub(super) fn default_namespace_label(case: Case, _: Families) -> Case {
    to(case, json!([{ "namespaceSelector": expression(NAME, "NotIn", &["y"]) }]))
        .expect(TCP_80, |from, to| from == "x/a" && namespace(to) == "y")
}
