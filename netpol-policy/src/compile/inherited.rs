//! What an earlier agent left whose meaning is not known any more.
//!
//! A restarted agent knows a set or class again by its digest if it computes the same content. If policies changed
//! meanwhile, endpoints still have sets of which only the rows are known, and must go on getting the same answers until
//! they flip. So each class that the maps held becomes an atom of its own, which those sets refer to and which
//! contains exactly the addresses that had the class: joint classes then come about by themselves, and the rows of
//! such a set for a new class are copies of its rows for the old one. Class 0 gets an atom like the others: else a new
//! class could be taken for an old one of the same content whose rows for such a set say something else. When the last
//! such set has gone, so do its atoms.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netpol_common::abi::{CLASS_NONE, Digest, SET_FIRST, id_kind};

use super::atoms::{Atom, AtomId, Atoms};
use super::classes::ClassContent;
use super::{Compiler, SetEntry, Snapshot};

/// Classes of addresses as an earlier agent left them.
#[derive(Clone, Debug, Default)]
pub(super) struct Inherited {
    classes: BTreeMap<IpAddr, u32>,
    cidrs: BTreeMap<IpNet, u32>,
    /// Atoms by class, while they live.
    atoms: BTreeMap<u32, AtomId>,
    /// Tells these classes from those of an agent before, should it have died in the middle of the same.
    generation: u32,
    /// The maps were not looked at yet.
    unread: bool,
    /// Endpoints that cannot be shown their old answers until they flip, because the classes for that do not fit: they
    /// are denied meanwhile.
    pub(super) at_a_loss: BTreeSet<u32>,
    /// When rows that nothing asked for go.
    pub(super) sweep_at: Option<u64>,
}

impl Inherited {
    pub(super) fn new(snapshot: &Snapshot) -> Self {
        Self {
            classes: snapshot.classes.iter().map(|(address, row)| (*address, row.class)).collect(),
            cidrs: snapshot.cidrs.clone(),
            atoms: BTreeMap::new(),
            generation: snapshot
                .digests
                .keys()
                .filter(|key| key.kind == id_kind::CLASS)
                .map(|key| key.id)
                .max()
                .unwrap_or(0),
            unread: true,
            at_a_loss: BTreeSet::new(),
            sweep_at: None,
        }
    }

    /// Whether this is the first plan.
    pub(super) fn take_unread(&mut self) -> bool {
        std::mem::take(&mut self.unread)
    }

    /// The earlier class that a class stands in for.
    pub(super) fn class_of(&self, atoms: &Atoms, content: &ClassContent) -> u32 {
        let inherited = content.atoms().into_iter().find_map(|id| match atoms.get(id)?.atom {
            Atom::Inherited { class, generation: _ } => Some(class),
            Atom::Pods(_) | Atom::Block(_) | Atom::NamedPort { .. } => None,
        });
        inherited.unwrap_or(CLASS_NONE)
    }

    /// The row of a pod's or node's address outweighs those of the prefixes around it.
    pub(super) fn correct(&self, address: IpAddr, blocks: &mut BTreeSet<AtomId>) {
        if self.atoms.is_empty() {
            return;
        }
        if let Some(class) = self.classes.get(&address) {
            for atom in self.atoms.values() {
                let _was = blocks.remove(atom);
            }
            blocks.extend(self.atoms.get(class));
        }
    }
}

