//! From what is marked to operations, in an order in which no moment shows anything but the old answer or the new one.
//!
//! 1. Rows that nothing can reach any more are deleted: what they belonged to was given up at least a grace period ago.
//! 2. Digests, port sets and verdict rows are written. Nothing refers to them yet.
//! 3. Endpoints that are gone, or whose set had to give way, are denied.
//! 4. Prefixes and addresses get their classes: one write each, old answer or new. Where only policies changed, both
//!    classes have the same answers for all sets in use, in any mixture of old and new rows.
//! 5. Endpoints get their addresses and switches, then their words: set and epoch in one store.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::abi::{
    AddressKey, Digest, EndpointOptions, EndpointWord, MAX_ENDPOINTS, SET_ALLOW_ALL, SET_DENY_ALL, SET_PENDING,
    endpoint_flags, id_kind, names,
};

use super::index::Index;
use super::population::Overflow;
use super::rows::Full;
use super::sets::{DIRECTIONS, SetContent};
use super::tables::Counted;
use super::{Compiler, GRACE_MS, MapOp, Plan, Planned, Refusal, Refused};
use crate::model::{ObjectName, Phase};

/// A policy set that is not there yet, and who wants it.
struct Wanted {
    digest: Digest,
    content: Arc<SetContent>,
    endpoints: BTreeSet<u32>,
}

/// What an endpoint should have.
struct Desired {
    addresses: BTreeSet<IpAddr>,
    flags: u32,
    ready: bool,
    isolated: [bool; 2],
    set: DesiredSet,
    namespace: String,
}

enum DesiredSet {
    /// One of the sets that need no rows.
    Fixed(u32),
    Content(SetContent),
}

impl Desired {
    fn without_policy(set: u32, flags: u32) -> Self {
        Self {
            addresses: BTreeSet::new(),
            flags,
            ready: false,
            isolated: [false; 2],
            set: DesiredSet::Fixed(set),
            namespace: String::new(),
        }
    }
}

impl Compiler {
    /// Says what to write. `now_ms` is any clock that does not go back. Every operation must be carried out, in order,
    /// before the next plan is asked for.
    pub fn plan(&mut self, now_ms: u64) -> Plan {
        self.now_ms = now_ms;
        let first = self.inherited.take_unread();
        if first {
            self.look_at_everything();
        }
        let cluster_changed = !self.dirty.pods.is_empty() || !self.dirty.addresses.is_empty();
        let mut wanted = BTreeMap::new();
        self.plan_endpoints(&mut wanted);
        self.expire();
        if std::mem::take(&mut self.room) {
            self.reconsider();
            self.plan_endpoints(&mut wanted);
        }
        if first {
            self.inherit_sets(&wanted.keys().copied().collect());
        }
        self.admit(wanted.into_values().collect());
        if cluster_changed {
            self.check_held();
        }
        self.set_words();
        let ops = self.emit();
        self.fresh_classes.clear();
        if first {
            if self.tables.unclaimed.is_empty() {
                let _none = self.tables.end_of_earlier();
            } else {
                self.inherited.sweep_at = Some(now_ms + GRACE_MS);
            }
        }
        Plan { ops, refused: self.newly_refused(), wake_at_ms: self.wake_at() }
    }

    /// The first plan compares all that the maps hold.
    fn look_at_everything(&mut self) {
        self.dirty.addresses.extend(self.tables.classes.rows().keys());
        self.dirty.prefixes.extend(self.tables.cidrs.rows().keys());
        let words = self.tables.words.rows().iter().filter(|(_, word)| word.0 != 0).map(|(endpoint, _)| *endpoint);
        let options = self.tables.options.rows().iter().filter(|(_, options)| options.flags != 0);
        let addresses = self.tables.addresses.rows().keys().map(|key| key.endpoint);
        self.dirty.endpoints.extend(words.chain(options.map(|(endpoint, _)| *endpoint)).chain(addresses));
    }

