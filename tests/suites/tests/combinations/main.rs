//! 230 cases that combine what a policy can say, one thing after the other: the dimensions of the public conformance
//! suite cyclonus (mattfenwick/cyclonus, pkg/generator), generated anew.
//!
//! | group | cases | what varies |
//! |---|---|---|
//! | targets | 6 | whom the policy selects |
//! | rules | 4 | none at all, or everything, in each direction |
//! | peers | 112 | in each direction: none, each of ten peers, each pair of them |
//! | ports | 70 | in each direction: none, each of 24, three that are served by nobody, seven pairs |
//! | conflicts | 16 | in each direction: two policies of which one denies what the other allows |
//! | actions | 6 | policies, namespaces, pods and labels that come, change and go, in several steps |
//! | namespaces | 2 | namespaces by the label of their name |
//! | upstream | 13 | tests of upstream's suite, see `netpol_suites::nine::upstream` |
//! | example | 1 | a policy with a bit of everything, as the documentation of Kubernetes has it |
//!
//! All but the last two change one base policy, [`base::Base`], in one respect. Every case is probed between all pairs
//! of pods on all ports and protocols, by their own addresses and by those of Services, and each connection is held
//! against the oracle.

mod actions;
mod base;
mod conflicts;
mod peers;
mod ports;
mod simple;

use std::collections::{BTreeMap, BTreeSet};

use netpol_suites::agent_binary;
use netpol_suites::nine::case::Case;
use netpol_suites::nine::run::{Through, run};
use netpol_suites::nine::upstream;
use netpol_testbed::sandbox::Families;

/// A direction of traffic, as a policy has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The key of its rules.
    const fn rules(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The key of a rule's peers.
    const fn peers(self) -> &'static str {
        match self {
            Self::Ingress => "from",
            Self::Egress => "to",
        }
    }

    /// As in `policyTypes`.
    const fn policy_type(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }
}

/// The tests of upstream's that are among the combinations: ingress by peers and ports, once each.
const UPSTREAM: [&str; 13] =
    ["T01", "T03", "T06", "T07", "T08", "T09", "T10", "T11", "T12", "T13", "T14", "T15", "T16"];

fn groups(families: Families) -> Vec<(&'static str, Vec<Case>)> {
    let upstream = upstream::TABLE.iter().filter(|row| UPSTREAM.contains(&row.id)).map(|row| row.case(families));
    vec![
        ("targets", simple::targets(families)),
        ("rules", simple::rules(families)),
        ("peers", peers::cases(families)),
        ("ports", ports::cases(families)),
        ("conflicts", conflicts::cases(families)),
        ("actions", actions::cases(families)),
        ("namespaces", simple::namespaces(families)),
        ("upstream", upstream.collect()),
        ("example", simple::example(families)),
    ]
}

fn every_case(families: Families, through: Through) {
    let cases: Vec<Case> = groups(families).into_iter().flat_map(|(_, cases)| cases).collect();
    let tally = run(&agent_binary(), families, through, &cases).expect("run");
    assert_eq!(tally.cases, 230, "none is left out");
    // A pod is created in a namespace that is there, and one in a namespace that is created with it. All other steps have
    // 9×9 pairs with six ports in each family, or `run` fails.
    assert_eq!(tally.other_pods, 2, "steps with other pods than the nine");
    tally.report("combinations", families, through);
}

#[test]
#[ignore = "dual stack has these cells too: `cargo xtask conformance --all` runs it"]
fn every_case_over_ipv4() {
    every_case(Families::Ipv4, Through::Pod);
}

#[test]
#[ignore = "dual stack has these cells too: `cargo xtask conformance --all` runs it"]
fn every_case_over_ipv6() {
    every_case(Families::Ipv6, Through::Pod);
}

#[test]
fn every_case_over_dual_stack() {
    every_case(Families::Dual, Through::Pod);
}

#[test]
#[ignore = "as long as all else here: `cargo xtask conformance --all` runs it"]
fn every_case_through_services_over_ipv4() {
    every_case(Families::Ipv4, Through::Service);
}

#[test]
#[ignore = "as long as all else here: `cargo xtask conformance --all` runs it"]
fn every_case_through_services_over_ipv6() {
    every_case(Families::Ipv6, Through::Service);
}

#[test]
fn every_case_through_services_over_dual_stack() {
    every_case(Families::Dual, Through::Service);
}

#[test]
fn the_groups_have_the_cases_that_their_dimensions_make() {
    for families in [Families::Ipv4, Families::Ipv6, Families::Dual] {
        let groups: BTreeMap<&str, Vec<Case>> = groups(families).into_iter().collect();
        let numbers: Vec<(&str, usize)> = groups.iter().map(|(group, cases)| (*group, cases.len())).collect();
        let expected = [
            ("actions", 6),
            ("conflicts", 16),
            ("example", 1),
            ("namespaces", 2),
            ("peers", 112),
            ("ports", 70),
            ("rules", 4),
            ("targets", 6),
            ("upstream", 13),
        ];
        assert_eq!(numbers, expected);
        let names: BTreeSet<&str> = groups.values().flatten().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), 230, "every case has a name of its own");
        for (group, cases) in &groups {
            // Written out, no two cases of a group say the same; but the base policy is among the ports of both directions.
            let repeated = usize::from(*group == "ports");
            let said: BTreeSet<String> =
                cases.iter().map(|case| format!("{:?}", case.steps.iter().map(|step| &step.manifests))).collect();
            assert_eq!(said.len() + repeated, cases.len(), "{group}");
        }
    }
}
