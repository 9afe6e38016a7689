//! Packets that pretend to belong to a connection (decision D5).

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;
use netpol_suites::cells;
use netpol_suites::frames::{ACK, SYN, addressed, icmp, ipv4, tcp, udp};
use serde_json::{Value, json};

use super::scene::{PORT, Scene, only, policy, v4};
use super::{Attack, SUITE};

const MARKER: &[u8] = b"never asked for, never answered";

/// The attacker may send nothing; everybody may send to it.
fn silenced() -> Vec<Value> {
    vec![policy("silenced", &json!({ "podSelector": only("attacker"), "policyTypes": ["Egress"], "egress": [] }))]
}

#[test]
fn what_looks_like_a_reply_is_no_way_out_of_a_pod_that_may_not_send() {
    // The reverse of each would be allowed: everybody may send to the attacker's port.
    for (protocol, payload) in [
        (6, tcp(PORT, 40_000, ACK, MARKER)),
        (6, tcp(PORT, 40_000, SYN | ACK, MARKER)),
        (17, udp(PORT, 40_000, MARKER)),
    ] {
        Attack {
            node: &|_scene| {},
            frames: &|scene| {
                let frame = ipv4(v4(10), v4(11), protocol, 0, &[], &payload);
                vec![addressed(frame, scene.mac("attacker"), scene.mac("victim"))]
            },
            marker: MARKER,
            target: "victim",
            policies: silenced(),
            unchecked: false,
            counted: ("egress", "no_rule"),
        }
        .prove();
    }
}

#[test]
fn a_syn_that_is_hidden_in_fragments_is_dropped_with_its_first_one() {
    // The flags are in the second fragment, eight bytes on: what may only go on, and not begin, would else begin here.
    let to_port = json!([{ "to": [{ "podSelector": {} }], "ports": [{ "port": PORT }] }]);
    let out = json!({ "podSelector": only("attacker"), "policyTypes": ["Egress"], "egress": to_port });
    Attack {
        node: &|_scene| {},
        frames: &|scene| {
            let segment = tcp(5000, PORT, SYN, MARKER);
            let more = 0x2000;
            let (from, to) = (scene.mac("attacker"), scene.mac("victim"));
            let first = ipv4(v4(10), v4(11), 6, more, &[], &segment[..8]);
            let rest = ipv4(v4(10), v4(11), 6, 1, &[], &segment[8..]);
            vec![addressed(first, from, to), addressed(rest, from, to)]
        },
        marker: MARKER,
        target: "victim",
        policies: vec![policy("one-port", &out)],
        unchecked: false,
        counted: ("egress", "fragment_header"),
    }
    .prove();
}

#[test]
fn an_echo_reply_that_answers_nothing_is_no_way_out() {
    Attack {
        node: &|_scene| {},
        frames: &|scene| {
            let reply = ipv4(v4(10), v4(11), 1, 0, &[], &icmp(0, 7, MARKER));
            vec![addressed(reply, scene.mac("attacker"), scene.mac("victim"))]
        },
        marker: MARKER,
        target: "victim",
        policies: silenced(),
        unchecked: false,
        counted: ("egress", "no_flow"),
    }
    .prove();
}

#[test]
fn an_icmp_error_about_a_packet_that_nobody_sent_is_no_way_out() {
    // As if the victim had sent a datagram to the attacker, which it may: the error would go back to it.
    Attack {
        node: &|_scene| {},
        frames: &|scene| {
            let quoted = ipv4(v4(11), v4(10), 17, 0, &[], &udp(40_000, PORT, MARKER));
            let error = ipv4(v4(10), v4(11), 1, 0, &[], &icmp(3, 0, &quoted[14..]));
            vec![addressed(error, scene.mac("attacker"), scene.mac("victim"))]
        },
        marker: MARKER,
        target: "victim",
        policies: silenced(),
        unchecked: false,
        counted: ("egress", "no_flow"),
    }
    .prove();
}

/// Everything that the attack takes, and whether its last packet comes through; the agent runs or not.
fn comes_through(policies: Option<Vec<Value>>, attack: impl Fn(&Scene) -> bool) -> (Scene, bool) {
    let mut scene = Scene::new();
    scene.check_no_addresses();
    let has_agent = policies.is_some();
    if let Some(policies) = policies {
        scene.start_agent(policies);
    }
    scene.populate();
    let through = attack(&scene);
    cells::report(SUITE, "ipv4", "-", 1, usize::from(has_agent && through)).unwrap();
    (scene, through)
}

#[test]
fn a_flow_that_one_pod_pretends_is_no_way_in_to_another() {
    // The attacker, whose addresses are not checked, sends what the victim would have to send for the answer to be let in.
    let plant_and_answer = |scene: &Scene| {
        let asked = ipv4(v4(11), v4(12), 17, 0, &[], &udp(PORT, 5000, b"a question"));
        scene.wire("attacker").send(&[addressed(asked, scene.mac("attacker"), scene.mac("bystander"))]).unwrap();
        let to = scene.wire("victim");
        let answer = ipv4(v4(12), v4(11), 17, 0, &[], &udp(5000, PORT, MARKER));
        scene.wire("bystander").send(&[addressed(answer, scene.mac("bystander"), scene.mac("victim"))]).unwrap();
        to.sees(MARKER).unwrap()
    };
    assert!(comes_through(None, plant_and_answer).1, "without the agent it does not come through: it is no attack");
    let nobody = json!({ "podSelector": only("victim"), "policyTypes": ["Ingress"] });
    let (scene, through) = comes_through(Some(vec![policy("nobody", &nobody)]), plant_and_answer);
    assert!(!through, "it has come through");
    assert!(scene.dropped("ingress", "no_rule") > 0, "{:?}", scene.all_dropped());
}

#[test]
fn a_syn_on_the_ports_of_a_connection_that_came_in_begins_one_of_its_own() {
    let call_back = |scene: &Scene| {
        let place = scene.pod("bystander").network().place();
        let to = SocketAddr::new(v4(10).into(), PORT);
        let mut stream = place.run(|| TcpStream::connect(to).context("connect")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert!(exchange(&mut stream), "what comes in is answered");
        let port = stream.local_addr().unwrap().port();
        let observer = scene.wire("bystander");
        let syn = ipv4(v4(10), v4(12), 6, 0, &[], &tcp(PORT, port, SYN, MARKER));
        scene.wire("attacker").send(&[addressed(syn, scene.mac("attacker"), scene.mac("bystander"))]).unwrap();
        observer.sees(MARKER).unwrap()
    };
    assert!(comes_through(None, call_back).1, "without the agent it does not come through: it is no attack");
    let (scene, through) = comes_through(Some(silenced()), call_back);
    assert!(!through, "it has come through");
    assert!(scene.dropped("egress", "no_rule") > 0, "{:?}", scene.all_dropped());
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
    for cut in ["egress", "ingress"] {
        let mut scene = Scene::new();
        scene.start_agent(Vec::new());
        scene.populate();
        let to = SocketAddr::new(v4(11).into(), PORT);
        let place = scene.pod("attacker").network().place();
        let mut stream = place.run(|| TcpStream::connect(to).context("connect")).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
        let expect = |stream: &mut TcpStream, goes_on: bool| {
            cells::expect(SUITE, "ipv4", &exchange(stream), &goes_on, cut);
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
