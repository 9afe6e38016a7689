//! Stamps that are lost, copied or forged, and devices that nobody has hooked yet (decision D6).

use std::fs::File;
use std::io::{Error, ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use netpol_policy::model::Protocol;
use netpol_suites::cells;
use netpol_suites::frames::addressed;
use netpol_testbed::node::BRIDGE;
use netpol_testbed::probe::{self, Outcome, Probe};
use serde_json::{Value, json};

use super::SUITE;
use super::family::Family;
use super::scene::{PORT, Scene, only, policy, shell};

const MARKER: &[u8] = b"where is my mark";
/// Of what leaves at all: nothing is sent again.
const PATIENCE: Duration = Duration::from_millis(400);

/// What becomes of a pod's connection.
fn connect(scene: &Scene, from: &str, to: SocketAddr, protocol: Protocol) -> Outcome {
    let pod = scene.pod(from);
    let source = pod.spec().addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4()).unwrap();
    let probe = Probe { from: pod.network(), source: *source, destination: to.ip(), protocol, port: to.port() };
    probe::run(&[probe]).unwrap().remove(0)
}

/// Fails unless a pod's connection has this outcome.
#[track_caller]
fn expect(scene: &Scene, from: &str, to: SocketAddr, expected: &Outcome) {
    let observed = connect(scene, from, to, Protocol::Tcp);
    cells::expect(SUITE, cells::family_of(&to.ip()), &observed, expected, (from, to));
}

fn to(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, PORT)
}

/// The attacker may send to the host outside, by its addresses, and to nobody else.
fn outside_only() -> Vec<Value> {
    let block = |family: Family| json!({ "ipBlock": { "cidr": format!("{}/{}", family.outside(), family.bits()) } });
    let out = json!([{ "to": Family::BOTH.map(block) }]);
    vec![policy("out", &json!({ "podSelector": only("attacker"), "policyTypes": ["Egress"], "egress": out }))]
}

#[test]
fn a_packet_whose_mark_somebody_has_cleared_is_not_delivered() {
    let mut scene = Scene::new();
    scene.populate();
    scene.start_agent(Vec::new());
    let reaches = |scene: &Scene, outcome: &Outcome| {
        for family in Family::BOTH {
            expect(scene, "attacker", to(family.pod(11)), outcome);
            expect(scene, "attacker", to(family.outside()), outcome);
        }
    };
    reaches(&scene, &Outcome::Allow);
    scene.wait("the node is armed", |scene| {
        if scene.metrics()?.contains("\nnetpol_armed 1") { Ok(()) } else { anyhow::bail!("not yet") }
    });
    scene.on_node(
        "nft add table inet thief
         nft 'add chain inet thief forward { type filter hook forward priority 0; }'
         nft add rule inet thief forward meta mark set 0",
    );
    reaches(&scene, &Outcome::Deny);
    assert!(scene.dropped("egress", "mark_lost") > 1);
}

#[test]
fn a_stamp_that_the_kernel_copies_to_other_packets_is_not_believed() {
    let mut scene = Scene::new();
    scene.populate();
    let nobody = json!({ "podSelector": only("victim"), "policyTypes": ["Ingress"] });
    scene.start_agent([outside_only(), vec![policy("nobody", &nobody)]].concat());
    // What some tools do: the mark of a connection's first packet for all of its packets, both ways. An agent that finds
    // such rules does not start with the bits that they use; these come later.
    scene.on_node(
        "sysctl -qw net.ipv4.tcp_fwmark_accept=1 net.ipv4.fwmark_reflect=1 net.ipv6.fwmark_reflect=1
         nft add table inet copier
         nft 'add chain inet copier pre { type filter hook prerouting priority -149; }'
         nft 'add chain inet copier post { type filter hook postrouting priority 0; }'
         nft add rule inet copier pre ct mark != 0 meta mark set ct mark
         nft add rule inet copier post meta mark != 0 ct mark set meta mark",
    );
    // What is allowed works, although replies from outside bear the attacker's stamp, and the node's answers too.
    for family in Family::BOTH {
        for _time in 0..3 {
            expect(&scene, "attacker", to(family.outside()), &Outcome::Allow);
            expect(&scene, "bystander", to(family.pod(1)), &Outcome::Allow);
        }
        expect(&scene, "attacker", to(family.pod(12)), &Outcome::Deny);
        expect(&scene, "bystander", to(family.pod(11)), &Outcome::Deny);
    }
}

