//! Blocks of addresses: what `except` takes out, how blocks are spelled, which families they speak of.

use netpol_suites::nine::case::Case;
use netpol_suites::nine::{Family, TCP_80, TCP_81, blocks, blocks_except, egress, ingress, namespace, pod};
use netpol_testbed::sandbox::Families;
use serde_json::{Value, json};

/// All addresses but those of y.
fn all_but_y(families: Families) -> Vec<Value> {
    blocks_except(families, |family| (family.everything().to_owned(), family.block("y/a", family.wide())))
}

/// Those of y but pods b and c.
fn y_but_b_and_c(families: Families) -> Vec<Value> {
    blocks_except(families, |family| (family.block("y/a", family.wide()), family.block("y/b", family.narrow())))
}

fn denied_to_y(from: &str, to: &str) -> bool {
    from == "x/a" && namespace(to) == "y"
}

fn denied_to_b_and_c_of_y(from: &str, to: &str) -> bool {
    from == "x/a" && ["y/b", "y/c"].contains(&to)
}

pub(super) fn b1_excepts_of_one_rule(case: Case, families: Families) -> Case {
    let to = |peers: Vec<Value>| egress(pod("a"), json!([{ "to": peers }]));
    let both = [all_but_y(families), y_but_b_and_c(families)].concat();
    let back = [all_but_y(families), blocks(families, |family| family.everything().to_owned())].concat();
    case.policy("p", to(all_but_y(families)))
        .expect(TCP_80, denied_to_y)
        // What one peer takes out, another of the same rule lets in.
        .policy("p", to(both))
        .expect(TCP_80, denied_to_b_and_c_of_y)
        .policy("p", to(back))
        .expect_open(TCP_80)
}

pub(super) fn b1_excepts_of_two_rules_with_other_ports(case: Case, families: Families) -> Case {
    let everything = blocks(families, |family| family.everything().to_owned());
    let rules = json!([
        { "to": all_but_y(families) },
        { "to": everything, "ports": [{ "port": 80 }] },
    ]);
    case.policy("p", egress(pod("a"), rules)).expect_open(TCP_80).expect(TCP_81, denied_to_y)
}

pub(super) fn b1_excepts_of_two_policies_in_any_order(case: Case, families: Families) -> Case {
    let first = egress(pod("a"), json!([{ "to": all_but_y(families) }]));
    let second = egress(pod("a"), json!([{ "to": y_but_b_and_c(families) }]));
    let only_second = |from: &str, to: &str| from == "x/a" && to != "y/a";
    case.policy("first", first.clone())
        .policy("second", second.clone())
        .expect(TCP_80, denied_to_b_and_c_of_y)
        .delete("NetworkPolicy", "first")
        .expect(TCP_80, only_second)
        .policy("first", first)
        .expect(TCP_80, denied_to_b_and_c_of_y)
        .delete("NetworkPolicy", "second")
        .expect(TCP_80, denied_to_y)
        .policy("second", second)
        .expect(TCP_80, denied_to_b_and_c_of_y)
}

pub(super) fn b2_excepted_address_of_a_selected_pod(case: Case, families: Families) -> Case {
    let mut peers = all_but_y(families);
    peers.push(json!({ "namespaceSelector": {}, "podSelector": pod("b") }));
    case.policy("p", egress(pod("a"), json!([{ "to": peers }])))
        .expect(TCP_80, |from, to| from == "x/a" && ["y/a", "y/c"].contains(&to))
}

pub(super) fn b3_b4_host_bits_leading_zeros_and_mapped_addresses(case: Case, families: Families) -> Case {
    let host_bits = blocks(families, |family| format!("{}/{}", family.address("y/b"), family.wide()));
    let case = case
        .policy("p", egress(pod("a"), json!([{ "to": host_bits }])))
        .expect(TCP_80, |from, to| from == "x/a" && namespace(to) != "y");
    // 10.244.1.0/24 in two forms that objects from before Kubernetes 1.36 can have; IPv6 has none but its own.
    ["010.244.001.000/24", "::ffff:10.244.1.0/120"].into_iter().fold(case, |case, legacy| {
        let mut peers = vec![json!({ "ipBlock": { "cidr": legacy } })];
        peers.push(json!({ "ipBlock": { "cidr": Family::V6.block("y/b", Family::V6.wide()) } }));
        case.policy("p", egress(pod("a"), json!([{ "to": peers }])))
            .expect(TCP_80, |from, to| from == "x/a" && namespace(to) != "y")
    })
}

pub(super) fn b5_b9_all_addresses_of_one_family(case: Case, families: Families) -> Case {
    // The other family stays shut: which of a pod's cells that concerns, the oracle says.
    Family::of(families)
        .iter()
        .fold(case, |case, family| {
            let peers = json!([{ "ipBlock": { "cidr": family.everything() } }]);
            case.policy("p", ingress(pod("a"), json!([{ "from": peers.clone() }])))
                .probe()
                .policy("p", egress(pod("a"), json!([{ "to": peers }])))
                .probe()
        })
        .policy("p", ingress(pod("a"), json!([{ "from": blocks(families, |family| family.everything().to_owned()) }])))
        .expect_open(TCP_80)
}

pub(super) fn b6_blocks_of_pods_for_ingress(case: Case, families: Families) -> Case {
    let from =
        blocks_except(families, |family| (family.block("x/a", family.wide()), family.block("x/c", family.host())));
    case.policy("p", ingress(json!({}), json!([{ "from": from }])))
        .expect(TCP_80, |from, to| namespace(to) == "x" && (namespace(from) != "x" || from == "x/c"))
}

pub(super) fn x12_metadata_address_is_one_like_others(case: Case, families: Families) -> Case {
    // As people write it: everything but where the cloud's metadata service is. Hosts outside stand for both parts.
    let peers = blocks_except(families, |family| match family {
        Family::V4 => (family.everything().to_owned(), "169.254.169.254/32".to_owned()),
        Family::V6 => (family.everything().to_owned(), "fd00:ec2::254/128".to_owned()),
    });
    case.policy("p", egress(pod("a"), json!([{ "to": peers }]))).expect_open(TCP_80)
}
