//! The contract between the agent and its loaded programs: names, keys and values of all maps.
//!
//! Everything here is `repr(C)`, made of integers and byte arrays, without implicit padding, and its size is asserted
//! at compile time: the kernel compares keys byte by byte, and a pinned map outlives the agent that wrote it. Any
//! change of a layout, a name or a meaning in this module must raise [`ABI_VERSION`], which names the pin directory.
//!
//! Byte order: integers are in host order unless a field says *network order*. Addresses are always network order.
//! Inside keys that hold both families, an IPv4 address is written in its IPv4-mapped form (`::ffff:a.b.c.d`).

mod flows;
pub mod names;
mod services;

use core::mem::size_of;

pub use flows::{
    ACCOUNTS, CAME_FROM_POD, FlowKey, FlowRow, FragmentKey, FragmentRow, OWN_NODE_SHARES, SENDER_UNKNOWN, account,
    admission, bucket_index, budget, initiator, phase,
};
pub use services::{DecidedKey, DecidedRow, LOCAL_BACKENDS, LocalBackend, ServiceKey, ServiceRow, stamp};

/// Version of everything in this module; part of the pin path `/sys/fs/bpf/netpol-agent/v<ABI>`.
pub const ABI_VERSION: u32 = 4;

/// Names of the TC programs: the pod's egress is judged at TC ingress of its host-side veth, and the other way round;
/// what had to be deferred there is judged at TC egress of the device by which it leaves.
pub mod programs {
    /// Attached at TC *ingress* of a pod's host-side veth; judges what the pod sends.
    pub const POD_EGRESS: &str = "pod_egress";
    /// Attached at TC *egress* of a pod's host-side veth; judges what the pod receives.
    pub const POD_INGRESS: &str = "pod_ingress";
    /// Attached at TC *egress* of every other device but loopback, ifb and pod bridges; judges what pods send by its
    /// real destination, if that was deferred (decision D6).
    pub const HOST_EGRESS: &str = "host_egress";
}

/// Endpoint numbers are 14 bits wide, because the stamp of decision D6 must carry one in `skb->mark`.
pub const MAX_ENDPOINTS: u32 = 1 << 14;
/// Number 0: the endpoint of an interface whose pod is not known yet (*pending*, decision D13).
pub const PENDING_ENDPOINT: u32 = 0;

/// Policy set 0 is never written: a word with it means *pending*, so that a zeroed array fails closed.
pub const SET_PENDING: u32 = 0;
/// The set of endpoints that nothing isolates in either direction; has no rows.
pub const SET_ALLOW_ALL: u32 = 1;
/// The set kept ready for an endpoint whose real set does not fit: isolated both ways, no rows.
pub const SET_DENY_ALL: u32 = 2;
/// First allocated policy set id.
pub const SET_FIRST: u32 = 16;

/// Class of an address that is in no peer of any policy that selects a pod here.
pub const CLASS_NONE: u32 = 0;
/// Pseudo class in [`RuleKey`]: the answer for every class that has no rows of its own in the set.
pub const CLASS_ANY: u32 = u32::MAX;
/// First allocated class id.
pub const CLASS_FIRST: u32 = 1;

/// Rule id of a verdict that no rule made (default deny, not isolated, own node).
pub const RULE_NONE: u32 = 0;
/// First allocated rule id.
pub const RULE_FIRST: u32 = 1;

/// What a program reads of an endpoint, as one aligned u64 that the agent stores atomically (decision D5):
/// policy set in the low half, epoch in the high half. Read once per packet, before class and rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct EndpointWord(pub u64);

impl EndpointWord {
    /// Joins set and epoch.
    #[must_use]
    pub const fn new(set: u32, epoch: u32) -> Self {
        Self(((epoch as u64) << 32) | set as u64)
    }
    /// The policy set in force.
    #[must_use]
    #[inline(always)]
    pub const fn set(self) -> u32 {
        self.0 as u32
    }
    /// The epoch; compared for equality only, never 0 for a live endpoint.
    #[must_use]
    #[inline(always)]
    pub const fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Written once in a veth's life. No row at all also means *pending*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct InterfaceRow {
    /// Endpoint number, or [`PENDING_ENDPOINT`].
    pub endpoint: u32,
    /// Bits of [`interface_flags`].
    pub flags: u32,
}

