//! What kube-proxy does in its mode `ipvs` (pkg/proxy/ipvs of Kubernetes), by hand: virtual addresses on a device of their
//! own, so that packets to them are the node's, virtual services, and rules that masquerade what has to come back here.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol;
use netpol_testbed::node::Node;

/// The device of all virtual addresses, as kube-proxy calls it.
const DEVICE: &str = "kube-ipvs0";

/// What kube-proxy sets: without `conntrack`, what IPVS has rewritten could not be masqueraded.
const SWITCHES: [(&str, &str); 4] = [
    ("net/ipv4/vs/conntrack", "1"),
    ("net/ipv4/vs/conn_reuse_mode", "0"),
    ("net/ipv4/vs/expire_nodest_conn", "1"),
    ("net/ipv4/vs/expire_quiescent_template", "1"),
];

/// A virtual service with its real servers.
#[derive(Clone, Debug)]
pub(crate) struct Virtual {
    pub(crate) at: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) backends: Vec<SocketAddr>,
}

/// Makes a node one of a kube-proxy in mode `ipvs` that knows of no Service yet.
///
/// What comes from outside of the cluster bears kube-proxy's mark until it leaves, and is masqueraded; so is what a pod
/// sends to itself.
pub(crate) fn start(node: &Node) -> Result<()> {
    node.network().set_sysctls(&SWITCHES)?;
    // It stays down, and has its addresses all the same.
    run(node, "ip", &format!("link add {DEVICE} type dummy"))?;
    let rules = format!(
        "table inet proxy {{
         set virtual {{ type ipv4_addr; }}
         set virtual6 {{ type ipv6_addr; }}
         set own {{ type ipv4_addr . ipv4_addr; }}
         set own6 {{ type ipv6_addr . ipv6_addr; }}
         chain services {{ type nat hook prerouting priority dstnat;
         ip saddr != 10.244.0.0/16 ip daddr @virtual meta mark set meta mark or {MASQUERADE:#x}
         ip6 saddr != fd00:10:244::/56 ip6 daddr @virtual6 meta mark set meta mark or {MASQUERADE:#x}
         }}
         chain postrouting {{ type nat hook postrouting priority srcnat;
         ip saddr . ip daddr @own masquerade
         ip6 saddr . ip6 daddr @own6 masquerade
         meta mark and {MASQUERADE:#x} == {MASQUERADE:#x} meta mark set meta mark xor {MASQUERADE:#x} masquerade
         }}
         }}
"
    );
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped());
    node.place().prepare(&mut nft)?;
    let mut nft = nft.spawn().context("cannot start nft")?;
    nft.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes()).context("nft")?;
    ensure!(nft.wait().context("waitpid")?.success(), "nft refuses:\n{rules}");
    Ok(())
}

/// kube-proxy's mark of what is to be masqueraded.
const MASQUERADE: u32 = 0x4000;

/// Puts a virtual service in force; real servers are taken in turn.
pub(crate) fn expose(node: &Node, service: &Virtual) -> Result<()> {
    let Virtual { at, protocol, backends } = service;
    let kind = match protocol {
        Protocol::Tcp => "--tcp-service",
        Protocol::Udp => "--udp-service",
        Protocol::Sctp => "--sctp-service",
    };
    bind(node, at.ip())?;
    run(node, "ipvsadm", &format!("--add-service {kind} {at} --scheduler rr"))?;
    for backend in backends {
        run(node, "ipvsadm", &format!("--add-server {kind} {at} --real-server {backend} --masquerading"))?;
        let (set, address) = (if at.is_ipv4() { "own" } else { "own6" }, backend.ip());
        run(node, "nft", &format!("add element inet proxy {set} {{ {address} . {address} }}"))?;
    }
    Ok(())
}

fn bind(node: &Node, address: IpAddr) -> Result<()> {
    let (set, length) = if address.is_ipv4() { ("virtual", 32) } else { ("virtual6", 128) };
    run(node, "ip", &format!("addr replace {address}/{length} dev {DEVICE}"))?;
    run(node, "nft", &format!("add element inet proxy {set} {{ {address} }}"))
}

/// Runs a program with arguments in which no space is quoted.
pub(crate) fn run(node: &Node, program: &str, line: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(line.split(' '));
    node.place().prepare(&mut command)?;
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    ensure!(output.status.success(), "{program} {line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
