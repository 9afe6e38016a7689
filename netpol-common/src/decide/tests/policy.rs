use super::{ENDPOINT, NODE, OTHER_NODE, PEER, PEER_CLASS, PEER6, POD, POD6, SET, STRANGER, World};
use crate::abi::{
    CLASS_ANY, Direction, EndpointWord, PROTOCOL_ANY, RULE_NONE, RuleKey, RuleRow, SET_ALLOW_ALL, SET_DENY_ALL, mapped,
    rule_action,
};
use crate::decide::{is_isolated, policy_verdict};
use crate::parse::{frames, protocol, tcp_flags};
use crate::verdict::Reason;

const SYN: u8 = tcp_flags::SYN;

fn asks(world: &World, set: u32, peer: [u8; 4], protocol: u8, port: u16) -> (bool, u32) {
    let port = Some(port.to_be_bytes());
    let verdict = policy_verdict(world, set, Direction::Ingress, &mapped(peer), protocol, port);
    (verdict.allowed, verdict.rule)
}

#[test]
fn the_fixed_sets_need_no_rows() {
    let world = World::isolated();
    assert_eq!(asks(&world, SET_ALLOW_ALL, STRANGER, protocol::TCP, 1), (true, RULE_NONE));
    assert_eq!(asks(&world, SET_DENY_ALL, STRANGER, protocol::TCP, 1), (false, RULE_NONE));
    assert_eq!(asks(&world, 0, STRANGER, protocol::TCP, 1), (false, RULE_NONE));
}

#[test]
fn a_port_set_answers_for_its_ports_and_denies_the_others() {
    let world = World::isolated().allow(Direction::Ingress, PEER_CLASS, protocol::TCP, 4, &[80, 443]);
    assert_eq!(asks(&world, SET, PEER, protocol::TCP, 443), (true, 4));
    assert_eq!(asks(&world, SET, PEER, protocol::TCP, 444), (false, RULE_NONE));
    assert_eq!(asks(&world, SET, PEER, protocol::UDP, 443), (false, RULE_NONE));
    assert_eq!(asks(&world, SET, STRANGER, protocol::TCP, 443), (false, RULE_NONE));
    let unknown = policy_verdict(&world, SET, Direction::Ingress, &mapped(PEER), protocol::TCP, None);
    assert!(!unknown.allowed, "ports that are not known cannot be in a set");
}

#[test]
fn a_class_with_rows_of_its_own_never_asks_those_of_any() {
    let mut world = World::isolated().allow(Direction::Ingress, CLASS_ANY, PROTOCOL_ANY, 8, &[]).allow(
        Direction::Ingress,
        CLASS_ANY,
        protocol::UDP,
        9,
        &[53],
    );
    let denied = RuleKey { set: SET, class: PEER_CLASS, direction: 0, protocol: PROTOCOL_ANY, pad: 0 };
    let _ = world.rules.insert(denied, RuleRow { action: rule_action::DENY, port_set: 0, rule: RULE_NONE });
    assert_eq!(asks(&world, SET, PEER, protocol::TCP, 80), (false, RULE_NONE));
    assert_eq!(asks(&world, SET, PEER, protocol::UDP, 53), (false, RULE_NONE));
    assert_eq!(asks(&world, SET, STRANGER, protocol::TCP, 80), (true, 8));
    assert_eq!(asks(&world, SET, STRANGER, protocol::UDP, 53), (true, 9));
    assert_eq!(asks(&world, SET, STRANGER, protocol::UDP, 54), (false, RULE_NONE), "the first row decides");
}

#[test]
fn not_isolated_is_an_answer_for_all_that_no_rule_gave() {
    let world = World::isolated().allow(Direction::Ingress, CLASS_ANY, PROTOCOL_ANY, RULE_NONE, &[]);
    assert!(!is_isolated(&world, SET, Direction::Ingress));
    assert!(is_isolated(&world, SET, Direction::Egress));
    let by_rule = World::isolated().allow(Direction::Ingress, CLASS_ANY, PROTOCOL_ANY, 4, &[]);
    assert!(is_isolated(&by_rule, SET, Direction::Ingress));
}

