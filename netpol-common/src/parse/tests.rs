use std::vec;
use std::vec::Vec;

use super::frames::{
    SOURCE_MAC, arp, echo, ethernet, icmp_error, icmp_message, ipv4, ipv4_with, ipv6, neighbor, sctp_packet, tcp,
    tcp_data, tcp_segment, udp, udp_datagram,
};
use super::{
    Address, Kind, Link, Packet, advertised_target, arp_sender, icmp_type, inner, parse, protocol, sctp_chunk,
    tcp_flags,
};
use crate::abi::mapped;
use crate::verdict::Reason;

const A: [u8; 4] = [10, 244, 0, 5];
const B: [u8; 4] = [10, 244, 1, 6];
const A6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
const B6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6];
const LINK: Link = Link { header: true, vlan: false, segments: 1 };

fn of(frame: &[u8]) -> Result<Packet, Reason> {
    parse(frame, &LINK)
}

#[test]
fn a_syn_opens_and_names_its_ports() {
    let packet = of(&tcp(A, B, 40000, 443, tcp_flags::SYN)).unwrap();
    assert_eq!(packet.kind, Kind::Opening);
    assert_eq!(packet.source.bytes(), mapped(A));
    assert_eq!(packet.destination.bytes(), mapped(B));
    assert_eq!(packet.source_port, 40000_u16.to_be_bytes());
    assert_eq!(packet.policy_port(), Some(443_u16.to_be_bytes()));
    assert!(!packet.has_data);
}

#[test]
fn a_syn_with_ack_answers_and_other_segments_are_segments() {
    assert_eq!(of(&tcp(A, B, 1, 2, tcp_flags::SYN | tcp_flags::ACK)).unwrap().kind, Kind::OpeningAnswer);
    let data = of(&tcp_data(A, B, 1, 2, tcp_flags::ACK, b"x")).unwrap();
    assert_eq!(data.kind, Kind::Segment);
    assert!(data.has_data);
}

#[test]
fn a_header_in_the_padding_of_a_short_frame_is_not_read() {
    let mut frame = ipv4(A, B, protocol::TCP, &[]);
    frame.extend(tcp_segment(1, 2, tcp_flags::ACK, &[]));
    assert_eq!(of(&frame), Err(Reason::Truncated));
}

#[test]
fn every_cut_of_a_frame_is_refused_and_padding_is_not() {
    for frame in [
        tcp_data(A, B, 1, 2, tcp_flags::ACK, b"data"),
        udp(A, B, 1, 2),
        echo(A, B, true, 1),
        arp(A, B),
        ipv6(A6, B6, protocol::TCP, 64, &tcp_segment(1, 2, tcp_flags::SYN, &[])),
    ] {
        for length in 0..frame.len() {
            assert_eq!(of(&frame[..length]), Err(Reason::Truncated), "{length} of {}", frame.len());
        }
        let mut padded = frame.clone();
        padded.resize(frame.len() + 20, 0);
        assert_eq!(of(&padded), of(&frame));
    }
}

#[test]
fn ports_are_found_behind_ipv4_options() {
    let record_route = [7, 7, 4, 0, 0, 0, 0, 1];
    let packet = of(&ipv4_with(A, B, protocol::UDP, 0, &record_route, &udp_datagram(53, 54, b""))).unwrap();
    assert_eq!(packet.source_port, 53_u16.to_be_bytes());
    assert_eq!(packet.transport, 14 + 28);
}

#[test]
fn source_routes_are_refused_wherever_they_hide() {
    for options in [[131, 7, 4, 1, 2, 3, 4, 0], [1, 137, 7, 4, 1, 2, 3, 4], [7, 4, 4, 0, 131, 3, 4, 0]] {
        let frame = ipv4_with(A, B, protocol::UDP, 0, &options, &udp_datagram(53, 54, b""));
        assert_eq!(of(&frame), Err(Reason::SourceRoute), "{options:?}");
    }
    // Behind the end of options, it is padding.
    let frame = ipv4_with(A, B, protocol::UDP, 0, &[0, 131, 3, 4], &udp_datagram(53, 54, b""));
    assert!(of(&frame).is_ok());
}

#[test]
fn options_that_contradict_the_header_are_malformed() {
    for options in [[7, 1, 0, 0], [7, 0, 0, 0], [7, 5, 0, 0]] {
        let frame = ipv4_with(A, B, protocol::UDP, 0, &options, &udp_datagram(53, 54, b""));
        assert_eq!(of(&frame), Err(Reason::Malformed), "{options:?}");
    }
}

