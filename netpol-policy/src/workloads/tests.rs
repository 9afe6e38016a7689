use proptest::prelude::*;

use super::*;

fn options() -> ExpandOptions {
    ExpandOptions {
        node: "n1".to_owned(),
        node_addresses: vec!["192.0.2.1".parse().expect("address"), "2001:db8::1".parse().expect("address")],
        pod_cidrs: vec!["10.244.0.0/24".parse().expect("cidr"), "fd00:10:244::/64".parse().expect("cidr")],
        started: 60,
        previous: Assignments::new(),
    }
}

fn workload(kind: &str, name: &str, spec: Value) -> Value {
    let version = Workload::of(&json!({ "kind": kind })).map(|workload| match workload {
        Workload::Job => "batch/v1",
        Workload::ReplicationController => "v1",
        Workload::StatefulSet | Workload::Deployment | Workload::DaemonSet | Workload::ReplicaSet => "apps/v1",
    });
    let mut value = json!({
        "apiVersion": version,
        "kind": kind,
        "metadata": { "namespace": "shop", "name": name },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name }, "annotations": { "a": "b" } },
                "spec": { "containers": [{ "name": "main", "ports": [{ "containerPort": 80 }] }] },
            },
        },
    });
    for (key, member) in spec.as_object().expect("spec") {
        value["spec"][key] = member.clone();
    }
    value
}

fn bare(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "shop" }, "spec": {} })
}

fn pods(expanded: &Expanded) -> Vec<Pod> {
    let decoded = expanded.objects.iter().filter(|value| Kind::of(value) == Some(Kind::Pod));
    decoded.map(|value| decode_pod(value).expect("what is shown is valid")).collect()
}

#[track_caller]
fn names(values: &[Value]) -> String {
    let expanded = expand(values, &options());
    assert!(expanded.rejected.is_empty(), "{:?}", expanded.rejected);
    pods(&expanded).iter().map(|pod| pod.name.to_string()).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn rejected(value: Value) -> String {
    let expanded = expand(&[json!(null), value], &options());
    let [(1, rejected)] = expanded.rejected.as_slice() else { panic!("{:?}", expanded.rejected) };
    rejected.to_string()
}

fn addresses(expanded: &Expanded) -> BTreeMap<String, String> {
    let joined = |pod: &Pod| pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    pods(expanded).iter().map(|pod| (pod.name.name.clone(), joined(pod))).collect()
}

#[test]
fn every_kind_of_workload_makes_numbered_pods() {
    let table = [
        ("Deployment", json!({}), "shop/web-0"),
        ("Deployment", json!({ "replicas": null }), "shop/web-0"),
        ("Deployment", json!({ "replicas": 3 }), "shop/web-0 shop/web-1 shop/web-2"),
        ("Deployment", json!({ "replicas": 0 }), ""),
        ("ReplicaSet", json!({ "replicas": 2 }), "shop/web-0 shop/web-1"),
        ("StatefulSet", json!({ "replicas": 2 }), "shop/web-0 shop/web-1"),
        ("StatefulSet", json!({ "replicas": 2, "ordinals": { "start": 5 } }), "shop/web-5 shop/web-6"),
        ("DaemonSet", json!({}), "shop/web-0"),
        ("Job", json!({}), "shop/web-0"),
        ("Job", json!({ "parallelism": 3, "completions": 2 }), "shop/web-0 shop/web-1"),
        ("Job", json!({ "suspend": true }), ""),
        ("ReplicationController", json!({ "replicas": 2, "selector": null }), "shop/web-0 shop/web-1"),
    ];
    for (kind, spec, expected) in table {
        assert_eq!(names(&[workload(kind, "web", spec.clone())]), expected, "{kind} {spec}");
    }
}

#[test]
fn a_cron_job_starts_nothing_and_other_kinds_are_left_out() {
    let cron_job = json!({ "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "a" }, "spec": {} });
    let config_map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" } });
    let options = ExpandOptions { node_addresses: Vec::new(), ..options() };
    let Expanded { objects, rejected } = expand(&[cron_job, config_map, json!(null)], &options);
    assert_eq!((objects, rejected), (vec![], vec![]));
}

#[test]
fn a_pod_is_shown_as_its_kubelet_would_report_it() {
    let expanded = expand(&[workload("StatefulSet", "db", json!({}))], &options());
    let shown = expanded.objects.last().expect("pod");
    assert_eq!(
        *shown,
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": "shop",
                "name": "db-0",
                "uid": uid(&ObjectName::new("shop", "db-0")),
                "labels": {
                    "app": "db", "statefulset.kubernetes.io/pod-name": "db-0", "apps.kubernetes.io/pod-index": "0",
                },
                "annotations": { "a": "b" },
            },
            "spec": { "nodeName": "n1", "containers": [{ "name": "main", "ports": [{ "containerPort": 80 }] }] },
            "status": {
                "phase": "Running",
                "startTime": "1970-01-01T00:01:00Z",
                "hostIP": "192.0.2.1",
                "hostIPs": [{ "ip": "192.0.2.1" }, { "ip": "2001:db8::1" }],
                "podIP": "10.244.0.2",
                "podIPs": [{ "ip": "10.244.0.2" }, { "ip": "fd00:10:244::2" }],
            },
        })
    );
}

