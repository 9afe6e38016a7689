//! Generated clusters, for property tests of whatever judges by them.
//!
//! Names, labels, ports and prefixes come from small stocks, so that policies overlap, share peers and contradict each
//! other far more often than real ones do. The generator is seeded and has no other source of chance: a failing case is
//! named by its seed.

mod cells;
pub mod features;
pub mod frames;
pub mod fuzz;
mod meaning;
mod prove;
mod proxied;
mod services;

pub use self::cells::{Cell, Node, answer, cells, expected, verdict};
pub use self::meaning::Meaning;
pub use self::prove::{Disagreement, Tally, prove};
pub use self::proxied::{compare as compare_services, local_backends};

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::compile::{Change, Endpoint};
use crate::decode::{Kind, NAMESPACE_NAME_LABEL, Object};
use crate::model::{
    Cluster, ContainerPort, Labels, Namespace, NamespaceScope, Node as ClusterNode, ObjectName, Operator, Peer, Phase,
    Pod, Policy, PortMatch, PortSpec, Protocol, Requirement, Rule, Selector,
};

/// The node on which the generated endpoints are.
pub const NODE: &str = "node-1";

const NAMESPACES: [&str; 4] = ["shop", "billing", "monitoring", "late"];
const LABELS: [(&str, [&str; 3]); 2] = [("app", ["web", "api", "db"]), ("tier", ["front", "back", "edge"])];
const PORT_NAMES: [&str; 3] = ["http", "dns", "metrics"];
const PORTS: [u16; 8] = [53, 80, 443, 8080, 8081, 9090, 65535, 1];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const PREFIXES: [&str; 20] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.244.0.0/16",
    "10.244.1.0/24",
    "10.244.1.0/29",
    "10.244.1.4/30",
    "10.244.1.5/32",
    "10.244.2.0/25",
    "172.18.0.0/24",
    "172.18.0.2/32",
    "198.51.100.0/24",
    "198.51.100.10/31",
    "169.254.169.254/32",
    "::/0",
    "fd00:10:244::/48",
    "fd00:10:244:1::/64",
    "fd00:10:244:1::4/126",
    "2001:db8::/32",
    "2001:db8:7::/48",
    "fd00:172:18::/64",
];

/// A small generator of numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True so many times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// A cluster, the endpoints of [`NODE`], and a way to change both.
#[derive(Clone, Debug)]
pub struct World {
    /// Objects.
    pub cluster: Cluster,
    /// Endpoints by number.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// The node's own addresses, as netlink would tell.
    pub local: BTreeSet<IpAddr>,
    random: Random,
    uids: u64,
    numbers: u32,
}

