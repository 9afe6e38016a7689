//! A pod: a network namespace whose `eth0` is the other end of a veth in the node's bridge, as the bridge plugin makes
//! it, and what libcni would record of it.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::command;
use crate::namespace::Namespace;
use crate::node::{BRIDGE, MTU, gateway};

/// What a pod is made of.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// UID of the object.
    pub uid: String,
    /// Addresses of its `eth0`.
    pub addresses: Vec<IpAddr>,
    /// Whether the container runtime records the result of its CNI plugins. Without, an agent has to find the pod by
    /// the addresses on its link.
    pub recorded: bool,
}

/// A pod; its link goes with this value.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    network: Namespace,
    host_interface: String,
    host_mac: String,
    mac: String,
}

impl Pod {
    pub(crate) fn new(spec: PodSpec) -> Result<Self> {
        let network =
            Namespace::new().with_context(|| format!("the network of pod {}/{}", spec.namespace, spec.name))?;
        // The plugin draws names at random: another sandbox of the same pod has another.
        let mut hash = Sha256::new();
        hash.update(format!("{} {}", spec.uid, network.path().display()));
        hash.update(format!("{:?}", std::time::SystemTime::now()));
        let digest: Vec<String> = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let (name, rest) = digest.split_at(4);
        let mac = |bytes: &[String]| format!("02:{}", bytes.iter().take(5).cloned().collect::<Vec<_>>().join(":"));
        let (host_mac, mac) = (mac(rest), mac(rest.get(5..).unwrap_or_default()));
        Ok(Self { spec, network, host_interface: format!("veth{}", name.concat()), host_mac, mac })
    }

    /// What it is made of.
    #[must_use]
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// Its network namespace.
    #[must_use]
    pub fn network(&self) -> &Namespace {
        &self.network
    }

    /// The node's end of its link.
    #[must_use]
    pub fn host_interface(&self) -> &str {
        &self.host_interface
    }

    /// Lines for `ip` in the node's namespace.
    pub(crate) fn host_lines(&self, pod_cidrs: &[IpNet]) -> Vec<String> {
        let Self { spec, network, host_interface, host_mac, mac } = self;
        let mut lines = vec![
            format!(
                "link add {host_interface} mtu {MTU} address {host_mac} type veth \
                 peer name eth0 mtu {MTU} address {mac} netns {}",
                network.path().display()
            ),
            format!("link set {host_interface} master {BRIDGE} up"),
            format!("link set {host_interface} type bridge_slave hairpin on"),
        ];
        let strangers = spec.addresses.iter().filter(|address| !pod_cidrs.iter().any(|block| block.contains(*address)));
        lines.extend(strangers.map(|address| format!("route replace {} dev {BRIDGE}", IpNet::from(*address))));
        lines
    }

    /// Gives `eth0` its addresses and routes.
    pub(crate) fn configure(&self, pod_cidrs: &[IpNet]) -> Result<()> {
        let mut lines = vec!["link set eth0 up".to_owned()];
        for address in &self.spec.addresses {
            lines.push(format!("addr add {} dev eth0 {}", within(*address, pod_cidrs), nodad(address)));
        }
        for block in pod_cidrs {
            if self.spec.addresses.iter().any(|address| address.is_ipv4() == block.addr().is_ipv4()) {
                lines.push(format!("route add default via {} dev eth0 onlink", gateway(block)));
            }
        }
        command::ip(&self.network.place(), &lines)
            .with_context(|| format!("the network of pod {}/{}", self.spec.namespace, self.spec.name))
    }

    /// Tells the pod the hardware addresses of all others on its subnet.
    pub(crate) fn introduce(&self, others: &[&Self], pod_cidrs: &[IpNet]) -> Result<()> {
        let mut lines = Vec::new();
        for other in others.iter().filter(|other| other.host_interface != self.host_interface) {
            let on_link = |address: &&IpAddr| {
                pod_cidrs.iter().any(|block| block.contains(*address))
                    && self.spec.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4())
            };
            lines.extend(
                other
                    .spec
                    .addresses
                    .iter()
                    .filter(on_link)
                    .map(|address| format!("neigh replace {address} lladdr {} dev eth0 nud permanent", other.mac)),
            );
        }
        command::ip(&self.network.place(), &lines)
    }
}

fn nodad(address: &IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "",
        IpAddr::V6(_) => "nodad",
    }
}

/// The address with the length of its block; alone, if it is in none.
fn within(address: IpAddr, pod_cidrs: &[IpNet]) -> IpNet {
    let block = pod_cidrs.iter().find(|block| block.contains(&address));
    block.and_then(|block| IpNet::new(address, block.prefix_len()).ok()).unwrap_or_else(|| address.into())
}

/// Name and content of the file in which libcni caches the result of an ADD, if the pod's was recorded.
pub(crate) fn record(pod: &Pod, pod_cidrs: &[IpNet]) -> Option<(PathBuf, String)> {
    let Pod { spec: PodSpec { namespace, name, uid, addresses, recorded }, network, host_interface, host_mac, mac } =
        pod;
    if !recorded {
        return None;
    }
    let container: String =
        Sha256::digest(format!("{uid} {host_interface}")).iter().map(|byte| format!("{byte:02x}")).collect();
    let ips: Vec<_> = addresses
        .iter()
        .map(|address| {
            let gateway = pod_cidrs.iter().find(|block| block.contains(address)).map(gateway);
            json!({ "address": within(*address, pod_cidrs).to_string(), "gateway": gateway, "interface": 2 })
        })
        .collect();
    let content = json!({
        "kind": "cniCacheV1",
        "containerId": container,
        "ifName": "eth0",
        "networkName": "cbr0",
        "netns": network.path(),
        "cniArgs": [
            ["IgnoreUnknown", "1"],
            ["K8S_POD_NAMESPACE", namespace],
            ["K8S_POD_NAME", name],
            ["K8S_POD_INFRA_CONTAINER_ID", container],
            ["K8S_POD_UID", uid],
        ],
        "result": {
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": BRIDGE },
                { "name": host_interface, "mac": host_mac },
                { "name": "eth0", "mac": mac, "sandbox": network.path() },
            ],
            "ips": ips,
            "dns": {},
        },
    });
    Some((format!("cbr0-{container}-eth0").into(), content.to_string()))
}
