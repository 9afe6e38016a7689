//! What proxies rewrite, as the index keeps it: who has which address and port, and where on this node it leads.
//!
//! ```text
//! Service ───────────┐ addresses × ports, node ports
//! EndpointSlice ─────┼▶ claims: key ▶ who has it ──▶ row: the backends with an address of this node
//! hostPort of a pod ─┘
//! ServiceCIDR, option ▶ ranges
//! ```
//!
//! A row names only backends on the node itself, so of an EndpointSlice little matters here. Its addresses are kept all
//! the same, four bytes for one of IPv4: which of them are this node's can change without an event of the slice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netpol_common::abi::{LOCAL_BACKENDS, LocalBackend, ServiceKey, ServiceRow, mapped};

use crate::model::{EndpointPort, EndpointSlice, HostPort, Labels, ObjectName, Pod, Protocol, Service, ServiceCidr};

/// Who has an address and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    Service(ObjectName),
    /// A pod on this node with a host port.
    Pod(ObjectName),
}

impl Owner {
    pub(super) const fn name(&self) -> &ObjectName {
        match self {
            Self::Service(name) | Self::Pod(name) => name,
        }
    }
}

/// An EndpointSlice, by family to keep addresses short.
#[derive(Clone, Debug)]
struct SliceEntry {
    service: ObjectName,
    v4: Box<[Ipv4Addr]>,
    v6: Box<[Ipv6Addr]>,
    ports: Box<[EndpointPort]>,
    /// Those of its addresses that are this node's.
    local: BTreeSet<IpAddr>,
}

impl SliceEntry {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.v4.iter().copied().map(IpAddr::V4).chain(self.v6.iter().copied().map(IpAddr::V6))
    }
}

/// Services, their backends on this node, host ports, ranges of ClusterIPs.
#[derive(Clone, Debug, Default)]
pub(super) struct Services {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, SliceEntry>,
    /// By name of the Service, which need not be there.
    slices_of: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    host_ports: BTreeMap<ObjectName, BTreeSet<ServiceKey>>,
    /// Sorted; almost always of one owner, for which a set would be large.
    claims: BTreeMap<ServiceKey, Vec<Owner>>,
    ranges: BTreeMap<String, ServiceCidr>,
    /// Told by an option.
    configured: BTreeSet<IpNet>,
}

/// The address of a key; `None` for any address of this node.
pub(super) fn address_of(key: &ServiceKey) -> Option<IpAddr> {
    (key.address != [0; 16]).then(|| IpAddr::from(key.address).to_canonical())
}

