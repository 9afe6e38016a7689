//! The compiler: from objects to the rows of the policy maps, incrementally.
//!
//! ```text
//! Change ──▶ index ──dirty──▶ plan ─┬▶ sets: policies + own ports of the pod → policy set
//!            (objects,              ├▶ atoms, cidr: peers that those sets name
//!             claims,               ├▶ classes: atoms that contain each address
//!             endpoints,            ├▶ rows: answer of each set for each class
//!             services)             ├▶ proxied: what proxies rewrite, with its backends on this node
//!                                   └▶ tables: what differs from the maps ──▶ MapOp, in a safe order
//! ```
//!
//! Everything that a row says is a pure function of a policy set's content and a class's content, and both are known by
//! their digests. So rows are written once and never changed; what changes is which class an address has (one write)
//! and which set an endpoint has (one atomic store). A plan first writes rows that nothing refers to yet, then moves
//! addresses and prefixes, then stores the endpoints' words; what nothing refers to any more is deleted by a later
//! plan, after a grace period for programs that are still reading (decision D10).
//!
//! An atom lives as long as a policy set, in use or in its grace period, refers to it. Therefore classes always tell
//! apart what any set in use tells apart, and a policy change moves addresses only between classes that all sets in use
//! answer alike.

mod admission;
mod answer;
mod atoms;
mod cidr;
mod classes;
mod digest;
mod endpoints;
pub mod ids;
mod index;
mod inherited;
pub mod memory;
mod plan;
mod population;
mod ports;
mod proxied;
mod quotas;
mod refusal;
mod rows;
mod services;
mod sets;
mod tables;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::abi::{
    AddressKey, ClassRow, Digest, DigestKey, EndpointOptions, EndpointWord, PortKeyData, PortRow, RuleKey, RuleRow,
    ServiceKey, ServiceRow, id_kind,
};

use self::atoms::{AtomId, Atoms, Member};
use self::cidr::Prefixes;
use self::classes::Classes;
use self::ids::Ids;
use self::index::{Dirty, Index};
use self::inherited::Inherited;
use self::ports::PortSets;
pub use self::quotas::Capacities;
pub use self::refusal::{Refusal, Refused};
pub use self::sets::RuleName;
use self::sets::{PolicySet, SetContent};
pub use self::tables::Snapshot;
use self::tables::Tables;
use crate::decode::{Kind, Object};
use crate::model::ObjectName;

/// How long rows stay after nothing refers to them, in milliseconds: no program reads for that long.
pub const GRACE_MS: u64 = 1_000;

/// The kinds of ids that the compiler allocates. Endpoint numbers are the agent's.
const OWN_IDS: [u32; 4] = [id_kind::SET, id_kind::CLASS, id_kind::PORT_SET, id_kind::RULE];

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An object is there, new or changed.
    Upsert(Object),
    /// An object is gone.
    Remove(Kind, ObjectName),
    /// An endpoint is there, or what is known of it changed.
    EndpointUp(Endpoint),
    /// The endpoint with this number is gone.
    EndpointDown(u32),
    /// The addresses of this node, all of them, as netlink tells.
    NodeAddresses(BTreeSet<IpAddr>),
    /// Ranges that ClusterIPs are taken from beside those of ServiceCIDRs, all of them.
    ServiceCidrs(Vec<IpNet>),
}

/// A local interface with a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Endpoint number.
    pub number: u32,
    /// Name and UID of the pod behind it, if known. A pod with this name and another UID is not meant (decision D12).
    pub pod: Option<(ObjectName, String)>,
    /// It is older than the agent's first start on the node: nothing is denied until its pod's policy is known.
    pub adopted: bool,
    /// Addresses that the CNI gave it, which its status may not show yet.
    pub extra_addresses: Vec<IpAddr>,
}

