//! Policies through Service addresses that IPVS rewrites, as in kube-proxy's mode of that name (decision D6).
//!
//! IPVS takes its packets where they are delivered to the node itself, at priority 99 of the hook `input`: what goes to a
//! pod then leaves by that pod's link and is judged there, what goes to the node goes on to the guard at 300. Each case
//! opens 200 connections in each family and asks IPVS for the backend of every single one. Where the kernel has no IPVS
//! these tests are skipped; `cargo xtask vm` runs them on kernels that have it.

mod proxy;
mod site;

use std::net::IpAddr;

use netpol_policy::model::Protocol;
use netpol_suites::kernel::{self, Feature};
use serde_json::{Value, json};

use site::{OUTSIDE, Site, TARGET, block, blocks};

/// ClusterIPs, and addresses that no agent knows of.
const SERVICE: [&str; 2] = ["10.96.0.9", "fd00:10:96::9"];
const UNKNOWN: [&str; 2] = ["203.0.113.90", "2001:db8:113::90"];

const TCP_AND_UDP: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn outside(host: usize) -> [IpAddr; 2] {
    OUTSIDE[host].map(|address| address.parse().unwrap())
}

/// A policy for egress of the client.
fn egress(peers: &[Value], port: u16) -> Value {
    let ports = TCP_AND_UDP.map(|protocol| json!({ "port": port, "protocol": protocol.name() }));
    json!({
        "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Egress"],
        "egress": [{ "to": peers, "ports": ports }],
    })
}

fn blue() -> Value {
    json!({ "podSelector": { "matchLabels": { "app": "blue" } } })
}

/// The whole world but pods and the node, by address.
fn everywhere_else(site: &Site) -> [Value; 2] {
    let node = site.pod("host");
    [
        json!({ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["10.244.0.0/16", format!("{}/32", node[0])] } }),
        json!({ "ipBlock": { "cidr": "::/0", "except": ["fd00:10:244::/56", format!("{}/128", node[1])] } }),
    ]
}

#[test]
fn a_cluster_ip_of_ipvs_is_judged_by_the_backend_that_it_picks() {
    if !kernel::require(Feature::Ipvs) {
        return;
    }
    let mut site = Site::start();
    let backends = [site.pod("blue"), site.pod("green"), outside(0), outside(1)];
    for protocol in TCP_AND_UDP {
        site.expose(SERVICE, protocol, &backends, true);
    }
    let to_some = [vec![blue()], blocks(&[outside(0)])].concat();
    for (policy, allowed) in [
        (egress(&to_some, TARGET), vec![backends[0], backends[2]]),
        (egress(&[json!({ "podSelector": {} })], TARGET), vec![backends[0], backends[1]]),
        // The Service's own port and address are nothing that a policy knows of.
        (egress(&to_some, site::PORT), Vec::new()),
        (egress(&blocks(&[SERVICE.map(|address| address.parse().unwrap())]), TARGET), Vec::new()),
    ] {
        site.set_policy(&policy);
        for address in SERVICE {
            for protocol in TCP_AND_UDP {
                site.judge("client", address, protocol, &backends, &allowed);
            }
        }
    }
    for address in SERVICE {
        site.judge("free", address, Protocol::Tcp, &backends, &backends);
    }
    assert_eq!((site.dropped("mark_lost"), site.dropped("unhooked_device")), (0, 0));
}

#[test]
fn a_service_of_ipvs_that_the_agent_does_not_know_leaks_nothing() {
    if !kernel::require(Feature::Ipvs) {
        return;
    }
    let mut site = Site::start();
    let backends = [site.pod("blue"), site.pod("green"), outside(0)];
    let host = site.pod("host");
    let peers = [vec![blue()], everywhere_else(&site).to_vec()].concat();
    // By every port: only what is behind the address is excepted.
    let rules = json!([{ "to": peers }]);
    let client = json!({ "matchLabels": { "app": "client" } });
    site.set_policy(&json!({ "podSelector": client, "policyTypes": ["Egress"], "egress": rules }));
    site.expose(UNKNOWN, Protocol::Tcp, &backends, false);
    site.expose(UNKNOWN, Protocol::Udp, &[host], false);
    for address in UNKNOWN {
        site.judge("client", address, Protocol::Tcp, &backends, &[backends[0], backends[2]]);
        site.judge("client", address, Protocol::Udp, &[host], &[]);
    }
}

#[test]
fn a_backend_of_ipvs_on_the_node_itself_passes_the_guard_if_it_is_allowed() {
    if !kernel::require(Feature::Ipvs) {
        return;
    }
    let mut site = Site::start();
    let host = site.pod("host");
    let backends = [host];
    for protocol in TCP_AND_UDP {
        site.expose(SERVICE, protocol, &backends, true);
    }
    let mut before = site.dropped("service_local_backend");
    for (policy, is_allowed) in [
        (egress(&blocks(&[host]), TARGET), true),
        (egress(&blocks(&[host]), site::PORT), false),
        (egress(&[block(&outside(0)[0])], TARGET), false),
    ] {
        site.set_policy(&policy);
        for address in SERVICE {
            for protocol in TCP_AND_UDP {
                site.judge("client", address, protocol, &backends, if is_allowed { &backends } else { &[] });
            }
        }
        let now = site.dropped("service_local_backend");
        assert_eq!(now > before, !is_allowed, "{policy}: {before} and then {now} dropped by the guard");
        before = now;
    }
}

#[test]
fn a_pod_that_reaches_itself_through_ipvs_is_judged_as_itself() {
    if !kernel::require(Feature::Ipvs) {
        return;
    }
    let mut site = Site::start();
    let own = [site.pod("client")];
    site.expose(SERVICE, Protocol::Tcp, &own, true);
    let itself = json!([{ "podSelector": { "matchLabels": { "app": "client" } } }]);
    for is_allowed in [true, false] {
        let rule = |side: &str| if is_allowed { json!([{ side: itself }]) } else { json!([]) };
        site.set_policy(&json!({
            "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Ingress", "Egress"],
            "ingress": rule("from"), "egress": rule("to"),
        }));
        for address in SERVICE {
            site.judge("client", address, Protocol::Tcp, &own, if is_allowed { &own } else { &[] });
        }
    }
}

#[test]
fn what_enters_the_cluster_by_ipvs_is_judged_by_the_address_that_masquerading_left() {
    if !kernel::require(Feature::Ipvs) {
        return;
    }
    let mut site = Site::start();
    let backends = [site.pod("blue"), site.pod("green")];
    site.expose(SERVICE, Protocol::Tcp, &backends, true);
    site.announce(SERVICE);
    let gateways: Vec<Value> = site.gateways().iter().map(block).collect();
    // Green is not isolated. The bridge's address is an address of the node, but not the node speaking.
    for (peers, allowed) in [(blocks(&[outside(0)]), vec![backends[1]]), (gateways, backends.to_vec())] {
        site.set_policy(&json!({
            "podSelector": { "matchLabels": { "app": "blue" } }, "policyTypes": ["Ingress"],
            "ingress": [{ "from": peers }],
        }));
        for (source, address) in OUTSIDE[0].into_iter().zip(SERVICE) {
            site.judge_outside(source, address, &backends, &allowed);
        }
    }
}
