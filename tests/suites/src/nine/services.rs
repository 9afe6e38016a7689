//! A Service in front of each of the nine pods, as upstream's suite has it, and rules that stand in for kube-proxy.
//!
//! A Service's port is not its pod's: what policies say of ports, they say of the pod's. Addresses are those of the pods
//! in another block, so that nothing needs to be looked up.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Cluster;
use netpol_policy::oracle::{self, Flow};
use netpol_testbed::place::Place;
use netpol_testbed::sandbox::Families;
use netpol_testbed::sandbox::cells::{Cell, Port};
use serde_json::{Value, json};

use super::{Family, PODS, port_name, ports, split};

/// What is added to the number of a pod's port to make its Service's.
const OFFSET: u16 = 1000;

impl Family {
    /// The ClusterIP of a pod's Service.
    ///
    /// # Panics
    /// As [`Family::address`].
    #[must_use]
    pub fn cluster_ip(self, pod: &str) -> IpAddr {
        let (of_pods, of_services) = match self {
            Self::V4 => ("10.244.", "10.96."),
            Self::V6 => ("fd00:10:244:", "fd00:10:96:"),
        };
        let address = self.address(pod).to_string().replacen(of_pods, of_services, 1);
        address.parse().expect("address")
    }

    /// `addressType` of slices.
    const fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The Services, without selectors, and their EndpointSlices: cases change labels, and what is behind a Service is not to
/// change with them, since [`proxy`] does not.
#[must_use]
pub fn objects(families: Families) -> Vec<Value> {
    let mut objects = Vec::new();
    for pod in PODS {
        let (namespace, name) = split(pod);
        let service = format!("s-{namespace}-{name}");
        let cluster_ips: Vec<IpAddr> = Family::of(families).iter().map(|family| family.cluster_ip(pod)).collect();
        let port = |port: Port| {
            json!({
                "name": port_name(port), "protocol": port.protocol.name(),
                "port": port.number + OFFSET, "targetPort": port.number,
            })
        };
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": namespace, "name": service },
            "spec": {
                "type": "ClusterIP", "clusterIP": cluster_ips.first(), "clusterIPs": cluster_ips,
                "ports": ports().map(port).collect::<Vec<_>>(),
            },
        }));
        for family in Family::of(families) {
            let port =
                |port: Port| json!({ "name": port_name(port), "protocol": port.protocol.name(), "port": port.number });
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "namespace": namespace, "name": format!("{service}-{}", family.address_type().to_lowercase()),
                    "labels": { "kubernetes.io/service-name": service },
                },
                "addressType": family.address_type(),
                "endpoints": [{ "addresses": [family.address(pod)], "conditions": { "ready": true } }],
                "ports": ports().map(port).collect::<Vec<_>>(),
            }));
        }
    }
    objects
}

/// Does on a node what kube-proxy does: rewrites the destination, and masquerades what a pod sends to itself.
///
/// # Errors
/// `nft` is not there, or the kernel lacks what the rules need.
pub fn proxy(node: &Place, families: Families) -> Result<()> {
    let mut rewrite = String::new();
    let mut masquerade = String::new();
    for family in Family::of(families) {
        let ip = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        for pod in PODS {
            let (service, backend) = (family.cluster_ip(pod), family.address(pod));
            for Port { protocol, number } in ports() {
                let protocol = protocol.name().to_lowercase();
                let at = match family {
                    Family::V4 => format!("{backend}:{number}"),
                    Family::V6 => format!("[{backend}]:{number}"),
                };
                rewrite += &format!("{ip} daddr {service} {protocol} dport {} dnat {ip} to {at}\n", number + OFFSET);
            }
            masquerade += &format!("{ip} saddr {backend} {ip} daddr {backend} masquerade\n");
        }
    }
    let rules = format!(
        "table inet proxy {{\n\
         chain services {{ type nat hook prerouting priority dstnat;\n{rewrite}}}\n\
         chain hairpin {{ type nat hook postrouting priority srcnat;\n{masquerade}}}\n}}\n"
    );
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped());
    node.prepare(&mut nft)?;
    let mut nft = nft.spawn().context("cannot start nft")?;
    nft.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes()).context("nft")?;
    ensure!(nft.wait().context("waitpid")?.success(), "nft refuses:\n{rules}");
    Ok(())
}

/// The same connection through the Service of its destination.
///
/// # Panics
/// The destination is none of the nine pods.
#[must_use]
pub fn through(cell: &Cell) -> Cell {
    let family = if cell.destination.is_ipv4() { Family::V4 } else { Family::V6 };
    let Port { protocol, number } = cell.port;
    Cell {
        destination: family.cluster_ip(&cell.to.to_string()),
        port: Port { protocol, number: number + OFFSET },
        ..cell.clone()
    }
}

/// What policies say of a cell's connection if it goes through the Service of its destination.
///
/// # Panics
/// The Service leads elsewhere.
#[must_use]
pub fn is_allowed(cluster: &Cluster, cell: &Cell) -> bool {
    let Cell { source, destination, port, .. } = through(cell);
    let (backend, protocol) = ((cell.destination, cell.port.number), port.protocol.number());
    let backends = oracle::service_backends(cluster, destination, port.number, protocol);
    assert_eq!(backends, Some([backend].into()), "the backends of {destination}, {port}");
    let flow = Flow { source, destination, protocol, port: Some(port.number), from_node: None };
    oracle::through_service(cluster, &flow, backend, None).allowed
}
