//! Connections from outside of the cluster. What a policy for ingress sees of them is the source that the proxy leaves:
//! the client's own with `externalTrafficPolicy: Local`, an address of the node with `Cluster`.
//!
//! One backend is on the node, and the policy of this node's agent is about that one; the other is on another node, whose
//! agent has the say there. So the connections that go on to it show that nothing of the node's own stops them.

use std::net::{IpAddr, SocketAddr};

use netpol_policy::model::Protocol;
use serde_json::{Value, json};

use super::service::{Exposed, PORT, Service, alone};
use super::town::{MANY, PORTS, STRANGER, Town};

/// Addresses outside of node and cluster, IPv4 first, that the router sends to the node.
pub(crate) const EXTERNAL: [&str; 2] = ["203.0.113.80", "2001:db8:113::80"];

/// The same, as a load balancer announces them.
pub(crate) const BALANCED: [&str; 2] = ["203.0.113.81", "2001:db8:113::81"];

/// Ingress of blue pods from these blocks only.
fn ingress_from(blocks: &[String]) -> Value {
    let from: Vec<Value> = blocks.iter().map(|block| json!({ "ipBlock": { "cidr": block } })).collect();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "blue" },
        "spec": {
            "podSelector": { "matchLabels": { "color": "blue", "app": "web" } },
            "policyTypes": ["Ingress"], "ingress": [{ "from": from }],
        },
    })
}

/// Makes a Service of `backends` for each traffic policy, and tries what `targets` says from outside, under a policy that
/// names the client and under one that names the node's addresses on the pod bridge: web-1 is reached from there where
/// the node masquerades.
fn judge(
    town: &Town,
    spec: &Value,
    backends: &[(&str, u16)],
    targets: impl Fn(&Exposed) -> Vec<SocketAddr>,
    prepare: impl Fn(&Service<'_>),
) {
    let strangers = STRANGER.map(|address| address.parse::<IpAddr>().unwrap());
    let outside = town.node().outside().network();
    let client: Vec<String> = strangers.iter().map(alone).collect();
    let own: Vec<String> = town.node().gateways().iter().map(alone).collect();
    for (policy, allowed, blocks) in [
        // The source is kept, and the policy names it.
        ("Local", true, &client),
        ("Local", false, &own),
        // The source is an address of the node, and not the node itself.
        ("Cluster", false, &client),
        ("Cluster", true, &own),
    ] {
        let mut spec = spec.clone();
        spec["externalTrafficPolicy"] = json!(policy);
        let service = Service::new("web", Protocol::Tcp, backends).with(spec);
        let exposed = service.expose(town);
        prepare(&service);
        town.apply(&ingress_from(blocks));
        for to in targets(&exposed) {
            let family = usize::from(to.is_ipv6());
            let here = SocketAddr::new(town.address("web-1", family), PORTS[0]);
            let is_answered = |backend: SocketAddr| backend != here || allowed;
            let tally = town.tally_from(outside, strangers[family], to, Protocol::Tcp, MANY).unwrap();
            town.report(to.ip(), MANY, tally.wrong(is_answered) + tally.untracked);
            let what = format!("{policy}, {blocks:?}, {to}: {tally:?}\n{}", town.tail());
            assert_eq!((tally.wrong(is_answered), tally.untracked), (0, 0), "{what}");
            let mut reached = service.reached(town, family);
            // With `Local`, nothing from outside is sent to another node.
            reached.retain(|backend| policy == "Cluster" || *backend == here);
            let tried: Vec<_> = tally.answered.keys().chain(tally.silent.keys()).copied().collect();
            assert_eq!(tried.len(), reached.len(), "{what}");
            assert!(tried.iter().all(|backend| reached.contains(backend)), "{what}");
        }
        town.clear();
    }
}

pub(crate) fn a_node_port_from_outside_shows_the_policy_what_the_proxy_left(town: &mut Town) {
    let nodes = town.node().addresses();
    for backends in [&[("web-1", PORTS[0])][..], &[("web-1", PORTS[0]), ("web-3", PORTS[0])]] {
        let targets = |exposed: &Exposed| {
            nodes.iter().map(|address| SocketAddr::new(*address, exposed.node_port.unwrap())).collect()
        };
        judge(town, &json!({ "type": "NodePort" }), backends, targets, |_| {});
    }
}

/// Says what a controller for load balancers would say of a Service.
pub(crate) fn balance(town: &Town, service: &Service<'_>) {
    let ingress: Vec<Value> = BALANCED.iter().map(|ip| json!({ "ip": ip, "ipMode": "VIP" })).collect();
    let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } }).to_string();
    let patch = ["patch", "service", service.name, "--namespace", super::town::NAMESPACE, "--subresource=status"];
    let _patched = town.admin().kubectl(&[&patch[..], &["--type=merge", "--patch", &status]].concat()).unwrap();
    for to in addresses() {
        town.wait_for_proxy(to, service.protocol, &service.reached(town, usize::from(to.is_ipv6())));
    }
}

/// Where the Service of [`balance`] is reached beside its ClusterIPs.
pub(crate) fn addresses() -> Vec<SocketAddr> {
    EXTERNAL.iter().chain(&BALANCED).map(|address| SocketAddr::new(address.parse().unwrap(), PORT)).collect()
}

pub(crate) fn external_and_load_balancer_addresses_from_outside_show_the_policy_what_the_proxy_left(town: &mut Town) {
    town.route_to_node(&addresses().iter().map(SocketAddr::ip).collect::<Vec<_>>());
    let spec = json!({ "type": "LoadBalancer", "externalIPs": EXTERNAL });
    let backends = [("web-1", PORTS[0]), ("web-3", PORTS[0])];
    judge(town, &spec, &backends, |_| addresses(), |service| balance(town, service));
}
