//! How much the maps hold, and who holds how much of them.
//!
//! Rows of policies count to the namespace of the policy, rows of pods to that of the pod; rows that are nobody's alone
//! (nodes, classes) count in all only. No namespace may hold more than half of a map, so that none can keep the policies
//! of another out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::abi::{names, sizes};

/// How many rows each map holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Elements of the arrays by endpoint number.
    pub endpoints: u32,
    /// Addresses of local endpoints.
    pub addresses: u32,
    /// IPv4 pod and node addresses.
    pub class4: u32,
    /// IPv6 pod and node addresses.
    pub class6: u32,
    /// IPv4 prefixes.
    pub cidr4: u32,
    /// IPv6 prefixes.
    pub cidr6: u32,
    /// Verdict rows.
    pub rules: u32,
    /// Port prefixes.
    pub ports: u32,
    /// Allocated ids.
    pub digests: u32,
    /// Addresses and ports that a proxy rewrites.
    pub services: u32,
    /// Ranges of ClusterIPs.
    pub service_cidrs: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            endpoints: sizes::ENDPOINTS,
            addresses: sizes::ADDRESSES,
            class4: sizes::CLASSES,
            class6: sizes::CLASSES,
            cidr4: sizes::CIDRS,
            cidr6: sizes::CIDRS,
            rules: sizes::RULES,
            ports: sizes::PORTS,
            digests: sizes::DIGESTS,
            services: sizes::SERVICES,
            service_cidrs: sizes::SERVICE_CIDRS,
        }
    }
}

/// A map whose rows are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Counted {
    Addresses,
    Class4,
    Class6,
    Cidr4,
    Cidr6,
    Rules,
    Ports,
    Digests,
    Services,
    ServiceCidrs,
}

impl Counted {
    pub(super) const ALL: [Self; 10] = [
        Self::Addresses,
        Self::Class4,
        Self::Class6,
        Self::Cidr4,
        Self::Cidr6,
        Self::Rules,
        Self::Ports,
        Self::Digests,
        Self::Services,
        Self::ServiceCidrs,
    ];

    /// The map's name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Addresses => names::ADDRESSES,
            Self::Class4 => names::CLASS4,
            Self::Class6 => names::CLASS6,
            Self::Cidr4 => names::CIDR4,
            Self::Cidr6 => names::CIDR6,
            Self::Rules => names::RULES,
            Self::Ports => names::PORTS,
            Self::Digests => names::DIGESTS,
            Self::Services => names::SERVICES,
            Self::ServiceCidrs => names::SERVICE_CIDRS,
        }
    }

    pub(super) const fn classes(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Class4,
            IpAddr::V6(_) => Self::Class6,
        }
    }

    pub(super) const fn cidrs(prefix: IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::Cidr4,
            IpNet::V6(_) => Self::Cidr6,
        }
    }
}

/// Rows of a map, in all and by namespace.
#[derive(Clone, Debug, Default)]
struct Quota {
    limit: usize,
    used: usize,
    shares: HashMap<String, usize>,
    /// Namespaces with more than half of the map.
    over: BTreeSet<String>,
}

/// Row counts of all maps.
#[derive(Clone, Debug)]
pub(super) struct Quotas(BTreeMap<Counted, Quota>);

impl Quotas {
    pub(super) fn new(capacities: &Capacities) -> Self {
        let Capacities {
            endpoints: _,
            addresses,
            class4,
            class6,
            cidr4,
            cidr6,
            rules,
            ports,
            digests,
            services,
            service_cidrs,
        } = capacities;
        let limits = [addresses, class4, class6, cidr4, cidr6, rules, ports, digests, services, service_cidrs];
        let quota = |limit: &u32| Quota { limit: *limit as usize, ..Quota::default() };
        Self(Counted::ALL.into_iter().zip(limits).map(|(map, limit)| (map, quota(limit))).collect())
    }