/// What the node says with a pod's stamp on it, by the kernel's own copying, and how many such packets there were.
fn answers_with_a_stamp(switches: &str, answer: impl Fn(&Scene, SocketAddr)) {
    let mut scene = Scene::new();
    scene.populate();
    let gateways = scene.node.gateways();
    let block = |address: &IpAddr| json!({ "ipBlock": { "cidr": format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }) } });
    let node = json!([{ "to": gateways.iter().map(block).collect::<Vec<_>>() }]);
    let spec = json!({ "podSelector": only("attacker"), "policyTypes": ["Ingress", "Egress"], "egress": node });
    scene.start_agent(vec![policy("node", &spec)]);
    for address in gateways {
        // Counted by the bits that stamps are in.
        scene.on_node(&format!(
            "sysctl -qw {switches}
             nft add table inet watch
             nft delete table inet watch
             nft add table inet watch
             nft 'add chain inet watch out {{ type filter hook output priority 0; }}'
             nft add rule inet watch out oifname {BRIDGE} meta mark and 0xffff0000 != 0 counter"
        ));
        answer(&scene, SocketAddr::new(address, PORT));
        let counted = scene.read_on_node("nft list chain inet watch out");
        assert!(!counted.contains("packets 0 "), "{address}: no answer bore a stamp: {counted}");
    }
}

#[test]
fn a_stamp_that_the_kernel_reflects_on_the_nodes_answers_is_not_believed() {
    let switches = "net.ipv4.fwmark_reflect=1 net.ipv6.fwmark_reflect=1";
    answers_with_a_stamp(switches, |scene, node| {
        // A reset and an ICMP error: taken for the pod's own, they would be its egress to an address that it may not
        // reach, and lost.
        let closed = SocketAddr::new(node.ip(), PORT + 1);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let observed = connect(scene, "attacker", closed, protocol);
            let refused = Outcome::Error(Error::from_raw_os_error(libc::ECONNREFUSED).to_string());
            cells::expect(SUITE, cells::family_of(&node.ip()), &observed, &refused, (protocol, closed));
        }
    });
}

#[test]
fn a_stamp_that_an_accepted_socket_inherits_is_not_believed() {
    answers_with_a_stamp("net.ipv4.tcp_fwmark_accept=1", |scene, node| {
        expect(scene, "attacker", node, &Outcome::Allow);
    });
}

#[test]
fn an_address_that_is_rewritten_behind_the_pods_back_is_judged_by_where_it_leads() {
    // A rule of nobody's, to an address that nobody has declared: allowed by its own address, it leads to the victim.
    let front = |family: Family| SocketAddr::new(family.outside(), 80);
    let targets = |family: Family| {
        [(family.outside(), Outcome::Allow), (family.pod(11), Outcome::Deny), (family.pod(1), Outcome::Deny)]
    };
    let mut scene = Scene::new();
    scene.populate();
    scene.start_agent(outside_only());
    for family in Family::BOTH {
        for (target, expected) in targets(family) {
            scene.on_node(&rewrite(front(family), "tcp", to(target)));
            expect(&scene, "bystander", front(family), &Outcome::Allow);
            expect(&scene, "attacker", front(family), &expected);
        }
    }
    // As kube-proxy's mode `ipvs` has all Services: an address on the node, which is not where it leads.
    let mut scene = Scene::new();
    scene.populate();
    scene.on_node("ip link add kube-ipvs0 type bridge");
    for family in Family::BOTH {
        scene.on_node(&format!("ip addr add {}/{} dev kube-ipvs0", family.outside(), family.bits()));
    }
    scene.start_agent(outside_only());
    for family in Family::BOTH {
        for (target, expected) in targets(family).into_iter().filter(|(_, expected)| *expected == Outcome::Deny) {
            scene.on_node(&rewrite(front(family), "tcp", to(target)));
            expect(&scene, "bystander", front(family), &Outcome::Allow);
            expect(&scene, "attacker", front(family), &expected);
        }
    }
}

