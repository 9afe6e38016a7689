//! Frames byte by byte, from the headers' definitions.

use std::net::IpAddr;

/// TCP SYN.
pub const SYN: u8 = 0x02;
/// TCP flag.
pub const FIN: u8 = 0x01;
/// TCP ACK.
pub const ACK: u8 = 0x10;

/// Ethernet address of every sender.
pub const SOURCE_MAC: [u8; 6] = [0x5a, 0, 0, 0, 0, 1];

/// A frame with an EtherType.
#[must_use]
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x5a, 0, 0, 0, 0, 2];
    frame.extend(SOURCE_MAC);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet with options (a multiple of four bytes), and flags and fragment offset as the header holds them.
#[must_use]
pub fn ipv4(
    source: [u8; 4],
    destination: [u8; 4],
    protocol: u8,
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let length = 20 + options.len() + payload.len();
    let mut packet = vec![0x45 + (options.len() / 4) as u8, 0];
    packet.extend((length as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source);
    packet.extend(destination);
    packet.extend(options);
    packet.extend(payload);
    ethernet(0x0800, &packet)
}

/// An IPv6 packet.
#[must_use]
pub fn ipv6(source: [u8; 16], destination: [u8; 16], next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, hop_limit]);
    packet.extend(source);
    packet.extend(destination);
    packet.extend(payload);
    ethernet(0x86dd, &packet)
}

/// A packet of either family; `None` if the addresses are of two.
#[must_use]
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Some(ipv4(source.octets(), destination.octets(), protocol, 0, &[], payload))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Some(ipv6(source.octets(), destination.octets(), protocol, 64, payload))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// A transport header with ports and what opens a flow of the protocol: SYN, INIT, or a datagram.
#[must_use]
pub fn opening(protocol: u8, source_port: u16, port: u16) -> Vec<u8> {
    match protocol {
        6 => tcp(source_port, port, SYN, &[]),
        17 => udp(source_port, port, &[]),
        132 => sctp(source_port, port, 1),
        _ => vec![0; 16],
    }
}

/// A TCP segment.
#[must_use]
pub fn tcp(source_port: u16, port: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = ports(source_port, port);
    segment.extend([0; 8]);
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(data);
    segment
}

/// A UDP datagram.
#[must_use]
pub fn udp(source_port: u16, port: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = ports(source_port, port);
    datagram.extend((8 + data.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}

/// An SCTP packet with one chunk.
#[must_use]
pub fn sctp(source_port: u16, port: u16, chunk: u8) -> Vec<u8> {
    let mut packet = ports(source_port, port);
    packet.extend([0; 8]);
    packet.extend([chunk, 0, 0, 4]);
    packet
}

/// An ICMP or ICMPv6 message with an identifier and sequence number 1.
#[must_use]
pub fn icmp(kind: u8, id: u16, body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend([0, 1]);
    message.extend(body);
    message
}

/// An ARP request for a target.
#[must_use]
pub fn arp(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(SOURCE_MAC);
    packet.extend(sender);
    packet.extend([0; 6]);
    packet.extend(target);
    ethernet(0x0806, &packet)
}

/// Gives a frame its hardware addresses, and an IPv4 packet in it its header checksum, which bridges look at.
#[must_use]
pub fn addressed(mut frame: Vec<u8>, from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    // Behind a tag the EtherType is four bytes on.
    let start = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
    if frame[start - 2..start] == [8, 0] {
        let length = usize::from(frame[start] & 0xf) * 4;
        let header = &mut frame[start..start + length];
        header[10..12].copy_from_slice(&[0, 0]);
        let checksum = checksum(header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    frame
}

/// The checksum of the Internet (RFC 1071), as a number: its higher byte comes first.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    let mut ports = source.to_be_bytes().to_vec();
    ports.extend(destination.to_be_bytes());
    ports
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn a_checksum_is_the_one_of_the_rfcs_example() {
        // Section 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
