//! Fragments: the first one says the ports, the others are found by the datagram's identification.

use super::Outcome;
use super::case::{Case, LaterFragment};
use super::subject::pay;
use crate::abi::{FragmentKey, FragmentRow, account, admission, budget};
use crate::flow;
use crate::parse::Kind;
use crate::tables::Tables;
use crate::verdict::Reason;

#[inline(always)]
fn key(case: &Case) -> FragmentKey {
    FragmentKey {
        ifindex: case.ifindex,
        id: case.packet.fragment_id,
        source: case.packet.source.bytes(),
        destination: case.packet.destination.bytes(),
        protocol: if case.packet.source.is_v4() { case.packet.protocol } else { 0 },
        direction: case.direction as u8,
        pad: [0; 2],
    }
}

/// Gives a later fragment the ports of the first one, if that was let on here.
///
/// # Errors
/// It is one of IPv6 that can rewrite what the first one was judged by. Its own next header does not tell what that was
/// (RFC 8200, section 4.5), so where the first one was not seen, no protocol can be ruled out.
#[inline(never)]
pub(super) fn find_ports<T: Tables>(tables: &T, case: &mut Case) -> Outcome {
    if case.packet.kind != Kind::LaterFragment {
        return Ok(());
    }
    case.fragment = LaterFragment::PortsUnknown;
    let can_rewrite = case.packet.at_offset_one && !case.packet.source.is_v4();
    match tables.fragment(&key(case)) {
        Some(FragmentRow { source_port, destination_port, last_seen, protocol, pad: _ })
            if case.now().saturating_sub(last_seen) <= flow::timeout::FRAGMENTS =>
        {
            if can_rewrite && flow::is_connection(protocol) {
                return Err(Reason::FragmentHeader);
            }
            case.packet.source_port = source_port;
            case.packet.destination_port = destination_port;
            case.packet.protocol = protocol;
            case.packet.kind = Kind::Segment;
            case.fragment = LaterFragment::PortsKnown;
            Ok(())
        }
        _ if can_rewrite => Err(Reason::FragmentHeader),
        _ => Ok(()),
    }
}

/// Remembers the ports of a first fragment that was let on. What a pod or its peers send beyond their budget is remembered
/// where they can evict each other's, but nobody else's.
#[inline(never)]
pub(super) fn remember_ports<T: Tables>(tables: &T, case: &Case) -> Outcome {
    let row = FragmentRow {
        source_port: case.packet.source_port,
        destination_port: case.packet.destination_port,
        last_seen: case.now(),
        protocol: case.packet.protocol,
        pad: [0; 3],
    };
    let account = account(case.subject.endpoint, flow::sender(case.direction), admission::POLICY, false);
    let over = pay(tables, account, budget::FRAGMENTS, case.now_ns).is_err();
    Ok(tables.put_fragment(&key(case), &row, over)?)
}
