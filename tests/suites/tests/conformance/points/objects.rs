//! Whole policies: defaults, what is empty or absent, selectors, names.

use netpol_policy::model::Protocol;
use netpol_suites::nine::case::Case;
use netpol_suites::nine::{POD, TCP_80, TCP_81, expression, ingress, namespace, namespace_object, ns, pod, pod_object};
use netpol_testbed::sandbox::Families;
use netpol_testbed::sandbox::cells::Port;
use serde_json::{Value, json};

const UDP_80: Port = Port { protocol: Protocol::Udp, number: 80 };

fn into_a(_: &str, to: &str) -> bool {
    to == "x/a"
}

pub(super) fn a1_policy_types_absent_or_empty(case: Case, _: Families) -> Case {
    // `egress: []` alone is not egress that is there.
    case.policy("p", json!({ "podSelector": pod("a"), "egress": [] }))
        .expect(TCP_80, into_a)
        .policy("p", json!({ "podSelector": pod("a"), "policyTypes": [], "egress": [{ "ports": [{ "port": 80 }] }] }))
        .expect(TCP_80, into_a)
        .expect(TCP_81, |from, to| from == "x/a" || to == "x/a")
        .policy("p", json!({ "podSelector": pod("a"), "policyTypes": null, "ingress": [{}], "egress": [{}] }))
        .expect_open(TCP_80)
}

pub(super) fn a2_policy_types_repeated(case: Case, _: Families) -> Case {
    case.policy("p", json!({ "podSelector": pod("a"), "policyTypes": ["Ingress", "Ingress"] })).expect(TCP_80, into_a)
}

pub(super) fn a3_section_not_named(case: Case, _: Families) -> Case {
    let egress = json!({ "podSelector": pod("a"), "policyTypes": ["Ingress"], "ingress": [{}], "egress": [] });
    let ingress = json!({ "podSelector": pod("a"), "policyTypes": ["Egress"], "ingress": [], "egress": [{}] });
    case.policy("p", egress).expect_open(TCP_80).policy("p", ingress).expect_open(TCP_80)
}

pub(super) fn a4_pod_selector_empty_null_or_absent(case: Case, _: Families) -> Case {
    let specs = [
        json!({ "podSelector": {}, "ingress": [] }),
        json!({ "podSelector": null, "ingress": [] }),
        json!({ "podSelector": { "matchLabels": {}, "matchExpressions": [] }, "ingress": [] }),
        json!({ "ingress": [] }),
    ];
    specs
        .into_iter()
        .fold(case, |case, spec| case.delete_policies().policy("p", spec).expect(TCP_80, |_, to| namespace(to) == "x"))
}

pub(super) fn a5_ingress_absent_null_or_empty(case: Case, _: Families) -> Case {
    let absent = json!({ "podSelector": pod("a"), "policyTypes": ["Ingress"] });
    [None, Some(Value::Null), Some(json!([]))].into_iter().fold(case, |case, ingress| {
        let mut spec = absent.clone();
        if let Some(ingress) = ingress {
            spec["ingress"] = ingress;
        }
        case.policy("p", spec).expect(TCP_80, into_a)
    })
}

pub(super) fn a6_a7_a8_rule_peers_and_ports_empty(case: Case, _: Families) -> Case {
    let deny = case.policy("deny", ingress(json!({}), json!([])));
    let rules = [
        json!({}),
        json!({ "from": null, "ports": null }),
        json!({ "from": [], "ports": [] }),
        json!({ "from": [{ "namespaceSelector": {} }], "ports": [] }),
    ];
    rules.into_iter().fold(deny, |case, rule| {
        let denied = |_: &str, to: &str| ["x/b", "x/c"].contains(&to);
        case.policy("p", ingress(pod("a"), json!([rule])))
            .expect(TCP_80, denied)
            .expect(UDP_80, denied)
            .expect(Port { protocol: Protocol::Sctp, number: 81 }, denied)
    })
}

