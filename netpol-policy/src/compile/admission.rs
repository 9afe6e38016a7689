//! How policy sets come and go, and with them the peers that they name.
//!
//! New sets are tried out on the copy of the maps: all at once, and if they do not fit, one after the other. What fails is
//! taken out again, and since only differences become operations, nothing of it is ever written.

use std::collections::BTreeSet;
use std::sync::Arc;

use netpol_common::abi::{CLASS_ANY, Digest, DigestKey, id_kind};

use super::atoms::{self, Atom, AtomId, Destinations};
use super::endpoints::Wanted;
use super::index::of_namespace;
use super::population::Overflow;
use super::quotas::Counted;
use super::rows::Full;
use super::sets::SetContent;
use super::{Compiler, Refusal, Refused, SetEntry};
use crate::model::{NamespaceScope, ObjectName};

impl Compiler {
    /// Brings new sets in: all at once if they fit, else one after the other, those that fit.
    pub(super) fn admit(&mut self, mut wanted: Vec<Wanted>) {
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

    /// Brings a policy set in: ids, peers, rows for all classes there are. If it fails, the set is there nevertheless,
    /// to be removed by [`Self::remove_set`].
    pub(super) fn add_set(&mut self, content: &SetContent, digest: Digest) -> Result<u32, Full> {
        let set = self.ids.get(id_kind::SET, digest, self.now_ms).ok_or(Full(Counted::Digests))?;
        let namespace = content.namespace.clone();
        self.tables.put_digest(DigestKey { kind: id_kind::SET, id: set }, digest, &namespace);
        let mut entry = SetEntry {
            known: None,
            digest,
            namespace: namespace.clone(),
            policies: content.policies.clone(),
            atoms: BTreeSet::new(),
            rules: Vec::new(),
            prefixes: BTreeSet::new(),
            classes: BTreeSet::new(),
            users: BTreeSet::new(),
            idle_since: Some(self.now_ms),
            evicted: false,
        };
        for atom in content.atoms() {
            let (id, born) = self.atoms.refer(atom, set);
            let _new = entry.atoms.insert(id);
            if born {
                self.atom_born(id, atom);
            }
            if let Atom::Block(block) = atom {
                for prefix in std::iter::once(&block.cidr).chain(&block.except) {
                    if entry.prefixes.insert(*prefix) {
                        self.tables.quotas.share(Counted::cidrs(*prefix), &namespace, true);
                    }
                }
            }
        }
        let rules: Result<(), Full> = content.rules.iter().try_for_each(|name| {
            entry.rules.push(self.refer_rule(name)?);
            Ok(())
        });
        let ids = entry.rules.clone();
        if rules.is_ok() {
            let known = content.resolve(|atom| self.atoms.find(atom), |position| ids[position]);
            if known.is_broad() {
                let _new = self.broad_sets.insert(set);
            }
            entry.known = Some(Arc::new(known));
        }
        let classes = self.classes_for(&entry);
        let _none = self.sets.insert(set, entry);
        let _none = self.sets_by_digest.insert(digest, set);
        rules?;
        self.write_any(set)?;
        for class in classes {
            self.write_rows(set, class)?;
            self.fits()?;
        }
        self.fits()?;
        Ok(set)
    }

    /// Takes a policy set that nobody has out, with its rows and with the peers that only it named.
    pub(super) fn remove_set(&mut self, set: u32) {
        let Some(entry) = self.sets.get(&set) else { return };
        for class in entry.classes.clone() {
            self.remove_rows(set, class);
        }
        self.remove_rows(set, CLASS_ANY);
        let Some(SetEntry { digest, namespace, atoms, rules, prefixes, .. }) = self.sets.remove(&set) else { return };
        if self.sets_by_digest.get(&digest) == Some(&set) {
            let _set = self.sets_by_digest.remove(&digest);
        }
        let _was = self.broad_sets.remove(&set);
        for id in atoms {
            let atom = self.atoms.get(id).map(|entry| entry.atom.clone());
            if self.atoms.forget(id, set)
                && let Some(atom) = atom
            {
                self.atom_died(id, &atom);
            }
        }
        for rule in rules {
            self.forget_rule(rule);
        }
        for prefix in prefixes {
            self.tables.quotas.share(Counted::cidrs(prefix), &namespace, false);
        }
        self.release(id_kind::SET, set, &namespace);
        self.disinherit();
    }

    fn atom_born(&mut self, id: AtomId, atom: &Atom) {
        if let Some(block) = atom.block() {
            if matches!(atom, Atom::Block(_)) {
                self.prefixes.insert(id, block);
                let _new = self.dirty.prefixes.insert(block.cidr);
            }
            self.dirty.addresses.extend(self.index.claimed_below(block.cidr));
            return;
        }
        let scope = match atom {
            Atom::Pods(peer) | Atom::NamedPort { among: Destinations::Pods(peer), .. } => Some(&peer.namespaces),
            Atom::NamedPort { .. } | Atom::Block(_) | Atom::Inherited { .. } => None,
        };
        let index = &self.index;
        let pods: Vec<&ObjectName> = match scope {
            Some(NamespaceScope::Own(own)) => of_namespace(&index.pods, own).map(|(name, _)| name).collect(),
            Some(NamespaceScope::Matching(selector)) => index
                .namespaces
                .values()
                .filter(|namespace| selector.matches(&namespace.labels))
                .flat_map(|namespace| of_namespace(&index.pods, &namespace.name).map(|(name, _)| name))
                .collect(),
            None => index.pods.keys().collect(),
        };
        let mut selected = Vec::new();
        for name in pods {
            let Some(pod) = index.pods.get(name).map(|entry| &entry.pod) else { continue };
            if pod.takes_part() {
                let members = atoms::members(id, atom, pod, index.namespaces.get(&name.namespace));
                if !members.is_empty() {
                    selected.push((name.clone(), members));
                }
            }
        }
        for (name, members) in selected {
            self.dirty.addresses.extend(self.index.addresses_of(&name));
            self.members.entry(name.clone()).or_default().extend(members);
            if let Some(entry) = self.atoms.get_mut(id) {
                let _new = entry.pods.insert(name);
            }
        }
    }

    fn atom_died(&mut self, id: AtomId, atom: &Atom) {
        if let Some(block) = atom.block() {
            if matches!(atom, Atom::Block(_)) {
                self.prefixes.remove(id, block);
                let _new = self.dirty.prefixes.insert(block.cidr);
            }
            self.dirty.addresses.extend(self.index.claimed_below(block.cidr));
        }
        let pods = self.atoms.get_mut(id).map(|entry| std::mem::take(&mut entry.pods)).unwrap_or_default();
        for name in pods {
            self.dirty.addresses.extend(self.index.addresses_of(&name));
            if let Some(members) = self.members.get_mut(&name) {
                members.retain(|member| member.atom != id);
                if members.is_empty() {
                    let _none = self.members.remove(&name);
                }
            }
        }
        self.atoms.collect(id);
    }

    /// Nobody may have a set any more: its rows are not complete.
    pub(super) fn evict(&mut self, set: u32, Full(map): Full) {
        let Some(entry) = self.sets.get_mut(&set) else { return };
        entry.evicted = true;
        entry.idle_since = Some(self.now_ms);
        let objects: Vec<ObjectName> = entry.policies.iter().cloned().collect();
        for endpoint in std::mem::take(&mut entry.users) {
            let refusal = Refusal { what: Refused::PolicySet { endpoint }, objects: objects.clone(), map: map.name() };
            self.deny(endpoint, refusal);
        }
    }
}
