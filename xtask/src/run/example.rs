//! The shipped example is only worth shipping if its matrix shows what each of its lines does: taking any line away has
//! to change a cell.

use std::collections::BTreeSet;

use ipnet::IpNet;
use netpol_policy::decode;
use netpol_policy::model::{Cluster, NamespaceScope, ObjectName, Peer, Policy, Rule, Selector};
use netpol_policy::workloads::{self, Assignments, ExpandOptions};
use netpol_testbed::node::NodeOptions;
use netpol_testbed::probe::Outcome;
use netpol_testbed::sandbox::Answered;
use netpol_testbed::sandbox::cells::{self, Cell};
use netpol_testbed::sandbox::stand_ins;

use super::manifests::Folder;
use super::matrix;
use crate::process;

fn example() -> Cluster {
    let mut folder = Folder::new(&process::workspace().join("examples/payments"));
    let manifests = folder.read().unwrap().unwrap();
    assert_eq!(manifests.errors, Vec::<String>::new());
    let node = NodeOptions::default();
    let expanded = workloads::expand(
        &manifests.values,
        &ExpandOptions {
            node: node.name,
            node_addresses: node.uplink.iter().map(IpNet::addr).collect(),
            pod_cidrs: node.pod_cidrs,
            started: 0,
            previous: Assignments::new(),
        },
    );
    assert_eq!(expanded.rejected, []);
    let mut cluster = Cluster::default();
    for object in &expanded.objects {
        cluster.insert(decode::object(object).unwrap());
    }
    cluster
}

fn all_cells(cluster: &Cluster) -> Vec<Cell> {
    let node = NodeOptions::default();
    let reserved: Vec<IpNet> = node.pod_cidrs.iter().chain(&node.uplink).map(IpNet::trunc).collect();
    let hosts = stand_ins::choose(cluster.policies.values(), &reserved);
    assert_eq!(hosts.vacant, Vec::<String>::new());
    cells::cells(cluster.pods.values(), hosts.hosts.keys().copied(), &cells::named_ports(cluster))
}

/// Every way to take one line away, with a name for it.
fn without_a_line(policy: &Policy) -> Vec<(String, Option<Policy>)> {
    let name = &policy.name.name;
    let mut variants = vec![(name.clone(), None)];
    let mut vary = |what: String, change: &dyn Fn(&mut Policy)| {
        let mut variant = policy.clone();
        change(&mut variant);
        variants.push((format!("{name}: {what}"), Some(variant)));
    };
    for requirement in 0..policy.selector.requirements.len() {
        vary(format!("podSelector {requirement}"), &|policy| drop(policy.selector.requirements.remove(requirement)));
    }
    for direction in ["ingress", "egress"] {
        let rules = |policy: &mut Policy| -> Option<Vec<Rule>> {
            if direction == "ingress" { policy.ingress.clone() } else { policy.egress.clone() }
        };
        let set = |policy: &mut Policy, rules: Option<Vec<Rule>>| {
            if direction == "ingress" { policy.ingress = rules } else { policy.egress = rules }
        };
        let Some(given) = rules(&mut policy.clone()) else { continue };
        vary(direction.to_owned(), &|policy| set(policy, None));
        for (index, rule) in given.iter().enumerate() {
            let mut vary_rule = |what: String, change: &dyn Fn(&mut Rule)| {
                vary(format!("{direction}[{index}]{what}"), &|policy| {
                    let mut changed = given.clone();
                    change(&mut changed[index]);
                    set(policy, Some(changed));
                });
            };
            for port in 0..rule.ports.as_ref().map_or(0, Vec::len) {
                vary_rule(format!(".ports[{port}]"), &|rule| {
                    let mut ports = rule.ports.clone().unwrap();
                    ports.remove(port);
                    // A rule whose last port is taken away is one for all ports, and that must show.
                    rule.ports = (!ports.is_empty()).then_some(ports);
                });
            }
            for peer in 0..rule.peers.as_ref().map_or(0, Vec::len) {
                vary_rule(format!(".peers[{peer}]"), &|rule| {
                    let mut peers = rule.peers.clone().unwrap();
                    peers.remove(peer);
                    rule.peers = (!peers.is_empty()).then_some(peers);
                });
                match &rule.peers.as_ref().unwrap()[peer] {
                    Peer::Pods { namespaces, pods } => {
                        if !pods.requirements.is_empty() {
                            vary_rule(format!(".peers[{peer}].podSelector"), &|rule| {
                                let Peer::Pods { pods, .. } = &mut rule.peers.as_mut().unwrap()[peer] else { return };
                                *pods = Selector::default();
                            });
                        }
                        if matches!(namespaces, NamespaceScope::Matching(_)) {
                            vary_rule(format!(".peers[{peer}].namespaceSelector"), &|rule| {
                                let Peer::Pods { namespaces, .. } = &mut rule.peers.as_mut().unwrap()[peer] else {
                                    return;
                                };
                                *namespaces = NamespaceScope::Matching(Selector::default());
                            });
                        }
                    }
                    Peer::Block { except, .. } => {
                        for line in 0..except.len() {
                            vary_rule(format!(".peers[{peer}].except[{line}]"), &|rule| {
                                let Peer::Block { except, .. } = &mut rule.peers.as_mut().unwrap()[peer] else {
                                    return;
                                };
                                except.remove(line);
                            });
                        }
                    }
                    Peer::Nothing => panic!("the example has a peer that matches nothing"),
                }
            }
        }
    }
    variants
}

