//! Packets that belong to no flow: may they pass, and do they start one?

use super::case::LaterFragment;
use super::subject::pay;
use super::{Case, Outcome, destination, link, tracking};
use crate::abi::{Direction, SENDER_UNKNOWN, admission, budget, initiator, phase, stamp};
use crate::flow;
use crate::parse::{Kind, has_ports};
use crate::tables::{FlowTable, Tables};
use crate::verdict::Reason;

/// Judges a packet without an entry in its own orientation: that the *reverse* would be allowed proves nothing, since
/// anybody can send a packet that looks like a reply.
#[inline(never)]
pub(super) fn packet<T: Tables>(tables: &T, case: &mut Case) -> Outcome {
    if case.subject.is_closed() && !case.own_node {
        return Err(Reason::Pending);
    }
    link::redirects(case)?;
    link::addresses(tables, case)?;
    link::overlay(tables, case)?;
    if case.own_node {
        return start(tables, case, admission::OWN_NODE);
    }
    if case.is_from_pod() {
        case.state = case.found as u16;
        // What answers is never rewritten: it would have a flow.
        if case.found & destination::REWRITTEN != 0
            && !matches!(case.packet.kind, Kind::OpeningAnswer | Kind::EchoReply)
        {
            return start(tables, case, admission::DEFERRED);
        }
    }
    case.ask_about_peer();
    let (direction, has_port, port) =
        (case.direction, case.packet.policy_port().is_some(), case.packet.destination_port);
    match case.allows(tables, direction, has_port, port) {
        Some(rule) => {
            case.rule = rule;
            start(tables, case, admission::POLICY)
        }
        None => denied(tables, case),
    }
}

/// Lets an allowed packet on, with a flow if it can start one.
#[inline(never)]
fn start<T: Tables>(tables: &T, case: &mut Case, admission: u8) -> Outcome {
    // An answer to the overlay's port must never look like the reply of a flow: it is judged by itself, and dropped.
    if !case.may_start() || link::is_from_overlay(tables, case) {
        return Ok(());
    }
    let stamp = if case.is_from_pod() { case.state } else { case.sender() };
    let opening = case.packet.kind == Kind::Opening;
    // A retransmission of what opened the flow does not open another one.
    if opening {
        for table in [FlowTable::Embryonic, FlowTable::OverEmbryonic] {
            let again = tracking::find(tables, case, table)
                && case.row_is_current()
                && case.row.initiator == flow::sender(case.direction)
                && case.row.rule == case.rule
                && case.row.admission == admission
                && case.row.stamp == stamp;
            if again {
                if case.row.last_seen != case.now() {
                    tables.touch_flow(table, &case.key, case.now(), case.row.phase);
                }
                return Ok(());
            }
        }
    }
    case.begin_row(flow::sender(case.direction), admission, stamp);
    if case.is_in_the_middle() || case.may_have_been_answered() {
        case.row.phase |= phase::GUESSED;
    }
    open(tables, case)?;
    if opening {
        for table in [FlowTable::Tombstones, FlowTable::OverTombstones] {
            let _was_there = tables.remove_flow(table, &case.key);
        }
    }
    Ok(())
}

/// Writes a new flow: where nobody evicts it before its time, if that is within its account's budget.
#[inline(never)]
fn open<T: Tables>(tables: &T, case: &Case) -> Outcome {
    let account = case.account();
    let own_node = case.row.admission == admission::OWN_NODE;
    if !own_node {
        pay(tables, account, budget::FLOWS, case.now_ns)?;
    }
    let (table, other) = if own_node || pay(tables, account, budget::OPENING, case.now_ns).is_ok() {
        (FlowTable::Embryonic, FlowTable::OverEmbryonic)
    } else {
        (FlowTable::OverEmbryonic, FlowTable::Embryonic)
    };
    tables.put_flow(table, &case.key, &case.row)?;
    // An older one of the same name would be found in place of it.
    let _was_there = tables.remove_flow(other, &case.key);
    Ok(())
}

/// The last look before a drop.
#[inline(never)]
fn denied<T: Tables>(tables: &T, case: &mut Case) -> Outcome {
    if matches!(case.packet.kind, Kind::Opening | Kind::IcmpOther) {
        return Err(Reason::NoRule);
    }
    if case.fragment == LaterFragment::PortsUnknown {
        return Err(Reason::FragmentUnknown);
    }
    // Another CPU may have moved the flow from embryonic to confirmed between our two look-ups.
    if (tracking::find(tables, case, FlowTable::Confirmed) || tracking::find(tables, case, FlowTable::OverConfirmed))
        && case.row_is_current()
    {
        case.rule = case.row.rule;
        case.state = case.state_of_row();
        return Ok(());
    }
    if case.is_in_the_middle() {
        return as_a_reply(tables, case);
    }
    Err(reason(case))
}

#[inline(always)]
const fn reason(case: &Case) -> Reason {
    match case.packet.kind {
        Kind::EchoReply => Reason::NoFlow,
        _ => Reason::NoRule,
    }
}

/// Tries the reverse orientation: the packet may answer one that was sent before the programs were attached.
#[inline(never)]
fn as_a_reply<T: Tables>(tables: &T, case: &mut Case) -> Outcome {
    let (direction, initiator, stamp) = match case.direction {
        Direction::Egress => (Direction::Ingress, initiator::PEER, SENDER_UNKNOWN),
        // Whether a proxy stands between was not looked up: the pod's next packet is judged where it leaves.
        Direction::Ingress => (Direction::Egress, initiator::POD, stamp::DEFERRED),
    };
    case.question.peer = case.key.peer;
    match case.allows(tables, direction, has_ports(case.key.protocol), case.packet.source_port) {
        Some(rule) => {
            case.rule = rule;
            case.begin_row(initiator, admission::POLICY, stamp);
            case.state = stamp::JUDGED;
            tracking::confirm(tables, case)
        }
        None => Err(reason(case)),
    }
}

/// Judges an ICMP error that belongs to no flow: like any packet without ports, and it starts nothing.
#[inline(always)]
pub(super) fn icmp_error<T: Tables>(tables: &T, case: &mut Case) -> Outcome {
    if case.own_node {
        return Ok(());
    }
    if case.subject.is_closed() {
        return Err(Reason::Pending);
    }
    if case.is_from_pod() {
        // Of no flow: judged here by the address it bears, and once more by the one it gets.
        case.state = case.found as u16;
    }
    case.ask_about_peer();
    match case.allows(tables, case.direction, false, [0; 2]) {
        Some(rule) => {
            case.rule = rule;
            Ok(())
        }
        None => Err(Reason::NoFlow),
    }
}
