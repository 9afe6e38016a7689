//! Atoms: the peers that policies of local pods name, interned.
//!
//! An address's class is the set of atoms that contain it (decision D4). An atom *lives* while a policy set refers to
//! it; a class of an earlier moment may hold it a little longer, hence two kinds of references. An egress peer with a
//! named port is an atom too: what contains an address is then not the atom alone but the atom together with the
//! number that the pod behind the address gives the name, so that pods with different numbers never share a class.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;
use netpol_common::abi::Digest;

use super::digest::Content;
use crate::model::{Namespace, NamespaceScope, ObjectName, Operator, Pod, Protocol, Requirement, Selector};

/// A peer as the compiler tells them apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Atom {
    /// Pods by namespace and labels.
    Pods(PodPeer),
    /// Addresses.
    Block(BlockPeer),
    /// Pods that declare a port of this name and protocol; carried with the number they give it.
    NamedPort {
        /// Among which destinations.
        among: Destinations,
        /// Port name.
        name: String,
        /// Protocol of the port.
        protocol: Protocol,
    },
    /// What an earlier agent had in this class, for its policy sets whose content is not known any more.
    Inherited {
        /// The class.
        class: u32,
        /// Which earlier agent's.
        generation: u32,
    },
}

/// Pods by namespace and labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodPeer {
    pub(super) namespaces: NamespaceScope,
    pub(super) pods: Selector,
}

/// Addresses of a block less those of its excepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlockPeer {
    pub(super) cidr: IpNet,
    pub(super) except: Vec<IpNet>,
}

/// Where a named port is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Destinations {
    /// Every pod of every namespace: the rule has no peers (semantics P3).
    EveryPod,
    /// Selected pods.
    Pods(PodPeer),
    /// Pods with an address in the block (semantics P4).
    Block(BlockPeer),
}

impl PodPeer {
    fn matches(&self, pod: &Pod, namespace: Option<&Namespace>) -> bool {
        let Self { namespaces, pods } = self;
        let in_scope = match namespaces {
            NamespaceScope::Own(own) => pod.name.namespace == *own,
            // A namespace that has not been seen matches no selector, not even the empty one (semantics W12).
            NamespaceScope::Matching(selector) => {
                namespace.is_some_and(|namespace| selector.matches(&namespace.labels))
            }
        };
        in_scope && pods.matches(&pod.labels)
    }

    fn encode(&self, content: &mut Content) {
        let Self { namespaces, pods } = self;
        match namespaces {
            NamespaceScope::Own(own) => {
                let _content = content.number(0).text(own);
            }
            NamespaceScope::Matching(selector) => {
                let _content = content.number(1);
                encode_selector(selector, content);
            }
        }
        encode_selector(pods, content);
    }
}

impl BlockPeer {
    fn encode(&self, content: &mut Content) {
        let Self { cidr, except } = self;
        let _content = content.text(&cidr.to_string()).length(except.len());
        for except in except {
            let _content = content.text(&except.to_string());
        }
    }
}

fn encode_selector(selector: &Selector, content: &mut Content) {
    let Selector { requirements } = selector;
    let _content = content.length(requirements.len());
    for Requirement { key, operator } in requirements {
        let (operator, values): (u64, &[String]) = match operator {
            Operator::In(values) => (0, values),
            Operator::NotIn(values) => (1, values),
            Operator::Exists => (2, &[]),
            Operator::DoesNotExist => (3, &[]),
        };
        let _content = content.text(key).number(operator).length(values.len());
        for value in values {
            let _content = content.text(value);
        }
    }
}

impl Atom {
    /// Whether it contains every pod, or every address of a family if excepts are left out of account. The answer for
    /// these is what a policy set's row for class `any` holds.
    pub(super) fn is_broad(&self) -> bool {
        match self {
            Self::Pods(PodPeer { namespaces: NamespaceScope::Matching(namespaces), pods }) => {
                namespaces.is_everything() && pods.is_everything()
            }
            Self::Block(BlockPeer { cidr, .. }) => cidr.prefix_len() == 0,
            Self::Pods(PodPeer { namespaces: NamespaceScope::Own(_), .. })
            | Self::NamedPort { .. }
            | Self::Inherited { .. } => false,
        }
    }

