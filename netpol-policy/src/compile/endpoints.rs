//! What each endpoint should have: addresses, switches, policy set; and what it gets where that does not fit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::abi::{
    AddressKey, Digest, EndpointOptions, EndpointWord, MAX_ENDPOINTS, SET_ALLOW_ALL, SET_DENY_ALL, SET_PENDING,
    endpoint_flags, names,
};

use super::index::Index;
use super::quotas::Counted;
use super::rows::Full;
use super::sets::{DIRECTIONS, SetContent};
use super::{Compiler, Planned, Refusal, Refused};
use crate::model::{ObjectName, Phase};

/// A policy set that is not there yet, and who wants it.
pub(super) struct Wanted {
    pub(super) digest: Digest,
    pub(super) content: Arc<SetContent>,
    pub(super) endpoints: BTreeSet<u32>,
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
    pub(super) fn plan_endpoints(&mut self, wanted: &mut BTreeMap<Digest, Wanted>) {
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
        // An adopted endpoint was there before us: nothing is denied until its pod's policy is ready, for which its
        // addresses must be known. Once it was, there is no way back, also not for the next agent.
        let adopted = entry.endpoint.adopted;
        let adopting = adopted && !self.was_ready(endpoint);
        let addresses = Index::endpoint_addresses(entry);
        let unaddressed = |phase: Phase| adopting && phase == Phase::Live && addresses.is_empty();
        let pod = entry.pod.as_ref().filter(|pod| !pod.host_network && !unaddressed(pod.phase));
        let Some(pod) = pod else {
            return match (adopted, adopting) {
                (_, true) => Desired::without_policy(SET_ALLOW_ALL, endpoint_flags::NO_ADDRESS_CHECK),
                (true, false) => Desired::without_policy(SET_DENY_ALL, 0),
                (false, false) => Desired::without_policy(SET_PENDING, 0),
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

    /// Whether an endpoint had its pod's policy already, perhaps from an earlier agent.
    pub(super) fn was_ready(&self, endpoint: u32) -> bool {
        let word = self.tables.words.get(&endpoint).unwrap_or(EndpointWord(0));
        let flags = self.tables.options.get(&endpoint).unwrap_or_default().flags;
        self.planned.get(&endpoint).is_some_and(|planned| planned.ready)
            || (word.0 != 0 && (word.set() != SET_ALLOW_ALL || flags & endpoint_flags::NO_ADDRESS_CHECK == 0))
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
    pub(super) fn refuse(&mut self, endpoint: u32, content: &Arc<SetContent>, Full(map): Full) {
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
    pub(super) fn check_held(&mut self) {
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
}
