//! Objects of nftables as netlink messages: no more of that language than the guard's table needs.
//!
//! Numbers are those of include/uapi/linux/netfilter/nf_tables.h and stay for ever. What an expression compares is in
//! the order in which the kernel keeps it in a register: marks and interface indices in that of the host.

use std::collections::BTreeSet;

use crate::interfaces::nfnetlink::{APPEND, Attributes, CREATE, Change, attribute, attributes, be32, text};

/// `NFNL_SUBSYS_NFTABLES`.
pub(super) const SUBSYSTEM: u8 = 10;
/// `NFPROTO_INET`: IPv4 and IPv6.
pub(super) const INET: u8 = 1;

const fn message(kind: u16) -> u16 {
    (SUBSYSTEM as u16) << 8 | kind
}

const NEW_TABLE: u16 = message(0);
const DEL_TABLE: u16 = message(2);
const NEW_CHAIN: u16 = message(3);
const NEW_RULE: u16 = message(6);
pub(super) const GET_RULE: u16 = message(7);
const NEW_SET: u16 = message(9);
const NEW_ELEMENT: u16 = message(12);
pub(super) const GET_ELEMENT: u16 = message(13);
const DEL_ELEMENT: u16 = message(14);
const NEW_OBJECT: u16 = message(18);
pub(super) const GET_OBJECT: u16 = message(19);

/// `NFTA_LIST_ELEM`.
const ELEMENT: u16 = 1;

/// Where a chain gets its packets from (`enum nf_inet_hooks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Hook {
    Input = 1,
    Postrouting = 4,
}

/// What a rule looks at (`enum nft_meta_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Meta {
    Mark = 3,
    InInterface = 4,
    OutInterface = 5,
}

/// Packets and bytes of a named counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the network header on.
    pub bytes: u64,
}

fn change(kind: u16, flags: u16, attributes: Attributes) -> Change {
    Change { kind, flags, family: INET, attributes }
}

pub(super) fn new_table(table: &str) -> Change {
    change(NEW_TABLE, CREATE, Attributes::new().text(1, table))
}

pub(super) fn delete_table(table: &str) -> Change {
    change(DEL_TABLE, 0, Attributes::new().text(1, table))
}

/// A chain of type filter that lets on what its rules do not drop.
pub(super) fn new_chain(table: &str, chain: &str, hook: Hook, priority: i32) -> Change {
    let hook = Attributes::new().be32(1, hook as u32).be32(2, priority as u32);
    let attributes = Attributes::new().text(1, table).text(3, chain).nested(4, &hook).be32(5, ACCEPT);
    change(NEW_CHAIN, CREATE, attributes.text(7, "filter"))
}

/// A named counter that goes on from earlier values.
pub(super) fn new_counter(table: &str, name: &str, count: Count) -> Change {
    let data = Attributes::new().be64(1, count.bytes).be64(2, count.packets);
    change(NEW_OBJECT, CREATE, Attributes::new().text(1, table).text(2, name).be32(3, COUNTER).nested(4, &data))
}

/// An empty set of interface indices. `id` names it within the transaction.
pub(super) fn new_interface_set(table: &str, set: &str, id: u32) -> Change {
    /// What `nft` shows the elements as (`TYPE_IFINDEX`); the kernel does not care.
    const INTERFACE: u32 = 20;
    // NFTNL_UDATA_SET_KEYBYTEORDER = BYTEORDER_HOST_ENDIAN, by which `nft` reads the elements.
    let mut user_data = vec![0, 4];
    user_data.extend(1_u32.to_ne_bytes());
    let attributes = Attributes::new().text(1, table).text(2, set).be32(3, 0).be32(4, INTERFACE).be32(5, 4);
    change(NEW_SET, CREATE, attributes.be32(10, id).bytes(13, &user_data))
}

/// Elements put into a set, or taken out of it.
pub(super) fn elements(table: &str, set: &str, interfaces: &[u32], add: bool) -> Change {
    let mut list = Attributes::new();
    for ifindex in interfaces {
        let key = Attributes::new().bytes(1, &ifindex.to_ne_bytes());
        list = list.nested(ELEMENT, &Attributes::new().nested(1, &key));
    }
    let attributes = Attributes::new().text(1, table).text(2, set).nested(3, &list);
    let (kind, flags) = if add { (NEW_ELEMENT, CREATE) } else { (DEL_ELEMENT, 0) };
    change(kind, flags, attributes)
}

/// `NF_DROP`, `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// `NFT_OBJECT_COUNTER`.
const COUNTER: u32 = 1;
/// `NFT_REG_VERDICT`, and the one register that is computed in.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;

/// A rule under construction: all its conditions must hold.
#[derive(Debug)]
pub(super) struct Rule {
    expressions: Attributes,
}

