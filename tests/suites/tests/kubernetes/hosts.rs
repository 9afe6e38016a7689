//! Packets from and to the nodes themselves: pods in the host's network, which are node addresses and nothing else to
//! policies, and node ports that are entered through another node, of which a policy sees what the proxy has left.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use netpol_testbed::namespace::Namespace;
use netpol_testbed::probe::Outcome;
use netpol_testbed::traffic::Flow;
use serde_json::{Value, json};

use crate::cluster::{CONTROL_PLANE, wait};
use crate::flows::{Pair, run_on};
use crate::site::{COUNTING, Pod, Site, Wanted, pod, shared, try_both};

const NODE_PORT: u16 = 30_080;
const COUNTING_NODE_PORT: u16 = 30_099;

fn in_host_network<'a>(name: &'a str, node: &'a str) -> Wanted<'a> {
    Wanted { name, node, patch: json!({ "spec": { "hostNetwork": true } }) }
}

/// All addresses of a node, as peers of a policy: which of them a packet bears is a matter of routes and masquerade.
fn blocks(site: &Site, node: &str) -> Vec<Value> {
    let addresses = site.cluster.machine(node).place().run(|| {
        let output = std::process::Command::new("ip").args(["-json", "address"]).output()?;
        Ok(serde_json::from_slice::<Value>(&output.stdout)?)
    });
    let mut blocks = BTreeSet::new();
    for link in addresses.unwrap().as_array().unwrap() {
        for address in link["addr_info"].as_array().unwrap().iter().filter(|address| address["scope"] == "global") {
            let length = if address["family"] == "inet" { 32 } else { 128 };
            let _new = blocks.insert(format!("{}/{length}", address["local"].as_str().unwrap()));
        }
    }
    blocks.into_iter().map(|block| json!({ "ipBlock": { "cidr": block } })).collect()
}

fn ingress(from: &Value) -> Value {
    json!({
        "podSelector": { "matchLabels": { "app": "server" } }, "policyTypes": ["Ingress"],
        "ingress": [{ "from": from }],
    })
}

#[test]
fn a_client_in_the_host_network_is_its_nodes_address_and_on_the_pods_own_node_always_allowed() {
    let event = "a client in the host network";
    let mut site = shared();
    let space = site.namespace("hostclient");
    let [server, far, near] =
        space.pods([pod("server", "node1"), in_host_network("far", "node2"), in_host_network("near", "node1")]);
    let by_label = json!([{ "podSelector": {} }, { "podSelector": { "matchLabels": { "app": "far" } } }]);
    let since = space.policy("server", &ingress(&by_label));
    let denied = Pair::datagrams(&far, &server);
    let own = Pair::open(&near, &server);
    run_on();
    denied.end();
    denied.none_arrived(&format!("{event}, selected by label"), since);
    let since = space.policy("server", &ingress(&json!(blocks(space.site, "node2"))));
    let allowed = Pair::open(&far, &server);
    run_on();
    allowed.connections_live(event);
    allowed.end();
    allowed.all_answered(&format!("{event}, by its node's addresses"), since);
    let since = space.policy("server", &ingress(&json!(blocks(space.site, "node3"))));
    let denied = Pair::datagrams(&far, &server);
    run_on();
    denied.end();
    denied.none_arrived(&format!("{event}, by another node's addresses"), since);
    own.connections_live(event);
    own.end();
    own.all_answered(&format!("{event}, on the pod's own node"), own.started());
}

#[test]
fn a_server_in_the_host_network_is_no_subject_and_for_egress_its_nodes_address() {
    let event = "a server in the host network";
    let mut site = shared();
    let space = site.namespace("hostserver");
    let [client, free, server] =
        space.pods([pod("client", "node1"), pod("free", "node1"), in_host_network("server", "node2")]);
    let _when = space.policy("deny", &json!({ "podSelector": {}, "policyTypes": ["Ingress"] }));
    let egress = |to: Value| {
        json!({
            "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Egress"], "egress": [{ "to": to }],
        })
    };
    let since = space.policy("client", &egress(json!([{ "podSelector": { "matchLabels": { "app": "server" } } }])));
    let denied = Pair::datagrams(&client, &server);
    let unconcerned = Pair::open(&free, &server);
    run_on();
    denied.end();
    denied.none_arrived(&format!("{event}, selected by label"), since);
    let since = space.policy("client", &egress(json!(blocks(space.site, "node2"))));
    let allowed = Pair::open(&client, &server);
    run_on();
    allowed.connections_live(event);
    allowed.end();
    allowed.all_answered(&format!("{event}, by its node's addresses"), since);
    unconcerned.connections_live(event);
    unconcerned.end();
    unconcerned.all_answered(&format!("{event}, from a pod whose egress is free"), unconcerned.started());
}