impl Compiler {
    /// Takes over sets of which only the rows are known, for the endpoints that have them; those whose content is
    /// wanted again are known.
    pub(super) fn inherit_sets(&mut self, wanted: &BTreeSet<Digest>) {
        let mut unknown: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for (endpoint, word) in self.tables.words.rows() {
            let set = word.set();
            let known = self
                .ids
                .digest(id_kind::SET, set)
                .is_some_and(|digest| wanted.contains(&digest) && self.ids.find(id_kind::SET, &digest) == Some(set));
            if set >= SET_FIRST && !known && self.index.endpoints.contains_key(endpoint) {
                let _new = unknown.entry(set).or_default().insert(*endpoint);
            }
        }
        if unknown.is_empty() {
            return;
        }
        let classes = self.inherited.classes.values().chain(self.inherited.cidrs.values());
        let classes: BTreeSet<u32> = classes.copied().chain([CLASS_NONE]).collect();
        let generation = self.inherited.generation;
        for (set, users) in unknown {
            let mut atoms = BTreeSet::new();
            for class in &classes {
                let (id, _) = self.atoms.refer(&Atom::Inherited { class: *class, generation }, set);
                let _known = self.inherited.atoms.insert(*class, id);
                let _new = atoms.insert(id);
            }
            let entry = SetEntry {
                known: None,
                digest: self.ids.digest(id_kind::SET, set).unwrap_or_default(),
                namespace: String::new(),
                policies: BTreeSet::new(),
                atoms,
                rules: Vec::new(),
                prefixes: BTreeSet::new(),
                classes: BTreeSet::new(),
                users,
                idle_since: None,
                evicted: false,
            };
            let _none = self.sets.insert(set, entry);
            // Should its policies come back, they get a set whose content is known.
            self.ids.disown(id_kind::SET, set);
        }
        self.inherited_boundaries(true);
    }

    /// A class did not fit, and what stands in for it has no rows for sets of which only the rows are known.
    pub(super) fn lose_inherited(&mut self) {
        let inherited = self.sets.values().filter(|set| set.known.is_none());
        self.inherited.at_a_loss.extend(inherited.flat_map(|set| &set.users));
    }

    /// Enters or clears the places where the inherited class changes.
    fn inherited_boundaries(&mut self, enter: bool) {
        let mut path: Vec<(IpNet, u32)> = Vec::new();
        let mut cidrs = self.inherited.cidrs.clone();
        for everything in [IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())] {
            let _class = cidrs.entry(everything).or_insert(CLASS_NONE);
        }
        for (prefix, class) in &cidrs {
            while path.last().is_some_and(|(around, _)| !around.contains(prefix)) {
                let _left = path.pop();
            }
            let around = path.last().map(|(_, class)| *class);
            path.push((*prefix, *class));
            if around == Some(*class) {
                continue;
            }
            let begins = self.inherited.atoms.get(class);
            let ends = around.and_then(|around| self.inherited.atoms.get(&around));
            for id in begins.into_iter().chain(ends) {
                if !enter {
                    self.prefixes.clear(*id, *prefix);
                } else if Some(id) == begins {
                    self.prefixes.begin(*id, *prefix);
                } else {
                    self.prefixes.end(*id, *prefix);
                }
            }
        }
        self.dirty.addresses.extend(self.inherited.classes.keys());
        self.dirty.addresses.extend(self.index.claims.keys());
        self.dirty.prefixes.extend(cidrs.keys());
    }

    /// The last inherited set has gone: what its classes were does not matter any more.
    pub(super) fn disinherit(&mut self) {
        if self.inherited.atoms.is_empty() || self.sets.values().any(|set| set.known.is_none()) {
            return;
        }
        self.inherited_boundaries(false);
        self.inherited.atoms.clear();
        self.inherited.classes.clear();
        self.inherited.cidrs.clear();
    }

    /// Deletes what an earlier agent left and nothing has asked for.
    pub(super) fn sweep(&mut self) {
        if self.inherited.sweep_at.is_none_or(|at| at > self.now_ms) {
            return;
        }
        self.inherited.sweep_at = None;
        let unclaimed = self.tables.end_of_earlier();
        for key in unclaimed.rules {
            let _row = self.tables.remove_rule(key, "");
        }
        for key in unclaimed.ports {
            self.tables.remove_port(key, "");
        }
        for key in unclaimed.digests {
            self.release(key.kind, key.id, "");
        }
        if self.sets.values().all(|set| set.known.is_some()) {
            self.inherited.classes.clear();
            self.inherited.cidrs.clear();
        }
    }
}
