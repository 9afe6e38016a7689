//! Below and beside IP: tags, other pods' hardware addresses, the overlay's port, router advertisements (decision D8).
//! What is in an IP packet is sent in both families.

use std::net::IpAddr;

use netpol_suites::frames::{addressed, arp, ethernet, icmp, ipv4, udp};
use serde_json::{Value, json};

use super::Attack;
use super::family::Family;
use super::scene::{OUTSIDE6, PORT, Scene, only, policy, v4, v6};
use super::wire::icmpv6;

const MARKER: &[u8] = b"nobody else would say this";

/// Nobody may send to the victim.
fn nobody() -> Vec<Value> {
    vec![policy("nobody", &json!({ "podSelector": only("victim"), "policyTypes": ["Ingress"] }))]
}

fn nothing_special(_scene: &Scene) {}

/// To the victim's own hardware address.
fn to_victim(scene: &Scene, frame: Vec<u8>) -> Vec<Vec<u8>> {
    vec![addressed(frame, scene.mac("attacker"), scene.mac("victim"))]
}

#[test]
fn a_priority_tag_does_not_carry_a_packet_past_the_policy() {
    for (family, tag) in Family::BOTH.into_iter().flat_map(|family| [0_u16, 7].map(|tag| (family, tag))) {
        Attack {
            node: &nothing_special,
            frames: &|scene| {
                let plain = family.datagram((family.pod(10), 5000), (family.pod(11), PORT), MARKER);
                let mut frame = plain[..12].to_vec();
                frame.extend([0x81, 0]);
                frame.extend((0xe000 | tag).to_be_bytes());
                frame.extend(&plain[12..]);
                to_victim(scene, frame)
            },
            marker: MARKER,
            target: "victim",
            policies: nobody(),
            unchecked: false,
            counted: ("egress", "vlan_tag"),
        }
        .prove();
    }
}

#[test]
fn a_frame_to_another_pods_hardware_address_is_not_delivered_by_its_outside_address() {
    for family in Family::BOTH {
        let cidr = format!("{}/{}", family.outside(), family.bits());
        let block = json!([{ "to": [{ "ipBlock": { "cidr": cidr } }] }]);
        let out = json!({ "podSelector": only("attacker"), "policyTypes": ["Egress"], "egress": block });
        Attack {
            node: &nothing_special,
            frames: &|scene| {
                to_victim(scene, family.datagram((family.pod(10), 5000), (family.outside(), PORT), MARKER))
            },
            marker: MARKER,
            target: "victim",
            policies: vec![policy("outside-only", &out)],
            unchecked: false,
            counted: ("ingress", "not_mine"),
        }
        .prove();
    }
}

#[test]
fn a_frame_for_the_overlay_is_not_unwrapped_by_the_node() {
    for family in Family::BOTH {
        // A pod of another node, in Flannel's block of that one, and Flannel's own address here.
        let (other, own): (IpAddr, IpAddr) = match family {
            Family::V4 => ([10, 244, 9, 9].into(), [10, 244, 0, 0].into()),
            Family::V6 => ([0xfd00, 0x10, 0x244, 9, 0, 0, 0, 9].into(), [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0].into()),
        };
        let (uplink, bits) = (family.uplink(), family.bits());
        Attack {
            node: &|scene| {
                scene.on_node(&format!(
                    "ip link add flannel.1 address 0a:00:00:00:00:01 type vxlan id 1 local {uplink} dev eth0 \
                                                                                      dstport 8472 nolearning
                     ip addr add {own}/{bits} dev flannel.1
                     ip link set flannel.1 up"
                ));
            },
            frames: &|scene| {
                // As if from a pod of another node, which is what a policy would see.
                let inner = family.datagram((other, 5000), (family.pod(11), PORT), MARKER);
                let inner = addressed(inner, [0x0a, 0, 0, 0, 0, 9], [0x0a, 0, 0, 0, 0, 1]);
                let vxlan = [&[0x08, 0, 0, 0, 0, 0, 1, 0][..], &inner].concat();
                let to = |node| {
                    let frame = family.datagram((family.pod(10), 5000), (node, 8472), &vxlan);
                    addressed(frame, scene.mac("attacker"), scene.router())
                };
                [uplink, family.pod(1)].map(to).to_vec()
            },
            marker: MARKER,
            target: "victim",
            // Nothing isolates anybody: it is dropped all the same.
            policies: Vec::new(),
            unchecked: false,
            counted: ("egress", "overlay"),
        }
        .prove();
    }
}

