//! The maps as plain collections: what the kernel would hold if it were told the same operations.
//!
//! Used by tests and wherever a verdict is wanted without a kernel. Reads go through
//! [`netpol_common::tables::Tables`], so the very function that judges packets judges here too.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use netpol_common::abi::{
    AddressKey, CLASS_NONE, ClassRow, Counter, DecidedKey, DecidedRow, EndpointOptions, EndpointWord, FlowKey, FlowRow,
    FragmentKey, FragmentRow, InterfaceRow, PORT_PREFIX_FULL, PortKeyData, PortRow, RuleKey, RuleRow, ServiceKey,
    ServiceRow, Settings,
};
use netpol_common::tables::{FlowTable, Full, Tables};

use super::cidr::longest_match;
use super::{MapOp, Snapshot};

/// What programs write.
#[derive(Debug, Default)]
struct Written {
    embryonic: BTreeMap<FlowKey, FlowRow>,
    over_embryonic: BTreeMap<FlowKey, FlowRow>,
    confirmed: BTreeMap<FlowKey, FlowRow>,
    over_confirmed: BTreeMap<FlowKey, FlowRow>,
    held: BTreeMap<u32, i64>,
    tombstones: BTreeMap<FlowKey, FlowRow>,
    over_tombstones: BTreeMap<FlowKey, FlowRow>,
    fragments: BTreeMap<FragmentKey, FragmentRow>,
    over_fragments: BTreeMap<FragmentKey, FragmentRow>,
    decided: BTreeMap<DecidedKey, DecidedRow>,
    buckets: BTreeMap<u32, u64>,
    counters: BTreeMap<u32, Counter>,
}

/// All tables of one node, in memory.
#[derive(Debug, Default)]
pub struct MemoryTables {
    /// Settings; programs drop everything without.
    pub settings: Option<Settings>,
    /// Interfaces by index.
    pub interfaces: BTreeMap<u32, InterfaceRow>,
    policy: Snapshot,
    written: Mutex<Written>,
}

impl MemoryTables {
    /// Empty tables.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tables that hold what was read from elsewhere.
    #[must_use]
    pub fn of_snapshot(snapshot: Snapshot) -> Self {
        Self { policy: snapshot, ..Self::default() }
    }

    /// Everything that a compiler writes, as it is.
    #[must_use]
    pub const fn snapshot(&self) -> &Snapshot {
        &self.policy
    }

    /// Carries out one operation. Removing what is not there is fine, as it is in the kernel.
    pub fn apply(&mut self, op: &MapOp) {
        let Snapshot {
            digests,
            ports,
            rules,
            classes,
            cidrs,
            words,
            addresses,
            options,
            services,
            service_cidrs,
            epoch,
        } = &mut self.policy;
        match *op {
            MapOp::PutDigest(key, digest) => drop(digests.insert(key, digest)),
            MapOp::RemoveDigest(key) => drop(digests.remove(&key)),
            MapOp::PutPort { prefix_len, key, row } => drop(ports.insert((prefix_len, key), row)),
            MapOp::RemovePort { prefix_len, key } => drop(ports.remove(&(prefix_len, key))),
            MapOp::PutRule(key, row) => drop(rules.insert(key, row)),
            MapOp::RemoveRule(key) => drop(rules.remove(&key)),
            MapOp::PutClass(address, row) => drop(classes.insert(address, row)),
            MapOp::RemoveClass(address) => drop(classes.remove(&address)),
            MapOp::PutCidr(prefix, class) => drop(cidrs.insert(prefix, class)),
            MapOp::RemoveCidr(prefix) => drop(cidrs.remove(&prefix)),
            MapOp::SetWord { endpoint, word } => drop(words.insert(endpoint, word)),
            MapOp::PutAddress(key) => drop(addresses.insert(key)),
            MapOp::RemoveAddress(key) => drop(addresses.remove(&key)),
            MapOp::SetOptions { endpoint, options: new } => drop(options.insert(endpoint, new)),
            MapOp::PutService(key, row) => drop(services.insert(key, row)),
            MapOp::RemoveService(key) => drop(services.remove(&key)),
            MapOp::PutServiceCidr(prefix) => drop(service_cidrs.insert(prefix)),
            MapOp::RemoveServiceCidr(prefix) => drop(service_cidrs.remove(&prefix)),
            MapOp::SetEpoch(new) => *epoch = new,
        }
    }

