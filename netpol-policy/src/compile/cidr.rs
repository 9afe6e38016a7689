//! Prefixes: where the set of blocks that contain an address changes.
//!
//! All blocks and all their excepts together make one tree for each family (decision D4). A block begins at its own
//! prefix and ends at each of its excepts; what contains an address is found by walking the prefixes around it from the
//! widest to the narrowest. A row is due for each prefix where the set differs from that of the prefix around it, so
//! the set is inherited downwards and an `except` takes an address out of its own block only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::atoms::{AtomId, BlockPeer};

/// What begins and what ends at a prefix.
#[derive(Clone, Debug, Default)]
struct Boundary {
    begins: BTreeSet<AtomId>,
    ends: BTreeSet<AtomId>,
}

/// All prefixes of all blocks and excepts.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefixes {
    boundaries: BTreeMap<IpNet, Boundary>,
    /// Number of boundaries by family (IPv6 or not) and prefix length: which lengths are worth a look-up.
    lengths: BTreeMap<(bool, u8), usize>,
}

/// The blocks that contain an address.
pub(super) type Blocks = BTreeSet<AtomId>;

impl Prefixes {
    /// Enters a block.
    pub(super) fn insert(&mut self, id: AtomId, block: &BlockPeer) {
        self.begin(id, block.cidr);
        for except in &block.except {
            self.end(id, *except);
        }
    }

    /// An atom contains what is below a prefix.
    pub(super) fn begin(&mut self, id: AtomId, prefix: IpNet) {
        let _new = self.boundary(prefix).begins.insert(id);
    }

    /// An atom contains nothing of what is below a prefix.
    pub(super) fn end(&mut self, id: AtomId, prefix: IpNet) {
        let _new = self.boundary(prefix).ends.insert(id);
    }

    fn boundary(&mut self, prefix: IpNet) -> &mut Boundary {
        let prefix = prefix.trunc();
        let lengths = &mut self.lengths;
        self.boundaries.entry(prefix).or_insert_with(|| {
            *lengths.entry(length(&prefix)).or_default() += 1;
            Boundary::default()
        })
    }

    /// Takes a block out.
    pub(super) fn remove(&mut self, id: AtomId, block: &BlockPeer) {
        for prefix in std::iter::once(&block.cidr).chain(&block.except) {
            self.clear(id, *prefix);
        }
    }

    /// An atom neither begins nor ends at a prefix any more.
    pub(super) fn clear(&mut self, id: AtomId, prefix: IpNet) {
        let prefix = prefix.trunc();
        let Some(boundary) = self.boundaries.get_mut(&prefix) else { return };
        let _was = boundary.begins.remove(&id);
        let _was = boundary.ends.remove(&id);
        if boundary.begins.is_empty() && boundary.ends.is_empty() {
            let _boundary = self.boundaries.remove(&prefix);
            if let Some(count) = self.lengths.get_mut(&length(&prefix)) {
                *count -= 1;
                if *count == 0 {
                    let _none = self.lengths.remove(&length(&prefix));
                }
            }
        }
    }

    /// The blocks that contain an address.
    pub(super) fn containing(&self, address: IpAddr) -> Blocks {
        self.around(IpNet::from(address), true)
    }

    /// The blocks that contain a prefix as a whole, as far as boundaries around it tell; with its own or without.
    fn around(&self, prefix: IpNet, itself: bool) -> Blocks {
        let mut blocks = Blocks::new();
        let (family, own) = length(&prefix);
        for (_, bits) in self.lengths.range((family, 0)..=(family, own)).map(|(length, _)| *length) {
            if bits == own && !itself {
                break;
            }
            if let Some(boundary) =
                IpNet::new(prefix.addr(), bits).ok().and_then(|around| self.boundaries.get(&around.trunc()))
            {
                boundary.apply(&mut blocks);
            }
        }
        blocks
    }

    /// The rows due at and below a prefix, with the blocks that contain each.
    pub(super) fn rows_below(&self, prefix: IpNet) -> Vec<(IpNet, Blocks)> {
        let prefix = prefix.trunc();
        let mut rows = Vec::new();
        let mut path: Vec<(IpNet, Blocks)> = Vec::new();
        let outside = self.around(prefix, false);
        for (at, boundary) in self.boundaries.range(below(prefix)) {
            while path.last().is_some_and(|(around, _)| !around.contains(at)) {
                let _left = path.pop();
            }
            let inherited = path.last().map_or(&outside, |(_, blocks)| blocks);
            let mut blocks = inherited.clone();
            boundary.apply(&mut blocks);
            if blocks != *inherited {
                rows.push((*at, blocks.clone()));
            }
            path.push((*at, blocks));
        }
        rows
    }
}

impl Boundary {
    fn apply(&self, blocks: &mut Blocks) {
        let Self { begins, ends } = self;
        blocks.extend(begins);
        blocks.retain(|id| !ends.contains(id));
    }
}

/// All prefixes at and below one, as a range of their order (by address, then from short to long).
pub(super) fn below(prefix: IpNet) -> std::ops::RangeInclusive<IpNet> {
    prefix.trunc()..=IpNet::from(prefix.broadcast())
}

