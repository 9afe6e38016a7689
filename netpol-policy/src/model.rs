//! Kubernetes objects as far as they matter for network policy: plain, defaulted, validated.
//!
//! Terms are those of `networking.k8s.io/v1`. Optional things that change the meaning are spelled out as variants, so
//! that a default can never be applied twice or forgotten.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Label set.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectName {
    /// Joins both parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
    /// The API's spelling.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels. `kubernetes.io/metadata.name` is always among them (the API server sets it; decoding adds it).
    pub labels: Labels,
}

/// Phase of a pod, as far as it matters: a finished pod owns no address (semantics W6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Pending, Running or Unknown.
    Live,
    /// Succeeded or Failed.
    Finished,
}

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerPort {
    /// Name, if any; unique per pod only together with the protocol.
    pub name: Option<String>,
    /// Protocol, defaulted to TCP.
    pub protocol: Protocol,
    /// Number, 1–65535.
    pub port: u16,
}

/// A port of the node that is handed on to a pod (`hostPort`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// `hostIP`; `None` when absent or unspecified: every address of the node.
    pub address: Option<IpAddr>,
    /// Protocol, defaulted to TCP.
    pub protocol: Protocol,
    /// Port of the node, 1–65535.
    pub port: u16,
    /// Port of the pod, 1–65535.
    pub container_port: u16,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// UID; identity of the pod together with its interface (D12).
    pub uid: String,
    /// Labels.
    pub labels: Labels,
    /// `spec.nodeName`, empty while unscheduled.
    pub node: String,
    /// `spec.hostNetwork`: neither subject nor peer (W1).
    pub host_network: bool,
    /// Whether it still owns its addresses.
    pub phase: Phase,
    /// `status.podIPs`, all of them, in order.
    pub addresses: Vec<IpAddr>,
    /// Ports of containers and of restartable init containers (P7).
    pub ports: Vec<ContainerPort>,
    /// Host ports of the same containers; none with `hostNetwork`, where nothing is handed on.
    pub host_ports: Vec<HostPort>,
    /// `netpol-agent.dev/address-check: "off"`: the counted opt-out of D8.
    pub address_check_off: bool,
    /// `status.startTime` in seconds of the epoch, if set: a status newer than a veth may name it (D12).
    pub started: Option<i64>,
}

impl Pod {
    /// Whether policies can select it, and selectors can mean it.
    #[must_use]
    pub fn takes_part(&self) -> bool {
        !self.host_network && self.phase == Phase::Live
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// `status.addresses` of type InternalIP and ExternalIP, and other addresses known to be the node's own.
    pub addresses: Vec<IpAddr>,
    /// Further addresses at which its overlay's socket can be reached, if no pod has them: what Flannel announces in
    /// annotations, and of each range of `spec.podCIDRs` the first address (flannel.1 in vxlan) and the one after it (the
    /// pod bridge). To policies they are addresses like any other; decision D8 closes the overlay's port on them.
    pub overlay: Vec<IpAddr>,
    /// Addresses that mean all its pods: the last one of each IPv4 range of `spec.podCIDRs`.
    pub broadcasts: Vec<IpAddr>,
}

/// Operator of a `matchExpressions` entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    /// Key present with one of the values.
    In(Vec<String>),
    /// Key absent, or present with another value.
    NotIn(Vec<String>),
    /// Key present.
    Exists,
    /// Key absent.
    DoesNotExist,
}

/// One requirement; all requirements of a selector must hold. `matchLabels` become `In` with one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Operator and values (values sorted and deduplicated).
    pub operator: Operator,
}

/// A label selector; without requirements it selects everything. Requirements are sorted and deduplicated, so that
/// equal selectors compare equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector {
    /// Requirements, all of which must hold.
    pub requirements: Vec<Requirement>,
}

/// Which namespaces a peer means.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamespaceScope {
    /// The policy's own (`namespaceSelector` absent). The name is filled in by decoding.
    Own(String),
    /// Those whose labels match.
    Matching(Selector),
}

