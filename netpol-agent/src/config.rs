//! What the agent was told to do, validated.
//!
//! [`crate::cli`] is the only room that reads the command line and the environment; it hands over these types, which
//! cannot hold a value the rest of the agent would have to doubt. Each newtype parses itself, so that a refusal names
//! the flag it was given to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use netpol_common::abi::{self, Bucket};

/// Everything `netpol-agent run` needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects come from.
    pub source: ObjectSource,
    /// The node whose pods are ours.
    pub node: NodeName,
    /// The bridge whose ports are pods.
    pub pod_bridge: InterfaceName,
    /// The bits of `skb->mark` that carry the stamp of decision D6.
    pub mark_mask: MarkMask,
    /// Ranges of Service addresses (decision D6).
    pub service_cidrs: Vec<IpNet>,
    /// Where metrics and health are served.
    pub metrics_address: SocketAddr,
    /// Address families that pods use.
    pub families: Families,
    /// Mount point of the BPF file system.
    pub bpf_root: PathBuf,
    /// Lock, sockets and what must survive a restart but not a reboot.
    pub runtime_dir: PathBuf,
    /// What a revoked permission does to connections that it had admitted.
    pub established: Established,
    /// What an interface may do while the pod behind it is unknown.
    pub pending: Pending,
    /// Confirmed flows that the node can hold.
    pub max_flows: MaxFlows,
    /// Token bucket for new flows, of each endpoint.
    pub flow_budget: FlowBudget,
    /// Size of the endpoint tables.
    pub max_endpoints: MaxEndpoints,
    /// UDP ports of the overlay, at most four.
    pub overlay_ports: Vec<u16>,
    /// How programs are attached.
    pub attach: Attach,
    /// Where libcni caches results.
    pub cni_cache: PathBuf,
    /// Take the pins over from an agent with another source, cluster or node name.
    pub takeover: bool,
    /// Logging.
    pub log: LogConfig,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectSource {
    /// A Kubernetes API server.
    ApiServer {
        /// Credentials and address; `None`: the service account of the agent's own pod.
        kubeconfig: Option<PathBuf>,
        /// Address that replaces the one of the kubeconfig or of the pod's environment: the Service address is only
        /// reachable once kube-proxy runs.
        server: Option<String>,
    },
    /// A directory of manifests.
    Manifests(PathBuf),
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Shape of a line.
    pub format: LogFormat,
    /// Directives as in `RUST_LOG`: `info`, or `netpol_agent=debug,kube=warn`.
    pub filter: String,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Address families that pods use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Families {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both.
    Dual,
}

impl Families {
    /// Whether an address is of a family that pods use.
    #[must_use]
    pub const fn include(self, address: &IpAddr) -> bool {
        match (self, address) {
            (Self::Dual, _) | (Self::Ipv4, IpAddr::V4(_)) | (Self::Ipv6, IpAddr::V6(_)) => true,
            (Self::Ipv4, IpAddr::V6(_)) | (Self::Ipv6, IpAddr::V4(_)) => false,
        }
    }
}

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Attach {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX links (6.6 and later).
    Tcx,
    /// Filters on a clsact qdisc.
    Clsact,
}

/// What a revoked permission does to connections that it had admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Established {
    /// They are judged again at their next packet.
    Recheck,
    /// They live on.
    Keep,
}

/// What an interface may do while the pod behind it is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pending {
    /// Nothing but address resolution and the node's own probes (decision D13).
    Deny,
    /// Everything.
    Allow,
}

/// A value that a flag cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

/// Name of a Node object: a DNS-1123 subdomain of at most 253 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label_fits = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if text.len() <= 253 && text.split('.').all(label_fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidValue(format!("{text:?} is not a node name (lower-case letters, digits, '-' and '.')")))
        }
    }
}

/// Name of a network device: the kernel takes 15 bytes without '/', ':' or white space (`dev_valid_name`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InterfaceName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = !matches!(text, "" | "." | "..")
            && text.len() <= 15
            && text.bytes().all(|b| !matches!(b, b'/' | b':' | 0) && !b.is_ascii_whitespace() && b != 0x0b);
        if legal {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidValue(format!("{text:?} is not an interface name (1 to 15 bytes, no '/', ':' or space)")))
        }
    }
}

/// The bits of `skb->mark` that are ours: 2 bits of state and 14 of endpoint number (decision D6), so at least 16 of
/// them, next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkMask(u32);

impl MarkMask {
    /// Bits that the stamp needs.
    pub const WIDTH: u32 = 16;

    /// The mask, host order.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Position of its lowest bit.
    #[must_use]
    pub const fn shift(self) -> u32 {
        self.0.trailing_zeros()
    }
}

