//! The nine pods of the upstream NetworkPolicy suite, and cases over them: namespaces x, y and z, each with pods a, b and
//! c, which serve TCP, UDP and SCTP on ports 80 and 81.
//!
//! A [`case::Case`] is written down as a list of manifests for each of its steps, and what its author expects by hand;
//! [`run`] puts every step in force on a node with a real agent, tries every connection by real packets, and holds the
//! answer against the oracle, and against what was expected by hand.
//!
//! Addresses are fixed, so that a case can name them before anything runs. Those of x are in the node's own pod CIDR, so
//! that its pods reach each other over the bridge; those of y and z are not, and are routed. Blocks of the length of
//! [`Family::wide`] tell the namespaces apart, and blocks of [`Family::narrow`] tell `a` from `b` and `c`.

pub mod case;
pub mod run;
pub mod services;
pub mod upstream;

use std::net::IpAddr;

use ipnet::IpNet;
use netpol_policy::model::Protocol;
use netpol_testbed::sandbox::Families;
use netpol_testbed::sandbox::cells::Port;
use serde_json::{Value, json};

/// All pods, as `namespace/name`.
pub const PODS: [&str; 9] = ["x/a", "x/b", "x/c", "y/a", "y/b", "y/c", "z/a", "z/b", "z/c"];

/// The protocols that each pod serves, on each of the [`NUMBERS`].
pub const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The ports that each pod serves in each of the [`PROTOCOLS`].
pub const NUMBERS: [u16; 2] = [80, 81];

/// TCP 80.
pub const TCP_80: Port = Port { protocol: Protocol::Tcp, number: 80 };

/// TCP 81.
pub const TCP_81: Port = Port { protocol: Protocol::Tcp, number: 81 };

/// The label of a namespace's name, which the API server sets.
pub const NAME: &str = "kubernetes.io/metadata.name";

/// The label of a pod that bears its name.
pub const POD: &str = "pod";

/// The label of a namespace that bears its name, beside [`NAME`].
pub const NS: &str = "ns";

/// An address family of the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The families that there are, in the order in which pods report their addresses.
    #[must_use]
    pub fn of(families: Families) -> &'static [Self] {
        match families {
            Families::Ipv4 => &[Self::V4],
            Families::Ipv6 => &[Self::V6],
            Families::Dual => &[Self::V4, Self::V6],
        }
    }

    /// Prefix length of a block of one namespace's pods.
    #[must_use]
    pub const fn wide(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    /// Prefix length of a block of pods `b` and `c` of one namespace, and of no pod `a`.
    #[must_use]
    pub const fn narrow(self) -> u8 {
        match self {
            Self::V4 => 28,
            Self::V6 => 124,
        }
    }

    /// Prefix length of a block of one address.
    #[must_use]
    pub const fn host(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// A block that all of the nine pods are in.
    #[must_use]
    pub const fn all_pods(self) -> &'static str {
        match self {
            Self::V4 => "10.244.0.0/16",
            Self::V6 => "fd00:10:244::/48",
        }
    }

    /// The block of every address.
    #[must_use]
    pub const fn everything(self) -> &'static str {
        match self {
            Self::V4 => "0.0.0.0/0",
            Self::V6 => "::/0",
        }
    }

    /// A block of two addresses that nobody has.
    #[must_use]
    pub const fn nobody(self) -> &'static str {
        match self {
            Self::V4 => "0.0.0.0/31",
            Self::V6 => "::/127",
        }
    }

    /// A pod's address.
    ///
    /// # Panics
    /// The pod is none of [`PODS`].
    #[must_use]
    pub fn address(self, pod: &str) -> IpAddr {
        let (namespace, name) = split(pod);
        let third = ["x", "y", "z"].iter().position(|other| *other == namespace).expect("one of the namespaces");
        let last = match name {
            "a" => 10,
            "b" => 20,
            "c" => 21,
            _ => panic!("{pod} is none of the nine pods"),
        };
        let text = match self {
            Self::V4 => format!("10.244.{third}.{last}"),
            // The same digits, so that ::20 and ::21 share a block of 16 addresses and ::10 is outside of it.
            Self::V6 => format!("fd00:10:244:{third}::{last}"),
        };
        text.parse().expect("address")
    }

    /// The block of this length that a pod is in, without host bits.
    ///
    /// # Panics
    /// As [`Family::address`], or the length is not this family's.
    #[must_use]
    pub fn block(self, pod: &str, length: u8) -> String {
        IpNet::new(self.address(pod), length).expect("a length of this family").trunc().to_string()
    }
}

