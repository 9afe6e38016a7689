//! One packet on the slow way, with everything that is found out about it.

use super::Hook;
use super::subject::Subject;
use crate::abi::{Direction, FlowKey, FlowRow, RULE_NONE, admission};
use crate::flow;
use crate::parse::{Address, Kind, Packet, protocol};
use crate::verdict::{Reason, Verdict};

/// Whether a packet is a fragment without transport header, and what is known of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaterFragment {
    /// It has its own transport header.
    No,
    /// The first fragment was let on here, and its ports are this one's.
    PortsKnown,
    /// It was not, or too long ago.
    PortsUnknown,
}

/// A packet on the slow way.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Case {
    pub(super) packet: Packet,
    /// Boot clock, in ns.
    pub(super) now_ns: u64,
    /// The entry that [`super::tracking::find`] has found last. At a multiple of eight: it is copied by words of that size.
    pub(super) row: FlowRow,
    /// The flow that the packet names.
    pub(super) key: FlowKey,
    pub(super) subject: Subject,
    /// The rule that lets the packet on, or [`RULE_NONE`].
    pub(super) rule: u32,
    /// What became of the packet.
    pub(super) reason: Reason,
    pub(super) ifindex: u32,
    pub(super) direction: Direction,
    /// A socket of this host sent the packet.
    pub(super) host_socket: bool,
    /// And from an address of this node: the node itself (decision D7).
    pub(super) own_node: bool,
    pub(super) fragment: LaterFragment,
}

const _: () = assert!(core::mem::offset_of!(Case, row).is_multiple_of(8), "the row is copied by words");

/// Room for the packet that [`super::judge_in`] works on. All zeros are valid.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Scratch(pub(super) Case);

impl Scratch {
    /// Empty room.
    #[must_use]
    #[inline(always)]
    pub fn new() -> Self {
        Self(Case {
            packet: Packet::new(Kind::Segment),
            now_ns: 0,
            key: FlowKey::default(),
            row: FlowRow::default(),
            subject: Subject::unknown(),
            reason: Reason::TableMissing,
            rule: RULE_NONE,
            ifindex: 0,
            direction: Direction::Ingress,
            host_socket: false,
            own_node: false,
            fragment: LaterFragment::No,
        })
    }

    /// The packet that was judged last, as far as it could be read: what could not is left of the one before it.
    #[must_use]
    #[inline(always)]
    pub const fn packet(&self) -> &Packet {
        let Self(case) = self;
        &case.packet
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Case {
    /// Takes up the packet that has just been parsed in.
    #[inline(always)]
    pub(super) fn begin(&mut self, hook: &Hook) {
        self.now_ns = hook.now_ns;
        self.rule = RULE_NONE;
        self.ifindex = hook.ifindex;
        self.direction = hook.direction;
        self.host_socket = hook.sent_by_host_socket();
        self.own_node = false;
        self.fragment = LaterFragment::No;
    }

    /// What became of the packet.
    #[inline(always)]
    pub(super) const fn verdict(&self) -> Verdict {
        Verdict { reason: self.reason, direction: self.direction, endpoint: self.subject.endpoint, rule: self.rule }
    }

    #[inline(always)]
    pub(super) const fn now(&self) -> u32 {
        flow::seconds(self.now_ns)
    }

    #[inline(always)]
    pub(super) fn name_flow(&mut self) {
        self.key = flow::key(self.ifindex, &self.packet, self.direction);
    }

    /// Whether the packet may belong to a connection from before its pod was adopted (decision D5). Only protocols whose
    /// connections show their beginning: of others, the initiator's next packet is as good as its first.
    #[inline(always)]
    pub(super) const fn is_in_the_middle(&self) -> bool {
        self.now() < self.subject.reverse_until
            && matches!(self.packet.protocol, protocol::TCP | protocol::SCTP)
            && matches!(self.packet.kind, Kind::Segment | Kind::OpeningAnswer)
    }

    /// The pod's address.
    #[inline(always)]
    pub(super) const fn local(&self) -> Address {
        flow::local(&self.packet, self.direction)
    }

    #[inline(always)]
    pub(super) const fn is_from_pod(&self) -> bool {
        matches!(self.direction, Direction::Egress)
    }

    /// Whether the entry found last was judged by what is in force now. While nothing is, only the own node's flows go
    /// on.
    #[inline(always)]
    pub(super) const fn row_is_current(&self) -> bool {
        self.row.endpoint == self.subject.endpoint
            && self.row.epoch == self.subject.epoch
            && (!self.subject.is_closed() || self.row.admission == admission::OWN_NODE)
    }

    /// Marks the entry as judged by what is in force now, with the rule that came out, and as just seen.
    #[inline(always)]
    pub(super) fn renew_row(&mut self) {
        self.row.rule = self.rule;
        self.row.endpoint = self.subject.endpoint;
        self.row.epoch = self.subject.epoch;
        self.row.last_seen = self.now();
    }

    /// Whether the packet may start a flow. An echo reply, an ICMP message without identifier or a piece of a datagram
    /// cannot.
    #[inline(always)]
    pub(super) const fn may_start(&self) -> bool {
        matches!(self.fragment, LaterFragment::No)
            && matches!(self.packet.kind, Kind::Segment | Kind::Opening | Kind::OpeningAnswer | Kind::EchoRequest)
    }
}
