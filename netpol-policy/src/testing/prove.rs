//! One generated cluster, looked at in every way in which two of our parts must agree.
//!
//! The normal tests prove some hundred clusters and every seed that ever failed; `cargo xtask prove` as many as there is
//! time for. A [`Disagreement`] bears the seed, and a seed is all that it takes to see it again.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::abi::{Direction, InterfaceRow, Settings, interface_flags, stamp};
use netpol_common::decide::{Exit, Hook, Scratch, judge, judge_leaving};
use netpol_common::parse::FromNetworkHeader;
use netpol_common::verdict::Reason;

use super::{Cell, Meaning, Node, Random, World, cells, expected, frames, proxied, verdict};
use crate::compile::memory::MemoryTables;
use crate::compile::{Capacities, MapOp, Snapshot};
use crate::model::Pod;

const POD_VETH: u32 = 10;
const BRIDGE: u32 = 4;
const UPLINK: u32 = 2;
const MARK_SHIFT: u32 = 16;

/// Addresses that no generated world uses: a Service may lead anywhere.
const SERVICE: [u8; 4] = [198, 18, 77, 9];
const SERVICE6: [u8; 16] = [0xfd, 0xff, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

/// Of the cells that are looked at, one in so many is sent as packets too: parsed, tracked, deferred.
const PACKETS: usize = 8;

/// Source ports that no generated policy names, so that no flow looks like the reply of another.
const FIRST_SOURCE_PORT: u16 = 20_000;

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Clusters.
    pub clusters: u64,
    /// Verdicts of the compiled tables that were held against the API's text.
    pub cells: u64,
    /// How many of them allow.
    pub allowed: u64,
    /// Whole packets through the verdict function, against the text.
    pub packets: u64,
    /// The same, once more through a Service's address: deferred, and judged where they leave.
    pub through_services: u64,
    /// Addresses and ports whose backends were held against the text.
    pub service_ports: u64,
    /// Local backends that rows named there.
    pub backends: u64,
    /// Changes that were compiled incrementally.
    pub changes: u64,
    /// Histories whose tables were held against those of a full recompute.
    pub recomputed: u64,
}

impl Tally {
    /// The numbers by name, in the order in which they are shown.
    #[must_use]
    pub const fn numbers(&self) -> [(&'static str, u64); 9] {
        let Self { clusters, cells, allowed, packets, through_services, service_ports, backends, changes, recomputed } =
            *self;
        [
            ("clusters", clusters),
            ("cells", cells),
            ("allowed", allowed),
            ("packets", packets),
            ("through_services", through_services),
            ("service_ports", service_ports),
            ("backends", backends),
            ("changes", changes),
            ("recomputed", recomputed),
        ]
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Self { clusters, cells, allowed, packets, through_services, service_ports, backends, changes, recomputed } =
            other;
        self.clusters += clusters;
        self.cells += cells;
        self.allowed += allowed;
        self.packets += packets;
        self.through_services += through_services;
        self.service_ports += service_ports;
        self.backends += backends;
        self.changes += changes;
        self.recomputed += recomputed;
    }
}

/// Two parts of us do not say the same of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// The cluster's seed.
    pub seed: u64,
    /// Which comparison noticed.
    pub comparison: &'static str,
    /// What differs.
    pub what: String,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, comparison, what } = self;
        write!(f, "seed {seed}: {comparison}: {what}")
    }
}

impl std::error::Error for Disagreement {}

/// Compares everything of the cluster of a seed. Of the questions that can be asked, one in `share` is; which, depends on
/// the seed, so that many clusters together ask all kinds. What panics is a disagreement too: the API's text has no
/// cluster that we may refuse to judge.
pub fn prove(seed: u64, share: usize) -> Result<Tally, Disagreement> {
    let compared = std::panic::catch_unwind(|| compare(seed, share));
    compared.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Disagreement { seed, comparison: "panic", what: text.unwrap_or_default() })
    })
}

