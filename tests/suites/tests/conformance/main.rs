//! What the Kubernetes API says, over pods in network namespaces, with real packets and the real agent.
//!
//! The data-path tests of upstream's own suite, from the table `netpol_suites::nine::upstream`, in each family.

mod identity;
mod points;

use std::collections::BTreeSet;

use netpol_suites::agent_binary;
use netpol_suites::nine::run::{Through, run};
use netpol_suites::nine::upstream;
use netpol_testbed::sandbox::Families;

fn upstreams_tests(families: Families, through: Through) {
    let tally = run(&agent_binary(), families, through, &upstream::cases(families)).expect("run");
    assert_eq!(tally.cases, 48, "upstream's data-path tests");
    tally.report("upstream", families, through);
}

#[test]
fn upstreams_tests_over_ipv4() {
    upstreams_tests(Families::Ipv4, Through::Pod);
}

#[test]
fn upstreams_tests_over_ipv6() {
    upstreams_tests(Families::Ipv6, Through::Pod);
}

#[test]
fn upstreams_tests_over_dual_stack() {
    upstreams_tests(Families::Dual, Through::Pod);
}

#[test]
fn upstreams_tests_through_services_over_ipv4() {
    upstreams_tests(Families::Ipv4, Through::Service);
}

#[test]
fn upstreams_tests_through_services_over_ipv6() {
    upstreams_tests(Families::Ipv6, Through::Service);
}

#[test]
fn upstreams_tests_through_services_over_dual_stack() {
    upstreams_tests(Families::Dual, Through::Service);
}

#[test]
fn every_test_of_upstreams_has_an_id_of_its_own_and_something_expected_by_hand_in_each_step() {
    let ids: BTreeSet<&str> = upstream::TABLE.iter().map(|row| row.id).collect();
    assert_eq!(ids.len(), upstream::TABLE.len());
    for case in upstream::cases(Families::Dual) {
        assert!(!case.steps.is_empty(), "{}", case.name);
        assert!(case.steps.iter().all(|step| !step.expected.is_empty()), "{}", case.name);
    }
}
