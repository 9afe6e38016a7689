//! The table of nftables that is the last guard of deferred packets: what it says, that it stays, and what it does to
//! real packets whose marks a rule of the test sets in place of a pod's program.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::bail;
use netpol_agent::guard::{Guard, GuardCounters, GuardReason, TABLE, Wanted};
use netpol_common::abi::stamp;
use netpol_testbed::node::BRIDGE;
use netpol_testbed::outside::UPLINK;
use netpol_testbed::place::Place;

use super::harness::{PORT, Site};
use super::{foreign, shop};

const SHIFT: u32 = 16;
/// How long what is let on may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long silence lasts until it is a drop; nothing here is slow.
const SILENCE: Duration = Duration::from_millis(600);

fn listing(site: &Site) -> String {
    site.on_node(&format!("nft list table inet {TABLE} 2>&1 || true"))
}

#[test]
fn the_table_names_pods_and_hooked_devices_and_goes_with_the_agent() {
    let mut site = shop(&[]);
    site.start_agent();
    site.settle();
    let is_said = |site: &Site, words: &[&str]| {
        let table = listing(site);
        match words.iter().find(|word| !table.contains(**word)) {
            Some(missing) => bail!("no {missing} in {table}"),
            None => Ok(()),
        }
    };
    let server = site.pod("server").host_interface().to_owned();
    site.wait("the table is there", |site| {
        let (bridge, uplink) = (format!("\"{BRIDGE}\""), format!("elements = {{ \"{UPLINK}\""));
        is_said(site, &["hook input priority 300", "hook postrouting priority 300", &bridge, &uplink, &server])
    });
    let _out = site.on_node("ip link add late0 type bridge");
    site.wait("a new device is in it", |site| is_said(site, &["\"late0\""]));
    let _out = site.on_node("ip link del late0");
    site.wait("a device that went is not", |site| {
        let table = listing(site);
        // A device that is gone is listed by its index.
        if table.contains("late0") || !table.contains(&format!("elements = {{ \"{UPLINK}\" }}")) {
            bail!("{table}")
        }
        Ok(())
    });
    // When it is armed the table is replaced as well.
    site.wait_armed();
    // As a firewall does that is loaded again.
    let _out = site.on_node("nft flush ruleset");
    site.wait("the table is made again", |site| is_said(site, &["hook input", "hook postrouting", &server]));
    assert!(site.metric(r#"netpol_sync_errors_total{stage="guard"}"#) >= 1.0);
    site.stop_agent();
    is_said(&site, &["hook input", &server]).unwrap();
    site.agent_verb("uninstall");
    assert!(!site.on_node("nft list tables").contains(TABLE));
}

/// Stands in for the programs on pods' veths: everything from the pod bridge gets this state.
fn stamp_all(site: &Site, state: u16) {
    let mark = |state| u32::from(stamp::new(state, 5)) << SHIFT;
    let (mark, judged) = (mark(state), mark(stamp::JUDGED));
    let rule = |what: &str, mark: u32| {
        format!(
            "nft add rule inet marks pre iifname {BRIDGE} meta l4proto {what} meta mark set meta mark and 0xffff or {mark}"
        )
    };
    // Neighbour discovery is never deferred.
    let _out = site.on_node(&format!(
        "nft add table inet marks && nft delete table inet marks && nft add table inet marks \
         && nft add chain inet marks pre '{{ type filter hook prerouting priority -300; }}' && {} && {}",
        rule("tcp", mark),
        rule("ipv6-icmp", judged),
    ));
}

fn connects(from: &Place, to: SocketAddr, patience: Duration) -> bool {
    from.run(|| Ok(TcpStream::connect_timeout(&to, patience).is_ok())).unwrap()
}

/// How many packets each reason has dropped.
fn dropped(site: &Site) -> BTreeMap<GuardReason, u64> {
    let counts = site.node.place().run(|| Ok(GuardCounters::default().read()?)).unwrap();
    counts.into_iter().map(|(reason, count)| (reason, count.packets)).collect()
}

/// Asserts that a connection is let on, or is dropped for one reason alone.
fn expect(site: &Site, to: SocketAddr, expected: Result<(), GuardReason>) {
    let before = dropped(site);
    // What is expected to come may be late where the machine is busy.
    let patience = if expected.is_ok() { PATIENCE } else { SILENCE };
    let connected = connects(&site.pod("client").network().place(), to, patience);
    let after = dropped(site);
    for reason in GuardReason::ALL {
        let more = after.get(&reason) > before.get(&reason);
        assert_eq!(more, expected == Err(reason), "{to}: {reason:?} {before:?} {after:?}\n{}", listing(site));
    }
    assert_eq!(connected, expected.is_ok(), "{to}");
}

#[test]
fn what_is_deferred_is_dropped_on_the_node_itself_and_towards_devices_without_hook() {
    let mut site = Site::new(&[]);
    site.add_pod("client", 10);
    let outside: [IpAddr; 2] = ["203.0.113.9".parse().unwrap(), "2001:db8:9::9".parse().unwrap()];
    site.node.outside().add_hosts(&outside).unwrap();
    let gateways = site.node.gateways();
    let listen = |place: &Place, addresses: &[IpAddr]| -> Vec<TcpListener> {
        let bind = |address: &IpAddr| TcpListener::bind(SocketAddr::new(*address, PORT));
        place.run(|| Ok(addresses.iter().map(bind).collect::<Result<_, _>>()?)).unwrap()
    };
    let _servers = [listen(&site.node.place(), &gateways), listen(&site.node.outside().network().place(), &outside)];
    let (bridge, uplink) = site.node.place().run(|| Ok((foreign::index(BRIDGE)?, foreign::index(UPLINK)?))).unwrap();
    let mut guard = Guard::new(SHIFT);
    let mut set = |site: &Site, hooked: &[u32], armed| {
        let wanted = Wanted { pods: [bridge].into(), hooked: hooked.iter().copied().collect(), armed };
        site.node.place().run(|| Ok(guard.set(&wanted)?)).unwrap();
    };

    set(&site, &[uplink], false);
    for (family, outside) in outside.into_iter().enumerate() {
        let (local, away) = (SocketAddr::new(gateways[family], PORT), SocketAddr::new(outside, PORT));
        stamp_all(&site, stamp::NONE);
        expect(&site, local, Ok(()));
        for (armed, state, delivered, unhooked) in [
            (false, stamp::NONE, Ok(()), Ok(())),
            (true, stamp::NONE, Err(GuardReason::MarkLost), Ok(())),
            (true, stamp::JUDGED, Ok(()), Ok(())),
            (true, stamp::DEFERRED, Err(GuardReason::ServiceLocalBackend), Err(GuardReason::UnhookedDevice)),
            (true, stamp::DEFERRED_UNLESS_LOCAL, Ok(()), Err(GuardReason::UnhookedDevice)),
        ] {
            println!("{away}: armed {armed}, state {state}");
            stamp_all(&site, state);
            set(&site, &[uplink], armed);
            expect(&site, local, delivered);
            // The device's own program judges what it carries.
            expect(&site, away, Ok(()));
            set(&site, &[], armed);
            expect(&site, away, unhooked);
        }
        set(&site, &[uplink], false);
    }
    // The node's own traffic is nobody's egress.
    stamp_all(&site, stamp::DEFERRED);
    set(&site, &[], true);
    for outside in outside {
        assert!(connects(&site.node.place(), SocketAddr::new(outside, PORT), PATIENCE), "{outside}");
    }
    // A table that somebody emptied is noticed, and its counts go on.
    let before = dropped(&site);
    let _out = site.on_node(&format!("nft flush chain inet {TABLE} input"));
    assert!(!site.node.place().run(|| Ok(guard.verify()?)).unwrap());
    let wanted = Wanted { pods: [bridge].into(), hooked: [uplink].into(), armed: true };
    site.node.place().run(|| Ok(guard.set(&wanted)?)).unwrap();
    assert!(site.node.place().run(|| Ok(guard.verify()?)).unwrap());
    assert_eq!(dropped(&site), before);
}