/// A line of shell that has a destination rewritten behind the pods' veths, and not as before.
fn rewrite(front: SocketAddr, protocol: &str, target: SocketAddr) -> String {
    let table = if front.is_ipv4() { "ip" } else { "ip6" };
    let (address, port) = (front.ip(), front.port());
    format!(
        "nft flush chain {table} sly pre 2>/dev/null || {{ nft add table {table} sly
         nft 'add chain {table} sly pre {{ type nat hook prerouting priority -100; }}'; }}
         nft add rule {table} sly pre {table} daddr {address} {protocol} dport {port} dnat to {target}"
    )
}

/// A datagram of a pod to the host outside.
fn send(scene: &Scene, (pod, last): (&str, u8), family: Family, port: u16) {
    let frame = family.datagram((family.pod(last), port), (family.outside(), PORT), MARKER);
    scene.wire(pod).send(&[addressed(frame, scene.mac(pod), scene.router())]).unwrap();
}

#[test]
fn a_device_that_appears_while_nobody_looks_is_no_way_out() {
    let mut scene = Scene::new();
    scene.populate();
    scene.start_agent(outside_only());
    scene.kill_agent();
    // A second uplink, to the same host outside; and a rewriting that leads to another one behind it.
    let behind = |family: Family, last: u8| -> IpAddr {
        match family {
            Family::V4 => [192, 0, 2, last].into(),
            Family::V6 => [0x2001, 0xdb8, 2, 0, 0, 0, 0, u16::from(last)].into(),
        }
    };
    scene.on_node(&format!(
        "ip link add late0 type veth peer name late1 netns {}
         ip link set late0 up",
        scene.node.outside().network().path().display()
    ));
    let outside = scene.node.outside().network().place();
    shell(&outside, "ip link set late1 up");
    for family in Family::BOTH {
        let length = if family == Family::V4 { "24" } else { "64 nodad" };
        shell(&outside, &format!("ip addr add {}/{length} dev late1", behind(family, 66)));
        scene.on_node(&format!("ip addr add {}/{length} dev late0", behind(family, 1)));
        scene.on_node(&rewrite(to(family.outside()), "udp", to(behind(family, 66))));
    }
    let observer = super::wire::Wire::open(&outside, "late1").unwrap();
    let expect = |family: Family, is_seen: bool, what: &str| {
        cells::expect(SUITE, family.name(), &observer.sees(MARKER).unwrap(), &is_seen, what);
    };
    for family in Family::BOTH {
        send(&scene, ("attacker", 10), family, 5000);
        expect(family, false, "it has left by a device that nobody judges at");
    }
    // Hooked, the device carries what is allowed: for one pod that is everything.
    scene.start_agent(outside_only());
    for family in Family::BOTH {
        send(&scene, ("attacker", 10), family, 5001);
        expect(family, false, "it leads to an address that is not allowed");
        send(&scene, ("bystander", 12), family, 5002);
        expect(family, true, "what nothing isolates is held back");
    }
}

