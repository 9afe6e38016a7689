//! Packets and the flows they belong to: which entry is a packet's own, whether that flow may still go on, when it is
//! confirmed, and what remains of one that was revoked.

use super::case::Entry;
use super::subject::pay;
use super::{Case, Outcome, destination, link};
use crate::abi::{
    Direction, FlowRow, RULE_NONE, SENDER_UNKNOWN, Settings, admission, budget, initiator, phase, setting_flags, stamp,
};
use crate::flow;
use crate::parse::{Address, Kind, Packet, has_ports, protocol};
use crate::tables::{FlowTable, Full, Tables};
use crate::verdict::Reason;

/// Whether a flow with this packet's key is also its own.
///
/// It must use the same address of the pod. An echo request comes from the initiator and a reply does not, also when the
/// identifiers are 0. The initiator's packets must come the way the first one came: after masquerading, one address and
/// port can be several senders. `sender` is the endpoint that the packet's stamp names, 0 if none is believed.
#[inline(always)]
pub(super) fn belongs(row: &FlowRow, packet: &Packet, direction: Direction, own_node: bool, sender: u16) -> bool {
    let from_initiator = row.initiator == flow::sender(direction);
    let right_side = match packet.kind {
        Kind::EchoRequest => from_initiator,
        Kind::EchoReply => !from_initiator,
        _ => true,
    };
    let same_way = match direction {
        Direction::Ingress if from_initiator => {
            (row.admission == admission::OWN_NODE) == own_node && (row.stamp == sender || row.stamp == SENDER_UNKNOWN)
        }
        Direction::Ingress | Direction::Egress => true,
    };
    right_side && same_way && Address::new(row.local).same(flow::local(packet, direction))
}

/// Looks up the entry of any IP packet but an ICMP error.
#[inline(never)]
pub(super) fn look_up<T: Tables>(tables: &T, case: &mut Case) -> Entry {
    // A packet that opens a connection is always judged as new, one without ports names no flow.
    if matches!(case.packet.kind, Kind::Opening | Kind::IcmpOther | Kind::LaterFragment) {
        return Entry::None;
    }
    // What a SYN+ACK confirms is the younger one, if an old connection used the same ports.
    let answers = case.packet.kind == Kind::OpeningAnswer;
    if answers {
        match embryonic(tables, case) {
            Entry::None => {}
            entry => return entry,
        }
    }
    if find(tables, case, FlowTable::Confirmed) {
        return Entry::Confirmed;
    }
    if find(tables, case, FlowTable::OverConfirmed) {
        return Entry::OverConfirmed;
    }
    if !answers {
        match embryonic(tables, case) {
            Entry::None => {}
            entry => return entry,
        }
    }
    if case.subject.is_closed() {
        Entry::None
    } else if find(tables, case, FlowTable::Tombstones) {
        Entry::Tombstone
    } else if find(tables, case, FlowTable::OverTombstones) {
        Entry::OverTombstone
    } else {
        Entry::None
    }
}

#[inline(always)]
fn embryonic<T: Tables>(tables: &T, case: &mut Case) -> Entry {
    if find(tables, case, FlowTable::Embryonic) {
        Entry::Embryonic
    } else if find(tables, case, FlowTable::OverEmbryonic) {
        Entry::OverEmbryonic
    } else {
        Entry::None
    }
}

/// Looks up the packet's own entry in one table, unless it has expired.
#[inline(never)]
pub(super) fn find<T: Tables>(tables: &T, case: &mut Case, table: FlowTable) -> bool {
    tables.load_flow(table, &case.key, &mut case.row)
        && belongs(&case.row, &case.packet, case.direction, case.own_node, case.sender())
        && flow::is_alive(table, case.key.protocol, &case.row, case.now())
}

/// Judges the entry found last once again: in the orientation it was started in, and by the way it was admitted.
#[inline(never)]
pub(super) fn judge_again<T: Tables>(tables: &T, case: &mut Case) -> Outcome {
    case.rule = case.row.rule;
    if case.row.admission == admission::OWN_NODE {
        return Ok(());
    }
    if case.subject.is_closed() {
        return Err(Reason::Pending);
    }
    if case.found != 0 {
        case.row.stamp = case.found as u16;
        if case.found & destination::REWRITTEN != 0 {
            case.row.admission = admission::DEFERRED;
            case.rule = RULE_NONE;
            return Ok(());
        }
        case.row.admission = admission::POLICY;
    }
    if let Some(rule) = ask_as(tables, case, case.row.initiator) {
        case.rule = rule;
        return Ok(());
    }
    if is_a_guess(case) && flow::is_connection(case.key.protocol) {
        let (other, stamp) = match case.row.initiator {
            initiator::POD => (initiator::PEER, SENDER_UNKNOWN),
            _ => (initiator::POD, stamp::DEFERRED),
        };
        // Before it is asked: what a flow of the pod's own has there is a state, and no endpoint's number.
        let guessed = core::mem::replace(&mut case.row.stamp, stamp);
        if let Some(rule) = ask_as(tables, case, other) {
            case.rule = rule;
            case.row.initiator = other;
            return Ok(());
        }
        case.row.stamp = guessed;
    }
    Err(Reason::Revoked)
}