/// One write to a map. The order of a plan's writes is part of its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapOp {
    /// Says what an id stands for.
    PutDigest(DigestKey, Digest),
    /// An id stands for nothing any more.
    RemoveDigest(DigestKey),
    /// A row of a port set.
    PutPort {
        /// Prefix length in bits.
        prefix_len: u32,
        /// Key.
        key: PortKeyData,
        /// Row.
        row: PortRow,
    },
    /// Removes a row of a port set.
    RemovePort {
        /// Prefix length in bits.
        prefix_len: u32,
        /// Key.
        key: PortKeyData,
    },
    /// A verdict row.
    PutRule(RuleKey, RuleRow),
    /// Removes a verdict row.
    RemoveRule(RuleKey),
    /// Kind and class of a pod's or node's address.
    PutClass(IpAddr, ClassRow),
    /// The address is no pod's or node's any more.
    RemoveClass(IpAddr),
    /// Class of a prefix, host bits zero.
    PutCidr(IpNet, u32),
    /// The prefix inherits the class of what is around it.
    RemoveCidr(IpNet),
    /// Stores an endpoint's word, atomically.
    SetWord {
        /// Endpoint number.
        endpoint: u32,
        /// Set and epoch; zero for pending.
        word: EndpointWord,
    },
    /// An endpoint owns an address.
    PutAddress(AddressKey),
    /// An endpoint owns an address no more.
    RemoveAddress(AddressKey),
    /// Switches of an endpoint. `reverse_until` is never set here: it is the agent's to fill in.
    SetOptions {
        /// Endpoint number.
        endpoint: u32,
        /// The switches.
        options: EndpointOptions,
    },
    /// A proxy rewrites this address and port, and these are its backends on the node itself.
    PutService(ServiceKey, ServiceRow),
    /// No proxy does any more.
    RemoveService(ServiceKey),
    /// ClusterIPs are taken from this prefix, host bits zero.
    PutServiceCidr(IpNet),
    /// None are any more.
    RemoveServiceCidr(IpNet),
    /// Remembers the last epoch given out. Comes before the words that bear it.
    SetEpoch(u32),
}

/// What to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be carried out in order. After each one, every endpoint answers as before the plan or as after it.
    pub ops: Vec<MapOp>,
    /// What does not fit and was not refused before.
    pub refused: Vec<Refusal>,
    /// When there will be something to do without any change, on the clock that [`Compiler::plan`] is given.
    pub wake_at_ms: Option<u64>,
}

/// What is in force at an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointState {
    /// The pod, if known.
    pub pod: Option<ObjectName>,
    /// Policy set of its word.
    pub set: u32,
    /// Epoch of its word.
    pub epoch: u32,
    /// Policies isolate its ingress.
    pub ingress_isolated: bool,
    /// Policies isolate its egress.
    pub egress_isolated: bool,
    /// Its pod's policy is in force, or what stands in for it because it does not fit.
    pub ready: bool,
    /// Something of it does not fit.
    pub refused: bool,
}

/// Figures for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Namespaces known.
    pub namespaces: usize,
    /// Pods known.
    pub pods: usize,
    /// Policies known.
    pub policies: usize,
    /// Nodes known.
    pub nodes: usize,
    /// Local endpoints.
    pub endpoints: usize,
    /// Policy sets with rows.
    pub sets: usize,
    /// Classes, class 0 included.
    pub classes: usize,
    /// Peers that policies of local pods name.
    pub peers: usize,
    /// Refusals in force.
    pub refused: usize,
    /// Name, rows and capacity of each map.
    pub maps: Vec<(&'static str, usize, usize)>,
}

/// A policy set in use, or in its grace period.
#[derive(Clone, Debug)]
struct SetEntry {
    /// `None`: it is an earlier agent's, and only its rows are known.
    known: Option<Arc<PolicySet>>,
    digest: Digest,
    namespace: String,
    policies: BTreeSet<ObjectName>,
    atoms: BTreeSet<AtomId>,
    rules: Vec<u32>,
    /// Prefixes of blocks and excepts, which count to the namespace's share of the tries.
    prefixes: BTreeSet<IpNet>,
    /// Classes for which it has rows.
    classes: BTreeSet<u32>,
    /// Endpoints that have it or are about to.
    users: BTreeSet<u32>,
    /// Since when there are no users.
    idle_since: Option<u64>,
    /// Its namespace has used up its share: rows are missing, nobody may have it any more.
    evicted: bool,
}

