//! What a policy set says about a peer, a protocol and a port, without any memory of flows.
//!
//! address → class (`class4`/`class6`, else the CIDR trie) → rule row → port set. The first row found decides: the
//! compiler has already merged every rule that applies to a class into its rows (decision D4).

use crate::abi::{
    CLASS_ANY, CLASS_NONE, ClassRow, Direction, PROTOCOL_ANY, PortKeyData, RULE_NONE, RuleKey, RuleRow, SET_ALLOW_ALL,
    SET_DENY_ALL, SET_PENDING, address_kind, rule_action,
};
use crate::tables::Tables;

/// What the policy says, and which rule made it say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyVerdict {
    /// Whether the packet may pass in this direction.
    pub allowed: bool,
    /// The rule that allows, or [`RULE_NONE`] when nothing isolates the pod, or when nothing allows the packet.
    pub rule: u32,
}

const DENIED: PolicyVerdict = PolicyVerdict { allowed: false, rule: RULE_NONE };

/// The IPv4 address inside an IPv4-mapped one.
#[inline(always)]
fn unmapped(address: &[u8; 16]) -> Option<[u8; 4]> {
    match *address {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
        _ => None,
    }
}

/// Kind and class of an address (IPv4 in mapped form).
#[inline(always)]
pub fn class_of<T: Tables + ?Sized>(tables: &T, address: &[u8; 16]) -> ClassRow {
    let packed = look_up_class(tables, address);
    ClassRow { kind: (packed >> 32) as u32, class: packed as u32 }
}

/// Kind in the high half, class in the low half: one register, because the BPF target cannot return two.
#[inline(never)]
fn look_up_class<T: Tables + ?Sized>(tables: &T, address: &[u8; 16]) -> u64 {
    let (row, prefix_class) = if let Some(v4) = unmapped(address) {
        match tables.class4(&v4) {
            Some(row) => (row, None),
            None => (ClassRow { kind: address_kind::OTHER, class: CLASS_NONE }, tables.cidr4(&v4)),
        }
    } else {
        match tables.class6(address) {
            Some(row) => (row, None),
            None => (ClassRow { kind: address_kind::OTHER, class: CLASS_NONE }, tables.cidr6(address)),
        }
    };
    let ClassRow { kind, class } = row;
    (u64::from(kind) << 32) | u64::from(prefix_class.unwrap_or(class))
}

/// Whether a policy set isolates its pods in a direction. The compiler says "not isolated" by the one answer for every
/// class and protocol: allowed, and by no rule.
#[inline(always)]
pub fn is_isolated<T: Tables + ?Sized>(tables: &T, set: u32, direction: Direction) -> bool {
    if set == SET_ALLOW_ALL {
        return false;
    }
    let key = RuleKey { set, class: CLASS_ANY, direction: direction as u8, protocol: PROTOCOL_ANY, pad: 0 };
    !matches!(tables.rule(&key), Some(RuleRow { action: rule_action::ALLOW, rule: RULE_NONE, .. }))
}

/// Asks the policy of a pod about one packet.
///
/// `peer` is the other side's address (IPv4 in mapped form), `destination_port` is in network order and `None` when the
/// protocol has no ports or they are unknown (a later fragment): then only a rule without ports can allow.
#[inline(always)]
pub fn policy_verdict<T: Tables + ?Sized>(
    tables: &T,
    set: u32,
    direction: Direction,
    peer: &[u8; 16],
    protocol: u8,
    destination_port: Option<[u8; 2]>,
) -> PolicyVerdict {
    match set {
        SET_ALLOW_ALL => return PolicyVerdict { allowed: true, rule: RULE_NONE },
        SET_PENDING | SET_DENY_ALL => return DENIED,
        _ => {}
    }
    let class = class_of(tables, peer).class;
    // The class's own rows come first, and a class that has any never asks those of `CLASS_ANY`, because it always has
    // one for `PROTOCOL_ANY`.
    let mut key = RuleKey { set, class, direction: direction as u8, protocol, pad: 0 };
    if let Some(row) = tables.rule(&key) {
        return row_verdict(tables, &row, destination_port);
    }
    key.protocol = PROTOCOL_ANY;
    if let Some(row) = tables.rule(&key) {
        return row_verdict(tables, &row, destination_port);
    }
    key.class = CLASS_ANY;
    key.protocol = protocol;
    if let Some(row) = tables.rule(&key) {
        return row_verdict(tables, &row, destination_port);
    }
    key.protocol = PROTOCOL_ANY;
    match tables.rule(&key) {
        Some(row) => row_verdict(tables, &row, destination_port),
        None => DENIED,
    }
}

#[inline(always)]
fn row_verdict<T: Tables + ?Sized>(tables: &T, row: &RuleRow, destination_port: Option<[u8; 2]>) -> PolicyVerdict {
    let RuleRow { action, port_set, rule } = *row;
    match action {
        rule_action::ALLOW => PolicyVerdict { allowed: true, rule },
        rule_action::PORTS => {
            let Some(port) = destination_port else { return DENIED };
            let key = PortKeyData { port_set: port_set.to_be_bytes(), port, pad: [0; 2] };
            match tables.port(&key) {
                Some(row) if row.action == rule_action::ALLOW => PolicyVerdict { allowed: true, rule: row.rule },
                _ => DENIED,
            }
        }
        // `DENY`, and every action that a newer agent may know: fail closed.
        _ => DENIED,
    }
}

/// [`policy_verdict`] as one function in the program: it is asked from several places, and its look-ups are the larger
/// part of the code. The question is put into room that is there already, of which the verifier knows no values: it then
/// follows the answer in one state wherever it comes from.
#[inline(always)]
pub(super) fn ask<T: Tables>(tables: &T, question: &Question) -> PolicyVerdict {
    let answer = answer(tables, question);
    PolicyVerdict { allowed: answer & ALLOWED != 0, rule: answer as u32 }
}

const ALLOWED: u64 = 1 << 32;

/// What [`answer`] is asked.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Question {
    /// The other side's address, IPv4 in mapped form.
    pub(super) peer: [u8; 16],
    pub(super) set: u32,
    pub(super) direction: Direction,
    pub(super) protocol: u8,
    pub(super) has_port: bool,
    /// Destination port, network order. Written also where there is none: the verifier refuses to copy what nobody wrote.
    pub(super) port: [u8; 2],
}

impl Question {
    /// None yet.
    pub(super) const EMPTY: Self = Self {
        peer: [0; 16],
        set: SET_PENDING,
        direction: Direction::Ingress,
        protocol: 0,
        has_port: false,
        port: [0; 2],
    };
}

/// The rule in the low half, and above it [`ALLOWED`].
#[inline(never)]
fn answer<T: Tables>(tables: &T, question: &Question) -> u64 {
    let Question { peer, set, direction, protocol, has_port, port } = question;
    let port = if *has_port { Some(*port) } else { None };
    let PolicyVerdict { allowed, rule } = policy_verdict(tables, *set, *direction, peer, *protocol, port);
    if allowed { ALLOWED | u64::from(rule) } else { 0 }
}