pub(super) fn a9_a10_port_entry_without_port_or_protocol(case: Case, _: Families) -> Case {
    case.policy("p", ingress(pod("a"), json!([{ "ports": [{}] }])))
        .expect_open(TCP_80)
        .expect_open(TCP_81)
        .expect(UDP_80, into_a)
        .policy("p", ingress(pod("a"), json!([{ "ports": [{ "port": 80, "protocol": null }] }])))
        .expect_open(TCP_80)
        .expect(TCP_81, into_a)
        .expect(UDP_80, into_a)
}

pub(super) fn a12_a13_selectors_of_a_peer(case: Case, _: Families) -> Case {
    let from = |peers: Value| ingress(pod("a"), json!([{ "from": peers }]));
    case.policy("p", from(json!([{ "podSelector": {} }])))
        .expect(TCP_80, |from, to| to == "x/a" && namespace(from) != "x")
        .policy("p", from(json!([{ "namespaceSelector": {} }])))
        .expect_open(TCP_80)
        // One entry with both selectors is an intersection, two entries are a union.
        .policy("p", from(json!([{ "namespaceSelector": ns("y"), "podSelector": pod("b") }])))
        .expect(TCP_80, |from, to| to == "x/a" && from != "y/b")
        .policy("p", from(json!([{ "namespaceSelector": ns("y") }, { "podSelector": pod("b") }])))
        .expect(TCP_80, |from, to| to == "x/a" && namespace(from) != "y" && from != "x/b")
}

pub(super) fn a14_operators_where_a_key_is_absent(case: Case, _: Families) -> Case {
    let from = |selector: Value| ingress(pod("a"), json!([{ "from": [{ "podSelector": selector }] }]));
    // x/b has the label with one value, x/c with another, x/a has none.
    let case = case.label("x/b", "tier", "web").label("x/c", "tier", "");
    let exists = json!({ "matchExpressions": [{ "key": "tier", "operator": "Exists" }] });
    let absent = json!({ "matchExpressions": [{ "key": "tier", "operator": "DoesNotExist" }] });
    let both = json!({
        "matchLabels": { POD: "c" }, "matchExpressions": [{ "key": "tier", "operator": "NotIn", "values": ["web"] }],
    });
    case.policy("p", from(expression("tier", "In", &["web", "db"])))
        .expect(TCP_80, |from, to| to == "x/a" && from != "x/b")
        // Also where there is no such label.
        .policy("p", from(expression("tier", "NotIn", &["web"])))
        .expect(TCP_80, |from, to| to == "x/a" && from != "x/c")
        .policy("p", from(exists))
        .expect(TCP_80, |from, to| to == "x/a" && !["x/b", "x/c"].contains(&from))
        .policy("p", from(absent))
        .expect(TCP_80, |_, to| to == "x/a")
        .policy("p", from(both))
        .expect(TCP_80, |from, to| to == "x/a" && from != "x/c")
}

pub(super) fn a17_pod_name_of_full_length_with_dots(case: Case, _: Families) -> Case {
    let label = "n".repeat(62);
    let name = [label.as_str(); 4].join(".") + ".1";
    assert_eq!(name.len(), 253, "the longest name that the API server takes");
    let mut object = pod_object(&format!("x/{name}"));
    object["metadata"]["labels"][POD] = json!("long");
    case.object(object)
        .policy(&name, ingress(pod("long"), json!([{ "from": [{ "podSelector": pod("b") }] }])))
        .expect_open(TCP_80)
}

pub(super) fn w11_namespace_deleted_and_made_anew(case: Case, _: Families) -> Case {
    let from = json!([{ "from": [{ "namespaceSelector": { "matchLabels": { "team": "new" } } }] }]);
    let mut namespace = namespace_object("late");
    namespace["metadata"]["labels"]["team"] = json!("new");
    // The policy is there first, and no namespace that it means; then its pod is there, and then its labels.
    case.policy("p", ingress(pod("a"), from))
        .expect(TCP_80, into_a)
        .object(pod_object("late/b"))
        .probe()
        .object(namespace.clone())
        .probe()
        .delete("Namespace", "late")
        .expect(TCP_80, into_a)
        .object(namespace)
        .object(pod_object("late/b"))
        .probe()
}