/// Flags of [`InterfaceRow`].
pub mod interface_flags {
    /// The interface is a pod bridge.
    pub const POD_BRIDGE: u32 = 1 << 0;
    /// The interface is the host side of a pod's veth.
    pub const POD_VETH: u32 = 1 << 1;
    /// Frames have no link header; they start at the network header.
    pub const NO_LINK_HEADER: u32 = 1 << 2;
    /// The interface is no pod's, and carries [`super::programs::HOST_EGRESS`].
    pub const HOOKED: u32 = 1 << 3;
}

/// One address that an endpoint owns. Value of the map: one byte pair `[1, 0, 0, 0]` as u32 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct AddressKey {
    /// Endpoint number.
    pub endpoint: u32,
    /// Address, IPv4 in mapped form.
    pub address: [u8; 16],
}

/// Per-endpoint switches that change rarely; read on the slow path only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EndpointOptions {
    /// Bits of [`endpoint_flags`].
    pub flags: u32,
    /// Until this second of the boot clock a packet without a flow is also tried in the reverse orientation, because
    /// the pod was already running when it was adopted (decision D5). 0: never.
    pub reverse_until: u32,
}

/// Flags of [`EndpointOptions`].
pub mod endpoint_flags {
    /// Do not check source addresses, nor destinations at delivery: a VPN or VIP pod by annotation, or an interface
    /// that was there before the agent and whose pod is not known yet.
    pub const NO_ADDRESS_CHECK: u32 = 1 << 0;
}

/// What an address is, and which peers contain it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClassRow {
    /// One of [`address_kind`].
    pub kind: u32,
    /// The class: an id for the set of peers that contain the address.
    pub class: u32,
}

/// Kinds of addresses in `class4` and `class6`.
pub mod address_kind {
    /// Neither a pod's nor a node's: from the CIDR trie.
    pub const OTHER: u32 = 0;
    /// A pod of the cluster.
    pub const POD: u32 = 1;
    /// An address of this node.
    pub const THIS_NODE: u32 = 2;
    /// An address of another node, or one at which its overlay can be reached.
    pub const OTHER_NODE: u32 = 3;
    /// The broadcast address of this node's own range of pods: to every pod of the node, and to the node.
    pub const BROADCAST: u32 = 4;

    /// Whether a node hears what is sent to an address of this kind.
    #[must_use]
    #[inline(always)]
    pub const fn is_heard_by_a_node(kind: u32) -> bool {
        matches!(kind, THIS_NODE | OTHER_NODE | BROADCAST)
    }
}

/// Direction, from the pod's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// Into the pod (TC egress of its host-side veth).
    Ingress = 0,
    /// Out of the pod (TC ingress of its host-side veth).
    Egress = 1,
}

/// Protocol number in [`RuleKey`] that stands for "any protocol": rules without ports.
pub const PROTOCOL_ANY: u8 = 255;

/// Key of a verdict. Look-up order for a packet: {class, protocol}, {class, any}, {any class, protocol},
/// {any class, any}. A class with any row of its own always has an {class, [`PROTOCOL_ANY`]} row, so that a hit there
/// ends the search. No row at all: deny.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct RuleKey {
    /// Policy set of the endpoint.
    pub set: u32,
    /// Class of the peer's address, or [`CLASS_ANY`].
    pub class: u32,
    /// [`Direction`] as u8.
    pub direction: u8,
    /// IP protocol number, or [`PROTOCOL_ANY`].
    pub protocol: u8,
    /// Zero.
    pub pad: u16,
}

/// Verdict for a [`RuleKey`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RuleRow {
    /// One of [`rule_action`].
    pub action: u32,
    /// Port set to consult when `action` is [`rule_action::PORTS`], else 0.
    pub port_set: u32,
    /// The rule that decides when `action` is [`rule_action::ALLOW`], else [`RULE_NONE`].
    pub rule: u32,
}

/// Actions of [`RuleRow`] and [`PortRow`].
pub mod rule_action {
    /// Drop.
    pub const DENY: u32 = 0;
    /// Let on, whatever the ports.
    pub const ALLOW: u32 = 1;
    /// The [`super::RuleRow::port_set`] answers; a port it does not hold is denied.
    pub const PORTS: u32 = 2;
}