/// A host beyond the nodes, which comes in by node ports.
struct Outsider {
    network: Namespace,
    addresses: Vec<IpAddr>,
}

impl Outsider {
    /// Whether the node port of `entry` works, by each family and protocol; one answer for all.
    fn expect(&self, entry: &[IpAddr], expected: &Outcome) {
        for (source, destination) in self.addresses.iter().zip(entry) {
            for (protocol, outcome) in try_both(&self.network, *source, *destination, NODE_PORT) {
                assert_eq!(outcome, *expected, "{destination}, {protocol:?}");
            }
        }
    }

    /// Datagrams to the node port of `entry`: how many were sent, and what came of them.
    fn count(&self, entry: &[IpAddr], server: &Pod, event: &str, allowed: bool) {
        let since = Instant::now();
        let mut flows = Vec::new();
        for (source, destination) in self.addresses.iter().zip(entry) {
            let destination = SocketAddr::new(*destination, COUNTING_NODE_PORT);
            flows.push(Flow::start(&self.network, *source, destination).unwrap());
        }
        run_on();
        for (flow, echo) in flows.iter().zip(&server.echoes) {
            flow.end();
            let tally = flow.tally(&[echo], since, Instant::now());
            let (lost, leaked) = if allowed { (tally.lost(), 0) } else { (0, tally.arrived) };
            eprintln!("node port: {event}: {} sent, {lost} lost, {leaked} leaked", tally.sent);
            assert!(tally.sent > 50 && lost == 0 && leaked == 0, "{event}: {tally:?}");
        }
    }
}

#[test]
fn a_node_port_is_judged_by_the_address_that_the_masquerade_of_the_entered_node_leaves() {
    let mut site = shared();
    let space = site.namespace("nodeport");
    let [server] = space.pods([pod("server", "node1")]);
    let port = |name: &str, protocol: &str, target: u16, node: u16| json!({ "name": name, "protocol": protocol, "port": target, "targetPort": target, "nodePort": node });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "server", "namespace": space.name },
        "spec": {
            "type": "NodePort", "externalTrafficPolicy": "Cluster", "ipFamilyPolicy": "RequireDualStack",
            "selector": { "app": "server" },
            "ports": [
                port("tcp", "TCP", crate::site::PORT, NODE_PORT), port("udp", "UDP", crate::site::PORT, NODE_PORT),
                port("counting", "UDP", COUNTING, COUNTING_NODE_PORT),
            ],
        },
    });
    space.site.client.apply(&service.to_string()).unwrap();
    let addresses = |node: &str| -> Vec<IpAddr> {
        let path = format!("/api/v1/nodes/{node}");
        let object = space.site.client.get(&path).unwrap();
        let all = object["status"]["addresses"].as_array().unwrap().iter();
        all.filter(|one| one["type"] == "InternalIP")
            .map(|one| one["address"].as_str().unwrap().parse().unwrap())
            .collect()
    };
    let (own, other) = (addresses("node1"), addresses("node2"));
    let network = space.site.cluster.machine(CONTROL_PLANE).network();
    let outsider = Outsider { network, addresses: vec!["198.18.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()] };
    wait("the proxies know the service", || {
        for (source, destination) in
            outsider.addresses.iter().zip(own.iter().zip(&other)).flat_map(|(s, (a, b))| [(s, a), (s, b)])
        {
            for (protocol, outcome) in try_both(&outsider.network, *source, *destination, NODE_PORT) {
                anyhow::ensure!(outcome == Outcome::Allow, "{destination}, {protocol:?}: {outcome:?}");
            }
        }
        Ok(())
    });
    let hosts: Vec<Value> =
        ["198.18.0.1/32", "2001:db8::1/128"].map(|block| json!({ "ipBlock": { "cidr": block } })).into();
    let cases = [
        ("the client's own address is allowed", hosts, false, false),
        ("the other node's addresses are allowed", blocks(space.site, "node2"), false, true),
        ("the pod's own node's addresses are allowed", blocks(space.site, "node1"), true, false),
    ];
    for (what, from, by_own, by_other) in cases {
        let _when = space.policy("server", &ingress(&json!(from)));
        for (entry, through, allowed) in [(&own, "the pod's own node", by_own), (&other, "another node", by_other)] {
            outsider.expect(entry, if allowed { &Outcome::Allow } else { &Outcome::Deny });
            outsider.count(entry, &server, &format!("{what}, entered through {through}"), allowed);
        }
    }
}