fn mapped_address(address: IpAddr) -> [u8; 16] {
    match address.to_canonical() {
        IpAddr::V4(address) => mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

fn key(address: Option<IpAddr>, port: u16, protocol: Protocol) -> ServiceKey {
    ServiceKey {
        address: address.map_or([0; 16], mapped_address),
        port: port.to_be_bytes(),
        protocol: protocol.number(),
        pad: 0,
    }
}

/// What a Service has proxies rewrite: each key with the port that it stands for.
fn keys_of(service: &Service) -> impl Iterator<Item = (ServiceKey, &crate::model::ServicePort)> {
    service.ports.iter().flat_map(|port| {
        // Without an address proxies pass the Service by, node ports and all.
        let is_proxied = !service.addresses.is_empty();
        let at_addresses = service.addresses.iter().map(|address| key(Some(*address), port.port, port.protocol));
        let at_node = (is_proxied && port.node_port != 0).then(|| key(None, port.node_port, port.protocol));
        at_addresses.chain(at_node).map(move |key| (key, port))
    })
}

impl Services {
    pub(super) fn service_changed(
        &mut self,
        name: ObjectName,
        service: Option<Service>,
        dirty: &mut BTreeSet<ServiceKey>,
    ) {
        // Which pods it selects is the business of whoever makes its EndpointSlices.
        let service = service.map(|service| Service { selector: Labels::new(), ..service });
        if self.services.get(&name) == service.as_ref() {
            return;
        }
        let keys = |service: Option<&Service>| -> BTreeSet<ServiceKey> {
            service.into_iter().flat_map(|service| keys_of(service).map(|(key, _)| key)).collect()
        };
        let (old, new) = (keys(self.services.get(&name)), keys(service.as_ref()));
        self.claim(&Owner::Service(name.clone()), &old, &new);
        // What stays may lead to a port of another name.
        dirty.extend(old.union(&new));
        let _old = match service {
            Some(service) => self.services.insert(name, service),
            None => self.services.remove(&name),
        };
    }

    pub(super) fn slice_changed(
        &mut self,
        name: ObjectName,
        slice: Option<EndpointSlice>,
        is_local: impl Fn(&IpAddr) -> bool,
        dirty: &mut BTreeSet<ServiceKey>,
    ) {
        let old = self.slices.remove(&name);
        let new = slice.filter(|slice| !slice.service.is_empty()).map(|slice| {
            let EndpointSlice { name, service, addresses, ports } = slice;
            let addresses: BTreeSet<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
            let v4 = addresses.iter().filter_map(|address| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            });
            let v6 = addresses.iter().filter_map(|address| match address {
                IpAddr::V6(address) => Some(*address),
                IpAddr::V4(_) => None,
            });
            SliceEntry {
                service: ObjectName::new(name.namespace, service),
                v4: v4.collect(),
                v6: v6.collect(),
                ports: ports.into(),
                local: addresses.into_iter().filter(is_local).collect(),
            }
        });
        let leads = |entry: Option<&SliceEntry>| {
            entry.filter(|entry| !entry.local.is_empty()).map(|entry| {
                let SliceEntry { service, v4: _, v6: _, ports, local } = entry;
                (service.clone(), ports.clone(), local.clone())
            })
        };
        if leads(old.as_ref()) != leads(new.as_ref()) {
            for entry in old.iter().chain(&new) {
                self.mark(&entry.service, dirty);
            }
        }
        if let Some(old) = old
            && let Some(slices) = self.slices_of.get_mut(&old.service)
        {
            let _was = slices.remove(&name);
            if slices.is_empty() {
                let _none = self.slices_of.remove(&old.service);
            }
        }
        if let Some(new) = new {
            let _new = self.slices_of.entry(new.service.clone()).or_default().insert(name.clone());
            let _none = self.slices.insert(name, new);
        }
    }

    /// Some addresses may have become this node's, or ceased to be.
    pub(super) fn addresses_moved(
        &mut self,
        moved: &BTreeSet<IpAddr>,
        is_local: impl Fn(&IpAddr) -> bool,
        dirty: &mut BTreeSet<ServiceKey>,
    ) {
        if moved.is_empty() {
            return;
        }
        let mut concerned = BTreeSet::new();
        for entry in self.slices.values_mut() {
            let local: BTreeSet<IpAddr> = entry.addresses().filter(&is_local).collect();
            if local != entry.local {
                entry.local = local;
                let _new = concerned.insert(entry.service.clone());
            }
        }
        concerned.iter().for_each(|service| self.mark(service, dirty));
        // A key that did not fit may be one now that must.
        for address in moved {
            let address = mapped_address(*address);
            let first = ServiceKey { address, ..ServiceKey::default() };
            let last = ServiceKey { address, port: [0xff; 2], protocol: 0xff, pad: 0xff };
            dirty.extend(self.claims.range(first..=last).map(|(key, _)| *key));
        }
    }

    /// A pod on this node has these host ports now: they are handed on while it runs.
    pub(super) fn pod_changed(&mut self, name: &ObjectName, pod: Option<&Pod>, dirty: &mut BTreeSet<ServiceKey>) {
        let running = pod.filter(|pod| pod.takes_part());
        let new: BTreeSet<ServiceKey> = running
            .into_iter()
            .flat_map(|pod| &pod.host_ports)
            .map(|HostPort { address, protocol, port, container_port: _ }| key(*address, *port, *protocol))
            .collect();
        let old = self.host_ports.remove(name).unwrap_or_default();
        self.claim(&Owner::Pod(name.clone()), &old, &new);
        dirty.extend(old.symmetric_difference(&new));
        if !new.is_empty() {
            let _none = self.host_ports.insert(name.clone(), new);
        }
    }

    /// Tells whether the ranges may have changed.
    pub(super) fn range_changed(&mut self, name: String, range: Option<ServiceCidr>) -> bool {
        if self.ranges.get(&name) == range.as_ref() {
            return false;
        }
        let _old = match range {
            Some(range) => self.ranges.insert(name, range),
            None => self.ranges.remove(&name),
        };
        true
    }

    /// Tells whether the ranges may have changed.
    pub(super) fn configure(&mut self, ranges: Vec<IpNet>) -> bool {
        let ranges = ranges.iter().map(IpNet::trunc).collect();
        let is_news = self.configured != ranges;
        self.configured = ranges;
        is_news
    }

    /// The ranges that ClusterIPs are taken from, those of the option first.
    pub(super) fn ranges(&self) -> impl Iterator<Item = IpNet> + '_ {
        let told = self.ranges.values().flat_map(|range| &range.cidrs).map(IpNet::trunc).collect::<BTreeSet<_>>();
        self.configured.iter().copied().chain(told.into_iter().filter(|range| !self.configured.contains(range)))
    }

    /// The objects that name a range.
    pub(super) fn names_of_range(&self, range: IpNet) -> Vec<ObjectName> {
        let named = self.ranges.values().filter(|entry| entry.cidrs.iter().any(|cidr| cidr.trunc() == range));
        named.map(|entry| ObjectName::new("", &entry.name)).collect()
    }

    /// Who has a key.
    pub(super) fn owners(&self, key: &ServiceKey) -> impl Iterator<Item = &Owner> {
        self.claims.get(key).into_iter().flatten()
    }

    /// The row of a key; `None` if nobody has it. Of several Services with one key, a proxy picks one that is not
    /// known here, so the backends of all count.
    pub(super) fn row(&self, key: &ServiceKey) -> Option<ServiceRow> {
        let owners = self.claims.get(key)?;
        let mut backends = BTreeSet::new();
        for owner in owners {
            match owner {
                Owner::Service(name) => self.local_backends(name, key, &mut backends),
                // It leads to a pod.
                Owner::Pod(_) => {}
            }
        }
        let mut row = ServiceRow { count: u32::try_from(backends.len()).unwrap_or(u32::MAX), ..ServiceRow::default() };
        if backends.len() > LOCAL_BACKENDS {
            // How many more there are is of no consequence, and not worth a write.
            row.count = LOCAL_BACKENDS as u32 + 1;
        } else {
            row.local.iter_mut().zip(backends).for_each(|(slot, backend)| *slot = backend);
        }
        Some(row)
    }

    fn local_backends(&self, name: &ObjectName, key: &ServiceKey, backends: &mut BTreeSet<LocalBackend>) {
        let Some(service) = self.services.get(name) else { return };
        let is_v6 = address_of(key).map(|address| address.is_ipv6());
        let slices = self.slices_of.get(name).into_iter().flatten().filter_map(|slice| self.slices.get(slice));
        for slice in slices.filter(|slice| !slice.local.is_empty()) {
            for (_, port) in keys_of(service).filter(|(other, _)| other == key) {
                let serves = |other: &&EndpointPort| other.name == port.name && other.protocol == port.protocol;
                for EndpointPort { port, .. } in slice.ports.iter().filter(serves) {
                    // A proxy does not change the family.
                    let addresses = slice.local.iter().filter(|address| is_v6.is_none_or(|v6| v6 == address.is_ipv6()));
                    backends.extend(addresses.map(|address| LocalBackend {
                        address: mapped_address(*address),
                        port: port.to_be_bytes(),
                        pad: [0; 2],
                    }));
                }
            }
        }
    }

    fn mark(&self, service: &ObjectName, dirty: &mut BTreeSet<ServiceKey>) {
        dirty.extend(self.services.get(service).into_iter().flat_map(|service| keys_of(service).map(|(key, _)| key)));
    }

    fn claim(&mut self, owner: &Owner, old: &BTreeSet<ServiceKey>, new: &BTreeSet<ServiceKey>) {
        for key in old.difference(new) {
            if let Some(owners) = self.claims.get_mut(key) {
                owners.retain(|other| other != owner);
                if owners.is_empty() {
                    let _none = self.claims.remove(key);
                }
            }
        }
        for key in new.difference(old) {
            let owners = self.claims.entry(*key).or_default();
            if let Err(place) = owners.binary_search(owner) {
                owners.insert(place, owner.clone());
            }
        }
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The EndpointSlices, as far as they are kept.
    pub(super) fn slices(&self) -> impl Iterator<Item = EndpointSlice> + '_ {
        self.slices.iter().map(|(name, entry)| EndpointSlice {
            name: name.clone(),
            service: entry.service.name.clone(),
            addresses: entry.addresses().collect(),
            ports: entry.ports.to_vec(),
        })
    }

    pub(super) fn service_cidrs(&self) -> impl Iterator<Item = &ServiceCidr> {
        self.ranges.values()
    }

    pub(super) fn configured(&self) -> Vec<IpNet> {
        self.configured.iter().copied().collect()
    }
}
