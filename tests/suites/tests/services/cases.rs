//! What must be true of Services that stay as they are, for connections from pods; one function for each case.

use std::net::{IpAddr, SocketAddr};

use anyhow::bail;
use netpol_policy::model::Protocol;
use netpol_suites::backends::{self, Tally};
use netpol_suites::kernel::{self, Feature};
use netpol_testbed::probe::Outcome;
use serde_json::{Value, json};

use super::outside::{EXTERNAL, addresses, balance};
use super::service::{Exposed, PORT, Service, alone, anywhere, egress, slice, to_blue, to_color};
use super::town::{BACKENDS, MANY, PORTS, STRANGER, Town};

const FAMILIES: [usize; 2] = [0, 1];

/// All four, at one port.
pub(crate) fn all_at(port: u16) -> Vec<(&'static str, u16)> {
    BACKENDS.map(|pod| (pod, port)).to_vec()
}

pub(crate) fn is_blue(town: &Town, backend: SocketAddr) -> bool {
    ["web-1", "web-3", "host"]
        .iter()
        .any(|pod| FAMILIES.iter().any(|family| town.address(pod, *family) == backend.ip()))
}

/// Opens many connections from `client`, and fails unless exactly those to allowed backends are answered, and every
/// backend is among those that were picked.
pub(crate) fn judge(town: &Town, to: SocketAddr, service: &Service<'_>, allowed: impl Fn(SocketAddr) -> bool) -> Tally {
    let tally = town.tally("client", to, service.protocol, MANY).unwrap();
    town.report(to.ip(), MANY, tally.wrong(&allowed) + tally.untracked);
    let wrong = |backends: Vec<&SocketAddr>| format!("{backends:?} at {to}: {tally:?}\n{}", town.tail());
    let leaked: Vec<_> = tally.answered.keys().filter(|backend| !allowed(**backend)).collect();
    assert!(leaked.is_empty(), "answered though denied: {}", wrong(leaked));
    let lost: Vec<_> = tally.silent.keys().filter(|backend| allowed(**backend)).collect();
    assert!(lost.is_empty(), "silent though allowed: {}", wrong(lost));
    assert_eq!(tally.untracked, 0, "{tally:?}");
    let reached: std::collections::BTreeSet<_> = tally.answered.keys().chain(tally.silent.keys()).copied().collect();
    let family = usize::from(to.is_ipv6());
    if service.spec.pointer("/sessionAffinity").is_none() {
        assert_eq!(reached, service.reached(town, family), "{to}");
    }
    tally
}

/// Fails unless this many connections of [`MANY`] were answered, and the others were not.
pub(crate) fn expect(town: &Town, to: SocketAddr, tally: &Tally, answered: usize, what: &str) {
    town.report(to.ip(), MANY, tally.answered().abs_diff(answered));
    assert_eq!((tally.answered(), tally.silent()), (answered, MANY - answered), "{what} {to}: {tally:?}");
}

/// Fails unless one exchange has this outcome.
fn expect_one(town: &Town, to: IpAddr, observed: &Outcome, expected: &Outcome, what: &str) {
    town.report(to, 1, usize::from(observed != expected));
    assert_eq!(observed, expected, "{what}\n{}", town.tail());
}

/// At each ClusterIP.
pub(crate) fn judge_all(town: &Town, exposed: &Exposed, service: &Service<'_>, allowed: impl Fn(SocketAddr) -> bool) {
    for address in &exposed.addresses {
        let _tally = judge(town, SocketAddr::new(*address, PORT), service, &allowed);
    }
}

fn cluster_ip(town: &Town, protocol: Protocol) {
    let service = Service::new("web", protocol, &all_at(PORTS[0]));
    let exposed = service.expose(town);
    judge_all(town, &exposed, &service, |_| true);
    town.apply(&egress(&to_blue(&json!(PORTS[0]), protocol)));
    judge_all(town, &exposed, &service, |backend| is_blue(town, backend));
    // The Service's own port is nothing that a policy knows of.
    town.apply(&egress(&to_blue(&json!(PORT), protocol)));
    judge_all(town, &exposed, &service, |_| false);
    town.apply(&egress(&json!([{ "to": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }])));
    judge_all(town, &exposed, &service, |_| true);
}

