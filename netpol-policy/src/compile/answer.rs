//! Answers: what a policy set says to a class in one direction, in a normal form.
//!
//! An answer is a pure function of the set's content and the class's atoms, so rows never change once written. Equal
//! answers have equal forms; that is how classes whose answer is that of `any` are found. Answers are ordered by what
//! they permit ([`Answer::within`]) and can be intersected ([`Answer::and`]): of an address that two pods claim, only
//! what both allow holds.

use netpol_common::abi::{PROTOCOL_ANY, RULE_NONE};

use crate::model::Protocol;

/// Transport protocols that policies can name.
pub(super) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Ports that one rule decides. Both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) first: u16,
    pub(super) last: u16,
    /// Rule id.
    pub(super) rule: u32,
}

/// What is permitted of one protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Grant {
    /// Nothing.
    #[default]
    None,
    /// Every port, also an unknown one, by this rule.
    All(u32),
    /// These ports: disjoint, in order, neighbours of one rule joined, never empty.
    Ports(Vec<Span>),
}

/// The answer of a set for a class in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// The rule that permits every protocol; then nothing else is said.
    any: Option<u32>,
    /// In the order of [`PROTOCOLS`].
    grants: [Grant; 3],
}

impl Answer {
    /// Everything, by no rule: the direction is not isolated.
    pub(super) fn not_isolated() -> Self {
        Self { any: Some(RULE_NONE), grants: Default::default() }
    }

    /// Whether nothing is permitted.
    pub(super) fn is_denial(&self) -> bool {
        self.any.is_none() && self.grants.iter().all(|grant| *grant == Grant::None)
    }

    /// The rows it takes: protocol number and what is permitted. The row for any protocol comes last, and is a denial
    /// unless a rule has no ports.
    pub(super) fn rows(&self) -> Vec<(u8, Grant)> {
        let Self { any, grants } = self;
        let mut rows: Vec<(u8, Grant)> = PROTOCOLS
            .iter()
            .zip(grants)
            .filter(|(_, grant)| **grant != Grant::None)
            .map(|(protocol, grant)| (protocol.number(), grant.clone()))
            .collect();
        rows.push((PROTOCOL_ANY, any.map_or(Grant::None, Grant::All)));
        rows
    }

    /// What both permit.
    pub(super) fn and(self, other: &Self) -> Self {
        match (self.any, other.any) {
            (Some(_) | None, Some(_)) => self,
            (Some(_), None) => other.clone(),
            (None, None) => {
                let mut grants: [Grant; 3] = Default::default();
                for (both, (a, b)) in grants.iter_mut().zip(self.grants.iter().zip(&other.grants)) {
                    *both = intersection(a, b);
                }
                Self { any: None, grants }
            }
        }
    }

    /// Whether the other permits all that this one does, whatever the rules.
    pub(super) fn within(&self, other: &Self) -> bool {
        if other.any.is_some() {
            return true;
        }
        self.any.is_none() && self.grants.iter().zip(&other.grants).all(|(a, b)| grant_within(a, b))
    }

    /// Whether both permit the same, whatever the rules.
    pub(super) fn permits_same(&self, other: &Self) -> bool {
        self.within(other) && other.within(self)
    }
}

fn intersection(a: &Grant, b: &Grant) -> Grant {
    match (a, b) {
        (Grant::None, _) | (_, Grant::None) => Grant::None,
        (grant, Grant::All(_)) | (Grant::All(_), grant) => grant.clone(),
        (Grant::Ports(a), Grant::Ports(b)) => {
            let mut both = Vec::new();
            for span in a {
                for other in b {
                    let (first, last) = (span.first.max(other.first), span.last.min(other.last));
                    if first <= last {
                        both.push(Span { first, last, rule: span.rule });
                    }
                }
            }
            ports(joined(both))
        }
    }
}

