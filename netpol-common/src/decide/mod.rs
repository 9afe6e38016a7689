//! The one verdict function (decision D1): [`judge`] answers for one frame at one hook, and keeps the flow tables.
//!
//! A frame is parsed, then looked up among the confirmed flows: an established packet ends there, with one flow
//! look-up and one endpoint word, whatever the number of policies. Everything else becomes a [`case::Case`] and takes the
//! slow way: [`subject`] (whose pod, which policy set, pending or not) → [`tracking`] (does it belong to a flow, may that
//! flow go on) → [`admit`] (may it start one) → [`policy`] (what the rules say). Address checks and the link's own
//! protocols are in [`link`].
//!
//! A packet's destination may not be its last: a proxy rewrites those of Services after the pod's veth. What a pod sends
//! goes on with a stamp in its mark that says so ([`destination`]), and where it comes to the receiving pod's veth, or
//! leaves by another device ([`judge_leaving`]), the stamp's sender is found ([`sender`]) and judged by the real
//! destination ([`deferred`]).
//!
//! Two limits of the BPF target shape the slow way. All stacks of a call chain together have 512 bytes: so the case is one
//! struct that is handed down by reference, and functions are kept out of line where their temporaries would add up. And
//! the verifier follows every path with what it knows of every value: so the case lives in a map there ([`Scratch`]),
//! whose content it knows nothing about, and the paths of the parser end in one state instead of multiplying those below.

mod admit;
mod case;
mod deferred;
mod destination;
mod fragment;
mod leaving;
mod link;
mod policy;
mod related;
mod sender;
mod subject;
#[cfg(test)]
mod tests;
mod tracking;

pub use case::Scratch;
pub use leaving::{Exit, judge_leaving};
pub use policy::{PolicyVerdict, class_of, is_isolated, policy_verdict};

use crate::abi::{
    CAME_FROM_POD, Direction, FlowRow, PENDING_ENDPOINT, RULE_NONE, SET_PENDING, Settings, address_kind, initiator,
    stamp,
};
use crate::flow;
use crate::parse::{Frame, Kind, Link, Packet, parse_into};
use crate::tables::{FlowTable, Full, Tables};
use crate::verdict::{Reason, Verdict};
use case::{Case, Entry};
use subject::Subject;

/// Where and when a frame is judged; what the frame's bytes do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// From the pod's point of view.
    pub direction: Direction,
    /// Index of the pod's host-side veth.
    pub ifindex: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// Device that the packet came in by, 0 if it was made on this host. Survives forwarding and address translation.
    pub ingress_ifindex: u32,
    /// Whether a socket is attached to the packet.
    pub has_socket: bool,
    /// Whether frames start with an Ethernet header.
    pub link_header: bool,
    /// Whether the kernel keeps a VLAN or priority tag beside the frame.
    pub vlan: bool,
    /// Boot clock, in ns.
    pub now_ns: u64,
    /// Segments of a GSO packet; 0 or 1 otherwise.
    pub segments: u32,
}

impl Hook {
    /// A socket of this host sent the packet. The socket alone does not prove it: a bridged packet can carry the one of
    /// the pod that sent it (decision D7).
    #[inline(always)]
    const fn sent_by_host_socket(&self) -> bool {
        matches!(self.direction, Direction::Ingress) && self.ingress_ifindex == 0 && self.has_socket
    }
}

/// Nothing objects, and [`Case::rule`] is the rule that lets the packet on; or why it is dropped. The rule is not in
/// here because the BPF target returns one register, all of whose bits must be written.
type Outcome = Result<(), Reason>;

impl From<Full> for Reason {
    fn from(Full: Full) -> Self {
        Self::FlowTableFull
    }
}

/// Judges one frame, keeps the flow tables and counts the packet.
pub fn judge<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, hook: &Hook) -> Verdict {
    judge_in(tables, frame, hook, &mut Scratch::new())
}

/// [`judge`] for a caller that has no stack to spare.
#[inline(always)]
pub fn judge_in<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, hook: &Hook, scratch: &mut Scratch) -> Verdict {
    let Scratch(case) = scratch;
    let parsed = if hook.link_header {
        read::<F, true>(frame, hook.vlan, hook.segments, &mut case.packet)
    } else {
        read::<F, false>(frame, hook.vlan, hook.segments, &mut case.packet)
    };
    case.begin(hook, frame.len());
    let verdict = match parsed {
        Ok(()) => match established(tables, hook, case) {
            Some(verdict) => verdict,
            None => {
                unestablished(tables, frame, case);
                case.verdict(tables)
            }
        },
        Err(reason) => {
            unreadable(tables, case, reason);
            case.verdict(tables)
        }
    };
    // What is deferred is counted where it is decided.
    if !verdict.passes() || !case.is_from_pod() || case.state != stamp::DEFERRED {
        case.count(tables, verdict.endpoint, verdict.direction, verdict.reason);
    }
    verdict
}

