//! Flows and fragments: what programs remember of the packets they have judged (decision D5). Part of the contract of
//! [`super`], with its rules of layout and byte order.

/// A flow, keyed from the pod's side, both directions in one entry (decision D5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey {
    /// Index of the pod's host-side veth: one pod cannot plant entries for another.
    pub ifindex: u32,
    /// The pod's port, network order. ICMP echo: the identifier if the pod asks, else 0.
    pub local_port: [u8; 2],
    /// The peer's port, network order. ICMP echo: the identifier if the peer asks, else 0.
    pub peer_port: [u8; 2],
    /// The peer's address, IPv4 in mapped form.
    pub peer: [u8; 16],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// State of a flow. Whole updates only, except `last_seen` and `phase`, each one aligned word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowRow {
    /// The pod's address that the flow uses, IPv4 in mapped form: an established packet is checked against it.
    pub local: [u8; 16],
    /// Endpoint number of the pod.
    pub endpoint: u32,
    /// Epoch of the endpoint when the flow was last judged.
    pub epoch: u32,
    /// Rule that admitted the flow, or [`RULE_NONE`](super::RULE_NONE).
    pub rule: u32,
    /// Second of the boot clock of the last packet, at most one second behind.
    pub last_seen: u32,
    /// Bits of [`phase`].
    pub phase: u32,
    /// One of [`initiator`].
    pub initiator: u8,
    /// One of [`admission`].
    pub admission: u8,
    /// Started by the pod: the state of [`stamp`](super::stamp) that the pod's packets get. Started by its peer: the endpoint number that
    /// the first packet's stamp named, 0 if it had none that is believed.
    pub stamp: u16,
    /// The device by which the peer's packets came in last when it was looked at, with [`CAME_FROM_POD`] set if it is a pod
    /// bridge or a pod's veth; 0: not looked at yet. Spares an established packet the look-up.
    pub came_by: u32,
    /// If that device is a pod's veth: the endpoint behind it, which the stamps of its packets must name; else 0.
    pub came_endpoint: u32,
}

/// In [`FlowRow::stamp`] of a flow that its peer started: it is not known yet whose packets they are, because the flow is
/// older than what is known of it. The next one says.
pub const SENDER_UNKNOWN: u16 = u16::MAX;

/// In [`FlowRow::came_by`]: that device carries what pods send, so a packet must be stamped.
pub const CAME_FROM_POD: u32 = 1 << 31;

/// Who sent the first packet of a flow.
pub mod initiator {
    /// The pod.
    pub const POD: u8 = 1;
    /// Its peer.
    pub const PEER: u8 = 2;
}

/// How a flow was admitted.
pub mod admission {
    /// By the rules of the endpoint's policy set, or because nothing isolates it.
    pub const POLICY: u8 = 1;
    /// From a socket of the pod's own node (decision D7): never judged again.
    pub const OWN_NODE: u8 = 2;
    /// Not at all yet: the pod sends to an address that a proxy rewrites. The entry admits replies; its packets are judged
    /// by their real destination where they leave (decision D6).
    pub const DEFERRED: u8 = 3;
}

/// Phase bits of a TCP (or SCTP) flow; they only choose the timeout.
pub mod phase {
    /// A FIN was seen from either side.
    pub const FIN: u32 = 1 << 0;
    /// An RST was seen from either side.
    pub const RST: u32 = 1 << 1;
    /// The other side has answered.
    pub const REPLIED: u32 = 1 << 2;
    /// The first packet seen was from the middle of a connection, soon after its pod was adopted: who began is a guess.
    pub const GUESSED: u32 = 1 << 3;
}

/// Whom an entry of a flow table is charged to: each endpoint has four accounts, so that what its peers start takes nothing
/// from what it starts itself, nor datagrams from connections.
pub const ACCOUNTS: u32 = 4;

/// Index into [`names::HELD`](super::names::HELD): the account of what `initiator` has started.
///
/// The own node's flows are charged to [`super::PENDING_ENDPOINT`], all to one account, and never refused.
#[must_use]
#[inline(always)]
pub const fn account(endpoint: u32, initiator: u8, admission: u8, is_connection: bool) -> u32 {
    if admission == admission::OWN_NODE {
        return super::PENDING_ENDPOINT * ACCOUNTS;
    }
    endpoint * ACCOUNTS + if initiator == initiator::PEER { 2 } else { 0 } + is_connection as u32
}

/// How many shares of [`names::CONFIRMED`](super::names::CONFIRMED) the account of the own node's flows may hold: half of
/// all places. Others can make the node start flows, where a proxy in its network passes on what they send.
pub const OWN_NODE_SHARES: u64 = 8;

/// What an account's token buckets are for.
pub mod budget {
    /// New flows and first replies, in all; beyond it they are dropped.
    pub const FLOWS: u32 = 0;
    /// New flows that get a place in [`names::EMBRYONIC`](super::super::names::EMBRYONIC).
    pub const OPENING: u32 = 1;
    /// Fragmented datagrams that get a place in [`names::FRAGMENTS`](super::super::names::FRAGMENTS).
    pub const FRAGMENTS: u32 = 2;
    /// Revoked flows that get a place in [`names::TOMBSTONES`](super::super::names::TOMBSTONES).
    pub const TOMBSTONES: u32 = 3;
    /// Buckets of an account.
    pub const COUNT: u32 = 4;
}

/// Index into [`names::BUCKETS`](super::names::BUCKETS).
#[must_use]
#[inline(always)]
pub const fn bucket_index(account: u32, budget: u32) -> u32 {
    account * budget::COUNT + budget
}

/// Names a fragmented datagram at one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FragmentKey {
    /// Index of the pod's host-side veth.
    pub ifindex: u32,
    /// Identification of the datagram, network order, zero-extended for IPv4.
    pub id: u32,
    /// Source, IPv4 in mapped form.
    pub source: [u8; 16],
    /// Destination, IPv4 in mapped form.
    pub destination: [u8; 16],
    /// IP protocol number of an IPv4 datagram. 0 for IPv6: RFC 8200 section 4.5 identifies a datagram without it, and lets
    /// the next header of later fragments be another one.
    pub protocol: u8,
    /// [`Direction`](super::Direction) as u8.
    pub direction: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// What the first fragment said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentRow {
    /// Source port, network order.
    pub source_port: [u8; 2],
    /// Destination port, network order.
    pub destination_port: [u8; 2],
    /// Second of the boot clock.
    pub last_seen: u32,
    /// IP protocol number of the datagram.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}