pub(crate) fn a_cluster_ip_is_judged_by_the_backend_that_the_proxy_picks(town: &mut Town) {
    cluster_ip(town, Protocol::Tcp);
}

pub(crate) fn datagrams_to_a_cluster_ip_are_judged_like_connections(town: &mut Town) {
    cluster_ip(town, Protocol::Udp);
}

/// Where the kernel has no sockets for it, INIT and INIT ACK by hand: what is tracked, rewritten and judged is the same.
pub(crate) fn associations_to_a_cluster_ip_are_judged_like_connections(town: &mut Town) {
    if kernel::require(Feature::SctpTracking) {
        cluster_ip(town, Protocol::Sctp);
    }
}

pub(crate) fn a_target_port_by_name_is_judged_by_the_number_that_each_backend_gives_it(town: &mut Town) {
    let backends = [("web-1", PORTS[0]), ("web-2", PORTS[1]), ("web-3", PORTS[1]), ("web-4", PORTS[0])];
    let service = Service::new("web", Protocol::Tcp, &backends);
    let exposed = service.expose(town);
    town.apply(&egress(&to_blue(&json!("http"), Protocol::Tcp)));
    judge_all(town, &exposed, &service, |backend| is_blue(town, backend));
    // By number, the name is right for one of the blue ones only.
    town.apply(&egress(&to_blue(&json!(PORTS[1]), Protocol::Tcp)));
    judge_all(town, &exposed, &service, |backend| is_blue(town, backend) && backend.port() == PORTS[1]);
}

pub(crate) fn a_node_port_from_a_pod_is_judged_by_its_backend(town: &mut Town) {
    for local in [false, true] {
        let policy = if local { "Local" } else { "Cluster" };
        let service = Service::new("web", Protocol::Tcp, &all_at(PORTS[0]))
            .with(json!({ "type": "NodePort", "externalTrafficPolicy": policy }));
        let exposed = service.expose(town);
        town.apply(&egress(&to_blue(&json!(PORTS[0]), Protocol::Tcp)));
        for address in town.node().addresses() {
            // To a pod of the cluster the node is no outside: `Local` means nothing.
            let to = SocketAddr::new(address, exposed.node_port.unwrap());
            let _tally = judge(town, to, &service, |backend| is_blue(town, backend));
        }
        town.clear();
    }
}

pub(crate) fn external_and_load_balancer_addresses_are_judged_by_their_backends(town: &mut Town) {
    let service = Service::new("web", Protocol::Tcp, &all_at(PORTS[0]))
        .with(json!({ "type": "LoadBalancer", "externalIPs": EXTERNAL }));
    let exposed = service.expose(town);
    balance(town, &service);
    // As addresses outside of the cluster they are allowed to nobody.
    town.apply(&egress(&to_blue(&json!(PORTS[0]), Protocol::Tcp)));
    for to in addresses() {
        let _tally = judge(town, to, &service, |backend| is_blue(town, backend));
    }
    // Everything but the cluster's pods is allowed, the Service's addresses with it: green ones are not.
    let mut rules = to_blue(&json!(PORTS[0]), Protocol::Tcp);
    rules.as_array_mut().unwrap().extend(anywhere().as_array().unwrap().clone());
    town.apply(&egress(&rules));
    for to in addresses() {
        let _tally = judge(town, to, &service, |backend| is_blue(town, backend));
    }
    judge_all(town, &exposed, &service, |backend| is_blue(town, backend));
}

