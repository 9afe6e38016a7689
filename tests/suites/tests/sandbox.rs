//! The agent on a node with pods out of manifests, as `cargo xtask run` has it: what the upstream cases do not ask.

use std::process::Command;

use netpol_suites::kernel::{self, Feature};
use netpol_suites::{agent_binary, cells};
use netpol_testbed::sandbox::{Answered, Families, Options, Policies, Sandbox};
use nix::net::if_::if_nameindex;
use serde_json::{Value, json};

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "shop", "name": name, "labels": { "app": name } },
        "spec": { "containers": [{ "name": "main", "ports": [
            { "containerPort": 80, "name": "web" },
            { "containerPort": 53, "protocol": "UDP" },
            { "containerPort": 9, "protocol": "SCTP" },
        ] }] },
    })
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "shop", "name": name }, "spec": spec,
    })
}

/// In both directions, with pods, addresses and ports of each kind.
fn policies() -> Vec<Value> {
    let except = json!({ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["192.0.2.0/24", "10.244.0.0/24"] } });
    vec![
        policy(
            "web",
            &json!({
                "podSelector": { "matchLabels": { "app": "db" } },
                "ingress": [
                    { "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }], "ports": [{ "port": "web" }] },
                    { "from": [{ "ipBlock": { "cidr": "203.0.113.0/24", "except": ["203.0.113.128/25"] } }] },
                ],
            }),
        ),
        policy(
            "out",
            &json!({
                "podSelector": { "matchExpressions": [{ "key": "app", "operator": "In", "values": ["web", "other"] }] },
                "policyTypes": ["Egress"],
                "egress": [
                    { "to": [except], "ports": [{ "port": 443 }, { "port": 8000, "endPort": 8010 }] },
                    { "to": [{ "podSelector": {} }], "ports": [{ "port": 80 }, { "port": 53, "protocol": "UDP" }] },
                ],
            }),
        ),
    ]
}

fn sandbox(recorded: bool) -> Sandbox {
    sandbox_with(recorded, &[])
}

fn sandbox_with(recorded: bool, arguments: &[&str]) -> Sandbox {
    let agent_arguments = arguments.iter().map(ToString::to_string).collect();
    let options = Options { families: Families::Dual, agent: Some(agent_binary()), agent_arguments, recorded };
    Sandbox::start(options).expect("sandbox")
}

/// Puts manifests in force and returns what differs.
fn differences(sandbox: &mut Sandbox, manifests: &[Value]) -> Vec<Answered> {
    sandbox.arrange(manifests).expect("arrange");
    sandbox.publish(Policies::InForce).expect("publish");
    let matrix = sandbox.matrix().expect("matrix");
    assert!(matrix.iter().any(|answered| answered.expected) && matrix.iter().any(|answered| !answered.expected));
    let tried = matrix.len();
    let wrong: Vec<Answered> = matrix.into_iter().filter(|answered| !answered.agrees()).collect();
    cells::report("sandbox", "dual", "-", tried, wrong.len()).expect("the file for rows");
    wrong
}

/// Puts policies in force by an agent that attaches its programs in one way, and insists that it has done so.
fn attached(way: &str) {
    let mut sandbox = sandbox_with(true, &["--attach", way]);
    let mut manifests = ["web", "db", "other"].map(pod).to_vec();
    manifests.extend(policies());
    assert_eq!(differences(&mut sandbox, &manifests), []);
    let listed = sandbox.node().place().run(|| {
        let mut filters = String::new();
        for interface in &if_nameindex()? {
            let name = interface.name().to_str()?;
            let output = Command::new("tc").args(["filter", "show", "dev", name, "ingress"]).output()?;
            filters += &String::from_utf8_lossy(&output.stdout);
        }
        Ok(filters)
    });
    // TCX links are no filters: tc does not show them.
    let by_filters = listed.expect("tc filter show").contains("pod_egress");
    assert_eq!(by_filters, way == "clsact");
}

#[test]
fn filters_hold_back_what_policies_deny_on_every_kernel() {
    attached("clsact");
}

#[test]
fn links_hold_back_what_policies_deny_where_the_kernel_has_them() {
    if kernel::require(Feature::Tcx) {
        attached("tcx");
    }
}

#[test]
fn pods_are_found_by_their_addresses_where_the_runtime_records_nothing() {
    let mut sandbox = sandbox(false);
    let mut manifests = ["web", "db", "other"].map(pod).to_vec();
    sandbox.arrange(&manifests).expect("arrange");
    sandbox.publish(Policies::Withheld).expect("publish");
    sandbox.baseline().expect("baseline");
    manifests.extend(policies());
    assert_eq!(differences(&mut sandbox, &manifests), []);
    // A pod that comes under policies that are there already.
    manifests.push(pod("late"));
    assert_eq!(differences(&mut sandbox, &manifests), []);
}

#[test]
fn host_network_pods_are_the_node() {
    let mut sandbox = sandbox(true);
    let mut on_node = pod("on-node");
    on_node["spec"]["hostNetwork"] = json!(true);
    let mut manifests = ["web", "db", "other"].map(pod).to_vec();
    manifests.push(on_node);
    manifests.extend(policies());
    assert_eq!(differences(&mut sandbox, &manifests), []);
}

#[test]
fn an_unreadable_policy_isolates_or_keeps_its_last_good_form() {
    let mut sandbox = sandbox(true);
    let mut manifests = ["web", "db", "other"].map(pod).to_vec();
    manifests.extend(policies());
    let broken = json!({ "podSelector": { "matchLabels": { "app": "other" } }, "ingress": [{ "from": "everywhere" }] });
    manifests.push(policy("broken", &broken));
    let refused = sandbox.arrange(&manifests).expect("arrange");
    assert_eq!(refused.len(), 1);
    assert_eq!(differences(&mut sandbox, &manifests), []);
    // It was good once, and then is not.
    for policy in &mut manifests[3..5] {
        policy["spec"]["policyTypes"] = json!(["Sideways"]);
    }
    assert_eq!(sandbox.arrange(&manifests).expect("arrange").len(), 3);
    assert_eq!(differences(&mut sandbox, &manifests), []);
}

#[test]
fn pods_come_and_go_and_change_under_policies() {
    let mut sandbox = sandbox(true);
    let mut manifests = ["web", "db", "other"].map(pod).to_vec();
    manifests.extend(policies());
    assert_eq!(differences(&mut sandbox, &manifests), []);
    // The named port of the destination moves.
    manifests[1]["spec"]["containers"][0]["ports"] =
        json!([{ "containerPort": 81, "name": "web" }, { "containerPort": 80 }]);
    assert_eq!(differences(&mut sandbox, &manifests), []);
    // Labels move a pod from one policy to the other.
    manifests[2]["metadata"]["labels"]["app"] = json!("db");
    assert_eq!(differences(&mut sandbox, &manifests), []);
    // Another pod gets the address of one that is gone.
    let gone = manifests.remove(0);
    assert_eq!(gone["metadata"]["name"], "web");
    manifests.push(pod("successor"));
    assert_eq!(differences(&mut sandbox, &manifests), []);
}
