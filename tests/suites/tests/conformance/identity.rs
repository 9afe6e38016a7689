//! Who is who: the own node and others, host-network pods, pods that end, are replaced, or have an address that was
//! another's, and labels that change (W1 to W12 of docs/semantics.md).

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::process::Command;

use anyhow::{Context, Result};
use netpol_policy::model::{ObjectName, Protocol};
use netpol_suites::{agent_binary, cells};
use netpol_testbed::namespace::Namespace;
use netpol_testbed::node::BRIDGE;
use netpol_testbed::probe::{self, Outcome, Probe};
use netpol_testbed::sandbox::cells::End;
use netpol_testbed::sandbox::{Families, Options, Policies, Sandbox};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

/// Its name in rows of the conformance table.
const SUITE: &str = "who is who";

/// The port that all pods serve, in TCP, UDP and SCTP.
const PORT: u16 = 80;

fn pod(name: &str, role: &str) -> Value {
    let ports = ["TCP", "UDP", "SCTP"].map(|protocol| json!({ "containerPort": PORT, "protocol": protocol }));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "shop", "name": name, "labels": { "role": role } },
        "spec": { "containers": [{ "name": "main", "ports": ports }] },
    })
}

fn policy(spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "shop", "name": "p" }, "spec": spec,
    })
}

/// To servers from clients only.
fn from_clients() -> Value {
    let role = |role: &str| json!({ "matchLabels": { "role": role } });
    policy(&json!({ "podSelector": role("server"), "ingress": [{ "from": [{ "podSelector": role("client") }] }] }))
}

fn blocks(addresses: &[IpAddr]) -> Vec<Value> {
    let block = |address: &IpAddr| {
        let length = if address.is_ipv4() { 32 } else { 128 };
        json!({ "ipBlock": { "cidr": format!("{address}/{length}") } })
    };
    addresses.iter().map(block).collect()
}

struct Shop(Sandbox);

impl Shop {
    fn open(manifests: &[Value]) -> Self {
        let options = Options {
            families: Families::Dual,
            agent: Some(agent_binary()),
            agent_arguments: Vec::new(),
            recorded: true,
        };
        let mut shop = Self(Sandbox::start(options).expect("sandbox"));
        shop.set(manifests);
        shop
    }

    /// Puts manifests in force. Pods that are no more have gone when this returns.
    fn set(&mut self, manifests: &[Value]) {
        assert_eq!(self.0.arrange(manifests).expect("arrange"), []);
        self.0.publish(Policies::InForce).expect("publish");
    }

    fn addresses(&self, pod: &str) -> Vec<IpAddr> {
        self.0.cluster().pods[&ObjectName::new("shop", pod)].addresses.clone()
    }

    /// Connections from a namespace's addresses to others, where the families agree, over all protocols; all have the
    /// same outcome.
    #[track_caller]
    fn expect_from(&self, from: &Namespace, sources: &[IpAddr], destinations: &[IpAddr], expected: &Outcome) {
        let mut probes = Vec::new();
        for source in sources {
            for destination in destinations.iter().filter(|destination| destination.is_ipv4() == source.is_ipv4()) {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                    probes.push(Probe { from, source: *source, destination: *destination, protocol, port: PORT });
                }
            }
        }
        assert!(!probes.is_empty(), "no pair of addresses of one family");
        let outcomes = probe::run(&probes).expect("probe");
        let told = |(probe, outcome): &(&Probe<'_>, &Outcome)| {
            format!("{} to {} over {}: {outcome:?}", probe.source, probe.destination, probe.protocol.name())
        };
        let wrong: Vec<_> = probes.iter().zip(&outcomes).filter(|(_, outcome)| *outcome != expected).collect();
        cells::report(SUITE, "dual", "-", probes.len(), wrong.len()).expect("the file for rows");
        assert!(wrong.is_empty(), "expected {expected:?}: {:#?}", wrong.iter().map(told).collect::<Vec<_>>());
    }

    /// Every cell of these two pods.
    #[track_caller]
    fn expect(&self, from: &str, to: &str, expected: &Outcome) {
        let end = |name: &str| End::Pod(ObjectName::new("shop", name));
        let matrix = self.0.matrix().expect("matrix");
        let cells: Vec<_> = matrix
            .iter()
            .filter(|answered| (&answered.cell.from, &answered.cell.to) == (&end(from), &end(to)))
            .collect();
        assert!(!cells.is_empty(), "there are no cells from {from} to {to}");
        let others = cells.iter().filter(|answered| answered.observed != *expected).count();
        let wrong: Vec<_> = matrix.iter().filter(|answered| !answered.agrees()).collect();
        cells::report(SUITE, "dual", "-", matrix.len(), wrong.len().max(others)).expect("the file for rows");
        for answered in cells {
            assert_eq!(&answered.observed, expected, "{answered:?}");
        }
        assert!(wrong.is_empty(), "the oracle disagrees: {wrong:#?}");
    }

    /// Connects from the link-local address of the pod bridge.
    fn connect_from_the_link(&self, to: Ipv6Addr) -> Result<()> {
        self.0.node().place().run(|| {
            // `fe80000000000000000000fffe000001 02 40 20 80 cni0`: address, index, length, scope (20 is the link), flags.
            let table = "/proc/thread-self/net/if_inet6";
            let text = std::fs::read_to_string(table).context(table)?;
            let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let row = words.filter(|words| words.get(3) == Some(&"20")).find(|words| words.last() == Some(&BRIDGE));
            let row = row.with_context(|| format!("no address of the link on {BRIDGE}: {text}"))?;
            let own = Ipv6Addr::from(u128::from_str_radix(row[0], 16)?);
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None).context("socket")?;
            let own = SocketAddrV6::new(own, 0, 0, u32::from_str_radix(row[1], 16)?);
            socket.bind(&own.into()).with_context(|| format!("bind {own}"))?;
            let to = SocketAddrV6::new(to, PORT, 0, 0);
            socket.connect_timeout(&to.into(), probe::TIMEOUT).with_context(|| format!("{own} to {to}"))
        })
    }

    /// Gives the node more addresses: a second uplink's, and some that are on no link.
    fn add_node_addresses(&self) -> Vec<IpAddr> {
        let lines = [
            // A device that needs nothing at its other end.
            "link add eth1 type bridge",
            "link set eth1 up",
            "addr add 198.18.77.2/24 dev eth1",
            "addr add 2001:db8:77::2/64 dev eth1 nodad",
            "addr add 198.18.78.1/32 dev lo",
            "addr add 2001:db8:78::1/128 dev lo nodad",
        ];
        for line in lines {
            let mut command = Command::new("ip");
            command.args(line.split(' '));
            self.0.node().place().prepare(&mut command).expect("the node");
            assert!(command.status().expect("ip").success(), "ip {line}");
        }
        ["198.18.77.2", "2001:db8:77::2", "198.18.78.1", "2001:db8:78::1"]
            .map(|address| address.parse().expect("address"))
            .to_vec()
    }
}

