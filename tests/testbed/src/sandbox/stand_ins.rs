//! Hosts that stand for the addresses that policies name: one inside each ipBlock, one inside each `except`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netpol_policy::model::{Peer, Policy};

/// Hosts by address, with what each stands for; and what no host can be in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StandIns {
    /// Address, and the blocks and excepts that it stands for.
    pub hosts: BTreeMap<IpAddr, Vec<String>>,
    /// Blocks and excepts in which pods or nothing at all can be.
    pub vacant: Vec<String>,
}

/// A set of addresses that a policy names: a block less its excepts, or an except.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Region {
    net: IpNet,
    less: Vec<IpNet>,
    is_except: bool,
}

/// Where no host can be that a unicast packet reaches over a router.
const NOWHERE: [&str; 7] =
    ["0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/64", "fe80::/10", "ff00::/8"];

/// Where hosts are looked for first: documentation ranges (RFC 5737, RFC 3849), to the eye neither pods nor nodes.
const FAVOURITES: [&str; 5] = ["203.0.113.1", "198.51.100.1", "192.0.2.1", "2001:db8::1", "2001:db8:1::1"];

/// Chooses the hosts; `reserved` are the networks of pods and nodes. The choice depends on nothing else.
#[must_use]
pub fn choose<'a>(policies: impl IntoIterator<Item = &'a Policy>, reserved: &[IpNet]) -> StandIns {
    let regions = regions(policies);
    let mut nets: Vec<IpNet> = regions.iter().map(|region| region.net).collect();
    nets.sort_unstable();
    nets.dedup();
    let nowhere = NOWHERE.iter().filter_map(|net| net.parse::<IpNet>().ok());
    let reserved: Vec<IpNet> = nowhere.chain(reserved.iter().copied()).collect();

    let mut chosen = StandIns::default();
    for region in &regions {
        let Region { net, less, is_except } = region;
        let is_free = |address: &IpAddr| {
            net.contains(address) && ![&reserved, less].iter().any(|nets| nets.iter().any(|net| net.contains(address)))
        };
        // The fewer other blocks an address is in, the more its cell says of this one.
        let others = |address: &IpAddr| nets.iter().filter(|net| net.contains(address)).count();
        let best = candidates(region).into_iter().filter(is_free).min_by_key(others);
        let name = if *is_except { format!("except {net}") } else { net.to_string() };
        match best {
            Some(address) => {
                let stands_for = chosen.hosts.entry(address).or_default();
                if !stands_for.contains(&name) {
                    stands_for.push(name);
                }
            }
            None if !chosen.vacant.contains(&name) => chosen.vacant.push(name),
            None => {}
        }
    }
    chosen
}

fn regions<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> Vec<Region> {
    let mut regions = Vec::new();
    for Policy { name: _, selector: _, ingress, egress } in policies {
        let rules = [ingress, egress].into_iter().flatten().flatten();
        for peer in rules.filter_map(|rule| rule.peers.as_ref()).flatten() {
            match peer {
                Peer::Block { cidr, except } => {
                    regions.push(Region { net: *cidr, less: except.clone(), is_except: false });
                    let except = except.iter().map(|net| Region { net: *net, less: Vec::new(), is_except: true });
                    regions.extend(except);
                }
                Peer::Pods { .. } | Peer::Nothing => {}
            }
        }
    }
    regions.sort();
    regions.dedup();
    regions
}

