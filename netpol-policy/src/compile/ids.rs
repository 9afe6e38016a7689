//! Allocated ids: small numbers for contents, stable over restarts.
//!
//! A map key has room for 32 bits, not for a digest, and a hash cut to 32 bits could be made to collide. So ids are
//! allocated, and the digest of what each stands for is kept beside them in [`netpol_common::abi::names::DIGESTS`],
//! from which a restarted agent seeds its allocator. A freed id rests before it stands for something else: a program
//! under way, a flow or a stamp may still name it (decision D10).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use netpol_common::abi::{
    CLASS_ANY, CLASS_FIRST, Digest, DigestKey, MAX_ENDPOINTS, PENDING_ENDPOINT, RULE_FIRST, SET_FIRST, id_kind,
};

/// How long a freed id rests, in milliseconds.
pub const REST_MS: u64 = 30_000;

/// The allocator of all kinds of ids.
#[derive(Clone, Debug)]
pub struct Ids {
    spaces: BTreeMap<u32, Space>,
}

#[derive(Clone, Debug)]
struct Space {
    first: u32,
    last: u32,
    /// Where the search for a free id goes on: an id is reused as late as possible.
    next: u32,
    by_digest: HashMap<Digest, u32>,
    by_id: HashMap<u32, Digest>,
    resting: VecDeque<(u64, u32)>,
    resting_ids: HashSet<u32>,
}

impl Ids {
    /// Takes over the ids that an earlier agent gave out. `endpoints` is the number of endpoints that the maps hold;
    /// endpoint numbers stay below it and below [`MAX_ENDPOINTS`].
    #[must_use]
    pub fn new(endpoints: u32, digests: &BTreeMap<DigestKey, Digest>) -> Self {
        let spaces = [
            (id_kind::SET, SET_FIRST, u32::MAX),
            (id_kind::CLASS, CLASS_FIRST, CLASS_ANY - 1),
            (id_kind::PORT_SET, 1, u32::MAX),
            (id_kind::RULE, RULE_FIRST, u32::MAX),
            (id_kind::ENDPOINT, PENDING_ENDPOINT + 1, endpoints.min(MAX_ENDPOINTS).saturating_sub(1)),
        ];
        let mut ids =
            Self { spaces: spaces.into_iter().map(|(kind, first, last)| (kind, Space::new(first, last))).collect() };
        for (DigestKey { kind, id }, digest) in digests {
            if let Some(space) = ids.spaces.get_mut(kind) {
                let _none = space.by_id.insert(*id, *digest);
                // Of two ids with one content, left by an agent that died between two writes, the lower one counts.
                let _first = space.by_digest.entry(*digest).or_insert(*id);
                space.next = space.next.max(id.saturating_add(1));
            }
        }
        ids
    }

    /// The id of a content, if it has one.
    #[must_use]
    pub fn find(&self, kind: u32, digest: &Digest) -> Option<u32> {
        self.spaces.get(&kind)?.by_digest.get(digest).copied()
    }

    /// What an id stands for.
    #[must_use]
    pub fn digest(&self, kind: u32, id: u32) -> Option<Digest> {
        self.spaces.get(&kind)?.by_id.get(&id).copied()
    }

    /// The id of a content, allocated if it has none; `None` when all ids are in use or resting.
    pub fn get(&mut self, kind: u32, digest: Digest, now_ms: u64) -> Option<u32> {
        let space = self.spaces.get_mut(&kind)?;
        if let Some(id) = space.by_digest.get(&digest) {
            return Some(*id);
        }
        space.wake(now_ms);
        let id = space.free_id()?;
        space.next = if id == space.last { space.first } else { id + 1 };
        let _none = space.by_digest.insert(digest, id);
        let _none = space.by_id.insert(id, digest);
        Some(id)
    }

    /// The id keeps what it stands for, but whoever asks for that content gets another one.
    pub(super) fn disown(&mut self, kind: u32, id: u32) {
        let Some(space) = self.spaces.get_mut(&kind) else { return };
        if let Some(digest) = space.by_id.get(&id)
            && space.by_digest.get(digest) == Some(&id)
        {
            let _id = space.by_digest.remove(digest);
        }
    }

