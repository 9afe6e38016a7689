//! The cluster as the compiler needs it: objects by name, addresses by claim, endpoints by pod, and what an event makes
//! worth another look.
//!
//! Nothing here is recomputed as a whole: an event marks the pods, addresses and endpoints that it concerns, and only
//! those are looked at by the next plan (decision D11).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use netpol_common::abi::ServiceKey;

use super::services::Services;
use super::{Change, Endpoint};
use crate::decode::{Kind, Object};
use crate::model::{EndpointSlice, Namespace, Node, ObjectName, Phase, Pod, Policy};

/// A pod and what follows from it.
#[derive(Clone, Debug)]
pub(super) struct PodEntry {
    pub(super) pod: Pod,
    /// The addresses it claims.
    claimed: BTreeSet<IpAddr>,
}

/// Who says that an address is theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) pods: BTreeSet<ObjectName>,
    /// Nodes by name.
    pub(super) nodes: BTreeSet<String>,
    /// Nodes by name whose overlay can be reached at it, though it is not reported as theirs.
    pub(super) overlays: BTreeSet<String>,
    /// Nodes by name all of whose pods it means.
    pub(super) broadcasts: BTreeSet<String>,
    /// Netlink says that it is one of this node's own.
    pub(super) local: bool,
}

impl Claims {
    fn is_empty(&self) -> bool {
        let Self { pods, nodes, overlays, broadcasts, local } = self;
        pods.is_empty() && nodes.is_empty() && overlays.is_empty() && broadcasts.is_empty() && !local
    }
}

/// A local endpoint and its pod.
#[derive(Clone, Debug)]
pub(super) struct EndpointEntry {
    pub(super) endpoint: Endpoint,
    /// The pod as last seen with the endpoint's UID. It outlives its object: while the sandbox is there, its policy is
    /// enforced (semantics W7).
    pub(super) pod: Option<Pod>,
    /// Policies that select it.
    pub(super) policies: BTreeSet<ObjectName>,
}

/// What the next plan must look at.
#[derive(Clone, Debug, Default)]
pub(super) struct Dirty {
    pub(super) endpoints: BTreeSet<u32>,
    pub(super) pods: BTreeSet<ObjectName>,
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) prefixes: BTreeSet<IpNet>,
    pub(super) services: BTreeSet<ServiceKey>,
    pub(super) service_ranges: bool,
}

/// Objects, claims, endpoints.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) node: String,
    pub(super) namespaces: BTreeMap<String, Namespace>,
    pub(super) pods: BTreeMap<ObjectName, PodEntry>,
    pub(super) policies: BTreeMap<ObjectName, Policy>,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) local: BTreeSet<IpAddr>,
    pub(super) claims: BTreeMap<IpAddr, Claims>,
    pub(super) endpoints: BTreeMap<u32, EndpointEntry>,
    pub(super) services: Services,
    endpoints_of: BTreeMap<ObjectName, BTreeSet<u32>>,
}

/// The entries of one namespace, in a map by namespace and name.
pub(super) fn of_namespace<'a, V>(
    map: &'a BTreeMap<ObjectName, V>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a ObjectName, &'a V)> {
    map.range(ObjectName::new(namespace, "")..).take_while(move |(name, _)| name.namespace == namespace)
}

impl Index {
    pub(super) fn new(node: &str) -> Self {
        Self { node: node.to_owned(), ..Self::default() }
    }