/// An endpoint as planned.
#[derive(Clone, Debug, Default)]
struct Planned {
    /// Policy set of its word.
    set: u32,
    /// Namespace of its pod, to whose share its rows count.
    namespace: String,
    addresses: BTreeSet<IpAddr>,
    isolated: [bool; 2],
    ready: bool,
    refusals: Vec<Refusal>,
    /// What it should have, if it keeps an older set only because that permits no more.
    held_for: Option<Arc<SetContent>>,
}

/// A pod's or node's address as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AddressRow {
    class: u32,
    /// Namespace of the pod, to whose share the row counts.
    namespace: String,
}

/// The compiler. Feed it with [`Compiler::apply`]; [`Compiler::plan`] says what to write.
#[derive(Clone, Debug)]
pub struct Compiler {
    capacities: Capacities,
    index: Index,
    dirty: Dirty,
    atoms: Atoms,
    /// What pods carry, by name.
    members: HashMap<ObjectName, BTreeSet<Member>>,
    prefixes: Prefixes,
    classes: Classes,
    sets: BTreeMap<u32, SetEntry>,
    sets_by_digest: HashMap<Digest, u32>,
    /// Sets that may need rows for classes outside all of their peers.
    broad_sets: BTreeSet<u32>,
    rules: HashMap<u32, (RuleName, usize)>,
    port_sets: PortSets,
    ids: Ids,
    tables: Tables,
    addresses: HashMap<IpAddr, AddressRow>,
    cidrs: BTreeMap<IpNet, u32>,
    planned: BTreeMap<u32, Planned>,
    /// Addresses that could not get their class.
    refused_addresses: BTreeMap<IpAddr, Refusal>,
    /// Prefixes below which rows could not be brought up to date.
    stuck_prefixes: BTreeSet<IpNet>,
    /// Whose share the rows of Services count to.
    service_shares: BTreeMap<ServiceKey, String>,
    refused_services: BTreeMap<ServiceKey, Refusal>,
    /// Refused by the plan under way and not before.
    newly_refused_services: Vec<Refusal>,
    refused_ranges: Vec<Refusal>,
    inherited: Inherited,
    epoch: u32,
    /// State of the plan under way.
    now_ms: u64,
    /// Classes made by the plan under way: unused, they go without a grace period.
    fresh_classes: BTreeSet<u32>,
    /// Endpoints to deny before any address moves.
    early: BTreeSet<u32>,
    /// Endpoints with another set, with the one they had.
    retargeted: BTreeSet<(u32, u32)>,
    /// Policy sets are being tried out.
    trying: bool,
    /// The plan gives an epoch out.
    epoch_given: bool,
    /// Something was deleted since refusals were last reconsidered.
    room: bool,
    /// Rows of Services were deleted since those that were refused were last reconsidered.
    service_room: bool,
    /// Refusals in force at the end of the last plan, those of Services apart.
    reported: Vec<Refusal>,
}

impl Compiler {
    /// A compiler for a node that starts from what the maps hold.
    #[must_use]
    pub fn new(node: &str, capacities: Capacities, snapshot: Snapshot) -> Self {
        let ids = Ids::new(capacities.endpoints, &snapshot.digests);
        let epoch = snapshot.epoch;
        let inherited = Inherited::new(&snapshot);
        Self {
            ids,
            epoch,
            inherited,
            tables: Tables::new(&capacities, snapshot, &OWN_IDS),
            capacities,
            index: Index::new(node),
            dirty: Dirty::default(),
            atoms: Atoms::default(),
            members: HashMap::new(),
            prefixes: Prefixes::default(),
            classes: Classes::default(),
            sets: BTreeMap::new(),
            sets_by_digest: HashMap::new(),
            broad_sets: BTreeSet::new(),
            rules: HashMap::new(),
            port_sets: PortSets::new(),
            addresses: HashMap::new(),
            cidrs: BTreeMap::new(),
            planned: BTreeMap::new(),
            refused_addresses: BTreeMap::new(),
            stuck_prefixes: BTreeSet::new(),
            service_shares: BTreeMap::new(),
            refused_services: BTreeMap::new(),
            newly_refused_services: Vec::new(),
            refused_ranges: Vec::new(),
            now_ms: 0,
            fresh_classes: BTreeSet::new(),
            early: BTreeSet::new(),
            retargeted: BTreeSet::new(),
            trying: false,
            epoch_given: false,
            room: false,
            service_room: false,
            reported: Vec::new(),
        }
    }

