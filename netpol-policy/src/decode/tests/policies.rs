use super::*;

/// Whether a policy isolates ingress and egress, and with how many rules.
fn isolated(policy: &Policy) -> (Option<usize>, Option<usize>) {
    (policy.ingress.as_ref().map(Vec::len), policy.egress.as_ref().map(Vec::len))
}

#[test]
fn a1_absent_or_empty_policy_types_are_ingress_and_egress_only_where_egress_has_rules() {
    let table = [
        (json!({}), (Some(0), None)),
        (json!({ "policyTypes": null }), (Some(0), None)),
        (json!({ "policyTypes": [] }), (Some(0), None)),
        (json!({ "ingress": [{}] }), (Some(1), None)),
        (json!({ "egress": null }), (Some(0), None)),
        (json!({ "egress": [] }), (Some(0), None)),
        (json!({ "egress": [{}] }), (Some(0), Some(1))),
        (json!({ "policyTypes": [], "egress": [{}] }), (Some(0), Some(1))),
        (json!({ "policyTypes": ["Egress"] }), (None, Some(0))),
        (json!({ "policyTypes": ["Egress"], "egress": [] }), (None, Some(0))),
        (json!({ "policyTypes": ["Ingress"] }), (Some(0), None)),
        (json!({ "policyTypes": ["Egress", "Ingress"] }), (Some(0), Some(0))),
    ];
    for (spec, expected) in table {
        assert_eq!(isolated(&policy(spec.clone())), expected, "{spec}");
    }
}

#[test]
fn a1_a_policy_without_spec_isolates_the_namespace_for_ingress() {
    for spec in [json!(null), json!({})] {
        let policy = policy(spec);
        assert!(policy.selector.is_everything());
        assert_eq!(isolated(&policy), (Some(0), None));
    }
}

#[test]
fn a2_policy_types_may_repeat_but_not_be_three() {
    assert_eq!(isolated(&policy(json!({ "policyTypes": ["Ingress", "Ingress"] }))), (Some(0), None));
    assert_eq!(isolated(&policy(json!({ "policyTypes": ["Egress", "Egress"] }))), (None, Some(0)));
    let three = rejected(json!({ "policyTypes": ["Ingress", "Egress", "Ingress"] }));
    assert_eq!(three.field, "spec.policyTypes");
}

#[test]
fn a2_other_policy_types_are_rejected_by_index() {
    for bad in [json!("ingress"), json!("All"), json!(""), json!(null), json!(1)] {
        assert_eq!(rejected(json!({ "policyTypes": ["Ingress", bad] })).field, "spec.policyTypes[1]");
    }
    assert_eq!(rejected(json!({ "policyTypes": "Ingress" })).field, "spec.policyTypes");
}

#[test]
fn a3_a_section_that_policy_types_does_not_name_is_void_but_still_validated() {
    assert_eq!(isolated(&policy(json!({ "policyTypes": ["Ingress"], "egress": [{}] }))), (Some(0), None));
    assert_eq!(isolated(&policy(json!({ "policyTypes": ["Egress"], "ingress": [{}] }))), (None, Some(0)));
    let rejected = rejected(json!({ "policyTypes": ["Ingress"], "egress": [{ "to": [{}] }] }));
    assert_eq!(rejected.field, "spec.egress[0].to[0]");
}

#[test]
fn a4_an_empty_null_or_absent_pod_selector_selects_the_namespace() {
    let full_of_nothing = json!({ "matchLabels": {}, "matchExpressions": [] });
    let full_of_null = json!({ "matchLabels": null, "matchExpressions": null });
    for selector in [json!({}), json!(null), full_of_nothing, full_of_null] {
        assert!(policy(json!({ "podSelector": selector })).selector.is_everything());
    }
    assert!(policy(json!({ "ingress": [] })).selector.is_everything());
    assert_eq!(policy(json!({ "podSelector": { "matchLabels": { "app": "db" } } })).selector, labelled("app", "db"));
}

#[test]
fn a5_ingress_that_is_absent_null_or_empty_has_no_rules() {
    for spec in [
        json!({ "policyTypes": ["Ingress"] }),
        json!({ "policyTypes": ["Ingress"], "ingress": null }),
        json!({ "policyTypes": ["Ingress"], "ingress": [] }),
    ] {
        assert_eq!(policy(spec).ingress, Some(vec![]));
    }
}