    /// Takes a change in, and marks what it concerns.
    pub(super) fn apply(&mut self, change: Change, dirty: &mut Dirty) {
        match change {
            Change::Upsert(Object::Namespace(namespace)) => {
                let name = namespace.name.clone();
                let old = self.namespaces.insert(name.clone(), namespace);
                if self.namespaces.get(&name).map(|new| &new.labels) != old.as_ref().map(|old| &old.labels) {
                    self.namespace_changed(&name, dirty);
                }
            }
            Change::Upsert(Object::Pod(pod)) => self.pod_changed(pod.name.clone(), Some(pod), dirty),
            Change::Upsert(Object::Policy(policy)) => self.policy_changed(policy.name.clone(), Some(policy), dirty),
            Change::Upsert(Object::Node(node)) => self.node_changed(node.name.clone(), Some(node), dirty),
            Change::Upsert(Object::Service(service)) => {
                self.services.service_changed(service.name.clone(), Some(service), &mut dirty.services);
            }
            Change::Upsert(Object::EndpointSlice(slice)) => {
                self.slice_changed(slice.name.clone(), Some(slice), dirty);
            }
            Change::Upsert(Object::ServiceCidr(range)) => {
                dirty.service_ranges |= self.services.range_changed(range.name.clone(), Some(range));
            }
            Change::Remove(Kind::Service, name) => {
                self.services.service_changed(name, None, &mut dirty.services);
            }
            Change::Remove(Kind::EndpointSlice, name) => self.slice_changed(name, None, dirty),
            Change::Remove(Kind::ServiceCidr, name) => {
                dirty.service_ranges |= self.services.range_changed(name.name, None);
            }
            Change::ServiceCidrs(ranges) => dirty.service_ranges |= self.services.configure(ranges),
            Change::Remove(Kind::Namespace, name) => {
                if self.namespaces.remove(&name.name).is_some() {
                    self.namespace_changed(&name.name, dirty);
                }
            }
            Change::Remove(Kind::Pod, name) => self.pod_changed(name, None, dirty),
            Change::Remove(Kind::Policy, name) => self.policy_changed(name, None, dirty),
            Change::Remove(Kind::Node, name) => self.node_changed(name.name, None, dirty),
            Change::EndpointUp(endpoint) => self.endpoint_up(endpoint, dirty),
            Change::EndpointDown(number) => self.endpoint_down(number, dirty),
            Change::NodeAddresses(addresses) => {
                let moved: BTreeSet<IpAddr> = self.local.symmetric_difference(&addresses).copied().collect();
                for address in &moved {
                    let _new = dirty.addresses.insert(*address);
                    let claims = self.claims.entry(*address).or_default();
                    claims.local = addresses.contains(address);
                    if claims.is_empty() {
                        let _none = self.claims.remove(address);
                    }
                }
                self.local = addresses;
                self.addresses_moved(&moved, dirty);
            }
        }
    }

    /// Whether an address is this node's own.
    pub(super) fn is_local(&self, address: &IpAddr) -> bool {
        is_local(&self.claims, &self.node, address)
    }

    fn slice_changed(&mut self, name: ObjectName, slice: Option<EndpointSlice>, dirty: &mut Dirty) {
        let here = |address: &IpAddr| is_local(&self.claims, &self.node, address);
        self.services.slice_changed(name, slice, here, &mut dirty.services);
    }

    fn addresses_moved(&mut self, moved: &BTreeSet<IpAddr>, dirty: &mut Dirty) {
        let here = |address: &IpAddr| is_local(&self.claims, &self.node, address);
        self.services.addresses_moved(moved, here, &mut dirty.services);
    }

    fn namespace_changed(&self, name: &str, dirty: &mut Dirty) {
        dirty.pods.extend(of_namespace(&self.pods, name).map(|(pod, _)| pod.clone()));
    }

    fn pod_changed(&mut self, name: ObjectName, pod: Option<Pod>, dirty: &mut Dirty) {
        if self.pods.get(&name).map(|entry| &entry.pod) == pod.as_ref() {
            return;
        }
        let _new = dirty.pods.insert(name.clone());
        let here = pod.as_ref().filter(|pod| pod.node == self.node);
        self.services.pod_changed(&name, here, &mut dirty.services);
        // A new life under an old name starts from nothing.
        if let Some(entry) = self.pods.get(&name) {
            dirty.addresses.extend(&entry.claimed);
        }
        match pod.clone() {
            None => {
                self.claim(&name, BTreeSet::new());
                let _pod = self.pods.remove(&name);
            }
            Some(pod) => match self.pods.get_mut(&name) {
                Some(entry) => entry.pod = pod,
                None => {
                    let entry = PodEntry { pod, claimed: BTreeSet::new() };
                    let _none = self.pods.insert(name.clone(), entry);
                }
            },
        }
        if let Some(pod) = pod {
            for number in self.endpoints_of.get(&name).cloned().unwrap_or_default() {
                let Some(entry) = self.endpoints.get_mut(&number) else { continue };
                if entry.endpoint.pod.as_ref().is_some_and(|(_, uid)| *uid == pod.uid) {
                    if entry.pod.as_ref().map(|old| &old.labels) != Some(&pod.labels) {
                        entry.policies = selecting(&self.policies, &pod);
                    }
                    entry.pod = Some(pod.clone());
                    let _new = dirty.endpoints.insert(number);
                }
            }
        }
        self.claim_again(&name, dirty);
    }

