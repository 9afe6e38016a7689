//! The flow tables, as far as the agent has to do with them.
//!
//! Programs alone write flows (decision D5), but for three things: flows of interfaces that are gone are purged, those that
//! the kernel's connection tracking knows are seeded on the first start, and from the one table that evicts nothing the
//! sweep takes what has expired, and counts what each account holds (docs/adr/0003). No verdict depends on the sweep:
//! without it, flows that are opened get no places of their own in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{HashMap, MapData, MapError};
use netpol_common::abi::{FlowKey, FlowRow, PENDING_ENDPOINT, account, admission, initiator, names};
use netpol_common::flow::{account_of, is_alive, limit};
use netpol_common::tables::FlowTable;

use super::maps::{MapsError, absent_is_fine, is_errno, map_error, open};
use super::pins::Pins;
use super::sys;
use super::words::Words;

/// The account of the own node's flows, at whichever pod.
const OWN_NODE_ACCOUNT: u32 = account(PENDING_ENDPOINT, initiator::PEER, admission::OWN_NODE, true);

/// All of them.
#[derive(Debug)]
pub struct Flows {
    /// What evicts nothing.
    confirmed: FlowMap,
    others: Vec<FlowMap>,
    held: Words,
}

/// What a sweep has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows that had expired, and are gone.
    pub expired: usize,
    /// Flows that are left.
    pub left: usize,
    /// Accounts that hold as much as they may.
    pub used_up: usize,
}

impl Flows {
    /// Opens the maps that are pinned.
    pub(super) fn open(pins: &Pins) -> Result<Self, MapsError> {
        let names =
            [names::EMBRYONIC, names::OVER_EMBRYONIC, names::OVER_CONFIRMED, names::TOMBSTONES, names::OVER_TOMBSTONES];
        Ok(Self {
            confirmed: FlowMap::open(pins, names::CONFIRMED)?,
            others: names.into_iter().map(|name| FlowMap::open(pins, name)).collect::<Result<_, _>>()?,
            held: Words::open(pins, names::HELD)?,
        })
    }

    /// Removes every flow of some interfaces, in one walk over the tables. Fragments expire by themselves.
    pub fn purge(&mut self, interfaces: &BTreeSet<u32>) -> Result<usize, MapsError> {
        let mut purged = 0;
        for table in &mut self.others {
            for (key, _) in table.rows_where(|key, _| interfaces.contains(&key.ifindex))? {
                let _was_there = table.remove(&key)?;
                purged += 1;
            }
        }
        for (key, row) in self.confirmed.rows_where(|key, _| interfaces.contains(&key.ifindex))? {
            if self.confirmed.remove(&key)? {
                self.held.add(account_of(key.protocol, &row), -1);
            }
            purged += 1;
        }
        Ok(purged)
    }

    /// Plants a flow that the kernel's connection tracking knows, unless the programs already know it.
    pub fn seed(&mut self, key: FlowKey, row: FlowRow) -> Result<(), MapsError> {
        const BPF_NOEXIST: u64 = 1;
        match self.confirmed.rows.insert(key, row, BPF_NOEXIST) {
            Err(error) if is_errno(&error, libc::EEXIST) => Ok(()),
            // Full.
            Err(error) if is_errno(&error, libc::E2BIG) => {
                let over = self.others.iter_mut().find(|table| table.name == names::OVER_CONFIRMED);
                over.map_or(Ok(()), |table| table.rows.insert(key, row, 0).map_err(map_error(table.name)))
            }
            other => {
                other.map_err(map_error(names::CONFIRMED))?;
                self.held.add(account_of(key.protocol, &row), 1);
                Ok(())
            }
        }
    }

    /// Removes expired flows from the table that evicts nothing, and corrects what its accounts hold. `share` is what each
    /// may hold, `now` a second of the boot clock.
    pub fn sweep(&mut self, share: u64, now: u32) -> Result<Swept, MapsError> {
        // What programs add while the table is read stays added, whether it was seen or not: that counts a flow twice
        // until the next time, rather than not at all. A correction that a program's own store overwrites is made then.
        let before = self.held.signed();
        let mut counted = BTreeMap::<u32, i64>::new();
        let mut expired = Vec::new();
        self.confirmed.each(|key, row| {
            if is_alive(FlowTable::Confirmed, key.protocol, &row, now) {
                *counted.entry(account_of(key.protocol, &row)).or_default() += 1;
            } else {
                expired.push(key);
            }
        })?;
        let mut swept = Swept { left: counted.values().sum::<i64>() as usize, ..Swept::default() };
        for key in expired {
            // A flow that was opened on the same ports since may be in its place.
            match self.confirmed.rows.get(&key, 0) {
                Ok(row) if !is_alive(FlowTable::Confirmed, key.protocol, &row, now) => {
                    let _was_there = self.confirmed.remove(&key)?;
                    swept.expired += 1;
                }
                Ok(_) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(map_error(names::CONFIRMED)(error)),
            }
        }
        let accounts: BTreeSet<u32> = before.keys().chain(counted.keys()).copied().collect();
        for account in accounts {
            let of = |numbers: &BTreeMap<u32, i64>| numbers.get(&account).copied().unwrap_or_default();
            self.held.add(account, of(&counted) - of(&before));
            let limit = if account == OWN_NODE_ACCOUNT { limit(share, admission::OWN_NODE) } else { share };
            swept.used_up += usize::from(u64::try_from(of(&counted)).is_ok_and(|counted| counted >= limit));
        }
        Ok(swept)
    }
}

/// A flow table, with a descriptor of its own for reading it in batches.
#[derive(Debug)]
struct FlowMap {
    name: &'static str,
    rows: HashMap<MapData, FlowKey, FlowRow>,
    fd: OwnedFd,
}

impl FlowMap {
    fn open(pins: &Pins, name: &'static str) -> Result<Self, MapsError> {
        let fd = sys::open_pinned(&pins.map(name)).map_err(|source| MapsError::Syscall { map: name, source })?;
        Ok(Self { name, rows: open(pins, name)?, fd })
    }

    fn each(&self, each: impl FnMut(FlowKey, FlowRow)) -> Result<(), MapsError> {
        sys::lookup_batch(self.fd.as_fd(), each).map_err(|source| MapsError::Syscall { map: self.name, source })
    }

    fn rows_where(&self, chosen: impl Fn(&FlowKey, &FlowRow) -> bool) -> Result<Vec<(FlowKey, FlowRow)>, MapsError> {
        let mut rows = Vec::new();
        self.each(|key, row| {
            if chosen(&key, &row) {
                rows.push((key, row));
            }
        })?;
        Ok(rows)
    }

    /// Answers whether it was there.
    fn remove(&mut self, key: &FlowKey) -> Result<bool, MapsError> {
        let removed = self.rows.remove(key);
        let was_there = removed.is_ok();
        absent_is_fine(self.name, removed)?;
        Ok(was_there)
    }
}
