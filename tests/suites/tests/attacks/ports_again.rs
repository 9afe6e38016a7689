//! Ports that are used again (decision D5): whatever connection had them before, and however it ended, what begins on them
//! is judged in its own direction, by the policy of now.

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use netpol_suites::cells;
use netpol_suites::frames::{ACK, addressed, ip, tcp};
use netpol_testbed::place::Place;
use serde_json::{Value, json};
use socket2::Socket;

use super::SUITE;
use super::connections::{PATIENCE, connect, exchange, listen};
use super::scene::{Scene, only, policy, shell, v4, v6};

const CLIENT: u16 = 40_000;
const SERVER: u16 = 7000;
const MARKER: &[u8] = b"of a connection that has ended";

/// Attacker and victim in each family: client and server.
fn families() -> [(IpAddr, IpAddr); 2] {
    [(v4(10).into(), v4(11).into()), (v6(10).into(), v6(11).into())]
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By a RST of the client: neither side remembers it.
    Reset,
    /// By a FIN of the server first, which keeps it in TIME_WAIT.
    ServerFirst,
    /// By a FIN of the client first, which does.
    ClientFirst,
}

/// Two pods' ports.
struct Pair<'a> {
    client: &'a Place,
    server: &'a Place,
    from: (IpAddr, u16),
    to: (IpAddr, u16),
}