/// Addresses to look at, best first: many enough that one of them is free, unless hardly any is.
fn candidates(Region { net, less, is_except: _ }: &Region) -> Vec<IpAddr> {
    let first = number(net.network());
    let bits = u32::from(net.max_prefix_len() - net.prefix_len());
    let last = number(net.broadcast());
    let favourites = FAVOURITES.iter().filter_map(|address| address.parse::<IpAddr>().ok());
    let mut numbers: Vec<u128> = (1..=32).filter_map(|step: u128| first.checked_add(step)).collect();
    numbers.extend((1..64).filter_map(|part: u128| first.checked_add((part << bits.saturating_sub(6)) | 1)));
    for hole in less {
        numbers.extend(number(hole.broadcast()).checked_add(1));
        numbers.extend(number(hole.network()).checked_sub(1));
    }
    // A network's own address and its broadcast address are hosts' only where nothing else is left.
    numbers.retain(|number| *number != last);
    numbers.extend([first, last]);
    favourites.chain(numbers.into_iter().filter_map(|number| address(number, net))).collect()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(number: u128, family_of: &IpNet) -> Option<IpAddr> {
    match family_of {
        IpNet::V4(_) => Some(Ipv4Addr::from(u32::try_from(number).ok()?).into()),
        IpNet::V6(_) => Some(Ipv6Addr::from(number).into()),
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::{ObjectName, Rule, Selector};

    use super::*;

    fn policy(blocks: &[(&str, &[&str])]) -> Policy {
        let net = |text: &&str| text.parse::<IpNet>().expect("block");
        let peers = blocks
            .iter()
            .map(|(cidr, except)| Peer::Block { cidr: net(cidr), except: except.iter().map(net).collect() })
            .collect();
        Policy {
            name: ObjectName::new("a", "p"),
            selector: Selector::default(),
            ingress: None,
            egress: Some(vec![Rule { index: 0, peers: Some(peers), ports: None }]),
        }
    }

    fn chosen(blocks: &[(&str, &[&str])]) -> (Vec<(String, String)>, Vec<String>) {
        let reserved = ["10.244.0.0/24", "198.18.0.0/30", "fd00:10:244::/64"].map(|net| net.parse().expect("block"));
        let StandIns { hosts, vacant } = choose([&policy(blocks)], &reserved);
        let hosts = hosts.into_iter().map(|(address, names)| (address.to_string(), names.join(", "))).collect();
        (hosts, vacant)
    }

    fn hosts(blocks: &[(&str, &[&str])]) -> Vec<String> {
        let (hosts, vacant) = chosen(blocks);
        assert_eq!(vacant, Vec::<String>::new());
        hosts.into_iter().map(|(address, _)| address).collect()
    }

    #[test]
    fn a_block_and_its_excepts_have_a_host_each() {
        let block: (&str, &[&str]) = ("198.51.100.0/24", &["198.51.100.10/32", "198.51.100.11/32"]);
        assert_eq!(hosts(&[block]), ["198.51.100.1", "198.51.100.10", "198.51.100.11"]);
        assert_eq!(hosts(&[("10.0.0.0/8", &["10.0.0.0/9"])]), ["10.0.0.1", "10.128.0.1"]);
    }

    #[test]
    fn a_wider_block_has_a_host_that_narrower_ones_do_not_contain() {
        let blocks: [(&str, &[&str]); 2] = [("203.0.113.0/24", &[]), ("0.0.0.0/0", &["10.0.0.0/8"])];
        let (hosts, _) = chosen(&blocks);
        let names: Vec<&str> = hosts.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["except 10.0.0.0/8", "0.0.0.0/0", "203.0.113.0/24"]);
        assert_eq!(hosts[1].0, "198.51.100.1");
    }

    #[test]
    fn everything_has_a_host_in_each_family() {
        assert_eq!(hosts(&[("0.0.0.0/0", &[]), ("::/0", &[])]), ["203.0.113.1", "2001:db8::1"]);
    }

    #[test]
    fn hosts_are_no_pods_and_no_nodes() {
        assert_eq!(hosts(&[("10.244.0.0/16", &[])]), ["10.244.4.1"]);
        let (none, vacant) = chosen(&[("10.244.0.0/25", &["10.244.0.9/32"]), ("127.0.0.1/32", &[])]);
        assert_eq!(none, []);
        assert_eq!(vacant, ["10.244.0.0/25", "except 10.244.0.9/32", "127.0.0.1/32"]);
    }

    #[test]
    fn single_addresses_and_pairs_are_used_as_they_are() {
        let single: [(&str, &[&str]); 2] = [("192.0.2.7/32", &[]), ("192.0.2.8/31", &["192.0.2.9/32"])];
        assert_eq!(hosts(&single), ["192.0.2.7", "192.0.2.8", "192.0.2.9"]);
        assert_eq!(hosts(&[("2001:db8:5::9/128", &[])]), ["2001:db8:5::9"]);
    }
}