#[test]
fn headers_that_contradict_themselves_are_malformed() {
    let mut short_header = udp(A, B, 1, 2);
    short_header[14] = 0x44;
    assert_eq!(of(&short_header), Err(Reason::Malformed));
    let mut version = udp(A, B, 1, 2);
    version[14] = 0x65;
    assert_eq!(of(&version), Err(Reason::Malformed));
    let mut length = udp(A, B, 1, 2);
    length[16..18].copy_from_slice(&19_u16.to_be_bytes());
    assert_eq!(of(&length), Err(Reason::Malformed));
    let mut data_offset = tcp(A, B, 1, 2, tcp_flags::ACK);
    data_offset[14 + 20 + 12] = 0x40;
    assert_eq!(of(&data_offset), Err(Reason::Malformed));
    let mut v6 = ipv6(A6, B6, 17, 64, &udp_datagram(1, 2, b""));
    v6[14] = 0x40;
    assert_eq!(of(&v6), Err(Reason::Malformed));
}

#[test]
fn a_length_of_zero_does_not_hide_a_header_behind_the_end_of_the_frame() {
    // A fragment, whose ports are not looked for; its options end with their first byte, so no more of them is read.
    let mut frame = ipv4_with(A, B, protocol::UDP, 3, &[0; 8], &[]);
    frame[16..18].copy_from_slice(&[0, 0]);
    let gso = Link { segments: 45, ..LINK };
    assert_eq!(parse(&frame[..], &gso).map(|packet| packet.kind), Ok(Kind::LaterFragment));
    assert_eq!(parse(&frame[..frame.len() - 4], &gso), Err(Reason::Truncated));
}

#[test]
fn a_length_of_zero_means_the_frame_only_for_gso() {
    let mut frame = tcp(A, B, 1, 2, tcp_flags::ACK);
    frame[16..18].copy_from_slice(&[0, 0]);
    assert_eq!(of(&frame), Err(Reason::Malformed));
    assert!(parse(&frame[..], &Link { segments: 45, ..LINK }).is_ok());
}

#[test]
fn a_first_tcp_fragment_must_hold_its_header() {
    const MORE: u16 = 0x2000;
    let segment = tcp_segment(1, 2, tcp_flags::SYN, &[0; 12]);
    let whole = of(&ipv4_with(A, B, protocol::TCP, MORE, &[], &segment)).unwrap();
    assert!(whole.first_fragment);
    assert_eq!(whole.kind, Kind::Opening);
    for length in [8, 16] {
        let frame = ipv4_with(A, B, protocol::TCP, MORE, &[], &segment[..length]);
        assert_eq!(of(&frame), Err(Reason::FragmentHeader), "{length}");
    }
    let sctp = sctp_packet(1, 2, sctp_chunk::INIT);
    assert_eq!(of(&ipv4_with(A, B, protocol::SCTP, MORE, &[], &sctp[..8])), Err(Reason::FragmentHeader));
}

#[test]
fn a_fragment_at_offset_one_can_rewrite_tcp_flags_and_is_refused() {
    assert_eq!(of(&ipv4_with(A, B, protocol::TCP, 1, &[], &[0; 16])), Err(Reason::FragmentHeader));
    assert_eq!(of(&ipv4_with(A, B, protocol::SCTP, 0x2001, &[], &[0; 16])), Err(Reason::FragmentHeader));
    assert_eq!(of(&ipv4_with(A, B, protocol::UDP, 1, &[], &[0; 16])).unwrap().kind, Kind::LaterFragment);
}

#[test]
fn a_later_fragment_has_an_identification_and_no_ports() {
    let packet = of(&ipv4_with(A, B, protocol::UDP, 185, &[], &[0xff; 16])).unwrap();
    assert_eq!(packet.kind, Kind::LaterFragment);
    assert_eq!(packet.policy_port(), None);
    assert_eq!(packet.fragment_id, u32::from(u16::from_ne_bytes([0x12, 0x34])));
}

#[test]
fn icmp_errors_requests_and_replies_are_told_apart() {
    let request = of(&echo(A, B, true, 7)).unwrap();
    assert_eq!((request.kind, request.source_port, request.destination_port), (Kind::EchoRequest, [0, 7], [0, 0]));
    let reply = of(&echo(A, B, false, 7)).unwrap();
    assert_eq!((reply.kind, reply.source_port, reply.destination_port), (Kind::EchoReply, [0, 0], [0, 7]));
    assert_eq!(reply.policy_port(), None);
    assert_eq!(of(&icmp_error(A, B, &udp(B, A, 1, 2))).unwrap().kind, Kind::IcmpError);
    assert_eq!(of(&ipv4(A, B, protocol::ICMP, &icmp_message(9, 0, &[]))).unwrap().kind, Kind::IcmpOther);
    assert_eq!(of(&ipv6(A6, B6, 58, 64, &icmp_message(128, 7, &[]))).unwrap().kind, Kind::EchoRequest);
    assert_eq!(of(&ipv6(A6, B6, 58, 64, &icmp_message(2, 0, &[0; 48]))).unwrap().kind, Kind::IcmpError);
    assert_eq!(of(&ipv6(A6, B6, 58, 64, &icmp_message(139, 0, &[]))).unwrap().kind, Kind::IcmpOther);
}

