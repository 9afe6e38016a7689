//! What a pod's veth has deferred, judged by its real destination: at the veth of the pod it is delivered to, or at the
//! device by which it leaves (decision D6).

use super::policy::ask;
use super::{Case, Outcome, link, sender, tracking};
use crate::abi::{
    DecidedKey, DecidedRow, Direction, EndpointWord, PENDING_ENDPOINT, RULE_NONE, SET_PENDING, rule_action, stamp,
};
use crate::flow;
use crate::parse::{Frame, Inner, Kind, Packet, has_ports, inner};
use crate::tables::Tables;
use crate::verdict::Reason;

/// Judges a packet with a deferred stamp. That it is denied is said of its sender, not of the receiver.
#[inline(never)]
pub(super) fn judge<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, case: &mut Case) -> Outcome {
    let endpoint = stamp::endpoint(case.stamp);
    case.rule = RULE_NONE;
    match by_real_destination(tables, frame, case, endpoint) {
        Ok(()) => {
            // What may also be delivered on the node was counted at the sender's veth.
            if stamp::state(case.stamp) == stamp::DEFERRED {
                case.count(tables, endpoint, Direction::Egress, Reason::Passed);
            }
            case.settled = true;
            Ok(())
        }
        Err(reason) => {
            sender::blame(case, endpoint);
            Err(reason)
        }
    }
}

#[inline(always)]
fn by_real_destination<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, case: &mut Case, endpoint: u32) -> Outcome {
    let word = match tables.endpoint_word(endpoint) {
        Some(word) if endpoint != PENDING_ENDPOINT && word.set() != SET_PENDING => word,
        _ => return Err(Reason::Pending),
    };
    let packet = &case.packet;
    case.decided = DecidedKey {
        endpoint,
        source_port: packet.source_port,
        port: packet.destination_port,
        backend: packet.destination.bytes(),
        protocol: packet.protocol,
        pad: [0; 3],
    };
    // What opens a connection is always judged as new. What names no flow has none to remember.
    let (reads, writes) = match packet.kind {
        Kind::Segment | Kind::OpeningAnswer | Kind::EchoRequest | Kind::EchoReply => (true, true),
        Kind::Opening => (false, true),
        // By the flow that it speaks of: without ports it would be a way to a peer of which only some ports are allowed,
        // and no way to one of which they are.
        Kind::IcmpError => (name_quoted(frame, packet, &mut case.decided), false),
        Kind::IcmpOther | Kind::LaterFragment => (false, false),
        Kind::NeighborDiscovery | Kind::MulticastListener | Kind::Arp | Kind::Vlan | Kind::OtherEtherType => {
            return Err(Reason::EtherType);
        }
    };
    let before = if reads { tables.decided(&case.decided) } else { None };
    if let Some(DecidedRow { epoch, rule, action }) = before
        && epoch == word.epoch()
    {
        case.rule = rule;
        return if action == rule_action::ALLOW { Ok(()) } else { Err(Reason::NoRule) };
    }
    let was_allowed = matches!(before, Some(DecidedRow { action: rule_action::ALLOW, .. }));
    let outcome = anew(tables, case, word, was_allowed);
    // A revoked flow keeps its old row, so that it says so until something else is decided.
    if writes && outcome != Err(Reason::Revoked) {
        let action = if outcome.is_ok() { rule_action::ALLOW } else { rule_action::DENY };
        tables.put_decided(&case.decided, &DecidedRow { epoch: word.epoch(), rule: case.rule, action });
    }
    outcome
}

/// Names the flow that an ICMP error speaks of as its initiator's packets do, which the error follows.
#[inline(never)]
fn name_quoted<F: Frame + ?Sized>(frame: &F, error: &Packet, key: &mut DecidedKey) -> bool {
    let Some(Inner { source, source_port, destination_port, protocol, .. }) = inner(frame, error) else { return false };
    if !source.same(error.destination) {
        return false;
    }
    (key.source_port, key.port, key.protocol) = (destination_port, source_port, protocol);
    true
}

#[inline(never)]
fn anew<T: Tables>(tables: &T, case: &mut Case, word: EndpointWord, was_allowed: bool) -> Outcome {
    let DecidedKey { port, backend, protocol, .. } = case.decided;
    if link::leads_to_overlay(tables, &backend, protocol, port) {
        return Err(Reason::Overlay);
    }
    case.question.peer = backend;
    case.question.set = word.set();
    case.question.direction = Direction::Egress;
    case.question.protocol = protocol;
    case.question.has_port = has_ports(protocol) && case.packet.kind != Kind::LaterFragment;
    case.question.port = port;
    let verdict = ask(tables, &case.question);
    if verdict.allowed {
        case.rule = verdict.rule;
        return Ok(());
    }
    if case.packet.kind == Kind::LaterFragment {
        return Err(Reason::FragmentUnknown);
    }
    if !was_allowed {
        return Err(Reason::NoRule);
    }
    // What is remembered here has no age. A connection shows its beginning, which is judged as new; of anything else, a
    // port that is used again years later would look like the flow that was allowed once.
    if flow::is_connection(protocol) && tracking::keeps_established(tables) { Ok(()) } else { Err(Reason::Revoked) }
}
