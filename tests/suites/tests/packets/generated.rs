//! Generated clusters and packets: the API text, the verdict function and the loaded programs, three ways to one answer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::abi::{
    Direction, EndpointWord, InterfaceRow, LocalBackend, PROTOCOL_ANY, ServiceKey, ServiceRow, Settings,
    interface_flags, mapped, programs, setting_flags, stamp,
};
use netpol_common::verdict::Reason;
use netpol_policy::compile::{Capacities, Compiler, MapOp, Snapshot};
use netpol_policy::oracle;
use netpol_policy::testing::{NODE, Random, World};
use netpol_suites::cells;
use netpol_suites::frames::{self, ipv4};
use netpol_suites::programs::Arrival;

use super::both::{
    BRIDGE, Both, ENDPOINT, IFINDEX_OF_POD, MARK_SHIFT, NODE as NODE_ADDRESS, PEER, PEER_CLASS, PEER6, POD, POD6,
    SENDER, SENDER_SET, SENDER_VETH, SET, STRANGER, UPLINK, bytes,
};
use super::ipv6;

/// Source ports that no generated policy names, so that no flow looks like the reply of another.
const FIRST_SOURCE_PORT: u16 = 20_000;
const LAST_SOURCE_PORT: u16 = 60_000;

/// Number of generated cases: `NETPOL_PROPERTY_CASES`, else the default.
fn cases(default: u64) -> u64 {
    std::env::var("NETPOL_PROPERTY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default)
}

/// Addresses that no generated world uses: a Service may lead anywhere.
const SERVICE: [u8; 4] = [198, 18, 77, 9];
const SERVICE6: [u8; 16] = [0xfd, 0xff, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

/// Sends a packet, and if the pod's veth defers it, lets the packet that a proxy has made of it leave the node.
fn send(both: &mut Both, asked: &[u8], rewritten: &[u8]) -> Reason {
    let arrival = Arrival { ingress_ifindex: IFINDEX_OF_POD, mark: 0 };
    let (reason, judged) = both.judge_as(programs::POD_EGRESS, asked, arrival);
    let state = stamp::state(stamp::of_mark(judged.mark, MARK_SHIFT));
    if !judged.passed || state == stamp::JUDGED {
        return reason;
    }
    let arrival = Arrival { ingress_ifindex: BRIDGE, mark: judged.mark };
    both.judge_as(programs::HOST_EGRESS, rewritten, arrival).0
}

/// Tells of packets that were all judged alike: the first one that is not fails its test.
fn told(suite: &str, packets: u64) {
    let packets = usize::try_from(packets).expect("a number of packets");
    cells::report(suite, "dual", "-", packets, 0).expect("the file for rows");
}

#[test]
fn the_api_text_the_verdict_function_and_the_programs_agree() {
    let (mut cells, mut allowed, mut through_services) = (0_u64, 0_u64, 0_u64);
    for seed in 0..cases(8) {
        let world = World::new(seed);
        let mut both = Both::pending();
        let mut compiler = Compiler::new(NODE, Capacities::default(), Snapshot::default());
        world.everything().into_iter().for_each(|change| compiler.apply(change));
        let plan = compiler.plan(1);
        for op in plan.ops {
            both.apply(op);
        }
        both.add_device(BRIDGE, InterfaceRow { endpoint: 0, flags: interface_flags::POD_BRIDGE });
        for (address, length) in [(IpAddr::from(SERVICE), 24), (IpAddr::from(SERVICE6), 112)] {
            both.apply(MapOp::PutServiceCidr(IpNet::new(address, length).unwrap().trunc()));
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
                            let reason = match direction {
                                Direction::Ingress => both.judge(direction, &frame, UPLINK),
                                // Nobody has rewritten the destination: what was deferred is judged by the same one.
                                Direction::Egress => send(&mut both, &frame, &frame),
                            };
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
                            let service = if own.is_ipv4() { SERVICE.into() } else { SERVICE6.into() };
                            if direction == Direction::Egress
                                && port.is_some()
                                && let Some(asked) = frames::ip(source, service, protocol, &payload)
                            {
                                let reason = send(&mut both, &asked, &frame);
                                assert_eq!(
                                    reason == Reason::Passed,
                                    expected,
                                    "seed {seed}: {source} to {destination}"
                                );
                                through_services += 1;
                            }
                        }
                    }
                }
            }
        }
        both.compare();
    }
    println!(
        "{cells} cells agree three ways, {allowed} of them allowed; {through_services} again through a Service's address"
    );
    told("packets, three ways", cells + through_services);
    assert!(allowed > 0 && allowed < cells);
}