    /// Takes a change in. Costs what the change concerns; nothing is compiled yet.
    pub fn apply(&mut self, change: Change) {
        self.index.apply(change, &mut self.dirty);
    }

    /// The same cluster, compiled from nothing into empty maps: what incremental work must agree with.
    #[must_use]
    pub fn full(&self) -> Self {
        let mut full = Self::new(&self.index.node, self.capacities, Snapshot::default());
        let Index { node: _, namespaces, pods, policies, nodes, local, claims: _, endpoints, services, .. } =
            &self.index;
        let objects = namespaces.values().cloned().map(Object::Namespace);
        let objects = objects.chain(nodes.values().cloned().map(Object::Node));
        let objects = objects.chain(policies.values().cloned().map(Object::Policy));
        // An endpoint may outlive its pod's object: it is shown the pod it knows first, then what is there now.
        for entry in endpoints.values() {
            full.apply(Change::EndpointUp(entry.endpoint.clone()));
            if let Some(pod) = &entry.pod {
                full.apply(Change::Upsert(Object::Pod(pod.clone())));
                full.apply(Change::Remove(Kind::Pod, pod.name.clone()));
            }
        }
        let objects = objects.chain(pods.values().map(|entry| Object::Pod(entry.pod.clone())));
        objects.map(Change::Upsert).for_each(|change| full.apply(change));
        full.apply(Change::NodeAddresses(local.clone()));
        let objects = services.services().cloned().map(Object::Service);
        let objects = objects.chain(services.slices().map(Object::EndpointSlice));
        let objects = objects.chain(services.service_cidrs().cloned().map(Object::ServiceCidr));
        objects.map(Change::Upsert).for_each(|change| full.apply(change));
        full.apply(Change::ServiceCidrs(services.configured()));
        // Readiness is the one thing that depends on what was before.
        for number in endpoints.keys() {
            full.planned.entry(*number).or_default().ready = self.was_ready(*number);
        }
        full
    }

    /// The rule that a rule id stands for.
    #[must_use]
    pub fn rule_name(&self, rule: u32) -> Option<RuleName> {
        self.rules.get(&rule).map(|(name, _)| name.clone())
    }

    /// What is in force at an endpoint; `None` for a number that is not in use.
    #[must_use]
    pub fn endpoint_state(&self, number: u32) -> Option<EndpointState> {
        let entry = self.index.endpoints.get(&number)?;
        let planned = self.planned.get(&number).cloned().unwrap_or_default();
        let word = self.tables.words.get(&number).unwrap_or(EndpointWord(0));
        Some(EndpointState {
            pod: entry.endpoint.pod.as_ref().map(|(name, _)| name.clone()),
            set: word.set(),
            epoch: word.epoch(),
            ingress_isolated: planned.isolated[0],
            egress_isolated: planned.isolated[1],
            ready: planned.ready,
            refused: !planned.refusals.is_empty(),
        })
    }

    /// Everything that does not fit at present.
    pub fn refusals(&self) -> impl Iterator<Item = &Refusal> {
        self.verdict_refusals().chain(self.refused_services.values())
    }

    fn verdict_refusals(&self) -> impl Iterator<Item = &Refusal> {
        let endpoints = self.planned.values().flat_map(|planned| &planned.refusals);
        endpoints.chain(self.refused_addresses.values()).chain(&self.refused_ranges)
    }

    /// Figures for metrics.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            namespaces: self.index.namespaces.len(),
            pods: self.index.pods.len(),
            policies: self.index.policies.len(),
            nodes: self.index.nodes.len(),
            endpoints: self.index.endpoints.len(),
            sets: self.sets.len(),
            classes: self.classes.len(),
            peers: self.atoms.len(),
            refused: self.refusals().count(),
            maps: self.tables.quotas.used().map(|(map, used, limit)| (map.name(), used, limit)).collect(),
        }
    }
}