/// Out of line: the parser's temporaries would else add to the stack of everything that comes after it. One function for
/// each kind of link, of which a program has one.
#[inline(never)]
fn read<F: Frame + ?Sized, const LINK_HEADER: bool>(
    frame: &F,
    vlan: bool,
    segments: u32,
    packet: &mut Packet,
) -> Result<(), Reason> {
    parse_into(frame, &Link { header: LINK_HEADER, vlan, segments }, packet)
}

/// The fast way: a packet of a confirmed flow that was judged under the policy now in force. `None` is no answer.
///
/// The flow's own local address stands for the address checks: it passed them when the flow was admitted.
#[inline(always)]
fn established<T: Tables>(tables: &T, hook: &Hook, case: &mut Case) -> Option<Verdict> {
    let Case { packet, key, row, .. } = case;
    if packet.first_fragment || !matches!(packet.kind, Kind::Segment | Kind::EchoRequest | Kind::EchoReply) {
        return None;
    }
    *key = flow::key(hook.ifindex, packet, hook.direction);
    let has_place = tables.load_flow(FlowTable::Confirmed, key, row);
    if !has_place && !tables.load_flow(FlowTable::OverConfirmed, key, row) {
        return None;
    }
    let now = flow::seconds(hook.now_ns);
    let Settings { mark_shift, .. } = tables.settings()?;
    let came = stamp::of_mark(hook.mark, mark_shift);
    let sender = match hook.direction {
        Direction::Egress => 0,
        Direction::Ingress => sender_of_established(row, hook.ingress_ifindex, came)?,
    };
    // Here a host socket passes for the own node, which needs a class look-up to be sure: if that is wrong for this
    // flow, the slow way finds out.
    if !tracking::belongs(row, packet, hook.direction, hook.sent_by_host_socket(), sender)
        || !flow::is_alive(FlowTable::Confirmed, key.protocol, row, now)
    {
        return None;
    }
    let word = tables.endpoint_word(row.endpoint)?;
    if word.set() == SET_PENDING || word.epoch() != row.epoch {
        return None;
    }
    let phase = flow::next_phase(row.phase, packet);
    let seen = if case::renews(row, hook.direction) { now } else { row.last_seen };
    if row.last_seen != seen || row.phase != phase {
        // What ends gives its place away, and what has none may get one: the slow way sees to that.
        if !has_place || flow::is_finished(phase) {
            return None;
        }
        tables.touch_flow(FlowTable::Confirmed, key, seen, phase);
    }
    let mark = match hook.direction {
        Direction::Egress => {
            case.state = case.state_of_row();
            stamp::into_mark(hook.mark, mark_shift, stamp::new(case.state, case.row.endpoint))
        }
        Direction::Ingress => hook.mark,
    };
    let FlowRow { endpoint, rule, .. } = case.row;
    Some(Verdict { reason: Reason::Passed, direction: hook.direction, endpoint, rule, mark })
}

/// The endpoint that sent a packet to the pod, 0 if no pod here did; `None` if that must be looked up, or if the packet's
/// egress must still be judged.
#[inline(always)]
fn sender_of_established(row: &FlowRow, ingress_ifindex: u32, came: u16) -> Option<u16> {
    if ingress_ifindex == 0 {
        return Some(0);
    }
    if row.came_by & !CAME_FROM_POD != ingress_ifindex {
        return None;
    }
    if row.came_by & CAME_FROM_POD == 0 {
        return Some(0);
    }
    let endpoint = stamp::endpoint(came);
    if stamp::state(came) != stamp::JUDGED || (row.came_endpoint != 0 && row.came_endpoint != endpoint) {
        return None;
    }
    Some(endpoint as u16)
}

/// A frame that cannot be parsed is dropped from and to every pod, isolated or not.
#[inline(never)]
fn unreadable<T: Tables>(tables: &T, case: &mut Case, reason: Reason) {
    case.reason = match Subject::find(tables, case.ifindex) {
        Ok(subject) => {
            case.subject = subject;
            if subject.is_closed() { Reason::Pending } else { reason }
        }
        Err(missing) => {
            case.subject.endpoint = PENDING_ENDPOINT;
            missing
        }
    };
}

