//! What others do in a real cluster: the controller manager for namespaces, the kubelet for pods and nodes. There is
//! neither here, so tests act for them, with the same requests.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::client::Client;

/// Creates a namespace, and the service account in it that pods run as if they name none: without that the API server
/// refuses them.
///
/// # Errors
/// The API server refuses.
pub fn create_namespace(admin: &Client, name: &str, labels: &[(&str, &str)]) -> Result<()> {
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels },
    });
    admin.create("/api/v1/namespaces", &namespace)?;
    create_default_service_account(admin, name)
}

/// Creates the service account `default` in a namespace that has been applied.
///
/// # Errors
/// The API server refuses.
pub fn create_default_service_account(admin: &Client, namespace: &str) -> Result<()> {
    admin.apply(
        &json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": "default", "namespace": namespace },
        })
        .to_string(),
    )
}

/// Deletes a namespace as the namespace controller does: everything in it first, then the finalizer.
///
/// # Errors
/// The API server refuses.
pub fn remove_namespace(admin: &Client, name: &str) -> Result<()> {
    admin.kubectl(&["delete", "namespace", name, "--wait=false"])?;
    let kinds = "pods,services,networkpolicies,serviceaccounts,configmaps,endpointslices";
    admin.kubectl(&["delete", kinds, "--all", "--namespace", name, "--grace-period=0", "--force"])?;
    let mut namespace = admin.get(&format!("/api/v1/namespaces/{name}"))?;
    if let Some(spec) = namespace.get_mut("spec") {
        *spec = json!({ "finalizers": [] });
    }
    admin.replace(&format!("/api/v1/namespaces/{name}/finalize"), &namespace)
}

/// Registers a node, with its addresses.
///
/// # Errors
/// The API server refuses.
pub fn register_node(admin: &Client, name: &str, addresses: &[IpAddr]) -> Result<()> {
    admin.apply(
        &json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" } },
        })
        .to_string(),
    )?;
    let addresses: Vec<Value> =
        addresses.iter().map(|address| json!({ "type": "InternalIP", "address": address })).collect();
    let status = json!({ "status": {
        "addresses": addresses,
        "conditions": [condition("Ready")],
    }});
    patch_status(admin, None, "node", name, &status)
}

/// Reports a pod as running with these addresses, the first being its primary one.
///
/// # Errors
/// The API server refuses.
pub fn report_running(admin: &Client, namespace: &str, name: &str, addresses: &[IpAddr]) -> Result<()> {
    let pod = admin.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))?;
    let started = json!({ "running": { "startedAt": now() } });
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array).context("a pod has containers")?;
    let statuses: Vec<Value> = containers
        .iter()
        .map(|container| {
            json!({
                "name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0,
                "ready": true, "started": true, "state": started,
            })
        })
        .collect();
    let all: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
    let conditions =
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
    let status = json!({ "status": {
        "phase": "Running", "startTime": now(),
        "podIP": addresses.first(), "podIPs": all,
        "conditions": conditions, "containerStatuses": statuses,
    }});
    patch_status(admin, Some(namespace), "pod", name, &status)
}

/// Reports a pod's phase alone: `Succeeded` or `Failed` of one that has run.
///
/// # Errors
/// The API server refuses.
pub fn report_phase(admin: &Client, namespace: &str, name: &str, phase: &str) -> Result<()> {
    patch_status(admin, Some(namespace), "pod", name, &json!({ "status": { "phase": phase } }))
}

fn patch_status(admin: &Client, namespace: Option<&str>, kind: &str, name: &str, patch: &Value) -> Result<()> {
    let patch = patch.to_string();
    let mut arguments = vec!["patch", kind, name, "--subresource=status", "--type=merge", "--patch", &patch];
    arguments.extend(namespace.into_iter().flat_map(|namespace| ["--namespace", namespace]));
    admin.kubectl(&arguments).map(drop)
}

fn condition(kind: &str) -> Value {
    json!({ "type": kind, "status": "True", "lastTransitionTime": now() })
}

/// The time as the API writes it, in whole seconds of UTC.
fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    timestamp(seconds)
}

/// RFC 3339 of seconds since 1970.
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of the year 0, so that a leap day is the last of its year; 146,097 days are 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on have 153 days in every five.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + carry;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::timestamp;

    #[test]
    fn timestamps_are_in_the_gregorian_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
        ];
        for (seconds, written) in cases {
            assert_eq!(timestamp(seconds), written);
        }
    }
}
