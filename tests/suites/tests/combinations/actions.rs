//! What changes while policies are in force: each case is probed before and after each change.

use netpol_suites::nine::case::Case;
use netpol_suites::nine::{NS, POD, expression, namespace_object, pod_object};
use netpol_testbed::sandbox::Families;
use serde_json::json;

use crate::Direction;
use crate::base::{Base, POLICY};

/// From pods `b` of namespaces y, by the labels of both.
fn from_b_of_y() -> Base {
    let peer = json!({
        "namespaceSelector": expression(NS, "In", &["y", "y-2"]),
        "podSelector": expression(POD, "In", &["b", "d"]),
    });
    Base::new().with_peers(Direction::Ingress, vec![peer])
}

pub(crate) fn cases(families: Families) -> Vec<Case> {
    let begin = |name: &str| Case::new(format!("actions: {name}"), families);
    let with_policy = |name: &str| from_b_of_y().apply(begin(name)).probe();
    vec![
        Base::new()
            .apply(begin("a policy is created and deleted").probe())
            .probe()
            .delete("NetworkPolicy", POLICY)
            .probe(),
        {
            let case = with_policy("a policy is updated");
            let case = Base::new().selecting(json!({})).apply(case).probe();
            Base::new().with_rules(Direction::Egress, json!([{}])).apply(case).probe()
        },
        with_policy("a namespace is created and deleted, with a pod in it")
            .object(namespace_object("y-2"))
            .object(pod_object("y-2/b"))
            .probe()
            .delete("Namespace", "y-2")
            .probe(),
        with_policy("a namespace gets other labels and its own again")
            .label("z", NS, "y")
            .probe()
            .label("z", NS, "z")
            .probe(),
        with_policy("a pod is created and deleted").object(pod_object("y/d")).probe().delete("Pod", "y/d").probe(),
        with_policy("a pod gets other labels and its own again")
            .label("y/c", POD, "b")
            .label("x/b", POD, "a")
            .probe()
            .label("y/c", POD, "c")
            .label("x/b", POD, "b")
            .probe(),
    ]
}