#[test]
fn w2_the_own_node_gets_in_from_each_of_its_addresses_and_another_node_does_not() {
    let other: Vec<IpAddr> = ["203.0.113.7", "2001:db8:7::7"].map(|address| address.parse().expect("address")).into();
    let internal = |address: &IpAddr| json!({ "type": "InternalIP", "address": address });
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "other" },
        "status": { "addresses": other.iter().map(internal).collect::<Vec<_>>() },
    });
    let deny = policy(&json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }));
    let mut manifests = vec![pod("server", "server"), node, deny];
    let mut shop = Shop::open(&manifests);
    let own = [shop.0.node().addresses(), shop.0.node().gateways(), shop.add_node_addresses()].concat();
    assert_eq!(own.len(), 8, "uplink, pod bridge, a second link and the loopback, in both families");
    let server = shop.addresses("server");
    shop.expect_from(shop.0.node().network(), &own, &server, &Outcome::Allow);
    for address in &server {
        if let IpAddr::V6(address) = address {
            let outcome = shop.connect_from_the_link(*address);
            cells::report(SUITE, "ipv6", "-", 1, usize::from(outcome.is_err())).expect("the file for rows");
            outcome.expect("a connection from the node's link-local address");
        }
    }
    shop.0.node().outside().add_hosts(&other).expect("another node");
    shop.expect_from(shop.0.node().outside().network(), &other, &server, &Outcome::Deny);
    // It is an address as others are: a block lets it in, and the own node is in without any.
    manifests[2] = policy(&json!({ "podSelector": {}, "ingress": [{ "from": blocks(&other) }] }));
    shop.set(&manifests);
    shop.expect_from(shop.0.node().outside().network(), &other, &server, &Outcome::Allow);
    shop.expect_from(shop.0.node().network(), &own, &server, &Outcome::Allow);
}

#[test]
fn w1_w3_egress_to_the_own_node_is_policed_by_address_and_never_by_label() {
    let mut on_node = pod("on-node", "server");
    on_node["spec"]["hostNetwork"] = json!(true);
    let egress = |to: Vec<Value>| {
        let client = json!({ "matchLabels": { "role": "client" } });
        policy(&json!({ "podSelector": client, "policyTypes": ["Egress"], "egress": [{ "to": to }] }))
    };
    let by_label = vec![json!({ "podSelector": {}, "namespaceSelector": {} })];
    let mut manifests = vec![pod("client", "client"), pod("server", "server"), on_node, egress(by_label)];
    let mut shop = Shop::open(&manifests);
    let node = shop.0.node().addresses();
    assert_eq!(shop.addresses("on-node"), node, "a host-network pod has the node's addresses");
    shop.expect("client", "server", &Outcome::Allow);
    shop.expect("client", "on-node", &Outcome::Deny);
    shop.expect("server", "on-node", &Outcome::Allow);
    manifests[3] = egress(blocks(&node));
    shop.set(&manifests);
    shop.expect("client", "on-node", &Outcome::Allow);
    shop.expect("client", "server", &Outcome::Deny);
}

