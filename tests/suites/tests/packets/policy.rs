use netpol_common::abi::{
    Bucket, CLASS_ANY, Direction, EndpointWord, PROTOCOL_ANY, SET_ALLOW_ALL, SET_DENY_ALL, Settings, setting_flags,
};
use netpol_common::flow::timeout;
use netpol_common::tables::FlowTable;
use netpol_common::verdict::Reason;
use netpol_policy::compile::MapOp;
use netpol_suites::frames::{ACK, FIN, SYN, arp, icmp, ipv4, ipv6, tcp, udp};
use netpol_suites::kernel::{self, Feature};
use netpol_suites::programs::verified_instructions;

use super::both::{Both, ENDPOINT, MARK_SHIFT, NODE, PEER, PEER_CLASS, PEER6, POD, POD6, SET, STRANGER, boot_clock};

fn to_pod(flags: u8) -> Vec<u8> {
    ipv4(PEER, POD, 6, 0, &[], &tcp(4000, 80, flags, &[]))
}

fn from_pod(flags: u8) -> Vec<u8> {
    ipv4(POD, PEER, 6, 0, &[], &tcp(80, 4000, flags, &[]))
}

const fn defaults() -> Settings {
    const UNLIMITED: Bucket = Bucket { cost: 0, burst: 0 };
    Settings {
        flags: 0,
        mark_shift: MARK_SHIFT,
        flows: UNLIMITED,
        opening: UNLIMITED,
        tombstones: UNLIMITED,
        fragments: UNLIMITED,
        share: 0,
        overlay_ports: [[0; 2]; 4],
    }
}

#[test]
fn the_programs_load_and_say_what_that_costs() {
    let both = Both::pending();
    both.kernel.print_loaded();
    let verified = verified_instructions().expect("the verifier's log");
    assert_eq!(verified.len(), 4);
    let counted = kernel::has(Feature::VerifiedInstructions);
    for (loaded, (name, instructions)) in both.kernel.loaded.iter().zip(verified) {
        assert_eq!(loaded.name, name);
        // The verifier's own word, and where the kernel keeps it, what it says of the loaded program.
        assert_eq!(loaded.verified_instructions, counted.then_some(instructions), "{name}");
        kernel::figure("verified instructions", name, &instructions.to_string());
    }
}

#[test]
fn a_connection_passes_both_ways_and_its_reverse_does_not() {
    let mut both = Both::isolated();
    both.allow(Direction::Ingress, PEER_CLASS, 6, 4, &[80]);
    assert_eq!(both.send(&from_pod(ACK)), Reason::NoRule);
    assert_eq!(both.receive(&to_pod(SYN)), Reason::Passed);
    assert_eq!(both.send(&from_pod(SYN | ACK)), Reason::Passed);
    assert_eq!(both.receive(&to_pod(ACK)), Reason::Passed);
    assert_eq!(both.send(&from_pod(ACK)), Reason::Passed);
    assert_eq!(both.send(&from_pod(SYN)), Reason::NoRule);
    let v6 = |port| ipv6(PEER6, POD6, 6, 64, &tcp(4000, port, SYN, &[]));
    assert_eq!(both.receive(&v6(80)), Reason::Passed);
    assert_eq!(both.receive(&v6(81)), Reason::NoRule);
    both.compare();
}

#[test]
fn revocation_cuts_keeps_and_restores() {
    let mut both = Both::isolated();
    both.allow(Direction::Ingress, PEER_CLASS, PROTOCOL_ANY, 4, &[]);
    for frame in [to_pod(SYN), to_pod(ACK)] {
        assert_eq!(both.receive(&frame), Reason::Passed);
    }
    assert_eq!(both.send(&from_pod(SYN | ACK)), Reason::Passed);
    both.settings(Settings { flags: setting_flags::KEEP_ESTABLISHED, ..defaults() });
    both.apply(MapOp::SetWord { endpoint: ENDPOINT, word: EndpointWord::new(SET_DENY_ALL, 10) });
    assert_eq!(both.send(&from_pod(ACK)), Reason::Passed);
    both.settings(defaults());
    both.apply(MapOp::SetWord { endpoint: ENDPOINT, word: EndpointWord::new(SET_DENY_ALL, 11) });
    assert_eq!(both.send(&from_pod(ACK)), Reason::Revoked);
    assert_eq!(both.receive(&to_pod(ACK)), Reason::Revoked);
    both.compare();
    both.apply(MapOp::SetWord { endpoint: ENDPOINT, word: EndpointWord::new(SET, 12) });
    assert_eq!(both.send(&from_pod(ACK)), Reason::Passed);
    both.compare();
}

#[test]
fn the_own_node_gets_in_and_forwarded_packets_of_its_address_do_not() {
    let mut both = Both::isolated();
    let probe = ipv4(NODE, POD, 6, 0, &[], &tcp(4000, 80, SYN, &[]));
    assert_eq!(both.receive(&probe), Reason::NoRule);
    assert_eq!(both.receive_from_node(&probe), Reason::Passed);
    assert_eq!(both.send(&ipv4(POD, NODE, 6, 0, &[], &tcp(80, 4000, SYN | ACK, &[]))), Reason::Passed);
    let other = ipv4(STRANGER, POD, 6, 0, &[], &tcp(4000, 80, SYN, &[]));
    assert_eq!(both.receive_from_node(&other), Reason::NoRule);
    both.compare();
}

