//! Every corner of the parser, through the programs.

use netpol_common::abi::{ClassRow, Direction, EndpointWord, PROTOCOL_ANY, SET_ALLOW_ALL, address_kind};
use netpol_common::verdict::Reason;
use netpol_policy::compile::MapOp;
use netpol_suites::frames::{ACK, SYN, arp, ethernet, icmp, ipv4, ipv6, sctp, tcp, udp};

use super::both::{Both, ENDPOINT, NODE, PEER, PEER_CLASS, PEER6, POD, POD6, STRANGER};

const MORE: u16 = 0x2000;
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn open() -> Both {
    let mut both = Both::isolated();
    both.apply(MapOp::SetWord { endpoint: ENDPOINT, word: EndpointWord::new(SET_ALLOW_ALL, 10) });
    both
}

fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4(POD, PEER, protocol, 0, &[], payload)
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    ipv6(POD6, PEER6, next, 64, payload)
}

/// A chain of `count` destination options in front of a datagram.
fn chain(count: usize) -> Vec<u8> {
    let mut payload = Vec::new();
    for index in 0..count {
        payload.extend([if index + 1 == count { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
    }
    payload.extend(udp(5, 6, b""));
    v6(if count == 0 { 17 } else { 60 }, &payload)
}

fn fragment6(offset_and_more: u16, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut fragment = vec![next, 0];
    fragment.extend(offset_and_more.to_be_bytes());
    fragment.extend([0xde, 0xad, 0xbe, 0xef]);
    fragment.extend(payload);
    v6(44, &fragment)
}

fn changed(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    frame
}

/// What an unisolated pod may send, and what nobody may.
fn sent() -> Vec<(&'static str, Vec<u8>, Reason)> {
    let options = |options: &[u8]| ipv4(POD, PEER, 17, 0, options, &udp(5, 6, b""));
    let routing = |left| {
        let mut payload = vec![17, 2, 0, left];
        payload.extend([0; 20]);
        payload.extend(udp(5, 6, b""));
        v6(43, &payload)
    };
    let neighbor = |kind, hop_limit, target: &[u8]| ipv6(POD6, PEER6, 58, hop_limit, &icmp(kind, 0, target));
    let segment = tcp(1, 2, SYN, &[0; 12]);
    vec![
        ("tcp", v4(6, &tcp(1, 2, SYN, b"")), Reason::Passed),
        ("tcp 6", v6(6, &tcp(1, 2, SYN, b"")), Reason::Passed),
        ("udp", v4(17, &udp(1, 2, b"")), Reason::Passed),
        ("sctp", v4(132, &sctp(1, 2, 1)), Reason::Passed),
        ("sctp without chunk", v4(132, &sctp(1, 2, 1)[..12]), Reason::Truncated),
        ("gre", v4(47, &[]), Reason::Passed),
        ("tcp header in the padding", [v4(6, &[]), tcp(1, 2, ACK, b"")].concat(), Reason::Truncated),
        ("short tcp header", v4(6, &tcp(1, 2, ACK, b"")[..19]), Reason::Truncated),
        ("tcp data offset", changed(v4(6, &tcp(1, 2, ACK, b"")), 46, 0x40), Reason::Malformed),
        ("tcp options cut off", changed(v4(6, &tcp(1, 2, ACK, b"")), 46, 0x60), Reason::Truncated),
        ("short udp header", v4(17, &[0; 7]), Reason::Truncated),
        ("short icmp header", v4(1, &[8, 0, 0, 0, 0, 1, 0]), Reason::Truncated),
        ("header length", changed(v4(17, &udp(1, 2, b"")), 14, 0x44), Reason::Malformed),
        ("version", changed(v4(17, &udp(1, 2, b"")), 14, 0x65), Reason::Malformed),
        ("version 6", changed(v6(17, &udp(1, 2, b"")), 14, 0x45), Reason::Malformed),
        ("total length", changed(v4(17, &udp(1, 2, b"")), 17, 19), Reason::Malformed),
        ("longer than the frame", changed(v4(17, &udp(1, 2, b"")), 17, 200), Reason::Truncated),
        ("record route", options(&[7, 7, 4, 0, 0, 0, 0, 1]), Reason::Passed),
        ("nothing but padding", options(&[1; 40]), Reason::Passed),
        ("loose source route", options(&[131, 7, 4, 1, 2, 3, 4, 0]), Reason::SourceRoute),
        ("strict source route behind padding", options(&[1, 137, 7, 4, 1, 2, 3, 4]), Reason::SourceRoute),
        ("source route behind an option", options(&[7, 4, 4, 0, 131, 3, 4, 0]), Reason::SourceRoute),
        ("source route inside an option", options(&[7, 8, 4, 0, 131, 3, 4, 0]), Reason::Passed),
        (
            "source route at the very end",
            options(&[[1_u8; 36].as_slice(), &[1, 131, 3, 4]].concat()),
            Reason::SourceRoute,
        ),
        ("end before a source route", options(&[0, 131, 3, 4]), Reason::Passed),
        ("option without length", options(&[1, 1, 1, 7]), Reason::Malformed),
        ("option of length 1", options(&[7, 1, 0, 0]), Reason::Malformed),
        ("option beyond the header", options(&[7, 5, 0, 0]), Reason::Malformed),
        ("first fragment", ipv4(POD, PEER, 6, MORE, &[], &segment), Reason::Passed),
        ("tiny first fragment", ipv4(POD, PEER, 6, MORE, &[], &segment[..16]), Reason::FragmentHeader),
        ("tcp fragment at offset 1", ipv4(POD, PEER, 6, 1, &[], &[0; 16]), Reason::FragmentHeader),
        ("sctp fragment at offset 1", ipv4(POD, PEER, 132, 1, &[], &[0; 16]), Reason::FragmentHeader),
        ("later fragment", ipv4(POD, PEER, 6, 2, &[], &[0; 8]), Reason::Passed),
        ("later fragment with options", ipv4(POD, PEER, 6, 2, &[131, 3, 4, 0], &[0; 8]), Reason::SourceRoute),
        ("no extension header", chain(0), Reason::Passed),
        ("one extension header", chain(1), Reason::Passed),
        ("eight extension headers", chain(8), Reason::Passed),
        ("nine extension headers", chain(9), Reason::ExtensionHeaders),
        (
            "hop-by-hop in second place",
            v6(60, &[&[0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0][..], &udp(5, 6, b"")].concat()),
            Reason::Malformed,
        ),
        ("extension header cut off", v6(60, &[17, 9, 1, 4, 0, 0, 0, 0]), Reason::Truncated),
        ("routing header, done", routing(0), Reason::Passed),
        ("routing header, segments left", routing(1), Reason::SourceRoute),
        ("no next header", v6(59, &[]), Reason::Passed),
        ("first fragment 6", fragment6(1, 17, &udp(5, 6, &[0; 8])), Reason::Passed),
        ("later fragment 6", fragment6(2 << 3, 17, &[0; 8]), Reason::Passed),
        ("atomic fragment 6", fragment6(0, 17, &udp(7, 6, b"")), Reason::Passed),
        ("tiny first fragment 6", fragment6(1, 6, &segment[..16]), Reason::FragmentHeader),
        ("tcp fragment 6 at offset 1", fragment6(1 << 3, 6, &[0; 16]), Reason::FragmentHeader),
        (
            "fragment in a fragment",
            fragment6(1, 44, &[&[17, 0, 0, 1, 0, 0, 0, 0][..], &udp(5, 6, b"")].concat()),
            Reason::Malformed,
        ),
        ("echo", v4(1, &icmp(8, 7, b"ping")), Reason::Passed),
        ("echo reply out of the blue", v4(1, &icmp(0, 8, b"ping")), Reason::Passed),
        ("redirect", v4(1, &icmp(5, 0, &[0; 28])), Reason::NeighborDiscovery),
        ("icmp router advertisement", v4(1, &icmp(9, 0, &[])), Reason::NeighborDiscovery),
        ("solicitation", neighbor(135, 255, &PEER6), Reason::Passed),
        ("solicitation from afar", neighbor(135, 64, &PEER6), Reason::NeighborDiscovery),
        ("advertisement", neighbor(136, 255, &POD6), Reason::Passed),
        ("advertisement of another", neighbor(136, 255, &PEER6), Reason::SpoofedSource),
        ("router advertisement", neighbor(134, 255, &[]), Reason::NeighborDiscovery),
        ("redirect 6", neighbor(137, 255, &POD6), Reason::NeighborDiscovery),
        ("address detection", ipv6([0; 16], ALL_NODES, 58, 255, &icmp(135, 0, &POD6)), Reason::Passed),
        (
            "listener report",
            ipv6([0; 16], ALL_NODES, 0, 1, &[&[58, 0, 5, 2, 0, 0, 1, 0][..], &icmp(143, 0, &[0; 20])].concat()),
            Reason::Passed,
        ),
        ("spoofed", ipv4(STRANGER, PEER, 17, 0, &[], &udp(1, 2, b"")), Reason::SpoofedSource),
        ("arp", arp(POD, NODE), Reason::Passed),
        ("arp probe", arp([0; 4], POD), Reason::Passed),
        ("arp of another", arp(NODE, PEER), Reason::SpoofedSource),
        ("arp of another kind", changed(arp(POD, NODE), 18, 8), Reason::Malformed),
        ("arp cut off", arp(POD, NODE)[..41].to_vec(), Reason::Truncated),
        ("tag", ethernet(0x8100, &[0; 46]), Reason::VlanTag),
        ("service tag", ethernet(0x88a8, &[0; 46]), Reason::VlanTag),
        ("lldp", ethernet(0x88cc, &[0; 46]), Reason::Passed),
        ("overlay", ipv4(POD, NODE, 17, 0, &[], &udp(1, 8472, b"")), Reason::Overlay),
        ("ip in ip to a node", ipv4(POD, NODE, 4, 0, &[], &[0; 20]), Reason::Overlay),
        ("ip in ip to a pod", ipv4(POD, PEER, 4, 0, &[], &[0; 20]), Reason::Passed),
        ("overlay to a pod", ipv4(POD, PEER, 17, 0, &[], &udp(1, 8472, b"")), Reason::Passed),
    ]
}

#[test]
fn an_unisolated_pod_sends_whatever_is_well_formed_and_its_own() {
    let mut both = open();
    for (name, frame, expected) in sent() {
        assert_eq!(both.send(&frame), expected, "{name}");
    }
    both.compare();
    println!("{} packets", both.packets);
}

#[test]
fn every_cut_of_every_packet_gets_the_same_answer() {
    let mut both = open();
    for (_, frame, _) in sent() {
        // The kernel refuses a test run on less than an Ethernet and, by EtherType, a whole network header.
        let shortest = match frame[12..14] {
            [0x08, 0x00] => 14 + 20,
            [0x86, 0xdd] => 14 + 40,
            _ => 15,
        };
        for length in shortest..frame.len() {
            let _ = both.send(&frame[..length]);
        }
    }
    both.compare();
    println!("{} packets", both.packets);
}

#[test]
fn an_isolated_pod_sends_only_what_the_link_needs() {
    let mut both = Both::isolated();
    for (name, frame, expected) in sent() {
        let reason = both.send(&frame);
        let of_link = matches!(
            name,
            "solicitation" | "advertisement" | "address detection" | "listener report" | "arp" | "arp probe"
        );
        match expected {
            Reason::Passed => assert_eq!(reason == Reason::Passed, of_link, "{name}"),
            _ => assert_eq!(reason, expected, "{name}"),
        }
    }
    both.compare();
}

#[test]
fn fragments_follow_the_first_one() {
    let mut both = Both::isolated();
    both.allow(Direction::Ingress, PEER_CLASS, 17, 4, &[80]);
    let first = |port| ipv4(PEER, POD, 17, MORE, &[], &udp(4000, port, &[0; 16]));
    let later = ipv4(PEER, POD, 17, 3, &[], &[0; 8]);
    assert_eq!(both.receive(&later), Reason::FragmentUnknown);
    assert_eq!(both.receive(&first(81)), Reason::NoRule);
    assert_eq!(both.receive(&later), Reason::FragmentUnknown);
    assert_eq!(both.receive(&first(80)), Reason::Passed);
    assert_eq!(both.receive(&later), Reason::Passed);
    both.compare();
}

#[test]
fn a_pod_is_delivered_what_is_addressed_to_it_or_to_all() {
    let mut both = Both::isolated();
    both.allow(Direction::Ingress, PEER_CLASS, PROTOCOL_ANY, 4, &[]);
    let all_of_the_range = [10, 244, 0, 255];
    both.apply(MapOp::PutClass(all_of_the_range.into(), ClassRow { kind: address_kind::BROADCAST, class: 0 }));
    for (destination, expected) in [
        (POD, Reason::Passed),
        (STRANGER, Reason::NotMine),
        ([10, 244, 1, 255], Reason::NotMine),
        (all_of_the_range, Reason::Passed),
        ([224, 0, 0, 251], Reason::Passed),
        ([255; 4], Reason::Passed),
    ] {
        let frame = ipv4(PEER, destination, 17, 0, &[], &udp(1, u16::from(destination[3]), b""));
        assert_eq!(both.receive(&frame), expected, "{destination:?}");
    }
    both.compare();
}
