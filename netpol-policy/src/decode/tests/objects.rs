use super::*;
use crate::model::{ContainerPort, HostPort, Phase, Pod};

fn pod_manifest(spec: Value, status: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": "shop", "name": "web-0", "uid": "u", "labels": { "app": "web" } },
        "spec": spec,
        "status": status,
    })
}

#[track_caller]
fn pod(spec: Value, status: Value) -> Pod {
    match object(&pod_manifest(spec, status)) {
        Ok(Object::Pod(pod)) => pod,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn pod_error(spec: Value, status: Value) -> String {
    object(&pod_manifest(spec, status)).expect_err("invalid").field
}

#[track_caller]
fn addresses(status: Value) -> Vec<String> {
    pod(json!({}), status).addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn b9_a_pod_has_all_of_its_pod_ips() {
    let both = json!({ "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "2001:db8:0::1" }] });
    assert_eq!(addresses(both), ["10.0.0.1", "2001:db8::1"]);
    assert_eq!(addresses(json!({ "podIP": "10.0.0.1" })), ["10.0.0.1"]);
    assert_eq!(addresses(json!({ "podIP": "10.0.0.1", "podIPs": [] })), ["10.0.0.1"]);
    assert_eq!(addresses(json!({ "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "::ffff:10.0.0.1" }] })), ["10.0.0.1"]);
    for none in [json!(null), json!({}), json!({ "podIP": "" }), json!({ "podIPs": null }), json!({ "podIPs": [{}] })] {
        assert!(addresses(none).is_empty());
    }
}

#[test]
fn host_ports_are_of_the_node_unless_the_pod_is_on_its_network() {
    let spec = json!({ "containers": [{ "ports": [
        { "containerPort": 80, "hostPort": 8080 },
        { "containerPort": 53, "hostPort": 53, "hostIP": "192.0.2.1", "protocol": "UDP" },
        { "containerPort": 81, "hostPort": 8081, "hostIP": "0.0.0.0" },
        { "containerPort": 82, "hostPort": 0 },
        { "containerPort": 83 },
    ] }] });
    let with = |address: Option<&str>, protocol, port, container_port| HostPort {
        address: address.map(|address| address.parse().expect("address")),
        protocol,
        port,
        container_port,
    };
    assert_eq!(
        pod(spec.clone(), json!({})).host_ports,
        [
            with(None, Protocol::Tcp, 8080, 80),
            with(Some("192.0.2.1"), Protocol::Udp, 53, 53),
            with(None, Protocol::Tcp, 8081, 81),
        ]
    );
    let mut of_the_node = spec.clone();
    of_the_node["hostNetwork"] = json!(true);
    assert_eq!(pod(of_the_node, json!({})).host_ports, []);
    for (member, wrong) in [("hostPort", json!(65536)), ("hostIP", json!("node"))] {
        let mut spec = spec.clone();
        spec["containers"][0]["ports"][1][member] = wrong;
        assert_eq!(pod_error(spec, json!({})), format!("spec.containers[0].ports[1].{member}"));
    }
}

#[test]
fn an_unreadable_pod_address_is_rejected_by_index() {
    assert_eq!(pod_error(json!({}), json!({ "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "x" }] })), "status.podIPs[1].ip");
    assert_eq!(pod_error(json!({}), json!({ "podIP": "10.0.0.1/24" })), "status.podIP");
    assert_eq!(pod_error(json!({}), json!({ "podIPs": ["10.0.0.1"] })), "status.podIPs[0]");
}

#[test]
fn p7_ports_are_those_of_containers_and_restartable_init_containers() {
    let ports = pod(
        json!({
            "initContainers": [
                { "ports": [{ "name": "setup", "containerPort": 1 }] },
                { "restartPolicy": "Always", "ports": [{ "name": "proxy", "containerPort": 15001 }] },
            ],
            "containers": [
                { "ports": [{ "name": "dns", "containerPort": 53, "protocol": "UDP" }, { "containerPort": 53 }] },
                { "ports": null },
                {},
            ],
            "ephemeralContainers": [{ "ports": [{ "name": "debug", "containerPort": 2 }] }],
        }),
        json!({}),
    )
    .ports;
    let port = |name: Option<&str>, protocol, port| ContainerPort { name: name.map(str::to_owned), protocol, port };
    assert_eq!(
        ports,
        [
            port(Some("dns"), Protocol::Udp, 53),
            port(None, Protocol::Tcp, 53),
            port(Some("proxy"), Protocol::Tcp, 15001)
        ]
    );
}

#[test]
fn invalid_container_ports_are_rejected_at_the_exact_field() {
    let table = [
        (json!({}), "containerPort"),
        (json!({ "containerPort": 0 }), "containerPort"),
        (json!({ "containerPort": 70000 }), "containerPort"),
        (json!({ "containerPort": "80" }), "containerPort"),
        (json!({ "containerPort": 80, "name": "Not_Ok" }), "name"),
        (json!({ "containerPort": 80, "protocol": "QUIC" }), "protocol"),
    ];
    for (port, field) in table {
        let spec = json!({ "containers": [{}, { "ports": [port] }] });
        assert_eq!(pod_error(spec, json!({})), format!("spec.containers[1].ports[0].{field}"));
    }
}

#[test]
fn w1_host_network_pods_take_no_part() {
    assert!(!pod(json!({ "hostNetwork": true }), json!({})).takes_part());
    assert!(pod(json!({ "hostNetwork": false }), json!({})).takes_part());
    assert!(pod(json!({ "hostNetwork": null }), json!({})).takes_part());
    assert_eq!(pod_error(json!({ "hostNetwork": "yes" }), json!({})), "spec.hostNetwork");
}

#[test]
fn w6_succeeded_and_failed_pods_are_finished_and_all_others_live() {
    for (phase, expected) in [
        (json!("Succeeded"), Phase::Finished),
        (json!("Failed"), Phase::Finished),
        (json!("Running"), Phase::Live),
        (json!("Pending"), Phase::Live),
        (json!("Unknown"), Phase::Live),
        (json!(null), Phase::Live),
    ] {
        assert_eq!(pod(json!({}), json!({ "phase": phase })).phase, expected, "{phase}");
    }
}

#[test]
fn w7_a_terminating_pod_is_live() {
    let mut manifest = pod_manifest(json!({}), json!({ "phase": "Running", "podIP": "10.0.0.1" }));
    manifest["metadata"]["deletionTimestamp"] = json!("2026-08-22T10:00:00Z");
    let Ok(Object::Pod(pod)) = object(&manifest) else { panic!("pod") };
    assert!(pod.takes_part());
    assert_eq!(pod.addresses.len(), 1);
}

#[test]
fn the_address_check_is_off_only_where_the_annotation_says_off() {
    for (annotations, expected) in [
        (json!({ "netpol-agent.dev/address-check": "off" }), true),
        (json!({ "netpol-agent.dev/address-check": "on" }), false),
        (json!({ "netpol-agent.dev/address-check": "" }), false),
        (json!(null), false),
    ] {
        let mut manifest = pod_manifest(json!({}), json!({}));
        manifest["metadata"]["annotations"] = annotations;
        let Ok(Object::Pod(pod)) = object(&manifest) else { panic!("pod") };
        assert_eq!(pod.address_check_off, expected);
    }
}

#[test]
fn a_pod_has_uid_node_labels_and_start_time() {
    let Pod { name, uid, labels, node, started, .. } =
        pod(json!({ "nodeName": "n1" }), json!({ "startTime": "1970-01-01T00:01:00Z" }));
    assert_eq!((name, uid.as_str(), node.as_str()), (ObjectName::new("shop", "web-0"), "u", "n1"));
    assert_eq!(labels.get("app").map(String::as_str), Some("web"));
    assert_eq!(started, Some(60));
    assert_eq!(pod(json!({}), json!({})).started, None);
    assert_eq!(pod_error(json!({}), json!({ "startTime": "yesterday" })), "status.startTime");
}

#[test]
fn a15_a_namespace_bears_its_name_as_a_label_whatever_it_says() {
    for labels in [json!(null), json!({}), json!({ NAMESPACE_NAME_LABEL: "other" })] {
        let manifest =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "labels": labels } });
        let Ok(Object::Namespace(namespace)) = object(&manifest) else { panic!("namespace") };
        assert_eq!(namespace.labels.get(NAMESPACE_NAME_LABEL).map(String::as_str), Some("shop"));
    }
}

#[test]
fn a17_pod_and_policy_names_may_have_dots_and_253_characters_but_namespaces_not() {
    let named = |kind: Kind, name: &str| match object_of(kind, &json!({ "metadata": { "name": name } })) {
        Ok(object) => Ok(object.name().name),
        Err(rejected) => Err(rejected.field),
    };
    let long = "a".repeat(253);
    for kind in [Kind::Pod, Kind::Policy, Kind::Node, Kind::EndpointSlice, Kind::ServiceCidr] {
        for good in ["web.v2-0", long.as_str()] {
            assert_eq!(named(kind, good).expect("valid"), good);
        }
        assert_eq!(named(kind, &"a".repeat(254)).expect_err("long"), "metadata.name");
    }
    for kind in [Kind::Namespace, Kind::Service] {
        assert_eq!(named(kind, "a.b").expect_err("dot"), "metadata.name");
        assert_eq!(named(kind, &"a".repeat(64)).expect_err("long"), "metadata.name");
    }
}

#[test]
fn metadata_is_checked_at_the_exact_field() {
    let table = [
        (json!(null), "metadata.name"),
        (json!({ "generateName": "web-" }), "metadata.name"),
        (json!({ "name": "A" }), "metadata.name"),
        (json!({ "name": "a", "namespace": "a.b" }), "metadata.namespace"),
        (json!({ "name": "a", "namespace": 1 }), "metadata.namespace"),
        (json!({ "name": "a", "labels": { "version": 1.5 } }), "metadata.labels[version]"),
        (json!({ "name": "a", "labels": { "a/b/c": "x" } }), "metadata.labels[a/b/c]"),
        (json!({ "name": "a", "labels": { "a": "-" } }), "metadata.labels[a]"),
        (json!({ "name": "a", "annotations": { "a": true } }), "metadata.annotations[a]"),
        (json!({ "name": "a", "uid": 7 }), "metadata.uid"),
        (json!([]), "metadata"),
    ];
    for (metadata, field) in table {
        let manifest = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata });
        assert_eq!(object(&manifest).expect_err("invalid").field, field, "{metadata}");
    }
}

#[test]
fn namespaced_objects_default_to_the_namespace_default() {
    for kind in Kind::ALL {
        let Ok(object) = object_of(kind, &json!({ "metadata": { "name": "a" } })) else { panic!("{kind}") };
        let expected = if kind.is_namespaced() { "default" } else { "" };
        assert_eq!((object.name().namespace.as_str(), object.kind()), (expected, kind));
    }
}

#[test]
fn a_node_has_its_internal_and_external_addresses_and_no_unreadable_one_spoils_them() {
    let manifest = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
        "status": { "addresses": [
            { "type": "Hostname", "address": "192.0.2.99" },
            { "type": "InternalIP", "address": "192.0.2.1" },
            { "type": "InternalIP", "address": "not an address" },
            { "type": "InternalIP" },
            { "type": "InternalIP", "address": "2001:db8::1" },
            { "type": "ExternalIP", "address": "198.51.100.1" },
            { "type": "ExternalIP", "address": "192.0.2.1" },
        ]},
    });
    let Ok(Object::Node(node)) = object(&manifest) else { panic!("node") };
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.1", "2001:db8::1", "198.51.100.1"]);
}

#[test]
fn a_nodes_overlay_is_where_flannel_announces_it_and_at_the_first_two_addresses_of_its_ranges() {
    let manifest = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "n1", "annotations": {
            "flannel.alpha.coreos.com/public-ip": "192.0.2.1",
            "flannel.alpha.coreos.com/public-ip-overwrite": "198.51.100.7",
            "flannel.alpha.coreos.com/public-ipv6": "not an address",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
        }},
        "spec": { "podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24", "fd00:10:244:2::/64", "no range", "10.9.9.9/32"] },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
    });
    let Ok(Object::Node(node)) = object(&manifest) else { panic!("node") };
    let overlay: Vec<String> = node.overlay.iter().map(ToString::to_string).collect();
    let expected = ["10.9.9.9", "10.244.2.0", "10.244.2.1", "198.51.100.7", "fd00:10:244:2::", "fd00:10:244:2::1"];
    assert_eq!(overlay, expected);
    let broadcasts: Vec<String> = node.broadcasts.iter().map(ToString::to_string).collect();
    assert_eq!(broadcasts, ["10.244.2.255"]);
}

#[test]
fn other_kinds_and_other_groups_are_ignored_and_what_has_no_kind_is_not() {
    let of = |version: &str, kind: &str| json!({ "apiVersion": version, "kind": kind });
    for ignored in [
        json!(null),
        of("v1", "ConfigMap"),
        of("apps/v1", "Deployment"),
        of("crd.projectcalico.org/v1", "NetworkPolicy"),
        of("serving.knative.dev/v1", "Service"),
        of("v1", "ConfigMapList"),
        of("v1", "EndpointSlice"),
        of("v1", "Endpoints"),
    ] {
        assert!(kind_ignored(&ignored), "{ignored}");
    }
    for ours in [
        of("networking.k8s.io/v1", "NetworkPolicy"),
        of("v1", "Pod"),
        of("v1", "List"),
        of("v1", "PodList"),
        of("discovery.k8s.io/v1", "EndpointSlice"),
        of("networking.k8s.io/v1beta1", "ServiceCIDR"),
        json!({ "kind": "Pod" }),
        json!({ "apiVersion": 1, "kind": "Pod" }),
        json!({ "metadata": { "name": "a" } }),
        json!({ "kind": "" }),
        json!({ "kind": 1 }),
        json!("text"),
        json!([]),
    ] {
        assert!(!kind_ignored(&ours), "{ours}");
    }
}

#[test]
fn what_is_no_object_of_ours_is_rejected_in_words() {
    let message = |value: Value| object(&value).expect_err("invalid").to_string();
    assert_eq!(message(json!("text")), "object: (root): must be an object, not a string");
    assert_eq!(message(json!({ "metadata": { "name": "a" } })), "object default/a: kind: is required");
    assert_eq!(message(json!({ "kind": 1 })), "object: kind: must be a string, not a number");
    assert_eq!(message(json!({ "kind": "List", "items": 1 })), "List: items: must be a list");
    assert_eq!(
        message(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a", "namespace": "b" } })),
        "ConfigMap b/a: kind: is not a kind that decides verdicts"
    );
}

#[test]
fn lists_are_taken_apart_and_items_of_typed_ones_inherit_their_kind() {
    let value = json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicyList", "items": [{ "metadata": { "name": "a" } }] },
        { "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "b" } },
        { "apiVersion": "v1", "kind": "List", "items": [] },
        { "apiVersion": "v1", "kind": "List", "items": null },
        { "apiVersion": "v1", "kind": "List" },
        { "apiVersion": "v1", "kind": "PodList", "items": [{ "metadata": { "name": "c" } }, null, 7] },
    ]});
    let flat = flatten(value);
    let named: Vec<String> = flat
        .iter()
        .map(|value| {
            object(value)
                .map_or_else(|error| error.to_string(), |object| format!("{} {}", object.kind(), object.name()))
        })
        .collect();
    assert_eq!(
        named,
        [
            "NetworkPolicy default/a",
            "Pod default/b",
            "Pod default/c",
            "object: kind: is required",
            "object: (root): must be an object, not a number"
        ]
    );
    let unreadable = json!({ "kind": "List", "items": "x" });
    assert_eq!(flatten(unreadable.clone()), [unreadable]);
}
