//! Floods of flows (decision D5, docs/adr/0003): one pod opens more than the tables hold, and no other pod's flows are hurt.
//!
//! What would be hurt is what only an entry lets pass: here the victim may only send, and who answers it may only be sent
//! to, so that without its flow no answer leaves the one or reaches the other. Without the agent there are no flows to evict,
//! and nothing to compare with; nothing is dropped here either, and so no reason counted.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, bail};
use netpol_suites::cells;
use netpol_suites::frames::addressed;
use netpol_testbed::pod::Pod;
use serde_json::json;

use super::SUITE;
use super::family::Family;
use super::scene::{PORT, Scene, only, policy};

/// Confirmed flows that the agent is told to hold: so few that a flood takes no longer than a moment.
const FLOWS: u16 = 4096;
/// Connections that are idle during each flood.
const CONNECTIONS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(2);

fn policies() -> Vec<serde_json::Value> {
    vec![
        policy(
            "silent-but-asking",
            &json!({
                "podSelector": only("victim"), "policyTypes": ["Ingress", "Egress"],
                "egress": [{ "to": [{ "podSelector": only("bystander") }] }],
            }),
        ),
        policy(
            "only-answering",
            &json!({
                "podSelector": only("bystander"), "policyTypes": ["Ingress", "Egress"],
                "ingress": [{ "from": [{ "podSelector": only("victim") }] }],
            }),
        ),
    ]
}

/// A socket of a pod.
fn socket(pod: &Pod, address: IpAddr, port: u16) -> UdpSocket {
    let socket = pod.network().place().run(|| UdpSocket::bind((address, port)).context("bind")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What the victim has opened to the bystander, with both ends of everything: connections, and an exchange of datagrams.
struct Open {
    family: Family,
    connections: Vec<[TcpStream; 2]>,
    datagrams: [UdpSocket; 2],
}

impl Open {
    fn between(scene: &Scene, family: Family, port: u16) -> Self {
        let (victim, bystander) = (scene.pod("victim"), scene.pod("bystander"));
        let server = SocketAddr::new(family.pod(12), port);
        let listener = bystander.network().place().run(|| TcpListener::bind(server).context("bind")).unwrap();
        let connections = (0..CONNECTIONS).map(|_| {
            let place = victim.network().place();
            let stream = place.run(|| TcpStream::connect(server).context("connect")).unwrap();
            let ends = [stream, listener.accept().unwrap().0];
            for end in &ends {
                end.set_read_timeout(Some(PATIENCE)).unwrap();
            }
            ends
        });
        let connections = connections.collect();
        let datagrams = [socket(victim, family.pod(11), 0), socket(bystander, server.ip(), port)];
        let [asking, answering] = &datagrams;
        asking.connect(server).unwrap();
        let _sent = asking.send(b"first").unwrap();
        let (_length, from) = answering.recv_from(&mut [0; 16]).unwrap();
        answering.connect(from).unwrap();
        let open = Self { family, connections, datagrams };
        open.is_usable("at first");
        open
    }

    /// Insists that every flow carries something both ways. Who answers speaks first: what asks would be a new flow.
    fn is_usable(&self, when: &str) {
        let mut heard = [0; 6];
        for (number, [victim, bystander]) in self.connections.iter().enumerate() {
            for (mut from, mut to) in [(bystander, victim), (victim, bystander)] {
                from.write_all(b"still?").unwrap();
                self.expect_heard(to.read_exact(&mut heard), ("connection", number, when));
            }
        }
        let [victim, bystander] = &self.datagrams;
        for (from, to) in [(bystander, victim), (victim, bystander)] {
            let _sent = from.send(b"still?").unwrap();
            self.expect_heard(to.recv(&mut heard).map(drop), ("datagrams", when));
        }
    }

    #[track_caller]
    fn expect_heard(&self, heard: std::io::Result<()>, what: impl std::fmt::Debug) {
        let heard = heard.map_err(|error| error.kind());
        cells::expect(SUITE, self.family.name(), &heard, &Ok(()), what);
    }
}

/// Opens three times as many flows as the agent holds, in each round others. A port of the host outside answers, or none
/// does.
fn flood(scene: &Scene, family: Family, round: u16, port: u16) {
    let wire = scene.wire("attacker");
    let (from, to) = (scene.mac("attacker"), scene.router());
    let first = 20_000 + round * 3 * FLOWS;
    let frames: Vec<_> = (first..first + 3 * FLOWS)
        .map(|source| addressed(family.datagram((family.pod(10), source), (family.outside(), port), b"more"), from, to))
        .collect();
    // As fast as the kernel's queues and the answering socket can follow. Each flow a few times: an LRU gives way only for
    // what is used, too.
    for part in frames.chunks(128) {
        for _ in 0..3 {
            wire.send(part).unwrap();
            std::thread::sleep(Duration::from_millis(4));
        }
    }
    assert_eq!(scene.dropped("egress", "flow_rate"), 0, "the flood was stopped by another rule");
}

/// A pod that floods has used up its own share, and nobody else has.
fn has_used_up_a_share(scene: &mut Scene) {
    scene.wait("the agent says that a share is used up", |scene| {
        let metrics = scene.metrics()?;
        match metrics.lines().find_map(|line| line.strip_prefix("netpol_flow_shares_used_up ")) {
            Some(number) if number.starts_with('1') => Ok(()),
            other => bail!("{other:?}"),
        }
    });
}

#[test]
fn a_flood_of_answered_flows_evicts_no_other_pods_flows() {
    for family in Family::BOTH {
        let mut scene = Scene::new();
        scene.limit_flows(FLOWS);
        scene.start_agent(policies());
        scene.populate();
        let before = Open::between(&scene, family, 7000);
        flood(&scene, family, 0, PORT);
        before.is_usable("after the flood");
        // Nor those that are opened when the flood has filled everything that it can.
        let meanwhile = Open::between(&scene, family, 7001);
        flood(&scene, family, 1, PORT);
        meanwhile.is_usable("after the second flood");
        before.is_usable("after the second flood");
        has_used_up_a_share(&mut scene);
    }
}

#[test]
fn a_flood_of_unanswered_flows_loses_no_other_pods_answer() {
    const SLOW: u16 = 9999;
    for family in Family::BOTH {
        let mut scene = Scene::new();
        scene.limit_flows(FLOWS);
        scene.start_agent(policies());
        scene.populate();
        let asking = socket(scene.pod("victim"), family.pod(11), 0);
        let answering = socket(scene.pod("bystander"), family.pod(12), SLOW);
        asking.connect((family.pod(12), SLOW)).unwrap();
        let mut heard = [0; 16];
        for (round, question) in [(0, b"before a flood"), (1, b"after a flood ")] {
            let _sent = asking.send(question).unwrap();
            let (_length, from) = answering.recv_from(&mut heard).unwrap();
            flood(&scene, family, round, PORT + 1);
            let _sent = answering.send_to(b"late", from).unwrap();
            let heard = asking.recv(&mut heard).map_err(|error| error.kind());
            cells::expect(SUITE, family.name(), &heard, &Ok(4), String::from_utf8_lossy(question));
        }
    }
}