fn compare(seed: u64, share: usize) -> Result<Tally, Disagreement> {
    let disagreement = |comparison| move |what| Disagreement { seed, comparison, what };
    let mut tally = Tally { clusters: 1, ..Tally::default() };
    let mut random = Random::new(seed ^ 0x0c1a_57e5);
    let mut world = World::new(seed);
    let mut node = Node::new(Capacities::default(), Snapshot::default());
    node.apply(world.everything());
    let plan = node.program();
    if !plan.refused.is_empty() {
        return Err(disagreement("capacity")(format!("{:?}", plan.refused)));
    }
    of_cells(&world, &node.tables, share, &mut random, &mut tally).map_err(disagreement("cells"))?;
    of_packets(&world, &node.tables, share * PACKETS, &mut random, &mut tally).map_err(disagreement("packets"))?;
    let (ports, backends) =
        proxied::compare(&world, &node.tables, share, &mut random).map_err(disagreement("services"))?;
    tally.service_ports += ports;
    tally.backends += backends;
    for _ in 0..2 {
        for _ in 0..1 + random.below(6) {
            let change = world.step();
            node.apply([change]);
            tally.changes += 1;
        }
        node.now_ms += *random.pick(&[0, 500, 1000, 60_000]);
        let _plan = node.program();
    }
    node.quiesce();
    let mut full = Node::new(Capacities::default(), Snapshot::default());
    full.compiler = node.compiler.full();
    full.quiesce();
    let differing = Meaning::of(&node.tables).differences(&Meaning::of(&full.tables));
    if !differing.is_empty() {
        return Err(disagreement("incremental")(format!("{differing:#?}")));
    }
    tally.recomputed += 1;
    of_cells(&world, &node.tables, share * 2, &mut random, &mut tally).map_err(disagreement("cells after changes"))?;
    Ok(tally)
}

/// Every `share`th of some questions, from a random one on.
fn sample<T>(all: Vec<T>, share: usize, random: &mut Random) -> impl Iterator<Item = T> {
    all.into_iter().skip(random.below(share)).step_by(share)
}

fn of_cells(
    world: &World,
    tables: &MemoryTables,
    share: usize,
    random: &mut Random,
    tally: &mut Tally,
) -> Result<(), String> {
    let endpoints: Vec<u32> = world.endpoints.keys().copied().collect();
    for cell in sample(cells(&endpoints, &world.addresses(), &World::packets()), share, random) {
        let Some(expected) = expected(world, &cell) else { continue };
        let verdict = verdict(tables, &cell);
        if verdict.allowed != expected {
            return Err(format!("{cell:?}: the tables say {}, the text {expected}", verdict.allowed));
        }
        tally.cells += 1;
        tally.allowed += u64::from(expected);
    }
    Ok(())
}

/// Sends the first packet of a flow for some cells, to the peer itself and through a Service's address.
fn of_packets(
    world: &World,
    tables: &MemoryTables,
    share: usize,
    random: &mut Random,
    tally: &mut Tally,
) -> Result<(), String> {
    let endpoints: Vec<u32> = world.endpoints.keys().copied().collect();
    let mut sides: BTreeMap<u32, MemoryTables> = BTreeMap::new();
    let mut source_port = FIRST_SOURCE_PORT;
    for cell in sample(cells(&endpoints, &world.addresses(), &World::packets()), share, random) {
        let Some(expected) = expected(world, &cell) else { continue };
        let Some(pod) = world.endpoints.get(&cell.endpoint).and_then(|endpoint| world.pod(endpoint)) else { continue };
        let Some(Frames { direct, asked }) = frames_of(pod, &cell, source_port) else { continue };
        // Each question has a flow of its own.
        source_port = source_port.checked_add(1).unwrap_or(FIRST_SOURCE_PORT);
        let side = sides.entry(cell.endpoint).or_insert_with(|| side(tables, cell.endpoint));
        let judged = [Some((direct.clone(), false)), asked.map(|asked| (asked, true))];
        for (sent, by_service) in judged.into_iter().flatten() {
            let reason = if cell.egress { send(side, &sent, &direct) } else { receive(side, &direct) };
            // Others speak of addresses, not of policy: what two pods claim, a pod whose address is not known.
            if !matches!(reason, Reason::Passed | Reason::NoRule) {
                continue;
            }
            if (reason == Reason::Passed) != expected {
                let how = if by_service { "through a Service" } else { "as a packet" };
                return Err(format!("{cell:?} {how}: {reason:?}, the text says {expected}"));
            }
            if by_service {
                tally.through_services += 1;
            } else {
                tally.packets += 1;
            }
        }
    }
    Ok(())
}

