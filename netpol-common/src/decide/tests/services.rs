//! Services (decision D6): what is said of a destination that is not the last one, and who says the rest of it.

use std::vec::Vec;

use super::{
    ENDPOINT, IFINDEX, MARK_SHIFT, NODE, OTHER_NODE, PEER, PEER_CLASS, PEER6, POD, SENDER, SENDER_SET, SET, STRANGER,
    World,
};
use crate::abi::{
    ClassRow, Direction, EndpointWord, InterfaceRow, LOCAL_BACKENDS, LocalBackend, PROTOCOL_ANY, SENDER_UNKNOWN,
    SET_ALLOW_ALL, ServiceKey, ServiceRow, address_kind, admission, interface_flags, mapped, setting_flags, stamp,
};
use crate::decide::{Exit, Scratch, judge_leaving};
use crate::flow::timeout;
use crate::parse::{FromNetworkHeader, frames, protocol, tcp_flags};
use crate::tables::FlowTable;
use crate::verdict::{Reason, Verdict};

const SYN: u8 = tcp_flags::SYN;
const ACK: u8 = tcp_flags::ACK;
const SERVICE: [u8; 4] = [10, 96, 0, 10];
/// A backend of it that [`SENDER`] may not be allowed to reach.
const BACKEND_CLASS: u32 = 6;
/// The pod bridge, the veth of [`SENDER`], and a device that is no pod's.
const BRIDGE: u32 = 4;
const VETH: u32 = 5;
const UPLINK: u32 = 2;
const DEFERRED: u16 = stamp::DEFERRED;
const UNLESS_LOCAL: u16 = stamp::DEFERRED_UNLESS_LOCAL;
const JUDGED: u16 = stamp::JUDGED;

fn mark(state: u16, endpoint: u32) -> u32 {
    // The lower half belongs to others.
    stamp::into_mark(0x4000, MARK_SHIFT, stamp::new(state, endpoint))
}

fn service(address: [u8; 4], port: u16) -> ServiceKey {
    ServiceKey { address: mapped(address), port: port.to_be_bytes(), protocol: protocol::TCP, pad: 0 }
}

fn backends(local: &[([u8; 4], u16)]) -> ServiceRow {
    let mut row = ServiceRow { count: local.len() as u32, ..ServiceRow::default() };
    for (slot, (address, port)) in row.local.iter_mut().zip(local) {
        *slot = LocalBackend { address: mapped(*address), port: port.to_be_bytes(), pad: [0; 2] };
    }
    row
}

impl World {
    /// A service, the pod bridge and another pod's veth.
    pub(super) fn cluster() -> Self {
        let mut world = Self::isolated();
        let _ = world.services.insert(service(SERVICE, 80), ServiceRow::default());
        let _ = world.others.insert(BRIDGE, InterfaceRow { endpoint: 0, flags: interface_flags::POD_BRIDGE });
        let _ = world.others.insert(VETH, InterfaceRow { endpoint: SENDER, flags: interface_flags::POD_VETH });
        let _ = world.others.insert(UPLINK, InterfaceRow { endpoint: 0, flags: interface_flags::HOOKED });
        let own = ClassRow { kind: address_kind::POD, class: BACKEND_CLASS };
        let _ = world.classes.insert(mapped(POD), own);
        world
    }

    /// The same, where the pod lets everybody in, and [`SENDER`] may reach it on port 8080.
    fn backend() -> Self {
        Self::cluster().allow(Direction::Ingress, PEER_CLASS, PROTOCOL_ANY, 4, &[]).allow_in(
            SENDER_SET,
            Direction::Egress,
            BACKEND_CLASS,
            protocol::TCP,
            7,
            &[8080],
        )
    }

    /// What becomes of what the pod sends, and the state of its stamp.
    pub(super) fn stamped(&self, frame: &[u8]) -> (Reason, u16) {
        let Verdict { reason, mark, .. } = self.verdict_on(frame, Direction::Egress, IFINDEX, true, 0x4000);
        let stamp = stamp::of_mark(mark, MARK_SHIFT);
        if reason == Reason::Passed {
            assert_eq!((stamp::endpoint(stamp), mark & 0xffff), (ENDPOINT, 0x4000));
        }
        (reason, stamp::state(stamp))
    }

