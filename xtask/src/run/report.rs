//! What is printed: what was set up, the matrix, changes of it, drop counters, and all of it as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use netpol_policy::model::{ObjectName, Pod};
use netpol_testbed::agent::Dropped;
use netpol_testbed::node::BRIDGE;
use netpol_testbed::probe::Outcome;
use netpol_testbed::sandbox::cells::{Cell, End, Port, declared_ports};
use netpol_testbed::sandbox::stand_ins::StandIns;
use netpol_testbed::sandbox::{Answered, Sandbox};
use serde_json::{Value, json};

use super::matrix;

/// Lines of changes that are printed one by one.
const CHANGES: usize = 200;

/// What runs where in the sandbox.
pub(super) fn set_up(sandbox: &Sandbox) -> String {
    let node = sandbox.node();
    let cluster = sandbox.cluster();
    let pods = cluster.pods.values().filter(|pod| !pod.addresses.is_empty());
    format!(
        "node {}: {}; bridge {BRIDGE}: {}\n  {}\n{}",
        node.name(),
        list(&node.addresses()),
        list(&node.gateways()),
        node.shell(),
        inventory(pods, sandbox.hosts(), cluster.policies.keys())
    )
}

/// Pods, hosts outside, policies.
pub(super) fn inventory<'a>(
    pods: impl Iterator<Item = &'a Pod>,
    hosts: &StandIns,
    policies: impl Iterator<Item = &'a ObjectName>,
) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let mut line = |line: String| {
        let _ = writeln!(text, "{}", line.trim_end());
    };
    let pods: Vec<&Pod> = pods.collect();
    // On one node the node goes without saying.
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    line(format!("{} pods", pods.len()));
    let width = pods.iter().map(|pod| pod.name.to_string().len()).max().unwrap_or(0);
    for pod in pods {
        let ports = declared_ports(pod).iter().map(Port::to_string).collect::<Vec<_>>().join(", ");
        let name = pod.name.to_string();
        let node = if nodes.len() > 1 { format!("{}  ", pod.node) } else { String::new() };
        line(format!("  {name:<width$}  {node}{:<30}  {ports}", list(&pod.addresses)));
    }
    line(format!("{} outside hosts", hosts.hosts.len()));
    for (address, stands_for) in &hosts.hosts {
        line(format!("  {:<width$}  {}", address.to_string(), stands_for.join(", ")));
    }
    let policies: Vec<&ObjectName> = policies.collect();
    line(format!("{} policies", policies.len()));
    for name in policies {
        line(format!("  {name}"));
    }
    line(String::new());
    text
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The matrix, and how far it is as the policies say.
pub(super) fn matrix(cells: &[Answered]) -> String {
    format!("{}\n{}", matrix::draw(cells), verdict(cells))
}

fn verdict(cells: &[Answered]) -> String {
    let differ = cells.iter().filter(|answered| !answered.agrees()).count();
    let allowed = cells.iter().filter(|answered| answered.observed == Outcome::Allow).count();
    let text = format!(
        "{} cells, {allowed} allowed: {} as the policies say, {differ} differ",
        cells.len(),
        cells.len() - differ
    );
    match differ {
        0 => format!("{text}\n"),
        _ => format!("{text}:\n{}", matrix::differences(cells)),
    }
}

/// The cells that are not what they were.
pub(super) fn changes(before: &[Answered], after: &[Answered]) -> String {
    let by_cell = |answered: &[Answered]| -> BTreeMap<Cell, String> {
        answered.iter().map(|answered| (answered.cell.clone(), matrix::observed(&answered.observed))).collect()
    };
    let (before, after_by_cell) = (by_cell(before), by_cell(after));
    let ends = |cells: &BTreeMap<Cell, String>| -> BTreeSet<End> {
        cells.keys().flat_map(|cell| [cell.from.clone(), cell.to.clone()]).collect()
    };
    let (old_ends, new_ends) = (ends(&before), ends(&after_by_cell));
    let has = |ends: &BTreeSet<&End>, cell: &Cell| ends.contains(&cell.from) || ends.contains(&cell.to);
    let (gone, new): (BTreeSet<&End>, BTreeSet<&End>) =
        (old_ends.difference(&new_ends).collect(), new_ends.difference(&old_ends).collect());
    // Families that change alike share a line.
    let mut lines = BTreeMap::<(&End, &End, Port, String), Vec<&str>>::new();
    let mut changed = 0_usize;
    for (cell, now) in &after_by_cell {
        let change = match before.get(cell) {
            Some(was) if was == now => continue,
            Some(was) => format!("{was} -> {now}"),
            None if has(&new, cell) => continue,
            None => format!("new: {now}"),
        };
        lines.entry((&cell.from, &cell.to, cell.port, change)).or_default().push(family(cell));
        changed += 1;
    }
    for (cell, was) in &before {
        if !after_by_cell.contains_key(cell) && !has(&gone, cell) {
            lines.entry((&cell.from, &cell.to, cell.port, format!("gone: was {was}"))).or_default().push(family(cell));
            changed += 1;
        }
    }
    let mut text = format!("{changed} cells changed\n");
    // Whoever comes or goes takes a whole row and column along: these are summed up.
    for end in gone {
        let _ = writeln!(text, "  {end} is gone");
    }
    for end in new {
        let own: Vec<_> =
            after.iter().filter(|answered| [&answered.cell.from, &answered.cell.to].contains(&end)).collect();
        let allowed = own.iter().filter(|answered| answered.observed == Outcome::Allow).count();
        let _ = writeln!(text, "  {end} is new: {} cells, {allowed} allowed", own.len());
    }
    for ((from, to, port, change), families) in lines.iter().take(CHANGES) {
        let _ = writeln!(text, "  {from} -> {to} {port} {}: {change}", families.join(", "));
    }
    if lines.len() > CHANGES {
        let _ = writeln!(text, "  … and {} lines more", lines.len() - CHANGES);
    }
    text + &verdict(after)
}

