//! Packets that pretend to come from the pod's own node, which every policy lets in (decision D7).

use std::process::Command;

use netpol_suites::frames::{addressed, ipv4, udp};
use serde_json::json;

use super::Attack;
use super::scene::{PORT, only, policy, v4};

const MARKER: &[u8] = b"this is your node speaking";

/// The address check is off for the attacker, as for a pod that carries addresses of others, so that it is the victim's
/// side that has to tell.
#[test]
fn the_nodes_address_does_not_make_a_bridged_packet_the_nodes_own() {
    // Without bridge-nf-call a bridged packet still has its sender's socket when it is delivered.
    for filtered in ["1", "0"] {
        let nobody = json!({ "podSelector": only("victim"), "policyTypes": ["Ingress"] });
        Attack {
            node: &|scene| scene.on_node(&format!("sysctl -qw net.bridge.bridge-nf-call-iptables={filtered}")),
            frames: &|scene| {
                let as_the_node = |node| {
                    let frame = ipv4(node, v4(11), 17, 0, &[], &udp(5000, PORT, MARKER));
                    addressed(frame, scene.mac("attacker"), scene.mac("victim"))
                };
                [v4(1), [198, 18, 0, 2]].map(as_the_node).to_vec()
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
    Attack {
        node: &|scene| {
            let place = scene.pod("attacker").network().place();
            let add = || Ok(Command::new("ip").args(["addr", "add", "10.244.0.12/32", "dev", "eth0"]).status()?);
            assert!(place.run(add).unwrap().success());
        },
        frames: &|scene| {
            let frame = ipv4(v4(12), v4(11), 17, 0, &[], &udp(5000, PORT, MARKER));
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
