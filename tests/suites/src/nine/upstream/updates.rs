//! Policies and labels that change.

use netpol_testbed::sandbox::Families;
use serde_json::json;

use crate::nine::case::Case;
use crate::nine::{TCP_80, TCP_81, ingress, namespace, pod};

pub(super) fn policy(case: Case, _: Families) -> Case {
    case.policy("p", ingress(json!({}), json!([{}])))
        .expect_open(TCP_81)
        .policy("p", ingress(json!({}), json!([])))
        .expect(TCP_81, |_, to| namespace(to) == "x")
}

pub(super) fn namespace_labels(case: Case, _: Families) -> Case {
    let from = json!([{ "namespaceSelector": { "matchLabels": { "ns2": "updated" } } }]);
    case.policy("p", ingress(pod("a"), json!([{ "from": from }])))
        .expect(TCP_80, |_, to| to == "x/a")
        .label("y", "ns2", "updated")
        .expect(TCP_80, |from, to| to == "x/a" && namespace(from) != "y")
}

pub(super) fn pod_labels_of_a_peer(case: Case, _: Families) -> Case {
    let from = json!([{ "podSelector": { "matchLabels": { "pod": "b", "pod2": "updated" } } }]);
    case.policy("p", ingress(pod("a"), json!([{ "from": from }])))
        .expect(TCP_80, |_, to| to == "x/a")
        .label("x/b", "pod2", "updated")
        .expect(TCP_80, |from, to| to == "x/a" && from != "x/b")
}

pub(super) fn pod_labels_of_a_subject(case: Case, _: Families) -> Case {
    case.policy("p", ingress(json!({ "matchLabels": { "target": "isolated" } }), json!([])))
        .expect_open(TCP_80)
        .label("x/a", "target", "isolated")
        .expect(TCP_80, |_, to| to == "x/a")
}

pub(super) fn deletion(case: Case, _: Families) -> Case {
    case.policy("p", json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }))
        .expect(TCP_80, |from, to| namespace(from) == "x" || namespace(to) == "x")
        .delete_policies()
        .expect_open(TCP_80)
}
