//! Packets that pretend to belong to a connection (decision D5), in both families.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;
use netpol_suites::cells;
use netpol_suites::frames::{ACK, SYN, addressed, tcp, udp};
use serde_json::{Value, json};

use super::family::Family;
use super::scene::{PORT, Scene, only, policy};
use super::{Attack, SUITE};

const MARKER: &[u8] = b"never asked for, never answered";

/// The attacker may send nothing; everybody may send to it.
fn silenced() -> Vec<Value> {
    vec![policy("silenced", &json!({ "podSelector": only("attacker"), "policyTypes": ["Egress"], "egress": [] }))]
}

#[test]
fn what_looks_like_a_reply_is_no_way_out_of_a_pod_that_may_not_send() {
    // The reverse of each would be allowed: everybody may send to the attacker's port.
    let replies = [
        (6, tcp(PORT, 40_000, ACK, MARKER)),
        (6, tcp(PORT, 40_000, SYN | ACK, MARKER)),
        (17, udp(PORT, 40_000, MARKER)),
    ];
    for family in Family::BOTH {
        for (protocol, payload) in &replies {
            out_of_the_attacker(
                silenced(),
                "no_rule",
                &|[from, to]| vec![family.packet(from, to, *protocol, payload)],
                family,
            );
        }
    }
}

/// Frames from the attacker to the victim, made of the addresses of both.
fn out_of_the_attacker(
    policies: Vec<Value>,
    reason: &str,
    frames: &dyn Fn([IpAddr; 2]) -> Vec<Vec<u8>>,
    family: Family,
) {
    Attack {
        node: &|_scene| {},
        frames: &|scene| {
            let frames = frames([family.pod(10), family.pod(11)]).into_iter();
            frames.map(|frame| addressed(frame, scene.mac("attacker"), scene.mac("victim"))).collect()
        },
        marker: MARKER,
        target: "victim",
        policies,
        unchecked: false,
        counted: ("egress", reason),
    }
    .prove();
}

#[test]
fn a_syn_that_is_hidden_in_fragments_is_dropped_with_its_first_one() {
    // The flags are in the second fragment, eight bytes on: what may only go on, and not begin, would else begin here.
    let to_port = json!([{ "to": [{ "podSelector": {} }], "ports": [{ "port": PORT }] }]);
    let out = json!({ "podSelector": only("attacker"), "policyTypes": ["Egress"], "egress": to_port });
    for family in Family::BOTH {
        let frames = |[from, to]: [IpAddr; 2]| {
            let segment = tcp(5000, PORT, SYN, MARKER);
            let fragment = |at, piece| family.fragment((from, to), 6, 1, at, piece);
            vec![fragment((0, true), &segment[..8]), fragment((8, false), &segment[8..])]
        };
        out_of_the_attacker(vec![policy("one-port", &out)], "fragment_header", &frames, family);
    }
}

#[test]
fn an_echo_reply_that_answers_nothing_is_no_way_out() {
    for family in Family::BOTH {
        let frames = |[from, to]: [IpAddr; 2]| vec![family.echo_reply(from, to, 7, MARKER)];
        out_of_the_attacker(silenced(), "no_flow", &frames, family);
    }
}

#[test]
fn an_icmp_error_about_a_packet_that_nobody_sent_is_no_way_out() {
    // As if the victim had sent a datagram to the attacker, which it may: the error would go back to it.
    for family in Family::BOTH {
        let frames = |[from, to]: [IpAddr; 2]| {
            let quoted = family.packet(to, from, 17, &udp(40_000, PORT, MARKER));
            vec![family.unreachable(from, to, &quoted)]
        };
        out_of_the_attacker(silenced(), "no_flow", &frames, family);
    }
}

