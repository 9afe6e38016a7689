//! Fragments: the first one says the ports, the others are found by the datagram's identification.

use super::case::{Case, LaterFragment};
use crate::abi::{FragmentKey, FragmentRow};
use crate::flow;
use crate::parse::Kind;
use crate::tables::{Full, Tables};

#[inline(always)]
fn key(case: &Case) -> FragmentKey {
    FragmentKey {
        ifindex: case.ifindex,
        id: case.packet.fragment_id,
        source: case.packet.source.bytes(),
        destination: case.packet.destination.bytes(),
        protocol: case.packet.protocol,
        direction: case.direction as u8,
        pad: [0; 2],
    }
}

/// Gives a later fragment the ports of the first one, if that was let on here.
#[inline(never)]
pub(super) fn find_ports<T: Tables>(tables: &T, case: &mut Case) {
    if case.packet.kind != Kind::LaterFragment {
        return;
    }
    case.fragment = LaterFragment::PortsUnknown;
    if let Some(FragmentRow { source_port, destination_port, last_seen }) = tables.fragment(&key(case))
        && case.now().saturating_sub(last_seen) <= flow::timeout::FRAGMENTS
    {
        case.packet.source_port = source_port;
        case.packet.destination_port = destination_port;
        case.packet.kind = Kind::Segment;
        case.fragment = LaterFragment::PortsKnown;
    }
}

/// Remembers the ports of a first fragment that was let on.
#[inline(never)]
pub(super) fn remember_ports<T: Tables>(tables: &T, case: &Case) -> Result<(), Full> {
    let row = FragmentRow {
        source_port: case.packet.source_port,
        destination_port: case.packet.destination_port,
        last_seen: case.now(),
    };
    tables.put_fragment(&key(case), &row)
}