    /// A counter's value.
    #[must_use]
    pub fn counter(&self, index: u32) -> Counter {
        self.written().counters.get(&index).copied().unwrap_or_default()
    }

    /// All counters that programs have written, by index.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<u32, Counter> {
        self.written().counters.clone()
    }

    /// All deferred flows that were decided.
    #[must_use]
    pub fn all_decided(&self) -> BTreeMap<DecidedKey, DecidedRow> {
        self.written().decided.clone()
    }

    /// Forgets all flows, and what was decided of deferred ones; fragments, tokens and counters stay.
    pub fn forget_flows(&mut self) {
        let Written {
            embryonic,
            over_embryonic,
            confirmed,
            over_confirmed,
            held,
            tombstones,
            over_tombstones,
            decided,
            fragments: _,
            over_fragments: _,
            buckets: _,
            counters: _,
        } = &mut *self.written();
        for flows in [embryonic, over_embryonic, confirmed, over_confirmed, tombstones, over_tombstones] {
            flows.clear();
        }
        held.clear();
        decided.clear();
    }

    /// All flows of a table.
    #[must_use]
    pub fn flows(&self, table: FlowTable) -> BTreeMap<FlowKey, FlowRow> {
        self.written().flows(table).clone()
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        // Every update is a single insert or removal: there is no half-written state to fear.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn longest_prefix(&self, address: IpAddr) -> Option<u32> {
        longest_match(&self.policy.cidrs, address)
    }
}

impl Written {
    fn flows(&mut self, table: FlowTable) -> &mut BTreeMap<FlowKey, FlowRow> {
        match table {
            FlowTable::Embryonic => &mut self.embryonic,
            FlowTable::OverEmbryonic => &mut self.over_embryonic,
            FlowTable::Confirmed => &mut self.confirmed,
            FlowTable::OverConfirmed => &mut self.over_confirmed,
            FlowTable::Tombstones => &mut self.tombstones,
            FlowTable::OverTombstones => &mut self.over_tombstones,
        }
    }
}