#[test]
fn icmp_of_the_other_family_is_a_protocol_without_ports() {
    assert_eq!(of(&ipv4(A, B, protocol::ICMPV6, &icmp_message(134, 0, &[]))).unwrap().kind, Kind::Segment);
    assert_eq!(of(&ipv6(A6, B6, protocol::ICMP, 64, &icmp_message(8, 0, &[]))).unwrap().kind, Kind::Segment);
}

#[test]
fn an_error_names_the_flow_of_the_packet_it_quotes() {
    let frame = icmp_error(B, A, &udp(A, [192, 0, 2, 1], 5353, 53));
    let quoted = inner(&frame[..], &of(&frame).unwrap()).unwrap();
    assert_eq!(quoted.source.bytes(), mapped(A));
    assert_eq!(quoted.destination.bytes(), mapped([192, 0, 2, 1]));
    assert_eq!((quoted.source_port, quoted.destination_port), (5353_u16.to_be_bytes(), [0, 53]));
    let frame = icmp_error(B, A, &echo(A, B, true, 77));
    assert_eq!(inner(&frame[..], &of(&frame).unwrap()).unwrap().source_port, [0, 77]);
    // A quoted fragment without ports names nothing.
    let frame = icmp_error(B, A, &ipv4_with(A, B, protocol::UDP, 185, &[], &[0; 8]));
    assert_eq!(inner(&frame[..], &of(&frame).unwrap()), None);
}

#[test]
fn an_error_quotes_ipv6_too() {
    let quoted = ipv6(A6, B6, protocol::TCP, 64, &tcp_segment(9, 10, tcp_flags::ACK, &[]));
    let frame = ipv6(B6, A6, protocol::ICMPV6, 64, &icmp_message(2, 0, &quoted[14..]));
    let quoted = inner(&frame[..], &of(&frame).unwrap()).unwrap();
    assert_eq!((quoted.source.bytes(), quoted.destination.bytes()), (A6, B6));
    assert_eq!((quoted.source_port, quoted.destination_port), ([0, 9], [0, 10]));
}

#[test]
fn neighbor_discovery_and_listener_messages_are_of_the_link() {
    let link_local = Address::link_local_of(SOURCE_MAC).bytes();
    let mut group = [0; 16];
    (group[0], group[1], group[15]) = (0xff, 2, 22);
    let advertisement = neighbor(A6, B6, icmp_type::V6_NEIGHBOR_ADVERTISEMENT, 255, A6);
    let packet = of(&advertisement).unwrap();
    assert_eq!((packet.kind, packet.hop_limit), (Kind::NeighborDiscovery, 255));
    assert_eq!(advertised_target(&advertisement[..], &packet).unwrap().bytes(), A6);
    // Listener reports carry a router alert in a hop-by-hop header.
    let mut payload = vec![58, 0, 5, 2, 0, 0, 1, 0];
    payload.extend(icmp_message(143, 0, &[0; 20]));
    assert_eq!(of(&ipv6(link_local, group, 0, 1, &payload)).unwrap().kind, Kind::MulticastListener);
    assert_eq!(of(&ipv6(link_local, group, 0, 64, &payload)).unwrap().kind, Kind::IcmpOther);
    assert_eq!(of(&ipv6(A6, group, 0, 1, &payload)).unwrap().kind, Kind::IcmpOther);
    assert_eq!(of(&ipv6(link_local, B6, 0, 1, &payload)).unwrap().kind, Kind::IcmpOther);
}

/// A chain of `count` destination options in front of a UDP datagram.
fn chain(count: usize) -> Vec<u8> {
    let mut payload = Vec::new();
    for index in 0..count {
        let next = if index + 1 == count { 17 } else { 60 };
        payload.extend([next, 0, 1, 4, 0, 0, 0, 0]);
    }
    payload.extend(udp_datagram(5, 6, b""));
    ipv6(A6, B6, if count == 0 { 17 } else { 60 }, 64, &payload)
}

#[test]
fn up_to_eight_extension_headers_are_walked() {
    for count in 0..=8 {
        let packet = of(&chain(count)).unwrap();
        assert_eq!((packet.protocol, packet.destination_port), (17, [0, 6]), "{count}");
    }
    assert_eq!(of(&chain(9)), Err(Reason::ExtensionHeaders));
}

