//! What of a packet on its way from one node to another is judged: the pod's own packet, once where it leaves the pod and
//! once where it enters the other, and never the packet that carries it. And what looks like one that carries, from a pod.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use ipnet::IpNet;
use netpol_common::abi::{ABI_VERSION, Counter, Direction, InterfaceRow, counter_index, names};
use netpol_common::verdict::Reason;
use netpol_suites::frames;
use netpol_testbed::probe::Outcome;
use serde_json::{Value, json};

use crate::cluster::text;
use crate::site::{Pod, Site, expect, pod, shared};

const SENT: u64 = 1000;
/// What address resolution and neighbour discovery may add meanwhile.
const RESOLUTION: u64 = 20;
const PORT: u16 = 7777;

/// What a node's programs have counted: packets by interface (none for those that are no pod's yet), direction and
/// reason.
type Counts = BTreeMap<(Option<u32>, Direction, Reason), u64>;

fn counts(site: &Site, node: &str) -> Counts {
    let read = || -> Result<Counts> {
        let maps = Path::new("/sys/fs/bpf/netpol-agent").join(format!("v{ABI_VERSION}/maps"));
        let interfaces = Map::from_map_data(MapData::from_pin(maps.join(names::INTERFACES))?)?;
        let interfaces = HashMap::<_, u32, InterfaceRow>::try_from(interfaces).context("INTERFACES")?;
        let counters = Map::from_map_data(MapData::from_pin(maps.join(names::COUNTERS))?)?;
        let counters = PerCpuArray::<_, Counter>::try_from(counters).context("COUNTERS")?;
        let mut endpoints = vec![(None, 0)];
        for row in &interfaces {
            let (ifindex, row) = row?;
            endpoints.push((Some(ifindex), row.endpoint));
        }
        let mut counts = Counts::new();
        for (ifindex, endpoint) in endpoints {
            for direction in [Direction::Ingress, Direction::Egress] {
                for reason in Reason::ALL {
                    let values = counters.get(&counter_index(endpoint, direction, reason as u32), 0)?;
                    let _none = counts.insert((ifindex, direction, reason), values.iter().map(|one| one.packets).sum());
                }
            }
        }
        Ok(counts)
    };
    site.cluster.machine(node).place().run(read).unwrap()
}

fn interface(site: &Site, pod: &Pod) -> u32 {
    let name = pod.host_interface.clone().unwrap();
    // The machine's own /sys, which shows its own network.
    let read = || Ok(std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?.trim().parse()?);
    site.cluster.machine(&pod.node).place().run(read).unwrap()
}

/// Sends datagrams from a pod of one node to a pod of another, and asserts that they are counted once on each side, while
/// nothing else is: neither in another pod's name nor as a drop.
pub(crate) fn judged_once_on_each_side(site: &mut Site, what: &str) {
    let space = site.namespace("encapsulation");
    let [sender, receiver, _near, far] =
        space.pods([pod("sender", "node1"), pod("receiver", "node2"), pod("near", "node1"), pod("far", "node2")]);
    for name in ["near", "far"] {
        let deny = json!({
            "podSelector": { "matchLabels": { "app": name } }, "policyTypes": ["Ingress", "Egress"],
        });
        let _when = space.policy(name, &deny);
    }
    expect(&sender, &far, &Outcome::Deny);
    // Also resolves the addresses.
    expect(&sender, &receiver, &Outcome::Allow);
    for (source, destination) in sender.addresses.iter().zip(&receiver.addresses) {
        let [source, destination] = [SocketAddr::new(*source, 0), SocketAddr::new(*destination, PORT)];
        let server = receiver.network.place().run(|| Ok(UdpSocket::bind(destination)?)).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let client = sender.network.place().run(|| Ok(UdpSocket::bind(source)?)).unwrap();
        let nodes = [&sender, &receiver];
        let before = nodes.map(|pod| counts(space.site, &pod.node));
        let mut received = 0;
        for number in 0..SENT {
            assert_eq!(client.send_to(&number.to_be_bytes(), destination).unwrap(), 8);
            // In step, so that no queue overflows.
            received += u64::from(server.recv(&mut [0; 16]).is_ok());
        }
        assert_eq!(received, SENT, "{what}");
        let after = nodes.map(|pod| counts(space.site, &pod.node));
        let sides = [(&sender, Direction::Egress), (&receiver, Direction::Ingress)];
        for ((pod, direction), (before, after)) in sides.into_iter().zip(before.iter().zip(&after)) {
            let own = (Some(interface(space.site, pod)), direction, Reason::Passed);
            let mut others = 0;
            let mut dropped = BTreeMap::new();
            for (key, packets) in after {
                let more = packets - before.get(key).copied().unwrap_or_default();
                if *key != own {
                    others += more;
                    if key.2 != Reason::Passed && more > 0 {
                        let _none = dropped.insert(*key, more);
                    }
                }
            }
            let judged = after[&own] - before[&own];
            eprintln!(
                "{what}: {} to {}: {SENT} sent and received; on {} {direction:?} judged {judged}, others {others}, \
                 dropped {dropped:?}",
                source.ip(),
                destination.ip(),
                pod.node
            );
            assert!((SENT..=SENT + RESOLUTION).contains(&judged), "{what}: {judged}");
            assert!(others <= RESOLUTION, "{what}: {others}");
            assert!(dropped.is_empty(), "{what}: {dropped:?}");
        }
    }
}

