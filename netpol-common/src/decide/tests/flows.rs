use std::vec::Vec;

use super::{NODE, PEER, PEER_CLASS, POD, STRANGER, World};
use crate::abi::{
    Bucket, Direction, EndpointWord, OWN_NODE_SHARES, PROTOCOL_ANY, SET_ALLOW_ALL, initiator, phase, setting_flags,
};
use crate::flow::timeout;
use crate::parse::{frames, protocol, tcp_flags};
use crate::tables::FlowTable;
use crate::verdict::Reason;

const SYN: u8 = tcp_flags::SYN;
const ACK: u8 = tcp_flags::ACK;

/// Isolated both ways; peers may reach TCP and UDP port 80.
fn server() -> World {
    World::isolated().allow(Direction::Ingress, PEER_CLASS, protocol::TCP, 4, &[80]).allow(
        Direction::Ingress,
        PEER_CLASS,
        protocol::UDP,
        5,
        &[80],
    )
}

/// Isolated both ways; may reach its peers' port 80.
fn client() -> World {
    World::isolated().allow(Direction::Egress, PEER_CLASS, protocol::TCP, 4, &[80]).allow(
        Direction::Egress,
        PEER_CLASS,
        protocol::UDP,
        5,
        &[80],
    )
}

fn to_pod(flags: u8) -> Vec<u8> {
    frames::tcp(PEER, POD, 4000, 80, flags)
}

fn from_pod(flags: u8) -> Vec<u8> {
    frames::tcp(POD, PEER, 80, 4000, flags)
}

/// A connection of the peer to the pod, both of whose sides have spoken.
fn connected(world: &World) {
    assert_eq!(world.receive(&to_pod(SYN)), Reason::Passed);
    assert_eq!(world.send(&from_pod(SYN | ACK)), Reason::Passed);
    assert_eq!(world.receive(&to_pod(ACK)), Reason::Passed);
}

#[test]
fn a_reply_is_allowed_although_the_pod_is_isolated() {
    let world = server();
    connected(&world);
    assert_eq!((world.flows(FlowTable::Embryonic), world.flows(FlowTable::Confirmed)), (0, 1));
    let flow = world.only_flow(FlowTable::Confirmed);
    assert_eq!((flow.initiator, flow.rule, flow.phase), (initiator::PEER, 4, phase::REPLIED));
    let world = client();
    assert_eq!(world.send(&frames::tcp(POD, PEER, 5000, 80, SYN)), Reason::Passed);
    assert_eq!(world.receive(&frames::tcp(PEER, POD, 80, 5000, SYN | ACK)), Reason::Passed);
    assert_eq!(world.send(&frames::tcp(POD, PEER, 5000, 80, ACK)), Reason::Passed);
}

#[test]
fn a_flow_of_a_pod_that_nothing_isolates_is_tracked_too() {
    let mut world = World::isolated();
    world.word = EndpointWord::new(SET_ALLOW_ALL, 2);
    assert_eq!(world.send(&frames::udp(POD, STRANGER, 4000, 53)), Reason::Passed);
    // Isolated for ingress now, the answer still comes.
    world.word = EndpointWord::new(super::SET, 3);
    let world = world.allow(Direction::Egress, crate::abi::CLASS_ANY, PROTOCOL_ANY, 0, &[]);
    assert_eq!(world.receive(&frames::udp(STRANGER, POD, 53, 4000)), Reason::Passed);
    assert_eq!(world.receive(&frames::udp(STRANGER, POD, 54, 4000)), Reason::NoRule);
}

#[test]
fn a_packet_without_a_flow_is_not_allowed_because_its_reverse_would_be() {
    let world = server();
    assert_eq!(world.send(&from_pod(ACK)), Reason::NoRule);
    assert_eq!(world.send(&from_pod(SYN | ACK)), Reason::NoRule);
    assert_eq!(world.send(&frames::udp(POD, PEER, 80, 4000)), Reason::NoRule);
}

#[test]
fn after_adoption_the_reverse_is_tried_for_a_while() {
    let mut world = server();
    world.options.reverse_until = 1010;
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed);
    assert_eq!(world.only_flow(FlowTable::Confirmed).initiator, initiator::PEER);
    assert_eq!(world.send(&frames::tcp(POD, PEER, 81, 4000, ACK)), Reason::NoRule);
    assert_eq!(world.send(&from_pod(SYN)), Reason::NoRule);
    world.now = 1010;
    assert_eq!(world.send(&frames::tcp(POD, PEER, 80, 4001, ACK)), Reason::NoRule);
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed);
}

