//! What users apply: accepted by a strict API server, admitted as pods, and granted no more than the agent asks for.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use netpol_suites::agent_binary;
use netpol_testbed::control_plane::{Client, ControlPlane, Options, actors};
use serde_json::{Value, json};

/// The kustomization that everything else builds on.
fn base() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/base"))
}

/// A kustomization on top of it.
fn overlay(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/overlays")).join(name)
}

/// A control plane with the agent's manifests applied.
fn installed() -> ControlPlane {
    let control_plane = ControlPlane::start(Options::default()).unwrap();
    control_plane.admin().apply_kustomization(base()).unwrap();
    control_plane
}

/// The pod that the DaemonSet controller would create of the agent on a node.
fn pod_of_the_daemon_set(admin: &Client) -> Value {
    pod_of(admin, "netpol-agent", "netpol-agent")
}

/// The pod that the DaemonSet controller would create on a node.
fn pod_of(admin: &Client, namespace: &str, daemon_set: &str) -> Value {
    let name = format!("{daemon_set}-abcde");
    let daemon_set = admin.get(&format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{daemon_set}")).unwrap();
    let template = &daemon_set["spec"]["template"];
    let mut spec = template["spec"].clone();
    spec["nodeName"] = json!("node-1");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": template["metadata"]["labels"] },
        "spec": spec,
    })
}

#[test]
fn the_base_is_accepted_with_strict_validation_and_its_pod_is_admitted() {
    let control_plane = installed();
    let admin = control_plane.admin();
    actors::register_node(admin, "node-1", &["192.0.2.1".parse().unwrap()]).unwrap();
    let pod = pod_of_the_daemon_set(admin);
    admin.create("/api/v1/namespaces/netpol-agent/pods?fieldValidation=Strict", &pod).unwrap();
    let admitted = admin.get("/api/v1/namespaces/netpol-agent/pods/netpol-agent-abcde").unwrap();
    // Admission resolves the class; a pod without it would be evicted before those it protects.
    assert_eq!(admitted["spec"]["priority"], json!(2_000_001_000));

    // In a namespace without the label that the base sets, cluster-wide defaults may forbid what the agent is made of.
    let restricted = [("pod-security.kubernetes.io/enforce", "baseline")];
    actors::create_namespace(admin, "elsewhere", &restricted).unwrap();
    let mut elsewhere = pod;
    elsewhere["spec"]["serviceAccountName"] = json!("default");
    let refusal = admin.create("/api/v1/namespaces/elsewhere/pods", &elsewhere).unwrap_err().to_string();
    assert!(refusal.contains("violates PodSecurity"), "{refusal}");
}

#[test]
fn applying_the_base_again_changes_nothing() {
    let control_plane = installed();
    let admin = control_plane.admin();
    let path = "/apis/apps/v1/namespaces/netpol-agent/daemonsets/netpol-agent";
    let before = admin.get(path).unwrap();
    admin.apply_kustomization(base()).unwrap();
    let after = admin.get(path).unwrap();
    assert_eq!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
}

#[test]
fn the_agents_identity_may_read_what_it_watches_and_change_nothing() {
    let control_plane = installed();
    let agent = control_plane.service_account("netpol-agent", "netpol-agent", None).unwrap();
    let watched = [
        "namespaces",
        "pods",
        "services",
        "nodes",
        "networkpolicies.networking.k8s.io",
        "servicecidrs.networking.k8s.io",
        "endpointslices.discovery.k8s.io",
    ];
    for resource in watched {
        for verb in ["get", "list", "watch"] {
            assert!(agent.may(verb, resource).unwrap(), "{verb} {resource}");
        }
        for verb in ["create", "update", "patch", "delete", "deletecollection"] {
            assert!(!agent.may(verb, resource).unwrap(), "{verb} {resource}");
        }
    }
    assert!(agent.may("create", "events.events.k8s.io").unwrap());
    assert!(agent.may("patch", "events.events.k8s.io").unwrap());
    for resource in ["secrets", "configmaps", "pods/log", "pods/exec", "serviceaccounts", "nodes/proxy"] {
        for verb in ["get", "list", "create"] {
            assert!(!agent.may(verb, resource).unwrap(), "{verb} {resource}");
        }
    }

    // What is not asked for above is not granted either.
    let role = control_plane.admin().get("/apis/rbac.authorization.k8s.io/v1/clusterroles/netpol-agent").unwrap();
    let read = ["get", "list", "watch"];
    let expected = json!([
        { "apiGroups": [""], "resources": ["namespaces", "pods", "services", "nodes"], "verbs": read },
        { "apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies", "servicecidrs"], "verbs": read },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read },
        { "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"] },
    ]);
    assert_eq!(role["rules"], expected);
}

