//! The small groups: whom a policy selects, rules that say nothing or everything, namespaces by name, an example.

use netpol_suites::nine::case::Case;
use netpol_suites::nine::{NAME, NS, POD, blocks, blocks_except, expression, ns, pod};
use netpol_testbed::sandbox::Families;
use serde_json::json;

use crate::Direction;
use crate::base::Base;

/// Whom the policy selects: in each namespace, and by three selectors. The first is the base policy itself.
pub(crate) fn targets(families: Families) -> Vec<Case> {
    let by_namespace = ["x", "y", "z"]
        .into_iter()
        .map(|namespace| Base::new().in_namespace(namespace).case(format!("targets: pods a of {namespace}"), families));
    let selectors = [
        ("all pods of y", json!({})),
        ("pods a of y by expression", expression(POD, "In", &["a"])),
        ("pods a and b of y", expression(POD, "In", &["a", "b"])),
    ];
    let by_selector = selectors.into_iter().map(|(name, selector)| {
        Base::new().in_namespace("y").selecting(selector).case(format!("targets: {name}"), families)
    });
    by_namespace.chain(by_selector).collect()
}

/// No rules, or the empty rule.
pub(crate) fn rules(families: Families) -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in Direction::BOTH {
        for (what, rules) in [("deny all", json!([])), ("allow all", json!([{}]))] {
            let name = format!("rules: {} {what}", direction.rules());
            cases.push(Base::new().with_rules(direction, rules).case(name, families));
        }
    }
    cases
}

/// Namespaces by the label that the API server gives them.
pub(crate) fn namespaces(families: Families) -> Vec<Case> {
    let by_label = ("by matchLabels", ns("x"), ns("y"));
    let by_expression =
        ("by matchExpressions", expression(NAME, "In", &["x", "z"]), expression(NAME, "NotIn", &["x", "z"]));
    let case = |(how, from, to)| {
        Base::new()
            .with_peers(Direction::Ingress, vec![json!({ "namespaceSelector": from })])
            .with_peers(Direction::Egress, vec![json!({ "namespaceSelector": to })])
            .case(format!("namespaces: {how}"), families)
    };
    [by_label, by_expression].map(case).into()
}

/// A bit of everything: a block with an exception, namespaces, pods, a port, a range, in both directions.
pub(crate) fn example(families: Families) -> Vec<Case> {
    let mut from =
        blocks_except(families, |family| (family.block("z/c", family.wide()), family.block("z/c", family.narrow())));
    from.push(json!({ "namespaceSelector": { "matchLabels": { NS: "y" } } }));
    from.push(json!({ "podSelector": pod("b") }));
    let to = blocks(families, |family| family.block("y/c", family.narrow()));
    let spec = json!({
        "podSelector": pod("a"),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": from, "ports": [{ "protocol": "TCP", "port": 80 }] }],
        "egress": [{ "to": to, "ports": [{ "protocol": "TCP", "port": 80, "endPort": 90 }] }],
    });
    vec![Case::new("example: a bit of everything", families).policy("example", spec).probe()]
}
