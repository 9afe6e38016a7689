//! The two families of addresses: what is tried in one is tried in the other, with the same pods and the same host.

use std::net::IpAddr;

use netpol_suites::frames::{self, checksum, icmp, ipv4, ipv6, udp};

use super::scene::{OUTSIDE, OUTSIDE6, v4, v6};

/// More fragments follow, beside an IPv4 fragment offset.
const MORE: u16 = 0x2000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// As rows of the conformance table have it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// The version in the header, which is also what nftables and sysctls call the family by: `ip` and `ip6`.
    pub(crate) const fn table(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// A pod's address by its last byte, which for the bridge is 1.
    pub(crate) fn pod(self, last: u8) -> IpAddr {
        match self {
            Self::V4 => v4(last).into(),
            Self::V6 => v6(last).into(),
        }
    }

    /// The host outside.
    pub(crate) fn outside(self) -> IpAddr {
        match self {
            Self::V4 => OUTSIDE.into(),
            Self::V6 => OUTSIDE6.into(),
        }
    }

    /// The node's address on its uplink.
    pub(crate) fn uplink(self) -> IpAddr {
        match self {
            Self::V4 => [198, 18, 0, 2].into(),
            Self::V6 => [0x20, 1, 0x0d, 0xb8, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 2].into(),
        }
    }

    /// Length of an address in bits, which is what a block of one address has.
    pub(crate) const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// A frame with a packet between two addresses of the family.
    pub(crate) fn packet(self, from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        frames::ip(from, to, protocol, payload).unwrap_or_else(|| panic!("{from} and {to} are not both {self:?}"))
    }

    /// The same with an ICMP message, which has its checksum: ICMPv6's covers the addresses.
    pub(crate) fn icmp(self, from: IpAddr, to: IpAddr, message: &[u8]) -> Vec<u8> {
        let mut message = message.to_vec();
        message[2..4].fill(0);
        let protocol = match self {
            Self::V4 => 1,
            Self::V6 => 58,
        };
        let covered = match self {
            Self::V4 => message.clone(),
            Self::V6 => with_pseudo_header(from, to, protocol, &message),
        };
        let sum = checksum(&covered);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.packet(from, to, protocol, &message)
    }

    /// An echo reply to a request with this identifier, or another that nobody made.
    pub(crate) fn echo_reply(self, from: IpAddr, to: IpAddr, id: u16, body: &[u8]) -> Vec<u8> {
        let kind = match self {
            Self::V4 => 0,
            Self::V6 => 129,
        };
        self.icmp(from, to, &icmp(kind, id, body))
    }

    /// That a destination was unreachable, said of a packet that is given as a frame.
    pub(crate) fn unreachable(self, from: IpAddr, to: IpAddr, about: &[u8]) -> Vec<u8> {
        let kind = match self {
            Self::V4 => 3,
            Self::V6 => 1,
        };
        let mut message = icmp(kind, 0, &about[14..]);
        // Unused, in either.
        message[4..8].fill(0);
        self.icmp(from, to, &message)
    }

    /// A datagram whose checksum is right: IPv6 sockets take none without.
    pub(crate) fn datagram(self, from: (IpAddr, u16), to: (IpAddr, u16), data: &[u8]) -> Vec<u8> {
        self.packet(from.0, to.0, 17, &summed_datagram(from, to, data))
    }

    /// A fragment: which byte of the payload it begins with, a multiple of eight, and whether others follow it. `id` tells
    /// fragmented packets apart.
    pub(crate) fn fragment(
        self,
        (from, to): (IpAddr, IpAddr),
        protocol: u8,
        id: u16,
        (begin, more): (usize, bool),
        piece: &[u8],
    ) -> Vec<u8> {
        let offset = u16::try_from(begin / 8).expect("within a packet");
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let flags = if more { MORE } else { 0 };
                let mut frame = ipv4(from.octets(), to.octets(), protocol, offset | flags, &[], piece);
                frame[18..20].copy_from_slice(&id.to_be_bytes());
                frame
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut header = vec![protocol, 0];
                header.extend((offset << 3 | u16::from(more)).to_be_bytes());
                header.extend(u32::from(id).to_be_bytes());
                header.extend(piece);
                ipv6(from.octets(), to.octets(), 44, 64, &header)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("{from} and {to} of {self:?}"),
        }
    }
}

/// A UDP header with its checksum, and data.
pub(crate) fn summed_datagram(from: (IpAddr, u16), to: (IpAddr, u16), data: &[u8]) -> Vec<u8> {
    let mut bytes = udp(from.1, to.1, data);
    let sum = checksum(&with_pseudo_header(from.0, to.0, 17, &bytes));
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// What a transport's checksum covers (RFC 768 and RFC 8200, section 8.1): as a sum, the lengths of both forms are alike.
fn with_pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut pseudo = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    pseudo.extend(u32::try_from(segment.len()).expect("a packet's length").to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo.extend(segment);
    pseudo
}
