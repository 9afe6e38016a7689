//! The last guard of decision D6: a table of nftables, set by netlink, for what no program sees.
//!
//! What a pod sends to a Service is stamped *deferred*, and judged where it leaves the node. Two ways lead past that:
//! delivery on the node itself, which passes no TC egress, and a device that has just appeared and is not hooked yet.
//! So at `input` everything deferred is dropped (unless its stamp says that it is allowed if it stays), and once the
//! node is armed everything without a stamp; at `postrouting` everything deferred that heads for a device without hook.
//! Only what came in by a pod bridge or a pod's veth is looked at, for only there a stamp is believed.
//!
//! The table is replaced as a whole, in one transaction, when an agent starts or finds that somebody has changed it;
//! counters go on from their last values. Devices come and go as elements of its sets. Nobody but the agent needs it:
//! it belongs to the kernel, stays when the agent ends, and goes with `uninstall`.

pub mod conflicts;
mod nft;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netpol_common::abi::stamp;
use parking_lot::Mutex;

pub use self::nft::Count;
use self::nft::{Hook, Meta, Rule};
use crate::interfaces::nfnetlink::{Change, Nfnetlink};

/// Name of the table, of family inet.
pub const TABLE: &str = "netpol-agent";

/// After everything that others do with a packet: IPVS takes its own at 99 of `input`, masquerade is 100 of
/// `postrouting`.
const PRIORITY: i32 = 300;

/// Elements in one message: the length of an attribute has 16 bits.
const CHUNK: usize = 1024;

const INPUT: &str = "input";
const POSTROUTING: &str = "postrouting";

/// Sets of interface indices, and what names them within a transaction.
const PODS: (&str, u32) = ("pods", 1);
const HOOKED: (&str, u32) = ("hooked", 2);

/// Why the guard drops. Each is a counter of the table, and a reason in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GuardReason {
    /// To a Service, and the backend is on the node itself, where not every backend of that Service is allowed.
    ServiceLocalBackend,
    /// To the node itself, without the stamp that a pod's veth leaves.
    MarkLost,
    /// To a Service, by a device that carries no program yet.
    UnhookedDevice,
}

impl GuardReason {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ServiceLocalBackend, Self::MarkLost, Self::UnhookedDevice];

    /// The name that metrics use. Never changed once released.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ServiceLocalBackend => "service_local_backend",
            Self::MarkLost => "mark_lost",
            Self::UnhookedDevice => "unhooked_device",
        }
    }
}

/// The table could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("nftables {operation}: {source}")]
pub struct GuardError {
    operation: &'static str,
    #[source]
    source: io::Error,
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> GuardError {
    move |source| GuardError { operation, source }
}

/// What the table should say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Pod bridges and pods' veths.
    pub pods: BTreeSet<u32>,
    /// Devices that carry the program which judges what was deferred.
    pub hooked: BTreeSet<u32>,
    /// Whether what bears no stamp is dropped.
    pub armed: bool,
}

/// Keeps the table.
#[derive(Debug)]
pub struct Guard {
    netlink: Option<Nfnetlink>,
    mark_shift: u32,
    /// What the table says, as far as we know; `None`: it must be replaced.
    known: Option<Wanted>,
    /// What was counted when the table was last looked at.
    counts: BTreeMap<GuardReason, Count>,
}

impl Guard {
    /// A guard that has not looked at the kernel yet. `mark_shift` is where the stamp begins in a mark.
    #[must_use]
    pub const fn new(mark_shift: u32) -> Self {
        Self { netlink: None, mark_shift, known: None, counts: BTreeMap::new() }
    }

    /// Whether the table says this already, as far as we know.
    #[must_use]
    pub fn is(&self, wanted: &Wanted) -> bool {
        self.known.as_ref() == Some(wanted)
    }