impl World {
    /// The cluster of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut world = Self {
            cluster: Cluster::default(),
            endpoints: BTreeMap::new(),
            local: BTreeSet::new(),
            random: Random::new(seed),
            uids: 0,
            numbers: 0,
        };
        for name in &NAMESPACES[..3] {
            let namespace = world.namespace(name);
            let _none = world.cluster.namespaces.insert(namespace.name.clone(), namespace);
        }
        for name in [NODE, "node-2"] {
            let node = world.node(name);
            let _none = world.cluster.nodes.insert(node.name.clone(), node);
        }
        world.local = ["172.18.0.2", "10.244.1.1", "fd00:10:244:1::1"].map(address).into();
        for _ in 0..3 + world.random.below(8) {
            let _change = world.upsert_pod();
        }
        for _ in 0..1 + world.random.below(6) {
            let _change = world.upsert_policy();
        }
        for _ in 0..world.random.below(24) {
            let _change = world.change_services();
        }
        let local: Vec<ObjectName> =
            world.cluster.pods.values().filter(|pod| pod.node == NODE).map(|pod| pod.name.clone()).collect();
        for name in local {
            let _change = world.endpoint_up(&name);
        }
        world
    }

    /// The changes that make the world from nothing, in the order of their kinds.
    #[must_use]
    pub fn everything(&self) -> Vec<Change> {
        let Cluster { namespaces, pods, policies, nodes, services, slices, service_cidrs } = &self.cluster;
        let objects = namespaces.values().cloned().map(Object::Namespace);
        let objects = objects.chain(pods.values().cloned().map(Object::Pod));
        let objects = objects.chain(policies.values().cloned().map(Object::Policy));
        let objects = objects.chain(nodes.values().cloned().map(Object::Node));
        let objects = objects.chain(services.values().cloned().map(Object::Service));
        let objects = objects.chain(slices.values().cloned().map(Object::EndpointSlice));
        let objects = objects.chain(service_cidrs.values().cloned().map(Object::ServiceCidr));
        let changes = objects.map(Change::Upsert);
        let changes = changes.chain(self.endpoints.values().cloned().map(Change::EndpointUp));
        changes.chain([Change::NodeAddresses(self.local.clone())]).collect()
    }

    /// Changes one thing.
    pub fn step(&mut self) -> Change {
        match self.random.below(100) {
            0..18 => self.upsert_policy(),
            18..30 => self.change_services(),
            30..40 => self.remove_policy(),
            40..62 => self.upsert_pod(),
            62..68 => self.remove_pod(),
            68..80 => {
                let name = *self.random.pick(&NAMESPACES);
                if self.random.chance(20) {
                    let _old = self.cluster.namespaces.remove(name);
                    Change::Remove(Kind::Namespace, ObjectName::new("", name))
                } else {
                    let namespace = self.namespace(name);
                    let _old = self.cluster.namespaces.insert(name.to_owned(), namespace.clone());
                    Change::Upsert(Object::Namespace(namespace))
                }
            }
            80..84 => {
                let name = *self.random.pick(&[NODE, "node-2", "node-3"]);
                if self.random.chance(30) {
                    let _old = self.cluster.nodes.remove(name);
                    Change::Remove(Kind::Node, ObjectName::new("", name))
                } else {
                    let node = self.node(name);
                    let _old = self.cluster.nodes.insert(name.to_owned(), node.clone());
                    Change::Upsert(Object::Node(node))
                }
            }
            84..86 => {
                for address in ["172.18.0.9", "10.244.1.1"].map(address) {
                    if !self.local.remove(&address) {
                        let _new = self.local.insert(address);
                    }
                }
                Change::NodeAddresses(self.local.clone())
            }
            86..94 => {
                let free: Vec<ObjectName> = self
                    .cluster
                    .pods
                    .values()
                    .filter(|pod| pod.node == NODE && !self.endpoints.values().any(|endpoint| is(endpoint, pod)))
                    .map(|pod| pod.name.clone())
                    .collect();
                if free.is_empty() {
                    self.upsert_pod()
                } else {
                    let name = self.random.pick(&free).clone();
                    self.endpoint_up(&name)
                }
            }
            _ => match self.endpoints.keys().copied().nth(self.random.below(self.endpoints.len().max(1))) {
                Some(number) => {
                    let _old = self.endpoints.remove(&number);
                    Change::EndpointDown(number)
                }
                None => self.upsert_policy(),
            },
        }
    }

    /// The pod behind an endpoint, if the cluster has it and it takes part.
    #[must_use]
    pub fn pod(&self, endpoint: &Endpoint) -> Option<&Pod> {
        let (name, _) = endpoint.pod.as_ref()?;
        self.cluster.pods.get(name).filter(|pod| is(endpoint, pod) && pod.takes_part())
    }

    /// Whether the pod behind an endpoint has an address in its status.
    #[must_use]
    pub fn owns(&self, endpoint: u32, address: IpAddr) -> bool {
        let pod = self.endpoints.get(&endpoint).and_then(|endpoint| endpoint.pod.as_ref());
        pod.and_then(|(name, _)| self.cluster.pods.get(name)).is_some_and(|pod| pod.addresses.contains(&address))
    }

    fn endpoint_up(&mut self, name: &ObjectName) -> Change {
        self.numbers += 1;
        let uid = self.cluster.pods.get(name).map(|pod| pod.uid.clone()).unwrap_or_default();
        let endpoint = Endpoint {
            number: self.numbers,
            pod: Some((name.clone(), uid)),
            adopted: self.random.chance(20),
            extra_addresses: Vec::new(),
        };
        let _none = self.endpoints.insert(endpoint.number, endpoint.clone());
        Change::EndpointUp(endpoint)
    }

    fn namespace(&mut self, name: &str) -> Namespace {
        let mut labels = self.labels();
        let _none = labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned());
        Namespace { name: name.to_owned(), labels }
    }

    fn node(&mut self, name: &str) -> ClusterNode {
        let mut addresses = vec![match name {
            NODE => address("172.18.0.2"),
            "node-2" => address("172.18.0.3"),
            _ => address("172.18.0.4"),
        }];
        if self.random.chance(50) {
            addresses.push(match name {
                NODE => address("fd00:172:18::2"),
                "node-2" => address("fd00:172:18::3"),
                _ => address("fd00:172:18::4"),
            });
        }
        let overlay = match name {
            NODE => &["10.244.1.0", "10.244.1.1", "fd00:10:244:1::", "fd00:10:244:1::1"][..],
            "node-2" => &["10.244.2.0", "10.244.2.1"],
            _ => &["10.244.3.0", "fd00:10:244:3::"],
        };
        let overlay = if self.random.chance(70) { overlay.iter().copied().map(address).collect() } else { Vec::new() };
        let broadcasts = match name {
            NODE => "10.244.1.255",
            "node-2" => "10.244.2.255",
            _ => "10.244.3.255",
        };
        let broadcasts = if self.random.chance(70) { vec![address(broadcasts)] } else { Vec::new() };
        ClusterNode { name: name.to_owned(), addresses, overlay, broadcasts }
    }

    fn labels(&mut self) -> Labels {
        let mut labels = Labels::new();
        for (key, values) in LABELS {
            if self.random.chance(70) {
                let _none = labels.insert(key.to_owned(), (*self.random.pick(&values)).to_owned());
            }
        }
        labels
    }

    fn upsert_pod(&mut self) -> Change {
        let slot = self.random.below(12);
        let name = ObjectName::new(*self.random.pick(&NAMESPACES), format!("pod-{slot}"));
        let old = self.cluster.pods.get(&name).cloned();
        let same_life = old.is_some() && self.random.chance(80);
        let node = if slot.is_multiple_of(2) { NODE } else { "node-2" };
        let uid = match &old {
            Some(old) if same_life => old.uid.clone(),
            Some(_) | None => {
                self.uids += 1;
                format!("uid-{}", self.uids)
            }
        };
        let host_network = old.as_ref().filter(|_| same_life).map_or(slot == 11, |old| old.host_network);
        let addresses = if host_network {
            vec![address(if node == NODE { "172.18.0.2" } else { "172.18.0.3" })]
        } else {
            // Few addresses: two pods claim one now and then. The first of the range is flannel.1's, where Flannel has one.
            let last = if self.random.chance(5) { 0 } else { 2 + self.random.below(10) };
            let third = if node == NODE { 1 } else { 2 };
            match self.random.below(10) {
                0 => vec![],
                1 => vec![address(&format!("fd00:10:244:{third}::{last:x}"))],
                2..6 => {
                    vec![address(&format!("10.244.{third}.{last}")), address(&format!("fd00:10:244:{third}::{last:x}"))]
                }
                _ => vec![address(&format!("10.244.{third}.{last}"))],
            }
        };
        let mut ports: Vec<ContainerPort> = Vec::new();
        for _ in 0..self.random.below(4) {
            let name = self.random.chance(80).then(|| (*self.random.pick(&PORT_NAMES)).to_owned());
            ports.push(ContainerPort {
                name,
                protocol: *self.random.pick(&PROTOCOLS),
                port: *self.random.pick(&PORTS),
            });
        }
        let finished = self.random.chance(10);
        let mut pod = Pod {
            name: name.clone(),
            uid,
            labels: self.labels(),
            node: node.to_owned(),
            host_network,
            phase: if finished { Phase::Finished } else { Phase::Live },
            addresses,
            ports,
            host_ports: self.host_ports(host_network),
            address_check_off: self.random.chance(5),
            started: None,
        };
        // Often a single thing changes.
        if let (Some(old), true) = (old, same_life) {
            match self.random.below(4) {
                0 => pod = Pod { labels: pod.labels, ..old },
                1 => pod = Pod { ports: pod.ports, ..old },
                2 => pod = Pod { addresses: pod.addresses, ..old },
                _ => {}
            }
        }
        let _old = self.cluster.pods.insert(name, pod.clone());
        Change::Upsert(Object::Pod(pod))
    }

    fn remove_pod(&mut self) -> Change {
        let names: Vec<ObjectName> = self.cluster.pods.keys().cloned().collect();
        if names.is_empty() {
            return self.upsert_pod();
        }
        let name = self.random.pick(&names).clone();
        let _old = self.cluster.pods.remove(&name);
        Change::Remove(Kind::Pod, name)
    }

    fn remove_policy(&mut self) -> Change {
        let names: Vec<ObjectName> = self.cluster.policies.keys().cloned().collect();
        if names.is_empty() {
            return self.upsert_policy();
        }
        let name = self.random.pick(&names).clone();
        let _old = self.cluster.policies.remove(&name);
        Change::Remove(Kind::Policy, name)
    }

    fn upsert_policy(&mut self) -> Change {
        let namespace = *self.random.pick(&NAMESPACES);
        let name = ObjectName::new(namespace, format!("policy-{}", self.random.below(4)));
        let mut ingress = self.random.chance(70).then(|| self.rules(namespace));
        let egress = (ingress.is_none() || self.random.chance(50)).then(|| self.rules(namespace));
        if egress.is_some() && self.random.chance(20) {
            ingress = None;
        }
        let policy = Policy { name: name.clone(), selector: self.selector(), ingress, egress };
        let _old = self.cluster.policies.insert(name, policy.clone());
        Change::Upsert(Object::Policy(policy))
    }

    fn rules(&mut self, namespace: &str) -> Vec<Rule> {
        (0..self.random.below(4))
            .map(|index| {
                let peers = self
                    .random
                    .chance(80)
                    .then(|| (0..1 + self.random.below(3)).map(|_| self.peer(namespace)).collect());
                let ports =
                    self.random.chance(70).then(|| (0..1 + self.random.below(3)).map(|_| self.port()).collect());
                Rule { index, peers, ports }
            })
            .collect()
    }

    fn selector(&mut self) -> Selector {
        let mut requirements = Vec::new();
        while requirements.len() < 2 && self.random.chance(50) {
            let (key, values) = *self.random.pick(&LABELS);
            let value = |random: &mut Random| (*random.pick(&values)).to_owned();
            let operator = match self.random.below(5) {
                0 => Operator::In(vec![value(&mut self.random)]),
                1 => Operator::In(vec![value(&mut self.random), value(&mut self.random)]),
                2 => Operator::NotIn(vec![value(&mut self.random), value(&mut self.random)]),
                3 => Operator::Exists,
                _ => Operator::DoesNotExist,
            };
            requirements.push(Requirement { key: key.to_owned(), operator });
        }
        Selector::new(requirements)
    }

    fn peer(&mut self, namespace: &str) -> Peer {
        match self.random.below(20) {
            0 => Peer::Nothing,
            1..10 => {
                let prefix = |text: &&str| -> IpNet { text.parse().unwrap_or_default() };
                let cidr = prefix(self.random.pick(&PREFIXES));
                let inside: Vec<IpNet> = PREFIXES
                    .iter()
                    .map(prefix)
                    .filter(|inner| cidr.contains(inner) && inner.prefix_len() > cidr.prefix_len())
                    .collect();
                let mut except: Vec<IpNet> = inside.into_iter().filter(|_| self.random.chance(30)).collect();
                except.sort_unstable();
                Peer::Block { cidr, except }
            }
            kind => {
                let namespaces = match kind {
                    10..13 => NamespaceScope::Own(namespace.to_owned()),
                    13..15 => NamespaceScope::Matching(Selector::everything()),
                    15..17 => {
                        let name = (*self.random.pick(&NAMESPACES)).to_owned();
                        NamespaceScope::Matching(Selector::new(vec![Requirement {
                            key: NAMESPACE_NAME_LABEL.to_owned(),
                            operator: Operator::In(vec![name]),
                        }]))
                    }
                    _ => NamespaceScope::Matching(self.selector()),
                };
                Peer::Pods { namespaces, pods: self.selector() }
            }
        }
    }

    fn port(&mut self) -> PortMatch {
        let protocol = *self.random.pick(&PROTOCOLS);
        let ports = match self.random.below(10) {
            0 | 1 => PortSpec::All,
            2..5 => PortSpec::Named((*self.random.pick(&PORT_NAMES)).to_owned()),
            5..8 => {
                let port = *self.random.pick(&PORTS);
                PortSpec::Range(port, port)
            }
            _ => {
                let first = *self.random.pick(&PORTS);
                let last = *self.random.pick(&PORTS);
                PortSpec::Range(first.min(last), first.max(last))
            }
        };
        PortMatch { protocol, ports }
    }

    /// Addresses at which answers may change: those of pods and nodes, and both sides of every end of every prefix.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses: BTreeSet<IpAddr> = self.local.clone();
        addresses.extend(self.cluster.pods.values().flat_map(|pod| &pod.addresses));
        addresses.extend(self.cluster.nodes.values().flat_map(|node| {
            let ClusterNode { name: _, addresses, overlay, broadcasts } = node;
            addresses.iter().chain(overlay).chain(broadcasts)
        }));
        addresses.extend(["8.8.8.8", "198.51.100.10", "2001:db8:7::1", "2001:4860::8888"].map(address));
        let rules = self.cluster.policies.values().flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
        for peer in rules.flatten().flat_map(|rule| &rule.peers).flatten() {
            if let Peer::Block { cidr, except } = peer {
                for prefix in std::iter::once(cidr).chain(except) {
                    addresses.extend([prefix.network(), prefix.broadcast()]);
                    addresses.extend(neighbour(prefix.network(), false));
                    addresses.extend(neighbour(prefix.broadcast(), true));
                }
            }
        }
        addresses.into_iter().collect()
    }

    /// Protocols and ports at which answers may change: known ports, those beside the ends of ranges, an unknown port
    /// of each protocol, and a protocol without ports.
    #[must_use]
    pub fn packets() -> Vec<(u8, Option<u16>)> {
        let mut packets = vec![(1, None), (58, None), (47, None)];
        for protocol in PROTOCOLS {
            packets.push((protocol.number(), None));
            for port in [1, 2, 52, 53, 54, 80, 443, 8079, 8080, 8081, 9090, 9091, 65534, 65535] {
                packets.push((protocol.number(), Some(port)));
            }
        }
        packets
    }
}

fn is(endpoint: &Endpoint, pod: &Pod) -> bool {
    endpoint.pod.as_ref().is_some_and(|(name, uid)| *name == pod.name && *uid == pod.uid)
}

fn neighbour(address: IpAddr, up: bool) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let bits = u32::from(address);
            let next = if up { bits.checked_add(1) } else { bits.checked_sub(1) };
            next.map(|bits| IpAddr::V4(bits.into()))
        }
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            let next = if up { bits.checked_add(1) } else { bits.checked_sub(1) };
            next.map(|bits| IpAddr::V6(bits.into()))
        }
    }
}

fn address(text: &str) -> IpAddr {
    // Only constants and addresses made of small numbers get here.
    text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}