    fn receive_stamped(&self, frame: &[u8], by: u32, mark: u32) -> Verdict {
        self.verdict_on(frame, Direction::Ingress, by, false, mark)
    }

    fn leaves(&self, frame: &[u8], by: u32, mark: u32) -> Verdict {
        let is_ip = frame[12] < 0x81;
        let exit = Exit { ifindex: UPLINK, mark, ingress_ifindex: by, is_ip, segments: 1 };
        let clock = || self.now * 1_000_000_000;
        judge_leaving(self, &FromNetworkHeader(frame), &exit, clock, &mut Scratch::new())
    }

    fn counted(&self) -> u64 {
        self.written.borrow().counters.values().map(|counter| counter.packets).sum()
    }
}

pub(super) fn to_service(flags: u8) -> Vec<u8> {
    frames::tcp(POD, SERVICE, 4000, 80, flags)
}

pub(super) fn from_service(flags: u8) -> Vec<u8> {
    frames::tcp(SERVICE, POD, 80, 4000, flags)
}

/// From the other pod, after the proxy.
fn to_backend(flags: u8) -> Vec<u8> {
    frames::tcp(PEER, POD, 4000, 8080, flags)
}

#[test]
fn what_goes_to_a_pod_is_judged_finally() {
    let world = World::cluster().allow(Direction::Egress, PEER_CLASS, protocol::TCP, 4, &[80]);
    assert_eq!(world.stamped(&frames::tcp(POD, PEER, 4000, 80, SYN)), (Reason::Passed, JUDGED));
    assert_eq!(world.receive(&frames::tcp(PEER, POD, 80, 4000, SYN | ACK)), Reason::Passed);
    assert_eq!(world.stamped(&frames::tcp(POD, PEER, 4000, 80, ACK)), (Reason::Passed, JUDGED));
    assert_eq!(world.packets(ENDPOINT, Direction::Egress, Reason::Passed), 2);
}

#[test]
fn what_goes_to_a_service_is_deferred_and_not_counted() {
    let world = World::cluster();
    assert_eq!(world.stamped(&to_service(SYN)), (Reason::Passed, DEFERRED));
    let flow = world.only_flow(FlowTable::Embryonic);
    assert_eq!((flow.admission, flow.stamp), (admission::DEFERRED, DEFERRED));
    assert_eq!(world.counted(), 0);
    assert_eq!(world.receive(&from_service(SYN | ACK)), Reason::Passed, "replies come in");
    assert_eq!(world.stamped(&to_service(ACK)), (Reason::Passed, DEFERRED));
    assert_eq!(world.receive(&frames::tcp(SERVICE, POD, 81, 4000, ACK)), Reason::NoRule);
    assert_eq!(world.send(&frames::tcp(POD, SERVICE, 4000, 81, SYN)), Reason::NoRule);
    assert_eq!(world.send(&frames::udp(POD, SERVICE, 4000, 80)), Reason::NoRule);
}

#[test]
fn an_address_of_a_service_range_is_deferred_also_without_its_service() {
    let mut world = World::cluster();
    world.service_ranges.push(mapped([10, 96, 9, 9]));
    assert_eq!(world.stamped(&frames::udp(POD, [10, 96, 9, 9], 4000, 53)), (Reason::Passed, DEFERRED));
    assert_eq!(world.stamped(&frames::echo(POD, [10, 96, 9, 9], true, 7)), (Reason::Passed, DEFERRED));
    assert_eq!(world.send(&frames::echo(POD, [10, 96, 9, 9], false, 8)), Reason::NoFlow, "no reply is deferred");
    let answer = frames::tcp(POD, [10, 96, 9, 9], 4000, 53, SYN | ACK);
    assert_eq!(world.send(&answer), Reason::NoRule);
}

#[test]
fn node_ports_are_on_this_nodes_addresses_only() {
    let mut world = World::cluster();
    let _ = world.services.insert(service([0; 4], 30080), ServiceRow::default());
    let any = ServiceKey { address: [0; 16], ..service([0; 4], 30080) };
    let _ = world.services.insert(any, ServiceRow::default());
    assert_eq!(world.stamped(&frames::tcp(POD, NODE, 4000, 30080, SYN)), (Reason::Passed, DEFERRED));
    assert_eq!(world.send(&frames::tcp(POD, NODE, 4000, 30081, SYN)), Reason::NoRule);
    assert_eq!(world.send(&frames::tcp(POD, OTHER_NODE, 4000, 30080, SYN)), Reason::NoRule);
    assert_eq!(world.send(&frames::tcp(POD, STRANGER, 4000, 30080, SYN)), Reason::NoRule);
}

