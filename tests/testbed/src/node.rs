//! A node: a network namespace with a pod bridge as Flannel's delegated bridge plugin leaves it, an uplink, and mounts
//! of its own for what the agent and the container runtime keep.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use crate::command;
use crate::namespace::{Mounts, Namespace};
use crate::outside::Outside;
use crate::place::Place;
use crate::pod::{self, Pod, PodSpec};

/// The pod bridge.
pub const BRIDGE: &str = "cni0";

/// The bridge's hardware address: given, as the bridge plugin does it. A bridge without one of its own takes the lowest
/// of its ports', and when that comes or goes, pods go on sending to one that is nobody's.
const BRIDGE_MAC: &str = "02:00:00:00:00:01";

/// Pods and bridge: Ethernet's 1500 bytes less what VXLAN takes, as Flannel sets it.
pub(crate) const MTU: u32 = 1450;

/// More pairs of pods than this would overrun the kernel's neighbour table, which is one for all namespaces, and which
/// begins to evict at 512 entries (`gc_thresh2` of Documentation/networking/ip-sysctl). Permanent entries do not count.
const RESOLVED_PAIRS: usize = 400;

/// What a node is made of.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Its name, as in `spec.nodeName`.
    pub name: String,
    /// Its addresses on the uplink with the length of that network, at most one of each family; the router
    /// has the first address of it.
    pub uplink: Vec<IpNet>,
    /// Where its pods' addresses are from, at most one block of each family; the bridge has the first of each.
    pub pod_cidrs: Vec<IpNet>,
}

impl Default for NodeOptions {
    fn default() -> Self {
        // Benchmarking and documentation ranges (RFC 2544, RFC 3849), which policies hardly ever name.
        let net = |text: &str| text.parse::<IpNet>().ok();
        Self {
            name: "sandbox".to_owned(),
            uplink: [net("198.18.0.2/30"), net("2001:db8:ffff:ffff::2/64")].into_iter().flatten().collect(),
            pod_cidrs: [net("10.244.0.0/24"), net("fd00:10:244::/64")].into_iter().flatten().collect(),
        }
    }
}

/// A node; dropping it leaves no trace.
#[derive(Debug)]
pub struct Node {
    options: NodeOptions,
    network: Namespace,
    mounts: Mounts,
    outside: Outside,
}

impl Node {
    /// Makes a node and what is beyond its uplink.
    ///
    /// # Errors
    /// The caller may not, or the kernel lacks bridges or br_netfilter.
    pub fn new(options: NodeOptions) -> Result<Self> {
        let network = Namespace::new().context("the node's network")?;
        let mounts = Mounts::new().context("the node's mounts")?;
        network.set_sysctls(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            // A pod outside of the bridge's subnet is not to be told a shorter way.
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ])?;
        filter_bridged(&network)?;
        let place = network.place();
        let mut lines = vec![
            format!("link add {BRIDGE} address {BRIDGE_MAC} mtu {MTU} type bridge"),
            format!("link set {BRIDGE} up"),
        ];
        for block in &options.pod_cidrs {
            lines.push(format!("addr add {}/{} dev {BRIDGE} nodad", gateway(block), block.prefix_len()));
        }
        command::ip(&place, &lines).context("the pod bridge")?;
        let outside = Outside::new(&place, &options.uplink, &options.pod_cidrs)?;
        Ok(Self { options, network, mounts, outside })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// What it is made of.
    #[must_use]
    pub fn options(&self) -> &NodeOptions {
        &self.options
    }