fn grant_within(a: &Grant, b: &Grant) -> bool {
    match (a, b) {
        (Grant::None, _) | (_, Grant::All(_)) => true,
        // All includes packets whose port is not known, which no list of ports does.
        (_, Grant::None) | (Grant::All(_), Grant::Ports(_)) => false,
        (Grant::Ports(a), Grant::Ports(b)) => a.iter().all(|span| {
            let mut next = u32::from(span.first);
            for other in b {
                if u32::from(other.first) <= next && u32::from(other.last) >= next {
                    next = u32::from(other.last) + 1;
                }
            }
            next > u32::from(span.last)
        }),
    }
}

fn ports(spans: Vec<Span>) -> Grant {
    if spans.is_empty() { Grant::None } else { Grant::Ports(spans) }
}

/// Joins neighbours of one rule in an ordered list of disjoint spans.
fn joined(spans: Vec<Span>) -> Vec<Span> {
    let mut joined: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match joined.last_mut() {
            Some(last) if last.rule == span.rule && u32::from(last.last) + 1 == u32::from(span.first) => {
                last.last = span.last;
            }
            _ => joined.push(span),
        }
    }
    joined
}

/// Collects what rules permit; of overlapping ones the first in order is named.
#[derive(Debug, Default)]
pub(super) struct AnswerBuilder {
    any: Option<(usize, u32)>,
    all: [Option<(usize, u32)>; 3],
    ports: [Vec<(usize, Span)>; 3],
}

impl AnswerBuilder {
    /// A rule without ports permits everything.
    pub(super) fn permit_any(&mut self, rank: usize, rule: u32) {
        keep_first(&mut self.any, rank, rule);
    }

    /// A rule permits every port of a protocol.
    pub(super) fn permit_protocol(&mut self, rank: usize, rule: u32, protocol: Protocol) {
        keep_first(&mut self.all[protocol_index(protocol)], rank, rule);
    }

    /// A rule permits a range of ports, both ends included.
    pub(super) fn permit_ports(&mut self, rank: usize, rule: u32, protocol: Protocol, first: u16, last: u16) {
        if first <= last {
            self.ports[protocol_index(protocol)].push((rank, Span { first, last, rule }));
        }
    }

    /// The answer in its normal form.
    pub(super) fn finish(self) -> Answer {
        let Self { any, all, ports: lists } = self;
        if let Some((_, rule)) = any {
            return Answer { any: Some(rule), grants: Default::default() };
        }
        let mut grants: [Grant; 3] = Default::default();
        for (grant, (all, list)) in grants.iter_mut().zip(all.into_iter().zip(lists)) {
            *grant = match all {
                Some((_, rule)) => Grant::All(rule),
                None => ports(disjoint(list)),
            };
        }
        Answer { any: None, grants }
    }
}

fn keep_first(slot: &mut Option<(usize, u32)>, rank: usize, rule: u32) {
    if slot.is_none_or(|(first, _)| rank < first) {
        *slot = Some((rank, rule));
    }
}

fn protocol_index(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Sctp => 2,
    }
}