#[test]
fn other_addresses_are_judged_and_deferred_and_local_ones_unless_delivered_here() {
    let world = World::cluster().allow(Direction::Egress, 0, protocol::TCP, 4, &[80]);
    assert_eq!(world.stamped(&frames::tcp(POD, STRANGER, 4000, 80, SYN)), (Reason::Passed, DEFERRED));
    assert_eq!(world.stamped(&frames::tcp(POD, OTHER_NODE, 4000, 80, SYN)), (Reason::Passed, DEFERRED));
    assert_eq!(world.stamped(&frames::tcp(POD, NODE, 4000, 80, SYN)), (Reason::Passed, UNLESS_LOCAL));
    assert_eq!(world.stamped(&frames::tcp(POD, STRANGER, 4000, 81, SYN)), (Reason::NoRule, DEFERRED));
    // Only the one that may be delivered here was counted here.
    assert_eq!(world.packets(ENDPOINT, Direction::Egress, Reason::Passed), 1);
}

#[test]
fn what_nothing_isolates_is_judged_finally() {
    let mut world = World::cluster();
    world.word = EndpointWord::new(SET_ALLOW_ALL, 2);
    assert_eq!(world.stamped(&to_service(SYN)), (Reason::Passed, JUDGED));
    assert_eq!(world.stamped(&frames::udp(POD, STRANGER, 4000, 53)), (Reason::Passed, JUDGED));
    // Isolated: at its next packet, the connection is one to a Service.
    world.word = EndpointWord::new(SET, 3);
    assert_eq!(world.receive(&from_service(SYN | ACK)), Reason::Passed);
    assert_eq!(world.stamped(&to_service(ACK)), (Reason::Passed, DEFERRED));
    assert_eq!(world.stamped(&frames::udp(POD, STRANGER, 4000, 53)).0, Reason::Revoked);
}

#[test]
fn the_switch_that_keeps_connections_keeps_them_final() {
    let mut world = World::cluster();
    world.settings.as_mut().unwrap().flags |= setting_flags::KEEP_ESTABLISHED;
    world.word = EndpointWord::new(SET_ALLOW_ALL, 2);
    assert_eq!(world.stamped(&to_service(SYN)), (Reason::Passed, JUDGED));
    world.word = EndpointWord::new(SET, 3);
    assert_eq!(world.stamped(&to_service(ACK)), (Reason::Passed, JUDGED));
    assert_eq!(world.stamped(&to_service(SYN)), (Reason::Passed, DEFERRED));
}

#[test]
fn a_service_with_backends_on_the_node_says_whether_all_are_allowed() {
    let mut world = World::cluster().allow(Direction::Egress, 0, protocol::TCP, 4, &[8080]);
    let mut state = |row| {
        let _ = world.services.insert(service(SERVICE, 80), row);
        world.next_epoch();
        world.stamped(&to_service(SYN)).1
    };
    assert_eq!(state(backends(&[(NODE, 8080)])), UNLESS_LOCAL);
    assert_eq!(state(backends(&[(NODE, 8080), (NODE, 8081)])), DEFERRED);
    assert_eq!(state(backends(&[(NODE, 8080); LOCAL_BACKENDS])), UNLESS_LOCAL);
    assert_eq!(state(backends(&[(NODE, 8080); LOCAL_BACKENDS + 1])), DEFERRED);
    assert_eq!(state(backends(&[])), DEFERRED);
    // Of a node port: backends of the other family are none that this packet can be sent to.
    let other = LocalBackend { address: PEER6, port: 9999_u16.to_be_bytes(), pad: [0; 2] };
    let mut both = backends(&[(NODE, 8080), (NODE, 8081)]);
    both.local[1] = other;
    assert_eq!(state(both), UNLESS_LOCAL);
    let mut none_of_this = backends(&[(NODE, 8080)]);
    none_of_this.local[0] = other;
    assert_eq!(state(none_of_this), DEFERRED);
}