#[test]
fn a6_a7_a8_empty_null_and_absent_peers_and_ports_mean_all() {
    let every = Rule { index: 0, peers: None, ports: None };
    for entry in [json!({}), json!(null), json!({ "from": [], "ports": [] }), json!({ "from": null, "ports": null })] {
        assert_eq!(rule(entry), every);
    }
    // `to` in an ingress rule is an unknown field.
    assert_eq!(rule(json!({ "to": [{ "podSelector": {} }] })), every);
    let egress = policy(json!({ "egress": [{ "to": [] }, { "ports": null }] })).egress.expect("egress");
    assert_eq!(egress, [every.clone(), Rule { index: 1, ..every }]);
}

#[test]
fn a9_a10_an_entry_without_protocol_is_tcp_and_without_port_every_port() {
    let all = |protocol| PortMatch { protocol, ports: PortSpec::All };
    assert_eq!(port(json!({})), all(Protocol::Tcp));
    assert_eq!(port(json!(null)), all(Protocol::Tcp));
    assert_eq!(port(json!({ "protocol": null, "port": null, "endPort": null })), all(Protocol::Tcp));
    assert_eq!(port(json!({ "protocol": "UDP" })), all(Protocol::Udp));
    assert_eq!(port(json!({ "protocol": "SCTP" })), all(Protocol::Sctp));
    assert_eq!(port(json!({ "port": 80 })), PortMatch { protocol: Protocol::Tcp, ports: PortSpec::Range(80, 80) });
    let named = PortMatch { protocol: Protocol::Tcp, ports: PortSpec::Named("http".to_owned()) };
    assert_eq!(port(json!({ "port": "http" })), named);
}

#[test]
fn p10_other_protocols_are_rejected_not_taken_for_tcp() {
    for bad in ["", "tcp", "ICMP", "6", "TCP "] {
        assert_eq!(port_error(json!({ "protocol": bad, "port": 80 })), "spec.egress[0].ports[0].protocol");
    }
    assert_eq!(port_error(json!({ "protocol": 6 })), "spec.egress[0].ports[0].protocol");
}

#[test]
fn p1_port_numbers_and_names_are_checked() {
    for good in [1, 65535] {
        assert_eq!(port(json!({ "port": good })).ports, PortSpec::Range(good, good));
    }
    assert_eq!(port(json!({ "port": 80.0 })).ports, PortSpec::Range(80, 80));
    let bad = [
        json!(0),
        json!(-1),
        json!(65536),
        json!(80.5),
        json!(1e30),
        json!(u64::MAX),
        json!("80"),
        json!(""),
        json!("HTTP"),
        json!("a--b"),
        json!("-a"),
        json!("name-of-16-chars"),
        json!(true),
        json!([80]),
        json!({}),
    ];
    for bad in bad {
        assert_eq!(port_error(json!({ "port": bad })), "spec.egress[0].ports[0].port", "{bad}");
    }
}

#[test]
fn p9_end_port_is_inclusive_and_needs_a_number_not_above_it() {
    for (first, last) in [(80, 90), (80, 80), (1, 65535)] {
        assert_eq!(port(json!({ "port": first, "endPort": last })).ports, PortSpec::Range(first, last));
    }
    let bad = [
        json!({ "port": 80, "endPort": 79 }),
        json!({ "port": 80, "endPort": 65536 }),
        json!({ "port": 80, "endPort": 0 }),
        json!({ "port": 80, "endPort": "90" }),
        json!({ "port": "http", "endPort": 90 }),
        json!({ "endPort": 90 }),
        json!({ "protocol": "UDP", "port": null, "endPort": 90 }),
    ];
    for bad in bad {
        assert_eq!(port_error(bad.clone()), "spec.egress[0].ports[0].endPort", "{bad}");
    }
}

#[test]
fn a11_a_peer_that_says_nothing_or_both_is_rejected() {
    for nothing in [
        json!({}),
        json!(null),
        json!({ "podSelector": null, "namespaceSelector": null, "ipBlock": null }),
        json!({ "serviceAccountSelector": {} }),
    ] {
        assert_eq!(peer_error(nothing), "spec.ingress[1].from[1]");
    }
    let block = json!({ "cidr": "10.0.0.0/8" });
    for both in [
        json!({ "ipBlock": block, "podSelector": {} }),
        json!({ "ipBlock": block, "namespaceSelector": {} }),
        json!({ "ipBlock": {}, "namespaceSelector": {}, "podSelector": {} }),
    ] {
        assert_eq!(peer_error(both), "spec.ingress[1].from[1]");
    }
    assert_eq!(peer_error(json!("10.0.0.0/8")), "spec.ingress[1].from[1]");
}