#[test]
fn a_pending_interface_passes_arp_and_its_node_only() {
    let mut both = Both::pending();
    both.apply(MapOp::PutClass(
        NODE.into(),
        netpol_common::abi::ClassRow { kind: netpol_common::abi::address_kind::THIS_NODE, class: 0 },
    ));
    let probe = ipv4(NODE, POD, 6, 0, &[], &tcp(4000, 80, SYN, &[]));
    let answer = ipv4(POD, NODE, 6, 0, &[], &tcp(80, 4000, SYN | ACK, &[]));
    assert_eq!(both.send(&arp(POD, NODE)), Reason::Passed);
    assert_eq!(both.receive(&probe), Reason::Pending);
    assert_eq!(both.send(&answer), Reason::Pending);
    assert_eq!(both.receive_from_node(&probe), Reason::Passed);
    assert_eq!(both.send(&answer), Reason::Passed);
    assert_eq!(both.send(&to_pod(SYN)), Reason::Pending);
    both.compare();
    both.settings(Settings { flags: setting_flags::PENDING_ALLOW, ..defaults() });
    assert_eq!(both.receive(&to_pod(SYN)), Reason::Passed);
    both.compare();
}

#[test]
fn a_pod_that_nothing_isolates_is_tracked_and_rate_limited() {
    let mut both = Both::isolated();
    both.apply(MapOp::SetWord { endpoint: ENDPOINT, word: EndpointWord::new(SET_ALLOW_ALL, 10) });
    let hour = 3_600_000_000_000;
    both.settings(Settings { flows: Bucket { cost: hour, burst: 2 * hour }, ..defaults() });
    let datagram = |port| ipv4(POD, PEER, 17, 0, &[], &udp(port, 53, b"?"));
    assert_eq!(both.send(&datagram(1)), Reason::Passed);
    assert_eq!(both.send(&datagram(2)), Reason::Passed);
    assert_eq!(both.send(&datagram(3)), Reason::FlowRate);
    both.compare();
}

#[test]
fn beyond_budget_and_share_a_flow_is_kept_where_it_can_be_evicted() {
    let mut both = Both::isolated();
    both.apply(MapOp::SetWord { endpoint: ENDPOINT, word: EndpointWord::new(SET_ALLOW_ALL, 10) });
    let hour = 3_600_000_000_000;
    both.settings(Settings { opening: Bucket { cost: hour, burst: 2 * hour }, share: 2, ..defaults() });
    for port in 1..5 {
        assert_eq!(both.send(&ipv4(POD, PEER, 6, 0, &[], &tcp(port, 80, SYN, &[]))), Reason::Passed);
        both.compare();
    }
    assert_eq!(both.flows(FlowTable::OverEmbryonic), 2);
    for port in 1..5 {
        assert_eq!(both.receive(&ipv4(PEER, POD, 6, 0, &[], &tcp(80, port, SYN | ACK, &[]))), Reason::Passed);
        both.compare();
    }
    assert_eq!((both.flows(FlowTable::Confirmed), both.flows(FlowTable::OverConfirmed)), (2, 2));
    // What ends gives its place away, but is not forgotten; what goes on gets the place.
    assert_eq!(both.send(&ipv4(POD, PEER, 6, 0, &[], &tcp(1, 80, FIN | ACK, &[]))), Reason::Passed);
    both.compare();
    assert_eq!((both.flows(FlowTable::Confirmed), both.flows(FlowTable::OverConfirmed)), (1, 3));
    assert_eq!(both.receive(&ipv4(PEER, POD, 6, 0, &[], &tcp(80, 1, ACK, b"half closed"))), Reason::Passed);
    both.compare();
    assert_eq!((both.flows(FlowTable::Confirmed), both.flows(FlowTable::OverConfirmed)), (2, 2));
}