#[test]
fn replies_multicast_and_the_links_own_protocols_are_final() {
    let world = World::cluster().allow(Direction::Ingress, 0, protocol::TCP, 4, &[80]).allow(
        Direction::Egress,
        0,
        PROTOCOL_ANY,
        5,
        &[],
    );
    assert_eq!(world.receive(&frames::tcp(STRANGER, POD, 4000, 80, SYN)), Reason::Passed);
    assert_eq!(world.stamped(&frames::tcp(POD, STRANGER, 80, 4000, SYN | ACK)), (Reason::Passed, JUDGED));
    assert_eq!(world.stamped(&frames::tcp(POD, STRANGER, 80, 4000, ACK)), (Reason::Passed, JUDGED));
    assert_eq!(world.stamped(&frames::udp(POD, [224, 0, 0, 251], 5353, 5353)), (Reason::Passed, JUDGED));
    assert_eq!(world.stamped(&frames::arp(POD, NODE)), (Reason::Passed, JUDGED));
}

#[test]
fn a_deferred_flow_lives_by_the_pods_packets_alone() {
    let mut world = World::cluster();
    let _ =
        world.services.insert(ServiceKey { protocol: protocol::UDP, ..service(SERVICE, 80) }, ServiceRow::default());
    assert_eq!(world.send(&frames::udp(POD, SERVICE, 4000, 80)), Reason::Passed);
    assert_eq!(world.receive(&frames::udp(SERVICE, POD, 80, 4000)), Reason::Passed);
    world.now += u64::from(timeout::UDP);
    assert_eq!(world.receive(&frames::udp(SERVICE, POD, 80, 4000)), Reason::Passed);
    world.now += 1;
    assert_eq!(world.receive(&frames::udp(SERVICE, POD, 80, 4000)), Reason::NoRule);
}

#[test]
fn an_epoch_brings_services_and_takes_them_away() {
    let mut world = World::cluster().allow(Direction::Egress, 0, protocol::TCP, 4, &[81]);
    let frame = |flags| frames::tcp(POD, SERVICE, 4000, 81, flags);
    assert_eq!(world.stamped(&frame(SYN)), (Reason::Passed, DEFERRED));
    assert_eq!(world.only_flow(FlowTable::Embryonic).admission, admission::POLICY);
    let _ = world.services.insert(service(SERVICE, 81), ServiceRow::default());
    world.revoke();
    assert_eq!(world.stamped(&frame(ACK)), (Reason::Passed, DEFERRED), "the Service's backends decide now");
    assert_eq!(world.only_flow(FlowTable::Embryonic).admission, admission::DEFERRED);
    world.services.clear();
    assert_eq!(world.stamped(&frame(ACK)), (Reason::Passed, DEFERRED), "rows alone cut nothing");
    world.next_epoch();
    assert_eq!(world.stamped(&frame(ACK)).0, Reason::Revoked);
}

#[test]
fn a_deferred_packet_is_judged_by_its_real_destination_at_delivery() {
    let world = World::backend();
    let verdict = world.receive_stamped(&to_backend(SYN), BRIDGE, mark(DEFERRED, SENDER));
    assert_eq!((verdict.reason, verdict.mark), (Reason::Passed, mark(JUDGED, SENDER)));
    assert_eq!(world.packets(SENDER, Direction::Egress, Reason::Passed), 1);
    assert_eq!(world.packets(ENDPOINT, Direction::Ingress, Reason::Passed), 1);
    let other = frames::tcp(PEER, POD, 4000, 8081, SYN);
    let verdict = world.receive_stamped(&other, BRIDGE, mark(DEFERRED, SENDER));
    assert_eq!((verdict.reason, verdict.endpoint, verdict.direction), (Reason::NoRule, SENDER, Direction::Egress));
    assert_eq!(world.packets(SENDER, Direction::Egress, Reason::NoRule), 1);
    assert_eq!(world.packets(ENDPOINT, Direction::Ingress, Reason::Passed), 1, "the receiver was not asked");
    // Of the established flow too, every packet; and what its veth has judged, not again.
    assert_eq!(world.send(&frames::tcp(POD, PEER, 8080, 4000, SYN | ACK)), Reason::Passed);
    let verdict = world.receive_stamped(&to_backend(ACK), BRIDGE, mark(DEFERRED, SENDER));
    assert_eq!((verdict.reason, verdict.mark), (Reason::Passed, mark(JUDGED, SENDER)));
    let verdict = world.receive_stamped(&to_backend(ACK), BRIDGE, mark(JUDGED, SENDER));
    assert_eq!((verdict.reason, verdict.mark), (Reason::Passed, mark(JUDGED, SENDER)));
    assert_eq!(world.packets(SENDER, Direction::Egress, Reason::Passed), 2);
}