#[test]
fn a12_a_pod_selector_alone_means_the_policys_own_namespace() {
    let own = NamespaceScope::Own("shop".to_owned());
    for null_or_absent in [json!({ "podSelector": {} }), json!({ "podSelector": {}, "namespaceSelector": null })] {
        assert_eq!(peer(null_or_absent), Peer::Pods { namespaces: own.clone(), pods: Selector::everything() });
    }
}

#[test]
fn a13_a_namespace_selector_means_every_pod_of_it_and_both_in_one_entry_mean_both() {
    let namespaces = json!({ "matchLabels": { "team": "a" } });
    assert_eq!(
        peer(json!({ "namespaceSelector": namespaces })),
        Peer::Pods { namespaces: NamespaceScope::Matching(labelled("team", "a")), pods: Selector::everything() }
    );
    assert_eq!(
        peer(json!({ "namespaceSelector": {}, "podSelector": { "matchLabels": { "app": "db" } } })),
        Peer::Pods { namespaces: NamespaceScope::Matching(Selector::everything()), pods: labelled("app", "db") }
    );
}

#[test]
fn a14_selectors_have_four_operators_anded_with_match_labels() {
    let selector = policy(json!({ "podSelector": {
        "matchLabels": { "app": "db" },
        "matchExpressions": [
            { "key": "tier", "operator": "NotIn", "values": ["b", "a", "b"] },
            { "key": "zone", "operator": "Exists" },
            { "key": "old", "operator": "DoesNotExist", "values": [] },
            { "key": "app", "operator": "In", "values": ["db"] },
        ],
    }}))
    .selector;
    let requirement = |key: &str, operator| Requirement { key: key.to_owned(), operator };
    let expected = Selector::new(vec![
        requirement("app", Operator::In(vec!["db".to_owned()])),
        requirement("tier", Operator::NotIn(vec!["a".to_owned(), "b".to_owned()])),
        requirement("zone", Operator::Exists),
        requirement("old", Operator::DoesNotExist),
    ]);
    assert_eq!(selector, expected);
    assert_eq!(selector.requirements.len(), 4, "the label and its expression are one requirement");
}

#[test]
fn a14_invalid_selectors_are_rejected_at_the_exact_field() {
    let table = [
        (json!([]), ""),
        (json!({ "matchLabels": ["app"] }), ".matchLabels"),
        (json!({ "matchLabels": { "app": 1 } }), ".matchLabels[app]"),
        (json!({ "matchLabels": { "app": "not ok" } }), ".matchLabels[app]"),
        (json!({ "matchLabels": { "a b": "ok" } }), ".matchLabels[a b]"),
        (json!({ "matchExpressions": {} }), ".matchExpressions"),
        (json!({ "matchExpressions": [null] }), ".matchExpressions[0].operator"),
        (
            json!({ "matchExpressions": [{ "key": "a", "operator": "in", "values": ["b"] }] }),
            ".matchExpressions[0].operator",
        ),
        (
            json!({ "matchExpressions": [{ "key": "a", "operator": "Gt", "values": ["1"] }] }),
            ".matchExpressions[0].operator",
        ),
        (json!({ "matchExpressions": [{ "operator": "Exists" }] }), ".matchExpressions[0].key"),
        (json!({ "matchExpressions": [{ "key": "a", "operator": "In" }] }), ".matchExpressions[0].values"),
        (
            json!({ "matchExpressions": [{ "key": "a", "operator": "NotIn", "values": [] }] }),
            ".matchExpressions[0].values",
        ),
        (
            json!({ "matchExpressions": [{ "key": "a", "operator": "Exists", "values": ["b"] }] }),
            ".matchExpressions[0].values",
        ),
        (
            json!({ "matchExpressions": [{ "key": "a", "operator": "DoesNotExist", "values": ["b"] }] }),
            ".matchExpressions[0].values",
        ),
        (
            json!({ "matchExpressions": [{ "key": "a", "operator": "In", "values": ["b", "/"] }] }),
            ".matchExpressions[0].values[1]",
        ),
        (
            json!({ "matchExpressions": [{ "key": "a", "operator": "In", "values": [1] }] }),
            ".matchExpressions[0].values[0]",
        ),
        (
            json!({ "matchExpressions": [{ "key": "a", "operator": "In", "values": "b" }] }),
            ".matchExpressions[0].values",
        ),
    ];
    for (selector, field) in table {
        assert_eq!(
            rejected(json!({ "podSelector": selector })).field,
            format!("spec.podSelector{field}"),
            "{selector}"
        );
        assert_eq!(
            peer_error(json!({ "namespaceSelector": selector })),
            format!("spec.ingress[1].from[1].namespaceSelector{field}"),
            "{selector}"
        );
    }
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Block {
        cidr: cidr.parse().expect("cidr"),
        except: except.iter().map(|except| except.parse().expect("except")).collect(),
    }
}

