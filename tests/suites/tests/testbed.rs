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
use netpol_testbed::servers::{Listen, Served, Servers};

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