#[test]
fn the_receivers_ingress_is_judged_in_any_case() {
    let mut world = World::backend();
    world.rules.retain(|key, _| key.set == SENDER_SET);
    for state in [JUDGED, DEFERRED] {
        let verdict = world.receive_stamped(&to_backend(SYN), BRIDGE, mark(state, SENDER));
        assert_eq!((verdict.reason, verdict.endpoint), (Reason::NoRule, ENDPOINT));
    }
}

#[test]
fn what_was_decided_is_remembered_until_the_senders_epoch_changes() {
    let mut world = World::backend();
    let deferred = |world: &World, flags| world.leaves(&to_backend(flags), BRIDGE, mark(DEFERRED, SENDER)).reason;
    assert_eq!(deferred(&world, SYN), Reason::Passed);
    world.rules.clear();
    assert_eq!(deferred(&world, ACK), Reason::Passed);
    assert_eq!(deferred(&world, SYN), Reason::NoRule, "what opens a connection is judged as new");
    let mut world = World::backend();
    assert_eq!(deferred(&world, SYN), Reason::Passed);
    let rules = core::mem::take(&mut world.rules);
    world.sender_word = EndpointWord::new(SENDER_SET, 10);
    assert_eq!(deferred(&world, ACK), Reason::Revoked);
    assert_eq!(deferred(&world, ACK), Reason::Revoked);
    world.settings.as_mut().unwrap().flags |= setting_flags::KEEP_ESTABLISHED;
    assert_eq!(deferred(&world, ACK), Reason::Passed);
    assert_eq!(deferred(&world, SYN), Reason::NoRule);
    world.rules = rules;
    world.sender_word = EndpointWord::new(SENDER_SET, 11);
    assert_eq!(deferred(&world, ACK), Reason::Passed);
}

#[test]
fn the_switch_that_keeps_connections_does_not_keep_datagrams_to_a_service_for_ever() {
    let udp = frames::udp(PEER, POD, 4000, 8080);
    let mut world = World::backend().allow_in(SENDER_SET, Direction::Egress, BACKEND_CLASS, protocol::UDP, 8, &[8080]);
    let deferred = |world: &World| world.leaves(&udp, BRIDGE, mark(DEFERRED, SENDER)).reason;
    assert_eq!(deferred(&world), Reason::Passed);
    world.settings.as_mut().unwrap().flags |= setting_flags::KEEP_ESTABLISHED;
    world.rules.clear();
    world.sender_word = EndpointWord::new(SENDER_SET, 10);
    world.now += 3000;
    assert_eq!(deferred(&world), Reason::Revoked, "of the port's earlier use");
}

#[test]
fn a_sender_that_is_gone_or_pending_sends_nothing_deferred() {
    let mut world = World::backend();
    for (endpoint, word) in [(SENDER, EndpointWord(0)), (99, EndpointWord(0)), (0, EndpointWord(0))] {
        world.sender_word = word;
        for verdict in [
            world.receive_stamped(&to_backend(SYN), BRIDGE, mark(DEFERRED, endpoint)),
            world.leaves(&to_backend(SYN), BRIDGE, mark(UNLESS_LOCAL, endpoint)),
        ] {
            assert_eq!((verdict.reason, verdict.endpoint), (Reason::Pending, endpoint));
        }
    }
}

