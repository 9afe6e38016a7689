//! Who else uses the bits of the packet mark that carry the stamp (decision D6).
//!
//! A routing rule that compares them would send pods' packets elsewhere once they are stamped; a rule of nftables that
//! sets them would take the stamp away. So both are looked for before anything is stamped, the rules of iptables on
//! nftables included, and the agent refuses to start, naming them. kube-proxy's bits (0x4000, 0x8000) and those of the
//! portmap plugin (0x2000) are below ours by default; another mask is `--mark-mask`.
//!
//! A rule that compares the *whole* mark with a value that has none of our bits only ever meant packets whose mark
//! somebody had set as a whole, such as a tunnel's own: no pod's. It is told in the log, and is no conflict.

use std::collections::BTreeMap;
use std::fmt;

use super::nft;
use super::{GuardError, TABLE, failed};
use crate::interfaces::netlink::MarkRule;
use crate::interfaces::nfnetlink::{Nfnetlink, attribute, be32, text};

/// Something that uses bits of the mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// What and where, for people.
    pub place: String,
    /// The bits.
    pub bits: u32,
    /// What is done with them.
    pub way: Way,
}

/// What is done with bits of the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They are compared with something.
    Read,
    /// The whole mark is compared with this value.
    Whole(u32),
    /// They are changed.
    Written,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, bits, way } = self;
        match way {
            Way::Read => write!(f, "{place} compares bits {bits:#010x}"),
            Way::Whole(value) => write!(f, "{place} compares the whole mark with {value:#x}"),
            Way::Written => write!(f, "{place} sets bits {bits:#010x}"),
        }
    }
}

impl Use {
    /// Whether our stamp in these bits and this use of them exclude each other.
    #[must_use]
    pub const fn conflicts(&self, ours: u32) -> bool {
        match self.way {
            Way::Read | Way::Written => self.bits & ours != 0,
            Way::Whole(value) => value == 0 || value & ours != 0,
        }
    }
}

/// Everything on this node that uses bits of the mark: routing rules, and the rules of all tables of nftables but ours.
pub fn uses(rules: &[MarkRule]) -> Result<Vec<Use>, GuardError> {
    let mut uses: Vec<Use> = rules
        .iter()
        .map(|MarkRule { family, priority, mark, mask }| {
            let place = format!("the {family} routing rule with priority {priority}");
            compared(place, *mask, Some(*mark))
        })
        .collect();
    let mut netlink = Nfnetlink::open().map_err(failed("socket"))?;
    // NFPROTO_UNSPEC: those of all families.
    let request = crate::interfaces::nfnetlink::Attributes::new();
    let listed = netlink.dump(nft::GET_RULE, 0, &request, |family, rule| Some(of_rule(family, rule)));
    match listed {
        Ok(found) => uses.extend(found.into_iter().flatten()),
        // A kernel without nftables has no rules of it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOENT)) => {}
        Err(error) => return Err(failed("list rules")(error)),
    }
    Ok(uses)
}

fn compared(place: String, bits: u32, value: Option<u32>) -> Use {
    match value {
        Some(value) if bits == u32::MAX => Use { place, bits, way: Way::Whole(value) },
        _ => Use { place, bits, way: Way::Read },
    }
}

/// What a register holds of the packet's mark: these bits of it, the others being zero, after these were changed.
#[derive(Clone, Copy)]
struct Tainted {
    kept: u32,
    flipped: u32,
}

const META_MARK: u32 = 3;

