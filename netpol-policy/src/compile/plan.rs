//! From what is marked to operations, in an order in which no moment shows anything but the old answer or the new one.
//!
//! 1. Rows that nothing can reach any more are deleted: what they belonged to was given up at least a grace period ago.
//! 2. Digests, port sets and verdict rows are written. Nothing refers to them yet.
//! 3. Endpoints that are gone, or whose set had to give way, are denied.
//! 4. Prefixes and addresses get their classes: one write each, old answer or new. Where only policies changed, both
//!    classes have the same answers for all sets in use, in any mixture of old and new rows.
//! 5. Endpoints get their addresses and switches; what proxies rewrite is brought up to date.
//! 6. Endpoints get their words: set and epoch in one store.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::abi::{
    ClassRow, EndpointOptions, EndpointWord, SET_DENY_ALL, SET_PENDING, address_kind, endpoint_flags,
};

use super::sets::DIRECTIONS;
use super::{Compiler, GRACE_MS, MapOp, Plan, Refusal};

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
        if std::mem::take(&mut self.service_room) {
            self.dirty.services.extend(self.refused_services.keys());
        }
        if first {
            self.inherit_sets(&wanted.keys().copied().collect());
        }
        self.admit(wanted.into_values().collect());
        if cluster_changed {
            self.check_held();
        }
        self.plan_services();
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
        self.dirty.services.extend(self.tables.services.rows().keys());
        self.dirty.service_ranges = true;
        self.dirty.endpoints.extend(words.chain(options.map(|(endpoint, _)| *endpoint)).chain(addresses));
    }

    /// There is room again: what was refused may fit now.
    fn reconsider(&mut self) {
        let refused = self.planned.iter().filter(|(_, planned)| !planned.refusals.is_empty());
        self.dirty.endpoints.extend(refused.map(|(endpoint, _)| *endpoint));
        self.dirty.addresses.extend(self.refused_addresses.keys());
        self.dirty.prefixes.append(&mut self.stuck_prefixes);
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
            let class = |row: Option<ClassRow>| {
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
        bumped.extend(self.checked_anew());
        bumped.extend(self.led_elsewhere());
        bumped
    }

    /// Endpoints with flows that were let on under weaker checks of decision D8 than are in force now: their addresses
    /// were not checked, or one was taken away, or an address has become a node's (which the overlay must not reach).
    fn checked_anew(&self) -> BTreeSet<u32> {
        let is_node = |row: Option<ClassRow>| row.is_some_and(|row| address_kind::is_heard_by_a_node(row.kind));
        let mut classes = self.tables.classes.touched();
        if classes.any(|(address, before)| !is_node(before) && is_node(self.tables.classes.get(&address))) {
            return self.planned.keys().copied().collect();
        }
        let unchecked = |options: Option<EndpointOptions>| {
            options.is_some_and(|options| options.flags & endpoint_flags::NO_ADDRESS_CHECK != 0)
        };
        let options = self.tables.options.touched();
        let checked =
            options.filter(|(endpoint, before)| unchecked(*before) && !unchecked(self.tables.options.get(endpoint)));
        let addresses = self.tables.addresses.touched();
        let taken = addresses.filter(|(key, before)| before.is_some() && self.tables.addresses.get(key).is_none());
        checked.map(|(endpoint, _)| endpoint).chain(taken.map(|(key, _)| key.endpoint)).collect()
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
        let (services_gone, services) = tables.services.changes();
        let (ranges_gone, ranges) = tables.service_cidrs.changes();
        let (_, words) = tables.words.changes();
        self.service_room = !services_gone.is_empty();
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
        ops.extend(services_gone.into_iter().map(MapOp::RemoveService));
        ops.extend(services.into_iter().map(|(key, row)| MapOp::PutService(key, row)));
        ops.extend(ranges_gone.into_iter().map(MapOp::RemoveServiceCidr));
        ops.extend(ranges.into_iter().map(|(range, ())| MapOp::PutServiceCidr(range)));
        ops.extend(words.into_iter().map(set_word));
        ops
    }

    fn newly_refused(&mut self) -> Vec<Refusal> {
        // Services are apart because there can be very many.
        let now: Vec<Refusal> = self.verdict_refusals().cloned().collect();
        let mut new: Vec<Refusal> = now.iter().filter(|refusal| !self.reported.contains(refusal)).cloned().collect();
        self.reported = now;
        new.append(&mut self.newly_refused_services);
        new
    }

    fn wake_at(&self) -> Option<u64> {
        let sets = self.sets.values().filter(|set| set.users.is_empty()).filter_map(|set| set.idle_since);
        let idle = sets.chain(self.classes.idle().map(|(_, since)| since)).min().map(|since| since + GRACE_MS);
        let retry = self.room && self.verdict_refusals().next().is_some()
            || self.service_room && !self.refused_services.is_empty();
        let retry = retry.then_some(self.now_ms + GRACE_MS);
        [idle, retry, self.inherited.sweep_at].into_iter().flatten().min()
    }
}