    /// Its addresses on the uplink, in the order of [`NodeOptions::uplink`].
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.options.uplink.iter().map(IpNet::addr).collect()
    }

    /// Its addresses on the bridge, in the order of [`NodeOptions::pod_cidrs`].
    #[must_use]
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.options.pod_cidrs.iter().map(gateway).collect()
    }

    /// Where its processes run: its network and its mounts.
    #[must_use]
    pub fn place(&self) -> Place {
        self.network.place().with_mounts(&self.mounts.path())
    }

    /// Its network namespace.
    #[must_use]
    pub fn network(&self) -> &Namespace {
        &self.network
    }

    /// What is beyond its uplink.
    #[must_use]
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// A command line that opens a shell on the node, for people.
    #[must_use]
    pub fn shell(&self) -> String {
        let (network, mounts) = (self.network.path(), self.mounts.path());
        format!("nsenter --net={} --mount={}", network.display(), mounts.display())
    }

    /// The runtime's cache of CNI results, as the node's processes see it.
    #[must_use]
    pub fn cni_cache(&self) -> &'static Path {
        Path::new("/run/cni-cache")
    }

    /// Makes pods, with their links in the bridge. `existing` are those that are there already.
    ///
    /// # Errors
    /// An address is taken, or the kernel refuses a link.
    pub fn add_pods(&self, specs: Vec<PodSpec>, existing: &[&Pod]) -> Result<Vec<Pod>> {
        let all = specs.len().saturating_add(existing.len());
        let mut pods = Vec::with_capacity(specs.len());
        for spec in specs {
            pods.push(Pod::new(spec)?);
        }
        let lines: Vec<String> = pods.iter().flat_map(|pod| pod.host_lines(&self.options.pod_cidrs)).collect();
        command::ip(&self.network.place(), &lines).context("the pods' links")?;
        for pod in &pods {
            pod.configure(&self.options.pod_cidrs)?;
        }
        if all.saturating_mul(all) > RESOLVED_PAIRS {
            let everybody: Vec<&Pod> = pods.iter().chain(existing.iter().copied()).collect();
            for pod in &everybody {
                pod.introduce(&everybody, &self.options.pod_cidrs)?;
            }
        }
        let recorded: Vec<(PathBuf, String)> =
            pods.iter().filter_map(|pod| pod::record(pod, &self.options.pod_cidrs)).collect();
        self.write_files(recorded.into_iter().map(|(name, text)| (self.cni_cache().join("results").join(name), text)))?;
        Ok(pods)
    }

    /// Removes a pod as the container runtime does: its link, then what was recorded of it.
    ///
    /// # Errors
    /// The link is gone already.
    pub fn remove_pod(&self, pod: Pod) -> Result<()> {
        command::ip(&self.network.place(), &[format!("link del {}", pod.host_interface())])?;
        if let Some((name, _)) = pod::record(&pod, &self.options.pod_cidrs) {
            let file = self.cni_cache().join("results").join(name);
            self.place().run(|| fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display())))?;
        }
        Ok(())
    }

    /// Writes files on the node, each at once: a reader sees the old or the new one.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write_files(&self, files: impl IntoIterator<Item = (PathBuf, String)>) -> Result<()> {
        let files: Vec<_> = files.into_iter().collect();
        self.place().run(|| {
            for (path, text) in files {
                let Some(folder) = path.parent() else { bail!("{} has no folder", path.display()) };
                fs::create_dir_all(folder).with_context(|| format!("mkdir {}", folder.display()))?;
                let draft = path.with_extension("draft");
                fs::write(&draft, text).with_context(|| format!("cannot write {}", draft.display()))?;
                fs::rename(&draft, &path).with_context(|| format!("rename {}", path.display()))?;
            }
            Ok(())
        })
    }
}

/// The bridge's own address: the first of a block.
pub(crate) fn gateway(block: &IpNet) -> IpAddr {
    block.hosts().next().map_or(block.network(), |first| match first {
        // `hosts` of an IPv6 block begins with the subnet-router anycast address.
        IpAddr::V6(first) if IpAddr::V6(first) == block.network() => IpAddr::V6((u128::from(first) | 1).into()),
        IpAddr::V4(_) | IpAddr::V6(_) => first,
    })
}

/// Lets iptables see bridged packets, which Kubernetes networks rely on. The module cannot be loaded from inside a
/// container; where it is missing nothing on the node filters, so only fidelity is lost, and that is said.
fn filter_bridged(network: &Namespace) -> Result<()> {
    let present = || Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
    if !network.place().run(|| Ok(present()))? {
        let loaded = std::process::Command::new("modprobe").arg("br_netfilter").status();
        if !loaded.is_ok_and(|status| status.success()) || !network.place().run(|| Ok(present()))? {
            eprintln!("testbed: this kernel has no br_netfilter: bridged packets pass by netfilter");
            return Ok(());
        }
    }
    network.set_sysctls(&[("net/bridge/bridge-nf-call-iptables", "1"), ("net/bridge/bridge-nf-call-ip6tables", "1")])
}