#[test]
fn a_connection_that_was_there_before_goes_on_in_its_own_orientation() {
    let world = server();
    assert_eq!(world.receive(&to_pod(ACK)), Reason::Passed);
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed);
}

#[test]
fn a_syn_is_always_judged_as_new() {
    let mut world = server();
    connected(&world);
    // From the pod, on the ports of the connection: a new one the other way round.
    assert_eq!(world.send(&from_pod(SYN)), Reason::NoRule);
    assert_eq!(world.receive(&to_pod(ACK)), Reason::Passed, "a denied SYN does not touch the live flow");
    world.rules.clear();
    assert_eq!(world.receive(&to_pod(SYN)), Reason::NoRule, "also before the epoch has changed");
}

#[test]
fn a_reused_port_is_a_new_flow_until_its_syn_ack_confirms_it() {
    let mut world = server();
    connected(&world);
    let old = world.only_flow(FlowTable::Confirmed);
    world.now += 40;
    assert_eq!(world.receive(&to_pod(SYN)), Reason::Passed);
    assert_eq!(world.only_flow(FlowTable::Confirmed).last_seen, old.last_seen);
    // A challenge ACK of the old connection does not confirm the new one.
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed);
    assert_eq!(world.flows(FlowTable::Embryonic), 1);
    assert_eq!(world.send(&from_pod(SYN | ACK)), Reason::Passed);
    assert_eq!(world.flows(FlowTable::Embryonic), 0);
}

#[test]
fn a_retransmitted_syn_costs_no_second_token() {
    let mut world = server();
    world.settings.as_mut().unwrap().flows = Bucket { cost: 1_000_000_000_000, burst: 1_000_000_000_000 };
    for _ in 0..3 {
        assert_eq!(world.receive(&to_pod(SYN)), Reason::Passed);
    }
    assert_eq!(world.receive(&frames::tcp(PEER, POD, 4001, 80, SYN)), Reason::FlowRate);
}

#[test]
fn new_flows_and_first_replies_pay_and_the_node_does_not() {
    let mut world = server();
    world.settings.as_mut().unwrap().flows = Bucket { cost: 1_000_000_000_000, burst: 2_000_000_000_000 };
    connected(&world);
    assert_eq!(world.receive(&frames::tcp(PEER, POD, 4001, 80, SYN)), Reason::FlowRate);
    assert_eq!(world.receive(&frames::udp(PEER, POD, 4000, 80)), Reason::Passed, "connections cost datagrams nothing");
    assert_eq!(world.receive_from_node(&frames::tcp(NODE, POD, 4000, 81, SYN)), Reason::Passed);
    assert_eq!(world.send(&frames::tcp(POD, NODE, 81, 4000, SYN | ACK)), Reason::Passed);
    world.now += 1000;
    assert_eq!(world.receive(&frames::tcp(PEER, POD, 4001, 80, SYN)), Reason::Passed);
}

#[test]
fn a_pod_that_nothing_isolates_is_rate_limited_too() {
    let mut world = World::isolated();
    world.word = EndpointWord::new(SET_ALLOW_ALL, 2);
    world.settings.as_mut().unwrap().flows = Bucket { cost: 1 << 40, burst: 1 << 40 };
    assert_eq!(world.send(&frames::udp(POD, PEER, 1, 2)), Reason::Passed);
    assert_eq!(world.send(&frames::udp(POD, PEER, 3, 2)), Reason::FlowRate);
}

#[test]
fn a_flow_that_cannot_be_written_is_dropped() {
    let mut world = server();
    world.full = true;
    assert_eq!(world.receive(&to_pod(SYN)), Reason::FlowTableFull);
}

#[test]
fn a_revoked_permission_cuts_its_connection_from_both_sides() {
    let mut world = server();
    connected(&world);
    world.revoke();
    assert_eq!(world.send(&from_pod(ACK)), Reason::Revoked);
    assert_eq!((world.flows(FlowTable::Confirmed), world.flows(FlowTable::Tombstones)), (0, 1));
    assert_eq!(world.receive(&to_pod(ACK)), Reason::Revoked);
}

