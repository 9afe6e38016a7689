use super::{IFINDEX, MARK_SHIFT, NODE, OTHER_NODE, PEER, PEER_CLASS, PEER6, POD, POD6, STRANGER, World};
use crate::abi::{
    CLASS_ANY, ClassRow, Direction, EndpointWord, PROTOCOL_ANY, RULE_NONE, SET_ALLOW_ALL, address_kind, endpoint_flags,
    stamp,
};
use crate::parse::{Address, frames, icmp_type, protocol, tcp_flags};
use crate::verdict::Reason;

const SYN: u8 = tcp_flags::SYN;
const GROUP: [u8; 4] = [224, 0, 0, 251];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn open() -> World {
    let mut world = World::isolated();
    world.word = EndpointWord::new(SET_ALLOW_ALL, 2);
    world
}

#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    let mut world = open();
    assert_eq!(world.send(&frames::udp(STRANGER, PEER, 1, 2)), Reason::SpoofedSource);
    assert_eq!(world.send(&frames::udp([0; 4], PEER, 68, 67)), Reason::SpoofedSource);
    assert_eq!(world.send(&frames::udp(POD, PEER, 1, 2)), Reason::Passed);
    // The flow that exists is of another address.
    assert_eq!(world.send(&frames::udp(STRANGER, PEER, 1, 2)), Reason::SpoofedSource);
    world.options.flags = endpoint_flags::NO_ADDRESS_CHECK;
    assert_eq!(world.send(&frames::udp(STRANGER, PEER, 1, 2)), Reason::Passed);
}

#[test]
fn a_pod_is_delivered_only_what_is_addressed_to_it() {
    let mut world = open();
    assert_eq!(world.receive(&frames::tcp(PEER, STRANGER, 1, 2, SYN)), Reason::NotMine);
    assert_eq!(world.receive(&frames::udp(PEER, GROUP, 1, 2)), Reason::Passed);
    assert_eq!(world.receive(&frames::udp(PEER, [255; 4], 1, 2)), Reason::Passed);
    world.options.flags = endpoint_flags::NO_ADDRESS_CHECK;
    assert_eq!(world.receive(&frames::tcp(PEER, STRANGER, 1, 2, SYN)), Reason::Passed);
}

#[test]
fn a_group_is_judged_as_an_address_in_no_peer() {
    let world = World::isolated().allow(Direction::Egress, PEER_CLASS, PROTOCOL_ANY, 4, &[]);
    assert_eq!(world.send(&frames::udp(POD, GROUP, 1, 2)), Reason::NoRule);
    let world = World::isolated().allow(Direction::Egress, CLASS_ANY, PROTOCOL_ANY, 4, &[]);
    assert_eq!(world.send(&frames::udp(POD, GROUP, 1, 2)), Reason::Passed);
}

#[test]
fn arp_passes_and_a_pod_speaks_for_itself() {
    let world = World::isolated();
    assert_eq!(world.send(&frames::arp(POD, NODE)), Reason::Passed);
    assert_eq!(world.send(&frames::arp([0; 4], POD)), Reason::Passed);
    assert_eq!(world.send(&frames::arp(NODE, PEER)), Reason::SpoofedSource);
    assert_eq!(world.receive(&frames::arp(NODE, POD)), Reason::Passed);
}

#[test]
fn neighbor_discovery_passes_for_own_addresses() {
    let world = World::isolated();
    let own_link_local = Address::link_local_of(frames::SOURCE_MAC).bytes();
    let other_link_local = Address::link_local_of([2, 0, 0, 0, 0, 9]).bytes();
    let solicit = |source| frames::neighbor(source, PEER6, icmp_type::V6_NEIGHBOR_SOLICITATION, 255, PEER6);
    let advertise = |target| frames::neighbor(POD6, PEER6, icmp_type::V6_NEIGHBOR_ADVERTISEMENT, 255, target);
    for source in [POD6, own_link_local, [0; 16]] {
        assert_eq!(world.send(&solicit(source)), Reason::Passed, "{source:?}");
    }
    for source in [PEER6, other_link_local] {
        assert_eq!(world.send(&solicit(source)), Reason::SpoofedSource, "{source:?}");
    }
    for target in [POD6, own_link_local] {
        assert_eq!(world.send(&advertise(target)), Reason::Passed, "{target:?}");
    }
    for target in [PEER6, other_link_local] {
        assert_eq!(world.send(&advertise(target)), Reason::SpoofedSource, "{target:?}");
    }
}

