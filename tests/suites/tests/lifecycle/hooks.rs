//! Devices that are no pod's: each carries the program that judges by the real destination, from the moment it is
//! there until it is gone, becomes a pod's, or the agent is uninstalled.

use aya::maps::{HashMap, Map, MapData};
use netpol_common::abi::{InterfaceRow, interface_flags, names};
use netpol_testbed::node::BRIDGE;
use netpol_testbed::outside::UPLINK;

use super::harness::Site;
use super::{foreign, known_mechanisms, mechanisms, shop};

/// What a device carries, as the kernel tells it.
#[derive(Debug, PartialEq, Eq)]
struct Carried {
    ingress: Vec<String>,
    egress: Vec<String>,
}

impl Carried {
    fn new(ingress: &[&str], egress: &[&str]) -> Self {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Self { ingress: owned(ingress), egress: owned(egress) }
    }
}

/// Our programs on a device, in whichever way they are attached.
fn carried(site: &Site, mechanism: &str, interface: &str) -> Carried {
    let of = |side| match mechanism {
        "tcx" => foreign::names(&site.node, interface, side).unwrap(),
        _ => {
            let filters = site.on_node(&format!("tc filter show dev {interface} {side} 2>&1 || true"));
            let programs = ["pod_egress", "pod_ingress", "host_egress"];
            let mut found: Vec<String> =
                filters.split_whitespace().filter(|word| programs.contains(word)).map(str::to_owned).collect();
            found.dedup();
            found
        }
    };
    Carried { ingress: of("ingress"), egress: of("egress") }
}

/// Asserts that nothing of ours is on a device.
pub(super) fn assert_bare(site: &Site, interface: &str) {
    for mechanism in known_mechanisms() {
        assert_eq!(carried(site, mechanism, interface), Carried::new(&[], &[]), "{interface}, {mechanism}");
    }
}

/// The row of a device, as programs read it.
fn row(site: &Site, interface: &str) -> Option<InterfaceRow> {
    let path = format!("{}/{}", super::pins("maps"), names::INTERFACES);
    site.node
        .place()
        .run(|| {
            let index = foreign::index(interface)?;
            let map = Map::from_map_data(MapData::from_pin(path)?)?;
            let rows: HashMap<MapData, u32, InterfaceRow> = map.try_into()?;
            Ok(rows.get(&index, 0).ok())
        })
        .unwrap()
}

fn flags(site: &Site, interface: &str) -> Option<u32> {
    row(site, interface).map(|row| row.flags)
}

const HOOK: [&str; 1] = ["host_egress"];

#[test]
fn every_device_is_hooked_but_loopback_ifb_the_pod_bridge_and_pods() {
    for mechanism in mechanisms() {
        let mut site = shop(&["--attach", mechanism]);
        let _out = site.on_node(
            "ip link add other0 type veth peer name other1 && ip link set other0 up \
             && ip link add ifb7 type ifb && ip tuntap add dev tun7 mode tun",
        );
        site.start_agent();
        site.settle();
        for interface in ["other0", "other1", UPLINK, "tun7"] {
            assert_eq!(carried(&site, mechanism, interface), Carried::new(&[], &HOOK), "{interface}, {mechanism}");
        }
        for interface in ["lo", "ifb7", BRIDGE] {
            assert_bare(&site, interface);
            let qdiscs = site.on_node(&format!("tc qdisc show dev {interface}"));
            assert!(!qdiscs.contains("clsact"), "{interface}: {qdiscs}");
        }
        let pod = site.pod("server").host_interface().to_owned();
        assert_eq!(carried(&site, mechanism, &pod), Carried::new(&["pod_egress"], &["pod_ingress"]));
        assert_eq!(flags(&site, &pod), Some(interface_flags::POD_VETH));
        assert_eq!(flags(&site, BRIDGE), Some(interface_flags::POD_BRIDGE));
        assert_eq!(flags(&site, "other0"), Some(interface_flags::HOOKED));
        assert_eq!(flags(&site, "tun7"), Some(interface_flags::HOOKED | interface_flags::NO_LINK_HEADER));
        assert_eq!((flags(&site, "lo"), flags(&site, "ifb7")), (None, None));
    }
}

#[test]
fn a_device_is_hooked_when_it_appears_and_let_go_of_when_it_becomes_a_pods() {
    for mechanism in mechanisms() {
        let mut site = shop(&["--attach", mechanism]);
        site.start_agent();
        site.settle();
        let _out = site.on_node("ip link add late0 type veth peer name late1");
        let becomes = |site: &mut Site, expected: Carried| {
            site.wait("the device carries what it should", |site| {
                let found = carried(site, mechanism, "late0");
                if found == expected { Ok(()) } else { anyhow::bail!("{found:?}") }
            });
        };
        becomes(&mut site, Carried::new(&[], &HOOK));
        let _out = site.on_node(&format!("ip link set late0 master {BRIDGE}"));
        becomes(&mut site, Carried::new(&["pod_egress"], &["pod_ingress"]));
        site.wait("it is pending", |site| match flags(site, "late0") {
            None => Ok(()),
            row => anyhow::bail!("{row:?}"),
        });
        let index = site.on_node("ip -o link show late0 | cut -d: -f1");
        let _out = site.on_node("ip link del late0");
        site.wait("nothing of it is left", |site| {
            let left = super::links(site, &format!("^{}-", index.trim()));
            if left == 0 { Ok(()) } else { anyhow::bail!("{left} links") }
        });
    }
}

#[test]
fn a_restarted_agent_finds_its_hooks_and_forgets_devices_that_went() {
    for mechanism in mechanisms() {
        let mut site = shop(&["--attach", mechanism]);
        let _out = site.on_node("ip link add gone0 type veth peer name gone1 && ip link add kept0 type bridge");
        site.start_agent();
        site.settle();
        let rows = site.rows();
        site.stop_agent();
        let _out = site.on_node("ip link del gone0");
        assert_eq!(carried(&site, mechanism, "kept0"), Carried::new(&[], &HOOK), "without an agent");
        site.start_agent();
        site.settle();
        assert_eq!(carried(&site, mechanism, "kept0"), Carried::new(&[], &HOOK), "adopted");
        assert_eq!(site.rows(), rows - 2);
    }
}
