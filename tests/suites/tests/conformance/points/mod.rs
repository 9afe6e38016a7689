//! The points of the API that upstream's tests do not ask, over the nine pods: one function a point, or a few points
//! that one case shows. The letters and numbers are those of docs/semantics.md.
//!
//! Policies are written as people write files: the agent's own reading of manifests, with its defaults, is part of what
//! is tested.

mod blocks;
mod objects;
mod ports;

use netpol_suites::agent_binary;
use netpol_suites::nine::case::Case;
use netpol_suites::nine::run::{Through, run};
use netpol_testbed::sandbox::Families;

type Build = fn(Case, Families) -> Case;

/// Each with its name in reports.
const POINTS: [(&str, Build); 27] = [
    ("A1 policyTypes by default", objects::a1_policy_types_absent_or_empty),
    ("A2 policyTypes repeated", objects::a2_policy_types_repeated),
    ("A3 a section that policyTypes does not name", objects::a3_section_not_named),
    ("A4 the empty podSelector", objects::a4_pod_selector_empty_null_or_absent),
    ("A5 no ingress", objects::a5_ingress_absent_null_or_empty),
    ("A6 A7 A8 the empty rule, peers and ports", objects::a6_a7_a8_rule_peers_and_ports_empty),
    ("A9 A10 entries of ports without port or protocol", objects::a9_a10_port_entry_without_port_or_protocol),
    ("A12 A13 namespaces and pods of a peer", objects::a12_a13_selectors_of_a_peer),
    ("A14 operators", objects::a14_operators_where_a_key_is_absent),
    ("A17 a pod with a long name and dots", objects::a17_pod_name_of_full_length_with_dots),
    ("P1 a named port that differs by pod, ingress", ports::p1_named_port_of_each_destination),
    ("P2 P3 a named port that differs by pod, egress", ports::p2_p3_named_port_without_peers_in_every_namespace),
    ("P4 a named port with a block", ports::p4_named_port_with_a_block),
    ("P5 one name for two protocols", ports::p5_one_name_for_two_protocols),
    ("P6 one name for two ports", ports::p6_one_name_for_two_ports),
    ("P7 a named port of a sidecar", ports::p7_named_port_of_a_sidecar),
    ("P9 ranges", ports::p9_ranges_of_one_and_of_all_ports),
    ("P10 deny of all three protocols", ports::p10_deny_all_holds_for_every_protocol),
    ("B1 except in one rule", blocks::b1_excepts_of_one_rule),
    ("B1 except in two rules", blocks::b1_excepts_of_two_rules_with_other_ports),
    ("B1 except in two policies", blocks::b1_excepts_of_two_policies_in_any_order),
    ("B2 an excepted pod by its labels", blocks::b2_excepted_address_of_a_selected_pod),
    ("B3 B4 legacy spellings", blocks::b3_b4_host_bits_leading_zeros_and_mapped_addresses),
    ("B5 B9 all addresses of one family", blocks::b5_b9_all_addresses_of_one_family),
    ("B6 blocks mean pods for ingress", blocks::b6_blocks_of_pods_for_ingress),
    ("X12 the address of a metadata service", blocks::x12_metadata_address_is_one_like_others),
    ("W11 a namespace that is deleted and made anew", objects::w11_namespace_deleted_and_made_anew),
];

#[test]
fn the_points_of_the_api_hold_for_pods() {
    let (families, through) = (Families::Dual, Through::Pod);
    let cases: Vec<Case> = POINTS.iter().map(|(name, build)| build(Case::new(*name, families), families)).collect();
    run(&agent_binary(), families, through, &cases).expect("run").report("points", families, through);
}