#[test]
fn a_retransmission_does_not_revive_a_revoked_flow_the_other_way_round() {
    let mut world = server();
    connected(&world);
    world.revoke();
    // Egress is open now: the pod's own packet would be allowed if the connection were new.
    let mut world = world.allow(Direction::Egress, PEER_CLASS, PROTOCOL_ANY, 9, &[]);
    assert_eq!(world.send(&from_pod(ACK)), Reason::Revoked);
    world.now += u64::from(timeout::CONNECTION);
    assert_eq!(world.send(&from_pod(ACK)), Reason::Revoked, "what it drops renews the tombstone");
    world.now += u64::from(timeout::CONNECTION);
    assert_eq!(world.send(&from_pod(ACK)), Reason::Revoked);
    // A SYN is another connection.
    assert_eq!(world.send(&from_pod(SYN)), Reason::Passed);
    assert_eq!(world.flows(FlowTable::Tombstones), 0);
}

#[test]
fn a_tombstone_of_udp_lasts_one_idle_timeout() {
    let mut world = server();
    assert_eq!(world.receive(&frames::udp(PEER, POD, 4000, 80)), Reason::Passed);
    assert_eq!(world.send(&frames::udp(POD, PEER, 80, 4000)), Reason::Passed);
    world.revoke();
    let mut world = world.allow(Direction::Egress, PEER_CLASS, PROTOCOL_ANY, 9, &[]);
    for _ in 0..2 {
        assert_eq!(world.send(&frames::udp(POD, PEER, 80, 4000)), Reason::Revoked);
        world.now += u64::from(timeout::UDP / 2);
    }
    world.now += 2;
    assert_eq!(world.send(&frames::udp(POD, PEER, 80, 4000)), Reason::Passed);
}

#[test]
fn a_permission_that_comes_back_brings_its_flows_back() {
    let mut world = server();
    connected(&world);
    let rules = world.rules.clone();
    world.revoke();
    assert_eq!(world.send(&from_pod(ACK)), Reason::Revoked);
    world.next_epoch();
    assert_eq!(world.receive(&to_pod(ACK)), Reason::Revoked, "judged anew, with the same answer");
    world.rules = rules;
    world.next_epoch();
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed);
    assert_eq!((world.flows(FlowTable::Confirmed), world.flows(FlowTable::Tombstones)), (1, 0));
}

#[test]
fn a_new_epoch_with_the_same_answer_only_refreshes_the_flow() {
    let mut world = server();
    connected(&world);
    world.next_epoch();
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed);
    assert_eq!(world.only_flow(FlowTable::Confirmed).epoch, world.word.epoch());
    world.rules.clear();
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed, "rows alone do not cut a flow, the epoch does");
}

#[test]
fn a_switch_keeps_established_flows() {
    let mut world = server();
    connected(&world);
    world.settings.as_mut().unwrap().flags |= setting_flags::KEEP_ESTABLISHED;
    world.revoke();
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed);
    assert_eq!(world.receive(&to_pod(SYN)), Reason::NoRule);
}

#[test]
fn the_own_nodes_flows_outlive_every_policy() {
    let mut world = World::isolated();
    assert_eq!(world.receive_from_node(&frames::tcp(NODE, POD, 4000, 80, SYN)), Reason::Passed);
    assert_eq!(world.send(&frames::tcp(POD, NODE, 80, 4000, SYN | ACK)), Reason::Passed);
    world.revoke();
    assert_eq!(world.send(&frames::tcp(POD, NODE, 80, 4000, ACK)), Reason::Passed);
    // The same tuple, forwarded: another sender behind the node's address.
    assert_eq!(world.receive(&frames::tcp(NODE, POD, 4000, 80, ACK)), Reason::NoRule);
    assert_eq!(world.receive_from_node(&frames::tcp(NODE, POD, 4000, 80, ACK)), Reason::Passed);
}

#[test]
fn an_idle_flow_expires_and_a_busy_one_does_not() {
    let mut world = server();
    assert_eq!(world.receive(&frames::udp(PEER, POD, 4000, 80)), Reason::Passed);
    world.now += u64::from(timeout::UDP_UNREPLIED);
    assert_eq!(world.send(&frames::udp(POD, PEER, 80, 4000)), Reason::Passed);
    for _ in 0..3 {
        world.now += u64::from(timeout::UDP);
        assert_eq!(world.send(&frames::udp(POD, PEER, 80, 4000)), Reason::Passed);
    }
    world.now += u64::from(timeout::UDP) + 1;
    assert_eq!(world.send(&frames::udp(POD, PEER, 80, 4000)), Reason::NoRule);
}