/// The slow way.
#[inline(never)]
fn unestablished<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, case: &mut Case) {
    let outcome = match Subject::find(tables, case.ifindex) {
        Ok(subject) => {
            case.subject = subject;
            from_whom(tables, frame, case)
        }
        Err(missing) => {
            case.subject.endpoint = PENDING_ENDPOINT;
            Err(missing)
        }
    };
    match outcome {
        Ok(()) => case.reason = Reason::Passed,
        Err(reason) => {
            case.reason = reason;
            case.rule = RULE_NONE;
        }
    }
}

#[inline(always)]
fn from_whom<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, case: &mut Case) -> Outcome {
    if !case.is_from_pod() {
        sender::find(tables, case)?;
        if case.is_deferred() {
            fragment::find_ports(tables, case)?;
            deferred::judge(tables, frame, case)?;
            // The receiver's rule is another one.
            case.rule = RULE_NONE;
        }
    }
    by_kind(tables, frame, case)
}

#[inline(always)]
fn by_kind<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, case: &mut Case) -> Outcome {
    match case.packet.kind {
        Kind::Arp => link::arp(tables, frame, case),
        Kind::NeighborDiscovery => link::neighbor_discovery(tables, frame, case),
        Kind::MulticastListener => link::multicast_listener(tables, frame, case),
        Kind::Vlan | Kind::OtherEtherType => link::not_ip(tables, case),
        Kind::Segment
        | Kind::Opening
        | Kind::OpeningAnswer
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::IcmpError
        | Kind::IcmpOther
        | Kind::LaterFragment => ip(tables, frame, case),
    }
}

/// Whether the destination must be looked up: of what the pod starts, and of what it has started, if that is judged again.
#[inline(always)]
fn asks_destination<T: Tables>(tables: &T, case: &Case) -> bool {
    if case.subject.is_closed() {
        return false;
    }
    if case.entry == Entry::None {
        return case.is_from_pod();
    }
    // Under the switch that keeps what was allowed, a destination that was final stays so.
    !case.current
        && case.row.initiator == initiator::POD
        && !(case.row.stamp == stamp::JUDGED && tracking::keeps_established(tables))
}

#[inline(always)]
fn ip<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, case: &mut Case) -> Outcome {
    fragment::find_ports(tables, case)?;
    case.name_flow();
    if case.host_socket {
        case.own_node = class_of(tables, &case.key.peer).kind == address_kind::THIS_NODE;
    }
    let is_error = case.packet.kind == Kind::IcmpError;
    if is_error {
        link::redirects(case)?;
        link::addresses(tables, case)?;
    }
    // One step after the other, with everything in the case between them: the verifier then follows each function once,
    // whatever came before it.
    case.entry = if is_error { related::look_up(tables, frame, case) } else { tracking::look_up(tables, case) };
    case.current = case.entry == Entry::None || case.row_is_current();
    case.found = if asks_destination(tables, case) { destination::look_up(tables, case) } else { 0 };
    case.rule = if case.entry == Entry::None { RULE_NONE } else { case.row.rule };
    case.judged = Reason::Passed;
    if !case.current
        && let Err(reason) = tracking::judge_again(tables, case)
    {
        case.judged = reason;
    }
    match case.entry {
        Entry::Embryonic => tracking::go_on(tables, case, FlowTable::Embryonic)?,
        Entry::OverEmbryonic => tracking::go_on(tables, case, FlowTable::OverEmbryonic)?,
        Entry::Confirmed => tracking::go_on(tables, case, FlowTable::Confirmed)?,
        Entry::OverConfirmed => tracking::go_on(tables, case, FlowTable::OverConfirmed)?,
        Entry::Tombstone => tracking::revoked(tables, case, FlowTable::Tombstones)?,
        Entry::OverTombstone => tracking::revoked(tables, case, FlowTable::OverTombstones)?,
        Entry::Quoted => related::go_on(tables, case)?,
        Entry::None if case.packet.kind == Kind::IcmpError => admit::icmp_error(tables, case)?,
        Entry::None => admit::packet(tables, case)?,
    }
    if case.packet.first_fragment {
        fragment::remember_ports(tables, case)?;
    }
    Ok(())
}
