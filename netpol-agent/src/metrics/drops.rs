//! Drop counts by namespace, out of counters by endpoint.
//!
//! The kernel counts by endpoint number (decision D9), and numbers come and go with pods; a Prometheus counter must
//! not. So the last reading of each live endpoint is kept beside the sum of all deleted ones, by namespace. The
//! kernel's counters are pinned and outlive the agent, so that sum is kept in a file of the runtime directory, which
//! is as volatile as the pins.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use netpol_common::abi::Direction;
use netpol_common::verdict::Reason;
use serde::{Deserialize, Serialize};

use crate::guard::{self, GuardReason};

/// One counter of one endpoint, summed over all CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropSample {
    /// Endpoint number.
    pub endpoint: u32,
    /// Namespace of the pod; empty while the pod is unknown.
    pub namespace: String,
    /// From the pod's point of view.
    pub direction: Direction,
    /// Why; [`Reason::Passed`] is not a drop and is passed over.
    pub reason: Reason,
    /// Packets since the endpoint's number was given out.
    pub packets: u64,
    /// Bytes, with link headers.
    pub bytes: u64,
}

/// The way to the kernel's counters.
pub trait CounterSource: std::fmt::Debug + Send + Sync {
    /// All counters of live endpoints; zeros may be left out. Called at each scrape, so it must be quick.
    fn samples(&self) -> anyhow::Result<Vec<DropSample>>;
}

/// Drops of a namespace since the pins were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropTotal {
    /// Namespace; empty for drops before the pod was known.
    pub namespace: String,
    /// From the pod's point of view.
    pub direction: Direction,
    /// Why, by the name of a [`Reason`] or of a [`crate::guard::GuardReason`].
    pub reason: &'static str,
    /// Packets.
    pub packets: u64,
    /// Bytes, with link headers.
    pub bytes: u64,
}

