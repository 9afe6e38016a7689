//! From bytes to a [`Packet`]: everything the verdict needs to know of a frame, or the reason why it is dropped.
//!
//! Link header → [`ipv4`] or [`ipv6`] (options, extension headers, fragments) → [`transport`] (ports, TCP flags, ICMP
//! types). What only rare packets need (the header inside an ICMP error, the target of a neighbour advertisement, the
//! sender of an ARP packet) is read later, by [`icmp`]. Parsing fails closed: a frame shorter than its headers say, or
//! that contradicts itself, is an error, never a guess (decision D8).

mod address;
mod icmp;
mod ipv4;
mod ipv6;
mod transport;

#[cfg(test)]
pub(crate) mod frames;
#[cfg(test)]
mod tests;

pub use address::Address;
pub use icmp::{Inner, advertised_target, arp_sender, ethernet_source, inner};

use crate::verdict::Reason;

/// Length of an Ethernet header without tags, in bytes.
pub const ETHERNET_HEADER: u32 = 14;

/// IP protocol numbers that have a meaning here.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IPv4.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP flags.
pub mod tcp_flags {
    /// The sender has finished.
    pub const FIN: u8 = 1 << 0;
    /// First packet of a side.
    pub const SYN: u8 = 1 << 1;
    /// Reset.
    pub const RST: u8 = 1 << 2;
    /// Acknowledgement.
    pub const ACK: u8 = 1 << 4;
}

/// SCTP chunk types.
pub mod sctp_chunk {
    /// Opens an association. Never bundled with another chunk (RFC 9260 §6.10).
    pub const INIT: u8 = 1;
    /// Answers an INIT.
    pub const INIT_ACK: u8 = 2;
    /// Ends the association at once.
    pub const ABORT: u8 = 6;
    /// The sender has finished.
    pub const SHUTDOWN: u8 = 7;
    /// Answers a SHUTDOWN.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// The association is gone.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// ICMP and ICMPv6 types.
pub mod icmp_type {
    /// ICMP redirect.
    pub const REDIRECT: u8 = 5;
    /// ICMP router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 9;
    /// ICMPv6 router solicitation, the first of neighbour discovery.
    pub const V6_ROUTER_SOLICITATION: u8 = 133;
    /// ICMPv6 router advertisement.
    pub const V6_ROUTER_ADVERTISEMENT: u8 = 134;
    /// ICMPv6 neighbour solicitation.
    pub const V6_NEIGHBOR_SOLICITATION: u8 = 135;
    /// ICMPv6 neighbour advertisement.
    pub const V6_NEIGHBOR_ADVERTISEMENT: u8 = 136;
    /// ICMPv6 redirect, the last of neighbour discovery.
    pub const V6_REDIRECT: u8 = 137;
}

/// Reads a frame. Implemented over an `skb` in `netpol-ebpf` and over byte slices in user space.
pub trait Frame {
    /// Bytes of the frame, link header included; of a GSO packet, all of it.
    fn len(&self) -> u32;
    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// `N` bytes at `offset`; `None` if the frame ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// The same for an `offset` that is a constant once everything is inlined, and within the first headers: direct
    /// packet access can serve it.
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.load(offset)
    }
    /// Makes the headers readable, where that takes something.
    #[inline(always)]
    fn make_linear(&self) {}
}

impl Frame for [u8] {
    #[inline]
    fn len(&self) -> u32 {
        <[u8]>::len(self) as u32
    }
    #[inline]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = offset as usize;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }
}

impl<F: Frame + ?Sized> Frame for &F {
    #[inline(always)]
    fn len(&self) -> u32 {
        (**self).len()
    }
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        (**self).load(offset)
    }
    #[inline(always)]
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        (**self).head(offset)
    }
    #[inline(always)]
    fn make_linear(&self) {
        (**self).make_linear();
    }
}

/// An Ethernet frame, read from its network header on. Its length is the whole frame's, which is what counters want: a load
/// beyond the end fails all the same.
#[derive(Clone, Copy, Debug)]
pub struct FromNetworkHeader<'a>(pub &'a [u8]);

impl Frame for FromNetworkHeader<'_> {
    #[inline]
    fn len(&self) -> u32 {
        Frame::len(self.0)
    }
    #[inline]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.load(ETHERNET_HEADER + offset)
    }
}

/// What the parser must be told about a frame, because the bytes do not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether the frame starts with an Ethernet header, or with the network header.
    pub header: bool,
    /// A VLAN or priority tag that the kernel keeps beside the frame.
    pub vlan: bool,
    /// Segments of a GSO packet; 0 or 1 otherwise.
    pub segments: u32,
}

/// What kind of packet it is, as far as that changes how it is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Any packet that belongs to a flow by its ports, or only by its protocol, and starts one if there is none.
    Segment,
    /// TCP SYN without ACK, or SCTP INIT: starts a flow, whatever entry there is.
    Opening,
    /// TCP SYN with ACK, or SCTP INIT ACK: answers an [`Kind::Opening`].
    OpeningAnswer,
    /// ICMP or ICMPv6 echo (or ICMP timestamp) request.
    EchoRequest,
    /// The reply to it, which cannot start a flow.
    EchoReply,
    /// ICMP or ICMPv6 error: belongs to the flow of the packet it quotes.
    IcmpError,
    /// ICMP or ICMPv6 of any other type: no flow, judged packet by packet.
    IcmpOther,
    /// A fragment without transport header.
    LaterFragment,
    /// ICMPv6 neighbour discovery, types 133 to 137.
    NeighborDiscovery,
    /// ICMPv6 multicast listener messages, within the link.
    MulticastListener,
    /// ARP for IPv4 over Ethernet.
    Arp,
    /// VLAN or priority tag.
    Vlan,
    /// Any other EtherType.
    OtherEtherType,
}

