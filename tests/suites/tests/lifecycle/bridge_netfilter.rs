//! Whether bridged packets pass netfilter, on a real bridge: Services between pods of a node need it, and the agent says
//! when it is off instead of leaving people to wonder (decision D6).

use super::harness::Site;
use super::shop;

/// The switch of each family, and what the agent calls that.
const SWITCHES: [(&str, &str); 2] = [("bridge-nf-call-iptables", "ipv4"), ("bridge-nf-call-ip6tables", "ipv6")];

/// Waits until the agent tells this of a family.
fn wait(site: &mut Site, family: &str, value: f64) {
    let series = format!("netpol_bridge_netfilter{{family=\"{family}\"}}");
    site.wait(&series, |site| match site.metric(&series) {
        observed if observed.to_bits() == value.to_bits() && site.has_metric(&series) => Ok(()),
        observed => anyhow::bail!("{observed}"),
    });
}

fn switch_all(site: &Site, value: u8) {
    for (name, _) in SWITCHES {
        let _out = site.on_node(&format!("sysctl -qw net.bridge.{name}={value}"));
    }
}

/// How often the agents of this node have said so of each family.
fn said(site: &Site) -> [usize; 2] {
    SWITCHES.map(|(name, _)| site.log().matches(&format!("net.bridge.{name} is off")).count())
}

#[test]
fn the_agent_says_when_bridged_packets_pass_netfilter_by() {
    let mut site = shop(&[]);
    switch_all(&site, 1);
    site.start_agent();
    for (_, family) in SWITCHES {
        wait(&mut site, family, 1.0);
    }
    assert_eq!(said(&site), [0, 0], "{}", site.log());
    // While it runs.
    switch_all(&site, 0);
    for (_, family) in SWITCHES {
        wait(&mut site, family, 0.0);
    }
    assert_eq!(said(&site), [1, 1], "{}", site.log());
    site.stop_agent();
    // From the start, and of one family alone.
    let _out = site.on_node("sysctl -qw net.bridge.bridge-nf-call-iptables=1");
    site.start_agent();
    for ((_, family), value) in SWITCHES.into_iter().zip([1.0, 0.0]) {
        wait(&mut site, family, value);
    }
    assert_eq!(said(&site), [1, 2], "{}", site.log());
}
