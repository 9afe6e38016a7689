//! Services of a real API server, with the agent's own rights: a rule of the test stands in for kube-proxy, and a slice
//! that the test writes for the controller.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::site::{NAMESPACE, PORT, Site};

/// How long silence lasts until it is a drop; nothing here is slow.
const SILENCE: Duration = Duration::from_millis(1300);

/// Creates a Service without selector, and returns the address that the API server drew for it.
fn create_service(site: &Site) -> IpAddr {
    let services = format!("/api/v1/namespaces/{NAMESPACE}/services");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "front" },
        "spec": { "ports": [{ "name": "web", "protocol": "TCP", "port": 80, "targetPort": PORT }] },
    });
    site.admin().create(&services, &service).unwrap();
    let stored = site.admin().get(&format!("{services}/front")).unwrap();
    site.wait_for_version("Service", stored["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap());
    stored["spec"]["clusterIP"].as_str().unwrap().parse().unwrap()
}

fn slice(backend: IpAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "front-1", "labels": { "kubernetes.io/service-name": "front" } },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [backend.to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "web", "protocol": "TCP", "port": PORT }],
    })
}

/// Sends what goes to the Service to a pod.
fn lead_to(site: &Site, service: IpAddr, backend: &str) {
    let backend = site.pod(backend).spec().addresses[0];
    site.on_node(&format!(
        "nft add table ip proxy && nft delete table ip proxy && nft add table ip proxy \
         && nft add chain ip proxy pre '{{ type nat hook prerouting priority -100; }}' \
         && nft add rule ip proxy pre ip daddr {service} tcp dport 80 dnat to {backend}:{PORT}"
    ));
}

fn connects(site: &Site, service: IpAddr) -> bool {
    let to = SocketAddr::new(service, 80);
    site.pod("web").network().place().run(|| Ok(TcpStream::connect_timeout(&to, SILENCE).is_ok())).unwrap()
}

/// Only to the database may the web server talk.
fn only_to_db() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "web-egress" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Egress"],
            "egress": [{ "to": [{ "podSelector": { "matchLabels": { "app": "db" } } }] }],
        },
    })
}

#[test]
fn a_service_is_followed_to_the_backend_that_a_policy_names_or_does_not() {
    let mut site = Site::start();
    for app in ["db", "web", "stranger"] {
        site.add_pod(app, &json!({ "app": app }));
    }
    let service = create_service(&site);
    site.apply(&slice(site.pod("db").spec().addresses[0]));
    lead_to(&site, service, "stranger");
    assert!(connects(&site, service), "nothing isolates the client");
    site.apply(&only_to_db());
    assert!(!connects(&site, service), "the backend is a stranger");
    lead_to(&site, service, "db");
    assert!(connects(&site, service), "the backend is the database");

    // Of a Service that is gone, or not heard of yet, the range of its address is known.
    site.admin().delete(Some(NAMESPACE), "service", "front").unwrap();
    site.wait("the Service is forgotten", |site| {
        let entries = site.metric(r#"netpol_bpf_map_entries{map="SERVICES"}"#);
        // The API server's own Service stays.
        if entries == 1.0 { Ok(()) } else { anyhow::bail!("{entries} rows") }
    });
    assert!(connects(&site, service), "the backend is the database");
    lead_to(&site, service, "stranger");
    assert!(!connects(&site, service), "the backend is a stranger");
}
