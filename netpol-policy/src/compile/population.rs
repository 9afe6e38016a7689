//! Who is in which class: what becomes live or dies with a policy set, what addresses and prefixes carry, and how both
//! move from one class to another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::abi::{CLASS_NONE, ClassRow, DigestKey, address_kind, id_kind};

use super::atoms::{self, Atom, Destinations, Member};
use super::cidr::below;
use super::classes::ClassContent;
use super::quotas::Counted;
use super::rows::Full;
use super::sets::DIRECTIONS;
use super::{AddressRow, Compiler, Refusal, Refused};
use crate::model::ObjectName;

/// What to do when a class does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overflow {
    /// Give up: policy sets are being tried out.
    GiveUp,
    /// Put something in its place that permits no more.
    Fallback,
}

/// What an address is and carries.
struct Carried {
    kind: u32,
    content: ClassContent,
    /// Whose share the row counts to.
    namespace: String,
}

impl Compiler {
    /// Moves what is marked to the class it belongs to.
    pub(super) fn settle(&mut self, overflow: Overflow) -> Result<(), Full> {
        while let Some(name) = self.dirty.pods.pop_first() {
            self.settle_pod(&name);
        }
        let result = self.settle_prefixes(overflow).and_then(|()| self.settle_addresses(overflow));
        let unused: Vec<u32> = self
            .fresh_classes
            .iter()
            .filter(|id| self.classes.get(**id).is_none_or(|class| class.references == 0))
            .copied()
            .collect();
        for class in unused {
            let _was = self.fresh_classes.remove(&class);
            self.remove_class(class);
        }
        result
    }

    fn settle_pod(&mut self, name: &ObjectName) {
        let members = match self.index.pods.get(name) {
            Some(entry) => self.atoms.members_of(&entry.pod, self.index.namespaces.get(&name.namespace)),
            None => BTreeSet::new(),
        };
        let old = self.members.get(name).cloned().unwrap_or_default();
        if old == members {
            return;
        }
        self.dirty.addresses.extend(self.index.addresses_of(name));
        for Member { atom, .. } in &old {
            if let Some(entry) = self.atoms.get_mut(*atom) {
                let _was = entry.pods.remove(name);
            }
            self.atoms.collect(*atom);
        }
        for Member { atom, .. } in &members {
            if let Some(entry) = self.atoms.get_mut(*atom) {
                let _new = entry.pods.insert(name.clone());
            }
        }
        let _old =
            if members.is_empty() { self.members.remove(name) } else { self.members.insert(name.clone(), members) };
    }

    fn settle_prefixes(&mut self, overflow: Overflow) -> Result<(), Full> {
        let mut done: Option<IpNet> = None;
        while let Some(prefix) = self.dirty.prefixes.first().copied() {
            // Their order puts a prefix right before all that are below it.
            if !done.is_some_and(|done| done.contains(&prefix)) {
                if let Err(full) = self.settle_below(prefix) {
                    match overflow {
                        Overflow::GiveUp => return Err(full),
                        // Only peers that no set in use names have gone from here, so what is written is still right.
                        Overflow::Fallback => {
                            let _new = self.stuck_prefixes.insert(prefix);
                            self.lose_inherited();
                        }
                    }
                }
                done = Some(prefix);
            }
            let _was = self.dirty.prefixes.remove(&prefix);
        }
        Ok(())
    }

    fn settle_below(&mut self, prefix: IpNet) -> Result<(), Full> {
        let wanted: BTreeMap<IpNet, ClassContent> = self
            .prefixes
            .rows_below(prefix)
            .into_iter()
            .map(|(at, blocks)| (at, ClassContent::of_members(blocks.into_iter().map(Member::of).collect())))
            .collect();
        let held: Vec<IpNet> = self.tables.cidrs.rows().range(below(prefix)).map(|(at, _)| *at).collect();
        for at in held.into_iter().filter(|at| !wanted.contains_key(at)) {
            self.clear_prefix(at);
        }
        for (at, content) in wanted {
            let class = self.class_for(&content)?;
            let old = self.tables.cidrs.get(&at);
            self.set_prefix(at, class);
            if let (Err(full), None) = (self.fits(), old) {
                self.clear_prefix(at);
                return Err(full);
            }
        }
        Ok(())
    }