impl Kind {
    /// Whether the packet has IP addresses.
    #[must_use]
    #[inline(always)]
    pub const fn is_ip(self) -> bool {
        !matches!(self, Self::Arp | Self::Vlan | Self::OtherEtherType)
    }
}

/// What a frame is. Of what is not IP, only the kind means something, and of ARP the offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Packet {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Offset of the transport header, in bytes from the start of the frame; of the ARP header for ARP.
    pub transport: u32,
    /// Identification of a fragmented datagram, network order.
    pub fragment_id: u32,
    /// Source port, network order. Echo: the identifier in a request.
    pub source_port: [u8; 2],
    /// Destination port, network order. Echo: the identifier in a reply.
    pub destination_port: [u8; 2],
    /// IP protocol number, after extension headers.
    pub protocol: u8,
    /// TCP flags, SCTP type of the first chunk, or ICMP type.
    pub detail: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// First fragment of a datagram that has more.
    pub first_fragment: bool,
    /// What kind of packet it is.
    pub kind: Kind,
    /// TCP only: the segment carries data.
    pub has_data: bool,
    /// A later fragment that begins eight bytes into the datagram, within a TCP header or an SCTP chunk.
    pub at_offset_one: bool,
}

impl Packet {
    #[inline(always)]
    pub(crate) const fn new(kind: Kind) -> Self {
        Self {
            source: Address::UNSPECIFIED,
            destination: Address::UNSPECIFIED,
            transport: 0,
            fragment_id: 0,
            source_port: [0; 2],
            destination_port: [0; 2],
            protocol: 0,
            detail: 0,
            hop_limit: 0,
            kind,
            first_fragment: false,
            has_data: false,
            at_offset_one: false,
        }
    }

    /// Forgets what an IP packet does not say in any case. Field by field: the BPF target would zero the whole of it byte
    /// by byte, in a loop.
    #[inline(always)]
    const fn reset(&mut self) {
        self.kind = Kind::Segment;
        self.source_port = [0; 2];
        self.destination_port = [0; 2];
        self.detail = 0;
        self.has_data = false;
        self.at_offset_one = false;
    }

    /// The port that a policy's `ports` speak of, network order; `None` for protocols that have none.
    #[must_use]
    #[inline(always)]
    pub const fn policy_port(&self) -> Option<[u8; 2]> {
        if has_ports(self.protocol) && !matches!(self.kind, Kind::LaterFragment) {
            Some(self.destination_port)
        } else {
            None
        }
    }
}

/// Whether the API knows ports of a protocol.
#[must_use]
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
}

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
const ETHERTYPE_QINQ: [u8; 2] = [0x88, 0xa8];

/// Parses a frame.
#[inline(always)]
pub fn parse<F: Frame + ?Sized>(frame: &F, link: &Link) -> Result<Packet, Reason> {
    let mut packet = Packet::new(Kind::Segment);
    parse_into(frame, link, &mut packet)?;
    Ok(packet)
}

/// Parses a frame into a packet that is there already, whose content after an error means nothing: the BPF target would
/// hold a packet that is handed on by value in registers, of which it has ten, and spill the rest.
#[inline(always)]
pub fn parse_into<F: Frame + ?Sized>(frame: &F, link: &Link, packet: &mut Packet) -> Result<(), Reason> {
    if link.vlan {
        packet.kind = Kind::Vlan;
        return Ok(());
    }
    packet.kind = Kind::OtherEtherType;
    if !link.header {
        // Not by direct access: the verifier learns nothing from comparing the very start with the end.
        let [first] = frame.load(0).ok_or(Reason::Truncated)?;
        return match first >> 4 {
            4 => ipv4::parse(frame, 0, link.segments, packet),
            6 => ipv6::parse(frame, 0, link.segments, packet),
            _ => Ok(()),
        };
    }
    match frame.head(12).ok_or(Reason::Truncated)? {
        ETHERTYPE_IPV4 => ipv4::parse(frame, ETHERNET_HEADER, link.segments, packet),
        ETHERTYPE_IPV6 => ipv6::parse(frame, ETHERNET_HEADER, link.segments, packet),
        ETHERTYPE_ARP => arp(frame, packet),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => {
            packet.kind = Kind::Vlan;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Accepts ARP for IPv4 over Ethernet only: other address types have no business on a pod's veth.
#[inline(always)]
fn arp<F: Frame + ?Sized>(frame: &F, packet: &mut Packet) -> Result<(), Reason> {
    const IPV4_OVER_ETHERNET: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
    const LENGTH: u32 = 28;
    if frame.len() < ETHERNET_HEADER + LENGTH {
        return Err(Reason::Truncated);
    }
    let header: [u8; 6] = frame.head(ETHERNET_HEADER).ok_or(Reason::Truncated)?;
    let [a, b, c, d, e, f] = IPV4_OVER_ETHERNET;
    if !matches!(header, [g, h, i, j, k, l] if g == a && h == b && i == c && j == d && k == e && l == f) {
        return Err(Reason::Malformed);
    }
    packet.kind = Kind::Arp;
    packet.transport = ETHERNET_HEADER;
    Ok(())
}
