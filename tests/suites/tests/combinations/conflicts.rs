//! Two policies for the same pods, of which one seems to deny what the other allows: policies only ever add up.

use netpol_suites::nine::case::Case;
use netpol_suites::nine::{PROTOCOLS, blocks, pod};
use netpol_testbed::sandbox::Families;
use serde_json::{Value, json};

use crate::Direction;

/// Rules that let nobody through, each with how.
fn denies(direction: Direction, families: Families) -> [(&'static str, Value); 2] {
    let mut nobody = blocks(families, |family| family.nobody().to_owned());
    nobody.push(json!({ "podSelector": pod("nobody") }));
    [("by no rules", json!([])), ("by peers that nobody is", json!([{ direction.peers(): nobody }]))]
}

/// Rules that let all pods through, each with how.
fn allows(direction: Direction, families: Families) -> [(&'static str, Value); 4] {
    let everything = blocks(families, |family| family.everything().to_owned());
    let ports = PROTOCOLS.map(|protocol| json!({ "protocol": protocol.name() }));
    [
        ("by the empty rule", json!([{}])),
        ("by pods", json!([{ direction.peers(): [{ "namespaceSelector": {}, "podSelector": {} }] }])),
        ("by addresses", json!([{ direction.peers(): everything }])),
        ("by protocols", json!([{ "ports": ports }])),
    ]
}

pub(crate) fn cases(families: Families) -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in Direction::BOTH {
        let spec = |rules: &Value| {
            json!({
                "podSelector": pod("a"), "policyTypes": [direction.policy_type()], direction.rules(): rules,
            })
        };
        for (deny, denying) in denies(direction, families) {
            for (allow, allowing) in allows(direction, families) {
                let name = format!("conflicts: {} denied {deny}, allowed {allow}", direction.rules());
                let case = Case::new(name, families);
                cases.push(case.policy("deny", spec(&denying)).policy("allow", spec(&allowing)).probe());
            }
        }
    }
    cases
}