    fn set_prefix(&mut self, at: IpNet, class: u32) {
        if self.cidrs.get(&at) != Some(&class) {
            self.classes.refer(class);
            if let Some(old) = self.cidrs.insert(at, class) {
                self.classes.forget(old, self.now_ms);
            }
        }
        self.tables.put_cidr(at, class);
    }

    fn clear_prefix(&mut self, at: IpNet) {
        if let Some(class) = self.cidrs.remove(&at) {
            self.classes.forget(class, self.now_ms);
        }
        self.tables.remove_cidr(at);
    }

    fn settle_addresses(&mut self, overflow: Overflow) -> Result<(), Full> {
        while let Some(address) = self.dirty.addresses.first().copied() {
            let _refusal = self.refused_addresses.remove(&address);
            match self.carried(address) {
                None => self.set_address(address, None),
                Some(carried) => {
                    if let Err(full) = self.settle_address(address, &carried) {
                        match overflow {
                            Overflow::GiveUp => return Err(full),
                            Overflow::Fallback => self.fall_back(address, &carried, full),
                        }
                    }
                }
            }
            let _was = self.dirty.addresses.remove(&address);
        }
        Ok(())
    }

    fn settle_address(&mut self, address: IpAddr, carried: &Carried) -> Result<(), Full> {
        let Carried { kind, content, namespace } = carried;
        let class = self.class_for(content)?;
        self.set_address(address, Some((*kind, class, namespace)));
        self.fits()
    }

    /// What permits no more than the class that does not fit: the old class, else that of the blocks around the
    /// address, else, where even a row is too much, no row.
    fn fall_back(&mut self, address: IpAddr, carried: &Carried, Full(map): Full) {
        let Carried { kind, content, namespace } = carried;
        self.lose_inherited();
        let before = self.tables.classes.before(&address);
        let old = before.map(|row| row.class).filter(|class| {
            self.classes.get(*class).is_some_and(|class| {
                let class = Arc::clone(&class.content);
                self.permits_no_more(&class, content)
            })
        });
        let class = old.unwrap_or_else(|| self.tables.longest_prefix(address));
        self.set_address(address, Some((*kind, class, namespace)));
        if self.fits().is_err() {
            self.set_address(address, None);
        }
        let objects = self.index.claims.get(&address).map(|claims| claims.pods.iter().cloned().collect());
        let refusal = Refusal { what: Refused::Class(address), objects: objects.unwrap_or_default(), map: map.name() };
        let _none = self.refused_addresses.insert(address, refusal);
    }

    /// Whether all sets give a class no more than a content.
    fn permits_no_more(&self, class: &ClassContent, content: &ClassContent) -> bool {
        self.sets_for(class).into_iter().all(|set| {
            self.sets.get(&set).and_then(|entry| entry.known.as_ref()).is_some_and(|known| {
                DIRECTIONS
                    .into_iter()
                    .all(|direction| known.answer(direction, class).within(&known.answer(direction, content)))
            })
        })
    }

    /// Gives an address a row, or none.
    fn set_address(&mut self, address: IpAddr, row: Option<(u32, u32, &str)>) {
        let map = Counted::classes(address);
        let old = self.addresses.remove(&address);
        match row {
            Some((kind, class, namespace)) => {
                self.tables.put_class(address, ClassRow { kind, class });
                self.tables.quotas.share(map, namespace, true);
                self.classes.refer(class);
                let row = AddressRow { class, namespace: namespace.to_owned() };
                let _none = self.addresses.insert(address, row);
            }
            None => self.tables.remove_class(address),
        }
        if let Some(AddressRow { class, namespace }) = old {
            self.tables.quotas.share(map, &namespace, false);
            self.classes.forget(class, self.now_ms);
        }
    }

