//! Packets that pretend to come from the pod's own node, which every policy lets in (decision D7), in both families.

use netpol_suites::frames::addressed;
use serde_json::json;

use super::Attack;
use super::family::Family;
use super::scene::{PORT, only, policy, shell};

const MARKER: &[u8] = b"this is your node speaking";

/// The address check is off for the attacker, as for a pod that carries addresses of others, so that it is the victim's
/// side that has to tell.
#[test]
fn the_nodes_address_does_not_make_a_bridged_packet_the_nodes_own() {
    // Without bridge-nf-call a bridged packet still has its sender's socket when it is delivered.
    for (family, filtered) in Family::BOTH.into_iter().flat_map(|family| [(family, "1"), (family, "0")]) {
        let switch = format!("sysctl -qw net.bridge.bridge-nf-call-{}tables={filtered}", family.table());
        let nobody = json!({ "podSelector": only("victim"), "policyTypes": ["Ingress"] });
        Attack {
            node: &|scene| scene.on_node(&switch),
            frames: &|scene| {
                let as_the_node = |node| {
                    let frame = family.datagram((node, 5000), (family.pod(11), PORT), MARKER);
                    addressed(frame, scene.mac("attacker"), scene.mac("victim"))
                };
                [family.pod(1), family.uplink()].map(as_the_node).to_vec()
            },
            marker: MARKER,
            target: "victim",
            policies: vec![policy("nobody", &nobody)],
            unchecked: true,
            counted: ("ingress", "no_rule"),
        }
        .prove();
    }
}

#[test]
fn an_address_that_a_pod_gives_itself_is_not_its_own() {
    // Anybody with NET_ADMIN in the pod can: what the agent finds inside is no proof.
    let bystander = json!([{ "from": [{ "podSelector": only("bystander") }] }]);
    let from = json!({ "podSelector": only("victim"), "policyTypes": ["Ingress"], "ingress": bystander });
    for family in Family::BOTH {
        let address = family.pod(12);
        Attack {
            node: &|scene| {
                let place = scene.pod("attacker").network().place();
                shell(&place, &format!("ip addr add {address}/{} dev eth0", family.bits()));
            },
            frames: &|scene| {
                let frame = family.datagram((address, 5000), (family.pod(11), PORT), MARKER);
                vec![addressed(frame, scene.mac("attacker"), scene.mac("victim"))]
            },
            marker: MARKER,
            target: "victim",
            policies: vec![policy("bystander-only", &from)],
            unchecked: false,
            counted: ("egress", "spoofed_source"),
        }
        .prove();
    }
}
