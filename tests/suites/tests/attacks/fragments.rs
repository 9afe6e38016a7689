//! Fragments (decisions D5 and D8) between a pod and another of which one port may be reached: whatever pieces they come
//! in, datagrams reach that port or none. Once the policy is the sender's and once the receiver's, whose veth sees the
//! pieces as they were sent only if bridged packets do not pass netfilter: connection tracking would put them together.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Context as _;
use netpol_suites::cells;
use netpol_suites::frames::addressed;
use serde_json::{Value, json};

use super::SUITE;
use super::family::{Family, summed_datagram};
use super::scene::{Scene, only, policy};

const ALLOWED: u16 = 7000;
const DENIED: u16 = 7001;
/// Longer than three fragments of eight bytes, shorter than anything else.
const TEXT: &[u8] = b"in pieces, and still the same text";
/// Of what is delivered at all.
const PATIENCE: Duration = Duration::from_millis(400);

/// A piece of a datagram: from which byte on, to which, and of a datagram to which port.
type Piece = (usize, usize, u16);

/// One fragment as a frame. `id` tells datagrams apart.
fn fragment(scene: &Scene, family: Family, id: u16, (from, to, port): Piece) -> Vec<u8> {
    let ends = (family.pod(10), family.pod(11));
    let whole = summed_datagram((ends.0, 5000), (ends.1, port), TEXT);
    let frame = family.fragment(ends, 17, id, (from, to < whole.len()), &whole[from..to]);
    addressed(frame, scene.mac("attacker"), scene.mac("victim"))
}

/// The victim's sockets, of both ports and families.
struct Receivers(Vec<(Family, u16, UdpSocket)>);

impl Receivers {
    fn of(scene: &Scene) -> Self {
        let place = scene.pod("victim").network().place();
        let receivers = Family::BOTH.into_iter().flat_map(|family| {
            [ALLOWED, DENIED].map(|port| {
                let socket = place.run(|| UdpSocket::bind((family.pod(11), port)).context("bind")).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                (family, port, socket)
            })
        });
        Self(receivers.collect())
    }

    /// What a socket has received; nothing, if nothing comes within a while.
    fn hear(&self, family: Family, port: u16) -> Option<Vec<u8>> {
        let Self(all) = self;
        let (_, _, socket) = all.iter().find(|(of, at, _)| (*of, *at) == (family, port)).unwrap();
        let mut buffer = vec![0; 65_536];
        match socket.recv(&mut buffer) {
            Ok(length) => Some(buffer[..length].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Whose policy it is.
#[derive(Clone, Copy, Debug)]
enum Side {
    Sender,
    Receiver,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Sender, Self::Receiver];

    fn policy(self) -> Value {
        let ports = json!([{ "protocol": "UDP", "port": ALLOWED }]);
        policy(
            "one-port",
            &match self {
                Self::Sender => json!({
                    "podSelector": only("attacker"), "policyTypes": ["Egress"],
                    "egress": [{ "to": [{ "podSelector": only("victim") }], "ports": ports }],
                }),
                Self::Receiver => json!({
                    "podSelector": only("victim"), "policyTypes": ["Ingress"],
                    "ingress": [{ "from": [{ "podSelector": only("attacker") }], "ports": ports }],
                }),
            },
        )
    }

    /// In which the pod of the policy drops.
    const fn direction(self) -> &'static str {
        match self {
            Self::Sender => "egress",
            Self::Receiver => "ingress",
        }
    }

    /// The pods, with the agent and this policy, or without.
    fn scene(self, has_agent: bool) -> Scene {
        let mut scene = Scene::new();
        if has_agent {
            scene.start_agent(vec![self.policy()]);
        }
        scene.populate();
        if let Self::Receiver = self {
            scene.on_node("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0");
        }
        scene
    }
}

#[test]
fn the_pieces_of_a_datagram_go_where_its_first_one_may() {
    let length = 8 + TEXT.len();
    let a = |from, to| (from, to, ALLOWED);
    let d = |from, to| (from, to, DENIED);
    // What is sent, to which port it comes without the agent (the kernel discards what overlaps), and whether it has to
    // arrive at the port that is allowed with it. At the other one nothing may.
    let cases: [(&str, Vec<Piece>, Option<u16>, bool); 8] = [
        ("in order", vec![a(0, 16), a(16, 32), a(32, length)], Some(ALLOWED), true),
        ("first ones of eight bytes", vec![a(0, 8), a(8, 16), a(16, length)], Some(ALLOWED), true),
        ("the last one twice", vec![a(0, 16), a(16, 32), a(16, 32), a(32, length)], Some(ALLOWED), true),
        ("the later one first", vec![a(16, length), a(0, 16)], Some(ALLOWED), false),
        ("all of another port", vec![d(0, 16), d(16, length)], Some(DENIED), false),
        ("another port's, the later one first", vec![d(16, length), d(0, 16)], Some(DENIED), false),
        ("another port's first one over the allowed one", vec![a(0, 16), d(0, 24), d(24, length)], None, false),
        ("another port's first one behind", vec![a(0, 8), a(8, 16), d(0, 24), d(24, length)], None, false),
    ];
    for (side, has_agent) in Side::BOTH.into_iter().flat_map(|side| [(side, false), (side, true)]) {
        let scene = side.scene(has_agent);
        let (wire, receivers) = (scene.wire("attacker"), Receivers::of(&scene));
        let mut id = 1;
        for family in Family::BOTH {
            for (what, pieces, without, arrives) in &cases {
                id += 1;
                let frames: Vec<_> = pieces.iter().map(|piece| fragment(&scene, family, id, *piece)).collect();
                wire.send(&frames).unwrap();
                let heard = [ALLOWED, DENIED].map(|port| receivers.hear(family, port));
                if !has_agent {
                    let expected = [ALLOWED, DENIED].map(|port| (*without == Some(port)).then(|| TEXT.to_vec()));
                    assert_eq!(heard, expected, "{what}, {family:?}, without the agent");
                    continue;
                }
                let [allowed, denied] = heard;
                if *arrives {
                    cells::expect(SUITE, family.name(), &allowed.as_deref(), &Some(TEXT), (what, side));
                }
                cells::expect(SUITE, family.name(), &denied, &None, (what, side));
            }
        }
        if has_agent {
            assert!(scene.dropped(side.direction(), "fragment_unknown") > 0, "{:?}", scene.all_dropped());
        }
    }
}

#[test]
fn datagrams_longer_than_a_packet_are_judged_by_their_port() {
    let text = vec![b'x'; 9000];
    for (side, has_agent) in Side::BOTH.into_iter().flat_map(|side| [(side, false), (side, true)]) {
        let scene = side.scene(has_agent);
        let receivers = Receivers::of(&scene);
        let place = scene.pod("attacker").network().place();
        for family in Family::BOTH {
            let socket = place.run(|| UdpSocket::bind((family.pod(10), 0)).context("bind")).unwrap();
            for port in [ALLOWED, DENIED] {
                let sent = socket.send_to(&text, SocketAddr::new(family.pod(11), port)).unwrap();
                assert_eq!(sent, text.len());
                let heard = receivers.hear(family, port).is_some_and(|heard| heard == text);
                if has_agent {
                    cells::expect(SUITE, family.name(), &heard, &(port == ALLOWED), (side, port));
                } else {
                    assert!(heard, "{family:?} {port}, without the agent");
                }
            }
        }
        if has_agent {
            assert!(scene.dropped(side.direction(), "no_rule") > 0, "{:?}", scene.all_dropped());
        }
    }
}