    /// Recomputes which addresses a pod claims: those of its status, and those that its sandbox was given.
    fn claim_again(&mut self, name: &ObjectName, dirty: &mut Dirty) {
        let Some(PodEntry { pod, .. }) = self.pods.get(name) else { return };
        let mut addresses = BTreeSet::new();
        if pod.takes_part() {
            addresses.extend(pod.addresses.iter().map(IpAddr::to_canonical));
            for number in self.endpoints_of.get(name).into_iter().flatten() {
                if let Some(EndpointEntry { endpoint, .. }) = self.endpoints.get(number)
                    && endpoint.pod.as_ref().is_some_and(|(_, uid)| *uid == pod.uid)
                {
                    addresses.extend(endpoint.extra_addresses.iter().map(IpAddr::to_canonical));
                }
            }
        }
        dirty.addresses.extend(self.claim(name, addresses));
    }

    /// Sets the addresses that a pod claims, and returns those that were or are claimed but not both.
    fn claim(&mut self, name: &ObjectName, addresses: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let Some(entry) = self.pods.get_mut(name) else { return BTreeSet::new() };
        let changed: BTreeSet<IpAddr> = entry.claimed.symmetric_difference(&addresses).copied().collect();
        entry.claimed = addresses;
        for address in &changed {
            let claims = self.claims.entry(*address).or_default();
            if !claims.pods.remove(name) {
                let _new = claims.pods.insert(name.clone());
            }
            if claims.is_empty() {
                let _none = self.claims.remove(address);
            }
        }
        changed
    }

    fn policy_changed(&mut self, name: ObjectName, policy: Option<Policy>, dirty: &mut Dirty) {
        if self.policies.get(&name) == policy.as_ref() {
            return;
        }
        let numbers: BTreeSet<u32> =
            of_namespace(&self.endpoints_of, &name.namespace).flat_map(|(_, numbers)| numbers).copied().collect();
        for number in numbers {
            let Some(entry) = self.endpoints.get_mut(&number) else { continue };
            let selected = match (&entry.pod, &policy) {
                (Some(pod), Some(policy)) => policy.selector.matches(&pod.labels),
                (None, _) | (_, None) => false,
            };
            let was = if selected { !entry.policies.insert(name.clone()) } else { entry.policies.remove(&name) };
            if was || selected {
                let _new = dirty.endpoints.insert(number);
            }
        }
        let _old = match policy {
            Some(policy) => self.policies.insert(name, policy),
            None => self.policies.remove(&name),
        };
    }

    fn node_changed(&mut self, name: String, node: Option<Node>, dirty: &mut Dirty) {
        let old = self.nodes.get(&name);
        let moved = moved(old, node.as_ref(), |node| &node.addresses);
        let overlay_moved = self::moved(old, node.as_ref(), |node| &node.overlay);
        let broadcasts_moved = self::moved(old, node.as_ref(), |node| &node.broadcasts);
        for address in &moved {
            self.claim_for_node(*address, &name, |claims| &mut claims.nodes, dirty);
        }
        for address in overlay_moved {
            self.claim_for_node(address, &name, |claims| &mut claims.overlays, dirty);
        }
        for address in broadcasts_moved {
            self.claim_for_node(address, &name, |claims| &mut claims.broadcasts, dirty);
        }
        let is_own = name == self.node;
        let _old = match node {
            Some(node) => self.nodes.insert(name, node),
            None => self.nodes.remove(&name),
        };
        if is_own {
            self.addresses_moved(&moved, dirty);
        }
    }