/// The API's word for a direction, in lower case.
#[must_use]
pub const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// Adds what the guard dropped, all of which pods had sent; it does not know which.
pub(super) fn add_guard(totals: &mut Vec<DropTotal>, dropped: &BTreeMap<GuardReason, guard::Count>) {
    for (reason, guard::Count { packets, bytes }) in dropped {
        let is_same = |total: &&mut DropTotal| {
            total.namespace.is_empty() && total.direction == Direction::Egress && total.reason == reason.name()
        };
        match totals.iter_mut().find(is_same) {
            Some(total) => {
                total.packets = total.packets.wrapping_add(*packets);
                total.bytes = total.bytes.wrapping_add(*bytes);
            }
            None => totals.push(DropTotal {
                namespace: String::new(),
                direction: Direction::Egress,
                reason: reason.name(),
                packets: *packets,
                bytes: *bytes,
            }),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    packets: u64,
    bytes: u64,
}

impl Count {
    const fn plus(self, other: Self) -> Self {
        Self { packets: self.packets.wrapping_add(other.packets), bytes: self.bytes.wrapping_add(other.bytes) }
    }
}

type Account = (String, Direction, Reason);

/// Sums that only grow.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    retired: BTreeMap<Account, Count>,
    live: HashMap<(u32, Direction, Reason), Reading>,
    file: Option<PathBuf>,
}

#[derive(Clone, Debug)]
struct Reading {
    namespace: String,
    count: Count,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    namespace: String,
    direction: String,
    reason: String,
    packets: u64,
    bytes: u64,
}

impl Ledger {
    /// Takes new readings. An endpoint that is missing keeps its last one until it is retired.
    pub(super) fn update(&mut self, samples: &[DropSample]) {
        for DropSample { endpoint, namespace, direction, reason, packets, bytes } in samples {
            let count = Count { packets: *packets, bytes: *bytes };
            if *reason == Reason::Passed || count == Count::default() {
                continue;
            }
            let key = (*endpoint, *direction, *reason);
            let before = self.live.insert(key, Reading { namespace: namespace.clone(), count });
            if let Some(before) = before
                && (before.namespace != *namespace || before.count.packets > count.packets)
            {
                // The number serves another pod, and nobody retired the one before: its counts would be lost.
                self.settle(before, *direction, *reason);
            }
        }
    }

    /// See [`super::State::retire`].
    pub(super) fn retire(&mut self, endpoint: u32, last: &[DropSample]) {
        let (mine, foreign): (Vec<_>, Vec<_>) = last.iter().cloned().partition(|sample| sample.endpoint == endpoint);
        debug_assert!(foreign.is_empty(), "samples of other endpoints than {endpoint}: {foreign:?}");
        self.update(&mine);
        let gone: Vec<_> = self.live.keys().filter(|(number, ..)| *number == endpoint).copied().collect();
        if gone.is_empty() {
            return;
        }
        for key in gone {
            if let Some(reading) = self.live.remove(&key) {
                self.settle(reading, key.1, key.2);
            }
        }
        self.save();
    }

    fn settle(&mut self, Reading { namespace, count }: Reading, direction: Direction, reason: Reason) {
        let account = self.retired.entry((namespace, direction, reason)).or_default();
        *account = account.plus(count);
    }

    pub(super) fn totals(&self) -> Vec<DropTotal> {
        let mut sums = self.retired.clone();
        for ((_, direction, reason), Reading { namespace, count }) in &self.live {
            let sum = sums.entry((namespace.clone(), *direction, *reason)).or_default();
            *sum = sum.plus(*count);
        }
        let total = |((namespace, direction, reason), Count { packets, bytes }): (Account, Count)| DropTotal {
            namespace,
            direction,
            reason: reason.name(),
            packets,
            bytes,
        };
        sums.into_iter().map(total).collect()
    }

    pub(super) fn keep_in(&mut self, directory: &Path) {
        let file = directory.join("retired-drops.json");
        match std::fs::read(&file).map(|bytes| serde_json::from_slice::<Vec<Line>>(&bytes)) {
            Ok(Ok(lines)) => {
                for line in lines {
                    self.restore(line);
                }
            }
            Ok(Err(error)) => tracing::warn!("{}: {error}; drop counters of deleted pods start at 0", file.display()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("{}: {error}; drop counters of deleted pods start at 0", file.display()),
        }
        self.file = Some(file);
    }

    fn restore(&mut self, Line { namespace, direction, reason, packets, bytes }: Line) {
        let direction = [Direction::Ingress, Direction::Egress].into_iter().find(|d| direction_name(*d) == direction);
        let reason = Reason::ALL.into_iter().find(|known| known.name() == reason);
        // A newer agent may have written reasons that this one does not know.
        if let (Some(direction), Some(reason)) = (direction, reason) {
            self.settle(Reading { namespace, count: Count { packets, bytes } }, direction, reason);
        }
    }

    fn save(&self) {
        let Some(file) = &self.file else { return };
        let lines: Vec<Line> = self
            .retired
            .iter()
            .map(|((namespace, direction, reason), Count { packets, bytes })| Line {
                namespace: namespace.clone(),
                direction: direction_name(*direction).to_owned(),
                reason: reason.name().to_owned(),
                packets: *packets,
                bytes: *bytes,
            })
            .collect();
        // Whole or not at all: a torn file would reset the counters at the next start.
        let draft = file.with_extension("tmp");
        let written = serde_json::to_vec(&lines)
            .map_err(std::io::Error::other)
            .and_then(|bytes| std::fs::write(&draft, bytes))
            .and_then(|()| std::fs::rename(&draft, file));
        if let Err(error) = written {
            tracing::warn!("{}: {error}; a restart will forget drops of deleted pods", file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(endpoint: u32, namespace: &str, packets: u64) -> DropSample {
        DropSample {
            endpoint,
            namespace: namespace.into(),
            direction: Direction::Ingress,
            reason: Reason::NoRule,
            packets,
            bytes: packets * 100,
        }
    }

    fn packets(ledger: &Ledger, namespace: &str) -> u64 {
        ledger.totals().iter().filter(|total| total.namespace == namespace).map(|total| total.packets).sum()
    }

    #[test]
    fn endpoints_of_a_namespace_add_up() {
        let mut ledger = Ledger::default();
        ledger.update(&[sample(1, "shop", 3), sample(2, "shop", 4), sample(3, "web", 5)]);
        assert_eq!((packets(&ledger, "shop"), packets(&ledger, "web")), (7, 5));
    }

    #[test]
    fn a_deleted_endpoint_never_makes_its_namespace_shrink() {
        let mut ledger = Ledger::default();
        ledger.update(&[sample(1, "shop", 3), sample(2, "shop", 4)]);
        // The source forgets the endpoint first: the last reading stands in.
        ledger.update(&[sample(2, "shop", 4)]);
        assert_eq!(packets(&ledger, "shop"), 7);
        ledger.retire(1, &[sample(1, "shop", 5)]);
        assert_eq!(packets(&ledger, "shop"), 9);
        // The number's next life starts at zero.
        ledger.update(&[sample(1, "web", 1), sample(2, "shop", 4)]);
        assert_eq!((packets(&ledger, "shop"), packets(&ledger, "web")), (9, 1));
    }

    #[test]
    fn a_number_that_was_reused_without_notice_loses_nothing() {
        let mut ledger = Ledger::default();
        ledger.update(&[sample(1, "shop", 3)]);
        ledger.update(&[sample(1, "web", 8)]);
        ledger.update(&[sample(1, "web", 2)]);
        assert_eq!((packets(&ledger, "shop"), packets(&ledger, "web")), (3, 10));
    }

    #[test]
    fn what_passed_is_no_drop() {
        let mut ledger = Ledger::default();
        ledger.update(&[DropSample { reason: Reason::Passed, ..sample(1, "shop", 3) }, sample(2, "shop", 0)]);
        assert_eq!(ledger.totals(), []);
    }

    #[test]
    fn what_the_guard_drops_is_added_to_what_programs_drop_for_the_same_reason() {
        let mut ledger = Ledger::default();
        let lost = DropSample { direction: Direction::Egress, reason: Reason::MarkLost, ..sample(0, "", 3) };
        ledger.update(&[lost]);
        let mut totals = ledger.totals();
        let count = guard::Count { packets: 4, bytes: 40 };
        add_guard(&mut totals, &GuardReason::ALL.map(|reason| (reason, count)).into());
        let packets: Vec<(&str, u64)> = totals.iter().map(|total| (total.reason, total.packets)).collect();
        assert_eq!(packets, [("mark_lost", 7), ("service_local_backend", 4), ("unhooked_device", 4)]);
        assert!(totals.iter().all(|total| total.direction == Direction::Egress));
    }

    #[test]
    fn counts_of_deleted_pods_survive_a_restart() {
        let directory = tempfile::tempdir().expect("directory");
        let mut before = Ledger::default();
        before.keep_in(directory.path());
        before.retire(1, &[sample(1, "shop", 3)]);
        before.update(&[sample(2, "shop", 4)]);
        let mut after = Ledger::default();
        after.keep_in(directory.path());
        after.update(&[sample(2, "shop", 4)]);
        assert_eq!(after.totals(), before.totals());
    }

    #[test]
    fn an_unreadable_file_starts_over_and_is_replaced() {
        let directory = tempfile::tempdir().expect("directory");
        std::fs::write(directory.path().join("retired-drops.json"), "[{").expect("write");
        let mut ledger = Ledger::default();
        ledger.keep_in(directory.path());
        ledger.retire(1, &[sample(1, "shop", 3)]);
        let mut after = Ledger::default();
        after.keep_in(directory.path());
        assert_eq!(packets(&after, "shop"), 3);
    }
}
