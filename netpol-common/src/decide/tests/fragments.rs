use std::vec::Vec;

use super::{PEER, PEER_CLASS, PEER6, POD, POD6, World};
use crate::abi::{Bucket, Direction, PROTOCOL_ANY};
use crate::flow::timeout;
use crate::parse::{frames, protocol, tcp_flags};
use crate::tables::FlowTable;
use crate::verdict::Reason;

const MORE: u16 = 0x2000;

fn first(port: u16) -> Vec<u8> {
    frames::ipv4_with(PEER, POD, protocol::UDP, MORE, &[], &frames::udp_datagram(4000, port, &[0; 16]))
}

fn later() -> Vec<u8> {
    frames::ipv4_with(PEER, POD, protocol::UDP, 3, &[], &[0; 8])
}

fn server() -> World {
    World::isolated().allow(Direction::Ingress, PEER_CLASS, protocol::UDP, 4, &[80])
}

#[test]
fn later_fragments_go_where_the_first_one_went() {
    let mut world = server();
    assert_eq!(world.receive(&later()), Reason::FragmentUnknown);
    assert_eq!(world.receive(&first(80)), Reason::Passed);
    assert_eq!(world.receive(&later()), Reason::Passed);
    assert_eq!(world.flows(FlowTable::Embryonic), 1);
    world.now += u64::from(timeout::FRAGMENTS) + 1;
    assert_eq!(world.receive(&later()), Reason::FragmentUnknown);
}

#[test]
fn a_first_fragment_that_was_dropped_leaves_nothing() {
    let world = server();
    assert_eq!(world.receive(&first(81)), Reason::NoRule);
    assert_eq!(world.receive(&later()), Reason::FragmentUnknown);
}

#[test]
fn a_rule_without_ports_allows_fragments_in_any_order() {
    let world = World::isolated().allow(Direction::Ingress, PEER_CLASS, PROTOCOL_ANY, 4, &[]);
    assert_eq!(world.receive(&later()), Reason::Passed);
    assert_eq!(world.flows(FlowTable::Embryonic), 0, "a piece of a datagram names no flow");
    assert_eq!(world.receive(&first(81)), Reason::Passed);
}

#[test]
fn a_fragment_of_one_direction_says_nothing_about_the_other() {
    let world = server();
    assert_eq!(world.receive(&first(80)), Reason::Passed);
    let back = frames::ipv4_with(POD, PEER, protocol::UDP, 3, &[], &[0; 8]);
    assert_eq!(world.send(&back), Reason::FragmentUnknown);
    let reply = frames::ipv4_with(POD, PEER, protocol::UDP, MORE, &[], &frames::udp_datagram(80, 4000, &[0; 16]));
    assert_eq!(world.send(&reply), Reason::Passed);
    assert_eq!(world.send(&back), Reason::Passed);
}

#[test]
fn a_fragmented_segment_of_a_live_connection_passes() {
    let world = World::isolated().allow(Direction::Ingress, PEER_CLASS, protocol::TCP, 4, &[80]);
    assert_eq!(world.receive(&frames::tcp(PEER, POD, 4000, 80, tcp_flags::SYN)), Reason::Passed);
    let flags = tcp_flags::SYN | tcp_flags::ACK;
    assert_eq!(world.send(&frames::tcp(POD, PEER, 80, 4000, flags)), Reason::Passed);
    let segment = frames::tcp_segment(4000, 80, tcp_flags::ACK, &[0; 12]);
    assert_eq!(world.receive(&frames::ipv4_with(PEER, POD, protocol::TCP, MORE, &[], &segment)), Reason::Passed);
    assert_eq!(world.receive(&frames::ipv4_with(PEER, POD, protocol::TCP, 4, &[], &[0; 8])), Reason::Passed);
    assert_eq!(world.receive(&frames::ipv4_with(PEER, POD, protocol::TCP, 1, &[], &[0; 8])), Reason::FragmentHeader);
}

/// A fragment of an IPv6 datagram, with what it says of its protocol.
fn fragment6(next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let field = offset << 3 | u16::from(more);
    let mut fragment = Vec::from([next, 0]);
    fragment.extend(field.to_be_bytes());
    fragment.extend([0, 0, 0, 7]);
    fragment.extend(payload);
    frames::ipv6(PEER6, POD6, 44, 64, &fragment)
}

#[test]
fn what_a_later_ipv6_fragment_says_of_its_protocol_means_nothing() {
    let world = server();
    let datagram = frames::udp_datagram(4000, 80, &[0; 16]);
    assert_eq!(world.receive(&fragment6(protocol::UDP, 0, true, &datagram)), Reason::Passed);
    assert_eq!(world.receive(&fragment6(60, 3, false, &[0; 8])), Reason::Passed);
    assert_eq!(world.receive(&fragment6(protocol::UDP, 1, false, &[0; 8])), Reason::Passed);
}

#[test]
fn an_ipv6_fragment_cannot_rewrite_tcp_flags_under_another_protocols_name() {
    let world = World::isolated().allow(Direction::Ingress, PEER_CLASS, protocol::TCP, 4, &[80]).allow(
        Direction::Ingress,
        PEER_CLASS,
        protocol::UDP,
        5,
        &[],
    );
    let segment = frames::tcp_segment(4000, 80, tcp_flags::ACK, &[0; 12]);
    assert_eq!(world.receive(&fragment6(protocol::UDP, 1, false, &[0; 8])), Reason::FragmentHeader);
    assert_eq!(world.receive(&fragment6(protocol::TCP, 0, true, &segment)), Reason::Passed);
    assert_eq!(world.receive(&fragment6(protocol::UDP, 1, false, &[0; 8])), Reason::FragmentHeader);
    assert_eq!(world.receive(&fragment6(protocol::UDP, 4, false, &[0; 8])), Reason::Passed);
}

#[test]
fn datagrams_beyond_the_budget_are_remembered_where_they_can_be_evicted() {
    let mut world = server();
    world.settings.as_mut().unwrap().fragments = Bucket { cost: 1 << 40, burst: 1 << 40 };
    let datagram = frames::udp_datagram(4000, 80, &[0; 16]);
    assert_eq!(world.receive(&first(80)), Reason::Passed);
    assert_eq!(world.receive(&fragment6(protocol::UDP, 0, true, &datagram)), Reason::Passed);
    let written = world.written.borrow();
    assert_eq!((written.fragments.len(), written.over_fragments.len()), (1, 1));
    drop(written);
    assert_eq!(world.receive(&later()), Reason::Passed);
    assert_eq!(world.receive(&fragment6(protocol::UDP, 3, false, &[0; 8])), Reason::Passed);
}
