//! Stamps that are lost, copied or forged, and devices that nobody has hooked yet (decision D6).

use std::net::SocketAddr;

use netpol_policy::model::Protocol;
use netpol_suites::cells;
use netpol_suites::frames::{addressed, ipv4, udp};
use netpol_testbed::probe::{self, Outcome, Probe};
use serde_json::{Value, json};

use super::SUITE;
use super::scene::{OUTSIDE, PORT, Scene, only, policy, v4};

const MARKER: &[u8] = b"where is my mark";

/// Fails unless a pod's connection has this outcome.
#[track_caller]
fn expect(scene: &Scene, from: &str, to: SocketAddr, expected: &Outcome) {
    let pod = scene.pod(from);
    let source = pod.spec().addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4()).unwrap();
    let (destination, port) = (to.ip(), to.port());
    let probe = Probe { from: pod.network(), source: *source, destination, protocol: Protocol::Tcp, port };
    let observed = probe::run(&[probe]).unwrap().remove(0);
    cells::expect(SUITE, cells::family_of(&destination), &observed, expected, (from, to));
}

fn to(address: [u8; 4]) -> SocketAddr {
    SocketAddr::new(address.into(), PORT)
}

/// The attacker may send to the host outside, by its address, and to nobody else.
fn outside_only() -> Vec<Value> {
    let block = json!([{ "to": [{ "ipBlock": { "cidr": "203.0.113.10/32" } }] }]);
    vec![policy("out", &json!({ "podSelector": only("attacker"), "policyTypes": ["Egress"], "egress": block }))]
}

#[test]
fn a_packet_whose_mark_somebody_has_cleared_is_not_delivered() {
    let mut scene = Scene::new();
    scene.populate();
    scene.start_agent(Vec::new());
    expect(&scene, "attacker", to(v4(11)), &Outcome::Allow);
    expect(&scene, "attacker", to(OUTSIDE), &Outcome::Allow);
    scene.wait("the node is armed", |scene| {
        if scene.metrics()?.contains("\nnetpol_armed 1") { Ok(()) } else { anyhow::bail!("not yet") }
    });
    scene.on_node(
        "nft add table ip thief
         nft 'add chain ip thief forward { type filter hook forward priority 0; }'
         nft add rule ip thief forward meta mark set 0",
    );
    expect(&scene, "attacker", to(v4(11)), &Outcome::Deny);
    expect(&scene, "attacker", to(OUTSIDE), &Outcome::Deny);
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
        "sysctl -qw net.ipv4.tcp_fwmark_accept=1 net.ipv4.fwmark_reflect=1
         nft add table ip copier
         nft 'add chain ip copier pre { type filter hook prerouting priority -149; }'
         nft 'add chain ip copier post { type filter hook postrouting priority 0; }'
         nft add rule ip copier pre ct mark != 0 meta mark set ct mark
         nft add rule ip copier post meta mark != 0 ct mark set meta mark",
    );
    // What is allowed works, although replies from outside bear the attacker's stamp, and the node's answers too.
    for _time in 0..3 {
        expect(&scene, "attacker", to(OUTSIDE), &Outcome::Allow);
        expect(&scene, "bystander", to(v4(1)), &Outcome::Allow);
    }
    expect(&scene, "attacker", to(v4(12)), &Outcome::Deny);
    expect(&scene, "bystander", to(v4(11)), &Outcome::Deny);
}

#[test]
fn an_address_that_is_rewritten_behind_the_pods_back_is_judged_by_where_it_leads() {
    let mut scene = Scene::new();
    scene.populate();
    // A rule of nobody's, to an address that nobody has declared: allowed by its own address, it leads to the victim.
    let rewrite = |target: [u8; 4]| {
        let [a, b, c, d] = target;
        format!(
            "nft flush chain ip sly pre 2>/dev/null || {{ nft add table ip sly
             nft 'add chain ip sly pre {{ type nat hook prerouting priority -100; }}'; }}
             nft add rule ip sly pre ip daddr 203.0.113.10 tcp dport 80 dnat to {a}.{b}.{c}.{d}:{PORT}"
        )
    };
    scene.start_agent(outside_only());
    let front = SocketAddr::new(OUTSIDE.into(), 80);
    for (target, expected) in [(OUTSIDE, Outcome::Allow), (v4(11), Outcome::Deny), (v4(1), Outcome::Deny)] {
        scene.on_node(&rewrite(target));
        expect(&scene, "bystander", front, &Outcome::Allow);
        expect(&scene, "attacker", front, &expected);
    }
}

#[test]
fn a_device_that_appears_while_nobody_looks_is_no_way_out() {
    let mut scene = Scene::new();
    scene.populate();
    scene.start_agent(outside_only());
    scene.kill_agent();
    // A second uplink, to the same host outside; and a rewriting that leads to another one behind it.
    scene.on_node(&format!(
        "ip link add late0 type veth peer name late1 netns {}
         ip addr add 192.0.2.1/24 dev late0
         ip link set late0 up
         nft add table ip sly
         nft 'add chain ip sly pre {{ type nat hook prerouting priority -100; }}'
         nft add rule ip sly pre ip daddr 203.0.113.10 udp dport {PORT} dnat to 192.0.2.66",
        scene.node.outside().network().path().display()
    ));
    let outside = scene.node.outside().network().place();
    outside
        .run(|| {
            let lines = ["ip link set late1 up", "ip addr add 192.0.2.66/24 dev late1"];
            for line in lines {
                let status = std::process::Command::new("sh").args(["-c", line]).status()?;
                anyhow::ensure!(status.success(), "{line}");
            }
            Ok(())
        })
        .unwrap();
    let observer = super::wire::Wire::open(&outside, "late1").unwrap();
    let send = |scene: &Scene, pod: &str, last: u8, port: u16| {
        let frame = ipv4(v4(last), OUTSIDE, 17, 0, &[], &udp(port, PORT, MARKER));
        scene.wire(pod).send(&[addressed(frame, scene.mac(pod), scene.router())]).unwrap();
    };
    send(&scene, "attacker", 10, 5000);
    let expect = |is_seen: bool, what: &str| {
        cells::expect(SUITE, "ipv4", &observer.sees(MARKER).unwrap(), &is_seen, what);
    };
    expect(false, "it has left by a device that nobody judges at");
    // Hooked, the device carries what is allowed: for one pod that is everything.
    scene.start_agent(outside_only());
    send(&scene, "attacker", 10, 5001);
    expect(false, "it leads to an address that is not allowed");
    send(&scene, "bystander", 12, 5002);
    expect(true, "what nothing isolates is held back");
}
