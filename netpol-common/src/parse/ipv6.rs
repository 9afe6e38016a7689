//! IPv6: up to eight extension headers, routing headers that still route, fragments.

use super::{Address, Frame, Packet, transport};
use crate::verdict::Reason;

const HEADER: u32 = 40;
/// More are not walked: no sender needs them, and the verifier wants a bound.
const MOST_EXTENSIONS: u32 = 8;

/// Extension headers that are walked. AH, ESP, mobility and the rest are judged as protocols of their own.
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(next, extension::HOP_BY_HOP | extension::ROUTING | extension::FRAGMENT | extension::DESTINATION)
}

/// Parses an IPv6 packet that starts at `start`.
#[inline(always)]
pub(super) fn parse<F: Frame + ?Sized>(
    frame: &F,
    start: u32,
    segments: u32,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let [version, _, _, _, l0, l1, next, hop_limit] = frame.head(start).ok_or(Reason::Truncated)?;
    if version >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let payload = u32::from(u16::from_be_bytes([l0, l1]));
    let end = if payload == 0 && (next == extension::HOP_BY_HOP || segments > 1) {
        // A jumbogram, or a GSO packet above 64 KiB (BIG TCP, kernel 5.19): the length is elsewhere.
        frame.len()
    } else {
        start + HEADER + payload
    };
    if end > frame.len() {
        return Err(Reason::Truncated);
    }
    packet.reset();
    packet.source = Address::new(frame.head(start + 8).ok_or(Reason::Truncated)?);
    packet.destination = Address::new(frame.head(start + 24).ok_or(Reason::Truncated)?);
    // IPv4 in disguise: it would be judged, and tracked, as the IPv4 address that it maps.
    if packet.source.is_v4() || packet.destination.is_v4() {
        return Err(Reason::Malformed);
    }
    packet.protocol = next;
    packet.hop_limit = hop_limit;
    packet.fragment_id = 0;
    packet.first_fragment = false;
    packet.transport = start + HEADER;
    if is_extension(next) {
        return extensions(frame, packet, end);
    }
    transport::parse::<F, true>(frame, packet, end)
}

#[inline(always)]
fn extensions<F: Frame + ?Sized>(frame: &F, packet: &mut Packet, end: u32) -> Result<(), Reason> {
    let mut fragmented = false;
    for index in 0..MOST_EXTENSIONS {
        let offset = packet.transport;
        if !is_extension(packet.protocol) {
            break;
        }
        // Every extension header is at least eight bytes long.
        if offset + 8 > end {
            return Err(Reason::Truncated);
        }
        let [next, length, a, b, id0, id1, id2, id3] = frame.load(offset).ok_or(Reason::Truncated)?;
        match packet.protocol {
            extension::FRAGMENT => {
                if fragmented {
                    return Err(Reason::Malformed);
                }
                fragmented = true;
                let field = u16::from_be_bytes([a, b]);
                packet.protocol = next;
                packet.transport = offset + 8;
                packet.fragment_id = u32::from_ne_bytes([id0, id1, id2, id3]);
                if field >> 3 != 0 {
                    return transport::later_fragment(packet, field >> 3);
                }
                packet.first_fragment = field & 1 != 0;
            }
            // Only the first header may be hop-by-hop (RFC 8200 §4.1).
            extension::HOP_BY_HOP if index > 0 => return Err(Reason::Malformed),
            // Segments left.
            extension::ROUTING if b != 0 => return Err(Reason::SourceRoute),
            _ => {
                packet.protocol = next;
                packet.transport = offset + (u32::from(length) + 1) * 8;
            }
        }
    }
    if is_extension(packet.protocol) {
        return Err(Reason::ExtensionHeaders);
    }
    if packet.transport > end {
        return Err(Reason::Truncated);
    }
    transport::parse::<F, false>(frame, packet, end)
}
