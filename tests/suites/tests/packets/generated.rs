//! Generated clusters and packets: the API text, the verdict function and the loaded programs, three ways to one answer.

use std::net::IpAddr;

use netpol_common::abi::{Direction, EndpointWord, PROTOCOL_ANY};
use netpol_common::verdict::Reason;
use netpol_policy::compile::{Capacities, Compiler, MapOp, Snapshot};
use netpol_policy::oracle;
use netpol_policy::testing::{NODE, Random, World};
use netpol_suites::frames::{self, ipv4, ipv6};

use super::both::{Both, ENDPOINT, IFINDEX_OF_POD, PEER, PEER_CLASS, PEER6, POD, POD6, SET, STRANGER, UPLINK, bytes};

/// Source ports that no generated policy names, so that no flow looks like the reply of another.
const FIRST_SOURCE_PORT: u16 = 20_000;
const LAST_SOURCE_PORT: u16 = 60_000;

/// Number of generated cases: `NETPOL_PROPERTY_CASES`, else the default.
fn cases(default: u64) -> u64 {
    std::env::var("NETPOL_PROPERTY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default)
}

#[test]
fn the_api_text_the_verdict_function_and_the_programs_agree() {
    let (mut cells, mut allowed) = (0_u64, 0_u64);
    for seed in 0..cases(8) {
        let world = World::new(seed);
        let mut both = Both::pending();
        let mut compiler = Compiler::new(NODE, Capacities::default(), Snapshot::default());
        world.everything().into_iter().for_each(|change| compiler.apply(change));
        let plan = compiler.plan(1);
        for op in plan.ops {
            both.apply(op);
        }
        let mut source_port = FIRST_SOURCE_PORT;
        for (number, endpoint) in &world.endpoints {
            let Some(pod) = world.pod(endpoint) else { continue };
            both.bring_up(*number);
            both.forget_flows();
            for own in &pod.addresses {
                for peer in world.addresses() {
                    for (protocol, port) in World::packets() {
                        for direction in [Direction::Ingress, Direction::Egress] {
                            let (source, destination, ask) = match direction {
                                Direction::Ingress => (peer, *own, oracle::ingress as fn(&_, &_, _, _, _) -> _),
                                Direction::Egress => (*own, peer, oracle::egress as fn(&_, &_, _, _, _) -> _),
                            };
                            // Each question has a flow of its own; without ports there is only one of each kind.
                            source_port += 1;
                            if source_port == LAST_SOURCE_PORT {
                                source_port = FIRST_SOURCE_PORT;
                                both.forget_flows();
                            }
                            let payload = frames::opening(protocol, source_port, port.unwrap_or_default());
                            let Some(frame) = frames::ip(source, destination, protocol, &payload) else { continue };
                            if port.is_none() {
                                both.forget_flows();
                            }
                            let reason = both.judge(direction, &frame, UPLINK);
                            if !matches!(reason, Reason::Passed | Reason::NoRule) {
                                continue;
                            }
                            let expected = ask(&world.cluster, pod, peer, protocol, port);
                            assert_eq!(
                                reason == Reason::Passed,
                                expected,
                                "seed {seed}: {direction:?} {source} {destination} {protocol} {port:?}"
                            );
                            cells += 1;
                            allowed += u64::from(expected);
                        }
                    }
                }
            }
        }
    }
    println!("{cells} cells agree three ways, {allowed} of them allowed");
    let number = usize::try_from(cells).expect("a number of cells");
    netpol_suites::cells::report("packets-three-ways", "dual", "-", number, 0).expect("the cells are told");
    assert!(allowed > 0 && allowed < cells);
}

/// One of a few addresses, ports and kinds, so that packets meet each other's flows.
fn packet(random: &mut Random, direction: Direction) -> Vec<u8> {
    let peers = [PEER, STRANGER, super::both::NODE];
    let peer = *random.pick(&peers);
    let peer_port = *random.pick(&[4000, 80, 8472, 0]);
    let pod_port = *random.pick(&[80, 443, 0]);
    let (source_port, port) = match direction {
        Direction::Ingress => (peer_port, pod_port),
        Direction::Egress => (pod_port, peer_port),
    };
    let flags = *random.pick(&[0x02, 0x12, 0x10, 0x10, 0x11, 0x04]);
    let data: &[u8] = if random.chance(50) { b"data" } else { b"" };
    let (protocol, payload) = match random.below(8) {
        0..=2 => (6, frames::tcp(source_port, port, flags, data)),
        3 => (17, frames::udp(source_port, port, data)),
        4 => (132, frames::sctp(source_port, port, *random.pick(&[0, 1, 2, 6, 7]))),
        5 => (1, frames::icmp(*random.pick(&[0, 8, 13, 14, 9, 17]), *random.pick(&[0, 7]), data)),
        6 => {
            let quoted = match direction {
                Direction::Ingress => ipv4(POD, peer, 17, 0, &[], &frames::udp(pod_port, peer_port, b"")),
                Direction::Egress => ipv4(peer, POD, 17, 0, &[], &frames::udp(peer_port, pod_port, b"")),
            };
            (1, frames::icmp(*random.pick(&[3, 5, 11]), 0, &quoted[14..]))
        }
        _ => (*random.pick(&[47, 50, 4]), vec![0; 24]),
    };
    if random.chance(25) {
        let protocol = if protocol == 1 { 58 } else { protocol };
        return match direction {
            Direction::Ingress => ipv6(PEER6, POD6, protocol, 64, &payload),
            Direction::Egress => ipv6(POD6, PEER6, protocol, 64, &payload),
        };
    }
    let pod = if random.chance(3) { STRANGER } else { POD };
    let fragment = *random.pick(&[0, 0, 0, 0, 0, 0, 0x2000, 0x2002, 3]);
    let options: &[u8] = if random.chance(10) { &[1, 1, 7, 4, 0, 0, 0, 0] } else { &[] };
    match direction {
        Direction::Ingress => ipv4(peer, pod, protocol, fragment, options, &payload),
        Direction::Egress => ipv4(pod, peer, protocol, fragment, options, &payload),
    }
}

/// Permissions change, pods come and go, and packets of all kinds cross each other.
#[test]
fn the_programs_and_the_verdict_function_remember_alike() {
    let (mut packets, mut passed) = (0_u64, 0_u64);
    for seed in 0..cases(40) {
        let mut random = Random::new(seed);
        let mut both = Both::isolated();
        let mut epoch = 9;
        for _ in 0..400 {
            match random.below(40) {
                0 => {
                    let direction = *random.pick(&[Direction::Ingress, Direction::Egress]);
                    let protocol = *random.pick(&[6, 17, 132, PROTOCOL_ANY]);
                    let ports: &[u16] = if protocol == PROTOCOL_ANY { &[] } else { &[80] };
                    both.allow(direction, PEER_CLASS, protocol, 4, ports);
                }
                1 | 2 => {
                    epoch += 1;
                    let set = *random.pick(&[SET, SET, 1, 2, 0]);
                    both.apply(MapOp::SetWord { endpoint: ENDPOINT, word: EndpointWord::new(set, epoch) });
                }
                3 => {
                    let mut frame = packet(&mut random, Direction::Egress);
                    let at = 14 + random.below(frame.len() - 14);
                    frame[at] ^= 1 << random.below(8);
                    let _ = both.send(&frame);
                }
                _ => {
                    let direction = *random.pick(&[Direction::Ingress, Direction::Egress]);
                    let frame = packet(&mut random, direction);
                    let ingress = match direction {
                        Direction::Ingress => *random.pick(&[UPLINK, UPLINK, 0]),
                        Direction::Egress => IFINDEX_OF_POD,
                    };
                    passed += u64::from(both.judge(direction, &frame, ingress) == Reason::Passed);
                }
            }
        }
        both.compare_flows();
        packets += both.packets;
    }
    println!("{packets} packets, {passed} of them passed, no difference");
    assert!(passed > 0 && passed < packets);
}

#[test]
fn addresses_are_written_alike_everywhere() {
    assert_eq!(bytes(IpAddr::from(POD)), netpol_common::abi::mapped(POD));
}