#[test]
fn a_stamp_is_believed_only_where_a_pod_can_have_got_it() {
    let mut world = World::backend();
    // From elsewhere it means nothing: the packet is the stranger's.
    let verdict = world.receive_stamped(&frames::tcp(PEER, POD, 4000, 8081, SYN), UPLINK, mark(DEFERRED, SENDER));
    assert_eq!(verdict.reason, Reason::Passed);
    let cases = [(BRIDGE, mark(0, 0)), (VETH, mark(0, 0)), (VETH, mark(JUDGED, ENDPOINT)), (BRIDGE, mark(0, SENDER))];
    for (by, mark) in cases {
        assert_eq!(world.receive_stamped(&to_backend(SYN), by, mark).reason, Reason::Passed, "not armed yet");
        assert_eq!(world.leaves(&to_backend(SYN), by, mark).reason, Reason::Passed);
    }
    assert_eq!(world.receive_stamped(&to_backend(SYN), VETH, mark(JUDGED, SENDER)).reason, Reason::Passed);
    world.settings.as_mut().unwrap().flags |= setting_flags::ARMED;
    let before = world.counted();
    for (by, mark) in cases {
        for verdict in [world.receive_stamped(&to_backend(SYN), by, mark), world.leaves(&to_backend(SYN), by, mark)] {
            assert_eq!((verdict.reason, verdict.endpoint), (Reason::MarkLost, 0));
        }
    }
    assert_eq!(world.counted(), before + 8);
    assert_eq!(world.packets(0, Direction::Egress, Reason::MarkLost), 8);
    for (by, mark) in [(VETH, mark(JUDGED, SENDER)), (BRIDGE, mark(JUDGED, SENDER)), (UPLINK, 0), (0, 0)] {
        assert_eq!(world.receive_stamped(&to_backend(SYN), by, mark).reason, Reason::Passed);
        assert_eq!(world.leaves(&to_backend(SYN), by, mark).reason, Reason::Passed);
    }
}

#[test]
fn a_lost_stamp_is_noticed_on_an_established_flow_too() {
    let mut world = World::backend();
    world.settings.as_mut().unwrap().flags |= setting_flags::ARMED;
    for by in [BRIDGE, VETH] {
        let from = 4000 + by as u16;
        let frame = |flags| frames::tcp(PEER, POD, from, 8080, flags);
        assert_eq!(world.receive_stamped(&frame(SYN), by, mark(JUDGED, SENDER)).reason, Reason::Passed);
        assert_eq!(world.send(&frames::tcp(POD, PEER, 8080, from, SYN | ACK)), Reason::Passed);
        assert_eq!(world.receive_stamped(&frame(ACK), by, mark(JUDGED, SENDER)).reason, Reason::Passed);
        assert_eq!(world.receive_stamped(&frame(ACK), by, mark(0, SENDER)).reason, Reason::MarkLost);
    }
    let reply = frames::tcp(POD, PEER, 8080, 4005, ACK);
    assert_eq!(world.stamped(&reply), (Reason::Passed, JUDGED));
}

#[test]
fn one_address_and_port_can_be_several_senders() {
    let mut world = World::backend().allow(Direction::Ingress, 0, PROTOCOL_ANY, 4, &[]);
    // Masqueraded to the node's address.
    let frame = |flags| frames::tcp(NODE, POD, 4000, 8080, flags);
    assert_eq!(world.receive_stamped(&frame(SYN), BRIDGE, mark(JUDGED, SENDER)).reason, Reason::Passed);
    assert_eq!(world.send(&frames::tcp(POD, NODE, 8080, 4000, SYN | ACK)), Reason::Passed);
    assert_eq!(world.only_flow(FlowTable::Confirmed).stamp, SENDER as u16);
    world.rules.clear();
    assert_eq!(world.receive_stamped(&frame(ACK), BRIDGE, mark(JUDGED, SENDER)).reason, Reason::Passed);
    assert_eq!(world.receive_stamped(&frame(ACK), BRIDGE, mark(JUDGED, 9)).reason, Reason::NoRule);
    assert_eq!(world.receive_stamped(&frame(ACK), UPLINK, 0).reason, Reason::NoRule);
    assert_eq!(world.receive_from_node(&frame(ACK)), Reason::Passed, "the node is another sender still");
}

