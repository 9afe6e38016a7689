//! Typed outcomes. Reasons are append-only: dashboards key on their names, pinned counters on their numbers.

use crate::abi::{Direction, REASONS};

/// Why a packet was dropped, or that it was not. The number is the index of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// Let on.
    Passed = 0,
    /// The pod is isolated in this direction and no rule allows the packet.
    NoRule = 1,
    /// The pod behind the interface is not known yet.
    Pending = 2,
    /// Shorter than its headers say, or than they must be.
    Truncated = 3,
    /// Headers that contradict themselves.
    Malformed = 4,
    /// An EtherType other than IPv4, IPv6 and ARP on an isolated pod.
    EtherType = 5,
    /// A VLAN or priority tag from a pod.
    VlanTag = 6,
    /// IPv4 source routing, or an IPv6 routing header with segments left.
    SourceRoute = 7,
    /// More IPv6 extension headers than are walked.
    ExtensionHeaders = 8,
    /// A source address (or ARP sender, or ND target) that is not the pod's own.
    SpoofedSource = 9,
    /// Delivered to a pod that does not own the destination; quiet, bridge flooding makes such packets.
    NotMine = 10,
    /// From a pod to a node address on the overlay's own port.
    Overlay = 11,
    /// Router advertisement or redirect from a pod, or neighbour discovery with a hop limit below 255.
    NeighborDiscovery = 12,
    /// A first fragment too short for its transport header, or one at offset 1, where a SYN can hide.
    FragmentHeader = 13,
    /// A later fragment whose first was not seen, and no rule without ports allows it.
    FragmentUnknown = 14,
    /// The flow's permission was revoked.
    Revoked = 15,
    /// The endpoint creates flows faster than its token bucket allows.
    FlowRate = 16,
    /// A flow could not be written.
    FlowTableFull = 17,
    /// Belongs to no known flow, and is of a kind that cannot start one (ICMP error, echo reply).
    NoFlow = 18,
    /// A table that must exist has no row: settings, endpoint word.
    TableMissing = 19,
    /// The stamp of decision D6 is missing where it must be.
    MarkLost = 20,
}

impl Reason {
    /// All reasons, in order of their numbers.
    pub const ALL: [Self; 21] = [
        Self::Passed,
        Self::NoRule,
        Self::Pending,
        Self::Truncated,
        Self::Malformed,
        Self::EtherType,
        Self::VlanTag,
        Self::SourceRoute,
        Self::ExtensionHeaders,
        Self::SpoofedSource,
        Self::NotMine,
        Self::Overlay,
        Self::NeighborDiscovery,
        Self::FragmentHeader,
        Self::FragmentUnknown,
        Self::Revoked,
        Self::FlowRate,
        Self::FlowTableFull,
        Self::NoFlow,
        Self::TableMissing,
        Self::MarkLost,
    ];

    /// The name that metrics, logs and JSON use. Never changed once released.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::NoRule => "no_rule",
            Self::Pending => "pending",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::EtherType => "ethertype",
            Self::VlanTag => "vlan_tag",
            Self::SourceRoute => "source_route",
            Self::ExtensionHeaders => "extension_headers",
            Self::SpoofedSource => "spoofed_source",
            Self::NotMine => "not_mine",
            Self::Overlay => "overlay",
            Self::NeighborDiscovery => "neighbor_discovery",
            Self::FragmentHeader => "fragment_header",
            Self::FragmentUnknown => "fragment_unknown",
            Self::Revoked => "revoked",
            Self::FlowRate => "flow_rate",
            Self::FlowTableFull => "flow_table_full",
            Self::NoFlow => "no_flow",
            Self::TableMissing => "table_missing",
            Self::MarkLost => "mark_lost",
        }
    }
}

const _: () = {
    assert!(Reason::ALL.len() as u32 <= REASONS);
    let mut i = 0;
    while i < Reason::ALL.len() {
        assert!(Reason::ALL[i] as usize == i);
        i += 1;
    }
};

/// The answer for one packet, with what explains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// [`Reason::Passed`], or why not.
    pub reason: Reason,
    /// From the pod's point of view.
    pub direction: Direction,
    /// Endpoint whose policy answered; [`crate::abi::PENDING_ENDPOINT`] while it is unknown.
    pub endpoint: u32,
    /// Rule that allowed, or [`crate::abi::RULE_NONE`].
    pub rule: u32,
    /// The `skb->mark` with which the packet goes on, if it does: with the stamp of decision D6 in it.
    pub mark: u32,
}

impl Verdict {
    /// Whether the packet goes on.
    #[must_use]
    #[inline(always)]
    pub const fn passes(&self) -> bool {
        matches!(self.reason, Reason::Passed)
    }
}
