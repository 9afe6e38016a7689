//! The contract between the agent and its loaded programs: names, keys and values of all maps.
//!
//! Everything here is `repr(C)`, made of integers and byte arrays, without implicit padding, and its size is asserted
//! at compile time: the kernel compares keys byte by byte, and a pinned map outlives the agent that wrote it. Any
//! change of a layout, a name or a meaning in this file must raise [`ABI_VERSION`], which names the pin directory.
//!
//! Byte order: integers are in host order unless a field says *network order*. Addresses are always network order.
//! Inside keys that hold both families, an IPv4 address is written in its IPv4-mapped form (`::ffff:a.b.c.d`).

use core::mem::size_of;

/// Version of everything in this module; part of the pin path `/sys/fs/bpf/netpol-agent/v<ABI>`.
pub const ABI_VERSION: u32 = 2;

/// Names of the maps. The kernel keeps 15 bytes of them.
pub mod names {
    /// [`super::EndpointWord`] by endpoint number; array, memory-mapped by the agent.
    pub const ENDPOINT_WORDS: &str = "ENDPOINT_WORDS";
    /// [`super::InterfaceRow`] by interface index; hash.
    pub const INTERFACES: &str = "INTERFACES";
    /// [`super::AddressKey`] → 1: the addresses that belong to an endpoint; hash.
    pub const ADDRESSES: &str = "ADDRESSES";
    /// [`super::EndpointOptions`] by endpoint number; array.
    pub const OPTIONS: &str = "OPTIONS";
    /// IPv4 address → [`super::ClassRow`]; hash.
    pub const CLASS4: &str = "CLASS4";
    /// IPv6 address → [`super::ClassRow`]; hash.
    pub const CLASS6: &str = "CLASS6";
    /// IPv4 prefix → class; LPM trie.
    pub const CIDR4: &str = "CIDR4";
    /// IPv6 prefix → class; LPM trie.
    pub const CIDR6: &str = "CIDR6";
    /// [`super::RuleKey`] → [`super::RuleRow`]; hash.
    pub const RULES: &str = "RULES";
    /// [`super::PortKeyData`] prefix → [`super::PortRow`]; LPM trie.
    pub const PORTS: &str = "PORTS";
    /// [`super::FlowKey`] → [`super::FlowRow`]: flows that no reply has confirmed yet; LRU hash.
    pub const EMBRYONIC: &str = "EMBRYONIC";
    /// [`super::FlowKey`] → [`super::FlowRow`]: flows that have seen a reply; LRU hash.
    pub const CONFIRMED: &str = "CONFIRMED";
    /// [`super::FlowKey`] → [`super::FlowRow`]: flows whose permission was revoked; LRU hash.
    pub const TOMBSTONES: &str = "TOMBSTONES";
    /// [`super::FragmentKey`] → [`super::FragmentRow`]: ports of fragmented datagrams; LRU hash.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Token bucket by endpoint number (see [`crate::flow`]); array of u64.
    pub const BUCKETS: &str = "BUCKETS";
    /// [`super::Counter`] by [`super::counter_index`]; per-CPU array.
    pub const COUNTERS: &str = "COUNTERS";
    /// [`super::Settings`], one element; array.
    pub const SETTINGS: &str = "SETTINGS";
    /// [`super::DigestKey`] → [`super::Digest`]: what allocated ids mean; hash. Not read by programs.
    pub const DIGESTS: &str = "DIGESTS";
    /// [`super::AgentState`], one element; array. Not read by programs.
    pub const AGENT_STATE: &str = "AGENT_STATE";

    /// [`super::ServiceKey`] → [`super::ServiceRow`]: addresses and ports that a proxy rewrites; hash.
    pub const SERVICES: &str = "SERVICES";
    /// Prefix of a ClusterIP range, IPv4 in mapped form → 1; LPM trie.
    pub const SERVICE_CIDRS: &str = "SERVICE_CIDRS";
    /// [`super::DecidedKey`] → [`super::DecidedRow`]: deferred flows judged by their real destination; LRU hash.
    pub const DECIDED: &str = "DECIDED";

    /// All of them, for pinning and for comparing.
    pub const ALL: [&str; 23] = [
        ENDPOINT_WORDS,
        INTERFACES,
        ADDRESSES,
        OPTIONS,
        CLASS4,
        CLASS6,
        CIDR4,
        CIDR6,
        RULES,
        PORTS,
        EMBRYONIC,
        CONFIRMED,
        TOMBSTONES,
        FRAGMENTS,
        BUCKETS,
        COUNTERS,
        SETTINGS,
        DIGESTS,
        AGENT_STATE,
        EVENTS,
        SERVICES,
        SERVICE_CIDRS,
        DECIDED,
    ];
    /// Ring buffer reserved for the rate-limited live stream of verdicts (decision D9); programs do not write it yet.
    pub const EVENTS: &str = "EVENTS";
}

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

/// The stamp that a pod's veth leaves on what it lets on, in 16 adjacent bits of `skb->mark` (decision D6). It speaks of
/// the sender's egress only. Believed only on a packet that came in by a pod bridge, or by the veth of the endpoint that
/// it names: other parts of the kernel copy marks to packets of their own making.
pub mod stamp {
    /// No stamp.
    pub const NONE: u16 = 0;
    /// Judged: nothing more is to be said about its egress.
    pub const JUDGED: u16 = 1;
    /// To be judged by its real destination, at the hook of the device by which it leaves.
    pub const DEFERRED: u16 = 2;
    /// The same; but if it leaves by none because it is delivered on this node, it is allowed.
    pub const DEFERRED_UNLESS_LOCAL: u16 = 3;