/// Data of the LPM key of [`names::PORTS`]: 32 bits of set, then 16 bits of port, then padding that no prefix reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct PortKeyData {
    /// Port set id, big endian, so that it can be a prefix.
    pub port_set: [u8; 4],
    /// Destination port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
}

/// Prefix length, in bits, of a single port in [`names::PORTS`]; a range of 2^n aligned ports has n less.
pub const PORT_PREFIX_FULL: u32 = 48;

/// Verdict for a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PortRow {
    /// [`rule_action::ALLOW`] or [`rule_action::DENY`].
    pub action: u32,
    /// The rule that decides.
    pub rule: u32,
}

/// Packets and bytes. One per CPU; added up when read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets; a GSO packet counts its segments.
    pub packets: u64,
    /// Bytes, with link header.
    pub bytes: u64,
}

/// Counters per endpoint and direction: index 0 counts what was let on, the others are drops by
/// [`crate::verdict::Reason`].
pub const REASONS: u32 = 32;

/// Index into [`names::COUNTERS`].
#[must_use]
#[inline(always)]
pub const fn counter_index(endpoint: u32, direction: Direction, reason: u32) -> u32 {
    (endpoint * 2 + direction as u32) * REASONS + reason
}

/// What the agent tells its programs. One element, rewritten whole; fields are read one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Bits of [`setting_flags`].
    pub flags: u32,
    /// Where the 16 bits of `skb->mark` that are ours begin (decision D6): 0 to 16, by default 16.
    pub mark_shift: u32,
    /// Token bucket for new flows, of each account.
    pub flows: Bucket,
    /// Token bucket for places in [`names::EMBRYONIC`].
    pub opening: Bucket,
    /// Token bucket for places in [`names::FRAGMENTS`].
    pub fragments: Bucket,
    /// Token bucket for places in [`names::TOMBSTONES`].
    pub tombstones: Bucket,
    /// Places that an account may hold in [`names::CONFIRMED`], of which [`account`] 0 gets [`OWN_NODE_SHARES`]; 0: as
    /// many as there are.
    pub share: u64,
    /// UDP ports of the overlay (network order, 0 unused): a pod's packets to them on a node address are dropped.
    pub overlay_ports: [[u8; 2]; 4],
}

/// Size of a token bucket. All zeros: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bucket {
    /// Nanoseconds that a token costs: 1e9 / rate.
    pub cost: u64,
    /// Nanoseconds of credit that a full bucket holds: burst × cost.
    pub burst: u64,
}

/// Flags of [`Settings`].
pub mod setting_flags {
    /// Keep flows whose permission was revoked, instead of cutting them at their next packet.
    pub const KEEP_ESTABLISHED: u32 = 1 << 0;
    /// Let everything pass an interface that is still pending.
    pub const PENDING_ALLOW: u32 = 1 << 1;
    /// Every port of the pod bridge has been attached once: from then on, what comes from a pod without a stamp is dropped.
    pub const ARMED: u32 = 1 << 3;
}

/// Names an allocated id in [`names::DIGESTS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct DigestKey {
    /// One of [`id_kind`].
    pub kind: u32,
    /// The id.
    pub id: u32,
}

/// Kinds of allocated ids.
pub mod id_kind {
    /// Policy set.
    pub const SET: u32 = 1;
    /// Class.
    pub const CLASS: u32 = 2;
    /// Port set.
    pub const PORT_SET: u32 = 3;
    /// Rule.
    pub const RULE: u32 = 4;
    /// Endpoint number; the digest is of the pod's UID and interface.
    pub const ENDPOINT: u32 = 5;
    /// Id 0 only: the digest of who owns this datapath, its source of objects and its node name.
    pub const OWNER: u32 = 6;
    /// Id 0 only: the digest of the object that the pinned programs came from.
    pub const OBJECT: u32 = 7;
}

/// The first 128 bits of the SHA-256 of what an id stands for.
pub type Digest = [u8; 16];

/// What the agent must find again after a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AgentState {
    /// The last epoch given out. Epochs skip 0 and wrap.
    pub epoch: u32,
    /// How far the first start on this node has come: one of [`progress`].
    pub progress: u32,
    /// 1 from when [`setting_flags::ARMED`] was set first; never cleared.
    pub armed: u32,
    /// Zero.
    pub pad: u32,
}

