//! Services under real packets: a rule of the test stands in for kube-proxy, the verdict is that of the real backend, in
//! whatever way a packet leaves: by a pod's veth, by the uplink, or not at all.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use netpol_testbed::node::BRIDGE;
use netpol_testbed::place::Place;
use serde_json::{Value, json};

use super::harness::{PORT, Site, addresses};
use super::{mechanisms, shop};

/// How long silence lasts until it is a drop; nothing here is slow.
const SILENCE: Duration = Duration::from_millis(800);

fn cluster_ips() -> [IpAddr; 2] {
    ["10.96.0.10".parse().unwrap(), "fd00:10:96::10".parse().unwrap()]
}

fn outside() -> [IpAddr; 2] {
    ["203.0.113.9".parse().unwrap(), "2001:db8:9::9".parse().unwrap()]
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "front", "namespace": "shop" },
        "spec": {
            "type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": cluster_ips().map(|ip| ip.to_string()),
            "ports": [{ "protocol": "TCP", "port": 80, "targetPort": PORT }],
        },
    })
}

/// What the endpoint slice controller would write of backends in one family.
fn slice(family: usize, backend: IpAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("front-{family}"), "namespace": "shop",
            "labels": { "kubernetes.io/service-name": "front" },
        },
        "addressType": (["IPv4", "IPv6"][family]),
        "endpoints": [{ "addresses": [backend.to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "", "protocol": "TCP", "port": PORT }],
    })
}

/// Sends what goes to the Service to one backend, in place of kube-proxy.
fn proxy_to(site: &Site, backends: [IpAddr; 2]) {
    let [v4, v6] = cluster_ips();
    let chain = "nft add rule inet proxy pre iifname";
    let _out = site.on_node(&format!(
        "nft add table inet proxy && nft delete table inet proxy && nft add table inet proxy \
         && nft add chain inet proxy pre '{{ type nat hook prerouting priority -100; }}' \
         && {chain} {BRIDGE} ip daddr {v4} tcp dport 80 dnat ip to {}:{PORT} \
         && {chain} {BRIDGE} ip6 daddr {v6} tcp dport 80 dnat ip6 to [{}]:{PORT}",
        backends[0], backends[1],
    ));
}

/// The client may talk to these peers and nobody else.
fn egress(site: &mut Site, peers: &Value) {
    site.set_policy(
        "client-egress",
        json!({
            "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Egress"],
            "egress": [{ "to": peers, "ports": [{ "protocol": "TCP", "port": PORT }] }],
        }),
    );
    site.settle();
}

fn block(address: &IpAddr) -> Value {
    json!({ "ipBlock": { "cidr": format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }) } })
}

fn connects(from: &Place, to: SocketAddr) -> bool {
    from.run(|| Ok(TcpStream::connect_timeout(&to, SILENCE).is_ok())).unwrap()
}

fn listen(place: &Place, addresses: &[IpAddr]) -> Vec<TcpListener> {
    let bind = |address: &IpAddr| TcpListener::bind(SocketAddr::new(*address, PORT));
    place.run(|| Ok(addresses.iter().map(bind).collect::<Result<_, _>>()?)).unwrap()
}

/// Asserts one answer for both families.
fn expect(site: &Site, what: &str, allowed: bool) {
    for address in cluster_ips() {
        let connected = connects(&site.pod("client").network().place(), SocketAddr::new(address, 80));
        let table = site.on_node("nft list table inet netpol-agent");
        assert_eq!(connected, allowed, "{what}, by {address}\n{table}");
    }
}

