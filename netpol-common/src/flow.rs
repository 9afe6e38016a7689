//! The rules of connection tracking, without the tables: how a packet names its flow, how long a flow lasts, how many
//! flows an endpoint may create (decision D5).
//!
//! An entry is judged expired when it is looked up. Its room is reclaimed by the LRU or, where nothing is evicted, by the
//! agent's sweep, on which no verdict depends.

use crate::abi::{Direction, FlowKey, FlowRow, OWN_NODE_SHARES, account, admission, initiator, phase};
use crate::parse::{Address, Packet, protocol, sctp_chunk, tcp_flags};
use crate::tables::FlowTable;

const NANOSECONDS: u64 = 1_000_000_000;

/// Idle timeouts, in seconds.
pub mod timeout {
    /// TCP and SCTP before the first reply: the longest gap between two SYNs of the kernel is 64 s.
    pub const OPENING: u32 = 120;
    /// TCP and SCTP with a reply: what the kernel's own connection tracking grants TCP, because where Services or
    /// masquerading are in the path a connection lives no longer than that, and where they are not, no less.
    pub const CONNECTION: u32 = 5 * 24 * 3600;
    /// After a FIN or RST, or what is like them in SCTP. Nothing proves that it was not forged, or that the other half of
    /// the connection has ended: it is as long as a living connection can be silent where the kernel's keepalive watches
    /// it (`tcp_keepalive_time` and nine probes, 75 s apart). Such a flow gives its place away, but is not forgotten.
    pub const FINISHED: u32 = 7200 + 9 * 75;
    /// UDP before the first reply.
    pub const UDP_UNREPLIED: u32 = 60;
    /// UDP with a reply: what RFC 4787 REQ-5 recommends.
    pub const UDP: u32 = 300;
    /// ICMP echo.
    pub const ICMP: u32 = 30;
    /// Any other protocol, as the kernel's connection tracking does.
    pub const OTHER: u32 = 600;
    /// Fragments of one datagram: how long the kernel waits for the rest of it (`ipfrag_time`).
    pub const FRAGMENTS: u32 = 30;
}

/// Seconds of the boot clock.
#[must_use]
#[inline(always)]
pub const fn seconds(now_ns: u64) -> u32 {
    (now_ns / NANOSECONDS) as u32
}

/// Which side of an interface a packet comes from, in terms of [`initiator`].
#[must_use]
#[inline(always)]
pub const fn sender(direction: Direction) -> u8 {
    match direction {
        Direction::Egress => initiator::POD,
        Direction::Ingress => initiator::PEER,
    }
}

/// The address of the pod that a packet uses.
#[must_use]
#[inline(always)]
pub const fn local(packet: &Packet, direction: Direction) -> Address {
    match direction {
        Direction::Egress => packet.source,
        Direction::Ingress => packet.destination,
    }
}

/// The address of the other side.
#[must_use]
#[inline(always)]
pub const fn peer(packet: &Packet, direction: Direction) -> Address {
    match direction {
        Direction::Egress => packet.destination,
        Direction::Ingress => packet.source,
    }
}

/// The flow that a packet names, from the pod's side.
#[must_use]
#[inline(always)]
pub const fn key(ifindex: u32, packet: &Packet, direction: Direction) -> FlowKey {
    let (local_port, peer_port) = match direction {
        Direction::Egress => (packet.source_port, packet.destination_port),
        Direction::Ingress => (packet.destination_port, packet.source_port),
    };
    key_of(ifindex, local_port, peer_port, peer(packet, direction), packet.protocol)
}

/// A flow's name, put together of words: field by field, the BPF target would store it byte by byte, and the kernel's
/// hash, which reads words, would wait for every one of them.
#[must_use]
#[inline(always)]
pub const fn key_of(ifindex: u32, local_port: [u8; 2], peer_port: [u8; 2], peer: Address, protocol: u8) -> FlowKey {
    let [l0, l1] = local_port;
    let [p0, p1] = peer_port;
    let [a, b, c, d] = peer.words();
    let ports = u32::from_ne_bytes([l0, l1, p0, p1]);
    let words = [ifindex, ports, a, b, c, d, u32::from_ne_bytes([protocol, 0, 0, 0])];
    // SAFETY: a key is `repr(C)` of integers and bytes without padding, 28 bytes as asserted in `abi`, in this order.
    unsafe { core::mem::transmute::<[u32; 7], FlowKey>(words) }
}

