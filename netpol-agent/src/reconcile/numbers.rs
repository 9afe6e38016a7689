//! Endpoint numbers: 14 bits, given out once, kept over restarts, rested before reuse.
//!
//! A number's meaning, interface and pod UID, is kept as a digest in the pinned map of digests, so that a restarted
//! agent knows whether the interface that bears it is still the same pod's (decisions D10, D12). A freed number rests:
//! a flow or a stamp under way may still name it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use netpol_common::abi::Digest;
use sha2::{Digest as _, Sha256};

/// How long a freed number is not given out again.
pub const REST: Duration = Duration::from_secs(30);

/// What an endpoint number stands for: an interface, and the pod behind it if it is known.
#[must_use]
pub fn digest(ifindex: u32, uid: Option<&str>) -> Digest {
    let mut hash = Sha256::new();
    hash.update(b"endpoint");
    hash.update(ifindex.to_be_bytes());
    if let Some(uid) = uid {
        hash.update(b"uid");
        hash.update(uid.as_bytes());
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(&hash.finalize()[..size_of::<Digest>()]);
    digest
}

/// The numbers in use.
#[derive(Debug)]
pub struct Numbers {
    limit: u32,
    used: BTreeMap<u32, Digest>,
    resting: VecDeque<(Instant, u32)>,
    rested: BTreeSet<u32>,
    next: u32,
}

impl Numbers {
    /// Numbers from 1 to `limit` − 1; 0 stands for *pending*.
    #[must_use]
    pub fn new(limit: u32, used: BTreeMap<u32, Digest>) -> Self {
        let next = used.last_key_value().map_or(1, |(number, _)| number + 1);
        let rested = (1..next).filter(|number| !used.contains_key(number)).collect();
        Self { limit, used, resting: VecDeque::new(), rested, next }
    }

    /// A number for a new endpoint; `None` when all are used or resting, never one that would wrap.
    pub fn allocate(&mut self, digest: Digest, now: Instant) -> Option<u32> {
        while let Some((freed, number)) = self.resting.front().copied()
            && now.duration_since(freed) >= REST
        {
            let _front = self.resting.pop_front();
            let _new = self.rested.insert(number);
        }
        // Numbers that were never used first: the longer a number rests, the better.
        let number = if self.next < self.limit {
            self.next += 1;
            self.next - 1
        } else {
            self.rested.pop_first()?
        };
        let _none = self.used.insert(number, digest);
        Some(number)
    }

    /// Notes that a number now stands for something else: the pod behind an adopted interface became known.
    pub fn rename(&mut self, number: u32, digest: Digest) {
        let _old = self.used.insert(number, digest);
    }

    /// What a number stands for.
    #[must_use]
    pub fn digest(&self, number: u32) -> Option<Digest> {
        self.used.get(&number).copied()
    }

    /// Frees a number.
    pub fn release(&mut self, number: u32, now: Instant) {
        if self.used.remove(&number).is_some() {
            self.resting.push_back((now, number));
        }
    }

    /// All numbers in use.
    pub fn used(&self) -> impl Iterator<Item = u32> + '_ {
        self.used.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_number_rests_before_it_is_given_out_again() {
        let start = Instant::now();
        let mut numbers = Numbers::new(3, BTreeMap::new());
        let digest = digest(7, Some("u1"));
        assert_eq!(numbers.allocate(digest, start), Some(1));
        assert_eq!(numbers.allocate(digest, start), Some(2));
        assert_eq!(numbers.allocate(digest, start), None, "numbers are refused, never wrapped");
        numbers.release(1, start);
        assert_eq!(numbers.allocate(digest, start + REST - Duration::from_millis(1)), None);
        assert_eq!(numbers.allocate(digest, start + REST), Some(1));
    }

    #[test]
    fn numbers_of_an_earlier_agent_stay_theirs() {
        let mut numbers = Numbers::new(8, [(2, digest(7, None))].into());
        let now = Instant::now();
        let given: Vec<_> = std::iter::from_fn(|| numbers.allocate(Digest::default(), now)).collect();
        assert_eq!(given, [3, 4, 5, 6, 7, 1]);
    }

    #[test]
    fn an_interface_with_and_without_a_known_pod_has_different_digests() {
        assert_ne!(digest(7, None), digest(7, Some("")));
        assert_ne!(digest(7, Some("u1")), digest(8, Some("u1")));
    }
}
