//! IPv4: header length by IHL, options walked for source routes, fragments.

use super::{Address, Frame, Packet, transport};
use crate::verdict::Reason;

const HEADER: u32 = 20;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// Parses an IPv4 packet that starts at `start`.
#[inline(always)]
pub(super) fn parse<F: Frame + ?Sized>(
    frame: &F,
    start: u32,
    segments: u32,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let header: [u8; HEADER as usize] = frame.head(start).ok_or(Reason::Truncated)?;
    let [version, _, l0, l1, id0, id1, f0, f1, hop_limit, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    let header_length = u32::from(version & 0x0f) * 4;
    if version >> 4 != 4 || header_length < HEADER {
        return Err(Reason::Malformed);
    }
    let total = u32::from(u16::from_be_bytes([l0, l1]));
    let end = if total == 0 && segments > 1 {
        // A GSO packet above 64 KiB (BIG TCP, kernel 6.3) says 0.
        if start + header_length > frame.len() {
            return Err(Reason::Truncated);
        }
        frame.len()
    } else if total < header_length {
        return Err(Reason::Malformed);
    } else {
        start + total
    };
    if end > frame.len() {
        return Err(Reason::Truncated);
    }
    packet.reset();
    packet.source = Address::v4([s0, s1, s2, s3]);
    packet.destination = Address::v4([d0, d1, d2, d3]);
    packet.protocol = protocol;
    packet.hop_limit = hop_limit;

    let fragment = u16::from_be_bytes([f0, f1]);
    let offset = fragment & OFFSET_MASK;
    packet.first_fragment = offset == 0 && fragment & MORE_FRAGMENTS != 0;
    packet.fragment_id = u32::from(u16::from_ne_bytes([id0, id1]));
    if header_length == HEADER && offset == 0 {
        packet.transport = start + HEADER;
        return transport::parse::<F, true>(frame, packet, end);
    }
    packet.transport = start + header_length;
    if header_length > HEADER {
        options(frame, start + HEADER, packet.transport)?;
    }
    if offset != 0 {
        return transport::later_fragment(packet, offset);
    }
    transport::parse::<F, false>(frame, packet, end)
}

/// Refuses loose and strict source routes: they name a destination that the header does not.
#[inline(always)]
fn options<F: Frame + ?Sized>(frame: &F, start: u32, end: u32) -> Result<(), Reason> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    const MOST_OPTIONS: u32 = 40;

    // Byte by byte with a count of bytes to skip, not option by option with an offset: the verifier then sees the same
    // few states after each byte, instead of a state for each way to get to an offset.
    let length = end - start;
    let (mut skip, mut length_follows) = (0_u32, false);
    for word in 0..MOST_OPTIONS / 4 {
        if word * 4 >= length {
            break;
        }
        let bytes: [u8; 4] = frame.load(start + word * 4).ok_or(Reason::Truncated)?;
        for (position, byte) in bytes.into_iter().enumerate() {
            if length_follows {
                length_follows = false;
                let after = word * 4 + position as u32 - 1 + u32::from(byte);
                if byte < 2 || after > length {
                    return Err(Reason::Malformed);
                }
                skip = u32::from(byte) - 2;
            } else if skip > 0 {
                skip -= 1;
            } else {
                match byte {
                    END => return Ok(()),
                    NO_OPERATION => {}
                    LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(Reason::SourceRoute),
                    _ => length_follows = true,
                }
            }
        }
    }
    if length_follows { Err(Reason::Malformed) } else { Ok(()) }
}
