//! The first two messages of SCTP's handshake (RFC 9260, sections 3 and 5.1), for kernels without SCTP sockets.
//!
//! The INIT of a probe carries a tag drawn at random; the INIT ACK of the responder repeats it as its verification tag,
//! and in its state cookie behind a word of our own. So an answer belongs to one probe, and comes from our responder.

use std::ops::Range;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
/// Parameter of an INIT ACK that the initiator would have to send back.
const STATE_COOKIE: u16 = 7;
const COOKIE: &[u8; 8] = b"netpol\0\0";

const HEADER: usize = 12;
const CHUNK: usize = 20;
const PORTS: Range<usize> = 0..4;
const CHECKSUM: Range<usize> = 8..12;

/// What came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// A request for an association.
    Init(Addressed),
    /// The answer of our responder.
    InitAck(Addressed),
    /// Somebody refuses.
    Abort(Addressed),
}

/// Ports of a message, and the tag that ties request and answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addressed {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) tag: u32,
}

/// A request.
pub(crate) fn init(Addressed { source, destination, tag }: Addressed) -> Vec<u8> {
    // An INIT is sent before there is a tag to verify.
    message(source, destination, 0, INIT, tag, &[])
}

/// The answer to a request.
pub(crate) fn init_ack(Addressed { source, destination, tag }: Addressed) -> Vec<u8> {
    let mut parameter = Vec::with_capacity(16);
    parameter.extend(STATE_COOKIE.to_be_bytes());
    parameter.extend(16_u16.to_be_bytes());
    parameter.extend(COOKIE);
    parameter.extend(tag.to_be_bytes());
    // Any tag but 0 will do for ours: the association goes no further.
    message(destination, source, tag, INIT_ACK, tag ^ 1 | 2, &parameter)
}

/// The refusal of a request: nobody listens on its port.
pub(crate) fn abort(Addressed { source, destination, tag }: Addressed) -> Vec<u8> {
    let mut bytes = header(destination, source, tag);
    bytes.extend([ABORT, 0, 0, 4]);
    sealed(bytes)
}

fn message(source: u16, destination: u16, verification: u32, kind: u8, tag: u32, parameters: &[u8]) -> Vec<u8> {
    let mut bytes = header(source, destination, verification);
    bytes.extend([kind, 0]);
    bytes.extend(u16::try_from(CHUNK + parameters.len()).unwrap_or_default().to_be_bytes());
    bytes.extend(tag.to_be_bytes());
    // Receive window, streams out and in, first sequence number.
    bytes.extend(65_536_u32.to_be_bytes());
    bytes.extend([0, 1, 0, 1]);
    bytes.extend(1_u32.to_be_bytes());
    bytes.extend(parameters);
    sealed(bytes)
}

fn header(source: u16, destination: u16, verification: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + CHUNK);
    bytes.extend(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes.extend(verification.to_be_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// With its checksum.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c(&bytes);
    // RFC 9260, appendix A: the remainder goes out in the order in which the CRC's bits come, which is the lowest byte first.
    if let Some(field) = bytes.get_mut(CHECKSUM) {
        field.copy_from_slice(&checksum.to_le_bytes());
    }
    bytes
}

/// Reads a message without IP header; `None` for what is damaged or none of ours.
pub(crate) fn parse(bytes: &[u8]) -> Option<Message> {
    let mut whole = bytes.to_vec();
    let sent = u32::from_le_bytes(whole.get(CHECKSUM)?.try_into().ok()?);
    whole.get_mut(CHECKSUM)?.fill(0);
    if crc32c(&whole) != sent {
        return None;
    }
    let [source_high, source_low, destination_high, destination_low] = bytes.get(PORTS)?.try_into().ok()?;
    let verification = number(bytes, 4)?;
    let addressed = |tag| Addressed {
        source: u16::from_be_bytes([source_high, source_low]),
        destination: u16::from_be_bytes([destination_high, destination_low]),
        tag,
    };
    match *bytes.get(HEADER)? {
        INIT => Some(Message::Init(addressed(number(bytes, HEADER + 4)?))),
        INIT_ACK => {
            let cookie = bytes.get(HEADER + CHUNK + 4..HEADER + CHUNK + 12)?;
            let echoed = number(bytes, HEADER + CHUNK + 12)?;
            (cookie == COOKIE && echoed == verification).then(|| Message::InitAck(addressed(verification)))
        }
        ABORT => Some(Message::Abort(addressed(verification))),
        _ => None,
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// CRC32c (Castagnoli), bit by bit: messages are short.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSED: Addressed = Addressed { source: 40_000, destination: 9_899, tag: 0xdead_beef };

    #[test]
    fn the_checksum_is_that_of_rfc_3720s_examples() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn an_answer_repeats_the_tag_with_the_ports_exchanged() {
        assert_eq!(parse(&init(ADDRESSED)), Some(Message::Init(ADDRESSED)));
        let back = Addressed { source: ADDRESSED.destination, destination: ADDRESSED.source, tag: ADDRESSED.tag };
        assert_eq!(parse(&init_ack(ADDRESSED)), Some(Message::InitAck(back)));
        assert_eq!(parse(&abort(ADDRESSED)), Some(Message::Abort(back)));
    }

    #[test]
    fn a_damaged_or_cut_message_is_none() {
        let whole = init_ack(ADDRESSED);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            assert_eq!(parse(&damaged), None, "{at}");
            assert_eq!(parse(&whole[..at]), None, "{at}");
        }
    }
}
