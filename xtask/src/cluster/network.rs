//! The network under the cluster: a bridge on the control plane's machine, and a veth from it to each node. Nothing of
//! it is in the host's own network.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use netpol_testbed::place::Place;

use super::Families;
use super::state::Machine;

/// Which node of the control plane's network a machine is: the control plane itself.
pub(super) const CONTROL_PLANE: usize = 0;

/// The same number for the hosts outside; nodes' numbers are below.
pub(super) const OUTSIDE: usize = 250;

/// The bridge that is the underlay.
pub(super) const BRIDGE: &str = "underlay";

/// Pods' addresses of all nodes; each node's part has 256 in IPv4, and a /64 in IPv6.
const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];
const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// The first of each range, which the API server takes for itself.
const API_SERVICE: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];

impl Families {
    /// Of two values, one per family, those that are wanted.
    pub(super) fn of<T: Copy>(self, values: [T; 2]) -> Vec<T> {
        let [four, six] = values;
        match self {
            Self::Ipv4 => vec![four],
            Self::Ipv6 => vec![six],
            Self::Dual => vec![four, six],
        }
    }

    /// The pods' addresses, as flags of daemons take them.
    pub(crate) fn pod_cidrs(self) -> String {
        self.of(POD_CIDRS).join(",")
    }

    pub(super) fn service_cidrs(self) -> String {
        self.of(SERVICE_CIDRS).join(",")
    }

    /// The ranges of pods and of Services.
    pub(super) fn ranges(self) -> Vec<&'static str> {
        [self.of(POD_CIDRS), self.of(SERVICE_CIDRS)].concat()
    }

    /// Where pods reach the API server.
    pub(super) fn api_service(self) -> Vec<String> {
        self.of(API_SERVICE).iter().map(ToString::to_string).collect()
    }

    /// The network configuration of Flannel, but for its backend.
    pub(crate) fn flannel(self) -> serde_json::Value {
        let [four, six] = POD_CIDRS;
        let (has_four, has_six) = (self != Self::Ipv6, self != Self::Ipv4);
        let mut config = serde_json::json!({ "EnableIPv4": has_four, "EnableIPv6": has_six });
        if has_four {
            config["Network"] = four.into();
        }
        if has_six {
            config["IPv6Network"] = six.into();
        }
        config
    }

    /// The addresses of a machine on the underlay, of a range that is set aside for benchmarks (RFC 2544) and one for
    /// documentation (RFC 3849), which policies hardly ever name.
    pub(super) fn addresses(self, machine: usize) -> Vec<IpAddr> {
        let last = u8::try_from(machine).unwrap_or(u8::MAX).saturating_add(1);
        let four = IpAddr::from([198, 18, 0, last]);
        let six = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)]);
        self.of([four, six])
    }
}

/// How long the prefix of the underlay is.
pub(super) fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

/// Sets up the control plane's machine.
pub(super) fn control_plane(machine: &Machine, families: Families) -> Result<()> {
    prepare(&machine.network())?;
    let mut lines = vec![
        "link set lo up".to_owned(),
        // Its links' offloads and MTU are a real switch's as far as nodes can see.
        format!("link add {BRIDGE} type bridge"),
        format!("link set {BRIDGE} up"),
    ];
    for address in families.addresses(CONTROL_PLANE) {
        lines.push(format!("addr add {address}/{} dev {BRIDGE} nodad", prefix(address)));
    }
    ip(&machine.network(), &lines)
}

/// Connects a node.
pub(super) fn node(control_plane: &Machine, node: &Machine, index: usize, families: Families) -> Result<()> {
    prepare(&node.network())?;
    let Machine { name, pid, .. } = node;
    ip(
        &control_plane.network(),
        &[
            format!("link add {name} type veth peer name eth0 address {} netns {pid}", hardware_address(index)),
            format!("link set {name} master {BRIDGE}"),
            format!("link set {name} up"),
        ],
    )?;
    let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    for (address, gateway) in families.addresses(index).into_iter().zip(families.addresses(CONTROL_PLANE)) {
        lines.push(format!("addr add {address}/{} dev eth0 nodad", prefix(address)));
        // A process on the node that calls a ClusterIP needs a route before the proxy rewrites the address.
        lines.push(format!("route add default via {gateway} dev eth0"));
    }
    ip(&node.network(), &lines)
}

/// A machine that comes back has the hardware address that it had, which its neighbours remember for a while.
fn hardware_address(machine: usize) -> String {
    let [high, low] = u16::try_from(machine).unwrap_or(u16::MAX).to_be_bytes();
    // Locally administered, unicast (IEEE 802, section 8.4.2).
    format!("02:00:c6:12:{high:02x}:{low:02x}")
}

fn prepare(place: &Place) -> Result<()> {
    let values = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/disable_ipv6", "0"),
        ("net/ipv6/conf/default/disable_ipv6", "0"),
        ("net/ipv6/conf/all/forwarding", "1"),
        // Addresses are usable at once, and nobody but us gives any.
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        // Inherited from the host in IPv4.
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        // What distributions that run Kubernetes set: pods of one node that talk by a Service are on one bridge.
        ("net/bridge/bridge-nf-call-iptables", "1"),
        ("net/bridge/bridge-nf-call-ip6tables", "1"),
    ];
    place.run(|| {
        for (name, value) in values {
            let path = Path::new("/proc/sys").join(name);
            std::fs::write(&path, value).with_context(|| format!("{} = {value}", path.display()))?;
        }
        Ok(())
    })
}

/// Gives lines to `ip -batch` in a place.
pub(super) fn ip(place: &Place, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    place.prepare(&mut command)?;
    let mut child = command.spawn().context("cannot start ip")?;
    if let Some(mut input) = child.stdin.take() {
        // Ends early if a line is refused; what ip says of that line is the better message.
        let _ = input.write_all((lines.join("\n") + "\n").as_bytes());
    }
    let output = child.wait_with_output().context("waitpid")?;
    if !output.status.success() {
        bail!("ip -batch: {}\nof:\n{}", String::from_utf8_lossy(&output.stderr).trim(), lines.join("\n"));
    }
    Ok(())
}