    /// There is room again: what was refused may fit now.
    fn reconsider(&mut self) {
        let refused = self.planned.iter().filter(|(_, planned)| !planned.refusals.is_empty());
        self.dirty.endpoints.extend(refused.map(|(endpoint, _)| *endpoint));
        self.dirty.addresses.extend(self.refused_addresses.keys());
        self.dirty.prefixes.append(&mut self.stuck_prefixes);
    }

    fn plan_endpoints(&mut self, wanted: &mut BTreeMap<Digest, Wanted>) {
        while let Some(endpoint) = self.dirty.endpoints.pop_first() {
            if endpoint >= self.capacities.endpoints.min(MAX_ENDPOINTS) {
                let refusals = match self.index.endpoints.get(&endpoint) {
                    Some(entry) => {
                        let objects = entry.endpoint.pod.iter().map(|(name, _)| name.clone()).collect();
                        let what = Refused::Endpoint(endpoint);
                        vec![Refusal { what, objects, map: names::ENDPOINT_WORDS }]
                    }
                    None => Vec::new(),
                };
                self.planned.entry(endpoint).or_default().refusals = refusals;
                continue;
            }
            let desired = self.desired(endpoint);
            self.plan_endpoint(endpoint, desired, wanted);
        }
    }

    fn desired(&self, endpoint: u32) -> Desired {
        let Some(entry) = self.index.endpoints.get(&endpoint) else {
            return Desired::without_policy(SET_PENDING, 0);
        };
        let adopted = entry.endpoint.adopted;
        let addresses = Index::endpoint_addresses(entry);
        // An adopted endpoint was there before us. As long as its addresses are not known, checking them would cut it.
        let unaddressed = |phase: Phase| adopted && phase == Phase::Live && addresses.is_empty();
        let pod = entry.pod.as_ref().filter(|pod| !pod.host_network && !unaddressed(pod.phase));
        let Some(pod) = pod else {
            return if adopted {
                Desired::without_policy(SET_ALLOW_ALL, endpoint_flags::NO_ADDRESS_CHECK)
            } else {
                Desired::without_policy(SET_PENDING, 0)
            };
        };
        let content = SetContent::new(pod, entry.policies.iter().filter_map(|name| self.index.policies.get(name)));
        let isolated = content.isolated();
        let set = if isolated == [false; 2] {
            DesiredSet::Fixed(SET_ALLOW_ALL)
        } else if content.denies_all() {
            DesiredSet::Fixed(SET_DENY_ALL)
        } else {
            DesiredSet::Content(content)
        };
        let flags = if pod.address_check_off { endpoint_flags::NO_ADDRESS_CHECK } else { 0 };
        Desired { addresses, flags, ready: true, isolated, set, namespace: pod.name.namespace.clone() }
    }

    fn plan_endpoint(&mut self, endpoint: u32, desired: Desired, wanted: &mut BTreeMap<Digest, Wanted>) {
        let Desired { addresses, flags, ready, isolated, set, namespace } = desired;
        let before = self.planned.entry(endpoint).or_default();
        let old_namespace = std::mem::replace(&mut before.namespace, namespace.clone());
        before.ready = ready;
        before.isolated = isolated;
        before.refusals.clear();
        before.held_for = None;
        self.plan_addresses(endpoint, &addresses, &old_namespace, &namespace);
        let options = self.tables.options.get(&endpoint).unwrap_or_default();
        if options.flags != flags {
            self.tables.put_options(endpoint, EndpointOptions { flags, ..options });
        }
        match set {
            DesiredSet::Fixed(set) => self.retarget(endpoint, set),
            DesiredSet::Content(content) => {
                let digest = content.digest();
                match self.sets_by_digest.get(&digest).copied() {
                    Some(set) if self.sets.get(&set).is_some_and(|entry| entry.evicted) => {
                        self.refuse(endpoint, &Arc::new(content), Full(Counted::Rules));
                    }
                    Some(set) => self.retarget(endpoint, set),
                    None => {
                        let wanted = wanted.entry(digest).or_insert_with(|| Wanted {
                            digest,
                            content: Arc::new(content),
                            endpoints: BTreeSet::new(),
                        });
                        let _new = wanted.endpoints.insert(endpoint);
                    }
                }
            }
        }
    }