fn dropped(site: &Site, namespace: &str, reason: &str) -> f64 {
    let labels = format!(r#"direction="egress",namespace="{namespace}",reason="{reason}""#);
    site.metric(&format!("netpol_dropped_packets_total{{{labels}}}"))
}

fn both(backends: [IpAddr; 2], site: &mut Site) {
    for (family, backend) in backends.into_iter().enumerate() {
        site.put_object(slice(family, backend));
    }
    site.settle();
    proxy_to(site, backends);
}

fn pair(addresses: &[IpAddr]) -> [IpAddr; 2] {
    [addresses[0], addresses[1]]
}

#[test]
fn egress_to_a_service_is_judged_by_the_backend_that_the_proxy_chose() {
    for mechanism in mechanisms() {
        let mut site = shop(&["--attach", mechanism]);
        site.delete_policy("only-client");
        site.put_object(service());
        site.node.outside().add_hosts(&outside()).unwrap();
        let gateways = site.node.gateways();
        let _servers =
            [listen(&site.node.place(), &gateways), listen(&site.node.outside().network().place(), &outside())];
        site.start_agent();
        site.wait_armed();

        // To a pod of this node: judged at the backend's veth.
        both(pair(&addresses(11)), &mut site);
        expect(&site, "not isolated, to server", true);
        egress(&mut site, &json!([{ "podSelector": { "matchLabels": { "app": "server" } } }]));
        expect(&site, "server alone, to server", true);
        both(pair(&addresses(12)), &mut site);
        let before = dropped(&site, "shop", "no_rule");
        expect(&site, "server alone, to stranger", false);
        assert!(dropped(&site, "shop", "no_rule") > before);

        // To an address outside: judged at the uplink.
        both(outside(), &mut site);
        expect(&site, "server alone, to the outside", false);
        egress(&mut site, &json!(outside().iter().map(block).collect::<Vec<_>>()));
        expect(&site, "the outside alone, to the outside", true);
        both(pair(&addresses(11)), &mut site);
        expect(&site, "the outside alone, to server", false);

        // To the node itself: passes no device, and is known beforehand.
        both(pair(&gateways), &mut site);
        let before = dropped(&site, "", "service_local_backend");
        expect(&site, "the outside alone, to the node", false);
        assert!(dropped(&site, "", "service_local_backend") > before);
        egress(&mut site, &json!(gateways.iter().map(block).collect::<Vec<_>>()));
        expect(&site, "the node alone, to the node", true);
        assert_eq!((dropped(&site, "", "mark_lost"), dropped(&site, "", "unhooked_device")), (0.0, 0.0));
    }
}

#[test]
fn a_connection_through_a_service_lives_while_the_agent_restarts_and_ends_with_its_permission() {
    let mut site = shop(&[]);
    site.delete_policy("only-client");
    site.put_object(service());
    site.start_agent();
    both(pair(&addresses(11)), &mut site);
    egress(&mut site, &json!([{ "podSelector": { "matchLabels": { "app": "server" } } }]));
    site.wait_armed();
    let opened: Vec<TcpStream> = cluster_ips()
        .into_iter()
        .map(|address| {
            let to = SocketAddr::new(address, 80);
            site.pod("client").network().place().run(|| Ok(TcpStream::connect_timeout(&to, SILENCE)?)).unwrap()
        })
        .collect();
    let all = |outcome: bool, when: &str| {
        for stream in &opened {
            assert_eq!(super::harness::echoes(stream), outcome, "{when}: {stream:?}");
        }
    };
    all(true, "at first");
    site.stop_agent();
    all(true, "without an agent");
    site.start_agent();
    site.settle();
    all(true, "with the next agent");
    egress(&mut site, &json!([{ "podSelector": { "matchLabels": { "app": "nobody" } } }]));
    all(false, "without permission");
}

#[test]
fn a_packet_that_lost_its_stamp_is_dropped_once_every_port_is_attached_and_so_it_stays() {
    let mut site = shop(&[]);
    site.delete_policy("only-client");
    site.start_agent();
    site.settle();
    site.wait_armed();
    let server = SocketAddr::new(addresses(11)[0], PORT);
    let client = site.pod("client").network().place();
    assert!(connects(&client, server));
    let _out = site.on_node(&format!(
        "nft add table inet thief && nft add chain inet thief pre '{{ type filter hook prerouting priority -300; }}' \
         && nft add rule inet thief pre iifname {BRIDGE} meta mark set 0"
    ));
    assert!(!connects(&client, server));
    assert!(dropped(&site, "", "mark_lost") > 0.0);
    site.stop_agent();
    assert!(!connects(&client, server));
    let _out = site.on_node("nft delete table inet thief");
    site.start_agent();
    assert_eq!(site.metric("netpol_armed "), 1.0);
    assert!(connects(&client, server));
}

#[test]
fn a_port_of_the_pod_bridge_that_is_no_pod_does_not_keep_the_node_from_arming() {
    let mut site = shop(&[]);
    let _out = site.on_node(&format!("ip tuntap add dev tap7 mode tap && ip link set tap7 master {BRIDGE} up"));
    site.start_agent();
    site.settle();
    site.wait_armed();
    let _out = site.on_node(&format!("ip tuntap add dev tap8 mode tap && ip link set tap8 master {BRIDGE} up"));
    site.wait("both have a row", |site| match site.endpoints_of(&["tap7", "tap8"])[..] {
        [Some(first), Some(second)] if first != second && first != 0 && second != 0 => Ok(()),
        ref rows => anyhow::bail!("{rows:?}"),
    });
    assert_eq!(site.applied().unwrap()["endpoints"]["managed"], 3);
}