#[test]
fn packets_of_vxlan_are_judged_once_on_each_side_and_their_outer_packets_never() {
    judged_once_on_each_side(&mut shared(), "vxlan");
}

/// Where vxlan's packets go to, as Flannel sets it up.
const OVERLAY: u16 = 8472;

/// A frame for a pod of `node`, as its flannel.1 takes them out of vxlan's packets.
fn encapsulated(node: &Value, source: [u8; 4], destination: [u8; 4], data: &[u8]) -> Vec<u8> {
    let announced = text(node, "/metadata/annotations/flannel.alpha.coreos.com~1backend-data").unwrap();
    let announced: Value = serde_json::from_str(announced).unwrap();
    let vni = announced["VNI"].as_u64().unwrap() as u32;
    let mac: Vec<u8> =
        announced["VtepMAC"].as_str().unwrap().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let inner = frames::ipv4(source, destination, 17, 0, &[], &frames::udp(5000, PORT, data));
    let inner = frames::addressed(inner, frames::SOURCE_MAC, mac.try_into().unwrap());
    // The flag that says that there is a network identifier, and the identifier (RFC 7348, section 5).
    [&[0x08, 0, 0, 0][..], &(vni << 8).to_be_bytes(), &inner].concat()
}

#[test]
fn a_pod_reaches_no_nodes_overlay_at_any_address_that_flannel_gives_it() {
    let mut site = shared();
    let space = site.namespace("overlay");
    let [attacker, spoofed, victim] =
        space.pods([pod("attacker", "node1"), pod("spoofed", "node3"), pod("victim", "node2")]);
    let v4 = |pod: &Pod| {
        pod.addresses
            .iter()
            .find_map(|address| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            })
            .unwrap()
    };
    let server = victim.network.place().run(|| Ok(UdpSocket::bind((v4(&victim), PORT))?)).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let received = || {
        let mut data = [0; 64];
        server.recv_from(&mut data).ok().map(|(length, from)| (data[..length].to_vec(), from.ip()))
    };

    let node = space.get("node", "node2").unwrap();
    let datagram = |data: &[u8]| encapsulated(&node, v4(&spoofed).octets(), v4(&victim).octets(), data);
    let mut targets: Vec<IpAddr> = Vec::new();
    for range in node["spec"]["podCIDRs"].as_array().unwrap() {
        let range: IpNet = range.as_str().unwrap().parse().unwrap();
        targets.extend(range.hosts().filter(|address| *address != range.network()).take(1).chain([range.network()]));
    }
    for entry in node["status"]["addresses"].as_array().unwrap() {
        targets.extend(entry["address"].as_str().unwrap().parse::<IpAddr>());
    }
    let flannel =
        targets.iter().copied().find(|address| address.is_ipv4() && address.to_string().ends_with(".0")).unwrap();

    // The node itself may: what it sends there comes out at the victim, as if the spoofed pod had sent it.
    let own = space.site.cluster.machine(&attacker.node).place();
    let socket = own.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).unwrap();
    let data = datagram(b"from the node");
    assert_eq!(socket.send_to(&data, (flannel, OVERLAY)).unwrap(), data.len());
    assert_eq!(
        received(),
        Some((b"from the node".to_vec(), v4(&spoofed).into())),
        "such packets are not unwrapped at all"
    );

    let data = datagram(b"from the pod");
    for target in targets {
        let source: IpAddr = *attacker.addresses.iter().find(|own| own.is_ipv4() == target.is_ipv4()).unwrap();
        let interface = interface(space.site, &attacker);
        let dropped = || counts(space.site, &attacker.node)[&(Some(interface), Direction::Egress, Reason::Overlay)];
        let before = dropped();
        let socket = attacker.network.place().run(|| Ok(UdpSocket::bind((source, 0))?)).unwrap();
        assert_eq!(socket.send_to(&data, (target, OVERLAY)).unwrap(), data.len());
        assert_eq!(received(), None, "by {target}");
        assert_eq!(dropped() - before, 1, "by {target}");
    }
}
