//! Peers: in each direction none, each of ten, and each pair of those.

use netpol_suites::nine::case::Case;
use netpol_suites::nine::{NS, blocks, blocks_except, pod};
use netpol_testbed::sandbox::Families;
use serde_json::{Value, json};

use crate::Direction;
use crate::base::Base;

/// The ten, each with its name. A block is one entry for each family, since an entry speaks of one family only.
fn ten(families: Families) -> Vec<(String, Vec<Value>)> {
    let namespaces = [
        ("the own namespace", None),
        ("all namespaces", Some(json!({}))),
        ("namespace x", Some(json!({ "matchLabels": { NS: "x" } }))),
    ];
    let pods = [("", None), ("all pods of ", Some(json!({}))), ("pods c of ", Some(pod("c")))];
    let mut peers = Vec::new();
    for (of, namespace) in &namespaces {
        for (which, pods) in &pods {
            let mut peer = json!({});
            for (key, selector) in [("namespaceSelector", namespace), ("podSelector", pods)] {
                if let Some(selector) = selector {
                    peer[key] = selector.clone();
                }
            }
            // Without either it is no peer.
            if peer != json!({}) {
                peers.push((format!("{which}{of}"), vec![peer]));
            }
        }
    }
    peers.push(("a block".to_owned(), blocks(families, |family| family.block("z/c", family.wide()))));
    let but =
        blocks_except(families, |family| (family.block("z/c", family.wide()), family.block("z/c", family.narrow())));
    peers.push(("a block but a part".to_owned(), but));
    peers
}

pub(crate) fn cases(families: Families) -> Vec<Case> {
    let ten = ten(families);
    let mut cases = Vec::new();
    for direction in Direction::BOTH {
        let mut case = |name: String, peers: Vec<Value>| {
            let name = format!("peers: {} {} {name}", direction.rules(), direction.peers());
            cases.push(Base::new().with_peers(direction, peers).case(name, families));
        };
        case("nobody in particular".to_owned(), Vec::new());
        for (name, peers) in &ten {
            case(name.clone(), peers.clone());
        }
        for (number, (first, peers)) in ten.iter().enumerate() {
            for (second, more) in ten.iter().skip(number + 1) {
                case(format!("{first}, {second}"), [peers.as_slice(), more.as_slice()].concat());
            }
        }
    }
    cases
}