/// Steps of the first start, in [`AgentState`].
pub mod progress {
    /// Nothing is attached by us: what runs was there before, and is adopted.
    pub const NOTHING: u32 = 0;
    /// What ran was adopted. Whatever appears from now on is pending until its pod is known.
    pub const ADOPTED: u32 = 1;
    /// Everything was programmed once.
    pub const PROGRAMMED: u32 = 2;
}

/// Map sizes that do not depend on configuration. Those that do are set when the object is loaded.
pub mod sizes {
    /// Default number of endpoints; at most [`super::MAX_ENDPOINTS`].
    pub const ENDPOINTS: u32 = 1024;
    /// Addresses of local endpoints.
    pub const ADDRESSES: u32 = 16 * 1024;
    /// Devices with a row.
    pub const INTERFACES: u32 = 4 * 1024;
    /// Pod and node addresses of the cluster, per family.
    pub const CLASSES: u32 = 256 * 1024;
    /// Rows of a CIDR trie.
    pub const CIDRS: u32 = 64 * 1024;
    /// Verdict rows.
    pub const RULES: u32 = 512 * 1024;
    /// Port prefixes.
    pub const PORTS: u32 = 128 * 1024;
    /// Default number of confirmed flows: within their endpoint's share, and as many beyond it. Half as many are embryonic.
    pub const FLOWS: u32 = 128 * 1024;
    /// Revoked flows that are remembered.
    pub const TOMBSTONES: u32 = 32 * 1024;
    /// Fragmented datagrams under way.
    pub const FRAGMENTS: u32 = 16 * 1024;
    /// Addresses with ports that a proxy rewrites.
    pub const SERVICES: u32 = 64 * 1024;
    /// Ranges of ClusterIPs.
    pub const SERVICE_CIDRS: u32 = 64;
    /// Deferred flows whose real destination was judged.
    pub const DECIDED: u32 = 128 * 1024;
    /// Allocated ids with a digest.
    pub const DIGESTS: u32 = 512 * 1024;
    /// Bytes of the ring buffer.
    pub const EVENTS: u32 = 256 * 1024;
}

const _: () = {
    assert!(size_of::<EndpointWord>() == 8);
    assert!(size_of::<InterfaceRow>() == 8);
    assert!(size_of::<AddressKey>() == 20);
    assert!(size_of::<EndpointOptions>() == 8);
    assert!(size_of::<ClassRow>() == 8);
    assert!(size_of::<RuleKey>() == 12);
    assert!(size_of::<RuleRow>() == 12);
    assert!(size_of::<PortKeyData>() == 8);
    assert!(size_of::<PortRow>() == 8);
    assert!(size_of::<FlowKey>() == 28);
    assert!(size_of::<FlowRow>() == 48);
    assert!(size_of::<FragmentKey>() == 44);
    assert!(size_of::<FragmentRow>() == 12);
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<Settings>() == 88);
    assert!(size_of::<DigestKey>() == 8);
    assert!(size_of::<AgentState>() == 16);
    assert!(size_of::<ServiceKey>() == 20);
    assert!(size_of::<LocalBackend>() == 20);
    assert!(size_of::<ServiceRow>() == 4 + 20 * LOCAL_BACKENDS);
    assert!(size_of::<DecidedKey>() == 28);
    assert!(size_of::<DecidedRow>() == 12);
    assert!(1 << stamp::ENDPOINT_BITS == MAX_ENDPOINTS);
};

/// Writes an IPv4 address in its IPv4-mapped form.
#[must_use]
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

#[cfg(feature = "user")]
mod pod {
    //! `aya::Pod` asserts what the asserts above check: any bytes of the right size are a value.
    use super::*;
    macro_rules! pod {
        ($($t:ty),* $(,)?) => { $(
            // SAFETY: repr(C) integers without padding (size asserted above), valid for every bit pattern.
            unsafe impl aya::Pod for $t {}
        )* };
    }
    pod!(
        EndpointWord,
        InterfaceRow,
        AddressKey,
        EndpointOptions,
        ClassRow,
        RuleKey,
        RuleRow,
        PortKeyData,
        PortRow,
        FlowKey,
        FlowRow,
        FragmentKey,
        FragmentRow,
        Counter,
        Bucket,
        Settings,
        DigestKey,
        AgentState,
        ServiceKey,
        ServiceRow,
        DecidedKey,
        DecidedRow,
    );
}
