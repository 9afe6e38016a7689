//! Services: what a proxy rewrites, the stamp that says how far a packet's egress is judged, and what was decided of it by
//! its real destination (decision D6). Part of the contract of [`super`], with its rules of layout and byte order.

use super::MAX_ENDPOINTS;

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
    /// The stamp that a mark carries at [`super::super::Settings::mark_shift`].
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
/// and stand for every address of this node ([`THIS_NODE`](super::address_kind::THIS_NODE)).
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
    /// The rule that allows, or [`RULE_NONE`](super::RULE_NONE).
    pub rule: u32,
    /// One of [`rule_action`](super::rule_action): `ALLOW` or `DENY`.
    pub action: u32,
}