/// Tables in which one endpoint's veth is [`POD_VETH`].
fn side(tables: &MemoryTables, endpoint: u32) -> MemoryTables {
    let mut side = MemoryTables::of_snapshot(tables.snapshot().clone());
    side.settings = Some(Settings { mark_shift: MARK_SHIFT, ..Settings::default() });
    let veth = InterfaceRow { endpoint, flags: interface_flags::POD_VETH };
    side.interfaces
        .extend([(POD_VETH, veth), (BRIDGE, InterfaceRow { endpoint: 0, flags: interface_flags::POD_BRIDGE })]);
    for (address, length) in [(IpAddr::from(SERVICE), 24), (IpAddr::from(SERVICE6), 112)] {
        side.apply(&MapOp::PutServiceCidr(IpNet::new_assert(address, length).trunc()));
    }
    side
}

/// The packet of a cell, and what the pod sent if a proxy made that packet of it.
struct Frames {
    direct: Vec<u8>,
    asked: Option<Vec<u8>>,
}

fn frames_of(pod: &Pod, cell: &Cell, source_port: u16) -> Option<Frames> {
    const ICMP: (u8, u8) = (1, 8);
    const ICMPV6: (u8, u8) = (58, 128);
    let own = *pod.addresses.iter().find(|own| own.is_ipv4() == cell.peer.is_ipv4())?;
    let (source, destination) = if cell.egress { (own, cell.peer) } else { (cell.peer, own) };
    let echo = if own.is_ipv4() { ICMP } else { ICMPV6 };
    let payload = match cell.port {
        Some(port) => frames::opening(cell.protocol, source_port, port),
        None if cell.protocol == echo.0 => frames::icmp(echo.1, source_port, b"ping"),
        // Without ports there is only one flow for all questions.
        None => return None,
    };
    let direct = frames::ip(source, destination, cell.protocol, &payload)?;
    let service = if own.is_ipv4() { SERVICE.into() } else { SERVICE6.into() };
    let is_asked = cell.egress && cell.port.is_some();
    let asked = if is_asked { frames::ip(source, service, cell.protocol, &payload) } else { None };
    Some(Frames { direct, asked })
}

fn receive(tables: &MemoryTables, frame: &[u8]) -> Reason {
    judge(tables, frame, &hook(Direction::Ingress, UPLINK)).reason
}

/// Sends a packet, and if the pod's veth defers it, lets the packet that a proxy has made of it leave the node.
fn send(tables: &MemoryTables, sent: &[u8], rewritten: &[u8]) -> Reason {
    let verdict = judge(tables, sent, &hook(Direction::Egress, POD_VETH));
    if !verdict.passes() || stamp::state(stamp::of_mark(verdict.mark, MARK_SHIFT)) == stamp::JUDGED {
        return verdict.reason;
    }
    let exit = Exit { ifindex: UPLINK, mark: verdict.mark, ingress_ifindex: BRIDGE, is_ip: true, segments: 0 };
    judge_leaving(tables, &FromNetworkHeader(rewritten), &exit, || NOW_NS, &mut Scratch::new()).reason
}

/// Some time after the machine's start, at which all packets come: nothing expires.
const NOW_NS: u64 = 3_600_000_000_000;

fn hook(direction: Direction, ingress_ifindex: u32) -> Hook {
    Hook {
        direction,
        ifindex: POD_VETH,
        mark: 0,
        ingress_ifindex,
        has_socket: false,
        link_header: true,
        vlan: false,
        now_ns: NOW_NS,
        segments: 0,
    }
}

#[cfg(test)]
mod tests;
