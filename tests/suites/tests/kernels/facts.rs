//! What becomes of a packet's mark, ingress device and socket on its way through a node, in both families.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use netpol_policy::model::Protocol;
use netpol_testbed::namespace::Namespace;
use netpol_testbed::node::{BRIDGE, Node, NodeOptions};
use netpol_testbed::outside::UPLINK;
use netpol_testbed::pod::{Pod, PodSpec};
use netpol_testbed::probe::{self, Outcome, Probe};
use netpol_testbed::servers::{Listen, Served, Servers};

use super::observer::{Hook, Observer, Seen, stamp};

/// What is written on each packet that comes out of the first pod: bits that decision D6 uses.
const STAMP: u32 = 0x5aa5_0000;
/// The port of every Service.
const SERVICE: u16 = 53;
/// Each way through the node has a port of its own, at which its destination listens.
const OUTSIDE: u16 = 5301;
const NEIGHBOUR: u16 = 5302;
const HAIRPIN: u16 = 5303;
const LOCAL: u16 = 5304;
const DIRECT: u16 = 5305;
const FROM_NODE: u16 = 5306;
const FORWARDED: u16 = 5307;
/// What the node forwards to the second pod.
const NODE_PORT: u16 = 30053;

/// A family's addresses.
struct Family {
    host: IpAddr,
    pods: [IpAddr; 2],
    node: IpAddr,
    gateway: IpAddr,
}

impl Family {
    fn all(node: &Node, pods: &[Pod]) -> Vec<Self> {
        let hosts = ["192.0.2.7", "2001:db8::7"].map(|text| text.parse().expect("address"));
        let family = |(index, host): (usize, IpAddr)| Self {
            host,
            pods: [pods[0].spec().addresses[index], pods[1].spec().addresses[index]],
            node: node.addresses()[index],
            gateway: node.gateways()[index],
        };
        hosts.into_iter().enumerate().map(family).collect()
    }

    /// The Service whose backend listens on a port.
    fn service(&self, backend: u16) -> IpAddr {
        let number = backend - OUTSIDE + 1;
        match self.host {
            IpAddr::V4(_) => format!("10.96.0.{number}"),
            IpAddr::V6(_) => format!("fd00:10:96::{number}"),
        }
        .parse()
        .expect("address")
    }
}

/// A node whose first pod's packets are stamped.
struct Site {
    node: Node,
    pods: Vec<Pod>,
    families: Vec<Family>,
    uplink: Observer,
    /// What reaches the pods.
    veths: Vec<Observer>,
    _served: Vec<Served>,
    _servers: Servers,
}

impl Site {
    fn new() -> Self {
        let node = Node::new(NodeOptions::default()).expect("node");
        let spec = |index: u8| PodSpec {
            namespace: "default".to_owned(),
            name: format!("pod-{index}"),
            uid: format!("uid-{index}"),
            addresses: vec![
                IpAddr::from([10, 244, 0, index + 2]),
                format!("fd00:10:244::{:x}", index + 2).parse().expect("address"),
            ],
            recorded: false,
        };
        let pods = node.add_pods((0..2).map(spec).collect(), &[]).expect("pods");
        let families = Family::all(&node, &pods);
        node.outside().add_hosts(&families.iter().map(|family| family.host).collect::<Vec<_>>()).expect("hosts");
        let servers = Servers::start().expect("servers");
        let serve = |network: &Namespace, addresses: &dyn Fn(&Family) -> IpAddr, ports: &[u16]| {
            let listen = |address| move |port: &u16| Listen { address, protocol: Protocol::Udp, port: *port };
            let places: BTreeSet<Listen> =
                families.iter().flat_map(|family| ports.iter().map(listen(addresses(family)))).collect();
            servers.listen(network, &places).expect("listen")
        };
        let served = vec![
            serve(node.outside().network(), &|family| family.host, &[OUTSIDE]),
            serve(pods[0].network(), &|family| family.pods[0], &[HAIRPIN, FROM_NODE]),
            serve(pods[1].network(), &|family| family.pods[1], &[NEIGHBOUR, DIRECT, FORWARDED]),
            serve(node.network(), &|family| family.node, &[LOCAL]),
        ];
        let place = node.place();
        stamp(&place, pods[0].host_interface(), Hook::Ingress, STAMP.cast_signed()).expect("stamp");
        let observe = |device: &str| Observer::new(&place, device, Hook::Egress).expect("observer");
        let uplink = observe(UPLINK);
        let veths = pods.iter().map(|pod| observe(pod.host_interface())).collect();
        let site = Self { node, pods, families, uplink, veths, _served: served, _servers: servers };
        site.translate();
        site
    }

