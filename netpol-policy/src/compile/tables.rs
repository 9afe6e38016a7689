//! The compiler's copy of the policy maps: what they hold once the current plan is carried out, and what changed.
//!
//! A plan is found by changing the copy, freely and even back and forth, and comparing at the end: only keys whose row
//! differs from what the maps hold become operations. The copy also keeps count of rows, in all and by namespace, so
//! that what does not fit is found before it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::abi::{
    AddressKey, CLASS_NONE, ClassRow, Digest, DigestKey, EndpointOptions, EndpointWord, PortRow, RuleKey, RuleRow,
    ServiceKey, ServiceRow,
};

use super::cidr::longest_match;
use super::ports::PortKey;
use super::quotas::{Capacities, Counted, Quotas};

/// Everything that a compiler writes, as read back from the maps: what an earlier agent left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What ids stand for; of all kinds.
    pub digests: BTreeMap<DigestKey, Digest>,
    /// Rows of port sets, by prefix length in bits and key.
    pub ports: BTreeMap<PortKey, PortRow>,
    /// Verdict rows.
    pub rules: BTreeMap<RuleKey, RuleRow>,
    /// Pod and node addresses.
    pub classes: BTreeMap<IpAddr, ClassRow>,
    /// Prefixes, host bits zero, and their classes.
    pub cidrs: BTreeMap<IpNet, u32>,
    /// Words by endpoint number. Absent is zero.
    pub words: BTreeMap<u32, EndpointWord>,
    /// Addresses of endpoints.
    pub addresses: BTreeSet<AddressKey>,
    /// Switches by endpoint number. Absent is zero.
    pub options: BTreeMap<u32, EndpointOptions>,
    /// What proxies rewrite.
    pub services: BTreeMap<ServiceKey, ServiceRow>,
    /// Ranges of ClusterIPs, host bits zero.
    pub service_cidrs: BTreeSet<IpNet>,
    /// The last epoch given out.
    pub epoch: u32,
}

/// Rows of a map, and what they were before the plan.
#[derive(Clone, Debug)]
pub(super) struct Tracked<K, V> {
    rows: BTreeMap<K, V>,
    before: BTreeMap<K, Option<V>>,
}

impl<K: Ord + Copy, V: Copy + PartialEq> Tracked<K, V> {
    fn new(rows: BTreeMap<K, V>) -> Self {
        Self { rows, before: BTreeMap::new() }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.rows.get(key).copied()
    }

    pub(super) fn rows(&self) -> &BTreeMap<K, V> {
        &self.rows
    }

    fn put(&mut self, key: K, row: V) -> Option<V> {
        let old = self.rows.insert(key, row);
        if old != Some(row) {
            let _first = self.before.entry(key).or_insert(old);
        }
        old
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let old = self.rows.remove(key)?;
        let _first = self.before.entry(*key).or_insert(Some(old));
        Some(old)
    }

    /// What the row was before the plan.
    pub(super) fn before(&self, key: &K) -> Option<V> {
        self.before.get(key).copied().unwrap_or_else(|| self.get(key))
    }

    /// Keys that may have changed, with the row before the plan.
    pub(super) fn touched(&self) -> impl Iterator<Item = (K, Option<V>)> + '_ {
        self.before.iter().map(|(key, before)| (*key, *before))
    }

    /// What changed: rows that are gone, rows that are new or different.
    pub(super) fn changes(&mut self) -> (Vec<K>, Vec<(K, V)>) {
        let (mut gone, mut put) = (Vec::new(), Vec::new());
        for (key, before) in std::mem::take(&mut self.before) {
            match self.rows.get(&key) {
                None if before.is_some() => gone.push(key),
                Some(row) if before != Some(*row) => put.push((key, *row)),
                None | Some(_) => {}
            }
        }
        (gone, put)
    }
}

/// Rows of an earlier agent that nothing has asked for yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Unclaimed {
    pub(super) digests: BTreeSet<DigestKey>,
    pub(super) ports: BTreeSet<PortKey>,
    pub(super) rules: BTreeSet<RuleKey>,
}

impl Unclaimed {
    pub(super) fn is_empty(&self) -> bool {
        let Self { digests, ports, rules } = self;
        digests.is_empty() && ports.is_empty() && rules.is_empty()
    }
}

