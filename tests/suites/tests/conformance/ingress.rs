//! Who may send to a pod: upstream's cases about ingress.

use serde_json::json;

use crate::world::{NAME, TCP_80, TCP_81, expression, ingress, namespace, ns, pod, world};

#[test]
fn t01_default_deny_ingress() {
    world().policy("p", ingress(json!({}), json!([]))).expect(TCP_80, |_, to| namespace(to) == "x");
}

#[test]
fn t02_default_deny_all() {
    let spec = json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] });
    world().policy("p", spec).expect(TCP_80, |from, to| namespace(from) == "x" || namespace(to) == "x");
}

#[test]
fn t03_pods_of_the_own_namespace_by_pod_selector() {
    world()
        .policy("p", ingress(pod("a"), json!([{ "from": [{ "podSelector": pod("b") }] }])))
        .expect(TCP_80, |from, to| to == "x/a" && from != "x/b");
}

#[test]
fn t04_ingress_traffic_for_a_target_beside_a_default_deny() {
    world()
        .policy("deny", ingress(json!({}), json!([])))
        .policy("allow", ingress(pod("a"), json!([{ "from": [{ "podSelector": {}, "namespaceSelector": {} }] }])))
        .expect(TCP_80, |_, to| ["x/b", "x/c"].contains(&to));
}

#[test]
fn t05_pods_in_all_namespaces() {
    world().policy("p", ingress(pod("a"), json!([{ "from": [{ "namespaceSelector": {} }] }]))).expect_open(TCP_80);
}

#[test]
fn t06_only_from_a_different_namespace_and_t41_by_the_default_label() {
    world()
        .policy("p", ingress(pod("a"), json!([{ "from": [{ "namespaceSelector": ns("y") }] }])))
        .expect(TCP_80, |from, to| to == "x/a" && namespace(from) != "y");
}

#[test]
fn t07_pod_selector_with_match_expressions() {
    world()
        .policy("p", ingress(pod("a"), json!([{ "from": [{ "podSelector": expression("pod", "In", &["b"]) }] }])))
        .expect(TCP_80, |from, to| to == "x/a" && from != "x/b");
}

#[test]
fn t08_namespace_selector_with_match_expressions() {
    world()
        .policy("p", ingress(pod("a"), json!([{ "from": [{ "namespaceSelector": expression(NAME, "In", &["y"]) }] }])))
        .expect(TCP_80, |from, to| to == "x/a" && namespace(from) != "y");
}

#[test]
fn t09_pod_selector_or_namespace_selector() {
    let from = json!([{ "namespaceSelector": expression(NAME, "NotIn", &["x"]) }, { "podSelector": pod("b") }]);
    world()
        .policy("p", ingress(pod("a"), json!([{ "from": from }])))
        .expect(TCP_80, |from, to| to == "x/a" && from == "x/c");
}

#[test]
fn t10_pod_selector_and_namespace_selector() {
    let from = json!([{ "namespaceSelector": expression(NAME, "NotIn", &["x"]), "podSelector": pod("b") }]);
    world()
        .policy("p", ingress(pod("a"), json!([{ "from": from }])))
        .expect(TCP_80, |from, to| to == "x/a" && !["y/b", "z/b"].contains(&from));
}

#[test]
fn t11_multiple_pod_selectors_and_namespace_selectors() {
    let from = json!([{
        "namespaceSelector": expression(NAME, "NotIn", &["x"]),
        "podSelector": expression("pod", "In", &["b", "c"]),
    }]);
    world()
        .policy("p", ingress(pod("a"), json!([{ "from": from }])))
        .expect(TCP_80, |from, to| to == "x/a" && (namespace(from) == "x" || ["y/a", "z/a"].contains(&from)));
}

#[test]
fn t12_any_of_several_pod_selectors() {
    let from = json!([{ "podSelector": pod("b") }, { "podSelector": pod("c") }]);
    world()
        .policy("p", ingress(pod("a"), json!([{ "from": from }])))
        .expect(TCP_80, |from, to| to == "x/a" && !["x/b", "x/c"].contains(&from));
}

#[test]
fn t13_only_a_pod_in_a_different_namespace() {
    let from = json!([{ "namespaceSelector": ns("y"), "podSelector": pod("a") }]);
    world()
        .policy("p", ingress(pod("a"), json!([{ "from": from }])))
        .expect(TCP_80, |from, to| to == "x/a" && from != "y/a");
}

#[test]
fn t14_t15_ports_and_stacked_policies_with_overlapping_pod_selectors() {
    let rule = |port: u16| json!([{ "from": [{ "namespaceSelector": ns("y") }], "ports": [{ "protocol": "TCP", "port": port }] }]);
    let others = |from: &str, to: &str| to == "x/a" && namespace(from) != "y";
    world()
        .policy("p81", ingress(pod("a"), rule(81)))
        .expect(TCP_81, others)
        .expect(TCP_80, |_, to| to == "x/a")
        .policy("p80", ingress(pod("a"), rule(80)))
        .expect(TCP_80, others);
}

#[test]
fn t16_allow_all() {
    world().policy("p", ingress(json!({}), json!([{}]))).expect_open(TCP_80).expect_open(TCP_81);
}

#[test]
fn t17_one_named_port() {
    world()
        .policy("p", ingress(json!({}), json!([{ "ports": [{ "port": "serve-81-tcp" }] }])))
        .expect_open(TCP_81)
        .expect(TCP_80, |_, to| namespace(to) == "x");
}

#[test]
fn t18_a_namespace_on_one_named_port() {
    let rule = json!([{ "from": [{ "namespaceSelector": ns("y") }], "ports": [{ "protocol": "TCP", "port": "serve-80-tcp" }] }]);
    world()
        .policy("p", ingress(pod("a"), rule))
        .expect(TCP_80, |from, to| to == "x/a" && namespace(from) != "y")
        .expect(TCP_81, |_, to| to == "x/a");
}

#[test]
fn t23_pods_on_other_namespaces_are_denied() {
    world()
        .policy("p", ingress(json!({}), json!([{ "from": [{ "podSelector": {} }] }])))
        .expect(TCP_80, |from, to| namespace(to) == "x" && namespace(from) != "x");
}

#[test]
fn t31_multiple_ingress_policies_with_allow_all_taking_precedence() {
    world()
        .policy("p80", ingress(json!({}), json!([{ "ports": [{ "protocol": "TCP", "port": 80 }] }])))
        .expect(TCP_80, |_, _| false)
        .expect(TCP_81, |_, to| namespace(to) == "x")
        .policy("all", ingress(json!({}), json!([{}])))
        .expect_open(TCP_81);
}