    /// Makes the table say what is wanted.
    pub fn set(&mut self, wanted: &Wanted) -> Result<(), GuardError> {
        let netlink = open(&mut self.netlink)?;
        let changes = match self.known.take() {
            Some(known) if known.armed == wanted.armed => moves(&known, wanted),
            Some(_) | None => {
                for (reason, count) in counts(netlink)? {
                    // Whoever took the table away took its counts along.
                    let last = self.counts.entry(reason).or_default();
                    *last = if count.packets >= last.packets { count } else { *last };
                }
                table(self.mark_shift, wanted, &self.counts)
            }
        };
        if !changes.is_empty() {
            netlink.transact(nft::SUBSYSTEM, &changes).map_err(failed("transaction"))?;
        }
        self.known = Some(wanted.clone());
        Ok(())
    }

    /// Compares the table with what it should say, if it was ever made; answers whether it does. If it does not, the
    /// next [`Guard::set`] replaces it.
    pub fn verify(&mut self) -> Result<bool, GuardError> {
        let Some(known) = self.known.take() else { return Ok(true) };
        let netlink = open(&mut self.netlink)?;
        for (reason, count) in counts(netlink)? {
            let _last = self.counts.insert(reason, count);
        }
        let rules = netlink
            .dump(nft::GET_RULE, nft::INET, &nft::of_table(TABLE), |_, rule| nft::read_place(rule))
            .map_err(failed("list rules"))?;
        let in_chain = |chain: &str| {
            rules.iter().filter(|(table, place)| (table.as_str(), place.as_str()) == (TABLE, chain)).count()
        };
        let is_intact = (in_chain(INPUT), in_chain(POSTROUTING)) == (1 + usize::from(known.armed), 1)
            && elements(netlink, PODS.0)? == known.pods
            && elements(netlink, HOOKED.0)? == known.hooked;
        if is_intact {
            self.known = Some(known);
        }
        Ok(is_intact)
    }
}

fn open(netlink: &mut Option<Nfnetlink>) -> Result<&mut Nfnetlink, GuardError> {
    match netlink {
        Some(netlink) => Ok(netlink),
        none => Ok(none.insert(Nfnetlink::open().map_err(failed("socket"))?)),
    }
}

fn elements(netlink: &mut Nfnetlink, set: &str) -> Result<BTreeSet<u32>, GuardError> {
    let parts = netlink
        .dump(nft::GET_ELEMENT, nft::INET, &nft::of_set(TABLE, set), |_, part| Some(nft::read_elements(part)))
        .map_err(failed("list a set"))?;
    Ok(parts.into_iter().flatten().collect())
}

/// Reads the counters at each scrape, by a socket of its own.
#[derive(Debug, Default)]
pub struct GuardCounters(Mutex<Option<Nfnetlink>>);

impl GuardCounters {
    /// What the guard has dropped; nothing where there is no table.
    pub fn read(&self) -> Result<BTreeMap<GuardReason, Count>, GuardError> {
        counts(open(&mut self.0.lock())?)
    }
}

/// Removes the table, if it is there.
pub fn remove() -> Result<(), GuardError> {
    let mut netlink = Nfnetlink::open().map_err(failed("socket"))?;
    match netlink.transact(nft::SUBSYSTEM, &[nft::delete_table(TABLE)]) {
        // No table; or a kernel without nftables, which has none either.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EINVAL)) => Ok(()),
        other => other.map_err(failed("remove the table")),
    }
}

fn counts(netlink: &mut Nfnetlink) -> Result<BTreeMap<GuardReason, Count>, GuardError> {
    let counters = netlink
        .dump(nft::GET_OBJECT, nft::INET, &nft::of_table(TABLE), |_, object| nft::read_counter(object))
        .map_err(failed("list counters"))?;
    let reason = |name: &str| GuardReason::ALL.into_iter().find(|reason| reason.name() == name);
    Ok(counters.into_iter().filter_map(|(name, count)| Some((reason(&name)?, count))).collect())
}