#[test]
fn a_flow_from_before_learns_its_sender_from_its_next_packet() {
    let world = World::backend();
    let key = crate::flow::key_of(
        IFINDEX,
        8080_u16.to_be_bytes(),
        4000_u16.to_be_bytes(),
        crate::parse::Address::v4(PEER),
        protocol::TCP,
    );
    let seeded = crate::abi::FlowRow {
        local: mapped(POD),
        endpoint: ENDPOINT,
        epoch: 9,
        last_seen: 1000,
        initiator: crate::abi::initiator::PEER,
        admission: admission::POLICY,
        stamp: SENDER_UNKNOWN,
        ..crate::abi::FlowRow::default()
    };
    let _ = world.written.borrow_mut().confirmed.insert(key, seeded);
    assert_eq!(world.receive_stamped(&to_backend(ACK), BRIDGE, mark(JUDGED, SENDER)).reason, Reason::Passed);
    assert_eq!(world.only_flow(FlowTable::Confirmed).stamp, SENDER as u16);
    assert_eq!(world.flows(FlowTable::Embryonic), 0);
}

#[test]
fn a_flow_learns_no_sender_from_packets_of_a_pod_that_is_not_attached_yet() {
    let world = World::backend();
    for (flags, by) in [(SYN, VETH), (ACK, VETH), (ACK, BRIDGE)] {
        assert_eq!(world.receive_stamped(&to_backend(flags), by, 0).reason, Reason::Passed);
        assert_eq!(world.only_flow(FlowTable::Embryonic).stamp, SENDER_UNKNOWN);
    }
    assert_eq!(world.receive_stamped(&to_backend(ACK), BRIDGE, mark(JUDGED, SENDER)).reason, Reason::Passed);
    assert_eq!(world.only_flow(FlowTable::Embryonic).stamp, SENDER as u16);
    // Another sender's packets are not this flow's from then on.
    assert_eq!(world.receive_stamped(&to_backend(ACK), BRIDGE, mark(JUDGED, SENDER + 1)).reason, Reason::Passed);
    assert_eq!(world.only_flow(FlowTable::Embryonic).stamp, SENDER as u16 + 1, "begun anew");
}

#[test]
fn what_leaves_is_looked_at_only_if_a_veth_deferred_it() {
    let world = World::backend();
    for (by, mark) in [(0, mark(DEFERRED, SENDER)), (UPLINK, mark(DEFERRED, SENDER)), (BRIDGE, mark(JUDGED, SENDER))] {
        let verdict = world.leaves(b"no packet, but nobody reads it", by, mark);
        assert_eq!((verdict.reason, verdict.mark), (Reason::Passed, mark));
    }
    assert_eq!(world.counted(), 0);
    let verdict = world.leaves(&to_backend(SYN), BRIDGE, mark(DEFERRED, SENDER));
    assert_eq!((verdict.reason, verdict.rule, verdict.mark), (Reason::Passed, 7, mark(JUDGED, SENDER)));
    assert_eq!((world.counted(), world.packets(SENDER, Direction::Egress, Reason::Passed)), (1, 1));
    // Counted at the veth already, because it might have been delivered on the node.
    let verdict = world.leaves(&to_backend(SYN), BRIDGE, mark(UNLESS_LOCAL, SENDER));
    assert_eq!((verdict.reason, verdict.mark, world.counted()), (Reason::Passed, mark(JUDGED, SENDER), 1));
    let verdict = world.leaves(&frames::tcp(PEER, POD, 4000, 8081, SYN), BRIDGE, mark(UNLESS_LOCAL, SENDER));
    assert_eq!((verdict.reason, verdict.endpoint, world.counted()), (Reason::NoRule, SENDER, 2));
}

#[test]
fn a_deferred_packet_that_cannot_be_read_is_dropped() {
    let world = World::backend();
    let deferred = mark(DEFERRED, SENDER);
    for (frame, reason) in [
        (frames::arp(POD, NODE), Reason::EtherType),
        (frames::ethernet([0x88, 0x47], &[0x45; 40]), Reason::EtherType),
        (to_backend(SYN)[..40].to_vec(), Reason::Truncated),
        (frames::ipv4(PEER, POD, protocol::UDP, &[0; 4]), Reason::Truncated),
    ] {
        let verdict = world.leaves(&frame, BRIDGE, deferred);
        assert_eq!((verdict.reason, verdict.endpoint), (reason, SENDER), "{frame:02x?}");
        assert!(world.packets(SENDER, Direction::Egress, reason) > 0);
    }
    assert_eq!(world.receive_stamped(&frames::arp(PEER, POD), BRIDGE, deferred).reason, Reason::EtherType);
    assert_eq!(world.receive_stamped(&frames::arp(PEER, POD), BRIDGE, mark(JUDGED, SENDER)).reason, Reason::Passed);
}