#[test]
fn uids_look_like_uuids_and_differ() {
    let id = uid(&ObjectName::new("shop", "db-0"));
    let parts: Vec<usize> = id.split('-').map(str::len).collect();
    assert_eq!(parts, [8, 4, 4, 4, 12]);
    assert_eq!(id.get(14..15), Some("8"));
    assert!(matches!(id.get(19..20), Some("8" | "9" | "a" | "b")));
    assert_eq!(id, uid(&ObjectName::new("shop", "db-0")));
    assert_ne!(id, uid(&ObjectName::new("shop", "db-1")));
}

#[test]
fn what_a_manifest_says_of_its_pod_is_kept() {
    let mut pod = bare("a");
    pod["metadata"]["uid"] = json!("mine");
    pod["status"] =
        json!({ "phase": "Succeeded", "podIPs": [{ "ip": "10.9.9.9" }], "startTime": "2026-08-22T10:00:00Z" });
    pod["spec"]["nodeName"] = json!("elsewhere");
    let expanded = expand(&[pod], &options());
    let [Pod { uid, node, phase, addresses, started, .. }] = &pods(&expanded)[..] else { panic!("one pod") };
    assert_eq!((uid.as_str(), *phase, *started), ("mine", Phase::Finished, Some(1_787_392_800)));
    assert_eq!(addresses, &["10.9.9.9".parse::<IpAddr>().expect("address")]);
    assert_eq!(node, "n1", "there is one node, and every pod runs there");
}

#[test]
fn host_network_pods_report_the_nodes_addresses_and_finished_ones_get_none() {
    let mut host = bare("host");
    host["spec"]["hostNetwork"] = json!(true);
    let mut finished = bare("finished");
    finished["status"] = json!({ "phase": "Failed" });
    let expanded = expand(&[host, finished, bare("a")], &options());
    let expected = [("a", "10.244.0.2 fd00:10:244::2"), ("finished", ""), ("host", "192.0.2.1 2001:db8::1")];
    let expected = expected.map(|(name, addresses)| (name.to_owned(), addresses.to_owned()));
    assert_eq!(addresses(&expanded), BTreeMap::from(expected));
}

#[test]
fn addresses_do_not_depend_on_the_order_of_the_manifests() {
    let (a, b) = (workload("Deployment", "a", json!({ "replicas": 2 })), bare("b"));
    let forwards = expand(&[a.clone(), b.clone()], &options());
    let backwards = expand(&[b, a], &options());
    assert_eq!(forwards.objects, backwards.objects);
    assert_eq!(addresses(&forwards)["a-0"], "10.244.0.2 fd00:10:244::2");
    assert_eq!(addresses(&forwards)["b"], "10.244.0.4 fd00:10:244::4");
}

#[test]
fn a_pod_keeps_its_address_and_start_time_through_edits() {
    let first = expand(&[bare("b"), bare("c")], &options());
    let again = |values: &[Value], before: &Expanded| {
        expand(values, &ExpandOptions { previous: assignments(&before.objects), started: 120, ..options() })
    };
    let mut relabelled = bare("c");
    relabelled["metadata"]["labels"] = json!({ "app": "new" });
    let second = again(&[bare("a"), relabelled, bare("b")], &first);
    assert_eq!(addresses(&second)["b"], addresses(&first)["b"]);
    assert_eq!(addresses(&second)["c"], addresses(&first)["c"]);
    assert_eq!(addresses(&second)["a"], "10.244.0.4 fd00:10:244::4");
    let started: Vec<_> = pods(&second).iter().map(|pod| pod.started).collect();
    assert_eq!(started, [Some(120), Some(60), Some(60)]);

    let without_b = again(&[bare("c")], &second);
    assert_eq!(addresses(&without_b)["c"], addresses(&first)["c"]);
    let mut pinned = bare("a");
    pinned["status"] = json!({ "podIPs": [{ "ip": "10.244.0.3" }] });
    let stolen = again(&[pinned, bare("c")], &without_b);
    assert_eq!(addresses(&stolen)["a"], "10.244.0.3");
    assert_eq!(addresses(&stolen)["c"], "10.244.0.2 fd00:10:244::2", "what a manifest pins, another gives up");
}