/// Elements that come and go.
fn moves(known: &Wanted, wanted: &Wanted) -> Vec<Change> {
    let mut changes = Vec::new();
    for ((set, _), known, wanted) in [(PODS, &known.pods, &wanted.pods), (HOOKED, &known.hooked, &wanted.hooked)] {
        for (from, to, add) in [(wanted, known, false), (known, wanted, true)] {
            let different: Vec<u32> = to.difference(from).copied().collect();
            changes.extend(different.chunks(CHUNK).map(|part| nft::elements(TABLE, set, part, add)));
        }
    }
    changes
}

/// The whole table, in place of whatever is there. Making it first makes deleting it succeed in any case.
fn table(mark_shift: u32, wanted: &Wanted, counts: &BTreeMap<GuardReason, Count>) -> Vec<Change> {
    let mut changes = vec![nft::new_table(TABLE), nft::delete_table(TABLE), nft::new_table(TABLE)];
    for reason in GuardReason::ALL {
        changes.push(nft::new_counter(TABLE, reason.name(), counts.get(&reason).copied().unwrap_or_default()));
    }
    for ((set, id), interfaces) in [(PODS, &wanted.pods), (HOOKED, &wanted.hooked)] {
        changes.push(nft::new_interface_set(TABLE, set, id));
        let interfaces: Vec<u32> = interfaces.iter().copied().collect();
        changes.extend(interfaces.chunks(CHUNK).map(|part| nft::elements(TABLE, set, part, true)));
    }
    changes.push(nft::new_chain(TABLE, INPUT, Hook::Input, PRIORITY));
    changes.push(nft::new_chain(TABLE, POSTROUTING, Hook::Postrouting, PRIORITY));

    let state = |state: u16| u32::from(stamp::new(state, 0)) << mark_shift;
    let every_state = state(stamp::DEFERRED_UNLESS_LOCAL);
    let from_pod = || Rule::new().interface(Meta::InInterface, PODS.0, PODS.1, true);
    let drop = |rule: Rule, chain, reason: GuardReason| rule.drop(TABLE, chain, reason.name());
    changes.push(drop(
        from_pod().mark(every_state, state(stamp::DEFERRED), true),
        INPUT,
        GuardReason::ServiceLocalBackend,
    ));
    if wanted.armed {
        changes.push(drop(from_pod().mark(every_state, state(stamp::NONE), true), INPUT, GuardReason::MarkLost));
    }
    // What both deferred states have and no other has: the upper bit.
    let deferred = state(stamp::DEFERRED);
    changes.push(drop(
        from_pod()
            .interface(Meta::OutInterface, HOOKED.0, HOOKED.1, false)
            .interface(Meta::OutInterface, PODS.0, PODS.1, false)
            .mark(deferred, 0, false),
        POSTROUTING,
        GuardReason::UnhookedDevice,
    ));
    changes
}

const _: () = assert!(
    stamp::DEFERRED & stamp::DEFERRED_UNLESS_LOCAL == stamp::DEFERRED && stamp::JUDGED & stamp::DEFERRED == stamp::NONE
);

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pods: &[u32], hooked: &[u32]) -> Wanted {
        Wanted { pods: pods.iter().copied().collect(), hooked: hooked.iter().copied().collect(), armed: true }
    }

    #[test]
    fn only_what_differs_is_moved() {
        assert_eq!(moves(&wanted(&[1, 2], &[3]), &wanted(&[1, 2], &[3])), []);
        let changes = moves(&wanted(&[1, 2], &[3]), &wanted(&[2, 4], &[3, 5]));
        let expected = [
            nft::elements(TABLE, "pods", &[1], false),
            nft::elements(TABLE, "pods", &[4], true),
            nft::elements(TABLE, "hooked", &[5], true),
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn a_node_that_is_not_armed_lets_pass_what_bears_no_stamp() {
        let rules = |armed| {
            let wanted = Wanted { armed, ..wanted(&[1], &[2]) };
            let changes = table(16, &wanted, &BTreeMap::new());
            changes.iter().filter(|change| change.attributes.as_bytes().windows(9).any(|w| w == b"immediate")).count()
        };
        assert_eq!((rules(false), rules(true)), (2, 3));
    }
}