/// The row of the longest prefix that contains an address.
pub(super) fn longest_match(rows: &BTreeMap<IpNet, u32>, address: IpAddr) -> Option<u32> {
    let mut last = IpNet::from(address);
    loop {
        let (prefix, class) = rows.range(..=last).next_back()?;
        if prefix.contains(&address) {
            return Some(*class);
        }
        // Whatever contains the address and is smaller in order contains this prefix's address too, so it is no longer
        // than what the two have in common.
        let common = match (prefix.network(), address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        last = IpNet::new(address, u8::try_from(common).ok()?).ok()?.trunc();
    }
}

fn length(prefix: &IpNet) -> (bool, u8) {
    (matches!(prefix, IpNet::V6(_)), prefix.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::super::atoms::{Atom, Atoms};
    use super::*;

    fn enter(atoms: &mut Atoms, prefixes: &mut Prefixes, cidr: &str, except: &[&str]) -> AtomId {
        let block = BlockPeer {
            cidr: cidr.parse().unwrap(),
            except: except.iter().map(|except| except.parse().unwrap()).collect(),
        };
        let (id, _) = atoms.refer(&Atom::Block(block.clone()), 1);
        prefixes.insert(id, &block);
        id
    }

    #[test]
    fn an_except_takes_an_address_out_of_its_own_block_only() {
        let (mut atoms, mut prefixes) = (Atoms::default(), Prefixes::default());
        let ten = enter(&mut atoms, &mut prefixes, "10.0.0.0/8", &["10.1.0.0/16"]);
        let wide = enter(&mut atoms, &mut prefixes, "10.0.0.0/12", &[]);
        assert_eq!(prefixes.containing("10.1.2.3".parse().unwrap()), [wide].into());
        assert_eq!(prefixes.containing("10.2.2.3".parse().unwrap()), [ten, wide].into());
        assert_eq!(prefixes.containing("10.16.0.1".parse().unwrap()), [ten].into());
        assert_eq!(prefixes.containing("11.0.0.1".parse().unwrap()), [].into());
    }

    #[test]
    fn a_hole_inside_a_block_gets_a_row_without_blocks() {
        let (mut atoms, mut prefixes) = (Atoms::default(), Prefixes::default());
        let all = enter(&mut atoms, &mut prefixes, "0.0.0.0/0", &["169.254.169.254/32"]);
        let rows = prefixes.rows_below("0.0.0.0/0".parse().unwrap());
        assert_eq!(
            rows,
            [("0.0.0.0/0".parse().unwrap(), [all].into()), ("169.254.169.254/32".parse().unwrap(), [].into())]
        );
        assert!(prefixes.rows_below("::/0".parse().unwrap()).is_empty(), "families are apart");
    }

    #[test]
    fn a_prefix_that_changes_nothing_gets_no_row() {
        let (mut atoms, mut prefixes) = (Atoms::default(), Prefixes::default());
        let _outer = enter(&mut atoms, &mut prefixes, "10.0.0.0/8", &["10.1.0.0/16", "10.1.1.0/24"]);
        let rows = prefixes.rows_below("10.0.0.0/8".parse().unwrap());
        assert_eq!(rows.len(), 2, "the inner except is in a hole already: {rows:?}");
    }

    #[test]
    fn a_removed_block_leaves_nothing() {
        let (mut atoms, mut prefixes) = (Atoms::default(), Prefixes::default());
        let id = enter(&mut atoms, &mut prefixes, "2001:db8::/32", &["2001:db8:1::/48"]);
        let block = atoms.get(id).unwrap().atom.block().unwrap().clone();
        prefixes.remove(id, &block);
        assert!(prefixes.rows_below("::/0".parse().unwrap()).is_empty());
        assert!(prefixes.lengths.is_empty());
    }

    #[test]
    fn the_longest_prefix_that_contains_an_address_wins() {
        let prefixes = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.0.128/25", "2001:db8::/32"];
        let rows: BTreeMap<IpNet, u32> = prefixes.iter().map(|prefix| prefix.parse().unwrap()).zip(1..).collect();
        for (address, class) in [
            ("9.9.9.9", Some(1)),
            ("10.2.0.1", Some(2)),
            ("10.1.2.3", Some(3)),
            ("10.1.0.7", Some(4)),
            ("10.1.0.200", Some(5)),
            ("11.0.0.1", Some(1)),
            ("2001:db8::1", Some(6)),
            ("2001:db9::1", None),
            ("::1", None),
        ] {
            assert_eq!(longest_match(&rows, address.parse().unwrap()), class, "{address}");
        }
    }

    #[test]
    fn rows_below_a_prefix_inherit_from_around_it() {
        let (mut atoms, mut prefixes) = (Atoms::default(), Prefixes::default());
        let outer = enter(&mut atoms, &mut prefixes, "10.0.0.0/8", &[]);
        let inner = enter(&mut atoms, &mut prefixes, "10.1.0.0/16", &[]);
        let rows = prefixes.rows_below("10.1.0.0/16".parse().unwrap());
        assert_eq!(rows, [("10.1.0.0/16".parse().unwrap(), [outer, inner].into())]);
    }
}
