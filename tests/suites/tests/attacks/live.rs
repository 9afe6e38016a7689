//! Connections that live (decision D5): what is forged on their ports leaves them alone, and a policy that comes later judges
//! them as they were opened.
//!
//! In each the server speaks first after what has happened: it may only answer, so that without its flow nothing leaves it.

use std::net::TcpStream;

use netpol_suites::cells;
use netpol_suites::frames::{SYN, addressed, tcp};
use netpol_testbed::outside::UPLINK;
use serde_json::{Value, json};

use super::SUITE;
use super::connections::{connect, exchange, listen};
use super::family::Family;
use super::scene::{Scene, only, policy};
use super::wire::{Wire, mac};

const CLIENT: u16 = 41_000;
const SERVER: u16 = 7100;
/// TCP's flag.
const RST: u8 = 0x04;
const MARKER: &[u8] = b"not from whom it says";

/// The bystander may be asked by nobody and ask only the victim, which may only be asked by it, and with `isolated` may ask
/// nobody.
fn one_way(isolated: bool) -> Vec<Value> {
    let types = if isolated { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
    let server = json!({
        "podSelector": only("victim"), "policyTypes": types,
        "ingress": [{ "from": [{ "podSelector": only("bystander") }] }],
    });
    let client = json!({
        "podSelector": only("bystander"), "policyTypes": ["Ingress", "Egress"],
        "egress": [{ "to": [{ "podSelector": only("victim") }] }],
    });
    vec![policy("server", &server), policy("client", &client)]
}

/// A connection of the bystander to the victim: the server's end, and the client's.
fn open(scene: &Scene, family: Family, number: u16) -> [TcpStream; 2] {
    let [client, server] = ["bystander", "victim"].map(|pod| scene.pod(pod).network().place());
    let (from, to) = ((family.pod(12), CLIENT + number), (family.pod(11), SERVER + number));
    let listener = listen(&server, to.0, to.1);
    let asking = connect(&client, from, to).expect("a connection that is allowed");
    let answering = listener.accept().unwrap().0;
    answering.set_read_timeout(asking.read_timeout().unwrap()).unwrap();
    let ends = [answering, asking];
    assert_eq!(exchange([&ends[0], &ends[1]]), [true; 2], "what was opened carries nothing");
    ends
}

#[test]
fn a_syn_that_is_denied_leaves_the_connection_on_its_ports_alone() {
    for (family, denied) in Family::BOTH
        .into_iter()
        .flat_map(|family| [None, Some("egress"), Some("ingress")].map(|denied| (family, denied)))
    {
        let mut scene = Scene::new();
        if let Some(direction) = denied {
            scene.start_agent(one_way(direction == "egress"));
        }
        scene.populate();
        let [server, client] = open(&scene, family, 0);
        let observer = scene.wire("bystander");
        let syn = family.packet(family.pod(11), family.pod(12), 6, &tcp(SERVER, CLIENT, SYN, MARKER));
        scene.wire("victim").send(&[addressed(syn, scene.mac("victim"), scene.mac("bystander"))]).unwrap();
        let is_seen = observer.sees(MARKER).unwrap();
        if let Some(direction) = denied {
            cells::expect(SUITE, family.name(), &is_seen, &false, (direction, "it has come through"));
            assert!(scene.dropped(direction, "no_rule") > 0, "{:?}", scene.all_dropped());
            cells::expect(SUITE, family.name(), &exchange([&server, &client]), &[true; 2], (direction, "goes on"));
        } else {
            assert!(is_seen, "without the agent it does not come through: it is no attack");
        }
    }
}

/// From a pod whose addresses are not checked, from a host outside, and from the client, to which the connection belongs but
/// not the sequence number.
#[test]
fn a_reset_that_is_forged_leaves_the_connection_alone() {
    for (family, has_agent) in Family::BOTH.into_iter().flat_map(|family| [(family, false), (family, true)]) {
        let mut scene = Scene::new();
        scene.check_no_addresses();
        if has_agent {
            scene.start_agent(one_way(true));
        }
        scene.populate();
        let outside = scene.node.outside().network().place();
        let (beyond, uplink) = (mac(&outside, "uplink").unwrap(), mac(&scene.node.network().place(), UPLINK).unwrap());
        let forgers = [
            ("a pod", scene.wire("attacker"), scene.mac("attacker"), scene.mac("victim")),
            ("a host outside", Wire::open(&outside, "uplink").unwrap(), beyond, uplink),
            ("the client", scene.wire("bystander"), scene.mac("bystander"), scene.mac("victim")),
        ];
        for (number, (who, wire, from, to)) in (0..).zip(forgers) {
            let [server, client] = open(&scene, family, number);
            let observer = scene.wire("victim");
            // Sequence number 0: what the client's is, nobody else knows.
            let segment = tcp(CLIENT + number, SERVER + number, RST, MARKER);
            let reset = family.packet(family.pod(12), family.pod(11), 6, &segment);
            wire.send(&[addressed(reset, from, to)]).unwrap();
            let is_seen = observer.sees(MARKER).unwrap();
            if has_agent {
                cells::expect(SUITE, family.name(), &exchange([&server, &client]), &[true; 2], who);
            } else {
                assert!(is_seen, "{who}: without the agent it does not come through: it is no attack");
            }
        }
    }
}

#[test]
fn a_policy_that_comes_later_judges_a_connection_as_it_was_opened() {
    // All of them isolate both pods. The reverse permits what a server would begin.
    let reverse = |from: &str, to: &str| {
        let peer = |app| json!([{ "podSelector": only(app) }]);
        let both = json!(["Ingress", "Egress"]);
        let asks = json!({ "podSelector": only(from), "policyTypes": both, "egress": [{ "to": peer(to) }] });
        let is_asked = json!({ "podSelector": only(to), "policyTypes": both, "ingress": [{ "from": peer(from) }] });
        vec![policy("asks", &asks), policy("is-asked", &is_asked)]
    };
    let nothing = json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] });
    let cases = [
        ("allowed as it was opened", one_way(true), true),
        ("allowed the other way round", reverse("victim", "bystander"), false),
        ("not allowed", vec![policy("nothing", &nothing)], false),
    ];
    let mut scene = Scene::new();
    scene.start_agent(Vec::new());
    scene.populate();
    for (number, (what, policies, goes_on)) in (0..).zip(cases) {
        let open = Family::BOTH.map(|family| (family, open(&scene, family, number)));
        scene.set_policies(policies);
        for (family, [server, client]) in &open {
            let dropped = |scene: &Scene| {
                ["ingress", "egress"].map(|direction| scene.dropped(direction, "revoked")).iter().sum::<u64>()
            };
            let before = dropped(&scene);
            cells::expect(SUITE, family.name(), &exchange([server, client]), &[goes_on; 2], what);
            assert_eq!(dropped(&scene) > before, !goes_on, "{what}: {:?}", scene.all_dropped());
        }
        scene.set_policies(Vec::new());
    }
}