#[test]
fn neighbor_discovery_from_afar_is_dropped() {
    let world = open();
    let routed = frames::neighbor(PEER6, POD6, icmp_type::V6_NEIGHBOR_ADVERTISEMENT, 254, PEER6);
    assert_eq!(world.receive(&routed), Reason::NeighborDiscovery);
}

#[test]
fn router_advertisements_and_redirects_come_to_pods_and_never_from_them() {
    for mut world in [open(), World::isolated()] {
        for pending in [false, true] {
            if pending {
                world.interface = None;
            }
            for kind in [icmp_type::V6_ROUTER_ADVERTISEMENT, icmp_type::V6_REDIRECT] {
                let sent = frames::neighbor(POD6, ALL_NODES, kind, 255, POD6);
                assert_eq!(world.send(&sent), Reason::NeighborDiscovery);
                let received = frames::neighbor(PEER6, ALL_NODES, kind, 255, POD6);
                assert_eq!(world.receive(&received), Reason::Passed);
            }
        }
    }
    let world = open();
    for kind in [icmp_type::REDIRECT, icmp_type::ROUTER_ADVERTISEMENT] {
        let sent = frames::ipv4(POD, PEER, protocol::ICMP, &frames::icmp_message(kind, 0, &[0; 28]));
        assert_eq!(world.send(&sent), Reason::NeighborDiscovery);
    }
}

#[test]
fn listener_reports_pass_also_while_pending() {
    let mut world = World::isolated();
    let source = Address::link_local_of(frames::SOURCE_MAC).bytes();
    let report = |source| frames::ipv6(source, ALL_NODES, protocol::ICMPV6, 1, &frames::icmp_message(131, 0, &[0; 16]));
    assert_eq!(world.send(&report(source)), Reason::Passed);
    assert_eq!(world.send(&report([0; 16])), Reason::Passed);
    let other = Address::link_local_of([2, 0, 0, 0, 0, 9]).bytes();
    assert_eq!(world.send(&report(other)), Reason::SpoofedSource);
    world.interface = None;
    assert_eq!(world.send(&report(source)), Reason::Passed);
}

#[test]
fn frames_that_are_not_ip_pass_only_where_nothing_isolates_the_pod() {
    let lldp = frames::ethernet([0x88, 0xcc], &[0; 46]);
    assert_eq!(open().send(&lldp), Reason::Passed);
    assert_eq!(World::isolated().send(&lldp), Reason::EtherType);
    let egress_open = World::isolated().allow(Direction::Egress, CLASS_ANY, PROTOCOL_ANY, RULE_NONE, &[]);
    assert_eq!(egress_open.send(&lldp), Reason::Passed);
    assert_eq!(egress_open.receive(&lldp), Reason::EtherType);
}

#[test]
fn a_tag_is_never_taken_from_a_pod() {
    let tagged = frames::ethernet([0x81, 0], &[0; 46]);
    assert_eq!(open().send(&tagged), Reason::VlanTag);
    assert_eq!(open().receive(&tagged), Reason::Passed);
    assert_eq!(World::isolated().receive(&tagged), Reason::VlanTag);
}

#[test]
fn what_cannot_be_parsed_is_dropped_for_every_pod() {
    let world = open();
    assert_eq!(world.send(&frames::udp(POD, PEER, 1, 2)[..20]), Reason::Truncated);
    let routed = frames::ipv4_with(POD, PEER, protocol::UDP, 0, &[131, 3, 4, 0], &frames::udp_datagram(1, 2, b""));
    assert_eq!(world.send(&routed), Reason::SourceRoute);
}