#[test]
fn a_change_of_families_gives_new_addresses() {
    let dual = expand(&[bare("a")], &options());
    let previous = assignments(&dual.objects);
    let only_v6 = ExpandOptions { pod_cidrs: vec!["fd00:10:244::/64".parse().expect("cidr")], previous, ..options() };
    assert_eq!(addresses(&expand(&[bare("a")], &only_v6))["a"], "fd00:10:244::2");
}

#[test]
fn a_pod_without_an_address_left_is_rejected_and_the_others_run() {
    let tiny = ExpandOptions { pod_cidrs: vec!["10.244.0.0/29".parse().expect("cidr")], ..options() };
    let expanded = expand(&[workload("Deployment", "web", json!({ "replicas": 6 }))], &tiny);
    let given: Vec<String> = addresses(&expanded).into_values().collect();
    assert_eq!(given, ["10.244.0.2", "10.244.0.3", "10.244.0.4", "10.244.0.5", "10.244.0.6"]);
    let messages: Vec<String> = expanded.rejected.iter().map(|(_, rejected)| rejected.to_string()).collect();
    assert_eq!(messages, ["Pod shop/web-5: status.podIPs: no address is left in 10.244.0.0/29"]);
    for none in ["10.0.0.1/32", "10.0.0.0/31", "255.255.255.255/32", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"] {
        let none = ExpandOptions { pod_cidrs: vec![none.parse().expect("cidr")], ..options() };
        assert_eq!(expand(&[bare("a")], &none).rejected.len(), 1);
    }
}

#[test]
fn pods_of_one_name_give_way_to_those_whose_name_is_fixed() {
    let values = [
        workload("Deployment", "web", json!({})),
        workload("StatefulSet", "web", json!({})),
        workload("DaemonSet", "db", json!({})),
        bare("db-0"),
    ];
    assert_eq!(names(&values), "shop/db-0 shop/db-daemonset-0 shop/web-0 shop/web-deployment-0");
    let mut clash = workload("StatefulSet", "a", json!({}));
    clash["spec"]["ordinals"] = json!({ "start": 0 });
    let expanded = expand(&[bare("a-0"), bare("a-statefulset-0"), clash], &options());
    assert_eq!(expanded.rejected[0].1.field, "metadata.name");
}

#[test]
fn of_two_manifests_of_one_object_the_last_counts() {
    let values = [workload("Deployment", "web", json!({ "replicas": 3 })), workload("Deployment", "web", json!({}))];
    assert_eq!(names(&values), "shop/web-0");
    let policy = |types: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": "p", "namespace": "shop" }, "spec": { "policyTypes": types },
        })
    };
    let expanded = expand(&[policy(json!(["Ingress"])), policy(json!(["Egress"]))], &options());
    let policies: Vec<_> = expanded.objects.iter().filter(|value| value["kind"] == "NetworkPolicy").collect();
    assert_eq!(policies, [&policy(json!(["Egress"]))]);
}

#[test]
fn namespaces_that_are_referred_to_exist_and_bear_their_name() {
    let given =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "labels": { "a": "b" } } });
    let policy = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "p" } });
    let expanded = expand(&[policy, bare("a"), given], &options());
    let namespaces: Vec<Value> = expanded
        .objects
        .iter()
        .filter(|value| value["kind"] == "Namespace")
        .map(|value| value["metadata"].clone())
        .collect();
    assert_eq!(
        namespaces,
        [
            json!({ "name": "default", "labels": { NAMESPACE_NAME_LABEL: "default" } }),
            json!({ "name": "shop", "labels": { "a": "b", NAMESPACE_NAME_LABEL: "shop" } }),
        ]
    );
    let policy = expanded.objects.last().expect("policy");
    assert_eq!(policy["metadata"]["namespace"], "default");
}

#[test]
fn the_node_is_shown_unless_the_manifests_have_it() {
    let nodes = |values: &[Value]| {
        let expanded = expand(values, &options());
        expanded.objects.into_iter().filter(|value| value["kind"] == "Node").collect::<Vec<_>>()
    };
    let made = nodes(&[]);
    assert_eq!(made.len(), 1);
    let Ok(Object::Node(node)) = object_of(Kind::Node, &made[0]) else { panic!("node") };
    assert_eq!((node.name, node.addresses), ("n1".to_owned(), options().node_addresses));
    let given = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } });
    assert_eq!(nodes(std::slice::from_ref(&given)), [given]);
}