/// A device of the node that sends packets without link header, as the end of it that this process holds. It goes with it.
fn tunnel(scene: &Scene, name: &str) -> File {
    /// `struct ifreq` as TUNSETIFF takes it: the name, and flags.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        pad: [u8; 22],
    }
    let make = || {
        let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let file = file.context("open(/dev/net/tun)")?;
        let mut bytes = [0; libc::IFNAMSIZ];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let request = Request { name: bytes, flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short, pad: [0; 22] };
        // SAFETY: a descriptor of this process, and a request that outlives the call.
        let status = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw const request) };
        if status < 0 { Err(Error::last_os_error()).context("ioctl(TUNSETIFF)") } else { Ok(file) }
    };
    scene.node.place().run(make).unwrap()
}

/// Whether a marker is in a packet that leaves by a tunnel within a while.
fn leaves_by(mut tunnel: &File) -> bool {
    let begin = Instant::now();
    let mut packet = [0; 2048];
    loop {
        match tunnel.read(&mut packet) {
            Ok(length) if packet[..length].windows(MARKER.len()).any(|part| part == MARKER) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && begin.elapsed() > PATIENCE => return false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => panic!("read: {error}"),
        }
    }
}

#[test]
fn what_is_rewritten_towards_a_tunnel_or_a_stacked_device_is_judged_where_it_leaves() {
    let behind = |device: u16, family: Family, last: u8| -> IpAddr {
        match family {
            Family::V4 => [198, 51, if device == 0 { 100 } else { 101 }, last].into(),
            Family::V6 => [0x2001, 0xdb8, 3 + device, 0, 0, 0, 0, u16::from(last)].into(),
        }
    };
    let mut scene = Scene::new();
    scene.populate();
    let tunnel = tunnel(&scene, "tun7");
    // A bridge that is no pod's, whose only port is an uplink: a packet passes the hooks of both, as with a VLAN or a bond.
    scene.on_node(&format!(
        "ip link set tun7 up
         ip link add wan0 type bridge
         ip link add wan1 type veth peer name wan2 netns {}
         ip link set wan1 master wan0
         ip link set wan0 up
         ip link set wan1 up",
        scene.node.outside().network().path().display()
    ));
    let outside = scene.node.outside().network().place();
    shell(&outside, "ip link set wan2 up");
    for family in Family::BOTH {
        let length = if family == Family::V4 { "24" } else { "64 nodad" };
        scene.on_node(&format!("ip addr add {}/{length} dev tun7", behind(0, family, 1)));
        scene.on_node(&format!("ip addr add {}/{length} dev wan0", behind(1, family, 1)));
        for last in [66, 67] {
            shell(&outside, &format!("ip addr add {}/{length} dev wan2", behind(1, family, last)));
        }
    }
    // Behind each device the attacker may reach one address, and not its neighbour.
    let allowed: Vec<Value> = Family::BOTH
        .into_iter()
        .flat_map(|family| [family.outside(), behind(0, family, 67), behind(1, family, 67)].map(|to| (family, to)))
        .map(|(family, to)| json!({ "ipBlock": { "cidr": format!("{to}/{}", family.bits()) } }))
        .collect();
    let out = json!({ "podSelector": only("attacker"), "policyTypes": ["Egress"], "egress": [{ "to": allowed }] });
    scene.start_agent(vec![policy("out", &out)]);
    let observer = super::wire::Wire::open(&outside, "wan2").unwrap();
    let mut port = 5000;
    for (device, family) in [0, 1].into_iter().flat_map(|device| Family::BOTH.map(|family| (device, family))) {
        for (pod, last, passes) in
            [(("bystander", 12), 66, true), (("attacker", 10), 67, true), (("attacker", 10), 66, false)]
        {
            port += 1;
            scene.on_node(&rewrite(to(family.outside()), "udp", to(behind(device, family, last))));
            let before = scene.dropped("egress", "no_rule");
            send(&scene, pod, family, port);
            let is_seen = if device == 0 { leaves_by(&tunnel) } else { observer.sees(MARKER).unwrap() };
            cells::expect(SUITE, family.name(), &is_seen, &passes, (device, pod, last));
            assert_eq!(scene.dropped("egress", "no_rule") > before, !passes, "{:?}", scene.all_dropped());
        }
    }
}
