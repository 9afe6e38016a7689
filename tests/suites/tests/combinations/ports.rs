//! Ports and protocols: in each direction none, each of 24, three that mean nothing that is served, and seven pairs.

use netpol_policy::model::Protocol;
use netpol_suites::nine::case::Case;
use netpol_suites::nine::{NUMBERS, PROTOCOLS, port_name, ports as served};
use netpol_testbed::sandbox::Families;
use netpol_testbed::sandbox::cells::Port;
use serde_json::{Value, json};

use crate::Direction;
use crate::base::Base;

/// A port that nobody serves.
const NOT_SERVED: u16 = 7981;

/// Ranges that begin below all ports that are served, and end at the first or beyond the last.
const RANGES: [(u16, u16); 2] = [(53, 80), (53, 84)];

fn entry(protocol: Option<Protocol>, port: Option<Value>) -> Value {
    let mut entry = json!({});
    if let Some(protocol) = protocol {
        entry["protocol"] = json!(protocol.name());
    }
    if let Some(port) = port {
        entry["port"] = port;
    }
    entry
}

fn number(protocol: Protocol, number: u16) -> Value {
    entry(Some(protocol), Some(json!(number)))
}

fn named(protocol: Protocol, number: u16) -> Value {
    entry(Some(protocol), Some(json!(port_name(Port { protocol, number }))))
}

fn range(protocol: Protocol, (first, last): (u16, u16)) -> Value {
    json!({ "protocol": protocol.name(), "port": first, "endPort": last })
}

/// Protocol given or not, number given or not; each served port by its name; ranges.
fn single() -> Vec<Value> {
    let protocols = || std::iter::once(None).chain(PROTOCOLS.map(Some));
    let numbers = || std::iter::once(None).chain(NUMBERS.map(|number| Some(json!(number))));
    let mut entries: Vec<Value> =
        protocols().flat_map(|protocol| numbers().map(move |number| entry(protocol, number))).collect();
    entries.extend(served().map(|Port { protocol, number }| named(protocol, number)));
    entries.extend(PROTOCOLS.iter().flat_map(|protocol| RANGES.map(|ports| range(*protocol, ports))));
    entries
}

/// A name of another protocol's port, a name that no container has, a number that nobody serves: the pod is isolated all
/// the same.
fn vain() -> [Value; 3] {
    let of_udp = port_name(Port { protocol: Protocol::Udp, number: 81 });
    let unknown = port_name(Port { protocol: Protocol::Tcp, number: NOT_SERVED });
    [
        entry(Some(Protocol::Tcp), Some(json!(of_udp))),
        entry(Some(Protocol::Tcp), Some(json!(unknown))),
        number(Protocol::Tcp, NOT_SERVED),
    ]
}

/// Two entries that differ in number, in protocol, or in the way they name their ports, and two that overlap.
fn pairs() -> [[Value; 2]; 7] {
    use Protocol::{Sctp, Tcp, Udp};
    [
        [number(Tcp, 80), number(Tcp, 81)],
        [number(Tcp, 80), number(Udp, 80)],
        [number(Udp, 81), number(Sctp, 80)],
        [named(Tcp, 80), named(Udp, 81)],
        [named(Sctp, 80), number(Tcp, 81)],
        [range(Tcp, (53, 80)), named(Tcp, 80)],
        [entry(Some(Udp), None), range(Udp, (81, 84))],
    ]
}

pub(crate) fn cases(families: Families) -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in Direction::BOTH {
        let mut case = |what: &str, ports: Vec<Value>| {
            let written: Vec<String> = ports.iter().map(ToString::to_string).collect();
            let name = format!("ports: {} {what} {}", direction.rules(), written.join(" "));
            cases.push(Base::new().with_ports(direction, ports).case(name.trim_end(), families));
        };
        case("on no port in particular", Vec::new());
        single().into_iter().for_each(|port| case("on", vec![port]));
        vain().into_iter().for_each(|port| case("in vain on", vec![port]));
        pairs().into_iter().for_each(|ports| case("on", ports.into()));
    }
    cases
}
