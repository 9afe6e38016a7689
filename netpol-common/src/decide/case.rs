//! One packet on the slow way, with everything that is found out about it.

use super::Hook;
use super::policy::{PolicyVerdict, Question, ask};
use super::subject::Subject;
use crate::abi::{
    Counter, DecidedKey, Direction, FlowKey, FlowRow, RULE_NONE, SENDER_UNKNOWN, SET_ALLOW_ALL, ServiceRow, Settings,
    admission, counter_index, initiator, stamp,
};
use crate::flow;
use crate::parse::{Address, Kind, Packet, protocol};
use crate::tables::Tables;
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

/// Where the entry is that a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Entry {
    /// There is none.
    None,
    /// Among the flows that no reply has confirmed.
    Embryonic,
    /// Among those of them that are over budget.
    OverEmbryonic,
    /// Among those that a reply has.
    Confirmed,
    /// Among those of them that are over their account's share, or finished.
    OverConfirmed,
    /// Among the revoked ones.
    Tombstone,
    /// Among those of them that are over budget.
    OverTombstone,
    /// It is the one that an ICMP error speaks of.
    Quoted,
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
    /// The row that [`super::destination`] has found last.
    pub(super) service: ServiceRow,
    /// The deferred flow as it leaves.
    pub(super) decided: DecidedKey,
    /// What the policy was asked last.
    pub(super) question: Question,
    /// What [`super::destination::look_up`] has said, 0 if it was not asked.
    pub(super) found: u32,
    /// The rule that lets the packet on, or [`RULE_NONE`].
    pub(super) rule: u32,
    /// What became of the packet.
    pub(super) reason: Reason,
    pub(super) ifindex: u32,
    pub(super) ingress_ifindex: u32,
    /// `skb->mark` as the packet came.
    pub(super) mark: u32,
    /// What the packet adds to a counter.
    pub(super) segments: u32,
    pub(super) bytes: u32,
    /// What [`FlowRow::came_by`] and [`FlowRow::came_endpoint`] are for this packet, if it does not come from the pod.
    pub(super) came_by: u32,
    pub(super) came_endpoint: u32,
    /// The stamp that the packet came with, if it is believed, else [`stamp::NONE`].
    pub(super) stamp: u16,
    /// What the pod sends goes on with this state of [`stamp`].
    pub(super) state: u16,
    /// A deferred packet was judged by its real destination, and goes on as [`stamp::JUDGED`].
    pub(super) settled: bool,
    /// Where `row` was found.
    pub(super) entry: Entry,
    /// Whether it was judged by what is in force now.
    pub(super) current: bool,
    /// If not: what became of it.
    pub(super) judged: Reason,
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
            service: ServiceRow::default(),
            decided: DecidedKey::default(),
            question: Question::EMPTY,
            found: 0,
            reason: Reason::TableMissing,
            rule: RULE_NONE,
            ifindex: 0,
            ingress_ifindex: 0,
            mark: 0,
            segments: 0,
            bytes: 0,
            came_by: 0,
            came_endpoint: 0,
            stamp: stamp::NONE,
            state: stamp::NONE,
            settled: false,
            entry: Entry::None,
            current: false,
            judged: Reason::Passed,
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
    pub(super) fn begin(&mut self, hook: &Hook, bytes: u32) {
        self.now_ns = hook.now_ns;
        self.segments = if hook.segments == 0 { 1 } else { hook.segments };
        self.bytes = bytes;
        self.ingress_ifindex = hook.ingress_ifindex;
        self.mark = hook.mark;
        self.came_by = 0;
        self.came_endpoint = 0;
        self.stamp = stamp::NONE;
        self.state = stamp::JUDGED;
        self.settled = false;
        self.rule = RULE_NONE;
        self.ifindex = hook.ifindex;
        self.direction = hook.direction;
        self.host_socket = hook.sent_by_host_socket();
        self.own_node = false;
        self.fragment = LaterFragment::No;
    }

    /// What became of the packet.
    #[inline(always)]
    pub(super) fn verdict<T: Tables>(&self, tables: &T) -> Verdict {
        let Self { reason, direction, rule, .. } = *self;
        let mark = self.mark_out(tables);
        Verdict { reason, direction, endpoint: self.subject.endpoint, rule, mark }
    }

    #[inline(always)]
    fn mark_out<T: Tables>(&self, tables: &T) -> u32 {
        let stamp = if self.settled {
            stamp::new(stamp::JUDGED, stamp::endpoint(self.stamp))
        } else if self.is_from_pod() {
            stamp::new(self.state, self.subject.endpoint)
        } else {
            return self.mark;
        };
        match tables.settings() {
            Some(Settings { mark_shift, .. }) => stamp::into_mark(self.mark, mark_shift, stamp),
            // Nothing passes without settings.
            None => self.mark,
        }
    }

    /// Counts the packet.
    #[inline(always)]
    pub(super) fn count<T: Tables>(&self, tables: &T, endpoint: u32, direction: Direction, reason: Reason) {
        let add = Counter { packets: self.segments.into(), bytes: self.bytes.into() };
        tables.count(counter_index(endpoint, direction, reason as u32), add);
    }

    /// Whether the packet came with a stamp that leaves its egress open.
    #[inline(always)]
    pub(super) const fn is_deferred(&self) -> bool {
        stamp::state(self.stamp) >= stamp::DEFERRED
    }

    /// The endpoint that sent the packet, by the stamp that is believed; 0 if there is none, and none is missing.
    #[inline(always)]
    pub(super) const fn sender(&self) -> u16 {
        if self.stamp == stamp::NONE && self.came_by == 0 && self.ingress_ifindex != 0 {
            return SENDER_UNKNOWN;
        }
        stamp::endpoint(self.stamp) as u16
    }

    /// Whether a pod has reached itself, through a Service: then the source is an address of the node, and means nothing.
    #[inline(always)]
    pub(super) const fn is_to_itself(&self) -> bool {
        self.stamp != stamp::NONE && stamp::endpoint(self.stamp) == self.subject.endpoint
    }

    /// The state of [`stamp`] that the pod's packets get by the entry found last.
    #[inline(always)]
    pub(super) const fn state_of_row(&self) -> u16 {
        match self.row.initiator {
            initiator::POD => match self.row.stamp {
                stamp::JUDGED | stamp::DEFERRED_UNLESS_LOCAL => self.row.stamp,
                _ => stamp::DEFERRED,
            },
            _ => stamp::JUDGED,
        }
    }

    /// The account to which the entry found last is charged.
    #[inline(always)]
    pub(super) const fn account(&self) -> u32 {
        flow::account_of(self.key.protocol, &self.row)
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

    /// Whether the packet may be an answer although everything passes, so that nothing shows who began: until the pod's
    /// policy is in force, the first that is heard of what was there before need not be its initiator's.
    #[inline(always)]
    pub(super) const fn may_have_been_answered(&self) -> bool {
        self.now() < self.subject.reverse_until
            && self.subject.set == SET_ALLOW_ALL
            && matches!(self.packet.kind, Kind::Segment)
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

    /// The rule by which the endpoint's policy lets a packet of the protocol of [`Case::key`] start a flow with the peer that
    /// is in [`Case::question`] already, if any.
    #[inline(always)]
    pub(super) fn allows<T: Tables>(
        &mut self,
        tables: &T,
        direction: Direction,
        has_port: bool,
        destination_port: [u8; 2],
    ) -> Option<u32> {
        let Self { subject, key, question, .. } = self;
        question.set = subject.set;
        question.direction = direction;
        question.protocol = key.protocol;
        question.has_port = has_port;
        question.port = destination_port;
        let PolicyVerdict { allowed, rule } = ask(tables, question);
        if allowed { Some(rule) } else { None }
    }

    /// Puts the peer whose packet this is into [`Case::question`].
    #[inline(always)]
    pub(super) fn ask_about_peer(&mut self) {
        if self.is_to_itself() {
            self.question.peer = self.local().bytes();
        } else {
            self.question.peer = self.key.peer;
        }
    }

    /// Puts a new flow of the packet into [`Case::row`]; `stamp` as there. Field by field: a row by value would need the
    /// stack.
    #[inline(always)]
    pub(super) fn begin_row(&mut self, initiator: u8, admission: u8, stamp: u16) {
        self.row.local = self.local().bytes();
        self.row.endpoint = self.subject.endpoint;
        self.row.epoch = self.subject.epoch;
        self.row.rule = self.rule;
        self.row.last_seen = self.now();
        self.row.phase = flow::next_phase(0, &self.packet);
        self.row.initiator = initiator;
        self.row.admission = admission;
        self.row.stamp = stamp;
        self.row.came_by = self.came_by;
        self.row.came_endpoint = self.came_endpoint;
    }

    /// Whether the packet renews the entry found last: of a deferred flow only what the pod sends is looked at again.
    #[inline(always)]
    pub(super) const fn renews_row(&self) -> bool {
        renews(&self.row, self.direction)
    }

    /// Marks the entry as judged by what is in force now, with the rule that came out, and as just seen.
    #[inline(always)]
    pub(super) fn renew_row(&mut self) {
        self.row.rule = self.rule;
        self.row.endpoint = self.subject.endpoint;
        self.row.epoch = self.subject.epoch;
        if self.renews_row() {
            self.row.last_seen = self.now();
        }
    }

    /// Whether the packet may start a flow. An echo reply, an ICMP message without identifier or a piece of a datagram
    /// cannot.
    #[inline(always)]
    pub(super) const fn may_start(&self) -> bool {
        matches!(self.fragment, LaterFragment::No)
            && matches!(self.packet.kind, Kind::Segment | Kind::Opening | Kind::OpeningAnswer | Kind::EchoRequest)
    }
}

/// Whether a packet in a direction renews a flow.
#[inline(always)]
pub(super) const fn renews(row: &FlowRow, direction: Direction) -> bool {
    row.admission != admission::DEFERRED || row.initiator == flow::sender(direction)
}