    fn plan_addresses(&mut self, endpoint: u32, addresses: &BTreeSet<IpAddr>, old_owner: &str, owner: &str) {
        let key = |address: &IpAddr| {
            let address = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            AddressKey { endpoint, address }
        };
        let wanted: BTreeMap<AddressKey, IpAddr> = addresses.iter().map(|address| (key(address), *address)).collect();
        let all = AddressKey { endpoint, address: [0; 16] }..=AddressKey { endpoint, address: [0xff; 16] };
        let held: Vec<AddressKey> = self.tables.addresses.rows().range(all).map(|(key, ())| *key).collect();
        let owned = self.planned.get_mut(&endpoint).map(|planned| std::mem::take(&mut planned.addresses));
        for key in held {
            if !wanted.contains_key(&key) {
                self.tables.remove_address(key);
            }
        }
        for _ in owned.unwrap_or_default() {
            self.tables.quotas.share(Counted::Addresses, old_owner, false);
        }
        let mut owned = BTreeSet::new();
        for (key, address) in wanted {
            if self.tables.addresses.get(&key).is_none() && !self.tables.quotas.has_room_for_address(owner) {
                let what = Refused::EndpointAddress { endpoint, address };
                let objects = self.pod_name(endpoint).into_iter().collect();
                if let Some(planned) = self.planned.get_mut(&endpoint) {
                    planned.refusals.push(Refusal { what, objects, map: Counted::Addresses.name() });
                }
                continue;
            }
            self.tables.put_address(key);
            self.tables.quotas.share(Counted::Addresses, owner, true);
            let _new = owned.insert(address);
        }
        if let Some(planned) = self.planned.get_mut(&endpoint) {
            planned.addresses = owned;
        }
    }

    fn pod_name(&self, endpoint: u32) -> Option<ObjectName> {
        self.index.endpoints.get(&endpoint)?.endpoint.pod.as_ref().map(|(name, _)| name.clone())
    }

    /// Gives an endpoint another set. It leaves its old one when the words are stored.
    pub(super) fn retarget(&mut self, endpoint: u32, set: u32) {
        let planned = self.planned.entry(endpoint).or_default();
        let old = std::mem::replace(&mut planned.set, set);
        let _new = self.retargeted.insert((endpoint, old));
        if let Some(entry) = self.sets.get_mut(&set) {
            let _new = entry.users.insert(endpoint);
            entry.idle_since = None;
        }
    }

    /// Gives an endpoint the deny-all set, because what it should have does not fit.
    pub(super) fn deny(&mut self, endpoint: u32, refusal: Refusal) {
        let planned = self.planned.entry(endpoint).or_default();
        planned.held_for = None;
        if !planned.refusals.contains(&refusal) {
            planned.refusals.push(refusal);
        }
        self.retarget(endpoint, SET_DENY_ALL);
        // Not after addresses have moved: the set it leaves may lack rows for where they go.
        let _new = self.early.insert(endpoint);
    }

    /// An endpoint's set does not fit: it keeps the one it has if that permits no more, and is denied else.
    fn refuse(&mut self, endpoint: u32, content: &Arc<SetContent>, Full(map): Full) {
        let objects = content.policies.iter().cloned().collect();
        let refusal = Refusal { what: Refused::PolicySet { endpoint }, objects, map: map.name() };
        let held = self.tables.words.get(&endpoint).map_or(SET_PENDING, EndpointWord::set);
        if self.may_hold(held, content) {
            self.retarget(endpoint, held);
            let planned: &mut Planned = self.planned.entry(endpoint).or_default();
            planned.held_for = Some(Arc::clone(content));
            planned.refusals.push(refusal);
        } else {
            self.deny(endpoint, refusal);
        }
    }