impl fmt::Display for MarkMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl FromStr for MarkMask {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => text.parse(),
        };
        let Ok(mask) = parsed else {
            return Err(InvalidValue(format!("{text:?} is not a 32 bit mask such as 0xffff0000")));
        };
        let width = mask.count_ones();
        if width < Self::WIDTH {
            return Err(InvalidValue(format!("{text} has {width} bits, but the stamp needs {}", Self::WIDTH)));
        }
        if (mask >> mask.trailing_zeros()).trailing_ones() != width {
            return Err(InvalidValue(format!("the bits of {text} are not next to each other")));
        }
        Ok(Self(mask))
    }
}

/// Token bucket for new flows (decision D5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowBudget {
    /// Flows a second in the long run.
    pub rate: u32,
    /// Flows at once.
    pub burst: u32,
}

impl FlowBudget {
    /// As programs are told.
    #[must_use]
    pub const fn bucket(self) -> Bucket {
        Bucket { cost: self.cost_ns(), burst: self.burst_ns() }
    }

    /// Nanoseconds that one flow costs; at least one.
    #[must_use]
    pub const fn cost_ns(self) -> u64 {
        let cost = 1_000_000_000 / self.rate as u64;
        if cost == 0 { 1 } else { cost }
    }

    /// Nanoseconds of credit that a full bucket holds.
    #[must_use]
    pub const fn burst_ns(self) -> u64 {
        self.burst as u64 * self.cost_ns()
    }
}

/// Size of the flow tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxFlows(u32);

impl MaxFlows {
    /// Confirmed flows with a place of their own, and as many without.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for MaxFlows {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        match text.parse() {
            // Below, an account's sixteenth is nothing; above, the kernel may refuse the allocation.
            Ok(number @ 1024..=4_194_304) => Ok(Self(number)),
            _ => Err(InvalidValue(format!("{text:?} is not a number from 1024 to 4194304"))),
        }
    }
}

/// Size of the endpoint tables. Number 0 is the pending endpoint, and a stamp holds 14 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxEndpoints(u32);

impl MaxEndpoints {
    /// Rows of a table that is indexed by endpoint number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for MaxEndpoints {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(number @ 2..=abi::MAX_ENDPOINTS) => Ok(Self(number)),
            _ => Err(InvalidValue(format!("{text:?} is not a number from 2 to {}", abi::MAX_ENDPOINTS))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_mask_needs_sixteen_neighbouring_bits() {
        for (text, shift) in [("0xffff0000", 16), ("0x0000ffff", 0), ("0x00ffff00", 8), ("0xffffffff", 0), ("65535", 0)]
        {
            assert_eq!(text.parse::<MarkMask>().map(MarkMask::shift), Ok(shift), "{text}");
        }
        for text in ["", "0x", "0x7fff", "0xff00ff00", "0x1fffe00000000", "0xffff00f0", "mask", "-1"] {
            assert!(text.parse::<MarkMask>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_node_name_is_a_dns_subdomain() {
        for text in ["node-1", "ip-10-0-0-1.ec2.internal", "a"] {
            assert!(text.parse::<NodeName>().is_ok(), "{text}");
        }
        for text in ["", "Node", "a..b", "-a", "a-", "a_b", &"a".repeat(254)] {
            assert!(text.parse::<NodeName>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_interface_name_is_what_the_kernel_takes() {
        for text in ["cni0", "br-1234567890ab", "a.100"] {
            assert!(text.parse::<InterfaceName>().is_ok(), "{text}");
        }
        for text in ["", ".", "..", "a/b", "a b", "eth0:1", "sixteen-bytes-xx"] {
            assert!(text.parse::<InterfaceName>().is_err(), "{text}");
        }
    }

    #[test]
    fn endpoint_tables_fit_the_stamp() {
        assert_eq!("16384".parse::<MaxEndpoints>().map(MaxEndpoints::get), Ok(16384));
        for text in ["0", "1", "16385", "-3", "many"] {
            assert!(text.parse::<MaxEndpoints>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_flow_budget_is_told_to_programs_in_nanoseconds() {
        let budget = FlowBudget { rate: 50_000, burst: 100_000 };
        assert_eq!((budget.cost_ns(), budget.burst_ns()), (20_000, 2_000_000_000));
        assert_eq!(FlowBudget { rate: u32::MAX, burst: 1 }.cost_ns(), 1);
    }

    #[test]
    fn families_say_which_addresses_count() {
        let (v4, v6) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([0; 16]));
        assert!(Families::Dual.include(&v4) && Families::Dual.include(&v6));
        assert!(Families::Ipv4.include(&v4) && !Families::Ipv4.include(&v6));
        assert!(!Families::Ipv6.include(&v4) && Families::Ipv6.include(&v6));
    }
}