/// The agent's drop counters.
pub(super) fn dropped(dropped: &[Dropped]) -> String {
    if dropped.is_empty() {
        return "no packet was dropped\n".to_owned();
    }
    let width = dropped.iter().map(|dropped| dropped.namespace.len()).max().unwrap_or(0).max(9);
    let mut text =
        format!("dropped packets\n  {:<width$}  {:<9}  {:<18}  {:>9}\n", "namespace", "direction", "reason", "packets");
    for Dropped { namespace, direction, reason, packets } in dropped {
        let namespace = if namespace.is_empty() { "-" } else { namespace };
        let _ = writeln!(text, "  {namespace:<width$}  {direction:<9}  {reason:<18}  {packets:>9}");
    }
    text
}

/// The drop counters of the agents of many nodes.
pub(super) fn dropped_by_node(drops: &BTreeMap<String, Vec<Dropped>>) -> String {
    drops.iter().map(|(node, drops)| format!("{node}: {}", dropped(drops))).collect()
}

fn family(cell: &Cell) -> &'static str {
    if cell.destination.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Everything, for programs.
pub(super) fn json(cells: &[Answered], dropped: &[Dropped]) -> Value {
    let cell = |answered: &Answered| {
        let cell = &answered.cell;
        let mut value = json!({
            "from": cell.from.to_string(),
            "to": cell.to.to_string(),
            "address": cell.destination.to_string(),
            "family": family(cell),
            "via": match &cell.to {
                End::Pod(_) => "pod",
                End::Host(_) => "outside",
            },
            "protocol": cell.port.protocol.name(),
            "port": cell.port.number,
            "expected": if answered.expected { "allow" } else { "deny" },
            "observed": match &answered.observed {
                Outcome::Allow => "allow",
                Outcome::Deny => "deny",
                Outcome::Error(_) => "error",
            },
        });
        if let Outcome::Error(message) = &answered.observed {
            value["error"] = json!(message);
        }
        value
    };
    let drop = |dropped: &Dropped| {
        let Dropped { namespace, direction, reason, packets } = dropped;
        json!({ "namespace": namespace, "direction": direction, "reason": reason, "packets": packets })
    };
    let agree = cells.iter().filter(|answered| answered.agrees()).count();
    json!({
        "schema": 1,
        "cells": cells.iter().map(cell).collect::<Vec<_>>(),
        "agree": agree,
        "differ": cells.len() - agree,
        "dropped": dropped.iter().map(drop).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::Protocol;

    use super::*;

    fn answered(to: &str, address: &str, expected: bool, observed: Outcome) -> Answered {
        let port = Port { protocol: Protocol::Tcp, number: 9090 };
        let address = address.parse().unwrap();
        let to = to
            .split_once('/')
            .map_or(End::Host(address), |(namespace, name)| End::Pod(ObjectName::new(namespace, name)));
        let from = End::Pod(ObjectName::new("production", "payment-api-0"));
        Answered { cell: Cell { from, to, source: address, destination: address, port }, expected, observed }
    }

    #[test]
    fn the_document_has_the_fields_that_programs_read() {
        let cells = [
            answered("monitoring/prometheus-0", "10.244.0.7", true, Outcome::Deny),
            answered("", "2001:db8::1", false, Outcome::Error("refused".into())),
        ];
        let dropped = Dropped {
            namespace: "production".into(),
            direction: "egress".into(),
            reason: "no_rule".into(),
            packets: 3,
        };
        assert_eq!(
            json(&cells, &[dropped]),
            json!({
                "schema": 1,
                "cells": [
                    {
                        "from": "production/payment-api-0", "to": "monitoring/prometheus-0", "address": "10.244.0.7",
                        "family": "IPv4", "via": "pod", "protocol": "TCP", "port": 9090, "expected": "allow",
                        "observed": "deny",
                    },
                    {
                        "from": "production/payment-api-0", "to": "2001:db8::1", "address": "2001:db8::1",
                        "family": "IPv6", "via": "outside", "protocol": "TCP", "port": 9090, "expected": "deny",
                        "observed": "error", "error": "refused",
                    },
                ],
                "agree": 0,
                "differ": 2,
                "dropped": [{ "namespace": "production", "direction": "egress", "reason": "no_rule", "packets": 3 }],
            })
        );
    }

    #[test]
    fn only_what_changes_is_reprinted() {
        let same = answered("a/same", "10.0.0.1", true, Outcome::Allow);
        let before = [
            same.clone(),
            answered("a/other", "10.0.0.2", true, Outcome::Allow),
            answered("a/other", "fd00::2", true, Outcome::Allow),
            answered("a/gone", "10.0.0.3", true, Outcome::Allow),
        ];
        let after = [
            same,
            answered("a/other", "10.0.0.2", false, Outcome::Deny),
            answered("a/other", "fd00::2", false, Outcome::Deny),
            answered("a/new", "10.0.0.4", true, Outcome::Allow),
        ];
        let text = changes(&before, &after);
        assert!(text.starts_with("2 cells changed\n"), "{text}");
        assert!(text.contains("production/payment-api-0 -> a/other TCP 9090 IPv4, IPv6: allow -> deny\n"), "{text}");
        assert!(text.contains("a/new is new: 1 cells, 1 allowed\n"), "{text}");
        assert!(text.contains("a/gone is gone\n"), "{text}");
        assert!(!text.contains("a/same"), "{text}");
    }
}