#[test]
fn an_unanswered_datagram_expires_sooner() {
    let mut world = server();
    assert_eq!(world.receive(&frames::udp(PEER, POD, 4000, 80)), Reason::Passed);
    world.now += u64::from(timeout::UDP_UNREPLIED) + 1;
    assert_eq!(world.send(&frames::udp(POD, PEER, 80, 4000)), Reason::NoRule);
}

#[test]
fn an_echo_expires_and_what_is_answered_in_time_does_not() {
    let mut world = World::isolated().allow(Direction::Ingress, PEER_CLASS, PROTOCOL_ANY, 4, &[]);
    let request = frames::echo(PEER, POD, true, 9);
    let reply = frames::echo(POD, PEER, false, 9);
    assert_eq!(world.receive(&request), Reason::Passed);
    for _ in 0..3 {
        world.now += u64::from(timeout::ICMP);
        assert_eq!(world.send(&reply), Reason::Passed);
    }
    world.now += u64::from(timeout::ICMP) + 1;
    assert_eq!(world.send(&reply), Reason::NoFlow);
    // Nor is one that was never answered for ever.
    assert_eq!(world.receive(&request), Reason::Passed);
    world.now += u64::from(timeout::ICMP) + 1;
    assert_eq!(world.send(&reply), Reason::NoFlow);
    assert_eq!(world.receive(&request), Reason::Passed, "a request is one of its own");
    assert_eq!(world.send(&reply), Reason::Passed);
}

#[test]
fn last_seen_is_written_at_most_once_a_second() {
    let mut world = server();
    connected(&world);
    let before = world.only_flow(FlowTable::Confirmed).last_seen;
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed);
    assert_eq!(world.only_flow(FlowTable::Confirmed).last_seen, before);
    world.now += 1;
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed);
    assert_eq!(world.only_flow(FlowTable::Confirmed).last_seen, before + 1);
}

#[test]
fn an_echo_request_of_one_side_is_no_reply_to_the_other() {
    let world = World::isolated().allow(Direction::Ingress, PEER_CLASS, PROTOCOL_ANY, 4, &[]);
    for id in [0, 9] {
        assert_eq!(world.receive(&frames::echo(PEER, POD, true, id)), Reason::Passed);
        assert_eq!(world.send(&frames::echo(POD, PEER, true, id)), Reason::NoRule);
        assert_eq!(world.send(&frames::echo(POD, PEER, false, id)), Reason::Passed);
        assert_eq!(world.send(&frames::echo(POD, PEER, true, id)), Reason::NoRule);
    }
    assert_eq!(world.send(&frames::echo(POD, PEER, false, 77)), Reason::NoFlow);
}

#[test]
fn an_error_belongs_to_the_flow_it_quotes() {
    let world = client();
    let sent = frames::udp(POD, PEER, 5000, 80);
    assert_eq!(world.send(&sent), Reason::Passed);
    // From any router on the way.
    assert_eq!(world.receive(&frames::icmp_error(STRANGER, POD, &sent)), Reason::Passed);
    assert_eq!(world.flows(FlowTable::Confirmed), 0, "an error is no reply");
    let never_sent = frames::udp(POD, PEER, 5001, 80);
    assert_eq!(world.receive(&frames::icmp_error(STRANGER, POD, &never_sent)), Reason::NoFlow);
}

#[test]
fn an_error_of_the_pod_goes_back_to_the_sender_or_nowhere() {
    let world = server();
    let received = frames::udp(PEER, POD, 4000, 80);
    assert_eq!(world.receive(&received), Reason::Passed);
    assert_eq!(world.send(&frames::icmp_error(POD, PEER, &received)), Reason::Passed);
    assert_eq!(world.send(&frames::icmp_error(POD, STRANGER, &received)), Reason::NoFlow);
}

#[test]
fn an_error_about_a_revoked_flow_is_dropped() {
    let mut world = client();
    let sent = frames::udp(POD, PEER, 5000, 80);
    assert_eq!(world.send(&sent), Reason::Passed);
    world.revoke();
    assert_eq!(world.receive(&frames::icmp_error(STRANGER, POD, &sent)), Reason::Revoked);
}

