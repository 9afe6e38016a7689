//! Whatever the input, decoding answers: arbitrary JSON, and arbitrary JSON put in the place of any part of a valid
//! object, which reaches deeper.

use proptest::prelude::*;
use serde_json::Map;

use super::*;

fn any_json() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        any::<String>(),
        prop::sample::select(vec![
            "",
            "TCP",
            "Ingress",
            "In",
            "Exists",
            "10.0.0.0/8",
            "::/0",
            "010.0.0.1",
            "::ffff:1.2.3.4/96",
            "http",
            "None",
            "Always",
            "Pod",
            "List",
            "PodList",
            "NetworkPolicy",
            "v1",
            "networking.k8s.io/v1",
            "2026-08-22T10:00:00Z",
        ])
        .prop_map(str::to_owned),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0_i64..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    let key = prop_oneof![
        any::<String>(),
        prop::sample::select(vec![
            "apiVersion",
            "kind",
            "metadata",
            "name",
            "namespace",
            "labels",
            "spec",
            "status",
            "items",
            "podSelector",
            "matchLabels",
            "matchExpressions",
            "key",
            "operator",
            "values",
            "ingress",
            "egress",
            "from",
            "to",
            "ports",
            "port",
            "endPort",
            "protocol",
            "ipBlock",
            "cidr",
            "except",
            "policyTypes",
            "podIPs",
            "ip",
            "containers",
            "template",
            "selector",
            "replicas",
            "endpoints",
            "addresses",
            "conditions",
            "hostPort",
            "cidrs",
        ])
        .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// One valid object of each kind, with every field that is looked at.
fn samples() -> Vec<Value> {
    vec![
        manifest(json!({
            "podSelector": { "matchLabels": { "app": "db" }, "matchExpressions": [{ "key": "a", "operator": "In", "values": ["b"] }] },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": [{ "podSelector": {}, "namespaceSelector": {} }], "ports": [{ "port": 80, "endPort": 90, "protocol": "UDP" }] }],
            "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } }], "ports": [{ "port": "http" }] }],
        })),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": "a", "uid": "u", "labels": { "a": "b" }, "annotations": { "c": "d" } },
            "spec": {
                "nodeName": "n", "hostNetwork": false,
                "containers": [{ "ports": [{ "name": "http", "containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.9", "protocol": "TCP" }] }],
                "initContainers": [{ "restartPolicy": "Always", "ports": [{ "containerPort": 81 }] }],
            },
            "status": { "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }], "startTime": "2026-08-22T10:00:00Z" },
        }),
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "labels": { "a": "b" } } }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "shop", "name": "a" },
            "spec": {
                "type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "externalIPs": ["10.0.0.2"],
                "selector": { "a": "b" },
                "ports": [{ "name": "http", "port": 1, "nodePort": 2, "protocol": "TCP", "targetPort": "http" }],
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": "10.0.0.3" }] } },
        }),
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" },
            "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }] },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "namespace": "shop", "name": "a-1", "labels": { "kubernetes.io/service-name": "a" } },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": ["10.0.0.1"], "conditions": { "ready": true, "serving": true, "terminating": false } }],
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
        }),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "kubernetes" },
            "spec": { "cidrs": ["10.96.0.0/16", "fd00:96::/108"] },
        }),
    ]
}

/// All places in a value, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                places(item, &format!("{at}/{index}"), found);
            }
        }
        Value::Object(members) => {
            for (key, member) in members {
                places(member, &format!("{at}/{key}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A valid object with one part replaced.
fn spoiled() -> impl Strategy<Value = Value> {
    (prop::sample::select(samples()), any::<prop::sample::Index>(), any_json()).prop_map(|(mut value, place, part)| {
        let mut found = Vec::new();
        places(&value, "", &mut found);
        if let Some(old) = value.pointer_mut(&found[place.index(found.len())]) {
            *old = part;
        }
        value
    })
}

fn check(value: &Value) {
    let _ = kind_ignored(value);
    for part in flatten(value.clone()) {
        let _ = object(&part);
    }
    for kind in Kind::ALL {
        match object_of(kind, value) {
            Ok(object) => assert_eq!(object.kind(), kind),
            Err(rejected) => {
                assert!(!rejected.field.is_empty() && !rejected.message.is_empty());
                let readable = rejected.name.is_some();
                assert_eq!(rejected.isolate.is_some(), readable && kind == Kind::Policy);
            }
        }
    }
}

#[test]
fn the_samples_are_valid() {
    for sample in samples() {
        object(&sample).expect("valid");
    }
}

proptest! {
    #[test]
    fn arbitrary_json_never_panics(value in any_json()) {
        check(&value);
    }

    #[test]
    fn a_valid_object_with_any_part_replaced_never_panics(value in spoiled()) {
        check(&value);
    }

    #[test]
    fn d15_a_rejected_policy_isolates_at_least_the_directions_that_a_valid_one_would(value in spoiled()) {
        let kept = samples().remove(0);
        // Only what stands in the rules is broken here, so selector and types can be read.
        let mut broken = kept.clone();
        broken["spec"]["egress"] = value;
        if let Err(Rejected { isolate: Some(isolation), .. }) = object(&broken) {
            let Ok(Object::Policy(whole)) = object(&kept) else { panic!("the sample is a policy") };
            prop_assert_eq!(isolation.selector, whole.selector);
            prop_assert_eq!(isolation.ingress, Some(vec![]));
            prop_assert_eq!(isolation.egress, Some(vec![]));
        }
    }
}
