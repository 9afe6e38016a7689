//! EndpointSlices as the control plane would make them for Services that select pods: a slice for each address family
//! and each set of ports, since a named target port may be another number on each pod.
//!
//! Pods run here without probes, so one that has an address is ready; `publishNotReadyAddresses` changes nothing.
//! Names are numbered instead of random, so that a result can be repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::decode_pod;
use crate::decode::{Kind, Object, SERVICE_NAME_LABEL, meta, object_of};
use crate::model::{ObjectName, Pod, Service, ServicePort, TargetPort};

/// Who makes slices, by the label that tells which of them are whose.
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// The controller's own limit (`--max-endpoints-per-slice`).
const MOST_ENDPOINTS: usize = 100;

/// An address family, in the API's spelling and order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// A port of a slice: name, protocol, number.
type Port = (String, &'static str, u16);

/// Slices for all Services among `others` that select pods. `pod_cidrs` tell which families pods have, the first one
/// first.
pub(super) fn slices(pods: &BTreeMap<ObjectName, Value>, others: &[Value], pod_cidrs: &[IpNet]) -> Vec<Value> {
    let running: Vec<Pod> = pods.values().filter_map(|value| decode_pod(value).ok()).collect();
    let mut taken: BTreeSet<ObjectName> = others
        .iter()
        .filter(|value| Kind::of(value) == Some(Kind::EndpointSlice))
        .filter_map(|value| meta::readable_name(Kind::EndpointSlice, value))
        .collect();
    let mut slices = Vec::new();
    for value in others.iter().filter(|value| Kind::of(value) == Some(Kind::Service)) {
        // One that cannot be read is left for the decoder to refuse.
        let Ok(Object::Service(service)) = object_of(Kind::Service, value) else { continue };
        if service.selector.is_empty() || value["spec"]["type"] == "ExternalName" {
            continue;
        }
        for family in families(value, &service, pod_cidrs) {
            for (ports, endpoints) in endpoints(&service, &running, family) {
                for endpoints in endpoints.chunks(MOST_ENDPOINTS) {
                    let name = free_name(&service.name, family, &mut taken);
                    slices.push(slice(&service.name, &name, family, &ports, endpoints));
                }
            }
        }
    }
    slices
}

/// The families of a Service: those it names, else those of its cluster addresses, else what the API server would give
/// it by its policy.
fn families(value: &Value, service: &Service, pod_cidrs: &[IpNet]) -> BTreeSet<Family> {
    let named =
        value["spec"]["ipFamilies"].as_array().into_iter().flatten().filter_map(|family| {
            [Family::V4, Family::V6].into_iter().find(|known| family.as_str() == Some(known.name()))
        });
    let named: BTreeSet<Family> = named.collect();
    if !named.is_empty() {
        return named;
    }
    let cluster_addresses = value["spec"]["clusterIPs"].as_array().map_or(1, Vec::len);
    let of_addresses: BTreeSet<Family> = service.addresses.iter().take(cluster_addresses).map(Family::of).collect();
    if !of_addresses.is_empty() {
        return of_addresses;
    }
    let of_pods = pod_cidrs.iter().map(|cidr| Family::of(&cidr.addr()));
    let is_dual = matches!(value["spec"]["ipFamilyPolicy"].as_str(), Some("PreferDualStack" | "RequireDualStack"));
    if is_dual { of_pods.collect() } else { of_pods.take(1).collect() }
}

/// The endpoints of a family, each set of ports with its own.
fn endpoints(service: &Service, pods: &[Pod], family: Family) -> BTreeMap<Vec<Port>, Vec<Value>> {
    let mut endpoints = BTreeMap::<Vec<Port>, Vec<Value>>::new();
    let selected = |pod: &&Pod| {
        pod.name.namespace == service.name.namespace
            && pod.phase == crate::model::Phase::Live
            && service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    };
    for pod in pods.iter().filter(selected) {
        let Some(address) = pod.addresses.iter().find(|address| Family::of(address) == family) else { continue };
        let ports = service.ports.iter().filter_map(|port| {
            let number = target(port, pod)?;
            Some((port.name.clone(), port.protocol.name(), number))
        });
        endpoints.entry(ports.collect()).or_default().push(json!({
            "addresses": [address],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": pod.node,
            "targetRef": {
                "kind": Kind::Pod.name(),
                "namespace": pod.name.namespace,
                "name": pod.name.name,
                "uid": pod.uid,
            },
        }));
    }
    endpoints
}

/// The pod's number for a port of a Service; `None` if it has none of that name and protocol. Of several, the first.
fn target(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Named(name) => pod
            .ports
            .iter()
            .find(|declared| declared.name.as_ref() == Some(name) && declared.protocol == port.protocol)
            .map(|declared| declared.port),
    }
}