#[test]
fn an_sctp_init_opens_and_a_stray_chunk_does_not() {
    let init = frames::ipv4(PEER, POD, protocol::SCTP, &frames::sctp_packet(4000, 80, 1));
    let data = frames::ipv4(POD, PEER, protocol::SCTP, &frames::sctp_packet(80, 4000, 0));
    let answer = frames::ipv4(POD, PEER, protocol::SCTP, &frames::sctp_packet(80, 4000, 2));
    let world = World::isolated().allow(Direction::Ingress, PEER_CLASS, protocol::SCTP, 4, &[80]);
    assert_eq!(world.send(&data), Reason::NoRule);
    assert_eq!(world.receive(&init), Reason::Passed);
    assert_eq!(world.send(&answer), Reason::Passed);
    assert_eq!(world.send(&data), Reason::Passed);
}

#[test]
fn an_account_that_is_used_up_leaves_the_others_theirs() {
    let mut world = World::isolated();
    world.word = EndpointWord::new(SET_ALLOW_ALL, 2);
    world.settings.as_mut().unwrap().share = 1;
    let held = |world: &World| (world.flows(FlowTable::Confirmed), world.flows(FlowTable::OverConfirmed));
    for port in [1, 2] {
        assert_eq!(world.receive(&frames::udp(PEER, POD, port, 53)), Reason::Passed);
        assert_eq!(world.send(&frames::udp(POD, PEER, 53, port)), Reason::Passed);
    }
    assert_eq!(held(&world), (1, 1));
    connected(&world);
    assert_eq!(held(&world), (2, 1), "a connection of a peer");
    assert_eq!(world.send(&frames::udp(POD, PEER, 5000, 53)), Reason::Passed);
    assert_eq!(world.receive(&frames::udp(PEER, POD, 53, 5000)), Reason::Passed);
    assert_eq!(held(&world), (3, 1), "a datagram of the pod");
    assert_eq!(world.receive_from_node(&frames::tcp(NODE, POD, 4000, 81, SYN)), Reason::Passed);
    assert_eq!(world.send(&frames::tcp(POD, NODE, 81, 4000, SYN | ACK)), Reason::Passed);
    assert_eq!(held(&world), (4, 1), "the own node's");
}

#[test]
fn a_flow_over_its_share_passes_like_others_and_gets_a_place_when_there_is_one() {
    let mut world = server();
    world.settings.as_mut().unwrap().share = 1;
    connected(&world);
    assert_eq!(world.receive(&frames::tcp(PEER, POD, 4001, 80, SYN)), Reason::Passed);
    assert_eq!(world.send(&frames::tcp(POD, PEER, 80, 4001, SYN | ACK)), Reason::Passed);
    assert_eq!(world.only_flow(FlowTable::OverConfirmed).phase, phase::REPLIED);
    assert_eq!(world.send(&frames::tcp(POD, PEER, 80, 4001, ACK)), Reason::Passed);
    // The other one ends.
    assert_eq!(world.send(&from_pod(tcp_flags::FIN | ACK)), Reason::Passed);
    assert_eq!(world.flows(FlowTable::Confirmed), 0);
    world.now += 1;
    assert_eq!(world.send(&frames::tcp(POD, PEER, 80, 4001, ACK)), Reason::Passed);
    assert_eq!((world.flows(FlowTable::Confirmed), world.flows(FlowTable::OverConfirmed)), (1, 1));
    // What has ended is still that connection, and no policy of its own.
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed);
    world.revoke();
    assert_eq!(world.send(&from_pod(ACK)), Reason::Revoked);
    assert_eq!(world.flows(FlowTable::OverConfirmed), 0);
}

#[test]
fn a_connection_outlives_a_reset_that_its_own_ends_did_not_believe() {
    let mut world = server();
    connected(&world);
    assert_eq!(world.receive(&to_pod(tcp_flags::RST)), Reason::Passed);
    world.now += 3600;
    let data = frames::tcp_data(POD, PEER, 80, 4000, ACK, b"still there");
    assert_eq!(world.send(&data), Reason::Passed);
    assert_eq!(world.only_flow(FlowTable::Confirmed).phase, phase::REPLIED);
    assert_eq!(world.receive(&to_pod(tcp_flags::RST)), Reason::Passed);
    world.now += u64::from(timeout::FINISHED) + 1;
    assert_eq!(world.send(&data), Reason::NoRule);
}

