//! Many connections to one address at once, each with the backend that the proxy has picked for it.
//!
//! A connection is *allowed* if its payload comes back, or for raw SCTP its INIT ACK. Which backend it was sent to says
//! what rewrote it, by the connection's source port: the node's connection tracking, or IPVS's own table. That is so of
//! those whose packets were dropped too, since an entry is there before the last hooks. Only what was dropped on its way
//! into the node itself has none in connection tracking.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, bail};
use netpol_policy::model::Protocol;
use netpol_testbed::namespace::Namespace;
use netpol_testbed::place::Place;
use netpol_testbed::probe::{self, Outcome, Probe, Traced};

/// Who rewrites addresses on a node, and so knows the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewriter {
    /// Rules of nftables or iptables, by connection tracking.
    Nat,
    /// IPVS.
    Ipvs,
}

/// What became of a burst of connections.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Those that were answered, by backend.
    pub answered: BTreeMap<SocketAddr, usize>,
    /// Those that were not, by backend.
    pub silent: BTreeMap<SocketAddr, usize>,
    /// Those that were not, and that the node does not track: dropped on their way into the node itself.
    pub untracked: usize,
}

impl Tally {
    /// How many were answered.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.answered.values().sum()
    }

    /// How many were not.
    #[must_use]
    pub fn silent(&self) -> usize {
        self.silent.values().sum::<usize>() + self.untracked
    }

    /// How many were answered by backends that are not allowed, or were not by those that are.
    pub fn wrong(&self, allowed: impl Fn(SocketAddr) -> bool) -> usize {
        let of = |tried: &BTreeMap<SocketAddr, usize>, is_allowed: bool| -> usize {
            tried.iter().filter(|(backend, _)| allowed(**backend) == is_allowed).map(|(_, number)| number).sum()
        };
        of(&self.answered, false) + of(&self.silent, true)
    }
}

/// Opens `count` connections from an address of a namespace, all at the same time.
///
/// # Errors
/// As [`probe::trace`].
pub fn burst(
    from: &Namespace,
    source: IpAddr,
    to: SocketAddr,
    protocol: Protocol,
    count: usize,
) -> Result<Vec<Traced>> {
    let probe = Probe { from, source, destination: to.ip(), protocol, port: to.port() };
    probe::trace(&vec![probe; count])
}

/// Opens `count` connections, and says which backend became of each.
///
/// # Errors
/// As [`burst`] and [`picked`]; or something else happened than that a connection was answered or was not.
pub fn tally(
    (node, rewriter): (&Place, Rewriter),
    from: &Namespace,
    source: IpAddr,
    to: SocketAddr,
    protocol: Protocol,
    count: usize,
) -> Result<Tally> {
    let shots = burst(from, source, to, protocol, count)?;
    let picked = picked(node, rewriter, source, to, protocol)?;
    let mut tally = Tally::default();
    for Traced { source_port, outcome } in shots {
        match (outcome, picked.get(&source_port)) {
            (Outcome::Allow, Some(backend)) => *tally.answered.entry(*backend).or_default() += 1,
            (Outcome::Deny, Some(backend)) => *tally.silent.entry(*backend).or_default() += 1,
            (Outcome::Deny, None) => tally.untracked += 1,
            (Outcome::Allow, None) => bail!("answered, and not tracked: port {source_port}"),
            (Outcome::Error(error), backend) => bail!("{to} ({backend:?}): {error}"),
        }
    }
    Ok(tally)
}

/// The backends of all connections from an address to another, by source port.
///
/// # Errors
/// The kernel cannot be asked, or answers in no known form.
pub fn picked(
    node: &Place,
    rewriter: Rewriter,
    source: IpAddr,
    to: SocketAddr,
    protocol: Protocol,
) -> Result<BTreeMap<u16, SocketAddr>> {
    match rewriter {
        Rewriter::Nat => tracked(node, source, to, protocol),
        Rewriter::Ipvs => {
            let table = "/proc/thread-self/net/ip_vs_conn";
            let text = node.run(|| std::fs::read_to_string(table).context(table))?;
            let entries = text.lines().skip(1).map(of_ipvs).collect::<Result<Vec<_>>>()?;
            let asked = |entry: &&Entry| (entry.protocol, entry.from.ip(), entry.to) == (protocol, source, to);
            Ok(entries.iter().filter(asked).map(|entry| (entry.from.port(), entry.backend)).collect())
        }
    }
}