fn free_name(service: &ObjectName, family: Family, taken: &mut BTreeSet<ObjectName>) -> String {
    let family = family.name().to_lowercase();
    for number in 0_u32.. {
        let name = format!("{}-{family}-{number}", service.name);
        if taken.insert(ObjectName::new(&service.namespace, &name)) {
            return name;
        }
    }
    unreachable!("there are more numbers than names taken")
}

fn slice(service: &ObjectName, name: &str, family: Family, ports: &[Port], endpoints: &[Value]) -> Value {
    let port = |(name, protocol, port): &Port| json!({ "name": name, "protocol": protocol, "port": port });
    json!({
        "apiVersion": Kind::EndpointSlice.api_version(),
        "kind": Kind::EndpointSlice.name(),
        "metadata": {
            "namespace": service.namespace,
            "name": name,
            "labels": { SERVICE_NAME_LABEL: service.name, MANAGED_BY_LABEL: CONTROLLER },
        },
        "addressType": family.name(),
        "endpoints": endpoints,
        "ports": ports.iter().map(port).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Assignments, ExpandOptions, expand};
    use super::*;
    use crate::model::EndpointSlice;

    fn pod(name: &str, spec: Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": name, "labels": { "app": "web", "name": name } },
            "spec": spec,
        })
    }

    fn port(name: &str, protocol: &str, number: u16) -> Value {
        json!({ "containers": [{ "ports": [{ "name": name, "protocol": protocol, "containerPort": number }] }] })
    }

    fn service(spec: Value) -> Value {
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "shop", "name": "web" }, "spec": spec })
    }

    /// The slices of an expansion, each as `name service addresses ports`.
    #[track_caller]
    fn expanded(values: &[Value]) -> Vec<String> {
        let options = ExpandOptions {
            node: "n1".to_owned(),
            node_addresses: vec!["192.0.2.1".parse().expect("address"), "2001:db8::1".parse().expect("address")],
            pod_cidrs: vec!["10.244.0.0/24".parse().expect("cidr"), "fd00:10:244::/64".parse().expect("cidr")],
            started: 60,
            previous: Assignments::new(),
        };
        let expanded = expand(values, &options);
        assert_eq!(expanded.rejected, []);
        let slices = expanded.objects.iter().filter(|value| Kind::of(value) == Some(Kind::EndpointSlice));
        let text = |value: &Value| {
            let Ok(Object::EndpointSlice(EndpointSlice { name, service, addresses, ports })) =
                object_of(Kind::EndpointSlice, value)
            else {
                panic!("{value}")
            };
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let ports: Vec<String> =
                ports.iter().map(|port| format!("{}:{}/{}", port.name, port.port, port.protocol.name())).collect();
            format!("{name} of {service}: {} at {}", ports.join(" "), addresses.join(" "))
        };
        slices.map(text).collect()
    }

    #[test]
    fn a_service_gets_the_addresses_of_the_pods_that_it_selects() {
        let finished = {
            let mut pod = pod("c", json!({}));
            pod["status"] = json!({ "phase": "Succeeded" });
            pod
        };
        let mut elsewhere = pod("d", json!({}));
        elsewhere["metadata"]["namespace"] = json!("bank");
        let mut unlike = pod("e", json!({}));
        unlike["metadata"]["labels"]["app"] = json!("db");
        let pods = [pod("a", json!({})), pod("b", json!({ "hostNetwork": true })), finished, elsewhere, unlike];
        let spec = json!({ "selector": { "app": "web" }, "clusterIP": "10.96.0.1", "ports": [{ "port": 80, "targetPort": 8080 }] });
        let values: Vec<Value> = pods.into_iter().chain([service(spec)]).collect();
        assert_eq!(expanded(&values), ["shop/web-ipv4-0 of web: :8080/TCP at 10.244.0.3 192.0.2.1"]);
    }

    #[test]
    fn pods_that_resolve_a_named_target_port_alike_share_a_slice() {
        let spec = json!({ "selector": { "app": "web" }, "ports": [
            { "name": "web", "port": 80, "targetPort": "http" },
            { "name": "dns", "port": 53, "protocol": "UDP" },
        ] });
        let values = [
            pod("a", port("http", "TCP", 8080)),
            pod("b", port("http", "TCP", 9090)),
            pod("c", port("http", "TCP", 8080)),
            pod("d", port("http", "UDP", 8080)),
            service(spec),
        ];
        assert_eq!(
            expanded(&values),
            [
                "shop/web-ipv4-0 of web: dns:53/UDP at 10.244.0.5",
                "shop/web-ipv4-1 of web: web:8080/TCP dns:53/UDP at 10.244.0.2 10.244.0.4",
                "shop/web-ipv4-2 of web: web:9090/TCP dns:53/UDP at 10.244.0.3",
            ]
        );
    }

    #[test]
    fn a_service_of_two_families_gets_slices_of_both() {
        let both =
            ["shop/web-ipv4-0 of web: :80/TCP at 10.244.0.2", "shop/web-ipv6-0 of web: :80/TCP at fd00:10:244::2"];
        for (member, families) in [
            ("ipFamilies", json!(["IPv6", "IPv4"])),
            ("clusterIPs", json!(["fd00:96::1", "10.96.0.1"])),
            ("ipFamilyPolicy", json!("PreferDualStack")),
        ] {
            let mut service = service(json!({ "selector": { "app": "web" }, "ports": [{ "port": 80 }] }));
            service["spec"][member] = families;
            assert_eq!(expanded(&[pod("a", json!({})), service]), both, "{member}");
        }
    }

    #[test]
    fn who_selects_nothing_gets_nothing_and_what_is_written_stays() {
        let written = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "namespace": "shop", "name": "web-ipv4-0", "labels": { SERVICE_NAME_LABEL: "web" } },
            "addressType": "IPv4", "endpoints": [{ "addresses": ["198.51.100.7"] }], "ports": [{ "port": 1 }],
        });
        let own = "shop/web-ipv4-0 of web: :1/TCP at 198.51.100.7";
        let pod = pod("a", json!({}));
        for spec in [
            json!({ "ports": [{ "port": 80 }] }),
            json!({ "selector": {}, "ports": [{ "port": 80 }] }),
            json!({ "selector": { "app": "web" }, "type": "ExternalName" }),
            json!({ "selector": { "app": "other" }, "ports": [{ "port": 80 }] }),
        ] {
            assert_eq!(expanded(&[pod.clone(), written.clone(), service(spec)]), [own]);
        }
        let headless = service(json!({ "selector": { "app": "web" }, "clusterIP": "None" }));
        assert_eq!(expanded(&[pod, written, headless]), [own, "shop/web-ipv4-1 of web:  at 10.244.0.2"]);
    }

    #[test]
    fn no_slice_has_more_than_a_hundred_endpoints() {
        let pods = (0..130).map(|number| pod(&format!("p{number}"), json!({})));
        let spec = json!({ "selector": { "app": "web" }, "ports": [{ "port": 80 }] });
        let values: Vec<Value> = pods.chain([service(spec)]).collect();
        let sizes: Vec<usize> = expanded(&values).iter().map(|text| text.matches("10.244.0.").count()).collect();
        assert_eq!(sizes, [100, 30]);
    }
}