/// Whether the entry found last, which the policy does not allow, says no more than who was heard first. A guess may be
/// corrected for as long as guesses are made.
#[inline(always)]
const fn is_a_guess(case: &Case) -> bool {
    case.row.phase & phase::GUESSED != 0 && case.now() < case.subject.reverse_until
}

/// Whether flows whose permission was revoked live on. What was cut before is not brought back by it.
#[inline(always)]
pub(super) fn keeps_established<T: Tables>(tables: &T) -> bool {
    matches!(tables.settings(), Some(Settings { flags, .. }) if flags & setting_flags::KEEP_ESTABLISHED != 0)
}

/// Asks the policy about the entry found last as if `initiator` had started it.
#[inline(always)]
fn ask_as<T: Tables>(tables: &T, case: &mut Case, initiator: u8) -> Option<u32> {
    // As in `Case::is_to_itself`.
    let sender = u32::from(case.row.stamp);
    if initiator == initiator::PEER && sender != 0 && sender == case.subject.endpoint {
        case.question.peer = case.row.local;
    } else {
        case.question.peer = case.key.peer;
    }
    let (direction, port) = match initiator {
        initiator::POD => (Direction::Egress, case.key.peer_port),
        _ => (Direction::Ingress, case.key.local_port),
    };
    case.allows(tables, direction, has_ports(case.key.protocol), port)
}

/// A packet of a live flow in `table`, which was judged again if need be.
#[inline(never)]
pub(super) fn go_on<T: Tables>(tables: &T, case: &mut Case, table: FlowTable) -> Outcome {
    if !case.current {
        // The entry may be from a time when addresses were not checked, or not known to be nodes'.
        if let Err(reason) = link::addresses(tables, case).and_then(|()| link::overlay(tables, case)) {
            let _was_there = forget(tables, case, table);
            return Err(reason);
        }
        match case.judged {
            Reason::Passed => {}
            Reason::Revoked if keeps_established(tables) => {}
            reason => {
                if reason == Reason::Revoked {
                    end(tables, case);
                }
                return Err(reason);
            }
        }
    }
    case.state = case.state_of_row();
    let first_reply = !table.is_confirmed() && case.row.initiator != flow::sender(case.direction);
    let phase = flow::next_phase(case.row.phase, &case.packet);
    let seen_again = case.renews_row() && case.row.last_seen != case.now();
    let changed = seen_again || case.row.phase != phase;
    case.row.phase = phase;
    let rewrite = learn_way(case, seen_again) | !case.current;
    case.renew_row();
    if first_reply {
        confirm(tables, case)?;
        let _was_there = forget(tables, case, table);
    } else if table.is_confirmed() && (rewrite || changed) {
        keep(tables, case, table, rewrite)?;
    } else if rewrite {
        tables.put_flow(table, &case.key, &case.row)?;
    } else if changed {
        tables.touch_flow(table, &case.key, case.row.last_seen, case.row.phase);
    }
    Ok(())
}

/// Writes a confirmed flow that has changed: to where it belongs now.
#[inline(never)]
fn keep<T: Tables>(tables: &T, case: &Case, table: FlowTable, rewrite: bool) -> Outcome {
    if table == FlowTable::Confirmed && !flow::is_finished(case.row.phase) {
        if !rewrite {
            tables.touch_flow(table, &case.key, case.row.last_seen, case.row.phase);
            return Ok(());
        }
        if tables.replace_flow(table, &case.key, &case.row) {
            return Ok(());
        }
        // Another CPU has moved it.
    }
    write_confirmed(tables, case)
}

/// Writes a confirmed flow, or moves it, to where it belongs.
#[inline(never)]
fn write_confirmed<T: Tables>(tables: &T, case: &Case) -> Outcome {
    if !flow::is_finished(case.row.phase) && settle(tables, case) {
        return Ok(());
    }
    // In this order, so that it is never nowhere.
    tables.put_flow(FlowTable::OverConfirmed, &case.key, &case.row)?;
    if forget(tables, case, FlowTable::Confirmed) {
        // Once more, for another CPU may have moved it there in between, and removed it here.
        tables.put_flow(FlowTable::OverConfirmed, &case.key, &case.row)?;
    }
    Ok(())
}

