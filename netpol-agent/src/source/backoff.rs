//! How long to wait before the next try: exponential, with jitter, so that a thousand nodes do not come back to a
//! restarted API server in the same instant.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// client-go's figures for reflectors.
const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(30);

/// Counts failures in a row.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    first: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::starting_at(FIRST)
    }
}

impl Backoff {
    pub(super) const fn starting_at(first: Duration) -> Self {
        Self { next: first, first }
    }

    /// Something worked.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    /// Something failed: how long to wait, between one and two times the step.
    pub(super) fn step(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(LONGEST / 2);
        // The standard library's only source of randomness; good enough to spread nodes.
        let random = RandomState::new().hash_one(0u8);
        step.mul_f64(1.0 + (random % 1024) as f64 / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_half_a_minute_and_start_over_after_a_success() {
        let mut backoff = Backoff::default();
        let mut floor = FIRST;
        for _ in 0..10 {
            let wait = backoff.step();
            assert!(wait >= floor && wait <= LONGEST, "{wait:?}");
            floor = (floor * 2).min(LONGEST / 2);
        }
        backoff.reset();
        assert!(backoff.step() < FIRST * 2);
    }
}