    /// Frees an id; it rests for [`REST_MS`]. An id that is not in use is left alone.
    pub fn release(&mut self, kind: u32, id: u32, now_ms: u64) {
        let Some(space) = self.spaces.get_mut(&kind) else { return };
        if let Some(digest) = space.by_id.remove(&id) {
            if space.by_digest.get(&digest) == Some(&id) {
                let _id = space.by_digest.remove(&digest);
            }
            space.resting.push_back((now_ms.saturating_add(REST_MS), id));
            let _new = space.resting_ids.insert(id);
        }
    }
}

impl Space {
    fn new(first: u32, last: u32) -> Self {
        Self {
            first,
            last,
            next: first,
            by_digest: HashMap::new(),
            by_id: HashMap::new(),
            resting: VecDeque::new(),
            resting_ids: HashSet::new(),
        }
    }

    fn wake(&mut self, now_ms: u64) {
        while let Some((until, id)) = self.resting.front().copied()
            && until <= now_ms
        {
            let _front = self.resting.pop_front();
            let _was = self.resting_ids.remove(&id);
        }
    }

    fn free_id(&self) -> Option<u32> {
        if self.first > self.last {
            return None;
        }
        // At most one more than what is taken needs to be looked at.
        let taken = self.by_id.len() + self.resting_ids.len();
        let mut id = if self.next > self.last { self.first } else { self.next };
        for _ in 0..=taken {
            if !self.by_id.contains_key(&id) && !self.resting_ids.contains(&id) {
                return Some(id);
            }
            id = if id == self.last { self.first } else { id + 1 };
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Digest = [1; 16];
    const B: Digest = [2; 16];

    #[test]
    fn one_content_has_one_id() {
        let mut ids = Ids::new(8, &BTreeMap::new());
        let id = ids.get(id_kind::SET, A, 0);
        assert_eq!(id, Some(SET_FIRST));
        assert_eq!(ids.get(id_kind::SET, A, 0), id);
        assert_ne!(ids.get(id_kind::SET, B, 0), id);
        assert_eq!(ids.find(id_kind::CLASS, &A), None, "kinds have ids of their own");
    }

    #[test]
    fn a_freed_id_rests_before_it_stands_for_something_else() {
        let mut ids = Ids::new(2, &BTreeMap::new());
        assert_eq!(ids.get(id_kind::ENDPOINT, A, 0), Some(1));
        assert_eq!(ids.get(id_kind::ENDPOINT, B, 0), None, "endpoint numbers that do not fit are refused");
        ids.release(id_kind::ENDPOINT, 1, 5);
        assert_eq!(ids.get(id_kind::ENDPOINT, B, 4 + REST_MS), None);
        assert_eq!(ids.get(id_kind::ENDPOINT, B, 5 + REST_MS), Some(1));
    }

    #[test]
    fn ids_of_an_earlier_agent_keep_their_meaning() {
        let digests =
            [(DigestKey { kind: id_kind::RULE, id: 7 }, A), (DigestKey { kind: id_kind::ENDPOINT, id: 3 }, B)];
        let mut ids = Ids::new(100, &digests.into());
        assert_eq!(ids.get(id_kind::RULE, A, 0), Some(7));
        assert_eq!(ids.get(id_kind::RULE, B, 0), Some(8));
        assert_eq!(ids.digest(id_kind::ENDPOINT, 3), Some(B));
    }

    #[test]
    fn allocation_goes_round_and_skips_what_is_in_use() {
        let mut ids = Ids::new(4, &[(DigestKey { kind: id_kind::ENDPOINT, id: 3 }, A)].into());
        assert_eq!(ids.get(id_kind::ENDPOINT, B, 0), Some(1));
        assert_eq!(ids.get(id_kind::ENDPOINT, [3; 16], 0), Some(2));
        assert_eq!(ids.get(id_kind::ENDPOINT, [4; 16], 0), None);
    }
}