#[test]
fn a_refused_connection_takes_no_place() {
    let world = server();
    assert_eq!(world.receive(&to_pod(SYN)), Reason::Passed);
    assert_eq!(world.send(&from_pod(tcp_flags::RST | ACK)), Reason::Passed);
    assert_eq!((world.flows(FlowTable::Confirmed), world.flows(FlowTable::OverConfirmed)), (0, 1));
}

#[test]
fn tombstones_beyond_an_accounts_budget_are_kept_where_only_such_evict_each_other() {
    let mut world = server();
    world.settings.as_mut().unwrap().tombstones = Bucket { cost: 1_000_000_000_000, burst: 1_000_000_000_000 };
    let ports = [4000, 4001];
    for port in ports {
        assert_eq!(world.receive(&frames::tcp(PEER, POD, port, 80, SYN)), Reason::Passed);
        assert_eq!(world.send(&frames::tcp(POD, PEER, 80, port, SYN | ACK)), Reason::Passed);
    }
    let rules = world.rules.clone();
    world.revoke();
    let mut world = world.allow(Direction::Egress, PEER_CLASS, PROTOCOL_ANY, 9, &[]);
    let buried = |world: &World| (world.flows(FlowTable::Tombstones), world.flows(FlowTable::OverTombstones));
    let dropped = |world: &World| {
        for port in ports {
            let sent = frames::tcp(POD, PEER, 80, port, ACK);
            assert_eq!(world.send(&sent), Reason::Revoked, "the pod may send, but not in that connection");
        }
    };
    dropped(&world);
    assert_eq!(buried(&world), (1, 1));
    // What it drops renews it, and a change judges it anew, where it is.
    world.now += u64::from(timeout::CONNECTION);
    dropped(&world);
    world.next_epoch();
    dropped(&world);
    assert_eq!(buried(&world), (1, 1));
    assert_eq!(world.send(&frames::tcp(POD, PEER, 80, 4001, SYN)), Reason::Passed);
    assert_eq!(buried(&world), (1, 0), "a SYN is another connection");
    world.rules = rules;
    world.next_epoch();
    assert_eq!(world.receive(&to_pod(ACK)), Reason::Passed);
    assert_eq!(buried(&world), (0, 0));
}

#[test]
fn the_own_nodes_flows_hold_no_more_than_their_shares() {
    let mut world = World::isolated();
    world.settings.as_mut().unwrap().share = 1;
    for port in 0..=OWN_NODE_SHARES as u16 {
        assert_eq!(world.receive_from_node(&frames::tcp(NODE, POD, 4000 + port, 80, SYN)), Reason::Passed);
        assert_eq!(world.send(&frames::tcp(POD, NODE, 80, 4000 + port, SYN | ACK)), Reason::Passed);
    }
    let flows = (world.flows(FlowTable::Confirmed), world.flows(FlowTable::OverConfirmed));
    assert_eq!(flows, (OWN_NODE_SHARES as usize, 1));
}

#[test]
fn a_flow_that_two_replies_confirm_at_once_is_in_one_table() {
    let world = server();
    assert_eq!(world.receive(&to_pod(SYN)), Reason::Passed);
    // Another CPU's, between this one's look for the flow and its adding it.
    world.meanwhile(FlowTable::Confirmed, |written, key, row| {
        let _none = written.confirmed.insert(*key, *row);
    });
    assert_eq!(world.send(&from_pod(SYN | ACK)), Reason::Passed);
    assert_eq!((world.flows(FlowTable::Confirmed), world.flows(FlowTable::OverConfirmed)), (1, 0));
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed);
}

#[test]
fn a_flow_that_one_cpu_ends_while_another_goes_on_with_it_is_still_there() {
    let world = server();
    connected(&world);
    // Having got it where what has ended is, the other one takes it back to its place.
    world.meanwhile(FlowTable::OverConfirmed, |written, key, row| {
        let _replaced = written.confirmed.insert(*key, *row);
        let _moved = written.over_confirmed.remove(key);
    });
    assert_eq!(world.send(&from_pod(tcp_flags::FIN | ACK)), Reason::Passed);
    assert_eq!((world.flows(FlowTable::Confirmed), world.flows(FlowTable::OverConfirmed)), (0, 1));
    assert_eq!(world.send(&from_pod(ACK)), Reason::Passed);
}
