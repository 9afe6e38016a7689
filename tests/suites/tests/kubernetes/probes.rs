//! The kubelet's probes reach pods that nothing else may reach.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use netpol_testbed::probe::Outcome;
use serde_json::{Value, json};

use crate::site::{AGNHOST, Wanted, shared, try_both};

/// The container and its probes, of one kind for start, readiness and life.
fn probed(arguments: &Value, probe: &Value) -> Value {
    let mut probe = probe.clone();
    probe["periodSeconds"] = 1.into();
    // A busy machine takes seconds to start a program; what is dropped fails however long it may take.
    probe["timeoutSeconds"] = 10.into();
    probe["failureThreshold"] = 3.into();
    let mut startup = probe.clone();
    startup["failureThreshold"] = 60.into();
    json!({ "spec": { "containers": [{
        "name": "server", "image": AGNHOST, "args": arguments,
        "startupProbe": startup, "readinessProbe": probe, "livenessProbe": probe,
    }] } })
}

#[test]
fn probes_of_the_kubelet_work_under_default_deny_and_the_same_from_another_node_does_not() {
    let mut site = shared();
    let space = site.namespace("probes");
    // Before the pods: their first probe must pass too.
    let _when = space.policy("deny", &json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }));
    let web = json!(["netexec", "--http-port=8080", "--udp-port=-1"]);
    let kinds = [
        ("http", probed(&web, &json!({ "httpGet": { "path": "/hostname", "port": 8080 } }))),
        ("tcp", probed(&web, &json!({ "tcpSocket": { "port": 8080 } }))),
        ("exec", probed(&web, &json!({ "exec": { "command": ["/agnhost", "connect", "127.0.0.1:8080"] } }))),
        ("grpc", probed(&json!(["grpc-health-checking"]), &json!({ "grpc": { "port": 5000 } }))),
    ];
    let wanted = kinds.map(|(name, patch)| Wanted { name, node: "node1", patch });
    let pods = space.pods(wanted);
    // A few periods long.
    std::thread::sleep(Duration::from_secs(5));
    let [near, far] = ["node1", "node2"].map(|node| space.site.cluster.machine(node).network());
    for pod in &pods {
        let object = space.get("pod", &pod.name).unwrap();
        let status = &object["status"]["containerStatuses"][0];
        assert_eq!((&status["ready"], &status["restartCount"]), (&json!(true), &json!(0)), "{}: {status}", pod.name);
        let port = if pod.name == "grpc" { 5000 } else { 8080 };
        for address in &pod.addresses {
            let destination = SocketAddr::new(*address, port);
            let connects = near.place().run(|| Ok(TcpStream::connect_timeout(&destination, Duration::from_secs(3))?));
            assert!(connects.is_ok(), "{}: its own node does not reach {destination}: {connects:?}", pod.name);
            let any = if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
            for (protocol, outcome) in try_both(&far, any, *address, port) {
                assert_eq!(outcome, Outcome::Deny, "{} from another node, {protocol:?}", pod.name);
            }
        }
        eprintln!("probes: {}: ready, no restarts; from another node: dropped", pod.name);
    }
}
