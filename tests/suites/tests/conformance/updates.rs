//! Policies and labels that change: upstream's cases about updates.

use serde_json::json;

use crate::world::{TCP_80, TCP_81, expression, ingress, namespace, pod, world};

#[test]
fn t20_an_updated_policy_is_enforced() {
    world()
        .policy("p", ingress(json!({}), json!([{}])))
        .expect_open(TCP_81)
        .delete_policies()
        .policy("p", ingress(json!({}), json!([])))
        .expect(TCP_81, |_, to| namespace(to) == "x");
}

#[test]
fn t21_an_updated_namespace_is_let_in() {
    let from = json!([{ "namespaceSelector": { "matchLabels": { "ns2": "updated" } } }]);
    world()
        .policy("p", ingress(pod("a"), json!([{ "from": from }])))
        .expect(TCP_80, |_, to| to == "x/a")
        .label("y", "ns2", "updated")
        .expect(TCP_80, |from, to| to == "x/a" && namespace(from) != "y");
}

#[test]
fn t22_an_updated_pod_is_let_in() {
    let from = json!([{ "podSelector": { "matchLabels": { "pod": "b", "pod2": "updated" } } }]);
    world()
        .policy("p", ingress(pod("a"), json!([{ "from": from }])))
        .expect(TCP_80, |_, to| to == "x/a")
        .label("x/b", "pod2", "updated")
        .expect(TCP_80, |from, to| to == "x/a" && from != "x/b");
}

#[test]
fn t24_an_updated_pod_is_isolated() {
    world()
        .policy("p", ingress(expression("target", "In", &["isolated"]), json!([])))
        .expect_open(TCP_80)
        .label("x/a", "target", "isolated")
        .expect(TCP_80, |_, to| to == "x/a");
}

#[test]
fn t33_deleted_policies_are_no_longer_enforced() {
    world()
        .policy("p", json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }))
        .expect(TCP_80, |from, to| namespace(from) == "x" || namespace(to) == "x")
        .delete_policies()
        .expect_open(TCP_80);
}
