//! Whom a pod may send to: upstream's cases about egress, and about both directions together.

use serde_json::{Value, json};

use crate::world::{NAME, TCP_80, TCP_81, egress, expression, ingress, namespace, ns, pod, world};

#[test]
fn t19_one_named_port_without_destinations() {
    world()
        .policy("p", egress(json!({}), json!([{ "ports": [{ "port": "serve-80-tcp" }] }])))
        .expect_open(TCP_80)
        .expect(TCP_81, |from, _| namespace(from) == "x");
}

#[test]
fn t25_egress_of_selected_pods_is_denied() {
    world().policy("p", egress(pod("a"), json!([]))).expect(TCP_80, |from, _| from == "x/a");
}

#[test]
fn t26_egress_of_all_pods_of_a_namespace_is_denied() {
    world().policy("p", egress(json!({}), json!([]))).expect(TCP_80, |from, _| namespace(from) == "x");
}

#[test]
fn t27_ingress_and_egress_specified_together() {
    let spec = json!({
        "podSelector": pod("a"),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": [{ "podSelector": pod("b") }] }],
        "egress": [{ "ports": [{ "port": 80 }] }],
    });
    world()
        .policy("p", spec)
        .expect(TCP_80, |from, to| to == "x/a" && from != "x/b")
        .expect(TCP_81, |from, to| from == "x/a" || (to == "x/a" && from != "x/b"));
}

#[test]
fn t28_egress_is_denied_on_the_clients_side_even_if_the_server_allows() {
    let from_client = json!([{ "from": [{ "namespaceSelector": ns("x"), "podSelector": pod("a") }] }]);
    world()
        .policy(
            "client",
            egress(pod("a"), json!([{ "to": [{ "namespaceSelector": ns("y"), "podSelector": pod("a") }] }])),
        )
        .policy_in("y", "server-a", ingress(pod("a"), from_client.clone()))
        .policy_in("y", "server-b", ingress(pod("b"), from_client))
        .expect(TCP_80, |from, to| match to {
            "y/a" => from != "x/a",
            "y/b" => true,
            _ => from == "x/a",
        });
}

#[test]
fn t29_a_server_in_a_different_namespace() {
    let to = json!([{ "namespaceSelector": ns("y"), "podSelector": pod("a") }]);
    world()
        .policy("p", egress(pod("a"), json!([{ "to": to }])))
        .expect(TCP_80, |from, to| from == "x/a" && to != "y/a");
}

#[test]
fn t32_multiple_egress_policies_with_allow_all_taking_precedence() {
    world()
        .policy("p80", egress(json!({}), json!([{ "ports": [{ "protocol": "TCP", "port": 80 }] }])))
        .expect_open(TCP_80)
        .expect(TCP_81, |from, _| namespace(from) == "x")
        .policy("all", egress(json!({}), json!([{}])))
        .expect_open(TCP_81);
}

#[test]
fn t34_a_server_in_a_cidr_block() {
    let mut world = world();
    let to: Vec<Value> = world.blocks("y/b").iter().map(|cidr| json!({ "ipBlock": { "cidr": cidr } })).collect();
    world.policy("p", egress(pod("a"), json!([{ "to": to }]))).expect(TCP_80, |from, to| from == "x/a" && to != "y/b");
}

#[test]
fn t35_t36_except_takes_an_address_out_and_an_updated_block_gives_it_back() {
    let mut world = world();
    let (wide, narrow) = (world.blocks("x/a"), world.blocks("x/b"));
    let except: Vec<Value> = wide
        .iter()
        .zip(&narrow)
        .map(|(own, except)| {
            // A block with host bits, as upstream writes it.
            let own = own.split('/').next().unwrap_or_default();
            json!({ "ipBlock": { "cidr": format!("{own}/4"), "except": [except] } })
        })
        .collect();
    let only: Vec<Value> = narrow.iter().map(|cidr| json!({ "ipBlock": { "cidr": cidr } })).collect();
    world
        .policy("p", egress(pod("a"), json!([{ "to": except }])))
        .expect(TCP_80, |from, to| from == "x/a" && to == "x/b")
        .delete_policies()
        .policy("p", egress(pod("a"), json!([{ "to": only }])))
        .expect(TCP_80, |from, to| from == "x/a" && to != "x/b");
}

#[test]
fn t37_ingress_and_egress_are_controlled_independently() {
    world()
        .policy("egress", egress(pod("a"), json!([{}])))
        .expect_open(TCP_80)
        .policy("ingress", ingress(pod("a"), json!([])))
        .expect(TCP_80, |_, to| to == "x/a");
}

#[test]
fn t42_namespaces_by_expressions_on_the_default_label() {
    let to = json!([{ "namespaceSelector": expression(NAME, "NotIn", &["y"]) }]);
    world()
        .policy("p", egress(pod("a"), json!([{ "to": to }])))
        .expect(TCP_80, |from, to| from == "x/a" && namespace(to) == "y");
}
