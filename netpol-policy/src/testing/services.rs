//! Services, EndpointSlices, ServiceCIDRs and host ports of generated clusters.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{NAMESPACES, PORT_NAMES, PORTS, PROTOCOLS, World, address};
use crate::compile::Change;
use crate::decode::{Kind, Object};
use crate::model::{EndpointPort, EndpointSlice, HostPort, ObjectName, Service, ServiceCidr, ServicePort, TargetPort};

/// Few, so that Services share them, with each other and with nodes and pods.
const SERVICE_ADDRESSES: [&str; 6] =
    ["10.96.0.10", "10.96.0.11", "fd00:96::10", "172.18.0.2", "10.244.1.4", "198.51.100.10"];
const SERVICE_RANGES: [&str; 4] = ["10.96.0.0/16", "fd00:96::/108", "10.96.0.0/24", "198.51.100.0/24"];
/// Backends: of this node, of another, of pods.
const BACKENDS: [&str; 8] = [
    "172.18.0.2",
    "172.18.0.9",
    "fd00:172:18::2",
    "10.244.1.1",
    "172.18.0.3",
    "10.244.1.4",
    "10.244.2.4",
    "fd00:10:244:2::4",
];

impl World {
    pub(super) fn host_ports(&mut self, host_network: bool) -> Vec<HostPort> {
        if host_network || self.random.chance(80) {
            return Vec::new();
        }
        vec![HostPort {
            address: self.random.chance(30).then(|| address("172.18.0.2")),
            protocol: *self.random.pick(&PROTOCOLS),
            port: *self.random.pick(&PORTS),
            container_port: *self.random.pick(&PORTS),
        }]
    }

    /// A Service, an EndpointSlice or a ServiceCIDR comes, changes or goes.
    pub(super) fn change_services(&mut self) -> Change {
        let namespace = *self.random.pick(&NAMESPACES[..2]);
        let service = format!("service-{}", self.random.below(2));
        let is_gone = self.random.chance(25);
        match self.random.below(10) {
            0..4 => {
                let name = ObjectName::new(namespace, service);
                if is_gone {
                    let _old = self.cluster.services.remove(&name);
                    return Change::Remove(Kind::Service, name);
                }
                let service = self.service(name.clone());
                let _old = self.cluster.services.insert(name, service.clone());
                Change::Upsert(Object::Service(service))
            }
            4..9 => {
                let name = ObjectName::new(namespace, format!("{service}-{}", self.random.below(2)));
                if is_gone {
                    let _old = self.cluster.slices.remove(&name);
                    return Change::Remove(Kind::EndpointSlice, name);
                }
                let count = self.random.below(7);
                let addresses: Vec<IpAddr> = (0..count)
                    .map(|_| address(self.random.pick::<&str>(&BACKENDS)))
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect();
                let service = if self.random.chance(10) { String::new() } else { service };
                let ports = (0..self.random.below(4))
                    .map(|_| EndpointPort {
                        name: (*self.random.pick(&PORT_NAMES[..2])).to_owned(),
                        protocol: *self.random.pick(&PROTOCOLS[..2]),
                        port: *self.random.pick(&PORTS),
                    })
                    .collect();
                let slice = EndpointSlice { name: name.clone(), service, addresses, ports };
                let _old = self.cluster.slices.insert(name, slice.clone());
                Change::Upsert(Object::EndpointSlice(slice))
            }
            _ => {
                let name = format!("range-{}", self.random.below(2));
                if is_gone {
                    let _old = self.cluster.service_cidrs.remove(&name);
                    return Change::Remove(Kind::ServiceCidr, ObjectName::new("", name));
                }
                let cidrs =
                    (0..self.random.below(3)).filter_map(|_| self.random.pick(&SERVICE_RANGES).parse().ok()).collect();
                let range = ServiceCidr { name: name.clone(), cidrs };
                let _old = self.cluster.service_cidrs.insert(name, range.clone());
                Change::Upsert(Object::ServiceCidr(range))
            }
        }
    }

    fn service(&mut self, name: ObjectName) -> Service {
        let addresses: BTreeSet<IpAddr> =
            (0..self.random.below(4)).map(|_| address(self.random.pick::<&str>(&SERVICE_ADDRESSES))).collect();
        let ports = (0..1 + self.random.below(2))
            .map(|_| {
                let port = *self.random.pick(&PORTS[..3]);
                ServicePort {
                    name: (*self.random.pick(&PORT_NAMES[..2])).to_owned(),
                    protocol: *self.random.pick(&PROTOCOLS[..2]),
                    port,
                    node_port: if self.random.chance(40) { 30_000 + port } else { 0 },
                    target: TargetPort::Number(port),
                }
            })
            .collect();
        Service { name, addresses: addresses.into_iter().collect(), ports, selector: self.labels() }
    }
}