#[test]
fn w1_a_host_network_pod_is_no_subject() {
    let mut on_node = pod("on-node", "server");
    on_node["spec"]["hostNetwork"] = json!(true);
    let shop = Shop::open(&[
        pod("client", "client"),
        on_node,
        policy(
            &json!({ "podSelector": { "matchLabels": { "role": "server" } }, "policyTypes": ["Ingress", "Egress"] }),
        ),
    ]);
    shop.expect("client", "on-node", &Outcome::Allow);
    shop.expect("on-node", "client", &Outcome::Allow);
}

#[test]
fn w6_w7_a_terminating_pod_has_its_address_and_a_finished_one_has_not() {
    let mut manifests = vec![from_clients(), pod("server", "server"), pod("client", "client"), pod("stranger", "none")];
    let mut shop = Shop::open(&manifests);
    shop.expect("client", "server", &Outcome::Allow);
    shop.expect("stranger", "server", &Outcome::Deny);
    // Within their grace period they run on, as subject and as peer.
    for pod in &mut manifests[1..3] {
        pod["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    }
    shop.set(&manifests);
    shop.expect("client", "server", &Outcome::Allow);
    shop.expect("stranger", "server", &Outcome::Deny);
    // The client has ended, its status still names its address, and another pod has that now.
    let addresses: Vec<Value> = shop.addresses("client").iter().map(|address| json!({ "ip": address })).collect();
    manifests[2]["status"] = json!({ "phase": "Succeeded", "podIPs": addresses });
    let mut heir = pod("heir", "none");
    heir["status"] = json!({ "podIPs": addresses });
    manifests.push(heir);
    shop.set(&manifests);
    shop.expect("heir", "server", &Outcome::Deny);
    // The same of a subject: who has the address of a server that failed is no server.
    let addresses: Vec<Value> = shop.addresses("server").iter().map(|address| json!({ "ip": address })).collect();
    manifests[1]["status"] = json!({ "phase": "Failed", "podIPs": addresses });
    let mut second = pod("second-heir", "none");
    second["status"] = json!({ "podIPs": addresses });
    manifests.push(second);
    shop.set(&manifests);
    shop.expect("stranger", "second-heir", &Outcome::Allow);
}

#[test]
fn w9_a_pod_that_replaces_another_of_its_name_and_address_is_judged_as_itself() {
    let mut manifests = vec![from_clients(), pod("server", "server"), pod("client", "client"), pod("stranger", "none")];
    let mut shop = Shop::open(&manifests);
    shop.expect("client", "server", &Outcome::Allow);
    let addresses: Vec<Value> = shop.addresses("client").iter().map(|address| json!({ "ip": address })).collect();
    // As a StatefulSet makes it: name and here also address are the same, the sandbox and the labels are not.
    manifests[2] = pod("client", "none");
    manifests[2]["metadata"]["uid"] = json!("0d7a9a6e-52a5-4b34-8a6b-000000000001");
    manifests[2]["status"] = json!({ "podIPs": addresses });
    shop.set(&manifests);
    shop.expect("client", "server", &Outcome::Deny);
    manifests[2] = pod("client", "client");
    manifests[2]["metadata"]["uid"] = json!("0d7a9a6e-52a5-4b34-8a6b-000000000002");
    manifests[2]["status"] = json!({ "podIPs": addresses });
    shop.set(&manifests);
    shop.expect("client", "server", &Outcome::Allow);
    // And a server that comes back is isolated from its first packet that anybody can observe.
    manifests[1]["metadata"]["uid"] = json!("0d7a9a6e-52a5-4b34-8a6b-000000000003");
    shop.set(&manifests);
    shop.expect("stranger", "server", &Outcome::Deny);
    shop.expect("client", "server", &Outcome::Allow);
}

#[test]
fn w10_every_change_of_labels_counts_from_the_moment_it_is_in_force() {
    let team = |team: &str| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "labels": { "team": team } } });
    let from_ours = policy(&json!({
        "podSelector": { "matchLabels": { "role": "server" } },
        "ingress": [{ "from": [{
            "namespaceSelector": { "matchLabels": { "team": "ours" } },
            "podSelector": { "matchLabels": { "role": "client" } },
        }] }],
    }));
    let mut manifests = vec![from_ours, team("ours"), pod("server", "server"), pod("client", "client")];
    let mut shop = Shop::open(&manifests);
    for _ in 0..3 {
        for (who, value, outcome) in [
            (1, team("theirs"), Outcome::Deny),
            (1, team("ours"), Outcome::Allow),
            (3, pod("client", "none"), Outcome::Deny),
            (2, pod("server", "none"), Outcome::Allow),
            (2, pod("server", "server"), Outcome::Deny),
            (3, pod("client", "client"), Outcome::Allow),
        ] {
            manifests[who] = value;
            shop.set(&manifests);
            shop.expect("client", "server", &outcome);
        }
    }
}