/// What one rule does with the mark, found by following it from register to register.
fn of_rule(family: u8, rule: &[u8]) -> Vec<Use> {
    let Some((table, chain)) = nft::read_place(rule) else { return Vec::new() };
    if (family, table.as_str()) == (nft::INET, TABLE) {
        return Vec::new();
    }
    let handle = attribute(rule, 3).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
    let place = format!("the nftables rule {} {table} {chain}, handle {handle},", family_name(family));
    let mut uses = Vec::new();
    let mut registers: BTreeMap<u32, Tainted> = BTreeMap::new();
    for (name, data) in nft::read_expressions(rule) {
        let number = |kind| attribute(data, kind).and_then(be32);
        match name.as_str() {
            "meta" => match (number(1), number(2), number(3)) {
                (Some(register), Some(META_MARK), None) => {
                    registers.insert(register, Tainted { kept: u32::MAX, flipped: 0 });
                }
                (None, Some(META_MARK), Some(register)) => {
                    let changed = registers.get(&register).map_or(u32::MAX, |mark| !mark.kept | mark.flipped);
                    uses.push(Use { place: place.clone(), bits: changed, way: Way::Written });
                }
                (Some(register), ..) => drop(registers.remove(&register)),
                _ => {}
            },
            "bitwise" => {
                let (Some(from), Some(to)) = (number(1), number(2)) else { continue };
                let operand = |kind| attribute(data, kind).and_then(|data| value(attribute(data, 1)?));
                match (registers.get(&from).copied(), operand(4), operand(5)) {
                    (Some(Tainted { kept, flipped }), Some(mask), Some(xor)) => {
                        let mark = Tainted { kept: kept & mask, flipped: (flipped & mask) ^ xor };
                        registers.insert(to, mark);
                    }
                    // A shift, or an operand out of another register: nothing is known of the result.
                    (Some(_), ..) => drop(registers.insert(to, Tainted { kept: 0, flipped: u32::MAX })),
                    (None, ..) => drop(registers.remove(&to)),
                }
            }
            "cmp" => {
                if let Some(mark) = number(1).and_then(|register| registers.get(&register)) {
                    let other = attribute(data, 3).and_then(|data| value(attribute(data, 1)?));
                    uses.push(compared(place.clone(), mark.kept, other));
                }
            }
            "range" => {
                if let Some(mark) = number(1).and_then(|register| registers.get(&register)) {
                    uses.push(compared(place.clone(), mark.kept, None));
                }
            }
            "lookup" => {
                if let Some(mark) = number(2).and_then(|register| registers.get(&register)) {
                    uses.push(compared(place.clone(), mark.kept, None));
                }
                if let Some(register) = number(3) {
                    registers.remove(&register);
                }
            }
            "match" => uses.extend(of_match(&place, data)),
            "target" => uses.extend(of_target(&place, data)),
            // All others that write a register do so by their first attribute or their second.
            _ => {
                for register in [number(1), number(2)].into_iter().flatten() {
                    registers.remove(&register);
                }
            }
        }
    }
    uses
}

/// A value in a register, in the order of the host.
fn value(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn words<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.get(..4 * N)?.chunks_exact(4)) {
        *word = value(bytes)?;
    }
    Some(words)
}

/// `-m mark` of iptables on nftables: `struct xt_mark_mtinfo1 {mark, mask, invert}`.
fn of_match(place: &str, data: &[u8]) -> Option<Use> {
    if text(attribute(data, 1)?) != "mark" {
        return None;
    }
    let [mark, mask] = words(attribute(data, 3)?)?;
    Some(compared(place.to_owned(), mask, Some(mark)))
}

/// `-j MARK` and `-j CONNMARK` of iptables on nftables: `struct xt_mark_tginfo2 {mark, mask}`, whose bits all change,
/// and `struct xt_connmark_tginfo1 {ctmark, ctmask, nfmask, mode}`, which writes packets' marks if it restores.
fn of_target(place: &str, data: &[u8]) -> Option<Use> {
    const RESTORE: u8 = 2;
    let info = attribute(data, 3)?;
    let bits = match text(attribute(data, 1)?).as_str() {
        "MARK" => {
            let [mark, mask] = words(info)?;
            mark | mask
        }
        "CONNMARK" if info.get(12) == Some(&RESTORE) => {
            let [_, ctmask, nfmask] = words(info)?;
            ctmask | nfmask
        }
        _ => return None,
    };
    Some(Use { place: place.to_owned(), bits, way: Way::Written })
}

const fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "of another family",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interfaces::nfnetlink::Attributes;

    const OURS: u32 = 0xffff_0000;

    fn rule(expressions: &[(&str, Attributes)]) -> Vec<u8> {
        let mut list = Attributes::new();
        for (name, data) in expressions {
            list = list.nested(1, &Attributes::new().text(1, name).nested(2, data));
        }
        Attributes::new().text(1, "t").text(2, "c").nested(4, &list).as_bytes().to_vec()
    }

    fn load() -> (&'static str, Attributes) {
        ("meta", Attributes::new().be32(1, 1).be32(2, META_MARK))
    }

    fn store() -> (&'static str, Attributes) {
        ("meta", Attributes::new().be32(2, META_MARK).be32(3, 1))
    }

    fn data(value: u32) -> Attributes {
        Attributes::new().bytes(1, &value.to_ne_bytes())
    }

    fn bitwise(mask: u32, xor: u32) -> (&'static str, Attributes) {
        let attributes = Attributes::new().be32(1, 1).be32(2, 1).be32(3, 4);
        ("bitwise", attributes.nested(4, &data(mask)).nested(5, &data(xor)))
    }

    fn cmp(value: u32) -> (&'static str, Attributes) {
        ("cmp", Attributes::new().be32(1, 1).be32(2, 0).nested(3, &data(value)))
    }

    fn conflicts(expressions: &[(&str, Attributes)]) -> bool {
        of_rule(2, &rule(expressions)).iter().any(|found| found.conflicts(OURS))
    }

    fn info(name: &str, words: &[u32], mode: &[u8]) -> Attributes {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).chain(mode.iter().copied()).collect();
        Attributes::new().text(1, name).be32(2, 1).bytes(3, &bytes)
    }

    #[test]
    fn rules_of_kube_proxy_and_of_flannel_are_no_conflict() {
        assert!(!conflicts(&[load(), bitwise(0x4000, 0), cmp(0)]));
        assert!(!conflicts(&[load(), bitwise(!0x4000, 0x4000), store()]), "mark or 0x4000");
        assert!(!conflicts(&[load(), bitwise(u32::MAX, 0x4000), store()]), "mark xor 0x4000");
        assert!(!conflicts(&[("match", info("mark", &[0x4000, 0x4000], &[0]))]));
        assert!(!conflicts(&[("target", info("MARK", &[0x4000, 0x4000], &[]))]));
        assert!(!conflicts(&[("target", info("MARK", &[0x2000, 0x2000], &[]))]), "portmap");
    }

    #[test]
    fn whoever_compares_or_sets_our_bits_conflicts() {
        assert!(conflicts(&[load(), bitwise(0x00ff_0000, 0), cmp(0x0004_0000)]), "Tailscale");
        assert!(conflicts(&[load(), cmp(0x0001_0000)]));
        assert!(conflicts(&[load(), cmp(0)]), "whoever has no mark at all");
        assert!(conflicts(&[("immediate", Attributes::new().be32(1, 1).nested(2, &data(1))), store()]));
        assert!(conflicts(&[load(), bitwise(0xffff, 1), store()]));
        assert!(conflicts(&[("match", info("mark", &[0x0004_0000, 0x00ff_0000], &[0]))]));
        assert!(conflicts(&[("target", info("MARK", &[0x0004_0000, 0x00ff_0000], &[]))]));
        assert!(conflicts(&[("target", info("CONNMARK", &[0, u32::MAX, u32::MAX], &[2]))]));
        assert!(!conflicts(&[("target", info("CONNMARK", &[0, u32::MAX, u32::MAX], &[1]))]), "saving changes no mark");
    }

    #[test]
    fn a_tunnels_own_mark_is_no_conflict() {
        assert!(!conflicts(&[load(), cmp(0xca6c)]));
        let found = of_rule(2, &rule(&[load(), cmp(0xca6c)]));
        assert_eq!(found.first().map(|found| found.way), Some(Way::Whole(0xca6c)));
    }

    #[test]
    fn a_register_that_is_overwritten_is_the_mark_no_more() {
        let interface = ("meta", Attributes::new().be32(1, 1).be32(2, 4));
        assert!(!conflicts(&[load(), interface, cmp(0x0001_0000)]));
    }
}
