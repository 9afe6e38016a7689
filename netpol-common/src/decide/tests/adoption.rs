//! Pods that ran before the agent did: everything passes until their policy is in force, nobody has said who began what
//! was there before, and for a while the first packet that is heard is only a guess at it (decisions D5 and D13).

use std::vec::Vec;

use super::{NODE, PEER, PEER_CLASS, POD, STRANGER, World};
use crate::abi::{
    CLASS_NONE, ClassRow, Direction, EndpointWord, SET_ALLOW_ALL, address_kind, initiator, mapped, phase, stamp,
};
use crate::parse::{frames, protocol, tcp_flags};
use crate::tables::FlowTable;
use crate::verdict::Reason;

const ACK: u8 = tcp_flags::ACK;

/// Lets its peers reach TCP and UDP port 80, and nobody else anything.
fn server(world: World) -> World {
    world.allow(Direction::Ingress, PEER_CLASS, protocol::TCP, 4, &[80]).allow(
        Direction::Ingress,
        PEER_CLASS,
        protocol::UDP,
        5,
        &[80],
    )
}

/// Adopts the pod; answers the word that puts its policy in force.
fn adopt(world: &mut World) -> EndpointWord {
    world.options.reverse_until = 1010;
    let isolated = world.word;
    world.word = EndpointWord::new(SET_ALLOW_ALL, isolated.epoch() - 1);
    isolated
}

fn answer(to: [u8; 4]) -> Vec<u8> {
    frames::tcp(POD, to, 80, 4000, ACK)
}

fn question(from: [u8; 4]) -> Vec<u8> {
    frames::tcp(from, POD, 4000, 80, ACK)
}

#[test]
fn a_guess_is_corrected_whatever_the_pods_number_and_its_peer_are() {
    // Small numbers are also states of a stamp, which is what a flow of the pod's own keeps where a peer's flow keeps
    // the sender's number; which state it is depends on the peer.
    for endpoint in 1..=4 {
        for (peer, kind) in
            [(PEER, address_kind::POD), (STRANGER, address_kind::OTHER), (NODE, address_kind::THIS_NODE)]
        {
            let mut world = server(World::isolated());
            let _other = world.classes.insert(mapped(peer), ClassRow { kind, class: PEER_CLASS });
            world.renumber(endpoint);
            let isolated = adopt(&mut world);
            assert_eq!(world.send(&answer(peer)), Reason::Passed);
            let guessed = world.only_flow(FlowTable::Embryonic);
            assert_eq!((guessed.initiator, guessed.phase & phase::GUESSED), (initiator::POD, phase::GUESSED));
            world.word = isolated;
            assert_eq!(world.send(&answer(peer)), Reason::Passed, "endpoint {endpoint}, peer {peer:?}");
            assert_eq!(world.receive(&question(peer)), Reason::Passed, "endpoint {endpoint}, peer {peer:?}");
            assert_eq!(world.only_flow(FlowTable::Confirmed).initiator, initiator::PEER);
        }
    }
}

#[test]
fn a_wrong_guess_about_datagrams_is_forgotten_and_not_held_against_them() {
    let mut world = server(World::isolated());
    let isolated = adopt(&mut world);
    let sent = frames::udp(POD, PEER, 80, 4000);
    assert_eq!(world.send(&sent), Reason::Passed);
    world.word = isolated;
    // What the pod sends may be a beginning as well, so it does not turn the flow round.
    assert_eq!(world.send(&sent), Reason::Revoked);
    assert_eq!(world.send(&sent), Reason::NoRule);
    assert_eq!(world.receive(&frames::udp(PEER, POD, 4000, 80)), Reason::Passed);
    assert_eq!(world.send(&sent), Reason::Passed);
}

#[test]
fn a_connection_of_the_own_node_goes_on_whoever_is_heard_first() {
    for first in [Direction::Egress, Direction::Ingress] {
        let mut world = World::isolated();
        // Until the node's addresses are written, its packets are anybody's.
        let row = world.classes.insert(mapped(NODE), ClassRow { kind: address_kind::OTHER, class: CLASS_NONE });
        let isolated = adopt(&mut world);
        assert_eq!(
            match first {
                Direction::Egress => world.send(&answer(NODE)),
                Direction::Ingress => world.receive_from_node(&question(NODE)),
            },
            Reason::Passed
        );
        let _unknown = world.classes.insert(mapped(NODE), row.unwrap());
        world.word = isolated;
        // TCP repeats what is lost.
        let _perhaps_lost = world.send(&answer(NODE));
        let _perhaps_lost = world.receive_from_node(&question(NODE));
        assert_eq!(world.receive_from_node(&question(NODE)), Reason::Passed, "{first:?}");
        assert_eq!(world.send(&answer(NODE)), Reason::Passed, "{first:?}");
        assert_eq!(world.flows(FlowTable::Tombstones), 0);
    }
}

#[test]
fn a_connection_to_a_service_goes_on_whoever_is_heard_first() {
    let mut world = World::cluster();
    let isolated = adopt(&mut world);
    assert_eq!(world.receive(&super::services::from_service(ACK)), Reason::Passed);
    world.word = isolated;
    let to_service = super::services::to_service(ACK);
    let _perhaps_lost = world.stamped(&to_service);
    assert_eq!(world.stamped(&to_service), (Reason::Passed, stamp::DEFERRED));
    assert_eq!(world.receive(&super::services::from_service(ACK)), Reason::Passed);
}

#[test]
fn after_the_window_a_guess_counts_for_what_it_says() {
    let mut world = server(World::isolated());
    let isolated = adopt(&mut world);
    assert_eq!(world.send(&answer(PEER)), Reason::Passed);
    world.word = isolated;
    world.now = 1010;
    assert_eq!(world.send(&answer(PEER)), Reason::Revoked);
    assert_eq!(world.flows(FlowTable::Tombstones), 1);
    assert_eq!(world.receive(&question(PEER)), Reason::Revoked);
}
