//! Addresses for pods, given out in order from the bottom of each block, as a freshly installed host-local IPAM does.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// One pool a family.
pub(super) struct Pools {
    pools: Vec<Pool>,
    taken: BTreeSet<IpAddr>,
}

struct Pool {
    block: IpNet,
    next: u128,
    last: u128,
}

impl Pools {
    pub(super) fn new(blocks: &[IpNet], reserved: &[IpAddr]) -> Self {
        let pool = |block: &IpNet| {
            let (first, last) = match block {
                // The last address of an IPv4 block is its broadcast address.
                IpNet::V4(net) => (number(net.network().into()), number(net.broadcast().into()).saturating_sub(1)),
                IpNet::V6(net) => (number(net.network().into()), number(net.broadcast().into())),
            };
            // The first is the network's own (in IPv6 the subnet-router anycast), the second the bridge's.
            Pool { block: *block, next: first.saturating_add(2), last }
        };
        Self { pools: blocks.iter().map(pool).collect(), taken: reserved.iter().copied().collect() }
    }

    /// Marks addresses as in use.
    pub(super) fn take(&mut self, addresses: &[IpAddr]) {
        self.taken.extend(addresses);
    }

    /// Whether a pod may go on with these: one of each block, none in use.
    pub(super) fn may_keep(&self, addresses: &[IpAddr]) -> bool {
        addresses.len() == self.pools.len()
            && self.pools.iter().zip(addresses).all(|(pool, address)| pool.block.contains(address))
            && !addresses.iter().any(|address| self.taken.contains(address))
    }

    /// One address of each block, or the block that has none left.
    pub(super) fn give(&mut self) -> Result<Vec<IpAddr>, IpNet> {
        let Self { pools, taken } = self;
        let mut given = Vec::with_capacity(pools.len());
        for Pool { block, next, last } in pools {
            let address = loop {
                if *next > *last {
                    return Err(*block);
                }
                let address = address(*next, block).ok_or(*block)?;
                *next = next.checked_add(1).ok_or(*block)?;
                if taken.insert(address) {
                    break address;
                }
            };
            given.push(address);
        }
        Ok(given)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(number: u128, family_of: &IpNet) -> Option<IpAddr> {
    match family_of {
        IpNet::V4(_) => u32::try_from(number).ok().map(|number| Ipv4Addr::from(number).into()),
        IpNet::V6(_) => Some(Ipv6Addr::from(number).into()),
    }
}