#[test]
fn b1_excepts_are_strict_subsets_and_may_overlap_each_other() {
    assert_eq!(
        peer(json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.2.0/24", "10.1.0.0/16", "10.1.0.0/16"] } })),
        block("10.0.0.0/8", &["10.1.0.0/16", "10.1.2.0/24"])
    );
    for except in [json!(null), json!([])] {
        assert_eq!(peer(json!({ "ipBlock": { "cidr": "::/0", "except": except } })), block("::/0", &[]));
    }
    for bad in ["10.0.0.0/8", "11.0.0.0/16", "0.0.0.0/0", "10.0.0.0/7", "2001:db8::/32", "10.1.0.0", "", "x"] {
        let entry = json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.9.0.0/16", bad] } });
        assert_eq!(peer_error(entry), "spec.ingress[1].from[1].ipBlock.except[1]", "{bad}");
    }
}

#[test]
fn b1_a_block_without_a_readable_cidr_is_rejected() {
    for bad in [json!(null), json!(""), json!("10.0.0.0"), json!("10.0.0.0/33"), json!("cluster"), json!(10)] {
        assert_eq!(peer_error(json!({ "ipBlock": { "cidr": bad } })), "spec.ingress[1].from[1].ipBlock.cidr", "{bad}");
    }
    assert_eq!(peer_error(json!({ "ipBlock": {} })), "spec.ingress[1].from[1].ipBlock.cidr");
    assert_eq!(peer_error(json!({ "ipBlock": "10.0.0.0/8" })), "spec.ingress[1].from[1].ipBlock");
}

#[test]
fn b3_b4_legacy_spellings_of_blocks_and_excepts_mean_what_the_api_server_means() {
    assert_eq!(
        peer(json!({ "ipBlock": { "cidr": "10.244.1.7/4", "except": ["010.1.2.3/032"] } })),
        block("0.0.0.0/4", &["10.1.2.3/32"])
    );
    assert_eq!(
        peer(json!({ "ipBlock": { "cidr": "::ffff:10.0.0.0/104", "except": ["::ffff:10.1.0.0/112"] } })),
        block("10.0.0.0/8", &["10.1.0.0/16"])
    );
    // Validation compares prefix lengths as written; this one covers its block and leaves nothing.
    assert_eq!(
        peer(json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["::ffff:10.0.0.0/104"] } })),
        block("10.0.0.0/8", &["10.0.0.0/8"])
    );
}

#[test]
fn b5_blocks_of_all_addresses_keep_their_family() {
    assert_eq!(peer(json!({ "ipBlock": { "cidr": "0.0.0.0/0" } })), block("0.0.0.0/0", &[]));
    assert_eq!(peer(json!({ "ipBlock": { "cidr": "::/0" } })), block("::/0", &[]));
    let across = json!({ "ipBlock": { "cidr": "::/0", "except": ["10.0.0.0/8"] } });
    assert_eq!(peer_error(across), "spec.ingress[1].from[1].ipBlock.except[0]");
}

/// What D15 enforces of a policy that cannot be read.
fn isolation_of(spec: Value) -> (Selector, bool, bool) {
    let Policy { name, selector, ingress, egress } = rejected(spec).isolate.expect("isolation");
    assert_eq!(name, ObjectName::new("shop", "p"));
    for rules in [&ingress, &egress].into_iter().flatten() {
        assert_eq!(rules, &[], "isolation grants nothing");
    }
    (selector, ingress.is_some(), egress.is_some())
}