impl Tables for MemoryTables {
    fn settings(&self) -> Option<Settings> {
        self.settings
    }
    fn interface(&self, ifindex: u32) -> Option<InterfaceRow> {
        self.interfaces.get(&ifindex).copied()
    }
    fn endpoint_word(&self, endpoint: u32) -> Option<EndpointWord> {
        Some(self.policy.words.get(&endpoint).copied().unwrap_or(EndpointWord(0)))
    }
    fn endpoint_options(&self, endpoint: u32) -> Option<EndpointOptions> {
        Some(self.policy.options.get(&endpoint).copied().unwrap_or_default())
    }
    fn owns_address(&self, key: &AddressKey) -> bool {
        self.policy.addresses.contains(key)
    }
    fn class4(&self, address: &[u8; 4]) -> Option<ClassRow> {
        self.policy.classes.get(&IpAddr::from(*address)).copied()
    }
    fn class6(&self, address: &[u8; 16]) -> Option<ClassRow> {
        self.policy.classes.get(&IpAddr::from(*address)).copied()
    }
    fn cidr4(&self, address: &[u8; 4]) -> Option<u32> {
        self.longest_prefix(IpAddr::from(*address))
    }
    fn cidr6(&self, address: &[u8; 16]) -> Option<u32> {
        self.longest_prefix(IpAddr::from(*address))
    }
    fn rule(&self, key: &RuleKey) -> Option<RuleRow> {
        self.policy.rules.get(key).copied()
    }
    fn port(&self, key: &PortKeyData) -> Option<PortRow> {
        let port = u16::from_be_bytes(key.port);
        let set_bits = PORT_PREFIX_FULL - 16;
        (set_bits..=PORT_PREFIX_FULL).rev().find_map(|prefix_len| {
            let free = PORT_PREFIX_FULL - prefix_len;
            let masked = if free == 16 { 0 } else { port >> free << free };
            self.policy.ports.get(&(prefix_len, PortKeyData { port: masked.to_be_bytes(), ..*key })).copied()
        })
    }
    fn flow(&self, table: FlowTable, key: &FlowKey) -> Option<FlowRow> {
        self.written().flows(table).get(key).copied()
    }
    fn put_flow(&self, table: FlowTable, key: &FlowKey, row: &FlowRow) -> Result<(), Full> {
        let _old = self.written().flows(table).insert(*key, *row);
        Ok(())
    }
    fn add_flow(&self, table: FlowTable, key: &FlowKey, row: &FlowRow) -> bool {
        let mut written = self.written();
        let flows = written.flows(table);
        let refused = flows.contains_key(key);
        if !refused {
            let _none = flows.insert(*key, *row);
        }
        !refused
    }
    fn replace_flow(&self, table: FlowTable, key: &FlowKey, row: &FlowRow) -> bool {
        self.written().flows(table).get_mut(key).map(|old| *old = *row).is_some()
    }
    fn remove_flow(&self, table: FlowTable, key: &FlowKey) -> bool {
        self.written().flows(table).remove(key).is_some()
    }
    fn held(&self, account: u32) -> Option<i64> {
        Some(self.written().held.get(&account).copied().unwrap_or_default())
    }
    fn hold(&self, account: u32, add: i64) {
        *self.written().held.entry(account).or_default() += add;
    }
    fn touch_flow(&self, table: FlowTable, key: &FlowKey, last_seen: u32, phase: u32) {
        if let Some(row) = self.written().flows(table).get_mut(key) {
            row.last_seen = last_seen;
            row.phase = phase;
        }
    }
    fn service(&self, key: &ServiceKey) -> Option<ServiceRow> {
        self.policy.services.get(key).copied()
    }
    fn is_service_range(&self, address: &[u8; 16]) -> bool {
        self.policy.service_cidrs.iter().any(|range| match (range, IpAddr::from(*address).to_canonical()) {
            (IpNet::V4(range), IpAddr::V4(address)) => range.contains(&address),
            (IpNet::V6(range), IpAddr::V6(address)) => range.contains(&address),
            (IpNet::V4(_), IpAddr::V6(_)) | (IpNet::V6(_), IpAddr::V4(_)) => false,
        })
    }
    fn decided(&self, key: &DecidedKey) -> Option<DecidedRow> {
        self.written().decided.get(key).copied()
    }
    fn put_decided(&self, key: &DecidedKey, row: &DecidedRow) {
        let _old = self.written().decided.insert(*key, *row);
    }
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRow> {
        let written = self.written();
        written.fragments.get(key).or_else(|| written.over_fragments.get(key)).copied()
    }
    fn put_fragment(&self, key: &FragmentKey, row: &FragmentRow, over: bool) -> Result<(), Full> {
        let mut written = self.written();
        if over {
            let _old = written.fragments.remove(key);
            let _old = written.over_fragments.insert(*key, *row);
        } else {
            let _old = written.fragments.insert(*key, *row);
        }
        Ok(())
    }
    fn bucket(&self, index: u32) -> Option<u64> {
        Some(self.written().buckets.get(&index).copied().unwrap_or_default())
    }
    fn put_bucket(&self, index: u32, value: u64) {
        let _old = self.written().buckets.insert(index, value);
    }
    fn count(&self, index: u32, add: Counter) {
        let mut written = self.written();
        let counter = written.counters.entry(index).or_default();
        counter.packets += add.packets;
        counter.bytes += add.bytes;
    }
}

impl MemoryTables {
    /// The class that a program finds for an address.
    #[must_use]
    pub fn class_of(&self, address: IpAddr) -> u32 {
        let own = self.policy.classes.get(&address).map(|row| row.class);
        own.or_else(|| self.longest_prefix(address)).unwrap_or(CLASS_NONE)
    }
}