impl Pair<'_> {
    fn family(&self) -> &'static str {
        cells::family_of(&self.from.0)
    }

    /// Both ends of a connection: the client's and the server's.
    fn open(&self, listener: &TcpListener) -> Option<[TcpStream; 2]> {
        let client = connect(self.client, self.from, self.to)?;
        let server = listener.accept().unwrap().0;
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(exchange([&client, &server]), [true; 2], "what was opened carries nothing");
        Some([client, server])
    }

    /// Ends a connection, and makes sure of who remembers it.
    fn end(&self, [client, server]: [TcpStream; 2], how: End) {
        let closes = |first: TcpStream, mut second: TcpStream| {
            drop(first);
            let heard = second.read(&mut [0; 1]).unwrap();
            assert_eq!(heard, 0, "the end is heard");
            drop(second);
        };
        match how {
            End::Reset => {
                let socket = Socket::from(client);
                socket.set_linger(Some(Duration::ZERO)).unwrap();
                drop(socket);
                let error = (&server).read(&mut [0; 1]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
            End::ServerFirst => closes(server, client),
            End::ClientFirst => closes(client, server),
        }
        let expected = match how {
            End::Reset => ["", ""],
            End::ServerFirst => ["", "TIME-WAIT"],
            End::ClientFirst => ["TIME-WAIT", ""],
        };
        let state = |place: &Place, port: u16, peer: u16| {
            let version = if self.from.0.is_ipv4() { 4 } else { 6 };
            let sockets = shell(place, &format!("ss -{version} -Htan sport = :{port} and dport = :{peer}"));
            sockets.split_whitespace().next().unwrap_or_default().to_owned()
        };
        let begin = Instant::now();
        loop {
            let observed = [state(self.client, self.from.1, self.to.1), state(self.server, self.to.1, self.from.1)];
            if observed == expected {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{how:?}: {observed:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The victim may only be asked by the attacker, and that one only ask it.
fn one_way() -> Vec<Value> {
    let server = json!({
        "podSelector": only("victim"), "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": [{ "podSelector": only("attacker") }] }],
    });
    let client = json!({
        "podSelector": only("attacker"), "policyTypes": ["Ingress", "Egress"],
        "egress": [{ "to": [{ "podSelector": only("victim") }] }],
    });
    vec![policy("server", &server), policy("client", &client)]
}

/// The same, but nothing reaches the victim any more.
fn revoked() -> Vec<Value> {
    let mut policies = one_way();
    policies[0]["spec"]["ingress"] = json!([]);
    policies
}

#[test]
fn a_client_that_comes_back_from_the_same_port_is_judged_as_somebody_new() {
    let mut scene = Scene::new();
    scene.start_agent(one_way());
    scene.populate();
    let [client, server] = ["attacker", "victim"].map(|pod| scene.pod(pod).network().place());
    let pairs =
        families().map(|(from, to)| Pair { client: &client, server: &server, from: (from, CLIENT), to: (to, SERVER) });
    let listeners = families().map(|(_, to)| listen(&server, to, SERVER));
    // The server in TIME_WAIT comes last: so it is when the permission goes.
    for (pair, listener) in pairs.iter().zip(&listeners) {
        for how in [End::Reset, End::Reset, End::ServerFirst, End::ServerFirst] {
            let ends = pair.open(listener);
            cells::expect(SUITE, pair.family(), &ends.is_some(), &true, how);
            pair.end(ends.unwrap(), how);
        }
    }
    scene.set_policies(revoked());
    for pair in &pairs {
        let before = scene.dropped("ingress", "no_rule");
        let opened = connect(&client, pair.from, pair.to).is_some();
        cells::expect(SUITE, pair.family(), &opened, &false, "revoked");
        assert!(scene.dropped("ingress", "no_rule") > before, "{:?}", scene.all_dropped());
    }
    scene.set_policies(one_way());
    for (pair, listener) in pairs.iter().zip(&listeners) {
        cells::expect(SUITE, pair.family(), &pair.open(listener).is_some(), &true, "allowed again");
    }
}

#[test]
fn a_revoked_connection_lends_its_ports_to_no_other() {
    let mut scene = Scene::new();
    scene.start_agent(one_way());
    scene.populate();
    let [client, server] = ["attacker", "victim"].map(|pod| scene.pod(pod).network().place());
    let pairs =
        families().map(|(from, to)| Pair { client: &client, server: &server, from: (from, CLIENT), to: (to, SERVER) });
    let listeners = families().map(|(_, to)| listen(&server, to, SERVER));
    let mut open = Vec::new();
    for (pair, listener) in pairs.iter().zip(&listeners) {
        open.push(pair.open(listener).unwrap());
    }
    scene.set_policies(revoked());
    for (pair, [client_end, server_end]) in pairs.iter().zip(open) {
        let goes_on = exchange([&client_end, &server_end]);
        cells::expect(SUITE, pair.family(), &goes_on, &[false; 2], "the connection goes on");
        // The client forgets it, the server cannot know.
        let socket = Socket::from(client_end);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        drop(socket);
        let before = scene.dropped("ingress", "no_rule");
        let opened = connect(&client, pair.from, pair.to).is_some();
        cells::expect(SUITE, pair.family(), &opened, &false, "a SYN on its ports");
        assert!(scene.dropped("ingress", "no_rule") > before, "{:?}", scene.all_dropped());
        let before = scene.dropped("ingress", "revoked");
        let data = ip(pair.from.0, pair.to.0, 6, &tcp(CLIENT, SERVER, ACK, MARKER)).unwrap();
        let observer = scene.wire("victim");
        scene.wire("attacker").send(&[addressed(data, scene.mac("attacker"), scene.mac("victim"))]).unwrap();
        cells::expect(SUITE, pair.family(), &observer.sees(MARKER).unwrap(), &false, "data after the SYN");
        assert!(scene.dropped("ingress", "revoked") > before, "{:?}", scene.all_dropped());
    }
}

#[test]
fn the_server_that_calls_back_on_the_ports_of_the_last_connection_is_judged_in_its_own_direction() {
    // Both ways; then one side does not let the call back pass.
    let from = |app| json!([{ "from": [{ "podSelector": only(app) }] }]);
    let to = |app| json!([{ "to": [{ "podSelector": only(app) }] }]);
    let policies = |calls_back: bool, is_called: bool| {
        let mut policies = one_way();
        if calls_back {
            policies[0]["spec"]["egress"] = to("attacker");
        }
        if is_called {
            policies[1]["spec"]["ingress"] = from("victim");
        }
        policies
    };
    let cases = [
        ("both", true, true, None),
        ("egress", false, true, Some("egress")),
        ("ingress", true, false, Some("ingress")),
    ];
    let mut scene = Scene::new();
    scene.start_agent(one_way());
    scene.populate();
    let [client, server] = ["attacker", "victim"].map(|pod| scene.pod(pod).network().place());
    // Each connection has ports of its own: nothing is left of another.
    let mut port = 0;
    for (what, calls_back, is_called, dropped) in cases {
        scene.set_policies(policies(calls_back, is_called));
        for (from, to) in families() {
            for how in [End::Reset, End::ClientFirst] {
                port += 1;
                let pair =
                    Pair { client: &client, server: &server, from: (from, CLIENT + port), to: (to, SERVER + port) };
                let listener = listen(&server, pair.to.0, pair.to.1);
                pair.end(pair.open(&listener).unwrap(), how);
                drop(listener);
                let before = dropped.map_or(0, |direction| scene.dropped(direction, "no_rule"));
                let _called = listen(&client, pair.from.0, pair.from.1);
                let opened = connect(&server, pair.to, pair.from).is_some();
                cells::expect(SUITE, pair.family(), &opened, &dropped.is_none(), (what, how));
                if let Some(direction) = dropped {
                    assert!(scene.dropped(direction, "no_rule") > before, "{what}: {:?}", scene.all_dropped());
                }
            }
        }
    }
}
