//! Questions to the tables and to the oracle, and a compiler together with the maps that it writes.

use std::net::IpAddr;

use netpol_common::abi::{Direction, SET_PENDING};
use netpol_common::decide::{PolicyVerdict, policy_verdict};

use super::{NODE, World};
use crate::compile::memory::MemoryTables;
use crate::compile::{Capacities, Change, Compiler, Plan, Snapshot};
use crate::oracle;

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// Number of the endpoint that is asked about.
    pub endpoint: u32,
    /// What it sends, or else what it gets.
    pub egress: bool,
    /// The other end.
    pub peer: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, if the protocol has ports and it is known.
    pub port: Option<u16>,
}

impl Cell {
    /// From the endpoint's point of view.
    #[must_use]
    pub fn direction(&self) -> Direction {
        if self.egress { Direction::Egress } else { Direction::Ingress }
    }
}

/// Each endpoint, both ways, with each peer and packet.
#[must_use]
pub fn cells(endpoints: &[u32], peers: &[IpAddr], packets: &[(u8, Option<u16>)]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for endpoint in endpoints {
        for egress in [false, true] {
            for peer in peers {
                for (protocol, port) in packets {
                    cells.push(Cell { endpoint: *endpoint, egress, peer: *peer, protocol: *protocol, port: *port });
                }
            }
        }
    }
    cells
}

/// What tables answer: by the very function that judges packets.
#[must_use]
pub fn verdict(tables: &MemoryTables, cell: &Cell) -> PolicyVerdict {
    let set = tables.snapshot().words.get(&cell.endpoint).map_or(SET_PENDING, |word| word.set());
    let peer = match cell.peer {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    policy_verdict(tables, set, cell.direction(), &peer, cell.protocol, cell.port.map(u16::to_be_bytes))
}

/// Whether tables allow it.
#[must_use]
pub fn answer(tables: &MemoryTables, cell: &Cell) -> bool {
    verdict(tables, cell).allowed
}

/// What the API text says; `None` where it has no opinion: the pod is not there, or takes no part, or the endpoint is
/// older than the agent and its pod's addresses are not known yet.
#[must_use]
pub fn expected(world: &World, cell: &Cell) -> Option<bool> {
    let endpoint = world.endpoints.get(&cell.endpoint)?;
    let pod = world.pod(endpoint)?;
    if endpoint.adopted && pod.addresses.is_empty() {
        return None;
    }
    let ask = if cell.egress { oracle::egress } else { oracle::ingress };
    Some(ask(&world.cluster, pod, cell.peer, cell.protocol, cell.port))
}

/// A compiler and the maps that it writes.
#[derive(Debug)]
pub struct Node {
    /// Plans.
    pub compiler: Compiler,
    /// The maps.
    pub tables: MemoryTables,
    /// The planner's clock.
    pub now_ms: u64,
}

impl Node {
    /// On maps that hold something already.
    #[must_use]
    pub fn new(capacities: Capacities, snapshot: Snapshot) -> Self {
        let tables = MemoryTables::of_snapshot(snapshot.clone());
        Self { compiler: Compiler::new(NODE, capacities, snapshot), tables, now_ms: 1 }
    }

    /// Tells the compiler what has changed.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.compiler.apply(change));
    }

    /// Plans and carries the plan out.
    pub fn program(&mut self) -> Plan {
        let plan = self.compiler.plan(self.now_ms);
        for op in &plan.ops {
            self.tables.apply(op);
        }
        plan
    }

    /// Plans until there is nothing left to do.
    ///
    /// # Panics
    /// There is always something left.
    pub fn quiesce(&mut self) {
        for _ in 0..20 {
            let plan = self.program();
            match plan.wake_at_ms {
                Some(at) => self.now_ms = at.max(self.now_ms),
                None if plan.ops.is_empty() => return,
                None => {}
            }
        }
        panic!("does not come to rest");
    }
}
