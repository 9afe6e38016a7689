//! Path MTU discovery (decisions D5 and D8) of pods under default-deny: what a router says of a packet that it cannot send
//! on reaches the pod that has sent that packet, and no other.
//!
//! The router is the host outside: its link to a host behind it is narrower than what both ends of a connection announce
//! to each other, and pods never fragment TCP. It is not the node, whose own packets no policy concerns.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use netpol_suites::cells;
use netpol_suites::frames::{addressed, checksum, icmp, ipv4, ipv6, udp};
use netpol_testbed::namespace::Namespace;
use netpol_testbed::outside::UPLINK;
use netpol_testbed::place::Place;
use serde_json::{Value, json};

use super::SUITE;
use super::scene::{OUTSIDE, PORT, Scene, only, policy, shell, v4, v6};
use super::wire::{Wire, icmpv6, mac};

/// The host behind the router.
const FAR: [u8; 4] = [198, 51, 100, 2];
const FAR6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// The router's addresses on the node's uplink.
const ROUTER: [u8; 4] = [198, 18, 0, 1];
const ROUTER6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1];
/// IPv6's least, and less than what a pod's link takes.
const NARROW: u32 = 1280;
/// Where the far host listens, and a pod.
const TRANSFER: u16 = 9000;
const LENGTH: usize = 1 << 20;
/// Of a connection whose segments are lost: far less than its kernel would go on.
const PATIENCE: Duration = Duration::from_secs(20);
const MARKER: &[u8] = b"of a packet too big";

/// Both families of a pod and of the far host.
fn families(last: u8) -> [(IpAddr, IpAddr); 2] {
    [(v4(last).into(), FAR.into()), (v6(last).into(), FAR6.into())]
}

/// Puts a host behind the host outside, and lets that one be its router.
///
/// Only the router's end is narrow: the far host announces what fits its own, so that large segments set out.
fn far_host(scene: &Scene) -> Namespace {
    let far = Namespace::new().unwrap();
    let router = scene.node.outside().network();
    router.set_sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]).unwrap();
    shell(
        &far.place(),
        &format!(
            "ip link add eth0 type veth peer name narrow netns {}
            ip addr add {}/30 dev eth0
            ip addr add {}/64 dev eth0 nodad
            ip link set eth0 up",
            router.path().display(),
            IpAddr::from(FAR),
            IpAddr::from(FAR6),
        ),
    );
    shell(
        &router.place(),
        &format!(
            "ip link set narrow mtu {NARROW}
            ip addr add 198.51.100.1/30 dev narrow
            ip addr add 2001:db8:77::1/64 dev narrow nodad
            ip link set narrow up"
        ),
    );
    shell(
        &far.place(),
        "ip route add default via 198.51.100.1
        ip -6 route add default via 2001:db8:77::1",
    );
    far
}

/// What a place would send to an address as: with the MTU that it has been told of, if it was.
fn route(place: &Place, to: IpAddr) -> String {
    shell(place, &format!("ip route get {to}"))
}

/// Bytes that are like no others near them.
fn text() -> Vec<u8> {
    (0..LENGTH as u32).map(|index| (index.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect()
}

/// Sends everything from one end, and says whether the other hears just that.
fn transfer(mut from: TcpStream, mut to: TcpStream) -> bool {
    let sent = text();
    from.set_write_timeout(Some(PATIENCE)).unwrap();
    to.set_read_timeout(Some(PATIENCE)).unwrap();
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            from.write_all(&sent)?;
            from.shutdown(std::net::Shutdown::Write)
        });
        let mut heard = Vec::new();
        let complete = to.read_to_end(&mut heard).is_ok();
        // What nobody reads any more is refused.
        drop(to);
        sending.join().unwrap().is_ok() && complete && heard == sent
    })
}

/// A connection from one place to an address in another: the end that has opened it, and the other.
fn connect(from: &Place, to: &Place, address: IpAddr) -> [TcpStream; 2] {
    let address = SocketAddr::new(address, TRANSFER);
    let listener = to.run(|| TcpListener::bind(address).context("bind")).unwrap();
    let opened = from.run(|| TcpStream::connect_timeout(&address, PATIENCE).context("connect")).unwrap();
    [opened, listener.accept().unwrap().0]
}

/// Insists that a pod's large transfer to the far host completes, and that the pod had to be told how.
fn completes(pod: &Place, far: IpAddr, [sender, receiver]: [TcpStream; 2], what: &str) {
    let is_told = |place: &Place| route(place, far).contains(&format!("mtu {NARROW}"));
    assert!(!is_told(pod), "{what}: known before anything was sent");
    let family = cells::family_of(&far);
    cells::expect(SUITE, family, &transfer(sender, receiver), &true, what);
    // A kernel that has received no error has no reason to know.
    cells::expect(SUITE, family, &is_told(pod), &true, what);
}

fn blocks() -> Value {
    let block = |address: IpAddr, bits: u8| json!({ "ipBlock": { "cidr": format!("{address}/{bits}") } });
    json!([block(FAR.into(), 32), block(FAR6.into(), 128)])
}

