//! Hand-made frames for tests, built from the headers' own definitions and not from the parser's.

use std::vec::Vec;

use super::{icmp_type, protocol};

/// Ethernet address of the sender in every frame.
pub(crate) const SOURCE_MAC: [u8; 6] = [0x5a, 0, 0, 0, 0, 1];

pub(crate) fn ethernet(ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::from([0x5a, 0, 0, 0, 0, 2]);
    frame.extend(SOURCE_MAC);
    frame.extend(ethertype);
    frame.extend(payload);
    frame
}

/// An IPv4 packet; `fragment` is flags and offset as the header holds them.
pub(crate) fn ipv4_with(
    source: [u8; 4],
    destination: [u8; 4],
    protocol: u8,
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let length = 20 + options.len() + payload.len();
    let mut packet = Vec::from([0x45 + (options.len() / 4) as u8, 0]);
    packet.extend((length as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source);
    packet.extend(destination);
    packet.extend(options);
    packet.extend(payload);
    ethernet([8, 0], &packet)
}

pub(crate) fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with(source, destination, protocol, 0, &[], payload)
}

pub(crate) fn ipv6(source: [u8; 16], destination: [u8; 16], next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::from([0x60, 0, 0, 0]);
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, hop_limit]);
    packet.extend(source);
    packet.extend(destination);
    packet.extend(payload);
    ethernet([0x86, 0xdd], &packet)
}

pub(crate) fn tcp_segment(source_port: u16, destination_port: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(source_port.to_be_bytes());
    segment.extend(destination_port.to_be_bytes());
    segment.extend([0; 8]);
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(data);
    segment
}

pub(crate) fn udp_datagram(source_port: u16, destination_port: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(source_port.to_be_bytes());
    datagram.extend(destination_port.to_be_bytes());
    datagram.extend((8 + data.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}

pub(crate) fn sctp_packet(source_port: u16, destination_port: u16, chunk: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source_port.to_be_bytes());
    packet.extend(destination_port.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([chunk, 0, 0, 4]);
    packet
}

pub(crate) fn icmp_message(kind: u8, id: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::from([kind, 0, 0, 0]);
    message.extend(id.to_be_bytes());
    message.extend([0, 1]);
    message.extend(body);
    message
}

pub(crate) fn tcp(source: [u8; 4], destination: [u8; 4], source_port: u16, port: u16, flags: u8) -> Vec<u8> {
    tcp_data(source, destination, source_port, port, flags, &[])
}

pub(crate) fn tcp_data(
    source: [u8; 4],
    destination: [u8; 4],
    source_port: u16,
    port: u16,
    flags: u8,
    data: &[u8],
) -> Vec<u8> {
    ipv4(source, destination, protocol::TCP, &tcp_segment(source_port, port, flags, data))
}

pub(crate) fn udp(source: [u8; 4], destination: [u8; 4], source_port: u16, port: u16) -> Vec<u8> {
    ipv4(source, destination, protocol::UDP, &udp_datagram(source_port, port, b"data"))
}

pub(crate) fn echo(source: [u8; 4], destination: [u8; 4], request: bool, id: u16) -> Vec<u8> {
    ipv4(source, destination, protocol::ICMP, &icmp_message(if request { 8 } else { 0 }, id, b"ping"))
}

/// Destination unreachable, fragmentation needed, quoting the packet inside `quoted` (a whole frame).
pub(crate) fn icmp_error(source: [u8; 4], destination: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let quote = &quoted[14..quoted.len().min(14 + 20 + 8)];
    ipv4(source, destination, protocol::ICMP, &icmp_message(3, 0, quote))
}

/// ARP request or reply from a sender.
pub(crate) fn arp(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut packet = Vec::from([0, 1, 8, 0, 6, 4, 0, 1]);
    packet.extend(SOURCE_MAC);
    packet.extend(sender);
    packet.extend([0; 6]);
    packet.extend(target);
    ethernet([8, 6], &packet)
}

/// Neighbour discovery: `target` follows the first eight bytes.
pub(crate) fn neighbor(source: [u8; 16], destination: [u8; 16], kind: u8, hop_limit: u8, target: [u8; 16]) -> Vec<u8> {
    assert!((icmp_type::V6_ROUTER_SOLICITATION..=icmp_type::V6_REDIRECT).contains(&kind));
    ipv6(source, destination, protocol::ICMPV6, hop_limit, &icmp_message(kind, 0, &target))
}