    /// A node claims an address that it did not, or the other way round.
    fn claim_for_node(
        &mut self,
        address: IpAddr,
        name: &str,
        among: impl FnOnce(&mut Claims) -> &mut BTreeSet<String>,
        dirty: &mut Dirty,
    ) {
        let _new = dirty.addresses.insert(address);
        let claims = self.claims.entry(address).or_default();
        let names = among(claims);
        if !names.remove(name) {
            let _new = names.insert(name.to_owned());
        }
        if claims.is_empty() {
            let _none = self.claims.remove(&address);
        }
    }

    fn endpoint_up(&mut self, endpoint: Endpoint, dirty: &mut Dirty) {
        let number = endpoint.number;
        let old = self.endpoints.get(&number);
        if old.is_some_and(|old| old.endpoint == endpoint) {
            return;
        }
        // The pod as last seen stays known if it is the same pod.
        let kept = old.filter(|old| old.endpoint.pod == endpoint.pod).and_then(|old| old.pod.clone());
        self.endpoint_down(number, dirty);
        let mut pod = kept;
        if let Some((name, uid)) = &endpoint.pod {
            let _new = self.endpoints_of.entry(name.clone()).or_default().insert(number);
            if let Some(PodEntry { pod: known, .. }) = self.pods.get(name)
                && known.uid == *uid
            {
                pod = Some(known.clone());
            }
        }
        let policies = pod.as_ref().map(|pod| selecting(&self.policies, pod)).unwrap_or_default();
        let name = endpoint.pod.as_ref().map(|(name, _)| name.clone());
        let _none = self.endpoints.insert(number, EndpointEntry { endpoint, pod, policies });
        let _new = dirty.endpoints.insert(number);
        if let Some(name) = name {
            self.claim_again(&name, dirty);
        }
    }

    fn endpoint_down(&mut self, number: u32, dirty: &mut Dirty) {
        let Some(EndpointEntry { endpoint, .. }) = self.endpoints.remove(&number) else { return };
        let _new = dirty.endpoints.insert(number);
        if let Some((name, _)) = endpoint.pod {
            if let Some(numbers) = self.endpoints_of.get_mut(&name) {
                let _was = numbers.remove(&number);
                if numbers.is_empty() {
                    let _none = self.endpoints_of.remove(&name);
                }
            }
            self.claim_again(&name, dirty);
        }
    }

    /// Addresses that are claimed within a prefix.
    pub(super) fn claimed_below(&self, prefix: IpNet) -> impl Iterator<Item = IpAddr> + '_ {
        self.claims.range(prefix.network()..=prefix.broadcast()).map(|(address, _)| *address)
    }

    /// The addresses that a pod claims.
    pub(super) fn addresses_of(&self, pod: &ObjectName) -> BTreeSet<IpAddr> {
        self.pods.get(pod).map(|entry| entry.claimed.clone()).unwrap_or_default()
    }

    /// The addresses that an endpoint owns.
    pub(super) fn endpoint_addresses(entry: &EndpointEntry) -> BTreeSet<IpAddr> {
        let EndpointEntry { endpoint, pod, policies: _ } = entry;
        match pod {
            // A finished pod owns none (semantics W6), wherever they are written.
            Some(pod) if pod.phase == Phase::Live => {
                pod.addresses.iter().chain(&endpoint.extra_addresses).map(IpAddr::to_canonical).collect()
            }
            Some(_) | None => BTreeSet::new(),
        }
    }
}

/// Addresses that only one of two states of a node has.
fn moved(old: Option<&Node>, new: Option<&Node>, of: impl Fn(&Node) -> &[IpAddr]) -> BTreeSet<IpAddr> {
    let addresses = |node: Option<&Node>| -> BTreeSet<IpAddr> {
        node.into_iter().flat_map(&of).map(IpAddr::to_canonical).collect()
    };
    addresses(old).symmetric_difference(&addresses(new)).copied().collect()
}

fn is_local(claims: &BTreeMap<IpAddr, Claims>, node: &str, address: &IpAddr) -> bool {
    claims.get(address).is_some_and(|claims| claims.local || claims.nodes.contains(node))
}

fn selecting(policies: &BTreeMap<ObjectName, Policy>, pod: &Pod) -> BTreeSet<ObjectName> {
    of_namespace(policies, &pod.name.namespace)
        .filter(|(_, policy)| policy.selector.matches(&pod.labels))
        .map(|(name, _)| name.clone())
        .collect()
}
