//! The API server, by way of kubectl: what is applied goes through what users' objects go through.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use netpol_policy::decode::Kind;
use netpol_policy::model::{Cluster, ObjectName};
use netpol_testbed::sandbox::contents::Contents;
use serde_json::Value;

use super::Site;
use super::objects::{self, Key, MARK};

/// Whose the fields are that `run` applies.
const MANAGER: &str = "--field-manager=netpol-run";

/// What `kubectl get` calls the kinds that decide verdicts.
pub(in crate::run) fn resources() -> String {
    let resource = |kind: Kind| match kind {
        Kind::Namespace => "namespaces",
        Kind::Pod => "pods",
        Kind::Policy => "networkpolicies.networking.k8s.io",
        Kind::Service => "services",
        Kind::Node => "nodes",
        Kind::EndpointSlice => "endpointslices.discovery.k8s.io",
        Kind::ServiceCidr => "servicecidrs.networking.k8s.io",
    };
    Kind::ALL.map(resource).join(",")
}

/// What the API server shows.
pub(super) struct Snapshot {
    /// All objects that decide verdicts.
    objects: Vec<Value>,
    contents: Contents,
}

/// A pod that `run` has made, as the kubelet reports it.
pub(super) struct Made<'a> {
    /// The object.
    pub(super) object: &'a Value,
    /// All containers run, and addresses are known.
    pub(super) is_running: bool,
}

impl Snapshot {
    /// Asks.
    pub(super) fn take(site: &dyn Site) -> Result<Self> {
        let text = kubectl(site, &["get", &resources(), "--all-namespaces", "--output=json"])?;
        let listed: Value = serde_json::from_str(&text).context("kubectl get")?;
        let objects = listed["items"].as_array().cloned().context("kubectl get: no items")?;
        let mut contents = Contents::default();
        if let Some(refused) = contents.read(&objects).first() {
            bail!("the API server shows what this version cannot read: {refused}");
        }
        Ok(Self { objects, contents })
    }

    /// What it means to policies.
    pub(super) fn cluster(&self) -> &Cluster {
        self.contents.cluster()
    }

    /// The newest version among the objects of a kind.
    pub(super) fn version(&self, kind: Kind) -> u64 {
        let of_kind = self.objects.iter().filter(|object| object["kind"] == *kind.name());
        let version = |object: &Value| object["metadata"]["resourceVersion"].as_str()?.parse().ok();
        of_kind.filter_map(version).max().unwrap_or(0)
    }

    /// The pods that `run` has made.
    pub(super) fn made(&self) -> BTreeMap<ObjectName, Made<'_>> {
        let pods = self.marked().filter(|((kind, _), _)| *kind == Kind::Pod);
        pods.map(|((_, name), object)| (name, Made { object, is_running: is_running(object) })).collect()
    }

    /// Everything that `run` has made, whenever that was.
    pub(super) fn marked(&self) -> impl Iterator<Item = (Key, &Value)> {
        self.objects.iter().filter(|object| object["metadata"]["annotations"].get(MARK).is_some()).filter_map(
            |object| {
                let kind = Kind::ALL.into_iter().find(|kind| object["kind"] == *kind.name())?;
                let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
                Some(((kind, ObjectName::new(text("namespace"), text("name"))), object))
            },
        )
    }

    /// The nodes' objects.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(|object| object["kind"] == "Node")
    }
}

fn is_running(pod: &Value) -> bool {
    let status = &pod["status"];
    let containers = status["containerStatuses"].as_array();
    status["phase"] == "Running"
        && pod["metadata"].get("deletionTimestamp").is_none()
        && status["podIPs"].as_array().is_some_and(|addresses| !addresses.is_empty())
        && containers.is_some_and(|all| all.iter().all(|one| one["ready"] == true))
}

/// Why a pod does not run, in a few words.
pub(super) fn trouble(pod: &Value) -> String {
    let status = &pod["status"];
    let list = |field: &str| status[field].as_array().cloned().unwrap_or_default();
    let of_container = list("containerStatuses").into_iter().find_map(|one| {
        let waiting = &one["state"]["waiting"];
        let text = |field: &str| waiting[field].as_str().unwrap_or_default().to_owned();
        (!waiting.is_null()).then(|| format!("{} {}", text("reason"), text("message")))
    });
    let of_pod = || {
        let failed = list("conditions").into_iter().find(|condition| condition["status"] == "False")?;
        Some(failed["message"].as_str()?.to_owned())
    };
    let phase = || status["phase"].as_str().unwrap_or("unknown").to_owned();
    of_container.or_else(of_pod).unwrap_or_else(phase)
}

/// Runs kubectl and returns what it prints.
pub(super) fn kubectl(site: &dyn Site, arguments: &[&str]) -> Result<String> {
    crate::process::output(site.kubectl()?.args(arguments))
}

/// Applies a kustomization.
pub(super) fn apply_kustomization(site: &dyn Site, folder: &Path) -> Result<()> {
    let folder = folder.to_str().context("a folder's name is no UTF-8")?;
    kubectl(site, &["apply", "--server-side", "--force-conflicts", MANAGER, "--kustomize", folder]).map(drop)
}

/// Applies objects.
pub(super) fn apply(site: &dyn Site, objects: Vec<Value>) -> Result<()> {
    if objects.is_empty() {
        return Ok(());
    }
    let arguments = ["apply", "--server-side", "--force-conflicts", "--validate=strict", MANAGER, "--filename=-"];
    with_input(site, &arguments, &objects::list(objects))
}

/// Deletes objects, and returns when they are gone. What is gone already is no error.
pub(super) fn delete(site: &dyn Site, keys: &[Key]) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let arguments = ["delete", "--ignore-not-found", "--wait=true", "--timeout=120s", "--filename=-"];
    with_input(site, &arguments, &objects::list(keys.iter().map(objects::named).collect()))
}

fn with_input(site: &dyn Site, arguments: &[&str], input: &Value) -> Result<()> {
    let mut command = site.kubectl()?;
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start kubectl")?;
    if let Some(mut stdin) = child.stdin.take() {
        // kubectl may end without reading to the end; its own message then says why.
        let _ = stdin.write_all(input.to_string().as_bytes());
    }
    let output = child.wait_with_output().context("waitpid")?;
    if !output.status.success() {
        bail!("kubectl {}: {}", arguments.first().unwrap_or(&""), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_runs_when_its_containers_do_and_its_addresses_are_known() {
        let mut pod = json!({
            "metadata": {},
            "status": {
                "phase": "Running", "podIPs": [{ "ip": "10.244.0.2" }], "containerStatuses": [{ "ready": true }],
            },
        });
        assert!(is_running(&pod));
        pod["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z");
        assert!(!is_running(&pod));
    }

    #[test]
    fn the_reason_of_a_pod_that_does_not_run_is_its_containers_or_its_own() {
        let waiting = json!({ "waiting": { "reason": "ImagePullBackOff", "message": "no such image" } });
        let pod = json!({ "status": { "phase": "Pending", "containerStatuses": [{ "state": waiting }] } });
        assert_eq!(trouble(&pod), "ImagePullBackOff no such image");
        let condition = json!({ "status": "False", "message": "0/3 nodes are available" });
        let pod = json!({ "status": { "phase": "Pending", "conditions": [condition] } });
        assert_eq!(trouble(&pod), "0/3 nodes are available");
        assert_eq!(trouble(&json!({ "status": { "phase": "Pending" } })), "Pending");
    }
}
