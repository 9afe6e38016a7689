//! Transport headers: ports, what opens or ends a connection, which ICMP belongs to what.

use super::{Frame, Kind, Packet, icmp_type, protocol, sctp_chunk, tcp_flags};
use crate::verdict::Reason;

const TCP_HEADER: u32 = 20;
const UDP_HEADER: u32 = 8;
/// Common header and the head of the first chunk.
const SCTP_HEADER: u32 = 16;
const ICMP_HEADER: u32 = 8;

/// Completes a packet whose transport header is at `packet.transport` and whose payload ends at `end`. `FAST`: the
/// offset is a constant once inlined.
#[inline(always)]
pub(super) fn parse<F: Frame + ?Sized, const FAST: bool>(
    frame: &F,
    packet: &mut Packet,
    end: u32,
) -> Result<(), Reason> {
    match packet.protocol {
        protocol::TCP => tcp::<F, FAST>(frame, packet, end),
        protocol::UDP => udp::<F, FAST>(frame, packet, end),
        protocol::SCTP => sctp::<F, FAST>(frame, packet, end),
        protocol::ICMP if packet.source.is_v4() => icmp::<F, FAST>(frame, packet, end),
        protocol::ICMPV6 if !packet.source.is_v4() => icmpv6::<F, FAST>(frame, packet, end),
        _ => Ok(()),
    }
}

/// A fragment that starts `offset` × 8 bytes into the datagram.
///
/// One at offset 1 can overwrite the TCP flags or the type of the first SCTP chunk that the first fragment was judged
/// by (RFC 3128). What an IPv6 fragment says of its protocol is not always true: see
/// [`Packet::at_offset_one`].
#[inline(always)]
pub(super) fn later_fragment(packet: &mut Packet, offset: u16) -> Result<(), Reason> {
    if offset == 1 && matches!(packet.protocol, protocol::TCP | protocol::SCTP) {
        return Err(Reason::FragmentHeader);
    }
    packet.kind = Kind::LaterFragment;
    packet.at_offset_one = offset == 1;
    Ok(())
}

#[inline(always)]
fn read<F: Frame + ?Sized, const FAST: bool, const N: usize>(frame: &F, offset: u32) -> Result<[u8; N], Reason> {
    if FAST { frame.head(offset) } else { frame.load(offset) }.ok_or(Reason::Truncated)
}

/// A header that does not fit is hidden on purpose if the rest can follow in another fragment.
#[inline(always)]
fn fits(packet: &Packet, length: u32, end: u32) -> Result<(), Reason> {
    if packet.transport + length <= end {
        Ok(())
    } else if packet.first_fragment {
        Err(Reason::FragmentHeader)
    } else {
        Err(Reason::Truncated)
    }
}

#[inline(always)]
fn ports<F: Frame + ?Sized, const FAST: bool>(frame: &F, packet: &mut Packet) -> Result<(), Reason> {
    let [s0, s1, d0, d1] = read::<F, FAST, 4>(frame, packet.transport)?;
    packet.source_port = [s0, s1];
    packet.destination_port = [d0, d1];
    Ok(())
}

#[inline(always)]
fn tcp<F: Frame + ?Sized, const FAST: bool>(frame: &F, packet: &mut Packet, end: u32) -> Result<(), Reason> {
    fits(packet, TCP_HEADER, end)?;
    ports::<F, FAST>(frame, packet)?;
    let [data_offset, flags] = read::<F, FAST, 2>(frame, packet.transport + 12)?;
    let header = u32::from(data_offset >> 4) * 4;
    if header < TCP_HEADER {
        return Err(Reason::Malformed);
    }
    // The options of a first fragment may follow in the next one.
    if packet.transport + header > end && !packet.first_fragment {
        return Err(Reason::Truncated);
    }
    packet.detail = flags;
    packet.has_data = packet.transport + header < end;
    if flags & tcp_flags::SYN != 0 {
        packet.kind = if flags & tcp_flags::ACK == 0 { Kind::Opening } else { Kind::OpeningAnswer };
    }
    Ok(())
}

#[inline(always)]
fn udp<F: Frame + ?Sized, const FAST: bool>(frame: &F, packet: &mut Packet, end: u32) -> Result<(), Reason> {
    fits(packet, UDP_HEADER, end)?;
    ports::<F, FAST>(frame, packet)?;
    Ok(())
}

#[inline(always)]
fn sctp<F: Frame + ?Sized, const FAST: bool>(frame: &F, packet: &mut Packet, end: u32) -> Result<(), Reason> {
    fits(packet, SCTP_HEADER, end)?;
    ports::<F, FAST>(frame, packet)?;
    let [chunk] = read::<F, FAST, 1>(frame, packet.transport + 12)?;
    packet.detail = chunk;
    match chunk {
        sctp_chunk::INIT => packet.kind = Kind::Opening,
        sctp_chunk::INIT_ACK => packet.kind = Kind::OpeningAnswer,
        _ => {}
    }
    Ok(())
}

/// Type, and identifier if it has one.
#[inline(always)]
fn icmp_header<F: Frame + ?Sized, const FAST: bool>(
    frame: &F,
    packet: &Packet,
    end: u32,
) -> Result<(u8, [u8; 2]), Reason> {
    fits(packet, ICMP_HEADER, end)?;
    let [kind] = read::<F, FAST, 1>(frame, packet.transport)?;
    let id = read::<F, FAST, 2>(frame, packet.transport + 4)?;
    Ok((kind, id))
}

#[inline(always)]
fn echo(packet: &mut Packet, request: bool, id: [u8; 2]) {
    if request {
        packet.kind = Kind::EchoRequest;
        packet.source_port = id;
    } else {
        packet.kind = Kind::EchoReply;
        packet.destination_port = id;
    }
}

#[inline(always)]
fn icmp<F: Frame + ?Sized, const FAST: bool>(frame: &F, packet: &mut Packet, end: u32) -> Result<(), Reason> {
    let (kind, id) = icmp_header::<F, FAST>(frame, packet, end)?;
    packet.detail = kind;
    match kind {
        // Echo and timestamp.
        8 | 13 => echo(packet, true, id),
        0 | 14 => echo(packet, false, id),
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        3 | 4 | icmp_type::REDIRECT | 11 | 12 => packet.kind = Kind::IcmpError,
        _ => packet.kind = Kind::IcmpOther,
    }
    Ok(())
}

#[inline(always)]
fn icmpv6<F: Frame + ?Sized, const FAST: bool>(frame: &F, packet: &mut Packet, end: u32) -> Result<(), Reason> {
    let (kind, id) = icmp_header::<F, FAST>(frame, packet, end)?;
    packet.detail = kind;
    match kind {
        // All types below 128 are errors (RFC 4443 §2.1).
        0..=127 => packet.kind = Kind::IcmpError,
        128 => echo(packet, true, id),
        129 => echo(packet, false, id),
        icmp_type::V6_ROUTER_SOLICITATION..=icmp_type::V6_REDIRECT => packet.kind = Kind::NeighborDiscovery,
        // Multicast listener query, report, done, version 2 report; what is not for this link alone is no such message.
        130..=132 | 143 if packet.hop_limit == 1 && is_of_link(packet) => packet.kind = Kind::MulticastListener,
        _ => packet.kind = Kind::IcmpOther,
    }
    Ok(())
}

#[inline(always)]
fn is_of_link(packet: &Packet) -> bool {
    (packet.source.is_link_local() || packet.source.is_unspecified()) && packet.destination.is_multicast()
}