    /// Whether a set in use permits no more than a content, to any class there is. Peers that only the new one names
    /// are in no class yet; what they would add is withheld.
    fn may_hold(&self, held: u32, content: &SetContent) -> bool {
        let Some(entry) = self.sets.get(&held) else { return false };
        let Some(known) = entry.known.as_ref().filter(|_| !entry.evicted) else { return false };
        let lower = content.resolve(|atom| self.atoms.find(atom), |_| netpol_common::abi::RULE_NONE);
        self.classes.ids().filter_map(|id| self.classes.get(id)).all(|class| {
            DIRECTIONS.into_iter().all(|direction| {
                known.answer(direction, &class.content).within(&lower.answer(direction, &class.content))
            })
        })
    }

    /// Sets that were only kept because they permit no more must still do so.
    fn check_held(&mut self) {
        let held: Vec<(u32, u32, Arc<SetContent>, Vec<Refusal>)> = self
            .planned
            .iter()
            .filter_map(|(endpoint, planned)| {
                Some((*endpoint, planned.set, planned.held_for.clone()?, planned.refusals.clone()))
            })
            .collect();
        for (endpoint, set, content, refusals) in held {
            if !self.may_hold(set, &content) {
                for refusal in refusals {
                    self.deny(endpoint, refusal);
                }
            }
        }
    }

