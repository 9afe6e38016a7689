//! Services as cases declare them, with the endpoint slices that a controller would make.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netpol_policy::model::Protocol;
use serde_json::{Value, json};

use super::town::Town;

/// The port of every Service here: never one that a pod listens on.
pub(crate) const PORT: u16 = 80;

/// A Service of both families.
#[derive(Clone, Debug)]
pub(crate) struct Service<'a> {
    pub(crate) name: &'a str,
    pub(crate) protocol: Protocol,
    /// Merged into `spec`.
    pub(crate) spec: Value,
    /// Pods of [`Town`] with the port that each is reached at.
    pub(crate) backends: Vec<(&'a str, u16)>,
}

impl<'a> Service<'a> {
    /// A Service with a ClusterIP.
    pub(crate) fn new(name: &'a str, protocol: Protocol, backends: &[(&'a str, u16)]) -> Self {
        Self { name, protocol, spec: json!({}), backends: backends.to_vec() }
    }

    /// With more in `spec`.
    pub(crate) fn with(self, spec: Value) -> Self {
        Self { spec, ..self }
    }

    /// Creates it; the agent and the proxy both know it when this returns.
    pub(crate) fn expose(&self, town: &Town) -> Exposed {
        town.apply(&self.object());
        for slice in self.slices(town) {
            town.apply(&slice);
        }
        self.proxied(town)
    }

    /// Creates it without waiting for the agent; returns when the proxy knows it.
    pub(crate) fn expose_unseen(&self, town: &Town) -> Exposed {
        let _version = town.apply_unseen(&self.object());
        for slice in self.slices(town) {
            let _version = town.apply_unseen(&slice);
        }
        self.read(town)
    }

    fn proxied(&self, town: &Town) -> Exposed {
        let exposed = self.read(town);
        for (family, address) in exposed.addresses.iter().enumerate() {
            let backends = self.reached(town, family);
            if !backends.is_empty() && self.spec.pointer("/sessionAffinity").is_none() {
                town.wait_for_proxy(SocketAddr::new(*address, PORT), self.protocol, &backends);
            }
        }
        exposed
    }

    fn read(&self, town: &Town) -> Exposed {
        let path = format!("/api/v1/namespaces/{}/services/{}", super::town::NAMESPACE, self.name);
        let stored = town.admin().get(&path).unwrap();
        let addresses =
            stored["spec"]["clusterIPs"].as_array().unwrap().iter().map(|address| address.as_str().unwrap());
        Exposed {
            addresses: addresses.filter(|address| *address != "None").map(|address| address.parse().unwrap()).collect(),
            node_port: stored["spec"]["ports"][0]["nodePort"].as_u64().map(|port| u16::try_from(port).unwrap()),
        }
    }

    /// Its backends in a family.
    pub(crate) fn reached(&self, town: &Town, family: usize) -> BTreeSet<SocketAddr> {
        self.backends.iter().map(|(pod, port)| SocketAddr::new(town.address(pod, family), *port)).collect()
    }

    fn object(&self) -> Value {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": self.name },
            "spec": {
                "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{ "name": "main", "protocol": self.protocol.name(), "port": PORT, "targetPort": "http" }],
            },
        });
        if let (Some(spec), Some(more)) = (object["spec"].as_object_mut(), self.spec.as_object()) {
            spec.extend(more.clone());
        }
        object
    }

    /// One slice for each family and port, as the controller makes them; at least one of each family.
    fn slices(&self, town: &Town) -> Vec<Value> {
        let mut slices = Vec::new();
        for (family, kind) in ["IPv4", "IPv6"].into_iter().enumerate() {
            let mut by_port: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
            for (pod, port) in &self.backends {
                by_port.entry(*port).or_default().push(pod);
            }
            if by_port.is_empty() {
                let _none = by_port.insert(0, Vec::new());
            }
            for (number, (port, pods)) in by_port.into_iter().enumerate() {
                let endpoint = |pod: &&str| {
                    let node = if ["web-3", "web-4"].contains(pod) { "node-2" } else { "node-1" };
                    json!({
                        "addresses": [town.address(pod, family)], "nodeName": node,
                        "conditions": { "ready": true, "serving": true, "terminating": false },
                        "targetRef": { "kind": "Pod", "namespace": super::town::NAMESPACE, "name": pod },
                    })
                };
                slices.push(slice(self, kind, number, port, pods.iter().map(endpoint).collect()));
            }
        }
        slices
    }
}

/// A slice of a Service.
pub(crate) fn slice(service: &Service<'_>, kind: &str, number: usize, port: u16, endpoints: Vec<Value>) -> Value {
    let ports = if port == 0 {
        json!([])
    } else {
        json!([{ "name": "main", "protocol": service.protocol.name(), "port": port }])
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
        "metadata": {
            "name": format!("{}-{}-{number}", service.name, kind.to_lowercase()),
            "labels": { "kubernetes.io/service-name": service.name },
        },
        "endpoints": endpoints, "ports": ports,
    })
}

/// A Service that exists.
#[derive(Clone, Debug)]
pub(crate) struct Exposed {
    /// ClusterIPs, IPv4 first; none if it is headless.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) node_port: Option<u16>,
}

/// A policy that isolates `client` for egress and allows what `rules` say.
pub(crate) fn egress(rules: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "client" },
        "spec": { "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Egress"], "egress": rules },
    })
}

/// A rule that allows what [`egress`] selects to reach blue pods at a port.
pub(crate) fn to_blue(port: &Value, protocol: Protocol) -> Value {
    to_color("blue", port, protocol)
}

/// The same for pods of any color.
pub(crate) fn to_color(color: &str, port: &Value, protocol: Protocol) -> Value {
    json!([{
        "to": [{ "podSelector": { "matchLabels": { "color": color } } }],
        "ports": [{ "port": port, "protocol": protocol.name() }],
    }])
}

/// A rule that allows the whole world but the cluster's pods: all addresses of Services are in it.
pub(crate) fn anywhere() -> Value {
    json!([{ "to": [
        { "ipBlock": { "cidr": "0.0.0.0/0", "except": ["10.244.0.0/16"] } },
        { "ipBlock": { "cidr": "::/0", "except": ["fd00:10:244::/56"] } },
    ]}])
}

/// The block of one address.
pub(crate) fn alone(address: &IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}