#[test]
fn a_pod_does_not_speak_the_overlay_to_nodes() {
    let mut world = open();
    for node in [NODE, OTHER_NODE] {
        assert_eq!(world.send(&frames::udp(POD, node, 4000, 8472)), Reason::Overlay);
        assert_eq!(world.send(&frames::udp(POD, node, 4000, 8473)), Reason::Passed);
    }
    assert_eq!(world.send(&frames::udp(POD, PEER, 4000, 8472)), Reason::Passed);
    let ipip = frames::ipv4(POD, OTHER_NODE, protocol::IPIP, &[0; 20]);
    assert_eq!(world.send(&ipip), Reason::Overlay);
    assert_eq!(world.send(&frames::ipv4(POD, PEER, protocol::IPIP, &[0; 20])), Reason::Passed);
    // Not as an answer either.
    world.now += 1;
    assert_eq!(world.receive(&frames::udp(OTHER_NODE, POD, 8472, 5000)), Reason::Passed);
    assert_eq!(world.send(&frames::udp(POD, OTHER_NODE, 5000, 8472)), Reason::Overlay);
}

#[test]
fn a_flow_from_before_the_address_checks_ends_when_it_is_judged_again() {
    let mut world = open();
    world.options.flags = endpoint_flags::NO_ADDRESS_CHECK;
    assert_eq!(world.send(&frames::udp(STRANGER, PEER, 1, 2)), Reason::Passed);
    world.options.flags = 0;
    world.word = EndpointWord::new(SET_ALLOW_ALL, 3);
    assert_eq!(world.send(&frames::udp(STRANGER, PEER, 1, 2)), Reason::SpoofedSource);
    world.options.flags = endpoint_flags::NO_ADDRESS_CHECK;
    world.word = EndpointWord::new(SET_ALLOW_ALL, 4);
    assert_eq!(world.send(&frames::udp(STRANGER, PEER, 1, 2)), Reason::Passed);
}

#[test]
fn a_pod_does_not_speak_the_overlay_to_a_group_that_its_node_is_in() {
    let mut world = open();
    world.settings.as_mut().unwrap().overlay_ports[0] = 8472_u16.to_be_bytes();
    for group in [GROUP, [224, 0, 0, 1], [255; 4]] {
        assert_eq!(world.send(&frames::udp(POD, group, 1, 8472)), Reason::Overlay);
        assert_eq!(world.send(&frames::udp(POD, group, 1, 8473)), Reason::Passed);
    }
    assert_eq!(world.send(&frames::udp(POD, PEER, 1, 8472)), Reason::Passed);
}

#[test]
fn the_broadcast_address_of_the_nodes_range_is_delivered_and_is_no_way_to_the_overlay() {
    const ALL: [u8; 4] = [10, 244, 0, 255];
    let to_all = frames::udp(PEER, ALL, 4000, 2000);
    let mut world = open();
    assert_eq!(world.receive(&to_all), Reason::NotMine);
    let row = ClassRow { kind: address_kind::BROADCAST, class: 0 };
    let _none = world.classes.insert(crate::abi::mapped(ALL), row);
    assert_eq!(world.receive(&to_all), Reason::Passed);
    assert_eq!(world.send(&frames::udp(POD, ALL, 4000, 2000)), Reason::Passed);
    assert_eq!(world.send(&frames::udp(POD, ALL, 4000, 8472)), Reason::Overlay);
    assert_eq!(world.send(&frames::udp(ALL, PEER, 4000, 2000)), Reason::SpoofedSource);
    // To policies it is an address like any other.
    let mut world = World::isolated();
    let _none = world.classes.insert(crate::abi::mapped(ALL), row);
    assert_eq!(world.receive(&to_all), Reason::NoRule);
    assert_eq!(world.send(&frames::udp(POD, ALL, 4000, 2000)), Reason::NoRule);
    // Judged for good where it is sent: the node's last guard, and other pods, do not wait for more.
    let world = world.allow(Direction::Egress, 0, protocol::UDP, 4, &[2000]);
    let verdict = world.verdict(&frames::udp(POD, ALL, 4000, 2000), Direction::Egress, IFINDEX, true);
    assert_eq!(verdict.reason, Reason::Passed);
    assert_eq!(stamp::state(stamp::of_mark(verdict.mark, MARK_SHIFT)), stamp::JUDGED);
}

#[test]
fn a_mapped_address_in_an_ipv6_header_is_malformed() {
    let world = open();
    let datagram = frames::udp_datagram(1, 2, b"");
    let frame = |destination| frames::ipv6(POD6, destination, protocol::UDP, 64, &datagram);
    assert_eq!(world.send(&frame(PEER6)), Reason::Passed);
    assert_eq!(world.send(&frame(crate::abi::mapped(PEER))), Reason::Malformed);
}
