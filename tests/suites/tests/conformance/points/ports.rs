//! Ports: names that stand for another number in each pod, ranges, protocols.

use netpol_policy::model::Protocol;
use netpol_suites::nine::case::Case;
use netpol_suites::nine::{PROTOCOLS, TCP_80, TCP_81, blocks, egress, ingress, namespace, pod, pod_object};
use netpol_testbed::sandbox::Families;
use netpol_testbed::sandbox::cells::Port;
use serde_json::{Value, json};

use netpol_suites::nine::Family;

const UDP_80: Port = Port { protocol: Protocol::Udp, number: 80 };
const UDP_81: Port = Port { protocol: Protocol::Udp, number: 81 };

/// One of the nine pods, with other names for the ports that it serves: `name` is given to each of `named`, the other
/// ports have none. Every name is in a container of its own, as the API server demands of one that is there twice.
fn renamed(pod: &str, families: Families, name: &str, named: &[Port]) -> Value {
    let mut object = pod_object(pod);
    let addresses = Family::of(families).iter().map(|family| json!({ "ip": family.address(pod) }));
    object["status"] = json!({ "podIPs": addresses.collect::<Vec<_>>() });
    for container in object["spec"]["containers"].as_array_mut().expect("containers") {
        let port = &mut container["ports"][0];
        let is_named = named
            .iter()
            .any(|Port { protocol, number }| port["containerPort"] == *number && port["protocol"] == protocol.name());
        port["name"] = if is_named { json!(name) } else { Value::Null };
    }
    object
}

pub(super) fn p1_named_port_of_each_destination(case: Case, families: Families) -> Case {
    case.object(renamed("x/a", families, "web", &[TCP_80]))
        .object(renamed("x/b", families, "web", &[TCP_81]))
        .policy("p", ingress(json!({}), json!([{ "ports": [{ "port": "web" }] }])))
        .expect(TCP_80, |_, to| ["x/b", "x/c"].contains(&to))
        .expect(TCP_81, |_, to| ["x/a", "x/c"].contains(&to))
        // The name moves to the other port of a pod that runs.
        .object(renamed("x/a", families, "web", &[TCP_81]))
        .expect(TCP_80, |_, to| namespace(to) == "x")
        .expect(TCP_81, |_, to| to == "x/c")
}

pub(super) fn p2_p3_named_port_without_peers_in_every_namespace(case: Case, families: Families) -> Case {
    case.object(renamed("x/b", families, "web", &[TCP_80]))
        .object(renamed("y/b", families, "web", &[TCP_81]))
        .object(renamed("z/b", families, "web", &[UDP_80]))
        .policy("p", egress(pod("a"), json!([{ "ports": [{ "port": "web" }] }])))
        .expect(TCP_80, |from, to| from == "x/a" && to != "x/b")
        .expect(TCP_81, |from, to| from == "x/a" && to != "y/b")
        .expect(UDP_80, |from, _| from == "x/a")
}

pub(super) fn p4_named_port_with_a_block(case: Case, families: Families) -> Case {
    let of_y = || blocks(families, |family| family.block("y/b", family.wide()));
    let rule = |peers: &str| json!([{ peers: of_y(), "ports": [{ "port": "web" }] }]);
    let case =
        case.object(renamed("x/a", families, "web", &[TCP_80])).object(renamed("y/b", families, "web", &[TCP_81]));
    // Of the destination in either direction: the subject's own for ingress, the pod in the block for egress.
    case.policy("p", ingress(pod("a"), rule("from")))
        .expect(TCP_80, |from, to| to == "x/a" && namespace(from) != "y")
        .expect(TCP_81, |_, to| to == "x/a")
        .delete_policies()
        .policy("p", egress(pod("a"), rule("to")))
        .expect(TCP_81, |from, to| from == "x/a" && to != "y/b")
        .expect(TCP_80, |from, _| from == "x/a")
}

pub(super) fn p5_one_name_for_two_protocols(case: Case, families: Families) -> Case {
    let on = |protocol: &str| ingress(pod("a"), json!([{ "ports": [{ "port": "dns", "protocol": protocol }] }]));
    case.object(renamed("x/a", families, "dns", &[TCP_80, UDP_81]))
        .policy("p", on("UDP"))
        .expect(UDP_81, |_, _| false)
        .expect(UDP_80, |_, to| to == "x/a")
        .expect(TCP_80, |_, to| to == "x/a")
        .policy("p", on("TCP"))
        .expect(TCP_80, |_, _| false)
        .expect(UDP_81, |_, to| to == "x/a")
        .policy("p", on("SCTP"))
        .expect(TCP_80, |_, to| to == "x/a")
        .expect(UDP_81, |_, to| to == "x/a")
}

pub(super) fn p6_one_name_for_two_ports(case: Case, families: Families) -> Case {
    case.object(renamed("x/a", families, "web", &[TCP_80, TCP_81]))
        .policy("p", ingress(pod("a"), json!([{ "ports": [{ "port": "web" }] }])))
        .expect_open(TCP_80)
        .expect_open(TCP_81)
        .expect(UDP_80, |_, to| to == "x/a")
}

pub(super) fn p7_named_port_of_a_sidecar(case: Case, families: Families) -> Case {
    // What the pod serves stays: only the name of TCP 81 is another container's.
    let with = |restart: Value| {
        let mut object = renamed("x/a", families, "web", &[TCP_80]);
        object["spec"]["initContainers"] = json!([{
            "name": "proxy", "restartPolicy": restart, "ports": [{ "containerPort": 81, "name": "admin" }],
        }]);
        object
    };
    let to_admin = ingress(pod("a"), json!([{ "ports": [{ "port": "admin" }] }]));
    case.object(with(json!("Always")))
        .policy("p", to_admin)
        .expect_open(TCP_81)
        .expect(TCP_80, |_, to| to == "x/a")
        // An init container that ends before the others begin serves nothing beside them.
        .object(with(Value::Null))
        .expect(TCP_81, |_, to| to == "x/a")
}

pub(super) fn p9_ranges_of_one_and_of_all_ports(case: Case, _: Families) -> Case {
    let on = |ports: Value| ingress(pod("a"), json!([{ "ports": ports }]));
    case.policy("p", on(json!([{ "port": 81, "endPort": 81 }])))
        .expect_open(TCP_81)
        .expect(TCP_80, |_, to| to == "x/a")
        .policy("p", on(json!([{ "port": 1, "endPort": 65535 }])))
        .expect_open(TCP_80)
        .expect_open(TCP_81)
        .expect(UDP_80, |_, to| to == "x/a")
        // Two ranges with a gap in which TCP 80 is.
        .policy("p", on(json!([{ "port": 1, "endPort": 79 }, { "port": 81, "endPort": 65535, "protocol": "TCP" }])))
        .expect_open(TCP_81)
        .expect(TCP_80, |_, to| to == "x/a")
}

pub(super) fn p10_deny_all_holds_for_every_protocol(case: Case, _: Families) -> Case {
    let deny = json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] });
    PROTOCOLS.into_iter().fold(case.policy("p", deny), |case, protocol| {
        case.expect(Port { protocol, number: 81 }, |from, to| namespace(from) == "x" || namespace(to) == "x")
    })
}