    /// The block whose addresses it concerns, if it is one.
    pub(super) fn block(&self) -> Option<&BlockPeer> {
        match self {
            Self::Block(block) | Self::NamedPort { among: Destinations::Block(block), .. } => Some(block),
            Self::Pods(_)
            | Self::NamedPort { among: Destinations::EveryPod | Destinations::Pods(_), .. }
            | Self::Inherited { .. } => None,
        }
    }

    pub(super) fn digest(&self) -> Digest {
        let mut content = Content::new("atom");
        match self {
            Self::Pods(peer) => {
                let _content = content.number(0);
                peer.encode(&mut content);
            }
            Self::Block(block) => {
                let _content = content.number(1);
                block.encode(&mut content);
            }
            Self::NamedPort { among, name, protocol } => {
                let _content = content.number(2).text(name).number(protocol.number().into());
                match among {
                    Destinations::EveryPod => {
                        let _content = content.number(0);
                    }
                    Destinations::Pods(peer) => {
                        let _content = content.number(1);
                        peer.encode(&mut content);
                    }
                    Destinations::Block(block) => {
                        let _content = content.number(2);
                        block.encode(&mut content);
                    }
                }
            }
            Self::Inherited { class, generation } => {
                let _content = content.number(3).number(u64::from(*class)).number(u64::from(*generation));
            }
        }
        content.digest()
    }
}

/// Names an atom within one process; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct AtomId(u64);

/// What an address carries: an atom, and for named ports the number (else 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Member {
    pub(super) atom: AtomId,
    pub(super) port: u16,
}

impl Member {
    pub(super) const fn of(atom: AtomId) -> Self {
        Self { atom, port: 0 }
    }
}

/// An interned atom and who has to do with it.
#[derive(Clone, Debug)]
pub(super) struct AtomEntry {
    pub(super) atom: Atom,
    pub(super) digest: Digest,
    /// Policy sets that refer to it.
    pub(super) sets: BTreeSet<u32>,
    /// Classes that hold it.
    pub(super) classes: BTreeSet<u32>,
    /// Pods that it selects.
    pub(super) pods: BTreeSet<ObjectName>,
}

/// All atoms.
#[derive(Clone, Debug, Default)]
pub(super) struct Atoms {
    entries: HashMap<AtomId, AtomEntry>,
    by_digest: HashMap<Digest, AtomId>,
    next: u64,
    /// Living atoms that select pods of one namespace only.
    of_namespace: BTreeMap<String, BTreeSet<AtomId>>,
    /// Living atoms that select pods of more than one namespace.
    wide: BTreeSet<AtomId>,
    /// Living atoms for named ports in blocks.
    named_in_blocks: BTreeSet<AtomId>,
}

impl Atoms {
    pub(super) fn get(&self, id: AtomId) -> Option<&AtomEntry> {
        self.entries.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: AtomId) -> Option<&mut AtomEntry> {
        self.entries.get_mut(&id)
    }

    /// The id of an atom that is interned already.
    pub(super) fn find(&self, atom: &Atom) -> Option<AtomId> {
        self.by_digest.get(&atom.digest()).copied()
    }

    /// Number of living atoms and of those that only classes still hold.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Notes that a set refers to the atom. Tells whether that made it live.
    pub(super) fn refer(&mut self, atom: &Atom, set: u32) -> (AtomId, bool) {
        let digest = atom.digest();
        let id = *self.by_digest.entry(digest).or_insert_with(|| {
            self.next += 1;
            AtomId(self.next)
        });
        let entry = self.entries.entry(id).or_insert_with(|| AtomEntry {
            atom: atom.clone(),
            digest,
            sets: BTreeSet::new(),
            classes: BTreeSet::new(),
            pods: BTreeSet::new(),
        });
        let born = entry.sets.is_empty();
        let _new = entry.sets.insert(set);
        if born && let Some(index) = self.index_of(atom) {
            let _new = index.insert(id);
        }
        (id, born)
    }

