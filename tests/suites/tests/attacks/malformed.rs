//! Packets whose headers lie, hide, or lead elsewhere: parsing fails closed (decision D8).

use netpol_suites::frames::{SYN, addressed, ipv4, ipv6, tcp, udp};
use serde_json::{Value, json};

use super::Attack;
use super::scene::{PORT, Scene, only, policy, v4, v6};
use super::wire::icmpv6;

const MARKER: &[u8] = b"read me if you can";

/// What an attack of this kind takes: the victim lets everybody in, and the bridge hands on what it would itself refuse,
/// for which it must not call netfilter.
fn hidden(frames: &dyn Fn(&Scene) -> Vec<Vec<u8>>, reason: &str) {
    Attack {
        node: &|scene| {
            scene.on_node("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0");
        },
        frames,
        marker: MARKER,
        target: "victim",
        policies: everything(),
        unchecked: false,
        counted: ("egress", reason),
    }
    .prove();
}

/// The attacker may send anything to everybody, which isolates it all the same.
fn everything() -> Vec<Value> {
    vec![policy("all", &json!({ "podSelector": only("attacker"), "policyTypes": ["Egress"], "egress": [{}] }))]
}

fn to_victim(scene: &Scene, frame: Vec<u8>) -> Vec<Vec<u8>> {
    vec![addressed(frame, scene.mac("attacker"), scene.mac("victim"))]
}

/// An extension header of eight bytes that says what follows; four bytes that mean nothing to a host.
fn extension(next: u8) -> [u8; 8] {
    [next, 0, 1, 4, 0, 0, 0, 0]
}

#[test]
fn a_packet_that_says_it_is_longer_than_it_is_goes_nowhere() {
    hidden(
        &|scene| {
            let mut frame = ipv4(v4(10), v4(11), 17, 0, &[], &udp(5000, PORT, MARKER));
            let length = u16::from_be_bytes([frame[16], frame[17]]) + 1;
            frame[16..18].copy_from_slice(&length.to_be_bytes());
            to_victim(scene, frame)
        },
        "truncated",
    );
}

#[test]
fn a_header_that_contradicts_itself_goes_nowhere() {
    hidden(
        &|scene| {
            let mut frame = tcp_frame();
            // A data offset of four words: the header would end before it does.
            frame[14 + 20 + 12] = 0x40;
            to_victim(scene, frame)
        },
        "malformed",
    );
}

fn tcp_frame() -> Vec<u8> {
    ipv4(v4(10), v4(11), 6, 0, &[], &tcp(5000, PORT, SYN, MARKER))
}

#[test]
fn a_routing_header_with_segments_left_goes_nowhere() {
    hidden(
        &|scene| {
            // Type 4, as segment routing's, one segment left: the victim is not where it ends.
            let mut routing = vec![17, 2, 4, 1, 0, 0, 0, 0];
            routing.extend(v6(12));
            routing.extend(udp(5000, PORT, MARKER));
            to_victim(scene, ipv6(v6(10), v6(11), 43, 64, &routing))
        },
        "source_route",
    );
}

#[test]
fn ports_behind_more_extension_headers_than_are_walked_are_not_guessed() {
    hidden(
        &|scene| {
            let mut payload = Vec::new();
            for _ in 0..8 {
                payload.extend(extension(60));
            }
            payload.extend(extension(17));
            payload.extend(udp(5000, PORT, MARKER));
            to_victim(scene, ipv6(v6(10), v6(11), 60, 64, &payload))
        },
        "extension_headers",
    );
}

/// A neighbour advertisement for a target, with the marker in an option that nobody knows.
fn advertisement(target: [u8; 16], hop_limit: u8) -> Vec<u8> {
    // Solicited, override.
    let mut message = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend(target);
    message.extend([200, 3]);
    message.extend(MARKER);
    message.resize(24 + 24, 0);
    icmpv6(v6(10), v6(11), hop_limit, message)
}

#[test]
fn a_neighbour_advertisement_of_somebody_elses_address_is_not_heard() {
    hidden(&|scene| to_victim(scene, advertisement(v6(12), 255)), "spoofed_source");
}

#[test]
fn neighbour_discovery_that_a_router_has_forwarded_is_not_heard() {
    hidden(&|scene| to_victim(scene, advertisement(v6(10), 254)), "neighbor_discovery");
}
