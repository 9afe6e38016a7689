//! IPv6 packets as generated tests send them: as they are, behind extension headers, in fragments; and listener messages,
//! which only mean something on their link.

use netpol_common::parse::Address;
use netpol_policy::testing::Random;
use netpol_suites::frames::{SOURCE_MAC, icmp, ipv6};

use super::both::{PEER6, POD6};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const ICMPV6: u8 = 58;

/// What a frame is of these, or nothing.
pub(crate) fn kind(frame: &[u8]) -> Option<&'static str> {
    if frame[12..14] != [0x86, 0xdd] {
        return None;
    }
    match (frame[14 + 6], frame[14 + 24]) {
        (_, 0xff) => Some("listener message"),
        (FRAGMENT, _) => Some("fragment"),
        (HOP_BY_HOP | ROUTING | DESTINATION, _) => Some("extension headers"),
        _ => None,
    }
}

/// A packet with a transport's header and data.
pub(crate) fn packet(random: &mut Random, from: [u8; 16], to: [u8; 16], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (mut next, mut rest) = (protocol, payload.to_vec());
    if random.chance(40) {
        (next, rest) = fragment(random, next, rest);
    }
    if random.chance(30) {
        // Nine are more than are walked.
        for _ in 0..=*random.pick(&[0, 0, 1, 2, 6, 7, 8]) {
            (next, rest) = behind(random, next, &rest);
        }
    }
    ipv6(from, to, next, 64, &rest)
}

/// A fragment of a few datagrams: the first one, whole or cut, a later one, or one that is the whole datagram (RFC 6946).
fn fragment(random: &mut Random, protocol: u8, mut payload: Vec<u8>) -> (u8, Vec<u8>) {
    // What a later one says that it belongs to need not be what the first one said.
    let protocol = if random.chance(10) { *random.pick(&[6, 17, 59]) } else { protocol };
    let (offset, more) = *random.pick(&[(0_u16, 1_u16), (0, 1), (0, 1), (0, 0), (1, 0), (2, 1), (3, 0)]);
    if more == 1 && random.chance(30) {
        payload.truncate(8);
    }
    let mut header = vec![protocol, 0];
    header.extend((offset << 3 | more).to_be_bytes());
    header.extend([0, 0, 0, *random.pick(&[1, 2])]);
    header.extend(payload);
    (FRAGMENT, header)
}

/// One extension header ahead of what follows: options, or a route whose segments are left or not.
fn behind(random: &mut Random, next: u8, rest: &[u8]) -> (u8, Vec<u8>) {
    let kind = *random.pick(&[HOP_BY_HOP, DESTINATION, DESTINATION, DESTINATION, ROUTING]);
    // A PadN option of four bytes; a route of no address.
    let mut header = match kind {
        ROUTING => vec![next, 0, 4, u8::from(random.chance(20)), 0, 0, 0, 0],
        _ => vec![next, 0, 1, 4, 0, 0, 0, 0],
    };
    if random.chance(5) {
        // Longer than it is.
        header[1] = 9;
    }
    header.extend(rest);
    (kind, header)
}

/// A multicast listener message (RFC 3810), as hosts send it, or from beyond the link, or from an address of no link.
pub(crate) fn listener(random: &mut Random, sends: bool) -> Vec<u8> {
    let own = Address::link_local_of(SOURCE_MAC).bytes();
    let source = *random.pick(&[own, own, [0; 16], if sends { POD6 } else { PEER6 }]);
    let mut group = [0; 16];
    (group[0], group[1], group[15]) = (0xff, 2, 0x16);
    let message = icmp(*random.pick(&[130, 131, 132, 143]), 0, &[0; 20]);
    let hop_limit = *random.pick(&[1, 1, 1, 64]);
    if random.chance(20) {
        return ipv6(source, group, ICMPV6, hop_limit, &message);
    }
    // A router alert (RFC 2711), and padding.
    let mut payload = vec![ICMPV6, 0, 5, 2, 0, 0, 1, 0];
    payload.extend(message);
    ipv6(source, group, HOP_BY_HOP, hop_limit, &payload)
}
