//! What the other suites take for granted of the testbed itself: without an agent everything connects, each failure is
//! told apart, and nothing stays behind.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::Instant;

use netpol_policy::model::Protocol;
use netpol_testbed::node::{Node, NodeOptions};
use netpol_testbed::pod::{Pod, PodSpec};
use netpol_testbed::probe::{self, Outcome, Probe};
use netpol_testbed::sandbox::{Families, Options, Policies, Sandbox};
use netpol_testbed::servers::{Listen, Served, Servers};
use serde_json::json;

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

fn pods(node: &Node, number: u8) -> Vec<Pod> {
    let spec = |index: u8| PodSpec {
        namespace: "default".to_owned(),
        name: format!("pod-{index}"),
        uid: format!("uid-{index}"),
        addresses: vec![
            IpAddr::from([10, 244, 0, index + 2]),
            format!("fd00:10:244::{:x}", index + 2).parse().expect("address"),
        ],
        recorded: true,
    };
    node.add_pods((0..number).map(spec).collect(), &[]).expect("pods")
}

fn serve(servers: &Servers, pod: &Pod, port: u16) -> Served {
    let listen = |address: &IpAddr| PROTOCOLS.map(|protocol| Listen { address: *address, protocol, port });
    let places: BTreeSet<Listen> = pod.spec().addresses.iter().flat_map(listen).collect();
    servers.listen(pod.network(), &places).expect("listen")
}

fn every_pair<'a>(pods: &'a [Pod], port: u16) -> Vec<Probe<'a>> {
    let mut probes = Vec::new();
    for from in pods {
        for to in pods {
            for (source, destination) in from.spec().addresses.iter().zip(&to.spec().addresses) {
                for protocol in PROTOCOLS {
                    let (source, destination) = (*source, *destination);
                    probes.push(Probe { from: from.network(), source, destination, protocol, port });
                }
            }
        }
    }
    probes
}

fn assert_all(probes: &[Probe<'_>], outcomes: &[Outcome], expected: &Outcome) {
    let others: Vec<String> = probes
        .iter()
        .zip(outcomes)
        .filter(|(_, outcome)| *outcome != expected)
        .map(|(probe, outcome)| {
            format!("{} -> {} {} {}: {outcome:?}", probe.source, probe.destination, probe.protocol.name(), probe.port)
        })
        .collect();
    assert!(others.is_empty(), "{} of {}: {:#?}", others.len(), probes.len(), &others[..others.len().min(10)]);
}

#[test]
fn sixty_pods_connect_in_every_protocol_and_family() {
    let begin = Instant::now();
    let node = Node::new(NodeOptions::default()).expect("node");
    let servers = Servers::start().expect("servers");
    let pods = pods(&node, 60);
    let _served: Vec<Served> = pods.iter().map(|pod| serve(&servers, pod, 8080)).collect();
    println!("set up in {:?}", begin.elapsed());
    let probes = every_pair(&pods, 8080);
    let begin = Instant::now();
    let outcomes = probe::run(&probes).expect("probes");
    println!("{} cells in {:?}", probes.len(), begin.elapsed());
    assert_all(&probes, &outcomes, &Outcome::Allow);
}

#[test]
fn nobody_listening_is_an_error_and_silence_a_denial() {
    let node = Node::new(NodeOptions::default()).expect("node");
    let servers = Servers::start().expect("servers");
    let pods = pods(&node, 2);
    let [client, server] = &pods[..] else { panic!("two pods") };
    let probe = |destination: IpAddr, protocol| {
        let source = client.spec().addresses[usize::from(destination.is_ipv6())];
        Probe { from: client.network(), source, destination, protocol, port: 9 }
    };
    // Nothing of the kernel's is behind raw SCTP: whoever serves one port of an address refuses the others.
    let other_port = serve(&servers, server, 10);
    let closed: Vec<Probe<'_>> = server
        .spec()
        .addresses
        .iter()
        .flat_map(|address| PROTOCOLS.map(|protocol| probe(*address, protocol)))
        .collect();
    for (probe, outcome) in closed.iter().zip(probe::run(&closed).expect("probes")) {
        assert!(matches!(outcome, Outcome::Error(_)), "{probe:?}: {outcome:?}");
    }
    let served = serve(&servers, server, 9);
    assert_all(&closed, &probe::run(&closed).expect("probes"), &Outcome::Allow);
    let mut unplug = Command::new("ip");
    unplug.args(["link", "set", server.host_interface(), "down"]);
    node.place().prepare(&mut unplug).expect("place");
    // The client still knows its hardware address, and sends into the void.
    assert!(unplug.status().expect("ip").success());
    for (probe, outcome) in closed.iter().zip(probe::run(&closed).expect("probes")) {
        assert_eq!(outcome, Outcome::Deny, "{probe:?}");
    }
    drop((served, other_port));
}

fn manifests() -> Vec<serde_json::Value> {
    let pod = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": name, "labels": { "app": name } },
            "spec": { "containers": [{ "name": "main", "ports": [
                { "containerPort": 80 }, { "containerPort": 53, "protocol": "UDP" }, { "containerPort": 9, "protocol": "SCTP" },
            ] }] },
        })
    };
    let mut on_node = pod("on-node");
    on_node["spec"]["hostNetwork"] = json!(true);
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "shop", "name": "p" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "a" } },
            "egress": [{ "to": [{ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["192.0.2.0/24"] } }] }],
        },
    });
    vec![pod("a"), pod("b"), on_node, policy]
}