#[test]
fn the_daemon_set_runs_on_every_node_and_is_updated_on_one_at_a_time() {
    let control_plane = installed();
    let daemon_set =
        control_plane.admin().get("/apis/apps/v1/namespaces/netpol-agent/daemonsets/netpol-agent").unwrap();
    // The API server has added the default of the field that is not set.
    let one_at_a_time = json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 0 } });
    assert_eq!(daemon_set["spec"]["updateStrategy"], one_at_a_time);
    let spec = &daemon_set["spec"]["template"]["spec"];
    assert_eq!(spec["hostNetwork"], json!(true));
    assert_eq!(spec["priorityClassName"], "system-node-critical");
    assert_eq!(spec["nodeSelector"], json!({ "kubernetes.io/os": "linux" }));
    // Without a key: every taint, also those that evict.
    assert_eq!(spec["tolerations"], json!([{ "operator": "Exists" }]));
    let container = &spec["containers"][0];
    for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        let get = &container[probe]["httpGet"];
        assert_eq!((&get["path"], &get["port"]), (&json!(path), &json!("metrics")), "{probe}");
    }
}

#[test]
fn the_container_has_the_capabilities_and_mounts_that_it_needs_and_no_others() {
    let control_plane = installed();
    let pod = pod_of_the_daemon_set(control_plane.admin());
    let container = &pod["spec"]["containers"][0];
    let security = &container["securityContext"];
    let capabilities = json!({ "drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON", "SYS_RESOURCE"] });
    assert_eq!(security["capabilities"], capabilities);
    for (field, value) in [("privileged", false), ("allowPrivilegeEscalation", false), ("readOnlyRootFilesystem", true)]
    {
        assert_eq!(security[field], json!(value), "{field}");
    }
    // A file system that is mounted on the node after the pod has started has to be seen in it.
    let mounts = json!([
        { "name": "bpffs", "mountPath": "/sys/fs/bpf", "mountPropagation": "HostToContainer" },
        { "name": "runtime", "mountPath": "/run/netpol-agent" },
        { "name": "cni", "mountPath": "/var/lib/cni", "readOnly": true, "mountPropagation": "HostToContainer" },
    ]);
    assert_eq!(container["volumeMounts"], mounts);
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let paths: Vec<&Value> = volumes.iter().map(|volume| &volume["hostPath"]["path"]).collect();
    assert_eq!(paths, ["/sys/fs/bpf", "/run/netpol-agent", "/var/lib/cni"]);
    for other in ["hostPID", "hostIPC", "initContainers"] {
        assert!(pod["spec"].get(other).is_none(), "{other}");
    }
}

#[test]
fn the_overlay_for_kind_never_pulls_the_image() {
    let control_plane = ControlPlane::start(Options::default()).unwrap();
    control_plane.admin().apply_kustomization(&overlay("kind")).unwrap();
    let pod = pod_of_the_daemon_set(control_plane.admin());
    assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Never");
}

