//! Policies from a real API server on real connections, with the agent's own identity and rights.

use serde_json::{Value, json};

use crate::site::{AGENT, NAMESPACE, Site};
use netpol_testbed::probe::Outcome::{Allow, Deny};

/// A policy that lets pods with one label reach pods with another, on the port they name.
pub(crate) fn allow(name: &str, to: &Value, from: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": name },
        "spec": {
            "podSelector": { "matchLabels": to },
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": from } }], "ports": [{ "port": "http" }] }],
        },
    })
}

/// A database that only the application may reach, and a stranger.
pub(crate) fn shop() -> Site {
    let mut site = Site::start();
    site.add_pod("db", &json!({ "app": "db" }));
    site.add_pod("web", &json!({ "app": "web" }));
    site.add_pod("stranger", &json!({ "app": "stranger" }));
    site.assert(&[("web", "db", Allow), ("stranger", "db", Allow), ("stranger", "web", Allow)]);
    site.apply(&allow("db", &json!({ "app": "db" }), &json!({ "app": "web" })));
    site.assert(&[("web", "db", Allow), ("stranger", "db", Deny), ("stranger", "web", Allow)]);
    site
}

#[test]
fn policies_labels_and_deletions_are_in_force_once_the_agent_says_so() {
    let site = shop();
    let db = [("web", "db", Allow), ("stranger", "db", Deny)];
    site.assert(&db);
    assert!(
        site.metric(r#"netpol_dropped_packets_total{direction="ingress",namespace="shop",reason="no_rule"}"#) > 0.0
    );

    // A label makes the stranger a friend, and the friend a stranger.
    site.admin()
        .patch(Some(NAMESPACE), "pod", "stranger", &json!({ "metadata": { "labels": { "app": "web" } } }))
        .unwrap();
    site.admin()
        .patch(Some(NAMESPACE), "pod", "web", &json!({ "metadata": { "labels": { "app": "was-web" } } }))
        .unwrap();
    site.settle(&[("web", "db", Deny), ("stranger", "db", Allow)]);

    // A connection whose permission is withdrawn ends with it.
    let mut connection = site.open("stranger", "db");
    assert_eq!(connection.exchange(), Allow);
    site.apply(&allow("db", &json!({ "app": "db" }), &json!({ "app": "nobody" })));
    assert_eq!(connection.exchange(), Deny);
    site.assert(&[("web", "db", Deny), ("stranger", "db", Deny)]);

    site.admin().delete(Some(NAMESPACE), "networkpolicy", "db").unwrap();
    site.settle(&[("web", "db", Allow), ("stranger", "db", Allow)]);

    // Nothing that the agent asked for was refused, and it asked for nothing but reading and events.
    let requests = site.control_plane.requests(AGENT).unwrap();
    assert!(requests.iter().any(|request| request.resource == "networkpolicies" && request.verb == "list"));
    for request in requests {
        assert!(request.status < 400, "{request:?}");
        let is_reading = ["get", "list", "watch"].contains(&request.verb.as_str());
        assert!(is_reading || request.resource == "events", "{request:?}");
    }
}

#[test]
fn a_policy_that_cannot_be_read_isolates_what_it_selects_and_the_rest_is_enforced() {
    let site = shop();
    // As an older server may have stored it; today's would refuse it.
    let mut broken = allow("broken", &json!({ "app": "web" }), &json!({}));
    broken["metadata"]["namespace"] = json!(NAMESPACE);
    broken["metadata"]["uid"] = json!("8b4e0d3a-7a39-4a0c-9d0f-000000000001");
    broken["metadata"]["creationTimestamp"] = json!("2020-01-01T00:00:00Z");
    broken["spec"]["ingress"][0]["from"] = json!([{ "ipBlock": { "cidr": "10.0.0.0/99" } }]);
    site.control_plane.etcd().put(&format!("networkpolicies/{NAMESPACE}/broken"), &broken).unwrap();
    site.settle(&[("stranger", "web", Deny), ("db", "web", Deny), ("web", "db", Allow), ("stranger", "db", Deny)]);
    assert_eq!(site.metric(r#"netpol_rejected_objects{kind="NetworkPolicy"}"#), 1.0);

    // What comes after it on the same watch is heard.
    site.apply(&allow("db", &json!({ "app": "db" }), &json!({ "app": "stranger" })));
    site.assert(&[("web", "db", Deny), ("stranger", "db", Allow), ("stranger", "web", Deny)]);

    site.apply(&allow("broken", &json!({ "app": "web" }), &json!({ "app": "stranger" })));
    site.assert(&[("stranger", "web", Allow), ("db", "web", Deny)]);
    assert_eq!(site.metric(r#"netpol_rejected_objects{kind="NetworkPolicy"}"#), 0.0);
}

#[test]
fn a_policy_that_becomes_unreadable_keeps_its_last_good_form() {
    let site = shop();
    let path = format!("/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies/db");
    let mut broken = site.admin().get(&path).unwrap();
    broken["spec"]["ingress"][0]["from"] = json!([{ "podSelector": { "matchExpressions": [{
        "key": "app", "operator": "Resembles", "values": ["web"],
    }]}}]);
    site.control_plane.etcd().put(&format!("networkpolicies/{NAMESPACE}/db"), &broken).unwrap();
    site.wait("the agent rejects it", |site| {
        let rejected = site.metric(r#"netpol_rejected_objects{kind="NetworkPolicy"}"#);
        if rejected == 1.0 { Ok(()) } else { anyhow::bail!("{rejected} are rejected") }
    });
    site.assert(&[("web", "db", Allow), ("stranger", "db", Deny), ("stranger", "web", Allow)]);
}

#[test]
fn a_policy_as_large_as_the_store_takes_is_enforced() {
    let site = shop();
    // About a megabyte; etcd takes requests of one and a half. Only the last of its blocks contains a pod.
    let mut blocks: Vec<Value> = (0..20_000_u32)
        .map(|number| json!({ "ipBlock": { "cidr": format!("172.{}.{}.{}/32", 16 + (number >> 16), number >> 8 & 255, number & 255) } }))
        .collect();
    for address in &site.pod("stranger").spec().addresses {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        blocks.push(json!({ "ipBlock": { "cidr": format!("{address}/{bits}") } }));
    }
    let mut huge = allow("db", &json!({ "app": "db" }), &json!({}));
    huge["metadata"]["name"] = json!("huge");
    huge["spec"]["ingress"][0]["from"] = json!(blocks);
    // Created and not applied: the record of an applied object's fields would double its size.
    let collection = format!("/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies");
    site.admin().create(&collection, &huge).unwrap();
    site.settle(&[("stranger", "db", Allow), ("web", "db", Allow)]);
    site.admin().delete(Some(NAMESPACE), "networkpolicy", "huge").unwrap();
    site.settle(&[("stranger", "db", Deny), ("web", "db", Allow)]);
}