/// One of a few addresses, ports and kinds, so that packets meet each other's flows.
fn packet(random: &mut Random, direction: Direction) -> Vec<u8> {
    let peers = [PEER, STRANGER, NODE_ADDRESS];
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
    if random.chance(2) {
        return ipv6::listener(random, direction == Direction::Egress);
    }
    if random.chance(35) {
        let protocol = if protocol == 1 { 58 } else { protocol };
        return match direction {
            Direction::Ingress => ipv6::packet(random, PEER6, POD6, protocol, &payload),
            Direction::Egress => ipv6::packet(random, POD6, PEER6, protocol, &payload),
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
    // Of each kind of IPv6 packet, how many were dropped and passed.
    let mut kinds: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
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
                    let passes = both.judge(direction, &frame, ingress) == Reason::Passed;
                    passed += u64::from(passes);
                    if let Some(kind) = ipv6::kind(&frame) {
                        kinds.entry(kind).or_default()[usize::from(passes)] += 1;
                    }
                }
            }
        }
        both.compare();
        packets += both.packets;
    }
    println!("{packets} packets, {passed} of them passed, no difference; IPv6 dropped and passed: {kinds:?}");
    told("packets, in a row", packets);
    assert!(passed > 0 && passed < packets);
    // Alike is also what two sides say that drop all of a kind unseen.
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    assert!(kinds.values().flatten().all(|packets| *packets > 0), "{kinds:?}");
}

/// A service, a backend of it on this node, or none.
fn service(random: &mut Random) -> MapOp {
    let key = ServiceKey {
        address: *random.pick(&[mapped(STRANGER), mapped(NODE_ADDRESS), [0; 16]]),
        port: random.pick(&[80_u16, 4000]).to_be_bytes(),
        protocol: *random.pick(&[6, 17]),
        pad: 0,
    };
    if random.chance(25) {
        return MapOp::RemoveService(key);
    }
    let mut row = ServiceRow { count: random.below(6) as u32, ..ServiceRow::default() };
    for backend in &mut row.local {
        let address = *random.pick(&[NODE_ADDRESS, NODE_ADDRESS, PEER]);
        *backend = LocalBackend { address: mapped(address), port: 80_u16.to_be_bytes(), pad: [0; 2] };
    }
    MapOp::PutService(key, row)
}

/// Stamps of all kinds, believed and not, at every program, while services and permissions change.
#[test]
fn the_programs_and_the_verdict_function_defer_and_decide_alike() {
    let (mut packets, mut passed) = (0_u64, 0_u64);
    for seed in 0..cases(40) {
        let mut random = Random::new(1000 + seed);
        let mut both = Both::isolated();
        both.add_sender();
        let mut epoch = 9;
        for _ in 0..400 {
            match random.below(40) {
                0 | 1 => {
                    let set = *random.pick(&[SET, SENDER_SET]);
                    let direction = *random.pick(&[Direction::Ingress, Direction::Egress]);
                    let protocol = *random.pick(&[6, 17, 132, PROTOCOL_ANY]);
                    let ports: &[u16] = if protocol == PROTOCOL_ANY { &[] } else { &[80] };
                    both.allow_in(set, direction, *random.pick(&[0, PEER_CLASS]), protocol, 4, ports);
                }
                2 | 3 => {
                    epoch += 1;
                    let (endpoint, own) = *random.pick(&[(ENDPOINT, SET), (SENDER, SENDER_SET)]);
                    let set = *random.pick(&[own, own, own, 1, 2, 0]);
                    both.apply(MapOp::SetWord { endpoint, word: EndpointWord::new(set, epoch) });
                }
                4 | 5 => both.apply(service(&mut random)),
                6 => {
                    let range = IpNet::new(IpAddr::from(STRANGER), 32).unwrap();
                    let add = random.chance(50);
                    both.apply(if add { MapOp::PutServiceCidr(range) } else { MapOp::RemoveServiceCidr(range) });
                }
                7 => {
                    let flags = *random.pick(&[0, 0, setting_flags::ARMED, setting_flags::KEEP_ESTABLISHED]);
                    both.settings(Settings { flags, mark_shift: MARK_SHIFT, ..Settings::default() });
                }
                _ => {
                    let program = *random.pick(&[programs::POD_EGRESS, programs::POD_INGRESS, programs::HOST_EGRESS]);
                    let direction =
                        if program == programs::POD_EGRESS { Direction::Egress } else { Direction::Ingress };
                    let mut frame = packet(&mut random, direction);
                    if random.chance(3) {
                        let at = 14 + random.below(frame.len() - 14);
                        frame[at] ^= 1 << random.below(8);
                    }
                    let state = *random.pick(&[0, 1, 1, 2, 2, 2, 3]);
                    let stamp = stamp::new(state, *random.pick(&[SENDER, SENDER, SENDER, ENDPOINT, 0]));
                    let ingress_ifindex = match direction {
                        Direction::Egress => IFINDEX_OF_POD,
                        Direction::Ingress => *random.pick(&[BRIDGE, BRIDGE, SENDER_VETH, UPLINK, 0]),
                    };
                    let mark = stamp::into_mark(0x4000, MARK_SHIFT, stamp);
                    let (_, judged) = both.judge_as(program, &frame, Arrival { ingress_ifindex, mark });
                    passed += u64::from(judged.passed);
                }
            }
        }
        both.compare();
        packets += both.packets;
    }
    println!("{packets} packets with and without stamps, {passed} of them passed, no difference");
    told("packets, stamped", packets);
    assert!(passed > 0 && passed < packets);
}

#[test]
fn addresses_are_written_alike_everywhere() {
    assert_eq!(bytes(IpAddr::from(POD)), mapped(POD));
}
