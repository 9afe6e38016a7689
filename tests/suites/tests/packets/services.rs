//! Services through the programs: stamps, and what is done with them where packets leave.

use netpol_common::abi::{
    ClassRow, Direction, PROTOCOL_ANY, ServiceKey, ServiceRow, Settings, address_kind, mapped, programs, setting_flags,
    stamp,
};
use netpol_common::verdict::Reason;
use netpol_policy::compile::MapOp;
use netpol_suites::frames::{ACK, SYN, ethernet, icmp, ipv4, ipv6, tcp, udp};
use netpol_suites::programs::Arrival;

use super::both::{
    BRIDGE, Both, ENDPOINT, IFINDEX_OF_POD, Judged, MARK_SHIFT, PEER, PEER_CLASS, PEER6, POD, POD6, SENDER, SENDER_SET,
    SENDER_VETH, STRANGER, UPLINK,
};

const SERVICE: [u8; 4] = [10, 96, 0, 10];

fn mark(state: u16, endpoint: u32) -> u32 {
    stamp::into_mark(0x4000, MARK_SHIFT, stamp::new(state, endpoint))
}

fn cluster() -> Both {
    let mut both = Both::isolated();
    both.add_sender();
    let key = ServiceKey { address: mapped(SERVICE), port: 80_u16.to_be_bytes(), protocol: 6, pad: 0 };
    both.apply(MapOp::PutService(key, ServiceRow::default()));
    both.allow_in(SENDER_SET, Direction::Egress, PEER_CLASS, 6, 7, &[8080]);
    both
}

fn leave(both: &mut Both, frame: &[u8], by: u32, mark: u32) -> (Reason, Judged) {
    both.judge_as(programs::HOST_EGRESS, frame, Arrival { ingress_ifindex: by, mark })
}

#[test]
fn a_connection_to_a_service_goes_on_deferred_and_its_replies_come_back() {
    let mut both = cluster();
    let arrival = Arrival { ingress_ifindex: IFINDEX_OF_POD, mark: 0x4000 };
    let send = |both: &mut Both, flags| {
        let frame = ipv4(POD, SERVICE, 6, 0, &[], &tcp(4000, 80, flags, &[]));
        let (reason, judged) = both.judge_as(programs::POD_EGRESS, &frame, arrival);
        assert_eq!((reason, judged.mark), (Reason::Passed, mark(stamp::DEFERRED, ENDPOINT)));
        assert_eq!(judged.counted, []);
    };
    send(&mut both, SYN);
    let reply = ipv4(SERVICE, POD, 6, 0, &[], &tcp(80, 4000, SYN | ACK, &[]));
    assert_eq!(both.receive(&reply), Reason::Passed);
    send(&mut both, ACK);
    both.compare();
}

#[test]
fn what_leaves_deferred_is_judged_by_its_real_destination() {
    let mut both = cluster();
    let to = |port, flags| ipv4(POD, PEER, 6, 0, &[], &tcp(4000, port, flags, &[]));
    let deferred = mark(stamp::DEFERRED, SENDER);
    for by in [BRIDGE, SENDER_VETH] {
        for flags in [SYN, ACK, ACK] {
            let (reason, judged) = leave(&mut both, &to(8080, flags), by, deferred);
            assert_eq!((reason, judged.mark), (Reason::Passed, mark(stamp::JUDGED, SENDER)));
            assert_eq!(judged.counted, [(SENDER, Direction::Egress, Reason::Passed)]);
            let (_, judged) = leave(&mut both, &to(8081, flags), by, deferred);
            assert_eq!(judged.counted, [(SENDER, Direction::Egress, Reason::NoRule)]);
        }
    }
    both.compare();
    let v6 = |port| ipv6(POD6, PEER6, 6, 64, &tcp(4000, port, SYN, &[]));
    assert_eq!(leave(&mut both, &v6(8080), BRIDGE, deferred).0, Reason::Passed);
    assert_eq!(leave(&mut both, &v6(8081), BRIDGE, deferred).0, Reason::NoRule);
    // The host's own, and what comes from elsewhere, are nobody's business here.
    for by in [0, UPLINK] {
        let (reason, judged) = leave(&mut both, &to(8081, SYN), by, deferred);
        assert_eq!((reason, judged.mark, judged.counted), (Reason::Passed, deferred, Vec::new()));
    }
    both.settings(Settings { flags: setting_flags::ARMED, mark_shift: MARK_SHIFT, ..Settings::default() });
    for (by, mark) in [(BRIDGE, 0x4000), (SENDER_VETH, mark(stamp::JUDGED, ENDPOINT))] {
        let (_, judged) = leave(&mut both, &to(8080, ACK), by, mark);
        assert_eq!(judged.counted, [(0, Direction::Egress, Reason::MarkLost)]);
    }
    both.compare();
}

