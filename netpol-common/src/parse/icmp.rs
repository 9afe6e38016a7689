//! What only rare packets need, read when they are judged: the packet an ICMP error quotes, the address a neighbour
//! advertisement or an ARP packet claims.

use super::{Address, ETHERNET_HEADER, Frame, Packet, protocol};

/// The packet that an ICMP error quotes, as far as it names a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Its source.
    pub source: Address,
    /// Its destination.
    pub destination: Address,
    /// Source port, network order; the identifier of an echo request.
    pub source_port: [u8; 2],
    /// Destination port, network order; the identifier of an echo reply.
    pub destination_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
}

const ICMP_HEADER: u32 = 8;

/// Reads the packet that an error quotes. `None` if it is cut off before its ports, fragmented, has IPv6 extension headers,
/// or IPv4 addresses in an IPv6 header: then it names no flow.
#[inline(always)]
pub fn inner<F: Frame + ?Sized>(frame: &F, error: &Packet) -> Option<Inner> {
    let start = error.transport + ICMP_HEADER;
    let (mut inner, transport) = if error.source.is_v4() { inner_v4(frame, start)? } else { inner_v6(frame, start)? };
    match inner.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            let [s0, s1, d0, d1] = frame.load(transport)?;
            inner.source_port = [s0, s1];
            inner.destination_port = [d0, d1];
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let [kind, _, _, _, id0, id1] = frame.load(transport)?;
            match (inner.protocol, kind) {
                (protocol::ICMP, 8 | 13) | (protocol::ICMPV6, 128) => inner.source_port = [id0, id1],
                (protocol::ICMP, 0 | 14) | (protocol::ICMPV6, 129) => inner.destination_port = [id0, id1],
                _ => return None,
            }
        }
        _ => {}
    }
    Some(inner)
}

#[inline(always)]
fn inner_v4<F: Frame + ?Sized>(frame: &F, start: u32) -> Option<(Inner, u32)> {
    let [version, _, _, _, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = frame.load(start)?;
    let header = u32::from(version & 0x0f) * 4;
    let fragment_offset = u16::from_be_bytes([f0, f1]) & 0x1fff;
    if version >> 4 != 4 || header < 20 || fragment_offset != 0 {
        return None;
    }
    let source = Address::v4([s0, s1, s2, s3]);
    let destination = Address::v4([d0, d1, d2, d3]);
    Some((Inner { source, destination, source_port: [0; 2], destination_port: [0; 2], protocol }, start + header))
}

#[inline(always)]
fn inner_v6<F: Frame + ?Sized>(frame: &F, start: u32) -> Option<(Inner, u32)> {
    let [version, _, _, _, _, _, protocol, _] = frame.load(start)?;
    if version >> 4 != 6 {
        return None;
    }
    let source = Address::new(frame.load(start + 8)?);
    let destination = Address::new(frame.load(start + 24)?);
    // As in the packet itself: such an address would name a flow of IPv4.
    if source.is_v4() || destination.is_v4() {
        return None;
    }
    Some((Inner { source, destination, source_port: [0; 2], destination_port: [0; 2], protocol }, start + 40))
}

/// The target of a neighbour advertisement.
#[inline(always)]
pub fn advertised_target<F: Frame + ?Sized>(frame: &F, advertisement: &Packet) -> Option<Address> {
    frame.load(advertisement.transport + 8).map(Address::new)
}

/// The sender's protocol address of an ARP packet.
#[inline(always)]
pub fn arp_sender<F: Frame + ?Sized>(frame: &F) -> Option<Address> {
    frame.load(ETHERNET_HEADER + 14).map(Address::v4)
}

/// The Ethernet source address of a frame that has a link header.
#[inline(always)]
pub fn ethernet_source<F: Frame + ?Sized>(frame: &F) -> Option<[u8; 6]> {
    frame.load(6)
}