    /// Bits of the endpoint number.
    pub const ENDPOINT_BITS: u32 = 14;

    /// Joins a state and an endpoint number below [`super::MAX_ENDPOINTS`].
    #[must_use]
    #[inline(always)]
    pub const fn new(state: u16, endpoint: u32) -> u16 {
        (state << ENDPOINT_BITS) | (endpoint as u16 & (super::MAX_ENDPOINTS as u16 - 1))
    }
    /// The state.
    #[must_use]
    #[inline(always)]
    pub const fn state(stamp: u16) -> u16 {
        stamp >> ENDPOINT_BITS
    }
    /// The endpoint number.
    #[must_use]
    #[inline(always)]
    pub const fn endpoint(stamp: u16) -> u32 {
        stamp as u32 & (super::MAX_ENDPOINTS - 1)
    }
    /// The stamp that a mark carries at [`super::Settings::mark_shift`].
    #[must_use]
    #[inline(always)]
    pub const fn of_mark(mark: u32, shift: u32) -> u16 {
        (mark >> (shift & 31)) as u16
    }
    /// The mark with a stamp in it; all other bits stay.
    #[must_use]
    #[inline(always)]
    pub const fn into_mark(mark: u32, shift: u32, stamp: u16) -> u32 {
        let shift = shift & 31;
        (mark & !(0xffff << shift)) | ((stamp as u32) << shift)
    }
}

/// What a proxy rewrites: an address with a port. Node ports and host ports without address have the unspecified address
/// and stand for every address of this node ([`address_kind::THIS_NODE`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ServiceKey {
    /// Cluster, external, load-balancer or host address, IPv4 in mapped form; all zeros: any address of this node.
    pub address: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// How many backends on the node itself a [`ServiceRow`] can name.
pub const LOCAL_BACKENDS: usize = 4;

/// The backends of a [`ServiceKey`] that have an address of this node: what is sent to them passes no device, so whether
/// all of them are allowed must be known at the pod's veth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ServiceRow {
    /// How many of `local` are meant; more than [`LOCAL_BACKENDS`]: there are more than fit, and none is allowed.
    pub count: u32,
    /// The backends.
    pub local: [LocalBackend; LOCAL_BACKENDS],
}

/// A backend on the node itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct LocalBackend {
    /// Address of this node, IPv4 in mapped form.
    pub address: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
}

/// A deferred flow as it leaves: after the proxy, by its real destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct DecidedKey {
    /// Endpoint number of the sender, from the stamp.
    pub endpoint: u32,
    /// Source port as it leaves, network order. ICMP echo: the identifier.
    pub source_port: [u8; 2],
    /// Port of the backend, network order. ICMP: 0.
    pub port: [u8; 2],
    /// Address of the backend, IPv4 in mapped form.
    pub backend: [u8; 16],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// What was decided. Losing the row costs one judgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DecidedRow {
    /// Epoch of the endpoint when it was decided.
    pub epoch: u32,
    /// The rule that allows, or [`RULE_NONE`].
    pub rule: u32,
    /// One of [`rule_action`]: [`rule_action::ALLOW`] or [`rule_action::DENY`].
    pub action: u32,
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
    /// An address of another node.
    pub const OTHER_NODE: u32 = 3;
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
    /// Rule that admitted the flow, or [`RULE_NONE`].
    pub rule: u32,
    /// Second of the boot clock of the last packet, at most one second behind.
    pub last_seen: u32,
    /// Bits of [`phase`].
    pub phase: u32,
    /// One of [`initiator`].
    pub initiator: u8,
    /// One of [`admission`].
    pub admission: u8,
    /// Started by the pod: the state of [`stamp`] that the pod's packets get. Started by its peer: the endpoint number that
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
    /// IP protocol number of the datagram.
    pub protocol: u8,
    /// [`Direction`] as u8.
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
    /// Nanoseconds that one new flow costs an endpoint's token bucket: 1e9 / rate.
    pub bucket_cost: u64,
    /// Nanoseconds of credit a full bucket holds: burst × cost.
    pub bucket_burst: u64,
    /// UDP ports of the overlay (network order, 0 unused): a pod's packets to them on a node address are dropped.
    pub overlay_ports: [[u8; 2]; 4],
}

/// Flags of [`Settings`].
pub mod setting_flags {
    /// Keep flows whose permission was revoked, instead of cutting them at their next packet.
    pub const KEEP_ESTABLISHED: u32 = 1 << 0;
    /// Let everything pass an interface that is still pending.
    pub const PENDING_ALLOW: u32 = 1 << 1;
    /// The overlay is ipip: a pod's protocol 4 packets to node addresses are dropped.
    pub const OVERLAY_IPIP: u32 = 1 << 2;
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
    /// Entries of each flow table.
    pub const FLOWS: u32 = 128 * 1024;
    /// Revoked flows that are remembered.
    pub const TOMBSTONES: u32 = 32 * 1024;
    /// Fragmented datagrams under way.
    pub const FRAGMENTS: u32 = 8 * 1024;
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
    assert!(size_of::<FragmentRow>() == 8);
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<Settings>() == 32);
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
        Settings,
        DigestKey,
        AgentState,
        ServiceKey,
        ServiceRow,
        DecidedKey,
        DecidedRow,
    );
}