    /// Removes what nothing refers to since a grace period.
    fn expire(&mut self) {
        let now = self.now_ms;
        let over = |since: u64| since + GRACE_MS <= now;
        let sets = self.sets.iter().filter(|(_, set)| set.users.is_empty() && set.idle_since.is_some_and(over));
        for set in sets.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.remove_set(set);
            self.room = true;
        }
        for class in self.classes.idle().filter(|(_, since)| over(*since)).map(|(id, _)| id).collect::<Vec<_>>() {
            self.remove_class(class);
            self.room = true;
        }
        self.sweep();
    }

    /// Brings new sets in: all at once if they fit, else one after the other, those that fit.
    fn admit(&mut self, mut wanted: Vec<Wanted>) {
        if wanted.is_empty() {
            self.settle_what_fits();
            return;
        }
        if self.try_sets(&wanted).is_err() {
            // What an earlier agent had in force stays in force rather than what it had to refuse.
            wanted.sort_by_key(|wanted| (!self.is_in_force(wanted), wanted.endpoints.first().copied()));
            for wanted in wanted {
                match self.try_sets(std::slice::from_ref(&wanted)) {
                    Ok(()) => self.hand_out(&wanted),
                    Err(full) => {
                        for endpoint in &wanted.endpoints {
                            self.refuse(*endpoint, &wanted.content, full);
                        }
                    }
                }
            }
        } else {
            wanted.iter().for_each(|wanted| self.hand_out(wanted));
        }
    }

    fn is_in_force(&self, Wanted { digest, content: _, endpoints }: &Wanted) -> bool {
        let words = endpoints.iter().filter_map(|endpoint| self.tables.words.get(endpoint));
        words.into_iter().any(|word| self.ids.digest(id_kind::SET, word.set()) == Some(*digest))
    }

    fn hand_out(&mut self, Wanted { digest, content: _, endpoints }: &Wanted) {
        if let Some(set) = self.sets_by_digest.get(digest).copied() {
            for endpoint in endpoints {
                self.retarget(*endpoint, set);
            }
        }
    }

    fn try_sets(&mut self, wanted: &[Wanted]) -> Result<(), Full> {
        self.trying = true;
        let result = wanted
            .iter()
            .try_for_each(|wanted| self.add_set(&wanted.content, wanted.digest).map(|_set| ()))
            .and_then(|()| self.settle(Overflow::GiveUp));
        self.trying = false;
        if result.is_err() {
            for wanted in wanted {
                if let Some(set) = self.sets_by_digest.get(&wanted.digest).copied() {
                    self.remove_set(set);
                }
            }
            self.settle_what_fits();
        }
        result
    }

    fn settle_what_fits(&mut self) {
        // With a fallback for everything there is no failure left.
        let _ok = self.settle(Overflow::Fallback);
    }

    /// Stores words: of endpoints with another set, and of those for which the answer to an address changed, because
    /// their flows must be judged again.
    fn set_words(&mut self) {
        let bumped = self.bumped();
        let retargeted = std::mem::take(&mut self.retargeted);
        let endpoints: BTreeSet<u32> = retargeted.iter().map(|(endpoint, _)| *endpoint).chain(bumped.clone()).collect();
        let mut epoch = None;
        for endpoint in endpoints {
            let set = self.planned.get(&endpoint).map_or(SET_PENDING, |planned| planned.set);
            let old = self.tables.words.get(&endpoint).unwrap_or(EndpointWord(0));
            if set == SET_PENDING {
                if old.0 != 0 {
                    self.tables.put_word(endpoint, EndpointWord(0));
                    // What has no policy any more must not see rows made for others.
                    let _new = self.early.insert(endpoint);
                }
            } else if old.set() != set || bumped.contains(&endpoint) {
                let epoch = *epoch.get_or_insert_with(|| match self.epoch.wrapping_add(1) {
                    0 => 1,
                    next => next,
                });
                self.tables.put_word(endpoint, EndpointWord::new(set, epoch));
            }
        }
        if let Some(epoch) = epoch {
            self.epoch = epoch;
            self.epoch_given = true;
        }
        for (endpoint, old) in retargeted {
            let now = self.planned.get(&endpoint).map_or(SET_PENDING, |planned| planned.set);
            self.leave(endpoint, old, now);
            if !self.index.endpoints.contains_key(&endpoint) {
                let _gone = self.planned.remove(&endpoint);
            }
        }
        // What an earlier agent gave is left with the first word of ours.
        let inherited: Vec<u32> = self.sets.iter().filter(|(_, set)| set.known.is_none()).map(|(id, _)| *id).collect();
        for set in inherited {
            let users = self.sets.get(&set).map(|entry| entry.users.clone()).unwrap_or_default();
            for endpoint in users {
                let now = self.planned.get(&endpoint).map_or(SET_PENDING, |planned| planned.set);
                self.leave(endpoint, set, now);
            }
        }
    }

    fn leave(&mut self, endpoint: u32, old: u32, now: u32) {
        if old != now
            && let Some(entry) = self.sets.get_mut(&old)
            && entry.users.remove(&endpoint)
            && entry.users.is_empty()
        {
            entry.idle_since = Some(self.now_ms);
        }
    }

    /// Endpoints whose set gives another answer for the class that an address has now than for the one it had.
    fn bumped(&self) -> BTreeSet<u32> {
        let mut moves = BTreeSet::new();
        for (address, before) in self.tables.classes.touched() {
            let class = |row: Option<netpol_common::abi::ClassRow>| {
                // Prefixes only move between classes that all sets in use answer alike, so the present one will do.
                row.map_or_else(|| self.tables.longest_prefix(address), |row| row.class)
            };
            let (old, new) = (class(before), class(self.tables.classes.get(&address)));
            if old != new {
                let _new = moves.insert((old, new));
            }
        }
        let mut bumped = BTreeSet::new();
        for (old, new) in moves {
            for set in self.telling_apart(old, new) {
                bumped.extend(self.sets.get(&set).into_iter().flat_map(|entry| &entry.users));
            }
        }
        bumped
    }

    /// Sets whose answers for two classes differ.
    fn telling_apart(&self, old: u32, new: u32) -> Vec<u32> {
        let in_use = |set: &u32| self.sets.get(set).is_some_and(|entry| !entry.users.is_empty());
        let contents = self.classes.get(old).zip(self.classes.get(new)).map(|(old, new)| (&old.content, &new.content));
        let Some((old_content, new_content)) = contents else {
            // One is an earlier agent's, of which only the rows are known.
            let differs = |set: &u32| self.effective_rows(*set, old) != self.effective_rows(*set, new);
            return self.sets.keys().copied().filter(in_use).filter(differs).collect();
        };
        let differs = |set: &u32| {
            self.sets.get(set).and_then(|entry| entry.known.as_ref()).is_some_and(|known| {
                DIRECTIONS.into_iter().any(|direction| {
                    !known.answer(direction, old_content).permits_same(&known.answer(direction, new_content))
                })
            })
        };
        let mut sets = BTreeSet::new();
        for atom in old_content.difference(new_content) {
            sets.extend(self.atoms.get(atom).into_iter().flat_map(|entry| &entry.sets));
        }
        sets.into_iter().filter(in_use).filter(differs).collect()
    }

    fn emit(&mut self) -> Vec<MapOp> {
        let tables = &mut self.tables;
        let (rules_gone, rules) = tables.rules.changes();
        let (ports_gone, ports) = tables.ports.changes();
        let (digests_gone, digests) = tables.digests.changes();
        let (cidrs_gone, cidrs) = tables.cidrs.changes();
        let (classes_gone, classes) = tables.classes.changes();
        let (addresses_gone, addresses) = tables.addresses.changes();
        let (_, options) = tables.options.changes();
        let (_, words) = tables.words.changes();
        self.room = !rules_gone.is_empty()
            || !ports_gone.is_empty()
            || !digests_gone.is_empty()
            || !cidrs_gone.is_empty()
            || !classes_gone.is_empty()
            || !addresses_gone.is_empty();
        let mut ops = Vec::new();
        // A class's row for any protocol comes last in order, and means that the others are there.
        ops.extend(rules_gone.into_iter().rev().map(MapOp::RemoveRule));
        ops.extend(ports_gone.into_iter().map(|(prefix_len, key)| MapOp::RemovePort { prefix_len, key }));
        ops.extend(digests_gone.into_iter().map(MapOp::RemoveDigest));
        ops.extend(digests.into_iter().map(|(key, digest)| MapOp::PutDigest(key, digest)));
        ops.extend(ports.into_iter().map(|((prefix_len, key), row)| MapOp::PutPort { prefix_len, key, row }));
        ops.extend(rules.into_iter().map(|(key, row)| MapOp::PutRule(key, row)));
        let early = std::mem::take(&mut self.early);
        let (early, words): (Vec<_>, Vec<_>) = words.into_iter().partition(|(endpoint, _)| early.contains(endpoint));
        if std::mem::take(&mut self.epoch_given) {
            ops.push(MapOp::SetEpoch(self.epoch));
        }
        let set_word = |(endpoint, word)| MapOp::SetWord { endpoint, word };
        for endpoint in std::mem::take(&mut self.inherited.at_a_loss) {
            if let Some((_, word)) = words.iter().find(|(other, _)| *other == endpoint) {
                ops.push(set_word((endpoint, EndpointWord::new(SET_DENY_ALL, word.epoch()))));
            }
        }
        ops.extend(early.into_iter().map(set_word));
        ops.extend(cidrs_gone.into_iter().map(MapOp::RemoveCidr));
        ops.extend(cidrs.into_iter().map(|(prefix, class)| MapOp::PutCidr(prefix, class)));
        ops.extend(classes_gone.into_iter().map(MapOp::RemoveClass));
        ops.extend(classes.into_iter().map(|(address, row)| MapOp::PutClass(address, row)));
        ops.extend(addresses_gone.into_iter().map(MapOp::RemoveAddress));
        ops.extend(addresses.into_iter().map(|(key, ())| MapOp::PutAddress(key)));
        ops.extend(options.into_iter().map(|(endpoint, options)| MapOp::SetOptions { endpoint, options }));
        ops.extend(words.into_iter().map(set_word));
        ops
    }

    fn newly_refused(&mut self) -> Vec<Refusal> {
        let now: Vec<Refusal> = self.refusals().cloned().collect();
        let new = now.iter().filter(|refusal| !self.reported.contains(refusal)).cloned().collect();
        self.reported = now;
        new
    }

    fn wake_at(&self) -> Option<u64> {
        let sets = self.sets.values().filter(|set| set.users.is_empty()).filter_map(|set| set.idle_since);
        let idle = sets.chain(self.classes.idle().map(|(_, since)| since)).min().map(|since| since + GRACE_MS);
        let retry = (self.room && self.refusals().next().is_some()).then_some(self.now_ms + GRACE_MS);
        [idle, retry, self.inherited.sweep_at].into_iter().flatten().min()
    }
}
