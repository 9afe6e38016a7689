//! Rows of what proxies rewrite: what fits, and whose flows must be judged anew when they change.
//!
//! A row that is missing withholds and never permits: an address without one is judged as it stands, and what passes is
//! judged once more by where it really goes. The exception is an address of this node, where being judged as it stands
//! is final for what is delivered here; so a quarter of the map is kept for those.

use std::collections::BTreeSet;

use ipnet::IpNet;
use netpol_common::abi::{SET_ALLOW_ALL, SET_PENDING, ServiceKey, ServiceRow};

use super::quotas::Counted;
use super::services::address_of;
use super::{Compiler, Refusal, Refused};
use crate::model::{ObjectName, Protocol};

impl Compiler {
    /// Brings the rows of what is marked up to date.
    pub(super) fn plan_services(&mut self) {
        let mut wanted = Vec::new();
        for key in std::mem::take(&mut self.dirty.services) {
            match self.index.services.row(&key) {
                Some(row) => wanted.push((key, row)),
                None => {
                    let _refusal = self.refused_services.remove(&key);
                    self.drop_service(key);
                }
            }
        }
        // Those that are dangerous to miss come first.
        wanted.sort_by_key(|(key, _)| !self.is_at_node(key));
        for (key, row) in wanted {
            self.plan_service(key, row);
        }
        if std::mem::take(&mut self.dirty.service_ranges) {
            self.plan_ranges();
        }
    }

    fn plan_service(&mut self, key: ServiceKey, row: ServiceRow) {
        let owners: Vec<ObjectName> = self.index.services.owners(&key).map(|owner| owner.name().clone()).collect();
        let namespace = owners.first().map(|name| name.namespace.clone()).unwrap_or_default();
        self.release_share(key);
        let is_there = self.tables.services.get(&key).is_some();
        if self.tables.quotas.has_room_for_service(&namespace, is_there, self.is_at_node(&key)) {
            let _refusal = self.refused_services.remove(&key);
            self.tables.put_service(key, row);
            self.tables.quotas.share(Counted::Services, &namespace, true);
            let _none = self.service_shares.insert(key, namespace);
            return;
        }
        self.drop_service(key);
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let refusal = Refusal {
            what: Refused::Service {
                address: address_of(&key),
                port: u16::from_be_bytes(key.port),
                protocol: protocol.into_iter().find(|protocol| protocol.number() == key.protocol),
            },
            objects: owners,
            map: Counted::Services.name(),
        };
        if self.refused_services.insert(key, refusal.clone()).as_ref() != Some(&refusal) {
            self.newly_refused_services.push(refusal);
        }
    }

    fn drop_service(&mut self, key: ServiceKey) {
        self.release_share(key);
        self.tables.remove_service(key);
    }

    fn release_share(&mut self, key: ServiceKey) {
        if let Some(namespace) = self.service_shares.remove(&key) {
            self.tables.quotas.share(Counted::Services, &namespace, false);
        }
    }

    fn plan_ranges(&mut self) {
        let limit = self.capacities.service_cidrs as usize;
        let wanted: Vec<IpNet> = self.index.services.ranges().collect();
        let (fitting, refused) = wanted.split_at(wanted.len().min(limit));
        let fitting: BTreeSet<IpNet> = fitting.iter().copied().collect();
        let held: Vec<IpNet> = self.tables.service_cidrs.rows().keys().copied().collect();
        held.into_iter().filter(|range| !fitting.contains(range)).for_each(|range| self.tables.remove_range(range));
        fitting.into_iter().for_each(|range| self.tables.put_range(range));
        self.refused_ranges = refused
            .iter()
            .map(|range| Refusal {
                what: Refused::ServiceRange(*range),
                objects: self.index.services.names_of_range(*range),
                map: Counted::ServiceCidrs.name(),
            })
            .collect();
    }

    /// Whether a key stands for an address of this node.
    fn is_at_node(&self, key: &ServiceKey) -> bool {
        address_of(key).is_none_or(|address| self.index.is_local(&address))
    }

    /// Endpoints whose deferred flows must be looked at anew, because where they may lead on this node has changed, or
    /// because an address that was judged finally is a Service's now, or the other way round.
    pub(super) fn led_elsewhere(&self) -> BTreeSet<u32> {
        let final_elsewhere =
            |key: &ServiceKey| address_of(key).is_none_or(|address| self.index.claims.contains_key(&address));
        let count = |row: Option<ServiceRow>| row.map_or(0, |row| row.count);
        let concerns = |(key, before): (ServiceKey, Option<ServiceRow>)| {
            let now = self.tables.services.get(&key);
            before != now
                && (count(before) + count(now) > 0 || before.is_some() != now.is_some() && final_elsewhere(&key))
        };
        let mut ranges = self.tables.service_cidrs.touched();
        let is_news = ranges.any(|(range, before)| before != self.tables.service_cidrs.get(&range))
            || self.tables.services.touched().any(concerns);
        if !is_news {
            return BTreeSet::new();
        }
        let judged = self.planned.iter().filter(|(_, planned)| {
            // Of one that keeps an older set, what that isolates is not looked up.
            (planned.isolated[1] || !planned.refusals.is_empty()) && !matches!(planned.set, SET_PENDING | SET_ALLOW_ALL)
        });
        judged.map(|(endpoint, _)| *endpoint).collect()
    }
}
