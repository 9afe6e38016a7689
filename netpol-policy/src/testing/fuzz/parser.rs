//! Frames that nobody made on purpose.

use std::sync::OnceLock;

use netpol_common::abi::{AddressKey, Direction, EndpointWord, InterfaceRow, Settings, interface_flags, mapped};
use netpol_common::decide::{Hook, judge};
use netpol_common::parse::{
    ETHERNET_HEADER, FromNetworkHeader, Kind, Link, Packet, advertised_target, arp_sender, ethernet_source, has_ports,
    inner, parse,
};
use netpol_common::verdict::{Reason, Verdict};

use crate::compile::MapOp;
use crate::compile::memory::MemoryTables;

const VETH: u32 = 10;
const ENDPOINT: u32 = 3;
/// A policy set that has no rows.
const SET: u32 = 20;
/// The isolated pod's address, so that a frame can be its own and meant for it.
const POD: [u8; 4] = [10, 244, 0, 5];

/// Parses and judges a frame. The first byte says what comes with it, the second where it is cut, the rest is the frame.
pub fn parser(data: &[u8]) {
    let [with, cut, frame @ ..] = data else { return };
    let bit = |number: u8| with >> number & 1 == 1;
    let link = Link { header: !bit(0), vlan: bit(1), segments: if bit(2) { 3 } else { 0 } };
    let whole = parse(frame, &link);
    if let Ok(packet) = &whole {
        is_within(packet, frame, link);
    }
    // Every short cut, where the headers are, and one somewhere.
    let cuts = (0..frame.len().min(96)).chain([frame.len() * usize::from(*cut) / 256]);
    for length in cuts {
        let shorter = parse(&frame[..length], &link);
        if let Ok(shorter) = shorter {
            // What is behind a packet's end is padding, and says nothing.
            let [shorter, whole] =
                [Ok(shorter), whole].map(|packet| packet.map(|packet| comparable(packet, frame, link)));
            assert_eq!(shorter, whole, "cut to {length}");
        }
    }
    from_network_header(frame);
    deny_all_denies(frame, link, bit(3), whole);
}

/// A jumbogram and a GSO packet above 64 KiB say 0 for their length and end where the frame does: the longer that is, the
/// more data. All else is the same.
fn comparable(packet: Packet, frame: &[u8], link: Link) -> Packet {
    let network = if link.header { ETHERNET_HEADER as usize } else { 0 };
    let field = network + if packet.source.is_v4() { 2 } else { 4 };
    let says_nothing = frame.get(field..field + 2) == Some(&[0, 0]);
    Packet { has_data: packet.has_data && !says_nothing, ..packet }
}

/// What was parsed is in the frame.
fn is_within(packet: &Packet, frame: &[u8], link: Link) {
    let at = |offset: u32, length: usize| frame.get(offset as usize..offset as usize + length);
    match packet.kind {
        Kind::Vlan | Kind::OtherEtherType => return,
        Kind::Arp => {
            assert!(at(packet.transport, 28).is_some());
            assert!(arp_sender(frame).is_some());
            return;
        }
        Kind::Segment
        | Kind::Opening
        | Kind::OpeningAnswer
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::IcmpError
        | Kind::IcmpOther
        | Kind::LaterFragment
        | Kind::NeighborDiscovery
        | Kind::MulticastListener => {}
    }
    let network = if link.header { ETHERNET_HEADER } else { 0 };
    let header = if packet.source.is_v4() { 20 } else { 40 };
    assert_eq!(packet.source.is_v4(), packet.destination.is_v4());
    assert!(packet.transport >= network + header, "{packet:?}");
    assert!(packet.transport as usize <= frame.len(), "{packet:?}");
    let is_later = packet.kind == Kind::LaterFragment;
    if has_ports(packet.protocol) && !is_later {
        let ports = at(packet.transport, 4).expect("ports are in the frame");
        assert_eq!([packet.source_port, packet.destination_port].concat(), ports);
        assert_eq!(packet.policy_port(), Some(packet.destination_port));
    } else {
        assert_eq!(packet.policy_port(), None);
    }
    assert!(!(is_later && packet.first_fragment));
    assert!(!packet.has_data || packet.protocol == 6);
    if link.header {
        assert!(ethernet_source(frame).is_some());
    }
    match packet.kind {
        Kind::IcmpError => {
            if let Some(quoted) = inner(frame, packet) {
                assert_eq!(quoted.source.is_v4(), packet.source.is_v4());
                assert_eq!(quoted.destination.is_v4(), packet.source.is_v4());
                assert!(at(packet.transport, 8 + header as usize).is_some());
            }
        }
        Kind::NeighborDiscovery => {
            assert_eq!(advertised_target(frame, packet).is_some(), at(packet.transport + 8, 16).is_some());
        }
        Kind::EchoRequest => assert_eq!(packet.destination_port, [0; 2]),
        Kind::EchoReply => assert_eq!(packet.source_port, [0; 2]),
        Kind::Segment
        | Kind::Opening
        | Kind::OpeningAnswer
        | Kind::IcmpOther
        | Kind::LaterFragment
        | Kind::MulticastListener
        | Kind::Arp
        | Kind::Vlan
        | Kind::OtherEtherType => {}
    }
}

/// A device without link header gives the parser the same packet.
fn from_network_header(frame: &[u8]) {
    let plain = Link { header: true, vlan: false, segments: 0 };
    let Ok(packet) = parse(frame, &plain) else { return };
    if !packet.kind.is_ip() {
        return;
    }
    let bare = parse(&FromNetworkHeader(frame), &Link { header: false, ..plain });
    let expected = Packet { transport: packet.transport - ETHERNET_HEADER, ..packet };
    let comparable = |packet: Packet| comparable(packet, frame, plain);
    assert_eq!(bare.map(comparable), Ok(comparable(expected)));
}

/// An isolated pod with no rule and no flow: nothing goes on but what the link itself needs.
fn deny_all_denies(frame: &[u8], link: Link, is_egress: bool, whole: Result<Packet, Reason>) {
    let direction = if is_egress { Direction::Egress } else { Direction::Ingress };
    let Verdict { reason, .. } = judge(isolated(), frame, &hook(direction, link));
    if reason != Reason::Passed {
        return;
    }
    let packet = whole.expect("what cannot be parsed is dropped");
    let of_the_link = matches!(packet.kind, Kind::Arp | Kind::NeighborDiscovery | Kind::MulticastListener);
    assert!(of_the_link, "let on: {direction:?} {packet:?}");
}

fn hook(direction: Direction, link: Link) -> Hook {
    let Link { header, vlan, segments } = link;
    Hook {
        direction,
        ifindex: VETH,
        mark: 0,
        ingress_ifindex: VETH,
        has_socket: false,
        link_header: header,
        vlan,
        now_ns: 3_600_000_000_000,
        segments,
    }
}

/// Tables in which nobody has said anything to the pod: they never change, because nothing is let on.
fn isolated() -> &'static MemoryTables {
    static TABLES: OnceLock<MemoryTables> = OnceLock::new();
    TABLES.get_or_init(|| {
        let mut tables = MemoryTables::new();
        tables.settings = Some(Settings { mark_shift: 16, ..Settings::default() });
        let veth = InterfaceRow { endpoint: ENDPOINT, flags: interface_flags::POD_VETH };
        let _none = tables.interfaces.insert(VETH, veth);
        tables.apply(&MapOp::SetWord { endpoint: ENDPOINT, word: EndpointWord::new(SET, 9) });
        let address = mapped(POD);
        tables.apply(&MapOp::PutAddress(AddressKey { endpoint: ENDPOINT, address }));
        tables
    })
}
