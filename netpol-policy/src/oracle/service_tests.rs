//! Connections through Services and host ports.

use serde_json::{Value, json};

use super::tests::{NODE, add, address, apply, cluster, flow, from_a, pods, to_a};
use super::*;
use crate::decode::{Kind, SERVICE_NAME_LABEL};
use crate::model::HostPort;

const TCP: u8 = 6;

fn service(cluster: &mut Cluster, spec: Value) {
    add(cluster, Kind::Service, &json!({ "metadata": { "namespace": "y", "name": "web" }, "spec": spec }));
}

fn slice(cluster: &mut Cluster, name: &str, endpoints: &[&str], ports: Value) {
    let endpoints: Vec<Value> = endpoints.iter().map(|name| json!({ "addresses": [address(name)] })).collect();
    let metadata = json!({ "namespace": "y", "name": name, "labels": { SERVICE_NAME_LABEL: "web" } });
    add(cluster, Kind::EndpointSlice, &json!({ "metadata": metadata, "endpoints": endpoints, "ports": ports }));
}

fn with_service(policies: &[Value]) -> Cluster {
    let mut cluster = cluster(policies);
    let ports =
        json!([{ "name": "http", "port": 8000, "nodePort": 30080 }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
    service(&mut cluster, json!({ "clusterIPs": ["10.96.0.1", "fd00:96::1"], "ports": ports }));
    let ports = |http: u16| json!([{ "name": "http", "port": http }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
    slice(&mut cluster, "web-1", &["y/a", "y/b"], ports(80));
    slice(&mut cluster, "web-2", &["y/c", NODE], ports(81));
    slice(&mut cluster, "web-6", &["y/a6"], ports(80));
    cluster
}

fn backends(cluster: &Cluster, at: &str, port: u16, protocol: u8) -> Option<Vec<String>> {
    let found = service_backends(cluster, address(at), port, protocol)?;
    Some(found.into_iter().map(|(address, port)| format!("{address} {port}")).collect())
}

#[test]
fn p11_a_service_leads_to_the_endpoints_of_its_slices_by_the_name_of_the_port() {
    let cluster = with_service(&[]);
    let http = ["10.0.2.1 80", "10.0.2.2 80", "10.0.2.3 81", "192.0.2.1 81"].map(str::to_owned).to_vec();
    assert_eq!(backends(&cluster, "10.96.0.1", 8000, TCP), Some(http.clone()));
    assert_eq!(backends(&cluster, NODE, 30080, TCP), Some(http));
    assert_eq!(backends(&cluster, "fd00:96::1", 8000, TCP), Some(vec!["fd00::2:1 80".to_owned()]));
    assert_eq!(backends(&cluster, "10.96.0.1", 53, 17).map(|all| all.len()), Some(4));
    for (at, port, protocol) in [("10.96.0.1", 8000, 17), ("10.96.0.1", 80, TCP), ("y/a", 80, TCP), (NODE, 8000, TCP)] {
        assert_eq!(backends(&cluster, at, port, protocol), None, "{at} {port} {protocol}");
    }
}

#[test]
fn a_service_without_endpoints_leads_nowhere() {
    let mut cluster = with_service(&[]);
    cluster.slices.clear();
    assert_eq!(backends(&cluster, "10.96.0.1", 8000, TCP), Some(vec![]));
}

#[test]
fn a_host_port_leads_to_the_pod_from_the_addresses_that_it_names() {
    let mut cluster = with_service(&[]);
    let pod = cluster.pods.values_mut().find(|pod| pod.name.to_string() == "x/a").expect("x/a");
    let (protocol, container_port) = (crate::model::Protocol::Tcp, 80);
    pod.host_ports = vec![
        HostPort { address: None, protocol, port: 8080, container_port },
        HostPort { address: Some(address("192.0.2.7")), protocol, port: 8081, container_port },
    ];
    assert_eq!(backends(&cluster, NODE, 8080, TCP), Some(vec!["10.0.1.1 80".to_owned()]));
    assert_eq!(backends(&cluster, NODE, 8081, TCP), None);
    assert_eq!(backends(&cluster, "192.0.2.7", 8081, TCP), None, "that is no address of its node");
}

#[test]
fn p11_egress_is_judged_by_the_backend_and_its_port() {
    let to_y_a = json!([{ "to": [pods("a")], "ports": [{ "port": 80 }] }]);
    let to_y_a = from_a(
        json!([{ "to": [{ "namespaceSelector": {}, "podSelector": pods("a")["podSelector"] }], "ports": to_y_a[0]["ports"] }]),
    );
    let cluster = with_service(&[to_y_a]);
    let flow = flow("x/a", "10.96.0.1", TCP, Some(8000));
    assert!(!allowed(&cluster, &flow).allowed, "the Service's own address is no peer of the policy");
    for (backend, port, expected) in [("y/a", 80, true), ("y/a", 81, false), ("y/b", 80, false), (NODE, 80, false)] {
        let answer = through_service(&cluster, &flow, (address(backend), port), None);
        assert_eq!(answer, Answer { allowed: expected, egress: expected, ingress: true }, "{backend} {port}");
    }
}

#[test]
fn d7_after_masquerade_ingress_is_judged_by_the_nodes_address() {
    let cluster = with_service(&[to_a(json!([{ "from": [pods("b")] }]))]);
    let flow = flow("x/b", NODE, TCP, Some(30080));
    let backend = (address("x/a"), 80);
    assert!(through_service(&cluster, &flow, backend, None).allowed);
    assert!(!through_service(&cluster, &flow, backend, Some(address(NODE))).ingress);
}

#[test]
fn w5_a_pod_that_reaches_itself_through_a_service_is_judged_on_both_sides_by_its_own_address() {
    let own = json!([{ "from": [pods("a")] }]);
    let direct = flow("x/a", "x/a", TCP, Some(80));
    let (mut cluster, flow) = (with_service(&[to_a(own)]), flow("x/a", "10.96.0.1", TCP, Some(8000)));
    let backend = (address("x/a"), 80);
    assert!(through_service(&cluster, &flow, backend, Some(address(NODE))).allowed);
    cluster.policies.clear();
    apply(&mut cluster, &[from_a(json!([]))]);
    assert!(!through_service(&cluster, &flow, backend, None).egress);
    assert!(allowed(&cluster, &direct).allowed, "without a Service it never leaves");
}
