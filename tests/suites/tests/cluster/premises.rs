//! What the other tests of this suite take for granted about a real API server. If a new release of Kubernetes changes
//! one of these, this says so, instead of a test that quietly proves nothing.

use netpol_testbed::control_plane::{ControlPlane, Options, actors};
use serde_json::json;

/// A policy that no API server of today accepts: its CIDR is none.
fn policy_with_a_broken_cidr() -> serde_json::Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {
            "name": "broken", "namespace": "shop", "uid": "8b4e0d3a-7a39-4a0c-9d0f-000000000001",
            "creationTimestamp": "2020-01-01T00:00:00Z",
        },
        "spec": {
            "podSelector": {}, "policyTypes": ["Ingress"],
            "ingress": [{ "from": [{ "ipBlock": { "cidr": "10.0.0.0/99" } }] }],
        },
    })
}

#[test]
fn an_object_that_validation_would_refuse_is_served_as_it_was_stored() {
    let control_plane = ControlPlane::start(Options::default()).unwrap();
    let admin = control_plane.admin();
    actors::create_namespace(admin, "shop", &[]).unwrap();
    let policies = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies";
    let refusal = admin.create(policies, &policy_with_a_broken_cidr()).unwrap_err().to_string();
    assert!(refusal.contains("10.0.0.0/99"), "{refusal}");

    control_plane.etcd().put("networkpolicies/shop/broken", &policy_with_a_broken_cidr()).unwrap();
    let served = admin.get(&format!("{policies}/broken")).unwrap();
    assert_eq!(served.pointer("/spec/ingress/0/from/0/ipBlock/cidr"), Some(&json!("10.0.0.0/99")));
}

#[test]
fn a_watch_from_before_a_compaction_and_a_restart_is_gone() {
    let mut control_plane = ControlPlane::start(Options::default()).unwrap();
    actors::create_namespace(control_plane.admin(), "shop", &[]).unwrap();
    let policies = "/apis/networking.k8s.io/v1/networkpolicies";
    let before = control_plane.admin().get(policies).unwrap();
    let version = before["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let watch = format!("{policies}?watch=1&timeoutSeconds=1&resourceVersion={version}");
    control_plane.admin().kubectl(&["get", "--raw", &watch]).unwrap();

    actors::create_namespace(control_plane.admin(), "later", &[]).unwrap();
    control_plane.kill_api_server();
    control_plane.etcd().compact().unwrap();
    control_plane.start_api_server().unwrap();
    let refusal = control_plane.admin().kubectl(&["get", "--raw", &watch]);
    // Either as the response's status, or as the one event of a stream that begins well.
    let told = refusal.unwrap_or_else(|error| error.to_string());
    assert!(told.contains("too old resource version") || told.contains("\"code\":410"), "{told}");
}

#[test]
fn what_a_service_account_asked_for_and_was_refused_is_in_the_audit_log() {
    let control_plane = ControlPlane::start(Options::default()).unwrap();
    actors::create_namespace(control_plane.admin(), "shop", &[]).unwrap();
    let client = control_plane.service_account("shop", "default", None).unwrap();
    client.get("/api/v1/namespaces/shop/secrets").unwrap_err();
    let requests = control_plane.requests("system:serviceaccount:shop:default").unwrap();
    let found = requests.iter().find(|request| request.resource == "secrets").unwrap();
    assert_eq!((found.verb.as_str(), found.status), ("list", 403));
}

#[test]
fn a_removed_namespace_takes_everything_in_it_along() {
    let control_plane = ControlPlane::start(Options::default()).unwrap();
    let admin = control_plane.admin();
    actors::create_namespace(admin, "shop", &[("team", "a")]).unwrap();
    actors::remove_namespace(admin, "shop").unwrap();
    admin.get("/api/v1/namespaces/shop").unwrap_err();
    assert_eq!(admin.get("/api/v1/namespaces/shop/serviceaccounts").unwrap()["items"], json!([]));
}