fn tracked(node: &Place, source: IpAddr, to: SocketAddr, protocol: Protocol) -> Result<BTreeMap<u16, SocketAddr>> {
    let mut command = Command::new("conntrack");
    let family = if to.is_ipv4() { "ipv4" } else { "ipv6" };
    command.args(["-L", "-f", family, "-p", &protocol.name().to_lowercase()]);
    command.args(["--orig-src", &source.to_string(), "--orig-dst", &to.ip().to_string()]);
    command.args(["--orig-port-dst", &to.port().to_string()]);
    node.prepare(&mut command)?;
    let output = command.output().context("cannot start conntrack")?;
    if !output.status.success() {
        bail!("conntrack: {}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8_lossy(&output.stdout).lines().map(of_conntrack).collect()
}

/// `tcp 6 117 SYN_SENT src=A dst=B sport=1 dport=2 [UNREPLIED] src=C dst=D sport=3 dport=4 …`: the original direction,
/// then the reply's, whose source is the backend.
fn of_conntrack(line: &str) -> Result<(u16, SocketAddr)> {
    let values = |name: &str| {
        let values = line.split(' ').filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).collect::<Vec<_>>();
        <[&str; 2]>::try_from(values).ok().with_context(|| format!("{name} in {line:?}"))
    };
    let ([_, backend], [source_port, port]) = (values("src")?, values("sport")?);
    Ok((source_port.parse()?, SocketAddr::new(backend.parse()?, port.parse()?)))
}

/// A connection of IPVS.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    protocol: Protocol,
    from: SocketAddr,
    to: SocketAddr,
    backend: SocketAddr,
}

/// `TCP 0AF40002 9C40 0A600009 0050 0AF40104 1F90 SYN_RECV 57`: client, virtual address and backend, each with its port,
/// in hexadecimal digits; IPv6 addresses are written out in full.
fn of_ipvs(line: &str) -> Result<Entry> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [protocol, from, from_port, to, to_port, backend, backend_port, ..] = words[..] else {
        bail!("a connection of IPVS: {line:?}")
    };
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| known.name() == protocol);
    let address = |text: &str, port: &str| -> Result<SocketAddr> {
        let ip: IpAddr = if text.contains(':') {
            text.parse::<Ipv6Addr>()?.into()
        } else {
            Ipv4Addr::from(u32::from_str_radix(text, 16)?).into()
        };
        Ok(SocketAddr::new(ip, u16::from_str_radix(port, 16)?))
    };
    Ok(Entry {
        protocol: protocol.with_context(|| format!("a protocol of IPVS: {line:?}"))?,
        from: address(from, from_port)?,
        to: address(to, to_port)?,
        backend: address(backend, backend_port)?,
    })
}

/// Forgets all connections without handshake that a node tracks, and TCP's that nobody has answered: a SYN from the same
/// port to the same place would for two minutes (`nf_conntrack_tcp_timeout_syn_sent`) be sent where the first one was,
/// whatever the proxy says now.
///
/// # Errors
/// There is no `conntrack`.
pub fn forget(node: &Place) -> Result<()> {
    for family in ["ipv4", "ipv6"] {
        for protocol in [&["udp"][..], &["sctp"], &["tcp", "--state", "SYN_SENT"]] {
            let mut command = Command::new("conntrack");
            command.args(["-D", "-f", family, "-p"]).args(protocol);
            node.prepare(&mut command)?;
            // It fails if there is none.
            let _output = command.output().context("cannot start conntrack")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracked_connection_names_its_backend() {
        let line = "tcp      6 119 SYN_SENT src=10.244.0.2 dst=10.96.0.9 sport=4000 dport=80 [UNREPLIED] \
                    src=10.244.1.4 dst=10.244.0.2 sport=8080 dport=4000 mark=0 use=1";
        assert_eq!(of_conntrack(line).unwrap(), (4000, "10.244.1.4:8080".parse().unwrap()));
    }

    #[test]
    fn a_connection_of_ipvs_names_its_backend_in_both_families() {
        let entry = |from: &str, to: &str, backend: &str| Entry {
            protocol: Protocol::Tcp,
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            backend: backend.parse().unwrap(),
        };
        let line = "TCP 0AF40002 9C40 0A600009 0050 0AF40104 1F90 SYN_RECV         57";
        assert_eq!(of_ipvs(line).unwrap(), entry("10.244.0.2:40000", "10.96.0.9:80", "10.244.1.4:8080"));
        let line = "TCP fd00:0010:0244:0000:0000:0000:0000:0002 9C40 fd00:0010:0096:0000:0000:0000:0000:0009 0050 \
                    fd00:0010:0244:0001:0000:0000:0000:0004 1F90 ESTABLISHED     897";
        let expected = entry("[fd00:10:244::2]:40000", "[fd00:10:96::9]:80", "[fd00:10:244:1::4]:8080");
        assert_eq!(of_ipvs(line).unwrap(), expected);
        assert!(of_ipvs("TCP 0AF40002 9C40").is_err());
    }
}