/// How long an entry lasts without packets, in seconds. A tombstone lasts as long as the flow would have.
#[must_use]
#[inline(always)]
pub const fn idle_timeout(table: FlowTable, protocol: u8, phase: u32) -> u32 {
    match (protocol, table) {
        (protocol::TCP | protocol::SCTP, FlowTable::Tombstones | FlowTable::OverTombstones) => timeout::CONNECTION,
        (protocol::TCP | protocol::SCTP, FlowTable::Embryonic | FlowTable::OverEmbryonic) => timeout::OPENING,
        (protocol::TCP | protocol::SCTP, _) if is_finished(phase) => timeout::FINISHED,
        (protocol::TCP | protocol::SCTP, FlowTable::Confirmed | FlowTable::OverConfirmed) => timeout::CONNECTION,
        (protocol::UDP, FlowTable::Embryonic | FlowTable::OverEmbryonic) => timeout::UDP_UNREPLIED,
        (
            protocol::UDP,
            FlowTable::Confirmed | FlowTable::OverConfirmed | FlowTable::Tombstones | FlowTable::OverTombstones,
        ) => timeout::UDP,
        (protocol::ICMP | protocol::ICMPV6, _) => timeout::ICMP,
        _ => timeout::OTHER,
    }
}

/// Whether a flow has come to its end, if what said so is true.
#[must_use]
#[inline(always)]
pub const fn is_finished(phase: u32) -> bool {
    phase & (phase::FIN | phase::RST) != 0
}

/// Whether a protocol has connections, which outlast silence.
#[must_use]
#[inline(always)]
pub const fn is_connection(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::SCTP)
}

/// The account to which a flow is charged.
#[must_use]
#[inline(always)]
pub const fn account_of(protocol: u8, row: &FlowRow) -> u32 {
    account(row.endpoint, row.initiator, row.admission, is_connection(protocol))
}

/// Places of [`FlowTable::Confirmed`] that a flow's account may hold; `share` is of [`Settings`](crate::abi::Settings).
#[must_use]
#[inline(always)]
pub const fn limit(share: u64, admission: u8) -> u64 {
    match share {
        0 => u64::MAX,
        _ if admission == admission::OWN_NODE => share.saturating_mul(OWN_NODE_SHARES),
        _ => share,
    }
}

/// Whether an entry still counts. Another CPU may have stored a second that this one has not reached.
#[must_use]
#[inline(always)]
pub const fn is_alive(table: FlowTable, protocol: u8, row: &FlowRow, now: u32) -> bool {
    now.saturating_sub(row.last_seen) <= idle_timeout(table, protocol, row.phase)
}

/// The phase of a flow after a packet: an end only shortens the timeout, and data that comes later restores it, so that
/// a forged RST cuts nothing.
#[must_use]
#[inline(always)]
pub const fn next_phase(before: u32, packet: &Packet) -> u32 {
    match packet.protocol {
        protocol::TCP => {
            if packet.detail & tcp_flags::RST != 0 {
                before | phase::RST
            } else if packet.detail & tcp_flags::FIN != 0 {
                before | phase::FIN
            } else if packet.has_data {
                before & !(phase::RST | phase::FIN)
            } else {
                before
            }
        }
        protocol::SCTP => match packet.detail {
            sctp_chunk::ABORT => before | phase::RST,
            sctp_chunk::SHUTDOWN | sctp_chunk::SHUTDOWN_ACK | sctp_chunk::SHUTDOWN_COMPLETE => before | phase::FIN,
            // DATA.
            0 => before & !(phase::RST | phase::FIN),
            _ => before,
        },
        _ => before,
    }
}

