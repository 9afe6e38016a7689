//! Port sets: lists of ports with the rule that permits each, shared by content.
//!
//! A range becomes the fewest prefixes that cover it, at most 30 for 16 bits, never one row a port (decision D4).

use std::collections::HashMap;

use netpol_common::abi::{PORT_PREFIX_FULL, PortKeyData, PortRow, rule_action};

use super::answer::Span;

/// A row of [`netpol_common::abi::names::PORTS`]: prefix length in bits, key.
pub(super) type PortKey = (u32, PortKeyData);

/// A port set in use.
#[derive(Clone, Debug)]
pub(super) struct PortSet {
    /// Verdict rows that refer to it.
    pub(super) references: usize,
    /// Namespace whose policies it comes from.
    pub(super) namespace: String,
    /// Its rows.
    pub(super) keys: Vec<PortKey>,
}

/// All port sets by id.
pub(super) type PortSets = HashMap<u32, PortSet>;

/// The rows of a port set.
pub(super) fn rows(port_set: u32, spans: &[Span]) -> Vec<(PortKey, PortRow)> {
    spans
        .iter()
        .flat_map(|Span { first, last, rule }| {
            prefixes(*first, *last).into_iter().map(move |(port, bits)| {
                let key = PortKeyData { port_set: port_set.to_be_bytes(), port: port.to_be_bytes(), pad: [0; 2] };
                let row = PortRow { action: rule_action::ALLOW, rule: *rule };
                ((PORT_PREFIX_FULL - u32::from(bits), key), row)
            })
        })
        .collect()
}

/// The fewest aligned blocks that cover a range, both ends included: first port and number of free bits.
fn prefixes(first: u16, last: u16) -> Vec<(u16, u8)> {
    let mut blocks = Vec::new();
    let (mut next, end) = (u32::from(first), u32::from(last));
    while next <= end {
        let mut bits = 0;
        while bits < 16 && next.is_multiple_of(1 << (bits + 1)) && next + (1 << (bits + 1)) - 1 <= end {
            bits += 1;
        }
        // `next` stays within 16 bits while it is at most `end`.
        blocks.push((next as u16, bits));
        next += 1 << bits;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_takes_at_most_thirty_prefixes_and_covers_exactly_its_ports() {
        for (first, last) in [(1, 65534), (1, 65535), (0, 65535), (443, 443), (30000, 32767), (65535, 65535), (1, 2)] {
            let blocks = prefixes(first, last);
            assert!(blocks.len() <= 30, "{first}-{last}: {}", blocks.len());
            let covered: Vec<u32> =
                blocks.iter().flat_map(|(port, bits)| u32::from(*port)..u32::from(*port) + (1 << bits)).collect();
            assert_eq!(covered, (u32::from(first)..=u32::from(last)).collect::<Vec<_>>());
        }
        assert_eq!(prefixes(0, 65535).len(), 1);
        assert_eq!(prefixes(1, 65534).len(), 30);
    }
}
