//! What users apply: accepted by a strict API server, admitted as pods, and granted no more than the agent asks for.

use std::path::Path;
use std::process::Command;

use netpol_suites::agent_binary;
use netpol_testbed::control_plane::{Client, ControlPlane, Options, actors};
use serde_json::{Value, json};

/// The kustomization that everything else builds on.
fn base() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/base"))
}

/// A control plane with the agent's manifests applied.
fn installed() -> ControlPlane {
    let control_plane = ControlPlane::start(Options::default()).unwrap();
    control_plane.admin().apply_kustomization(base()).unwrap();
    control_plane
}

/// The pod that the DaemonSet controller would create on a node.
fn pod_of_the_daemon_set(admin: &Client) -> Value {
    let daemon_set = admin.get("/apis/apps/v1/namespaces/netpol-agent/daemonsets/netpol-agent").unwrap();
    let template = &daemon_set["spec"]["template"];
    let mut spec = template["spec"].clone();
    spec["nodeName"] = json!("node-1");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "netpol-agent-abcde", "labels": template["metadata"]["labels"] },
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
    let defaults: Vec<&str> = help.split("[default: ").skip(1).filter_map(|rest| rest.split(']').next()).collect();
    let mounts = strings(&container["volumeMounts"], "mountPath");
    let directories: Vec<&&str> = defaults.iter().filter(|default| default.starts_with('/')).collect();
    assert!(directories.len() >= 3, "{help}");
    for directory in directories {
        assert!(mounts.iter().any(|mount| Path::new(directory).starts_with(mount)), "{directory} is not mounted");
    }
    let port = defaults.iter().find_map(|default| default.strip_prefix("0.0.0.0:")).unwrap();
    assert_eq!(container["ports"][0]["containerPort"].to_string(), port);
    assert!(help.contains("[env: NODE_NAME="), "{help}");
    assert_eq!(strings(&container["env"], "name"), ["NODE_NAME"]);
}