#[test]
fn a_large_request_of_a_pod_with_one_allowed_connection_fits_its_path() {
    let mut scene = Scene::new();
    let one_connection = json!({
        "podSelector": only("victim"), "policyTypes": ["Ingress", "Egress"],
        "egress": [{ "to": blocks(), "ports": [{ "protocol": "TCP", "port": TRANSFER }] }],
    });
    scene.start_agent(vec![policy("one-connection", &one_connection)]);
    scene.populate();
    let far = far_host(&scene);
    let pod = scene.pod("victim").network().place();
    for (_, address) in families(11) {
        completes(&pod, address, connect(&pod, &far.place(), address), "a request");
    }
}

#[test]
fn a_large_answer_of_a_pod_that_may_not_send_fits_its_path() {
    let mut scene = Scene::new();
    let one_port = json!({
        "podSelector": only("victim"), "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": blocks(), "ports": [{ "protocol": "TCP", "port": TRANSFER }] }],
    });
    scene.start_agent(vec![policy("one-port", &one_port)]);
    scene.populate();
    let far = far_host(&scene);
    let pod = scene.pod("victim").network().place();
    for (own, address) in families(11) {
        let [asking, mut answering] = connect(&far.place(), &pod, own);
        (&asking).write_all(b"all of it").unwrap();
        answering.read_exact(&mut [0; 9]).unwrap();
        completes(&pod, address, [answering, asking], "an answer");
    }
}

/// Tells a pod that a datagram of another (or of itself), from a port to the host outside, was too big for a router.
fn too_big(family: &str, pod: u8, quoted: u8, port: u16) -> Vec<u8> {
    let datagram = udp(port, PORT, MARKER);
    if family == "ipv4" {
        let quoted = ipv4(v4(quoted), OUTSIDE, 17, 0, &[], &datagram);
        // Fragmentation needed.
        let mut error = icmp(3, 0, &quoted[14..]);
        error[1] = 4;
        error[6..8].copy_from_slice(&(NARROW as u16).to_be_bytes());
        let sum = checksum(&error);
        error[2..4].copy_from_slice(&sum.to_be_bytes());
        ipv4(ROUTER, v4(pod), 1, 0, &[], &error)
    } else {
        let quoted = ipv6(v6(quoted), FAR6, 17, 64, &datagram);
        let mut error = icmp(2, 0, &quoted[14..]);
        error[4..8].copy_from_slice(&NARROW.to_be_bytes());
        icmpv6(ROUTER6, v6(pod), 64, error)
    }
}

#[test]
fn an_error_about_what_a_pod_has_not_sent_does_not_reach_it() {
    const OPEN: u16 = 5000;
    // Both may only ask outside; the victim has asked.
    let asking = |app: &str| {
        let spec = json!({
            "podSelector": only(app), "policyTypes": ["Ingress", "Egress"],
            "egress": [{ "ports": [{ "protocol": "UDP", "port": PORT }] }],
        });
        policy(app, &spec)
    };
    // To which pod, of whose datagram from which port.
    let attacks = [
        ("of no flow", 11, 11, OPEN + 1),
        ("of another pod's flow", 12, 11, OPEN),
        ("of a flow that another pod has on these ports", 12, 12, OPEN),
    ];
    for has_agent in [false, true] {
        let mut scene = Scene::new();
        if has_agent {
            scene.start_agent(vec![asking("victim"), asking("bystander")]);
        }
        scene.populate();
        let outside = scene.node.outside().network().place();
        let wire = Wire::open(&outside, "uplink").unwrap();
        let (from, to) = (mac(&outside, "uplink").unwrap(), mac(&scene.node.network().place(), UPLINK).unwrap());
        let victim = scene.wire("victim");
        let asked = [
            ipv4(v4(11), OUTSIDE, 17, 0, &[], &udp(OPEN, PORT, b"a question")),
            ipv6(v6(11), FAR6, 17, 64, &udp(OPEN, PORT, b"a question")),
        ];
        let asked = asked.map(|frame| addressed(frame, scene.mac("victim"), scene.router()));
        victim.send(&asked).unwrap();
        assert!(wire.sees(b"a question").unwrap());
        for family in ["ipv4", "ipv6"] {
            for (what, pod, quoted, port) in attacks {
                let pod_wire = scene.wire(if pod == 11 { "victim" } else { "bystander" });
                let before = if has_agent { scene.dropped("ingress", "no_flow") } else { 0 };
                wire.send(&[addressed(too_big(family, pod, quoted, port), from, to)]).unwrap();
                let is_seen = pod_wire.sees(MARKER).unwrap();
                if has_agent {
                    cells::expect(SUITE, family, &is_seen, &false, what);
                    scene.wait("the drop is counted", |scene| {
                        anyhow::ensure!(scene.dropped("ingress", "no_flow") > before, "{:?}", scene.all_dropped());
                        Ok(())
                    });
                } else {
                    assert!(is_seen, "{what}, {family}: without the agent it does not come through: it is no attack");
                }
            }
            // The very same about what the victim has asked is its own.
            wire.send(&[addressed(too_big(family, 11, 11, OPEN), from, to)]).unwrap();
            cells::expect(SUITE, family, &victim.sees(MARKER).unwrap(), &true, has_agent);
        }
    }
}