/// Lines that another one covers, and which that is.
const COVERED: [&str; 4] = [
    // allow-dns-egress selects every pod, and so isolates every pod's egress as well.
    "default-deny-all: egress",
    // The next peer allows these addresses too: that is what the example is to show of `except`.
    "payment-api-external-egress: egress[0].peers[0]",
    "payment-api-external-egress: egress[0].peers[0].except[0]",
    "payment-api-external-egress: egress[0].peers[0].except[1]",
];

#[test]
fn every_line_of_the_example_has_a_cell_that_proves_it() {
    let cluster = example();
    let cells = all_cells(&cluster);
    let answers =
        |cluster: &Cluster| -> Vec<bool> { cells.iter().map(|cell| cells::is_allowed(cluster, cell)).collect() };
    let before = answers(&cluster);
    let mut covered = BTreeSet::new();
    for (name, policy) in &cluster.policies {
        for (line, variant) in without_a_line(policy) {
            let mut changed = cluster.clone();
            match variant {
                Some(variant) => drop(changed.policies.insert(name.clone(), variant)),
                None => drop(changed.policies.remove(name)),
            }
            if answers(&changed) == before {
                covered.insert(line);
            }
        }
    }
    assert_eq!(covered, COVERED.map(str::to_owned).into());
}

#[test]
fn frontend_and_order_service_are_refused_by_the_payment_api_and_checkout_is_not() {
    let cluster = example();
    let cells = all_cells(&cluster);
    let is_allowed = |from: &str, port: u16| {
        let end = |name: &str| cells::End::Pod(ObjectName::new("production", name));
        let is_it =
            |cell: &&Cell| cell.from == end(from) && cell.to == end("payment-api-0") && cell.port.number == port;
        let answers: BTreeSet<bool> =
            cells.iter().filter(is_it).map(|cell| cells::is_allowed(&cluster, cell)).collect();
        assert_eq!(answers.len(), 1, "both families are treated alike");
        answers.contains(&true)
    };
    assert!(is_allowed("checkout-api-0", 8080) && is_allowed("checkout-api-0", 9090));
    assert!(!is_allowed("checkout-api-0", 6060));
    assert!(!is_allowed("frontend-0", 8080) && !is_allowed("order-svc-0", 8080));
}

#[test]
fn the_example_fits_a_terminal() {
    let cluster = example();
    let answered = |cell: Cell| {
        let expected = cells::is_allowed(&cluster, &cell);
        Answered { cell, expected, observed: if expected { Outcome::Allow } else { Outcome::Deny } }
    };
    let drawing = matrix::draw(&all_cells(&cluster).into_iter().map(answered).collect::<Vec<_>>());
    println!("{drawing}");
    assert!(drawing.lines().all(|line| line.chars().count() <= 120), "{drawing}");
    assert!(drawing.contains("payment-api-0…1"), "{drawing}");
}