#[test]
fn both_families_are_judged_by_class_and_port() {
    let world = World::isolated().allow(Direction::Ingress, PEER_CLASS, protocol::TCP, 4, &[80]);
    assert_eq!(world.receive(&frames::tcp(PEER, POD, 4000, 80, SYN)), Reason::Passed);
    assert_eq!(world.receive(&frames::tcp(PEER, POD, 4000, 81, SYN)), Reason::NoRule);
    assert_eq!(world.receive(&frames::tcp(STRANGER, POD, 4000, 80, SYN)), Reason::NoRule);
    let v6 = |port| frames::ipv6(PEER6, POD6, protocol::TCP, 64, &frames::tcp_segment(4000, port, SYN, &[]));
    assert_eq!(world.receive(&v6(80)), Reason::Passed);
    assert_eq!(world.receive(&v6(81)), Reason::NoRule);
    assert_eq!(world.packets(ENDPOINT, Direction::Ingress, Reason::NoRule), 3);
}

#[test]
fn a_protocol_without_ports_needs_a_rule_without_ports() {
    let gre = frames::ipv4(PEER, POD, 47, &[0; 8]);
    let ports = World::isolated().allow(Direction::Ingress, PEER_CLASS, protocol::TCP, 4, &[80]);
    assert_eq!(ports.receive(&gre), Reason::NoRule);
    assert_eq!(ports.receive(&frames::echo(PEER, POD, true, 1)), Reason::NoRule);
    let any = World::isolated().allow(Direction::Ingress, PEER_CLASS, PROTOCOL_ANY, 4, &[]);
    assert_eq!(any.receive(&gre), Reason::Passed);
    assert_eq!(any.receive(&frames::echo(PEER, POD, true, 1)), Reason::Passed);
}

#[test]
fn a_rule_names_itself_in_the_verdict() {
    let world = World::isolated().allow(Direction::Egress, PEER_CLASS, protocol::UDP, 31, &[53]);
    let verdict = world.verdict(&frames::udp(POD, PEER, 4000, 53), Direction::Egress, super::IFINDEX, true);
    assert_eq!((verdict.reason, verdict.endpoint, verdict.rule), (Reason::Passed, ENDPOINT, 31));
    let established = world.verdict(&frames::udp(PEER, POD, 53, 4000), Direction::Ingress, 2, false);
    assert_eq!((established.reason, established.rule), (Reason::Passed, 31));
}

#[test]
fn the_own_node_always_gets_in_and_only_by_its_own_socket() {
    let world = World::isolated();
    assert_eq!(world.receive_from_node(&frames::tcp(NODE, POD, 4000, 80, SYN)), Reason::Passed);
    assert_eq!(world.send(&frames::tcp(POD, NODE, 80, 4000, SYN | tcp_flags::ACK)), Reason::Passed);
    // Forwarded, and masqueraded to the node's address.
    assert_eq!(world.receive(&frames::tcp(NODE, POD, 4001, 80, SYN)), Reason::NoRule);
    // A socket of this host, but no address of it.
    assert_eq!(world.receive_from_node(&frames::tcp(STRANGER, POD, 4000, 80, SYN)), Reason::NoRule);
    assert_eq!(world.receive_from_node(&frames::tcp(OTHER_NODE, POD, 4000, 80, SYN)), Reason::NoRule);
    // A pod's packet that carries its socket across the bridge.
    assert!(!world.verdict(&frames::tcp(NODE, POD, 4002, 80, SYN), Direction::Ingress, 9, true).passes());
    // What the pod sends to its node is policed.
    assert_eq!(world.send(&frames::tcp(POD, NODE, 4000, 10250, SYN)), Reason::NoRule);
}

#[test]
fn nothing_passes_without_settings_or_word() {
    let mut world = World::isolated();
    world.settings = None;
    assert_eq!(world.receive(&frames::udp(PEER, POD, 1, 2)), Reason::TableMissing);
    let mut world = World::isolated();
    world.interface = Some(crate::abi::InterfaceRow { endpoint: 77, flags: 0 });
    assert_eq!(world.receive(&frames::udp(PEER, POD, 1, 2)), Reason::TableMissing);
}