#[test]
fn a_hop_by_hop_header_comes_first_or_not_at_all() {
    let mut payload = vec![0, 0, 1, 4, 0, 0, 0, 0];
    payload.extend([17, 0, 1, 4, 0, 0, 0, 0]);
    payload.extend(udp_datagram(5, 6, b""));
    assert_eq!(of(&ipv6(A6, B6, 60, 64, &payload)), Err(Reason::Malformed));
}

#[test]
fn a_routing_header_with_segments_left_is_refused() {
    for (segments_left, expected) in [(0, None), (1, Some(Reason::SourceRoute))] {
        let mut payload = vec![17, 2, 0, segments_left];
        payload.extend([0; 20]);
        payload.extend(udp_datagram(5, 6, b""));
        assert_eq!(of(&ipv6(A6, B6, 43, 64, &payload)).err(), expected);
    }
}

fn fragment6(offset_and_more: u16, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut fragment = vec![next, 0];
    fragment.extend(offset_and_more.to_be_bytes());
    fragment.extend([0xde, 0xad, 0xbe, 0xef]);
    fragment.extend(payload);
    ipv6(A6, B6, 44, 64, &fragment)
}

#[test]
fn ipv6_fragments_are_told_apart() {
    let id = u32::from_ne_bytes([0xde, 0xad, 0xbe, 0xef]);
    let first = of(&fragment6(1, 17, &udp_datagram(5, 6, &[0; 8]))).unwrap();
    assert!(first.first_fragment);
    assert_eq!((first.kind, first.fragment_id, first.source_port), (Kind::Segment, id, [0, 5]));
    let later = of(&fragment6(2 << 3, 17, &[0; 8])).unwrap();
    assert_eq!((later.kind, later.fragment_id, later.protocol), (Kind::LaterFragment, id, 17));
    let atomic = of(&fragment6(0, 17, &udp_datagram(5, 6, b""))).unwrap();
    assert!(!atomic.first_fragment);
    assert_eq!(of(&fragment6(1, 6, &tcp_segment(1, 2, 2, &[])[..16])), Err(Reason::FragmentHeader));
    assert_eq!(of(&fragment6(1 << 3, 6, &[0; 16])), Err(Reason::FragmentHeader));
    let mut nested = vec![17, 0, 0, 1, 0, 0, 0, 0];
    nested.extend(udp_datagram(5, 6, b""));
    assert_eq!(of(&fragment6(1, 44, &nested)), Err(Reason::Malformed));
}

#[test]
fn an_extension_header_longer_than_the_packet_is_truncated() {
    let payload = [17, 9, 1, 4, 0, 0, 0, 0];
    assert_eq!(of(&ipv6(A6, B6, 60, 64, &payload)), Err(Reason::Truncated));
}

#[test]
fn tags_and_other_ethertypes_are_named_as_such() {
    assert_eq!(of(&ethernet([0x81, 0], &[0; 60])).unwrap().kind, Kind::Vlan);
    assert_eq!(of(&ethernet([0x88, 0xa8], &[0; 60])).unwrap().kind, Kind::Vlan);
    assert_eq!(of(&ethernet([0x88, 0xcc], &[0; 60])).unwrap().kind, Kind::OtherEtherType);
    let tagged = parse(&udp(A, B, 1, 2)[..], &Link { vlan: true, ..LINK }).unwrap();
    assert_eq!(tagged.kind, Kind::Vlan);
}

#[test]
fn a_frame_without_link_header_starts_at_the_network_header() {
    let link = Link { header: false, ..LINK };
    let v4 = parse(&udp(A, B, 1, 2)[14..], &link).unwrap();
    assert_eq!((v4.source.bytes(), v4.transport), (mapped(A), 20));
    let v6 = parse(&ipv6(A6, B6, 17, 64, &udp_datagram(1, 2, b""))[14..], &link).unwrap();
    assert_eq!((v6.source.bytes(), v6.destination_port), (A6, [0, 2]));
}

#[test]
fn arp_names_its_sender() {
    let frame = arp(A, B);
    assert_eq!(of(&frame).unwrap().kind, Kind::Arp);
    assert_eq!(arp_sender(&frame[..]).unwrap().bytes(), mapped(A));
    let mut other = frame;
    other[14 + 4] = 8;
    assert_eq!(of(&other), Err(Reason::Malformed));
}

#[test]
fn an_error_that_quotes_ipv4_addresses_in_an_ipv6_header_names_no_flow() {
    for (source, destination, names_one) in [(B6, A6, true), (mapped(B), A6, false), (B6, mapped(A), false)] {
        let quoted = ipv6(source, destination, protocol::UDP, 64, &udp_datagram(53, 54, b""));
        let error = ipv6(A6, B6, protocol::ICMPV6, 64, &icmp_message(1, 0, &quoted[14..]));
        assert_eq!(inner(&error[..], &of(&error).unwrap()).is_some(), names_one);
    }
}