/// Namespace and name of a pod.
///
/// # Panics
/// It is written otherwise than `namespace/name`.
#[must_use]
pub fn split(pod: &str) -> (&str, &str) {
    pod.split_once('/').expect("namespace/name")
}

/// Namespace of a pod.
///
/// # Panics
/// As [`split`].
#[must_use]
pub fn namespace(pod: &str) -> &str {
    split(pod).0
}

/// The name of a container's port, as upstream has it.
#[must_use]
pub fn port_name(port: Port) -> String {
    format!("serve-{}-{}", port.number, port.protocol.name().to_lowercase())
}

/// The six ports that each pod serves.
pub fn ports() -> impl Iterator<Item = Port> {
    NUMBERS.into_iter().flat_map(|number| PROTOCOLS.map(|protocol| Port { protocol, number }))
}

/// The manifest of a namespace.
#[must_use]
pub fn namespace_object(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": { NS: name } } })
}

/// The manifest of a pod that serves all ports, with the address that the node gives it.
///
/// # Panics
/// As [`split`].
#[must_use]
pub fn pod_object(pod: &str) -> Value {
    let (namespace, name) = split(pod);
    let container = |port: Port| {
        json!({
            "name": format!("cont-{}-{}", port.number, port.protocol.name().to_lowercase()),
            "ports": [{ "containerPort": port.number, "name": port_name(port), "protocol": port.protocol.name() }],
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "labels": { POD: name } },
        "spec": { "containers": ports().map(container).collect::<Vec<_>>() },
    })
}

/// The namespaces and pods, before any case has changed them.
#[must_use]
pub fn objects(families: Families) -> Vec<Value> {
    let mut objects: Vec<Value> = ["x", "y", "z"].map(namespace_object).to_vec();
    for pod in PODS {
        let addresses = Family::of(families).iter().map(|family| json!({ "ip": family.address(pod) }));
        let mut object = pod_object(pod);
        object["status"] = json!({ "podIPs": addresses.collect::<Vec<_>>() });
        objects.push(object);
    }
    objects
}

/// A selector of pods by their names.
#[must_use]
pub fn pod(name: &str) -> Value {
    json!({ "matchLabels": { POD: name } })
}

/// A selector of a namespace by the label that each has.
#[must_use]
pub fn ns(name: &str) -> Value {
    json!({ "matchLabels": { NAME: name } })
}

/// A selector with one expression.
#[must_use]
pub fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] })
}

/// A policy for ingress to the pods selected.
#[must_use]
pub fn ingress(selector: Value, rules: Value) -> Value {
    json!({ "podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules })
}

/// A policy for egress from the pods selected.
#[must_use]
pub fn egress(selector: Value, rules: Value) -> Value {
    json!({ "podSelector": selector, "policyTypes": ["Egress"], "egress": rules })
}

/// Peers by address: one block for each family.
#[must_use]
pub fn blocks(families: Families, cidr: impl Fn(Family) -> String) -> Vec<Value> {
    Family::of(families).iter().map(|family| json!({ "ipBlock": { "cidr": cidr(*family) } })).collect()
}

/// As [`blocks`], with one exception taken out of each.
#[must_use]
pub fn blocks_except(families: Families, cidr_and_except: impl Fn(Family) -> (String, String)) -> Vec<Value> {
    let block = |family: &Family| {
        let (cidr, except) = cidr_and_except(*family);
        json!({ "ipBlock": { "cidr": cidr, "except": [except] } })
    };
    Family::of(families).iter().map(block).collect()
}