    /// Notes that a set does not refer to the atom any more. Tells whether that was the last.
    pub(super) fn forget(&mut self, id: AtomId, set: u32) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        let died = entry.sets.remove(&set) && entry.sets.is_empty();
        if died {
            let atom = entry.atom.clone();
            if let Some(index) = self.index_of(&atom) {
                let _was = index.remove(&id);
            }
            self.collect(id);
        }
        died
    }

    /// Drops an atom that neither sets nor classes nor pods know any more.
    pub(super) fn collect(&mut self, id: AtomId) {
        if let Some(entry) = self.entries.get(&id)
            && entry.sets.is_empty()
            && entry.classes.is_empty()
            && entry.pods.is_empty()
        {
            let digest = entry.digest;
            let _entry = self.entries.remove(&id);
            let _id = self.by_digest.remove(&digest);
        }
    }

    fn index_of(&mut self, atom: &Atom) -> Option<&mut BTreeSet<AtomId>> {
        match atom {
            Atom::Pods(peer) | Atom::NamedPort { among: Destinations::Pods(peer), .. } => match &peer.namespaces {
                NamespaceScope::Own(own) => Some(self.of_namespace.entry(own.clone()).or_default()),
                NamespaceScope::Matching(_) => Some(&mut self.wide),
            },
            Atom::NamedPort { among: Destinations::EveryPod, .. } => Some(&mut self.wide),
            Atom::NamedPort { among: Destinations::Block(_), .. } => Some(&mut self.named_in_blocks),
            Atom::Block(_) | Atom::Inherited { .. } => None,
        }
    }

    /// Living atoms for named ports in blocks.
    pub(super) fn named_in_blocks(&self) -> impl Iterator<Item = &AtomEntry> {
        self.named_in_blocks.iter().filter_map(|id| self.entries.get(id))
    }

    /// What every address of a pod carries: the living atoms that select it.
    pub(super) fn members_of(&self, pod: &Pod, namespace: Option<&Namespace>) -> BTreeSet<Member> {
        if !pod.takes_part() {
            return BTreeSet::new();
        }
        let own = self.of_namespace.get(&pod.name.namespace).into_iter().flatten();
        own.chain(&self.wide)
            .filter_map(|id| Some((*id, self.entries.get(id)?)))
            .flat_map(|(id, entry)| members(id, &entry.atom, pod, namespace))
            .collect()
    }
}

/// What a pod carries of an atom that selects pods.
pub(super) fn members(id: AtomId, atom: &Atom, pod: &Pod, namespace: Option<&Namespace>) -> Vec<Member> {
    match atom {
        Atom::Pods(peer) if peer.matches(pod, namespace) => vec![Member::of(id)],
        Atom::NamedPort { among: Destinations::Pods(peer), name, protocol } if peer.matches(pod, namespace) => {
            instances(id, pod, name, *protocol)
        }
        Atom::NamedPort { among: Destinations::EveryPod, name, protocol } => instances(id, pod, name, *protocol),
        Atom::Pods(_) | Atom::NamedPort { .. } | Atom::Block(_) | Atom::Inherited { .. } => Vec::new(),
    }
}

/// The atom with every number that the pod gives the port name (semantics P5, P6).
pub(super) fn instances(atom: AtomId, pod: &Pod, name: &str, protocol: Protocol) -> Vec<Member> {
    let declared = pod.ports.iter().filter(|port| port.name.as_deref() == Some(name) && port.protocol == protocol);
    declared.map(|port| Member { atom, port: port.port }).collect()
}