/// Takes one token. `bucket` is the theoretical arrival time of GCRA, in ns of the boot clock: the instant at which the
/// bucket is full again. `cost` is 1e9 / rate, `burst` what a full bucket is worth, both in ns; a `cost` of 0 means no
/// limit. Returns what to store, or `None` if the bucket is empty.
///
/// One u64, stored plainly: two CPUs may give away a token too many, but the 5.10 instruction set has no
/// compare-and-swap.
#[must_use]
#[inline(always)]
pub const fn take_token(bucket: u64, now_ns: u64, cost: u64, burst: u64) -> Option<u64> {
    let start = if bucket > now_ns { bucket } else { now_ns };
    let full_again = start.wrapping_add(cost);
    if cost != 0 && full_again.wrapping_sub(now_ns) > burst { None } else { Some(full_again) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::frames;
    use crate::parse::{Link, parse};

    fn packet(frame: &[u8]) -> Packet {
        parse(frame, &Link { header: true, vlan: false, segments: 1 }).unwrap()
    }

    #[test]
    fn both_directions_of_a_flow_have_one_key() {
        let there = frames::tcp([10, 0, 0, 1], [10, 0, 0, 2], 4000, 80, tcp_flags::SYN);
        let back = frames::tcp([10, 0, 0, 2], [10, 0, 0, 1], 80, 4000, tcp_flags::SYN | tcp_flags::ACK);
        let sent = key(7, &packet(&there), Direction::Egress);
        let received = key(7, &packet(&back), Direction::Ingress);
        assert_eq!(sent, received);
        assert_eq!(sent.local_port, 4000_u16.to_be_bytes());
    }

    #[test]
    fn a_key_of_words_has_its_fields_in_place() {
        let packet = packet(&frames::tcp([10, 0, 0, 1], [10, 0, 0, 2], 4000, 80, tcp_flags::SYN));
        let expected = FlowKey {
            ifindex: 7,
            local_port: 4000_u16.to_be_bytes(),
            peer_port: 80_u16.to_be_bytes(),
            peer: crate::abi::mapped([10, 0, 0, 2]),
            protocol: protocol::TCP,
            pad: [0; 3],
        };
        assert_eq!(key(7, &packet, Direction::Egress), expected);
    }

    #[test]
    fn an_echo_of_the_pod_and_one_of_its_peer_are_two_flows() {
        let ours = frames::echo([10, 0, 0, 1], [10, 0, 0, 2], true, 9);
        let reply = frames::echo([10, 0, 0, 2], [10, 0, 0, 1], false, 9);
        let theirs = frames::echo([10, 0, 0, 2], [10, 0, 0, 1], true, 9);
        let sent = key(7, &packet(&ours), Direction::Egress);
        assert_eq!(sent, key(7, &packet(&reply), Direction::Ingress));
        assert_ne!(sent, key(7, &packet(&theirs), Direction::Ingress));
    }

    #[test]
    fn a_reset_only_shortens_the_timeout_and_later_data_restores_it() {
        let reset = packet(&frames::tcp([10, 0, 0, 1], [10, 0, 0, 2], 1, 2, tcp_flags::RST));
        let ack = packet(&frames::tcp([10, 0, 0, 1], [10, 0, 0, 2], 1, 2, tcp_flags::ACK));
        let data = packet(&frames::tcp_data([10, 0, 0, 1], [10, 0, 0, 2], 1, 2, tcp_flags::ACK, b"x"));
        let after = next_phase(phase::REPLIED, &reset);
        assert_eq!(idle_timeout(FlowTable::OverConfirmed, protocol::TCP, after), timeout::FINISHED);
        assert_eq!(next_phase(after, &ack), after);
        assert_eq!(next_phase(after, &data), phase::REPLIED);
    }

    #[test]
    fn a_second_of_another_cpu_does_not_expire_a_flow() {
        let row = FlowRow { last_seen: 101, ..FlowRow::default() };
        assert!(is_alive(FlowTable::Confirmed, protocol::UDP, &row, 100));
        assert!(is_alive(FlowTable::Confirmed, protocol::UDP, &row, 101 + timeout::UDP));
        assert!(!is_alive(FlowTable::Confirmed, protocol::UDP, &row, 102 + timeout::UDP));
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let (cost, burst) = (100, 1000);
        let now = 1_000_000;
        let mut bucket = 0;
        for _ in 0..10 {
            bucket = take_token(bucket, now, cost, burst).unwrap();
        }
        assert_eq!(take_token(bucket, now, cost, burst), None);
        assert_eq!(take_token(bucket, now + 99, cost, burst), None);
        assert!(take_token(bucket, now + 100, cost, burst).is_some());
    }

    #[test]
    fn a_bucket_without_cost_never_empties() {
        assert!(take_token(u64::MAX, 5, 0, 0).is_some());
    }
}