#[test]
fn a_pending_pod_gets_nothing_but_its_node() {
    for pending in [None, Some(EndpointWord(0))] {
        let mut world = World::isolated();
        match pending {
            None => world.interface = None,
            Some(word) => world.word = word,
        }
        assert_eq!(world.receive(&frames::udp(PEER, POD, 1, 2)), Reason::Pending);
        assert_eq!(world.send(&frames::udp(POD, PEER, 1, 2)), Reason::Pending);
        assert_eq!(world.send(&[0; 20]), Reason::Pending);
        assert_eq!(world.send(&frames::arp(POD, NODE)), Reason::Passed);
        assert_eq!(world.receive_from_node(&frames::tcp(NODE, POD, 4000, 80, SYN)), Reason::Passed);
        assert_eq!(world.send(&frames::tcp(POD, NODE, 80, 4000, SYN | tcp_flags::ACK)), Reason::Passed);
        assert_eq!(world.receive_from_node(&frames::tcp(NODE, POD, 4000, 80, tcp_flags::ACK)), Reason::Passed);
        // The reply must bear the address that was asked.
        assert_eq!(world.send(&frames::tcp(PEER, NODE, 80, 4000, tcp_flags::ACK)), Reason::Pending);
        assert_eq!(world.send(&frames::tcp(POD, NODE, 81, 4000, tcp_flags::ACK)), Reason::Pending);
    }
}

#[test]
fn what_the_node_started_while_the_pod_was_pending_goes_on_afterwards() {
    let mut world = World::isolated();
    let interface = world.interface.take();
    assert_eq!(world.receive_from_node(&frames::tcp(NODE, POD, 4000, 80, SYN)), Reason::Passed);
    assert_eq!(world.send(&frames::tcp(POD, NODE, 80, 4000, SYN | tcp_flags::ACK)), Reason::Passed);
    world.interface = interface;
    assert_eq!(world.send(&frames::tcp(POD, NODE, 80, 4000, tcp_flags::ACK)), Reason::Passed);
    assert_eq!(world.receive_from_node(&frames::tcp(NODE, POD, 4000, 80, tcp_flags::ACK)), Reason::Passed);
    assert_eq!(world.only_flow(crate::tables::FlowTable::Confirmed).endpoint, ENDPOINT);
}

#[test]
fn a_switch_opens_pending_pods_until_their_policy_comes() {
    let mut world = World::isolated();
    let interface = world.interface.take();
    world.settings.as_mut().unwrap().flags |= crate::abi::setting_flags::PENDING_ALLOW;
    assert_eq!(world.receive(&frames::tcp(PEER, POD, 4000, 80, SYN)), Reason::Passed);
    assert_eq!(world.send(&frames::tcp(POD, PEER, 80, 4000, SYN | tcp_flags::ACK)), Reason::Passed);
    world.interface = interface;
    assert_eq!(world.receive(&frames::tcp(PEER, POD, 4000, 80, tcp_flags::ACK)), Reason::Revoked);
}

#[test]
fn a_switch_that_is_closed_again_closes_pending_pods_at_once() {
    let mut world = World::isolated();
    world.interface = None;
    world.settings.as_mut().unwrap().flags |= crate::abi::setting_flags::PENDING_ALLOW;
    assert_eq!(world.receive(&frames::udp(PEER, POD, 4000, 80)), Reason::Passed);
    world.settings.as_mut().unwrap().flags = 0;
    assert_eq!(world.receive(&frames::udp(PEER, POD, 4000, 80)), Reason::Pending);
    assert_eq!(world.send(&frames::udp(POD, PEER, 80, 4000)), Reason::Pending);
}

#[test]
fn packets_and_bytes_are_counted_by_what_became_of_them() {
    let world = World::isolated();
    let frame = frames::udp(PEER, POD, 1, 2);
    let _ = world.receive(&frame);
    let index = crate::abi::counter_index(ENDPOINT, Direction::Ingress, Reason::NoRule as u32);
    let counter = world.written.borrow().counters[&index];
    assert_eq!((counter.packets, counter.bytes), (1, frame.len() as u64));
}