#[test]
fn flannel_for_kind_is_accepted_with_strict_validation_and_its_pod_is_admitted() {
    let control_plane = ControlPlane::start(Options::default()).unwrap();
    let admin = control_plane.admin();
    admin.apply(&std::fs::read_to_string(overlay("kind").join("flannel.yaml")).unwrap()).unwrap();
    actors::register_node(admin, "node-1", &["192.0.2.1".parse().unwrap()]).unwrap();
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    admin.create("/api/v1/namespaces/kube-flannel/serviceaccounts", &account).unwrap();
    let pod = pod_of(admin, "kube-flannel", "flannel");
    admin.create("/api/v1/namespaces/kube-flannel/pods?fieldValidation=Strict", &pod).unwrap();
    // As in the cluster in namespaces: what the daemon reads, and the annotations of nodes that it writes.
    let flannel = control_plane.service_account("kube-flannel", "flannel", None).unwrap();
    assert!(flannel.may("watch", "nodes").unwrap() && flannel.may("patch", "nodes/status").unwrap());
    assert!(!flannel.may("patch", "nodes").unwrap() && !flannel.may("list", "pods").unwrap());
}

#[test]
fn the_overlay_for_the_prometheus_operator_adds_to_the_base_and_changes_nothing_of_it() {
    let control_plane = installed();
    let admin = control_plane.admin();
    let path = "/apis/apps/v1/namespaces/netpol-agent/daemonsets/netpol-agent";
    let before = admin.get(path).unwrap();
    // Stand-ins for the operator's own definitions: names and scope are right, any field goes.
    for (kind, plural) in [("PodMonitor", "podmonitors"), ("PrometheusRule", "prometheusrules")] {
        define(admin, kind, plural);
    }
    admin.apply_kustomization(&overlay("prometheus-operator")).unwrap();
    for plural in ["podmonitors", "prometheusrules"] {
        let object = format!("/apis/monitoring.coreos.com/v1/namespaces/netpol-agent/{plural}/netpol-agent");
        assert_eq!(admin.get(&object).unwrap()["metadata"]["name"], "netpol-agent");
    }
    let after = admin.get(path).unwrap();
    assert_eq!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
}

/// Defines a namespaced kind of monitoring.coreos.com and waits until it is served.
fn define(admin: &Client, kind: &str, plural: &str) {
    let collection = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let name = format!("{plural}.monitoring.coreos.com");
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": name },
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": { "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase() },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }],
        },
    });
    admin.create(collection, &definition).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while admin.get(&format!("/apis/monitoring.coreos.com/v1/{plural}")).is_err() {
        assert!(Instant::now() < deadline, "{plural} is not served");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_daemon_sets_container_has_what_the_agents_flags_speak_of() {
    let control_plane = installed();
    let pod = pod_of_the_daemon_set(control_plane.admin());
    let container = &pod["spec"]["containers"][0];
    let strings = |list: &Value, key: &str| -> Vec<String> {
        let field = |item: &Value| if key.is_empty() { item.clone() } else { item[key].clone() };
        list.as_array().unwrap().iter().map(|item| field(item).as_str().unwrap().to_owned()).collect()
    };

    // Whatever is wrong with an argument is said before help is given.
    let mut command = Command::new(agent_binary());
    command.args(strings(&container["args"], "")).arg("--help").env("NODE_NAME", "node-1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // What it uses by default: directories have to be mounted, the port has to be declared, the variable set.
    let help = String::from_utf8(output.stdout).unwrap();
    // The bracket that ends a default is its line's last: an IPv6 address has brackets of its own.
    let lines = help.split("[default: ").skip(1).filter_map(|rest| rest.lines().next());
    let defaults: Vec<&str> = lines.filter_map(|line| line.rsplit_once(']')).map(|(default, _)| default).collect();
    let mounts = strings(&container["volumeMounts"], "mountPath");
    let directories: Vec<&&str> = defaults.iter().filter(|default| default.starts_with('/')).collect();
    assert!(directories.len() >= 3, "{help}");
    for directory in directories {
        assert!(mounts.iter().any(|mount| Path::new(directory).starts_with(mount)), "{directory} is not mounted");
    }
    let port = defaults.iter().find_map(|default| default.strip_prefix("[::]:")).unwrap();
    assert_eq!(container["ports"][0]["containerPort"].to_string(), port);
    assert!(help.contains("[env: NODE_NAME="), "{help}");
    assert_eq!(strings(&container["env"], "name"), ["NODE_NAME"]);
}