impl Rule {
    pub(super) const fn new() -> Self {
        Self { expressions: Attributes::new() }
    }

    fn expression(self, name: &str, data: &Attributes) -> Self {
        let expression = Attributes::new().text(1, name).nested(2, data);
        Self { expressions: self.expressions.nested(ELEMENT, &expression) }
    }

    fn load(self, key: Meta) -> Self {
        self.expression("meta", &Attributes::new().be32(1, REGISTER).be32(2, key as u32))
    }

    /// The interface is among those of a set, or is not.
    pub(super) fn interface(self, key: Meta, set: &str, id: u32, is_in: bool) -> Self {
        // NFT_LOOKUP_F_INV.
        let flags = u32::from(!is_in);
        let data = Attributes::new().text(1, set).be32(2, REGISTER).be32(4, id).be32(5, flags);
        self.load(key).expression("lookup", &data)
    }

    /// These bits of the mark are, or are not, as given.
    pub(super) fn mark(self, mask: u32, value: u32, is_equal: bool) -> Self {
        let data = |value: u32| Attributes::new().bytes(1, &value.to_ne_bytes());
        let and =
            Attributes::new().be32(1, REGISTER).be32(2, REGISTER).be32(3, 4).nested(4, &data(mask)).nested(5, &data(0));
        // NFT_CMP_EQ, NFT_CMP_NEQ.
        let compare = Attributes::new().be32(1, REGISTER).be32(2, u32::from(!is_equal)).nested(3, &data(value));
        self.load(Meta::Mark).expression("bitwise", &and).expression("cmp", &compare)
    }

    /// What meets all conditions is counted and dropped.
    pub(super) fn drop(self, table: &str, chain: &str, counter: &str) -> Change {
        let verdict = Attributes::new().nested(2, &Attributes::new().be32(1, DROP));
        let rule = self
            .expression("objref", &Attributes::new().be32(1, COUNTER).text(2, counter))
            .expression("immediate", &Attributes::new().be32(1, VERDICT).nested(2, &verdict));
        let attributes = Attributes::new().text(1, table).text(2, chain).nested(4, &rule.expressions);
        change(NEW_RULE, CREATE | APPEND, attributes)
    }
}

/// Names a table in a request.
pub(super) fn of_table(table: &str) -> Attributes {
    Attributes::new().text(1, table)
}

/// Names a set in a request for its elements.
pub(super) fn of_set(table: &str, set: &str) -> Attributes {
    Attributes::new().text(1, table).text(2, set)
}

/// Name and values of a counter that was listed.
pub(super) fn read_counter(object: &[u8]) -> Option<(String, Count)> {
    if attribute(object, 3).and_then(be32) != Some(COUNTER) {
        return None;
    }
    let data = attribute(object, 4)?;
    let number = |kind| attribute(data, kind)?.try_into().ok().map(u64::from_be_bytes);
    Some((text(attribute(object, 2)?), Count { bytes: number(1)?, packets: number(2)? }))
}

/// Table and chain of a rule that was listed.
pub(super) fn read_place(rule: &[u8]) -> Option<(String, String)> {
    Some((text(attribute(rule, 1)?), text(attribute(rule, 2)?)))
}

/// Name and data of each expression of a rule that was listed.
pub(super) fn read_expressions(rule: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    attributes(attribute(rule, 4).unwrap_or_default())
        .filter_map(|(_, expression)| Some((text(attribute(expression, 1)?), attribute(expression, 2)?)))
}

/// Interface indices in a part of a set that was listed.
pub(super) fn read_elements(part: &[u8]) -> BTreeSet<u32> {
    attributes(attribute(part, 3).unwrap_or_default())
        .filter_map(|(_, element)| attribute(attribute(element, 1)?, 1)?.try_into().ok().map(u32::from_ne_bytes))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lists_is_read() {
        let count = Count { packets: 3, bytes: 180 };
        let counter = new_counter("t", "mark_lost", count).attributes;
        assert_eq!(read_counter(counter.as_bytes()), Some(("mark_lost".to_owned(), count)));
        let set = elements("t", "pods", &[5, 9], true).attributes;
        assert_eq!(read_elements(set.as_bytes()), [5, 9].into());
        let rule = Rule::new().interface(Meta::InInterface, "pods", 1, true).drop("t", "input", "mark_lost").attributes;
        assert_eq!(read_place(rule.as_bytes()), Some(("t".to_owned(), "input".to_owned())));
        let names: Vec<String> = read_expressions(rule.as_bytes()).map(|(name, _)| name).collect();
        assert_eq!(names, ["meta", "lookup", "objref", "immediate"]);
    }
}
