use super::*;
use crate::model::{EndpointPort, TargetPort};

#[track_caller]
fn service(spec: Value, status: Value) -> Service {
    let manifest = json!({ "metadata": { "namespace": "shop", "name": "web" }, "spec": spec, "status": status });
    match object_of(Kind::Service, &manifest) {
        Ok(Object::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

fn texts(addresses: &[std::net::IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn a_service_has_cluster_external_and_balancer_addresses() {
    let service = service(
        json!({
            "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::a"], "externalIPs": ["192.0.2.1"],
            "selector": { "app": "web" },
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053, "targetPort": "dns" },
                { "name": "http", "port": 80, "nodePort": 0, "targetPort": 8080 },
                { "name": "https", "port": 443 },
            ],
        }),
        json!({ "loadBalancer": { "ingress": [{ "ip": "198.51.100.7" }, { "hostname": "lb.example" }] } }),
    );
    assert_eq!(texts(&service.addresses), ["10.96.0.10", "fd00::a", "192.0.2.1", "198.51.100.7"]);
    assert_eq!(service.selector.get("app").map(String::as_str), Some("web"));
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.protocol, port.port, port.node_port, port.target.clone()))
        .collect();
    assert_eq!(
        ports,
        [
            ("dns", Protocol::Udp, 53, 30053, TargetPort::Named("dns".to_owned())),
            ("http", Protocol::Tcp, 80, 0, TargetPort::Number(8080)),
            ("https", Protocol::Tcp, 443, 0, TargetPort::Number(443)),
        ]
    );
}

#[test]
fn what_proxies_pass_by_has_no_address() {
    let external = json!(["192.0.2.1"]);
    for spec in [
        json!({ "clusterIP": "None", "clusterIPs": ["None"], "externalIPs": external }),
        json!({ "externalIPs": external }),
        json!({ "type": "ExternalName", "clusterIP": "10.96.0.10", "externalIPs": external }),
    ] {
        assert_eq!(texts(&service(spec.clone(), Value::Null).addresses), [""; 0], "{spec}");
    }
}

#[test]
fn a_bad_service_is_rejected_at_the_exact_field() {
    for (spec, field) in [
        (json!({ "externalIPs": ["x"] }), "spec.externalIPs[0]"),
        (json!({ "ports": [{}] }), "spec.ports[0].port"),
        (json!({ "ports": [{ "port": 1, "nodePort": -1 }] }), "spec.ports[0].nodePort"),
        (json!({ "ports": [{ "port": 1, "targetPort": "not a name" }] }), "spec.ports[0].targetPort"),
        (json!({ "ports": [{ "port": 1, "targetPort": 65536 }] }), "spec.ports[0].targetPort"),
        (json!({ "ports": [{ "port": 1, "name": "a.b" }] }), "spec.ports[0].name"),
        (json!({ "selector": { "app": 1 } }), "spec.selector[app]"),
    ] {
        let manifest = json!({ "metadata": { "name": "web" }, "spec": spec });
        assert_eq!(object_of(Kind::Service, &manifest).expect_err("invalid").field, field);
    }
}

fn slice(endpoints: Value, ports: Value, address_type: &str) -> Result<EndpointSlice, String> {
    let manifest = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "namespace": "shop", "name": "web-abc", "labels": { SERVICE_NAME_LABEL: "web" } },
        "addressType": address_type, "endpoints": endpoints, "ports": ports,
    });
    match object(&manifest) {
        Ok(Object::EndpointSlice(slice)) => Ok(slice),
        Ok(other) => panic!("{other:?}"),
        Err(rejected) => Err(rejected.field),
    }
}

#[test]
fn a_slice_keeps_the_endpoints_that_a_proxy_may_pick() {
    let endpoint =
        |last: u8, conditions: Value| json!({ "addresses": [format!("10.0.0.{last}")], "conditions": conditions });
    let slice = slice(
        json!([
            endpoint(1, json!({ "ready": true, "serving": true, "terminating": false })),
            endpoint(2, json!({ "ready": false, "serving": false, "terminating": false })),
            endpoint(3, json!({ "ready": false, "serving": true, "terminating": true })),
            endpoint(4, json!({ "ready": false, "serving": false, "terminating": true })),
            endpoint(5, json!({ "ready": null, "serving": null })),
            endpoint(6, Value::Null),
            endpoint(7, json!({ "ready": false })),
            endpoint(8, json!({ "ready": true, "terminating": true })),
        ]),
        json!([{ "name": "http", "port": 80 }, { "name": "any" }, { "port": 53, "protocol": "UDP" }]),
        "IPv4",
    )
    .expect("valid");
    assert_eq!((slice.name.to_string().as_str(), slice.service.as_str()), ("shop/web-abc", "web"));
    assert_eq!(texts(&slice.addresses), ["10.0.0.1", "10.0.0.3", "10.0.0.5", "10.0.0.6", "10.0.0.8"]);
    let port = |name: &str, protocol, port| EndpointPort { name: name.to_owned(), protocol, port };
    assert_eq!(slice.ports, [port("http", Protocol::Tcp, 80), port("", Protocol::Udp, 53)]);
}

#[test]
fn a_slice_of_names_has_no_address_and_a_bad_one_is_rejected() {
    let named = slice(json!([{ "addresses": ["web.example"] }]), Value::Null, "FQDN").expect("valid");
    assert_eq!(texts(&named.addresses), [""; 0]);
    let bad = slice(json!([{ "addresses": ["10.0.0.1", "x"] }]), Value::Null, "IPv4");
    assert_eq!(bad, Err("endpoints[0].addresses[1]".to_owned()));
    assert_eq!(slice(json!([]), json!([{ "port": 0 }]), "IPv4"), Err("ports[0].port".to_owned()));
}

#[test]
fn a_service_range_is_masked_and_of_no_namespace() {
    let range = |cidrs: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": { "name": "kubernetes" }, "spec": { "cidrs": cidrs },
        })
    };
    let Ok(Object::ServiceCidr(both)) = object(&range(json!(["10.96.0.1/16", "fd00:96::1/108"]))) else {
        panic!("range")
    };
    let cidrs: Vec<String> = both.cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(
        (both.name.as_str(), cidrs.as_slice()),
        ("kubernetes", &["10.96.0.0/16".to_owned(), "fd00:96::/108".to_owned()][..])
    );
    assert_eq!(object(&range(json!(["10.96.0.0/33"]))).expect_err("invalid").field, "spec.cidrs[0]");
}