#[test]
fn fragments_that_leave_follow_the_first_one() {
    let world = World::backend();
    let segment = frames::tcp_segment(4000, 8080, ACK, &[0; 12]);
    let first = frames::ipv4_with(PEER, POD, protocol::TCP, 0x2000, &[], &segment);
    let later = frames::ipv4_with(PEER, POD, protocol::TCP, 4, &[], &[0; 8]);
    let leaves = |frame: &[u8]| world.leaves(frame, BRIDGE, mark(DEFERRED, SENDER)).reason;
    assert_eq!(leaves(&later), Reason::FragmentUnknown);
    assert_eq!(leaves(&first), Reason::Passed);
    assert_eq!(leaves(&later), Reason::Passed);
}

#[test]
fn an_error_is_judged_by_the_flow_it_speaks_of() {
    let world = World::cluster();
    assert_eq!(world.send(&to_service(SYN)), Reason::Passed);
    let error = frames::icmp_error(POD, SERVICE, &from_service(ACK));
    assert_eq!(world.stamped(&error), (Reason::Passed, DEFERRED));
    let world = World::backend();
    let about = |port| frames::icmp_error(PEER, POD, &frames::tcp(POD, PEER, port, 4000, ACK));
    let leaves = |frame: &[u8]| world.leaves(frame, BRIDGE, mark(DEFERRED, SENDER)).reason;
    assert_eq!(leaves(&about(8080)), Reason::Passed);
    assert_eq!(leaves(&about(8081)), Reason::NoRule);
    // It goes back to where what it quotes came from, or is a packet like any other.
    let elsewhere = frames::icmp_error(PEER, POD, &frames::tcp(STRANGER, PEER, 8080, 4000, ACK));
    assert_eq!(leaves(&elsewhere), Reason::NoRule);
}

#[test]
fn a_pod_that_reaches_itself_through_a_service_is_judged_by_its_own_address() {
    let mut world = World::cluster();
    // Masqueraded: the source is the node's address, which nothing allows.
    let frame = |flags| frames::tcp(NODE, POD, 4000, 8080, flags);
    let deliver = |world: &World, flags| world.receive_stamped(&frame(flags), BRIDGE, mark(DEFERRED, ENDPOINT));
    let verdict = deliver(&world, SYN);
    assert_eq!((verdict.reason, verdict.direction), (Reason::NoRule, Direction::Egress));
    world = world.allow(Direction::Egress, BACKEND_CLASS, protocol::TCP, 8, &[8080]);
    world.next_epoch();
    let verdict = deliver(&world, SYN);
    assert_eq!((verdict.reason, verdict.direction), (Reason::NoRule, Direction::Ingress));
    world = world.allow(Direction::Ingress, BACKEND_CLASS, protocol::TCP, 9, &[8080]);
    world.next_epoch();
    assert_eq!(deliver(&world, SYN).reason, Reason::Passed);
    assert_eq!(world.send(&frames::tcp(POD, NODE, 8080, 4000, SYN | ACK)), Reason::Passed);
    world.next_epoch();
    assert_eq!(deliver(&world, ACK).reason, Reason::Passed, "judged again by its own address");
    world.revoke();
    assert_eq!(world.send(&frames::tcp(POD, NODE, 8080, 4000, ACK)), Reason::Revoked);
}

#[test]
fn a_service_does_not_lead_to_a_nodes_overlay() {
    let world = World::backend().allow_in(SENDER_SET, Direction::Egress, 0, PROTOCOL_ANY, 8, &[]);
    let leaves = |port| world.leaves(&frames::udp(PEER, OTHER_NODE, 4000, port), BRIDGE, mark(DEFERRED, SENDER)).reason;
    assert_eq!(leaves(8472), Reason::Overlay);
    assert_eq!(leaves(8473), Reason::Passed);
}