pub(crate) fn a_service_without_selector_is_judged_by_the_addresses_of_its_slices(town: &mut Town) {
    let service = Service::new("elsewhere", Protocol::Tcp, &[]);
    let exposed = service.expose(town);
    for (address, kind) in STRANGER.iter().zip(["IPv4", "IPv6"]) {
        let endpoint = json!({ "addresses": [address], "conditions": { "ready": true } });
        town.apply(&slice(&service, kind, 1, PORTS[0], vec![endpoint]));
    }
    let strangers = STRANGER.map(|address| address.parse::<IpAddr>().unwrap());
    for (address, backend) in exposed.addresses.iter().zip(strangers) {
        let backends = [SocketAddr::new(backend, PORTS[0])].into();
        town.wait_for_proxy(SocketAddr::new(*address, PORT), Protocol::Tcp, &backends);
    }
    let block = |address: &IpAddr| json!({ "ipBlock": { "cidr": alone(address) } });
    let rules = json!([{ "to": strangers.iter().map(block).collect::<Vec<_>>(), "ports": [{ "port": PORTS[0] }] }]);
    // The Service's own address is in neither.
    let denied = json!([{ "to": exposed.addresses.iter().map(block).collect::<Vec<_>>() }]);
    for (rules, answered) in [(rules, MANY), (denied, 0)] {
        town.apply(&egress(&rules));
        for address in &exposed.addresses {
            let to = SocketAddr::new(*address, PORT);
            let tally = town.tally("client", to, Protocol::Tcp, MANY).unwrap();
            expect(town, to, &tally, answered, "by its slices");
        }
    }
}

pub(crate) fn session_affinity_does_not_get_round_a_policy(town: &mut Town) {
    let service = Service::new("web", Protocol::Tcp, &all_at(PORTS[0])).with(json!({ "sessionAffinity": "ClientIP" }));
    let exposed = service.expose(town);
    // The proxy draws one backend in each family, while nothing isolates the client.
    let drawn = exposed.addresses.iter().map(|address| {
        let to = SocketAddr::new(*address, PORT);
        town.wait("the proxy knows the Service", |town| {
            let tally = town.tally("client", to, Protocol::Tcp, 8)?;
            if tally.answered() == 8 { Ok(()) } else { bail!("{tally:?}") }
        });
        let tally = town.tally("client", to, Protocol::Tcp, 8).unwrap();
        assert_eq!(tally.answered.len(), 1, "one client, one backend: {tally:?}");
        (to, *tally.answered.keys().next().unwrap())
    });
    let drawn: Vec<(SocketAddr, SocketAddr)> = drawn.collect();
    // Whichever they are, each is denied once and allowed once, and neither moves the client to another backend.
    for (to, backend) in drawn {
        let (own, other) = if is_blue(town, backend) { ("blue", "green") } else { ("green", "blue") };
        for (color, answered) in [(other, 0), (own, MANY), (other, 0)] {
            town.apply(&egress(&to_color(color, &json!(PORTS[0]), Protocol::Tcp)));
            let tally = judge(town, to, &service, |backend| is_blue(town, backend) == (color == "blue"));
            assert_eq!(tally.answered(), answered, "{to} leads to {backend}: {tally:?}");
            assert!(tally.answered.keys().chain(tally.silent.keys()).eq([&backend]), "{backend} no more: {tally:?}");
        }
    }
}

pub(crate) fn the_pods_of_a_headless_service_are_judged_at_the_senders_interface(town: &mut Town) {
    let service = Service::new("headless", Protocol::Tcp, &all_at(PORTS[0])).with(json!({ "clusterIP": "None" }));
    let exposed = service.expose(town);
    assert_eq!(exposed.addresses, Vec::<IpAddr>::new(), "nothing that a proxy could rewrite");
    let of_all = json!([{ "to": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }]);
    // What was denied first: connection tracking remembers what was answered.
    for (rules, allowed) in [
        (anywhere(), &["", ""][..]),
        (to_blue(&json!(PORTS[0]), Protocol::Tcp), &["web-1", "web-3"]),
        (of_all, &BACKENDS),
    ] {
        town.apply(&egress(&rules));
        for (pod, family) in BACKENDS.iter().flat_map(|pod| FAMILIES.map(|family| (*pod, family))) {
            let to = SocketAddr::new(town.address(pod, family), PORTS[0]);
            let tally = town.tally("client", to, Protocol::Tcp, MANY).unwrap();
            let answered = if allowed.contains(&pod) { MANY } else { 0 };
            expect(town, to, &tally, answered, &format!("{pod} under {rules}"));
            // A packet that is dropped where it is sent comes to no hook of connection tracking; a deferred one would.
            assert_eq!(tally.untracked, MANY - answered, "{pod} under {rules}: {tally:?}");
        }
    }
}

