//! Fragments (decisions D5 and D8) on the link of a pod that may send to one port of another: whatever pieces they come in,
//! datagrams reach that port or none.
//!
//! The policy is the sender's, because its veth sees the pieces as they were sent: where bridged packets pass netfilter,
//! connection tracking puts datagrams together before they come to the receiver.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Context as _;
use netpol_suites::frames::{addressed, checksum, ipv4, ipv6, udp};
use serde_json::json;

use super::scene::{Scene, only, policy, v4, v6};

const ALLOWED: u16 = 7000;
const DENIED: u16 = 7001;
/// Longer than three fragments of eight bytes, shorter than anything else.
const TEXT: &[u8] = b"in pieces, and still the same text";
/// Of what is delivered at all.
const PATIENCE: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// A piece of a datagram: from which byte on, to which, and of a datagram to which port.
type Piece = (usize, usize, u16);

/// A datagram with its checksum.
fn datagram(family: Family, port: u16) -> Vec<u8> {
    let mut bytes = udp(5000, port, TEXT);
    let mut pseudo = match family {
        Family::V4 => [v4(10), v4(11)].concat(),
        Family::V6 => [v6(10), v6(11)].concat(),
    };
    pseudo.extend([0, 17]);
    pseudo.extend((bytes.len() as u16).to_be_bytes());
    pseudo.extend(&bytes);
    bytes[6..8].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    bytes
}

/// One fragment as a frame. `id` tells datagrams apart.
fn fragment(scene: &Scene, family: Family, id: u16, (from, to, port): Piece) -> Vec<u8> {
    let whole = datagram(family, port);
    let (piece, more) = (&whole[from..to], to < whole.len());
    let offset = u16::try_from(from / 8).unwrap();
    let frame = match family {
        Family::V4 => {
            let mut frame = ipv4(v4(10), v4(11), 17, offset | u16::from(more) << 13, &[], piece);
            frame[18..20].copy_from_slice(&id.to_be_bytes());
            frame
        }
        Family::V6 => {
            let mut header = vec![17, 0];
            header.extend((offset << 3 | u16::from(more)).to_be_bytes());
            header.extend(u32::from(id).to_be_bytes());
            header.extend(piece);
            ipv6(v6(10), v6(11), 44, 64, &header)
        }
    };
    addressed(frame, scene.mac("attacker"), scene.mac("victim"))
}

/// The victim's sockets, of both ports and families.
struct Receivers(Vec<(Family, u16, UdpSocket)>);

impl Receivers {
    fn of(scene: &Scene) -> Self {
        let place = scene.pod("victim").network().place();
        let receivers = [(Family::V4, IpAddr::from(v4(11))), (Family::V6, IpAddr::from(v6(11)))];
        let receivers = receivers.into_iter().flat_map(|(family, address)| {
            [ALLOWED, DENIED].map(|port| {
                let socket = place.run(|| UdpSocket::bind((address, port)).context("bind")).unwrap();
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

fn scene() -> Scene {
    let mut scene = Scene::new();
    let one_port = json!({
        "podSelector": only("attacker"), "policyTypes": ["Egress"],
        "egress": [{ "to": [{ "podSelector": only("victim") }], "ports": [{ "protocol": "UDP", "port": ALLOWED }] }],
    });
    scene.start_agent(vec![policy("one-port", &one_port)]);
    scene.populate();
    scene
}

#[test]
fn the_pieces_of_a_datagram_go_where_its_first_one_may() {
    let length = 8 + TEXT.len();
    let a = |from, to| (from, to, ALLOWED);
    let d = |from, to| (from, to, DENIED);
    // What is sent, and whether it arrives at the port that is allowed. At the other one nothing may.
    let cases: [(&str, Vec<Piece>, bool); 8] = [
        ("in order", vec![a(0, 16), a(16, 32), a(32, length)], true),
        ("first ones of eight bytes", vec![a(0, 8), a(8, 16), a(16, length)], true),
        ("the last one twice", vec![a(0, 16), a(16, 32), a(16, 32), a(32, length)], true),
        ("the later one first", vec![a(16, length), a(0, 16)], false),
        ("all of another port", vec![d(0, 16), d(16, length)], false),
        ("another port's, the later one first", vec![d(16, length), d(0, 16)], false),
        ("another port's first one over the allowed one", vec![a(0, 16), d(0, 16), d(16, length)], false),
        ("another port's first one behind", vec![a(0, 8), a(8, 16), d(0, 24), d(24, length)], false),
    ];
    let scene = scene();
    let (wire, receivers) = (scene.wire("attacker"), Receivers::of(&scene));
    let mut id = 1;
    for family in [Family::V4, Family::V6] {
        for (what, pieces, arrives) in &cases {
            id += 1;
            let frames: Vec<_> = pieces.iter().map(|piece| fragment(&scene, family, id, *piece)).collect();
            wire.send(&frames).unwrap();
            let heard = receivers.hear(family, ALLOWED);
            if *arrives {
                assert_eq!(heard.as_deref(), Some(TEXT), "{what}, {family:?}");
            }
            assert_eq!(receivers.hear(family, DENIED), None, "{what}, {family:?}");
        }
    }
    assert!(scene.dropped("egress", "fragment_unknown") > 0, "{:?}", scene.all_dropped());
}

#[test]
fn datagrams_longer_than_a_packet_are_judged_by_their_port() {
    let scene = scene();
    let receivers = Receivers::of(&scene);
    let place = scene.pod("attacker").network().place();
    let text = vec![b'x'; 9000];
    for (family, from, to) in [
        (Family::V4, IpAddr::from(v4(10)), IpAddr::from(v4(11))),
        (Family::V6, IpAddr::from(v6(10)), IpAddr::from(v6(11))),
    ] {
        let socket = place.run(|| UdpSocket::bind((from, 0)).context("bind")).unwrap();
        for port in [ALLOWED, DENIED] {
            let sent = socket.send_to(&text, SocketAddr::new(to, port)).unwrap();
            assert_eq!(sent, text.len());
            let expected = (port == ALLOWED).then_some(&text[..]);
            assert_eq!(receivers.hear(family, port).as_deref(), expected, "{family:?} {port}");
        }
    }
}
