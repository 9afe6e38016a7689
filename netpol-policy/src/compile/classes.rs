//! Classes: sets of atoms, hash-consed to ids.
//!
//! Two addresses that no policy of this node tells apart have one class. While two live pods claim an address its class
//! has two alternatives, and what holds is what both allow (decision D12).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use netpol_common::abi::{CLASS_NONE, Digest};

use super::atoms::{AtomId, Atoms, Member};
use super::digest::Content;

/// The atoms that contain an address; for each claim, if there are several.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClassContent(Vec<Vec<Member>>);

impl ClassContent {
    /// Of an address that no peer contains.
    pub(super) fn empty() -> Self {
        Self(vec![Vec::new()])
    }

    /// Of an address with one claim.
    pub(super) fn of_members(members: BTreeSet<Member>) -> Self {
        Self(vec![members.into_iter().collect()])
    }

    /// Of an address with several claims. One that carries all atoms of another can only permit more, and is left out.
    pub(super) fn of_claims(claims: BTreeSet<BTreeSet<Member>>, atoms: &Atoms) -> Self {
        let least = claims
            .iter()
            .filter(|claim| !claims.iter().any(|other| other.len() < claim.len() && other.is_subset(claim)));
        let mut alternatives: Vec<Vec<Member>> = least.map(|claim| claim.iter().copied().collect()).collect();
        // Which rule is named must not depend on the ids of atoms, which live in this process only.
        alternatives.sort_by_cached_key(|members| canonical(members, atoms));
        if alternatives.is_empty() { Self::empty() } else { Self(alternatives) }
    }

    pub(super) fn alternatives(&self) -> impl Iterator<Item = &[Member]> {
        self.0.iter().map(Vec::as_slice)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// Everything that it carries in any alternative.
    fn members(&self) -> BTreeSet<Member> {
        self.0.iter().flatten().copied().collect()
    }

    /// All atoms that it holds.
    pub(super) fn atoms(&self) -> BTreeSet<AtomId> {
        self.0.iter().flatten().map(|member| member.atom).collect()
    }

    /// Atoms that may be why a set answers differently for this and another content.
    pub(super) fn difference(&self, other: &Self) -> BTreeSet<AtomId> {
        match (self.0.as_slice(), other.0.as_slice()) {
            ([_], [_]) => self.members().symmetric_difference(&other.members()).map(|member| member.atom).collect(),
            // The same atoms in other alternatives can be another answer.
            _ => self.atoms().union(&other.atoms()).copied().collect(),
        }
    }

    /// What its id stands for.
    pub(super) fn digest(&self, atoms: &Atoms) -> Digest {
        let mut alternatives: Vec<_> = self.0.iter().map(|members| canonical(members, atoms)).collect();
        alternatives.sort_unstable();
        let mut content = Content::new("class");
        let _content = content.length(alternatives.len());
        for members in alternatives {
            let _content = content.length(members.len());
            for (atom, port) in members {
                let _content = content.bytes(&atom).number(port.into());
            }
        }
        content.digest()
    }
}

/// Members as every process writes them.
fn canonical(members: &[Member], atoms: &Atoms) -> Vec<(Digest, u16)> {
    let digest = |member: &Member| Some((atoms.get(member.atom)?.digest, member.port));
    let mut members: Vec<_> = members.iter().filter_map(digest).collect();
    members.sort_unstable();
    members
}

/// A class in use.
#[derive(Clone, Debug)]
pub(super) struct Class {
    pub(super) content: Arc<ClassContent>,
    /// Addresses and prefixes that have it.
    pub(super) references: usize,
    /// Since when nothing has it, in milliseconds; it goes after a grace period.
    pub(super) idle_since: Option<u64>,
    /// Policy sets that have rows for it.
    pub(super) sets: BTreeSet<u32>,
}

/// All classes by id. Class 0 is always there.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    entries: HashMap<u32, Class>,
    by_content: HashMap<Arc<ClassContent>, u32>,
    /// Without references, waiting for the end of the grace period.
    idle: BTreeSet<u32>,
}

impl Default for Classes {
    fn default() -> Self {
        let mut classes = Self { entries: HashMap::new(), by_content: HashMap::new(), idle: BTreeSet::new() };
        classes.insert(CLASS_NONE, ClassContent::empty(), 0);
        classes
    }
}

impl Classes {
    pub(super) fn get(&self, id: u32) -> Option<&Class> {
        self.entries.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Class> {
        self.entries.get_mut(&id)
    }

    pub(super) fn find(&self, content: &ClassContent) -> Option<u32> {
        self.by_content.get(content).copied()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries.keys().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn insert(&mut self, id: u32, content: ClassContent, now_ms: u64) {
        let content = Arc::new(content);
        let _none = self.by_content.insert(Arc::clone(&content), id);
        let class = Class { content, references: 0, idle_since: Some(now_ms), sets: BTreeSet::new() };
        let _none = self.entries.insert(id, class);
        if id != CLASS_NONE {
            let _new = self.idle.insert(id);
        }
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Class> {
        let class = self.entries.remove(&id)?;
        let _id = self.by_content.remove(&class.content);
        let _was = self.idle.remove(&id);
        Some(class)
    }

    /// An address or prefix has it. Unknown ids are those of an earlier agent: not ours to count.
    pub(super) fn refer(&mut self, id: u32) {
        if let Some(class) = self.entries.get_mut(&id) {
            class.references += 1;
            class.idle_since = None;
            let _was = self.idle.remove(&id);
        }
    }

    /// An address or prefix has it no more.
    pub(super) fn forget(&mut self, id: u32, now_ms: u64) {
        if let Some(class) = self.entries.get_mut(&id) {
            class.references -= 1;
            if class.references == 0 && id != CLASS_NONE {
                class.idle_since = Some(now_ms);
                let _new = self.idle.insert(id);
            }
        }
    }

    /// Classes that nothing has, with the time since when.
    pub(super) fn idle(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.idle.iter().filter_map(|id| Some((*id, self.entries.get(id)?.idle_since?)))
    }
}