#[test]
fn lists_are_taken_apart_and_malformed_policies_passed_on() {
    let bad = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "p", "namespace": "shop" }, "spec": { "policyTypes": ["X"] },
    });
    let nameless = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy" });
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [bare("a"), bad, nameless, "text"] });
    let expanded = expand(&[list], &options());
    assert!(expanded.rejected.is_empty());
    assert_eq!(pods(&expanded).len(), 1);
    for value in [bad, nameless, json!("text")] {
        assert!(expanded.objects.contains(&value), "{value}");
    }
}

#[test]
fn invalid_workloads_and_pods_are_rejected_by_their_own_field() {
    let deployment = |spec: Value| workload("Deployment", "web", spec);
    let mut old = deployment(json!({}));
    old["apiVersion"] = json!("extensions/v1beta1");
    let mut nameless = deployment(json!({}));
    nameless["metadata"] = json!({});
    let template =
        |spec: Value| deployment(json!({ "template": { "metadata": { "labels": { "app": "web" } }, "spec": spec } }));
    let bad_port = json!({ "containers": [{ "ports": [{ "containerPort": 0 }] }] });
    let mut pod = bare("a");
    pod["spec"] = bad_port.clone();
    let table = [
        (old, "Deployment shop/web: apiVersion: "),
        (nameless, "Deployment: metadata.name: is required"),
        (deployment(json!({ "replicas": -1 })), "Deployment shop/web: spec.replicas: "),
        (deployment(json!({ "replicas": 1_000_000 })), "Deployment shop/web: spec.replicas: "),
        (deployment(json!({ "replicas": "2" })), "Deployment shop/web: spec.replicas: "),
        (deployment(json!({ "selector": null })), "Deployment shop/web: spec.selector: is required"),
        (deployment(json!({ "selector": {} })), "Deployment shop/web: spec.selector: is required"),
        (
            deployment(json!({ "selector": { "matchLabels": { "app": "db" } } })),
            "Deployment shop/web: spec.template.metadata.labels: must satisfy spec.selector",
        ),
        (template(bad_port.clone()), "Deployment shop/web: spec.template.spec.containers[0].ports[0].containerPort: "),
        (template(json!(1)), "Deployment shop/web: spec.template.spec: "),
        (
            workload("Job", "web", json!({ "parallelism": 0, "template": { "spec": bad_port } })),
            "Job shop/web: spec.template.spec.containers[0].ports[0].containerPort: ",
        ),
        (pod, "Pod shop/a: spec.containers[0].ports[0].containerPort: "),
    ];
    for (value, message) in table {
        let got = rejected(value);
        assert!(got.starts_with(message), "{got:?} does not start with {message:?}");
    }
}

#[test]
fn a_job_labels_its_pods() {
    let expanded = expand(&[workload("Job", "mail", json!({}))], &options());
    let labels = &pods(&expanded)[0].labels;
    for key in ["job-name", "batch.kubernetes.io/job-name"] {
        assert_eq!(labels.get(key).map(String::as_str), Some("mail"));
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let text = prop::sample::select(vec![
        "",
        "a",
        "web",
        "shop",
        "apps/v1",
        "v1",
        "batch/v1",
        "Deployment",
        "StatefulSet",
        "Job",
        "Pod",
        "List",
        "PodList",
        "Namespace",
        "Node",
        "NetworkPolicy",
        "networking.k8s.io/v1",
        "10.244.0.2",
        "x y",
    ]);
    let key = prop::sample::select(vec![
        "apiVersion",
        "kind",
        "metadata",
        "name",
        "namespace",
        "labels",
        "spec",
        "status",
        "items",
        "template",
        "selector",
        "matchLabels",
        "replicas",
        "ordinals",
        "start",
        "podIPs",
        "ip",
        "hostNetwork",
        "app",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..5).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_json_never_panics_and_what_is_shown_expands_to_itself(
        kind in prop::sample::select(vec!["Deployment", "StatefulSet", "Job", "Pod", "Namespace", "Node", "NetworkPolicy"]),
        part in prop::sample::select(vec!["/metadata", "/metadata/labels", "/spec", "/spec/template", "/spec/template/metadata",
            "/spec/template/spec", "/spec/selector", "/spec/replicas", "/status", "/apiVersion", ""]),
        value in any_json(),
        other in any_json(),
    ) {
        let mut spoiled = workload("Deployment", "web", json!({ "replicas": 2 }));
        spoiled["kind"] = json!(kind);
        spoiled["apiVersion"] = Value::Null;
        spoiled["status"] = json!({});
        if let Some(place) = spoiled.pointer_mut(part) {
            *place = value;
        }
        let first = expand(&[spoiled, other], &options());
        let second = expand(&first.objects, &options());
        prop_assert_eq!(first.objects, second.objects);
    }
}