/// Cuts overlapping spans so that each port belongs to the one of lowest rank.
fn disjoint(spans: Vec<(usize, Span)>) -> Vec<Span> {
    use std::collections::{BTreeMap, BTreeSet};
    // Where the set of spans that hold a port changes: those that begin, and those that have ended.
    let mut events: BTreeMap<u32, Vec<(bool, usize, u32)>> = BTreeMap::new();
    for (rank, Span { first, last, rule }) in spans {
        events.entry(first.into()).or_default().push((true, rank, rule));
        events.entry(u32::from(last) + 1).or_default().push((false, rank, rule));
    }
    // One rule may name overlapping ranges, so the same span can be active several times.
    let mut active: BTreeMap<(usize, u32), usize> = BTreeMap::new();
    let mut cut = Vec::new();
    let bounds: Vec<u32> = events.keys().copied().collect::<BTreeSet<_>>().into_iter().collect();
    for (position, bound) in bounds.iter().enumerate() {
        for (begins, rank, rule) in events.remove(bound).unwrap_or_default() {
            let count = active.entry((rank, rule)).or_default();
            if begins {
                *count += 1;
            } else {
                *count -= 1;
                if *count == 0 {
                    let _none = active.remove(&(rank, rule));
                }
            }
        }
        if let (Some(((_, rule), _)), Some(next)) = (active.first_key_value(), bounds.get(position + 1)) {
            // A span is active, so both bounds lie within its ports.
            if let (Ok(first), Ok(last)) = (u16::try_from(*bound), u16::try_from(next - 1)) {
                cut.push(Span { first, last, rule: *rule });
            }
        }
    }
    joined(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(build: impl FnOnce(&mut AnswerBuilder)) -> Answer {
        let mut builder = AnswerBuilder::default();
        build(&mut builder);
        builder.finish()
    }

    #[test]
    fn of_overlapping_ranges_the_first_rule_is_named() {
        let overlapping = answer(|builder| {
            builder.permit_ports(1, 11, Protocol::Tcp, 1, 100);
            builder.permit_ports(0, 10, Protocol::Tcp, 50, 60);
            builder.permit_ports(1, 11, Protocol::Tcp, 90, 65535);
        });
        let expected = Grant::Ports(vec![
            Span { first: 1, last: 49, rule: 11 },
            Span { first: 50, last: 60, rule: 10 },
            Span { first: 61, last: 65535, rule: 11 },
        ]);
        assert_eq!(overlapping.rows(), [(6, expected), (PROTOCOL_ANY, Grant::None)]);
    }

    #[test]
    fn a_rule_without_ports_leaves_nothing_else_to_say() {
        let broad = answer(|builder| {
            builder.permit_ports(0, 1, Protocol::Udp, 53, 53);
            builder.permit_any(1, 2);
        });
        assert_eq!(broad.rows(), [(PROTOCOL_ANY, Grant::All(2))]);
    }

    #[test]
    fn an_intersection_permits_what_both_permit() {
        let a = answer(|builder| {
            builder.permit_ports(0, 1, Protocol::Tcp, 10, 20);
            builder.permit_protocol(0, 1, Protocol::Udp);
        });
        let b = answer(|builder| {
            builder.permit_ports(0, 2, Protocol::Tcp, 15, 30);
            builder.permit_ports(0, 2, Protocol::Udp, 53, 53);
            builder.permit_protocol(0, 2, Protocol::Sctp);
        });
        let both = a.clone().and(&b);
        assert!(both.within(&a) && both.within(&b));
        assert_eq!(
            both.rows(),
            [
                (6, Grant::Ports(vec![Span { first: 15, last: 20, rule: 1 }])),
                (17, Grant::Ports(vec![Span { first: 53, last: 53, rule: 2 }])),
                (PROTOCOL_ANY, Grant::None),
            ]
        );
        assert_eq!(Answer::not_isolated().and(&a), a);
    }

    #[test]
    fn a_list_of_all_ports_is_less_than_the_whole_protocol() {
        let listed = answer(|builder| builder.permit_ports(0, 1, Protocol::Tcp, 0, u16::MAX));
        let whole = answer(|builder| builder.permit_protocol(0, 1, Protocol::Tcp));
        assert!(listed.within(&whole));
        assert!(!whole.within(&listed), "a later fragment has no port");
        assert!(!listed.permits_same(&whole));
    }

    #[test]
    fn spans_of_different_rules_cover_together() {
        let one = answer(|builder| builder.permit_ports(0, 1, Protocol::Tcp, 1, 10));
        let two = answer(|builder| {
            builder.permit_ports(0, 2, Protocol::Tcp, 1, 5);
            builder.permit_ports(1, 3, Protocol::Tcp, 6, 10);
        });
        assert!(one.permits_same(&two));
        assert_ne!(one, two);
    }
}