fn without_an_agent(families: Families) -> Sandbox {
    let options = Options { families, agent: None, agent_arguments: Vec::new(), recorded: true };
    Sandbox::start(options).expect("sandbox")
}

#[test]
fn without_an_agent_a_sandbox_connects_everything_and_its_matrix_says_what_should_not() {
    for (families, number) in [(Families::Ipv4, 51), (Families::Ipv6, 27), (Families::Dual, 78)] {
        let mut sandbox = without_an_agent(families);
        assert_eq!(sandbox.arrange(&manifests()).expect("arrange"), []);
        sandbox.publish(Policies::Withheld).expect("publish");
        // Three ends on three ports, and in IPv4 two hosts: as sources on the same, as destinations on one port.
        assert_eq!(sandbox.baseline().expect("baseline"), number);
        let matrix = sandbox.matrix().expect("matrix");
        for answered in &matrix {
            assert_eq!(answered.observed, Outcome::Allow, "{answered:?}");
            assert_eq!(answered.agrees(), answered.expected, "{answered:?}");
        }
        assert!(matrix.iter().any(|answered| !answered.expected));
    }
}

#[test]
fn a_sandbox_follows_its_manifests() {
    let mut sandbox = without_an_agent(Families::Dual);
    let mut objects = manifests();
    sandbox.arrange(&objects).expect("arrange");
    sandbox.publish(Policies::InForce).expect("publish");
    let before = sandbox.cells();
    // One pod goes, one comes and gets no address of another, one changes its ports.
    objects[1]["metadata"]["name"] = json!("c");
    objects[0]["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 81 }]);
    sandbox.arrange(&objects).expect("arrange");
    sandbox.publish(Policies::InForce).expect("publish");
    let after = sandbox.cells();
    assert!(before.iter().any(|cell| cell.to.to_string() == "shop/b"));
    assert!(after.iter().all(|cell| cell.to.to_string() != "shop/b" && cell.from.to_string() != "shop/b"));
    assert!(after.iter().any(|cell| cell.to.to_string() == "shop/c"));
    let of_a: BTreeSet<u16> =
        after.iter().filter(|cell| cell.to.to_string() == "shop/a").map(|cell| cell.port.number).collect();
    assert_eq!(of_a, [81].into());
    sandbox.baseline().expect("baseline");
}