#[test]
fn tombstones_beyond_an_accounts_budget_are_kept_apart_and_cut_as_well() {
    let mut both = Both::isolated();
    both.allow(Direction::Ingress, PEER_CLASS, 6, 4, &[80]);
    both.allow(Direction::Egress, PEER_CLASS, 6, 5, &[]);
    let hour = 3_600_000_000_000;
    both.settings(Settings { tombstones: Bucket { cost: hour, burst: 2 * hour }, ..defaults() });
    for port in 1..5 {
        assert_eq!(both.receive(&ipv4(PEER, POD, 6, 0, &[], &tcp(port, 80, SYN, &[]))), Reason::Passed);
        assert_eq!(both.send(&ipv4(POD, PEER, 6, 0, &[], &tcp(80, port, SYN | ACK, &[]))), Reason::Passed);
    }
    let set = SET + 1;
    both.allow_in(set, Direction::Egress, PEER_CLASS, 6, 5, &[]);
    both.apply(MapOp::SetWord { endpoint: ENDPOINT, word: EndpointWord::new(set, 10) });
    for _ in 0..2 {
        for port in 1..5 {
            let again = ipv4(POD, PEER, 6, 0, &[], &tcp(80, port, ACK, b"again"));
            assert_eq!(both.send(&again), Reason::Revoked, "it may begin one, but not go on with this one");
        }
        both.compare();
    }
    assert_eq!((both.flows(FlowTable::Tombstones), both.flows(FlowTable::OverTombstones)), (2, 2));
    assert_eq!(both.send(&ipv4(POD, PEER, 6, 0, &[], &tcp(80, 4, SYN, &[]))), Reason::Passed);
    assert_eq!((both.flows(FlowTable::Tombstones), both.flows(FlowTable::OverTombstones)), (2, 1));
    both.compare();
}

#[test]
fn icmp_follows_rules_without_ports_and_errors_follow_their_flow() {
    let mut both = Both::isolated();
    both.allow(Direction::Egress, PEER_CLASS, 17, 4, &[53]);
    let request = |source, destination| ipv4(source, destination, 1, 0, &[], &icmp(8, 7, b"ping"));
    assert_eq!(both.send(&request(POD, PEER)), Reason::NoRule);
    let query = ipv4(POD, PEER, 17, 0, &[], &udp(4000, 53, b"?"));
    assert_eq!(both.send(&query), Reason::Passed);
    let error = |quoted: &[u8]| ipv4(STRANGER, POD, 1, 0, &[], &icmp(3, 0, &quoted[14..14 + 28]));
    assert_eq!(both.receive(&error(&query)), Reason::Passed);
    let other = ipv4(POD, PEER, 17, 0, &[], &udp(4001, 53, b"?"));
    assert_eq!(both.receive(&error(&other)), Reason::NoFlow);
    both.allow(Direction::Ingress, CLASS_ANY, PROTOCOL_ANY, 5, &[]);
    assert_eq!(both.receive(&request(STRANGER, POD)), Reason::Passed);
    assert_eq!(both.send(&request(POD, STRANGER)), Reason::NoRule);
    assert_eq!(both.send(&ipv4(POD, STRANGER, 1, 0, &[], &icmp(0, 7, b"ping"))), Reason::Passed);
    both.compare();
}

#[test]
fn an_expired_flow_admits_no_reply_and_a_fresh_one_does() {
    // What no machine is too young for but one that has started a few minutes ago.
    let oldest = timeout::UDP.max(timeout::UDP_UNREPLIED).max(timeout::ICMP);
    while boot_clock() / 1_000_000_000 <= u64::from(oldest) + 2 {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    let mut both = Both::isolated();
    both.allow(Direction::Ingress, PEER_CLASS, PROTOCOL_ANY, 4, &[]);
    let datagram = |from, to, ports: [u16; 2]| ipv4(from, to, 17, 0, &[], &udp(ports[0], ports[1], b""));
    let datagram6 = |from, to, ports: [u16; 2]| ipv6(from, to, 17, 64, &udp(ports[0], ports[1], b""));
    let echo = |from, to, kind| ipv4(from, to, 1, 0, &[], &icmp(kind, 9, b"ping"));
    let echo6 = |from, to, kind| ipv6(from, to, 58, 64, &icmp(kind, 9, b"ping"));
    // Request and reply; for how many seconds the flow lives before it is answered, and then; what becomes of a reply later.
    let udp = [timeout::UDP_UNREPLIED, timeout::UDP];
    let cases = [
        (datagram(PEER, POD, [4000, 53]), datagram(POD, PEER, [53, 4000]), udp, Reason::NoRule),
        (datagram6(PEER6, POD6, [4000, 53]), datagram6(POD6, PEER6, [53, 4000]), udp, Reason::NoRule),
        (echo(PEER, POD, 8), echo(POD, PEER, 0), [timeout::ICMP; 2], Reason::NoFlow),
        (echo6(PEER6, POD6, 128), echo6(POD6, PEER6, 129), [timeout::ICMP; 2], Reason::NoFlow),
    ];
    for (request, reply, lives, expired) in cases {
        for (table, seconds) in [FlowTable::Embryonic, FlowTable::Confirmed].into_iter().zip(lives) {
            // A few seconds away from the limit: the clock goes on between both sides.
            for (age, expected) in [(0, Reason::Passed), (seconds - 5, Reason::Passed), (seconds + 1, expired)] {
                both.forget_flows();
                assert_eq!(both.receive(&request), Reason::Passed);
                if table == FlowTable::Confirmed {
                    assert_eq!(both.send(&reply), Reason::Passed);
                }
                assert_eq!(both.flows(table), 1, "{table:?}: {reply:02x?}");
                both.age(table, age);
                assert_eq!(both.send(&reply), expected, "{table:?} after {age} s: {reply:02x?}");
            }
        }
    }
    both.compare();
}