#[test]
fn d15_an_unreadable_policy_isolates_what_it_selects_in_its_policy_types() {
    let bad = json!([{ "ports": [{ "port": 0 }] }]);
    let db = json!({ "matchLabels": { "app": "db" } });
    let table = [
        (json!({ "podSelector": db, "ingress": bad }), (labelled("app", "db"), true, false)),
        (json!({ "podSelector": db, "egress": bad }), (labelled("app", "db"), true, true)),
        (json!({ "podSelector": db, "egress": "x" }), (labelled("app", "db"), true, true)),
        (json!({ "podSelector": db, "policyTypes": ["Egress"], "egress": bad }), (labelled("app", "db"), false, true)),
        (json!({ "podSelector": db, "policyTypes": ["Egress", "X"] }), (labelled("app", "db"), true, true)),
        (json!({ "podSelector": db, "policyTypes": "Egress" }), (labelled("app", "db"), true, true)),
        (json!({ "podSelector": { "matchLabels": { "app": 1 } } }), (Selector::everything(), true, false)),
        (json!({ "podSelector": 1, "policyTypes": ["Egress"], "egress": [{}] }), (Selector::everything(), false, true)),
        (json!("deny all"), (Selector::everything(), true, true)),
        (json!([]), (Selector::everything(), true, true)),
    ];
    for (spec, expected) in table {
        assert_eq!(isolation_of(spec.clone()), expected, "{spec}");
    }
}

#[test]
fn d15_isolation_needs_a_readable_namespace_and_name_only() {
    let with = |metadata: Value| {
        object(
            &json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": 1 }),
        )
        .expect_err("spec is no object")
    };
    assert_eq!(with(json!({ "name": "p" })).isolate.expect("isolation").name, ObjectName::new("default", "p"));
    assert!(with(json!({ "namespace": "shop", "name": "P_!" })).isolate.is_some(), "an invalid name is still a name");
    assert!(with(json!({ "namespace": "shop", "name": "p", "labels": 1 })).isolate.is_some());
    for unreadable in [
        json!(null),
        json!("p"),
        json!({ "namespace": "shop" }),
        json!({ "namespace": "shop", "name": "" }),
        json!({ "namespace": "shop", "name": 1 }),
        json!({ "namespace": ["shop"], "name": "p" }),
    ] {
        let Rejected { name, isolate, .. } = with(unreadable);
        assert_eq!((name, isolate), (None, None));
    }
}

#[test]
fn unknown_fields_are_no_error() {
    let spec = json!({
        "podSelector": { "matchFancy": 1 },
        "ingress": [{ "from": [{ "podSelector": {}, "new": {} }], "ports": [{ "port": 80, "new": 1 }], "new": null }],
        "tier": "gold",
    });
    let mut manifest = manifest(spec);
    manifest["status"] = json!({ "conditions": [] });
    manifest["metadata"]["managedFields"] = json!([{ "manager": "kubectl" }]);
    assert!(object(&manifest).is_ok());
}

#[test]
fn rules_keep_their_index_and_peers_their_order() {
    let rules = policy(json!({ "egress": [
        { "to": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }, { "podSelector": {} }] },
        { "ports": [{ "port": 53, "protocol": "UDP" }, { "port": 53 }] },
    ]}))
    .egress
    .expect("egress");
    assert_eq!(rules.iter().map(|rule| rule.index).collect::<Vec<_>>(), [0, 1]);
    assert!(matches!(rules[0].peers.as_deref(), Some([Peer::Block { .. }, Peer::Pods { .. }])));
    assert_eq!(rules[1].ports.as_ref().expect("ports")[0].protocol, Protocol::Udp);
}

#[test]
fn an_error_names_kind_object_field_and_fault() {
    let error =
        rejected(json!({ "ingress": [{ "from": [{ "podSelector": {} }, { "ipBlock": { "cidr": "10/8" } }] }] }));
    assert_eq!(
        error.to_string(),
        "NetworkPolicy shop/p: spec.ingress[0].from[1].ipBlock.cidr: \
         must be a CIDR such as 10.0.0.0/8 or 2001:db8::/64, not \"10/8\""
    );
}

#[test]
fn another_version_of_network_policy_is_rejected_and_isolates() {
    for version in ["extensions/v1beta1", "networking.k8s.io/v2"] {
        let mut manifest = manifest(json!({ "policyTypes": ["Egress"] }));
        manifest["apiVersion"] = json!(version);
        assert!(!kind_ignored(&manifest));
        let Rejected { field, isolate, .. } = object(&manifest).expect_err("version");
        assert_eq!(field, "apiVersion");
        assert_eq!(isolated(&isolate.expect("isolation")), (None, Some(0)));
    }
}