/// The copy of all maps.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub(super) digests: Tracked<DigestKey, Digest>,
    pub(super) ports: Tracked<PortKey, PortRow>,
    pub(super) rules: Tracked<RuleKey, RuleRow>,
    pub(super) classes: Tracked<IpAddr, ClassRow>,
    pub(super) cidrs: Tracked<IpNet, u32>,
    pub(super) words: Tracked<u32, EndpointWord>,
    pub(super) addresses: Tracked<AddressKey, ()>,
    pub(super) options: Tracked<u32, EndpointOptions>,
    pub(super) services: Tracked<ServiceKey, ServiceRow>,
    pub(super) service_cidrs: Tracked<IpNet, ()>,
    pub(super) unclaimed: Unclaimed,
    /// Rows of an earlier agent. Until the sweep what is removed of them only becomes unclaimed again: endpoints may
    /// still use it whose sets are not understood yet.
    earlier: Unclaimed,
    pub(super) quotas: Quotas,
}

impl Tables {
    /// What an earlier agent left. `own` tells the kinds of digests that are the compiler's.
    pub(super) fn new(capacities: &Capacities, snapshot: Snapshot, own: &[u32]) -> Self {
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
            epoch: _,
        } = snapshot;
        let mut quotas = Quotas::new(capacities);
        let mut count = |map: Counted, rows: usize| quotas.found(map, rows);
        count(Counted::Digests, digests.len());
        count(Counted::Ports, ports.len());
        count(Counted::Rules, rules.len());
        count(Counted::Addresses, addresses.len());
        count(Counted::Services, services.len());
        count(Counted::ServiceCidrs, service_cidrs.len());
        classes.keys().for_each(|address| count(Counted::classes(*address), 1));
        cidrs.keys().for_each(|prefix| count(Counted::cidrs(*prefix), 1));
        let unclaimed = Unclaimed {
            digests: digests.keys().filter(|key| own.contains(&key.kind)).copied().collect(),
            ports: ports.keys().copied().collect(),
            rules: rules.keys().copied().collect(),
        };
        Self {
            earlier: unclaimed.clone(),
            unclaimed,
            digests: Tracked::new(digests),
            ports: Tracked::new(ports),
            rules: Tracked::new(rules),
            classes: Tracked::new(classes),
            cidrs: Tracked::new(cidrs),
            words: Tracked::new(words),
            addresses: Tracked::new(addresses.into_iter().map(|key| (key, ())).collect()),
            options: Tracked::new(options),
            services: Tracked::new(services),
            service_cidrs: Tracked::new(service_cidrs.into_iter().map(|range| (range, ())).collect()),
            quotas,
        }
    }

    pub(super) fn put_digest(&mut self, key: DigestKey, digest: Digest, namespace: &str) {
        let old = self.digests.put(key, digest);
        let claimed = !self.unclaimed.digests.remove(&key);
        self.count_put(Counted::Digests, namespace, old.is_some(), claimed);
    }

    /// Removes a digest. Tells whether the id stands for nothing any more.
    pub(super) fn remove_digest(&mut self, key: DigestKey, namespace: &str) -> bool {
        if self.earlier.digests.contains(&key) {
            if self.unclaimed.digests.insert(key) {
                self.quotas.share(Counted::Digests, namespace, false);
            }
            return false;
        }
        let old = self.digests.remove(&key);
        let claimed = !self.unclaimed.digests.remove(&key);
        self.count_removal(Counted::Digests, namespace, old.is_some(), claimed);
        true
    }

    pub(super) fn put_port(&mut self, key: PortKey, row: PortRow, namespace: &str) {
        let old = self.ports.put(key, row);
        let claimed = !self.unclaimed.ports.remove(&key);
        self.count_put(Counted::Ports, namespace, old.is_some(), claimed);
    }

    pub(super) fn remove_port(&mut self, key: PortKey, namespace: &str) {
        if self.earlier.ports.contains(&key) {
            if self.unclaimed.ports.insert(key) {
                self.quotas.share(Counted::Ports, namespace, false);
            }
            return;
        }
        let old = self.ports.remove(&key);
        let claimed = !self.unclaimed.ports.remove(&key);
        self.count_removal(Counted::Ports, namespace, old.is_some(), claimed);
    }

    pub(super) fn put_rule(&mut self, key: RuleKey, row: RuleRow, namespace: &str) {
        let old = self.rules.put(key, row);
        let claimed = !self.unclaimed.rules.remove(&key);
        self.count_put(Counted::Rules, namespace, old.is_some(), claimed);
    }

    /// Removes a row and tells what it was, if it was claimed.
    pub(super) fn remove_rule(&mut self, key: RuleKey, namespace: &str) -> Option<RuleRow> {
        if self.earlier.rules.contains(&key) {
            let claimed = self.unclaimed.rules.insert(key);
            if claimed {
                self.quotas.share(Counted::Rules, namespace, false);
            }
            return self.rules.get(&key).filter(|_| claimed);
        }
        let old = self.rules.remove(&key);
        let claimed = !self.unclaimed.rules.remove(&key);
        self.count_removal(Counted::Rules, namespace, old.is_some(), claimed);
        old.filter(|_| claimed)
    }

    /// Nothing of an earlier agent is in use any more: hands over what nothing has claimed, to be removed.
    pub(super) fn end_of_earlier(&mut self) -> Unclaimed {
        self.earlier = Unclaimed::default();
        self.unclaimed.clone()
    }

    pub(super) fn put_class(&mut self, address: IpAddr, row: ClassRow) {
        if self.classes.put(address, row).is_none() {
            self.quotas.total(Counted::classes(address), true);
        }
    }

    pub(super) fn remove_class(&mut self, address: IpAddr) {
        if self.classes.remove(&address).is_some() {
            self.quotas.total(Counted::classes(address), false);
        }
    }

    pub(super) fn put_cidr(&mut self, prefix: IpNet, class: u32) {
        if self.cidrs.put(prefix, class).is_none() {
            self.quotas.total(Counted::cidrs(prefix), true);
        }
    }

    pub(super) fn remove_cidr(&mut self, prefix: IpNet) {
        if self.cidrs.remove(&prefix).is_some() {
            self.quotas.total(Counted::cidrs(prefix), false);
        }
    }

    pub(super) fn put_word(&mut self, endpoint: u32, word: EndpointWord) {
        let _old = self.words.put(endpoint, word);
    }

    pub(super) fn put_address(&mut self, key: AddressKey) {
        if self.addresses.put(key, ()).is_none() {
            self.quotas.total(Counted::Addresses, true);
        }
    }

    pub(super) fn remove_address(&mut self, key: AddressKey) {
        if self.addresses.remove(&key).is_some() {
            self.quotas.total(Counted::Addresses, false);
        }
    }

    pub(super) fn put_service(&mut self, key: ServiceKey, row: ServiceRow) {
        if self.services.put(key, row).is_none() {
            self.quotas.total(Counted::Services, true);
        }
    }

    pub(super) fn remove_service(&mut self, key: ServiceKey) {
        if self.services.remove(&key).is_some() {
            self.quotas.total(Counted::Services, false);
        }
    }

    pub(super) fn put_range(&mut self, range: IpNet) {
        if self.service_cidrs.put(range, ()).is_none() {
            self.quotas.total(Counted::ServiceCidrs, true);
        }
    }

    pub(super) fn remove_range(&mut self, range: IpNet) {
        if self.service_cidrs.remove(&range).is_some() {
            self.quotas.total(Counted::ServiceCidrs, false);
        }
    }

    pub(super) fn put_options(&mut self, endpoint: u32, options: EndpointOptions) {
        let _old = self.options.put(endpoint, options);
    }

    /// A row of an earlier agent counts in all at once, and to a namespace only from when it is claimed.
    fn count_put(&mut self, map: Counted, namespace: &str, existed: bool, claimed: bool) {
        if !existed {
            self.quotas.total(map, true);
        }
        if !existed || !claimed {
            self.quotas.share(map, namespace, true);
        }
    }

    fn count_removal(&mut self, map: Counted, namespace: &str, existed: bool, claimed: bool) {
        if existed {
            self.quotas.total(map, false);
            if claimed {
                self.quotas.share(map, namespace, false);
            }
        }
    }

    /// The class that the CIDR tries give an address.
    pub(super) fn longest_prefix(&self, address: IpAddr) -> u32 {
        longest_match(self.cidrs.rows(), address).unwrap_or(CLASS_NONE)
    }
}