/// Gives the entry found last a place where nothing is evicted, if its account has one left.
///
/// What is in the way there is an older flow of the same name, whose place it takes.
#[inline(never)]
fn settle<T: Tables>(tables: &T, case: &Case) -> bool {
    if !tables.replace_flow(FlowTable::Confirmed, &case.key, &case.row) {
        let account = case.account();
        let Some(Settings { share, .. }) = tables.settings() else { return false };
        let Some(held) = tables.held(account) else { return false };
        if held >= 0 && held as u64 >= flow::limit(share, case.row.admission) {
            return false;
        }
        if tables.add_flow(FlowTable::Confirmed, &case.key, &case.row) {
            tables.hold(account, 1);
        } else if !tables.replace_flow(FlowTable::Confirmed, &case.key, &case.row) {
            return false;
        }
        // Else another CPU has just added it, and has counted it.
    }
    let _was_there = tables.remove_flow(FlowTable::OverConfirmed, &case.key);
    true
}

/// Removes the entry found last from a table, and gives its place back; answers whether it was there.
#[inline(never)]
fn forget<T: Tables>(tables: &T, case: &Case, table: FlowTable) -> bool {
    let was_there = tables.remove_flow(table, &case.key);
    if was_there && table == FlowTable::Confirmed {
        tables.hold(case.account(), -1);
    }
    was_there
}

/// Keeps in the entry found last which way the peer's packets come; answers whether that is to be written. Ways that
/// alternate are written once a second, at most.
#[inline(always)]
fn learn_way(case: &mut Case, seen_again: bool) -> bool {
    if case.is_from_pod() {
        return false;
    }
    let is_news = case.row.initiator == initiator::PEER && case.row.stamp == SENDER_UNKNOWN;
    if is_news {
        case.row.stamp = case.sender();
    }
    let moved = case.came_by != 0
        && (case.row.came_by != case.came_by || case.row.came_endpoint != case.came_endpoint)
        && (case.row.came_by == 0 || seen_again);
    if moved {
        case.row.came_by = case.came_by;
        case.row.came_endpoint = case.came_endpoint;
    }
    is_news || moved
}

/// Writes a confirmed flow. The own node's flows cost nothing: a pod's peers could else starve its probes.
#[inline(always)]
pub(super) fn confirm<T: Tables>(tables: &T, case: &mut Case) -> Outcome {
    if case.row.admission != admission::OWN_NODE {
        pay(tables, case.account(), budget::FLOWS, case.now_ns)?;
    }
    case.row.phase |= phase::REPLIED;
    write_confirmed(tables, case)
}

/// Ends a flow that the policy does not allow any more.
///
/// A guess is only forgotten: nothing says yet that the connection is not allowed, and the other side's next packet may
/// show it, as one of the own node's or through a Service does.
#[inline(always)]
fn end<T: Tables>(tables: &T, case: &mut Case) {
    if !is_a_guess(case) {
        bury(tables, case);
    }
    for table in [FlowTable::Confirmed, FlowTable::OverConfirmed, FlowTable::Embryonic, FlowTable::OverEmbryonic] {
        let _was_there = forget(tables, case, table);
    }
}

/// Leaves a tombstone, before the flow is removed: in this order, so that a retransmission from the other side never finds
/// neither and starts the flow again the other way round. A full table only loses the tombstone.
///
/// One of more than an account's share goes where only such can evict it: what one pod's tenant revokes would else take
/// the tombstones of others, whose connections would come back.
#[inline(always)]
fn bury<T: Tables>(tables: &T, case: &mut Case) {
    case.renew_row();
    let (table, other) = if pay(tables, case.account(), budget::TOMBSTONES, case.now_ns).is_ok() {
        (FlowTable::Tombstones, FlowTable::OverTombstones)
    } else {
        (FlowTable::OverTombstones, FlowTable::Tombstones)
    };
    match tables.put_flow(table, &case.key, &case.row) {
        Ok(()) | Err(Full) => {}
    }
    let _was_there = tables.remove_flow(other, &case.key);
}

/// A packet of a flow whose permission was revoked, and which is in `table`. Judged anew only under a new policy; until
/// then TCP keeps its tombstone by what it drops, and others lose it after one idle timeout.
#[inline(never)]
pub(super) fn revoked<T: Tables>(tables: &T, case: &mut Case, table: FlowTable) -> Outcome {
    if case.current {
        if matches!(case.key.protocol, protocol::TCP | protocol::SCTP) && case.row.last_seen != case.now() {
            tables.touch_flow(table, &case.key, case.now(), case.row.phase);
        }
        return Err(Reason::Revoked);
    }
    case.renew_row();
    if case.judged != Reason::Passed {
        tables.put_flow(table, &case.key, &case.row)?;
        return Err(case.judged);
    }
    case.state = case.state_of_row();
    case.row.phase = flow::next_phase(case.row.phase, &case.packet);
    confirm(tables, case)?;
    let _was_there = tables.remove_flow(table, &case.key);
    Ok(())
}