    /// What an address is and carries; `None` if it is no pod's and no node's.
    fn carried(&self, address: IpAddr) -> Option<Carried> {
        let claims = self.index.claims.get(&address)?;
        let mut blocks = self.prefixes.containing(address);
        self.inherited.correct(address, &mut blocks);
        let blocks: BTreeSet<Member> = blocks.into_iter().map(Member::of).collect();
        // The address of a node is no pod's by label, even if a pod's status says so: host-network pods are one with
        // their node (semantics W1), and blocks alone never permit more.
        if claims.local || !claims.nodes.is_empty() {
            let here = claims.local || claims.nodes.contains(&self.index.node);
            let kind = if here { address_kind::THIS_NODE } else { address_kind::OTHER_NODE };
            return Some(Carried { kind, content: ClassContent::of_members(blocks), namespace: String::new() });
        }
        if claims.pods.is_empty() {
            // Another node's broadcast address is an address like any other here: routers pass none on (RFC 2644).
            let kind = if claims.broadcasts.contains(&self.index.node) {
                address_kind::BROADCAST
            } else if claims.overlays.is_empty() {
                return None;
            } else {
                address_kind::OTHER_NODE
            };
            // To policies it is what its blocks say, as without this row.
            return Some(Carried { kind, content: ClassContent::of_members(blocks), namespace: String::new() });
        }
        let alternatives = claims.pods.iter().filter_map(|name| {
            let pod = &self.index.pods.get(name)?.pod;
            let mut members = blocks.clone();
            members.extend(self.members.get(name).into_iter().flatten());
            for entry in self.atoms.named_in_blocks() {
                if let Atom::NamedPort { among: Destinations::Block(block), name, protocol } = &entry.atom
                    && block.cidr.contains(&address)
                    && !block.except.iter().any(|except| except.contains(&address))
                    && let Some(id) = self.atoms.find(&entry.atom)
                {
                    members.extend(atoms::instances(id, pod, name, *protocol));
                }
            }
            Some(members)
        });
        let content = ClassContent::of_claims(alternatives.collect(), &self.atoms);
        let namespace = claims.pods.first().map(|name| name.namespace.clone()).unwrap_or_default();
        Some(Carried { kind: address_kind::POD, content, namespace })
    }

    /// The class of a content, made if there is none: with its rows, for every set.
    fn class_for(&mut self, content: &ClassContent) -> Result<u32, Full> {
        if let Some(class) = self.classes.find(content) {
            return Ok(class);
        }
        let digest = content.digest(&self.atoms);
        let class = self.ids.get(id_kind::CLASS, digest, self.now_ms).ok_or(Full(Counted::Digests))?;
        let key = DigestKey { kind: id_kind::CLASS, id: class };
        if self.tables.digests.before(&key).is_none() {
            let _new = self.fresh_classes.insert(class);
        }
        self.tables.put_digest(key, digest, "");
        self.classes.insert(class, content.clone(), self.now_ms);
        for atom in content.atoms() {
            if let Some(entry) = self.atoms.get_mut(atom) {
                let _new = entry.classes.insert(class);
            }
        }
        let sets = self.sets_for(content);
        let result = self.class_rows(class, &sets);
        if result.is_err() {
            let _was = self.fresh_classes.remove(&class);
            self.remove_class(class);
        }
        result.map(|()| class)
    }

    fn class_rows(&mut self, class: u32, sets: &BTreeSet<u32>) -> Result<(), Full> {
        for set in sets {
            if self.sets.get(set).is_none_or(|entry| entry.evicted) {
                continue;
            }
            self.write_rows(*set, class)?;
            if let Err(full) = self.fits() {
                // A namespace that has used up its share must not keep the pods of others from their class: its own
                // set gives way.
                let namespace = self.sets.get(set).map(|entry| entry.namespace.clone()).unwrap_or_default();
                let to_blame = self.tables.quotas.over_half_of(&namespace).is_some() && !self.trying;
                if !to_blame || self.tables.quotas.full().is_some() {
                    return Err(full);
                }
                self.remove_rows(*set, class);
                self.evict(*set, full);
            }
        }
        self.fits()
    }

    /// Takes a class out that nothing has.
    pub(super) fn remove_class(&mut self, class: u32) {
        if class == CLASS_NONE {
            return;
        }
        let sets = self.classes.get(class).map(|entry| entry.sets.clone()).unwrap_or_default();
        for set in sets {
            self.remove_rows(set, class);
        }
        let Some(entry) = self.classes.remove(class) else { return };
        for atom in entry.content.atoms() {
            if let Some(entry) = self.atoms.get_mut(atom) {
                let _was = entry.classes.remove(&class);
            }
            self.atoms.collect(atom);
        }
        self.release(id_kind::CLASS, class, "");
    }

    /// Whether everything fits so far.
    pub(super) fn fits(&self) -> Result<(), Full> {
        match self.tables.quotas.full().or_else(|| self.tables.quotas.over_half()) {
            Some(map) => Err(Full(map)),
            None => Ok(()),
        }
    }
}