/// Carries an attack out in each family, first without the agent, where its last packet has to come through, and then with
/// it, where it must not, and is counted.
fn is_stopped(policies: &[Value], counted: (&str, &str), attack: impl Fn(&Scene, Family) -> bool) {
    let (direction, reason) = counted;
    for family in Family::BOTH {
        let mut scene = Scene::new();
        scene.populate();
        assert!(attack(&scene, family), "{family:?}: without the agent it does not come through: it is no attack");
        let mut scene = Scene::new();
        scene.check_no_addresses();
        scene.start_agent(policies.to_vec());
        scene.populate();
        cells::expect(SUITE, family.name(), &attack(&scene, family), &false, "it has come through");
        assert!(scene.dropped(direction, reason) > 0, "{:?}", scene.all_dropped());
    }
}

#[test]
fn a_flow_that_one_pod_pretends_is_no_way_in_to_another() {
    // The attacker, whose addresses are not checked, sends what the victim would have to send for the answer to be let in.
    let nobody = json!({ "podSelector": only("victim"), "policyTypes": ["Ingress"] });
    is_stopped(&[policy("nobody", &nobody)], ("ingress", "no_rule"), |scene, family| {
        let (victim, bystander) = (family.pod(11), family.pod(12));
        let asked = family.packet(victim, bystander, 17, &udp(PORT, 5000, b"a question"));
        scene.wire("attacker").send(&[addressed(asked, scene.mac("attacker"), scene.mac("bystander"))]).unwrap();
        let to = scene.wire("victim");
        let answer = family.packet(bystander, victim, 17, &udp(5000, PORT, MARKER));
        scene.wire("bystander").send(&[addressed(answer, scene.mac("bystander"), scene.mac("victim"))]).unwrap();
        to.sees(MARKER).unwrap()
    });
}

#[test]
fn a_syn_on_the_ports_of_a_connection_that_came_in_begins_one_of_its_own() {
    is_stopped(&silenced(), ("egress", "no_rule"), |scene, family| {
        let place = scene.pod("bystander").network().place();
        let to = SocketAddr::new(family.pod(10), PORT);
        let mut stream = place.run(|| TcpStream::connect(to).context("connect")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert!(exchange(&mut stream), "what comes in is answered");
        let port = stream.local_addr().unwrap().port();
        let observer = scene.wire("bystander");
        let syn = family.packet(to.ip(), family.pod(12), 6, &tcp(PORT, port, SYN, MARKER));
        scene.wire("attacker").send(&[addressed(syn, scene.mac("attacker"), scene.mac("bystander"))]).unwrap();
        observer.sees(MARKER).unwrap()
    });
}

/// Says something and hears it back, or silence.
fn exchange(stream: &mut TcpStream) -> bool {
    let sent = b"still there?";
    let mut answer = [0; 12];
    match stream.write_all(sent).and_then(|()| stream.read_exact(&mut answer)) {
        Ok(()) => answer == *sent,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_revoked_connection_does_not_come_back_by_what_the_kernel_sends_again() {
    for (family, cut) in Family::BOTH.into_iter().flat_map(|family| [(family, "egress"), (family, "ingress")]) {
        let mut scene = Scene::new();
        scene.start_agent(Vec::new());
        scene.populate();
        let to = SocketAddr::new(family.pod(11), PORT);
        let place = scene.pod("attacker").network().place();
        let mut stream = place.run(|| TcpStream::connect(to).context("connect")).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
        let expect = |stream: &mut TcpStream, goes_on: bool| {
            cells::expect(SUITE, family.name(), &exchange(stream), &goes_on, cut);
        };
        expect(&mut stream, true);
        let spec = if cut == "egress" {
            json!({ "podSelector": only("attacker"), "policyTypes": ["Egress"], "egress": [] })
        } else {
            json!({ "podSelector": only("victim"), "policyTypes": ["Ingress"], "ingress": [] })
        };
        scene.set_policies(vec![policy("cut", &spec)]);
        // The kernel retransmits from both sides meanwhile, and either could look like the beginning of something new.
        expect(&mut stream, false);
        expect(&mut stream, false);
        assert!(scene.dropped(cut, "revoked") > 1, "{cut}");
        // Allowed again, the same connection goes on with what was held back.
        scene.set_policies(Vec::new());
        let mut rest = [0; 12];
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"still there?", "{cut}");
    }
}