    /// Rules as kube-proxy has them, in the one respect that matters: the destination is rewritten before routing, the
    /// source after it where answers could not find their way otherwise.
    fn translate(&self) {
        let mut rules = String::new();
        for family in &self.families {
            let ip = if family.host.is_ipv4() { "ip" } else { "ip6" };
            let backends =
                [(family.host, OUTSIDE), (family.pods[1], NEIGHBOUR), (family.pods[0], HAIRPIN), (family.node, LOCAL)];
            for (backend, port) in backends {
                let service = family.service(port);
                rules += &format!("add rule inet facts before {ip} daddr {service} udp dport {SERVICE} ");
                rules += &format!("dnat {ip} to {}\n", std::net::SocketAddr::new(backend, port));
            }
            rules += &format!("add rule inet facts before {ip} daddr {} udp dport {NODE_PORT} ", family.node);
            rules += &format!("dnat {ip} to {}\n", std::net::SocketAddr::new(family.pods[1], FORWARDED));
            rules +=
                &format!("add rule inet facts after {ip} saddr {} udp dport {HAIRPIN} masquerade\n", family.pods[0]);
        }
        let text = format!(
            "add table inet facts
            add counter inet facts forwarded
            add counter inet facts local
            add chain inet facts before {{ type nat hook prerouting priority -100; }}
            add chain inet facts after {{ type nat hook postrouting priority 100; }}
            add chain inet facts guard {{ type filter hook postrouting priority 300; }}
            add chain inet facts input {{ type filter hook input priority 300; }}
            add rule inet facts after oifname {UPLINK} masquerade
            add rule inet facts after udp dport {FORWARDED} masquerade
            add rule inet facts guard iifname {BRIDGE} oifname {UPLINK} meta mark {STAMP} counter name forwarded
            add rule inet facts input iifname {BRIDGE} meta mark {STAMP} udp dport {LOCAL} counter name local
            {rules}"
        );
        let mut nft = Command::new("nft");
        nft.args(["-f", "-"]).stdin(Stdio::piped());
        self.node.place().prepare(&mut nft).expect("place");
        let mut child = nft.spawn().expect("nft");
        child.stdin.take().expect("standard input").write_all(text.as_bytes()).expect("write");
        assert!(child.wait().expect("nft").success(), "{text}");
    }

    /// Packets that a named counter has counted.
    fn counted(&self, name: &str) -> u64 {
        let mut nft = Command::new("nft");
        nft.args(["list", "counter", "inet", "facts", name]);
        self.node.place().prepare(&mut nft).expect("place");
        let output = nft.output().expect("nft");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = text.split("packets ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("{text:?}"))
    }

    fn index(&self, device: &str) -> u32 {
        self.node.place().run(|| Ok(nix::net::if_::if_nametoindex(device)?)).expect("if_nametoindex")
    }

    /// Insists that datagrams from one place to another are answered, in both families.
    fn talk(&self, from: &Namespace, ends: &dyn Fn(&Family) -> (IpAddr, IpAddr), port: u16) {
        let probe = |family: &Family| {
            let (source, destination) = ends(family);
            Probe { from, source, destination, protocol: Protocol::Udp, port }
        };
        let probes: Vec<Probe<'_>> = self.families.iter().map(probe).collect();
        for (probe, outcome) in probes.iter().zip(probe::run(&probes).expect("probes")) {
            assert_eq!(outcome, Outcome::Allow, "{probe:?}");
        }
    }

    /// The first pod asks the Service whose backend listens on a port.
    fn ask(&self, backend: u16) {
        let ends = |family: &Family| (family.pods[0], family.service(backend));
        self.talk(self.pods[0].network(), &ends, SERVICE);
    }
}

/// Insists that datagrams of both families have come by, and returns them.
fn seen(site: &Site, observer: &Observer, port: u16) -> Vec<(IpAddr, IpAddr, Seen)> {
    let datagrams = observer.datagrams_to(port).expect("datagrams");
    for family in &site.families {
        let is_of_family = |(source, _, _): &(IpAddr, IpAddr, Seen)| source.is_ipv4() == family.host.is_ipv4();
        assert!(datagrams.iter().any(is_of_family), "port {port}: {datagrams:?}");
    }
    datagrams
}

fn of<'a>(site: &'a Site, address: &IpAddr) -> &'a Family {
    let family = site.families.iter().find(|family| family.host.is_ipv4() == address.is_ipv4());
    family.expect("a family")
}

/// D6: the hook on the uplink sees the stamp, the bridge as the device, and the real destination.
#[test]
fn a_stamp_survives_bridge_rewriting_and_masquerade_on_the_way_out() {
    let site = Site::new();
    site.ask(OUTSIDE);
    for (source, destination, seen) in seen(&site, &site.uplink, OUTSIDE) {
        let family = of(&site, &source);
        assert_eq!((source, destination), (family.node, family.host));
        assert_eq!((seen.mark, seen.ingress_ifindex), (STAMP, site.index(BRIDGE)), "{source}");
    }
    // 28f8bfd1ac94 (5.7): rules after routing can ask for the device that a packet came in by.
    assert!(site.counted("forwarded") >= 2);
}