    /// Counts rows that were there before.
    pub(super) fn found(&mut self, map: Counted, rows: usize) {
        if let Some(quota) = self.0.get_mut(&map) {
            quota.used += rows;
        }
    }

    /// Counts a row.
    pub(super) fn total(&mut self, map: Counted, more: bool) {
        if let Some(quota) = self.0.get_mut(&map) {
            quota.used = if more { quota.used + 1 } else { quota.used - 1 };
        }
    }

    /// Counts a row to a namespace. Rows of no namespace's (nodes, classes) have the empty name, which has no limit.
    pub(super) fn share(&mut self, map: Counted, namespace: &str, more: bool) {
        let Some(quota) = self.0.get_mut(&map) else { return };
        if namespace.is_empty() {
            return;
        }
        let share = match quota.shares.get_mut(namespace) {
            Some(share) => share,
            None => quota.shares.entry(namespace.to_owned()).or_default(),
        };
        *share = if more { *share + 1 } else { *share - 1 };
        let (share, half) = (*share, quota.limit / 2);
        if share > half {
            if !quota.over.contains(namespace) {
                let _new = quota.over.insert(namespace.to_owned());
            }
        } else if !quota.over.is_empty() {
            let _was = quota.over.remove(namespace);
        }
        if share == 0 {
            let _none = quota.shares.remove(namespace);
        }
    }

    /// The first of the maps behind verdicts that is too full.
    pub(super) fn full(&self) -> Option<Counted> {
        self.verdicts().find(|(_, quota)| quota.used > quota.limit).map(|(map, _)| map)
    }

    /// The first of the maps behind verdicts of which a namespace holds more than half.
    pub(super) fn over_half(&self) -> Option<Counted> {
        self.verdicts().find(|(_, quota)| !quota.over.is_empty()).map(|(map, _)| map)
    }

    /// The first of the maps behind verdicts of which this namespace holds more than half.
    pub(super) fn over_half_of(&self, namespace: &str) -> Option<Counted> {
        self.verdicts().find(|(_, quota)| quota.over.contains(namespace)).map(|(map, _)| map)
    }

    /// Endpoints' own addresses and Services are apart: too many of those must not keep policies out.
    fn verdicts(&self) -> impl Iterator<Item = (Counted, &Quota)> {
        self.0.iter().map(|(map, quota)| (*map, quota)).filter(|(map, _)| match map {
            Counted::Addresses | Counted::Services | Counted::ServiceCidrs => false,
            Counted::Class4
            | Counted::Class6
            | Counted::Cidr4
            | Counted::Cidr6
            | Counted::Rules
            | Counted::Ports
            | Counted::Digests => true,
        })
    }

    /// Whether one more address of a namespace's endpoint fits.
    pub(super) fn has_room_for_address(&self, namespace: &str) -> bool {
        self.0.get(&Counted::Addresses).is_some_and(|quota| {
            let share = quota.shares.get(namespace).copied().unwrap_or(0);
            quota.used < quota.limit && (namespace.is_empty() || share < quota.limit / 2)
        })
    }

    /// Whether a namespace's row of a Service fits, or may stay if it is there. The last quarter is kept for rows of
    /// addresses of this node.
    pub(super) fn has_room_for_service(&self, namespace: &str, is_there: bool, is_at_node: bool) -> bool {
        self.0.get(&Counted::Services).is_some_and(|quota| {
            let share = quota.shares.get(namespace).copied().unwrap_or(0);
            let limit = if is_at_node { quota.limit } else { quota.limit - quota.limit / 4 };
            (is_there || quota.used < limit) && (namespace.is_empty() || share < quota.limit / 2)
        })
    }

    /// Rows and limit of each map.
    pub(super) fn used(&self) -> impl Iterator<Item = (Counted, usize, usize)> + '_ {
        self.0.iter().map(|(map, quota)| (*map, quota.used, quota.limit))
    }
}