/// An entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// Pods by namespace and labels (A12, A13). An absent `podSelector` is the empty selector.
    Pods {
        /// Namespaces.
        namespaces: NamespaceScope,
        /// Pods within them.
        pods: Selector,
    },
    /// Addresses (B1–B9). Host bits are masked, excepts outside the block dropped, list sorted.
    Block {
        /// The block.
        cidr: IpNet,
        /// What is taken out of this peer only.
        except: Vec<IpNet>,
    },
    /// An entry that could not be read or says nothing: matches nothing (A11).
    Nothing,
}

/// The port part of an entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortSpec {
    /// Every port of the protocol (A9).
    All,
    /// `port` to `endPort`, both included; equal for a single port (P9).
    Range(u16, u16),
    /// A named port, resolved on the destination pod (P1, P2).
    Named(String),
}

/// An entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortMatch {
    /// Protocol, defaulted to TCP (A9, A10).
    pub protocol: Protocol,
    /// Ports.
    pub ports: PortSpec,
}

/// An ingress or egress rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// Index in the policy's list, for explanations.
    pub index: usize,
    /// `from` or `to`; `None` when absent or empty: every peer (A7).
    pub peers: Option<Vec<Peer>>,
    /// `ports`; `None` when absent or empty: every port of every protocol (A8).
    pub ports: Option<Vec<PortMatch>>,
}

/// A NetworkPolicy. A direction that is `None` is not isolated by it; `Some(vec![])` denies all (A1–A5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Namespace and name.
    pub name: ObjectName,
    /// Pods it selects, in its namespace.
    pub selector: Selector,
    /// Ingress rules.
    pub ingress: Option<Vec<Rule>>,
    /// Egress rules.
    pub egress: Option<Vec<Rule>>,
}

/// Where a Service sends what comes in by one of its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A number, the Service's own if none is given.
    Number(u16),
    /// A port name, resolved on each pod.
    Named(String),
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty if it is the only one. An [`EndpointPort`] of this name and protocol serves it.
    pub name: String,
    /// Protocol, defaulted to TCP.
    pub protocol: Protocol,
    /// Port of the Service, 1–65535.
    pub port: u16,
    /// Node port, or 0.
    pub node_port: u16,
    /// Port of the backends. Only the controller that makes EndpointSlices looks at it.
    pub target: TargetPort,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// Cluster, external and load-balancer addresses; none for a headless Service and for an `ExternalName`, which no
    /// proxy looks at.
    pub addresses: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Labels of its pods; empty if its EndpointSlices are made by others.
    pub selector: Labels,
}

/// A port of the backends in an [`EndpointSlice`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointPort {
    /// Name of the [`ServicePort`] that it serves.
    pub name: String,
    /// Protocol, defaulted to TCP.
    pub protocol: Protocol,
    /// Number, 1–65535.
    pub port: u16,
}

/// Some of the backends of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: ObjectName,
    /// Name of the Service, in the same namespace; empty if it belongs to none.
    pub service: String,
    /// Addresses of the endpoints that a proxy may pick: those that are ready, and those that still serve.
    pub addresses: Vec<IpAddr>,
    /// Ports, of each of them. One without number, which proxies skip, is left out.
    pub ports: Vec<EndpointPort>,
}

/// Ranges that ClusterIPs are taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Name.
    pub name: String,
    /// The ranges, host bits masked.
    pub cidrs: Vec<IpNet>,
}

/// Everything that decides a verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Namespaces by name. A pod in a namespace that is not here matches no namespace selector (W12).
    pub namespaces: BTreeMap<String, Namespace>,
    /// Pods by namespace and name.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// Policies by namespace and name.
    pub policies: BTreeMap<ObjectName, Policy>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Services by namespace and name.
    pub services: BTreeMap<ObjectName, Service>,
    /// EndpointSlices by namespace and name.
    pub slices: BTreeMap<ObjectName, EndpointSlice>,
    /// ServiceCIDRs by name.
    pub service_cidrs: BTreeMap<String, ServiceCidr>,
}