#[test]
fn the_receiving_pods_veth_judges_what_was_deferred_and_then_its_own() {
    let mut both = cluster();
    // A peer of the sender's by its address: the pod is in the peers' class here.
    both.apply(MapOp::PutClass(POD.into(), ClassRow { kind: address_kind::POD, class: PEER_CLASS }));
    let to = |port, flags| ipv4(PEER, POD, 6, 0, &[], &tcp(4000, port, flags, &[]));
    let arrival = Arrival { ingress_ifindex: BRIDGE, mark: mark(stamp::DEFERRED, SENDER) };
    let (reason, judged) = both.judge_as(programs::POD_INGRESS, &to(8080, SYN), arrival);
    assert_eq!(reason, Reason::NoRule);
    let counted = [(ENDPOINT, Direction::Ingress, Reason::NoRule), (SENDER, Direction::Egress, Reason::Passed)];
    assert_eq!(judged.counted, counted);
    both.allow(Direction::Ingress, PEER_CLASS, PROTOCOL_ANY, 4, &[]);
    for flags in [SYN, ACK] {
        let (reason, judged) = both.judge_as(programs::POD_INGRESS, &to(8080, flags), arrival);
        assert_eq!((reason, judged.mark), (Reason::Passed, mark(stamp::JUDGED, SENDER)));
        let (reason, judged) = both.judge_as(programs::POD_INGRESS, &to(8081, flags), arrival);
        assert_eq!((reason, judged.counted), (Reason::NoRule, vec![(SENDER, Direction::Egress, Reason::NoRule)]));
        let _ = both.send(&ipv4(POD, PEER, 6, 0, &[], &tcp(8080, 4000, SYN | ACK, &[])));
    }
    both.compare();
}

#[test]
fn what_leaves_deferred_must_be_readable() {
    let mut both = cluster();
    let deferred = mark(stamp::DEFERRED_UNLESS_LOCAL, SENDER);
    let whole = [
        ipv4(POD, PEER, 6, 0, &[1, 1, 7, 4, 0, 0, 0, 0], &tcp(4000, 8080, SYN, b"")),
        ipv4(POD, PEER, 17, 0, &[], &udp(4000, 53, b"?")),
        ipv6(POD6, PEER6, 60, 64, &[&[6, 0, 1, 4, 0, 0, 0, 0][..], &tcp(4000, 8080, SYN, b"")].concat()),
        ipv4(POD, PEER, 1, 0, &[], &icmp(3, 0, &ipv4(PEER, POD, 6, 0, &[], &tcp(8080, 4000, ACK, &[]))[14..])),
    ];
    for frame in &whole {
        // The kernel refuses a test run on less than a whole network header.
        let shortest = if frame[12..14] == [0x08, 0x00] { 14 + 20 } else { 14 + 40 };
        for length in shortest..=frame.len() {
            let _ = leave(&mut both, &frame[..length], BRIDGE, deferred);
        }
    }
    let error = |port| {
        let quoted = ipv4(PEER, POD, 6, 0, &[], &tcp(port, 4000, ACK, &[]));
        ipv4(POD, PEER, 1, 0, &[], &icmp(3, 0, &quoted[14..]))
    };
    assert_eq!(leave(&mut both, &error(8080), BRIDGE, deferred).0, Reason::Passed);
    assert_eq!(leave(&mut both, &error(8081), BRIDGE, deferred).0, Reason::NoRule);
    assert_eq!(leave(&mut both, &ethernet(0x8847, &[0x45; 40]), BRIDGE, deferred).0, Reason::EtherType);
    assert_eq!(leave(&mut both, &whole[1], BRIDGE, deferred).0, Reason::NoRule);
    let fragment = |offset, payload: &[u8]| ipv4(POD, PEER, 6, offset, &[], payload);
    let later = fragment(4, &[0; 8]);
    assert_eq!(leave(&mut both, &later, BRIDGE, deferred).0, Reason::FragmentUnknown);
    let first = fragment(0x2000, &tcp(4001, 8080, ACK, &[0; 12]));
    assert_eq!(leave(&mut both, &first, BRIDGE, deferred).0, Reason::Passed);
    assert_eq!(leave(&mut both, &later, BRIDGE, deferred).0, Reason::Passed);
    let stranger = ipv4(POD, STRANGER, 6, 0, &[], &tcp(4000, 8080, SYN, &[]));
    assert_eq!(leave(&mut both, &stranger, BRIDGE, deferred).0, Reason::NoRule);
    both.compare();
}