/// Of IPv6 only: IPv4's router discovery (RFC 1256) is heard by no kernel.
#[test]
fn a_router_advertisement_of_a_pod_reaches_nobody() {
    Attack {
        node: &nothing_special,
        frames: &|scene| {
            let mac = scene.mac("attacker");
            let mut link_local = [0; 16];
            link_local[..2].copy_from_slice(&[0xfe, 0x80]);
            link_local[8..].copy_from_slice(&[mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]]);
            let mut all_nodes = [0; 16];
            (all_nodes[0], all_nodes[1], all_nodes[15]) = (0xff, 2, 1);
            // Hop limit 64, lifetime 1800 s; an option that nobody knows holds the marker.
            let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
            message.extend([200, 4]);
            message.extend(MARKER);
            message.resize(16 + 32, 0);
            vec![addressed(icmpv6(link_local, all_nodes, 255, message), mac, [0x33, 0x33, 0, 0, 0, 1])]
        },
        marker: MARKER,
        target: "victim",
        policies: Vec::new(),
        unchecked: false,
        counted: ("egress", "neighbor_discovery"),
    }
    .prove();
}

/// An option of IPv4; IPv6 has routing headers, which `malformed` has.
#[test]
fn a_source_routed_packet_goes_nowhere() {
    // Loose source route, already at its end.
    let options = [131, 7, 8, 10, 244, 0, 12, 0];
    Attack {
        // The bridge of the kernel refuses it as well where netfilter sees bridged packets.
        node: &|scene| scene.on_node("sysctl -qw net.bridge.bridge-nf-call-iptables=0"),
        frames: &|scene| to_victim(scene, ipv4(v4(10), v4(11), 17, 0, &options, &udp(5000, PORT, MARKER))),
        marker: MARKER,
        target: "victim",
        policies: Vec::new(),
        unchecked: false,
        counted: ("egress", "source_route"),
    }
    .prove();
}

/// IPv6 has neighbour discovery instead, which `malformed` has.
#[test]
fn an_arp_request_in_somebody_elses_name_is_not_heard() {
    // The sender's hardware address in the packet is the marker: six bytes that nobody has.
    let marker = [0x02, 0xba, 0xdb, 0xad, 0xba, 0xd0];
    Attack {
        node: &nothing_special,
        frames: &|scene| {
            let mut frame = arp(v4(12), v4(11));
            frame[22..28].copy_from_slice(&marker);
            to_victim(scene, frame)
        },
        marker: &marker,
        target: "victim",
        policies: Vec::new(),
        unchecked: false,
        counted: ("egress", "spoofed_source"),
    }
    .prove();
}

#[test]
fn a_packet_with_another_pods_address_is_dropped_in_both_families() {
    for family in Family::BOTH {
        let bystander = json!([{ "from": [{ "podSelector": only("bystander") }] }]);
        let from = json!({ "podSelector": only("victim"), "policyTypes": ["Ingress"], "ingress": bystander });
        Attack {
            node: &nothing_special,
            frames: &|scene| to_victim(scene, family.datagram((family.pod(12), 5000), (family.pod(11), PORT), MARKER)),
            marker: MARKER,
            target: "victim",
            policies: vec![policy("bystander-only", &from)],
            unchecked: false,
            counted: ("egress", "spoofed_source"),
        }
        .prove();
    }
}

#[test]
fn an_icmp_redirect_of_a_pod_reaches_nobody() {
    for family in Family::BOTH {
        let kind = match family {
            Family::V4 => 5,
            Family::V6 => 137,
        };
        Attack {
            node: &nothing_special,
            frames: &|scene| {
                // To a host outside by way of the attacker: gateway, or target and destination (RFC 4861, section 4.5).
                let mut message = icmp(kind, 0, b"");
                match family {
                    Family::V4 => message[4..8].copy_from_slice(&v4(10)),
                    Family::V6 => {
                        message[4..8].fill(0);
                        message.extend(v6(10));
                        message.extend(OUTSIDE6);
                    }
                }
                message.extend(MARKER);
                to_victim(scene, family.icmp(family.pod(10), family.pod(11), &message))
            },
            marker: MARKER,
            target: "victim",
            policies: Vec::new(),
            unchecked: false,
            counted: ("egress", "neighbor_discovery"),
        }
        .prove();
    }
}

/// Of neither family.
#[test]
fn an_ether_type_that_is_no_internet_protocol_does_not_reach_an_isolated_pod() {
    Attack {
        node: &nothing_special,
        frames: &|scene| to_victim(scene, ethernet(0x88b5, &[MARKER, &[0; 40]].concat())),
        marker: MARKER,
        target: "victim",
        policies: nobody(),
        unchecked: false,
        counted: ("ingress", "ethertype"),
    }
    .prove();
}