pub(crate) fn a_backend_on_the_node_itself_is_allowed_or_not_as_a_whole(town: &mut Town) {
    let blocks: Vec<Value> =
        town.node().addresses().iter().map(|address| json!({ "ipBlock": { "cidr": alone(address) } })).collect();
    let to_node = |port: u16| json!([{ "to": blocks, "ports": [{ "port": port }] }]);
    let one = Service::new("one", Protocol::Tcp, &[("host", PORTS[0])]);
    let exposed = one.expose(town);
    for (rules, answered) in [(to_node(PORTS[0]), MANY), (to_node(PORTS[1]), 0), (json!([]), 0)] {
        town.apply(&egress(&rules));
        for address in &exposed.addresses {
            let to = SocketAddr::new(*address, PORT);
            let tally = town.tally("client", to, Protocol::Tcp, MANY).unwrap();
            expect(town, to, &tally, answered, &rules.to_string());
        }
    }
    // One that is allowed and one that is not: what is delivered here passes no device, so both are denied. A backend
    // elsewhere is not concerned.
    let two = Service::new("two", Protocol::Tcp, &[("host", PORTS[0]), ("host", PORTS[1]), ("web-3", PORTS[0])]);
    let exposed = two.expose(town);
    let mut rules = to_node(PORTS[0]);
    rules.as_array_mut().unwrap().extend(to_blue(&json!(PORTS[0]), Protocol::Tcp).as_array().unwrap().clone());
    town.apply(&egress(&rules));
    for (family, address) in exposed.addresses.iter().enumerate() {
        let tally = town.tally("client", SocketAddr::new(*address, PORT), Protocol::Tcp, MANY).unwrap();
        let remote = SocketAddr::new(town.address("web-3", family), PORTS[0]);
        town.report(*address, MANY, tally.wrong(|backend| backend == remote));
        assert_eq!(tally.answered.keys().collect::<Vec<_>>(), [&remote], "{tally:?}");
        assert!(!tally.silent.contains_key(&remote), "{tally:?}");
        assert!(tally.silent() > 0, "{tally:?}");
    }
}

pub(crate) fn a_pod_that_reaches_itself_through_a_service_is_judged_as_itself(town: &mut Town) {
    let service = Service::new("self", Protocol::Tcp, &[("client", PORTS[0])]);
    let exposed = service.expose(town);
    let policy = |allowed: bool| {
        let peers = json!([{ "podSelector": { "matchLabels": { "app": "client" } } }]);
        let rule = |side: &str| if allowed { json!([{ side: peers }]) } else { json!([]) };
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "client" },
            "spec": {
                "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Ingress", "Egress"],
                "ingress": rule("from"), "egress": rule("to"),
            },
        })
    };
    for allowed in [true, false] {
        town.apply(&policy(allowed));
        judge_all(town, &exposed, &service, |_| allowed);
        // Directly it never leaves the pod, and no policy has a say.
        for family in FAMILIES {
            let own = town.address("client", family);
            let to = SocketAddr::new(own, PORTS[0]);
            for shot in backends::burst(town.network("client"), own, to, Protocol::Tcp, 20).unwrap() {
                expect_one(town, own, &shot.outcome, &Outcome::Allow, "directly");
            }
        }
    }
}