/// D6: so does the hook of another pod on the node, and of the sender itself. The device is the bridge, or the sender's veth
/// where br_netfilter rewrites the destination without leaving the bridge: a stamp is believed from both.
#[test]
fn a_stamp_survives_the_way_to_a_backend_on_the_same_node_and_to_oneself() {
    let site = Site::new();
    let devices = [site.index(BRIDGE), site.index(site.pods[0].host_interface())];
    site.ask(NEIGHBOUR);
    for (source, destination, seen) in seen(&site, &site.veths[1], NEIGHBOUR) {
        let family = of(&site, &source);
        assert_eq!((source, destination), (family.pods[0], family.pods[1]));
        assert_eq!(seen.mark, STAMP, "{source}");
        assert!(devices.contains(&seen.ingress_ifindex), "{source}: {devices:?}, {}", seen.ingress_ifindex);
    }
    site.ask(HAIRPIN);
    for (source, destination, seen) in seen(&site, &site.veths[0], HAIRPIN) {
        let family = of(&site, &source);
        assert_eq!((source, destination), (family.gateway, family.pods[0]));
        assert_eq!(seen.mark, STAMP, "{source}");
        assert!(devices.contains(&seen.ingress_ifindex), "{source}: {devices:?}, {}", seen.ingress_ifindex);
    }
}

/// D6: what passes no hook on its way is seen by a rule on input.
#[test]
fn a_stamp_is_seen_by_rules_where_the_node_itself_is_the_backend() {
    let site = Site::new();
    site.ask(LOCAL);
    assert!(site.counted("local") >= 2);
}

/// D6: answers come to the client from the address that it has asked.
#[test]
fn answers_reach_the_clients_veth_with_the_address_of_the_service() {
    let site = Site::new();
    site.ask(NEIGHBOUR);
    let answers = site.veths[0].datagrams_from(SERVICE).expect("datagrams");
    for family in &site.families {
        let is_answer = |(source, destination, _): &(IpAddr, IpAddr, Seen)| {
            (*source, *destination) == (family.service(NEIGHBOUR), family.pods[0])
        };
        assert!(answers.iter().any(is_answer), "{answers:?}");
    }
}

/// D7: what a process of the node sends has a socket and came in by no device.
#[test]
fn the_nodes_own_packets_have_a_socket_and_no_device() {
    let site = Site::new();
    site.talk(site.node.network(), &|family| (family.gateway, family.pods[0]), FROM_NODE);
    for (source, _, seen) in seen(&site, &site.veths[0], FROM_NODE) {
        assert_eq!((seen.ingress_ifindex, seen.socket), (0, 1), "{source}");
    }
}

/// D7: forwarded packets bear the node's address as well, after masquerade, and are told from its own by the device.
#[test]
fn packets_of_others_that_bear_the_nodes_address_have_come_in_by_a_device() {
    let site = Site::new();
    let ends = |family: &Family| (family.host, family.node);
    site.talk(site.node.outside().network(), &ends, NODE_PORT);
    for (source, destination, seen) in seen(&site, &site.veths[1], FORWARDED) {
        let family = of(&site, &source);
        assert_eq!((source, destination), (family.gateway, family.pods[1]));
        assert_eq!((seen.ingress_ifindex, seen.socket), (site.index(UPLINK), 0), "{source}");
    }
}

/// D7: the socket alone would not do. Where netfilter does not see bridged packets, the sending *pod's* socket is still on
/// them (9c4c325252c5, 4.19); the device tells.
#[test]
fn a_bridged_packet_can_carry_its_senders_socket() {
    let site = Site::new();
    let direct = |family: &Family| (family.pods[0], family.pods[1]);
    site.talk(site.pods[0].network(), &direct, DIRECT);
    let veth = site.index(site.pods[0].host_interface());
    for (source, _, seen) in seen(&site, &site.veths[1], DIRECT) {
        assert_eq!((seen.mark, seen.ingress_ifindex), (STAMP, veth), "{source}");
    }
    let switches = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
    site.node.network().set_sysctls(&switches.map(|name| (name, "0"))).expect("sysctls");
    site.talk(site.pods[0].network(), &direct, DIRECT);
    for (source, _, seen) in seen(&site, &site.veths[1], DIRECT) {
        assert_eq!((seen.mark, seen.ingress_ifindex, seen.socket), (STAMP, veth, 1), "{source}");
    }
}
