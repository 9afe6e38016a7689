//! A client of the API server under one identity: the real kubectl, so that objects go through what users' objects go
//! through. Objects are JSON values on the way in and out.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::place::Place;

/// kubectl with one kubeconfig.
#[derive(Clone, Debug)]
pub struct Client {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
    place: Place,
}

impl Client {
    /// The program kubectl with a kubeconfig, and a folder for its caches, run in a place where the server can be reached.
    #[must_use]
    pub fn new(kubectl: &Path, kubeconfig: &Path, home: &Path, place: &Place) -> Self {
        Self {
            kubectl: kubectl.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
            home: home.to_owned(),
            place: place.clone(),
        }
    }

    /// The identity's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs kubectl and returns what it prints.
    ///
    /// # Errors
    /// kubectl fails; what it prints on standard error is part of the message.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with_input(arguments, "")
    }

    /// Runs kubectl with something to read on its standard input (`-f -`).
    ///
    /// # Errors
    /// As [`Client::kubectl`].
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        // A user's own preferences and discovery cache have no place here.
        command.env("HOME", &self.home).env("KUBECTL_KUBERC", "false").env_remove("KUBECONFIG");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.place.prepare(&mut command)?;
        let mut child = command.spawn().context("cannot start kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl has no standard input")?;
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                // kubectl may end without reading to the end; its own message then says why.
                let _ = stdin.write_all(input.as_bytes());
            });
            child.wait_with_output()
        });
        let output = output.context("cannot wait for kubectl")?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Server-side apply of a stream of YAML documents or of JSON, with strict validation: an unknown or repeated field
    /// is an error.
    ///
    /// # Errors
    /// The API server refuses an object.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl_with_input(
            &["apply", "--server-side", "--force-conflicts", "--validate=strict", "--filename=-"],
            manifests,
        )
        .map(drop)
    }

    /// [`Client::apply`] of what a kustomization folder renders to.
    ///
    /// # Errors
    /// The folder does not render, or the API server refuses an object.
    pub fn apply_kustomization(&self, folder: &Path) -> Result<()> {
        let folder = folder.to_str().context("the kustomization's path is not UTF-8")?;
        let rendered = self.kubectl(&["kustomize", folder])?;
        self.apply(&rendered)
    }

    /// Reads a path of the API, such as `/api/v1/namespaces/shop/pods`.
    ///
    /// # Errors
    /// The API server refuses, or there is no such object.
    pub fn get(&self, path: &str) -> Result<Value> {
        let text = self.kubectl(&["get", "--raw", path])?;
        serde_json::from_str(&text).with_context(|| format!("GET {path}: the answer is not JSON"))
    }

    /// Creates an object below a collection's path.
    ///
    /// # Errors
    /// The API server refuses it.
    pub fn create(&self, path: &str, object: &Value) -> Result<()> {
        self.kubectl_with_input(&["create", "--raw", path, "--filename=-"], &object.to_string()).map(drop)
    }

    /// Replaces an object, or a subresource of it.
    ///
    /// # Errors
    /// The API server refuses it.
    pub fn replace(&self, path: &str, object: &Value) -> Result<()> {
        self.kubectl_with_input(&["replace", "--raw", path, "--filename=-"], &object.to_string()).map(drop)
    }

    /// Applies a JSON merge patch to an object: `kind` as kubectl takes it, such as `pod` or `networkpolicy`.
    ///
    /// # Errors
    /// The API server refuses it.
    pub fn patch(&self, namespace: Option<&str>, kind: &str, name: &str, patch: &Value) -> Result<()> {
        let patch = patch.to_string();
        let mut arguments = vec!["patch", kind, name, "--type=merge", "--patch", &patch];
        arguments.extend(namespace.into_iter().flat_map(|namespace| ["--namespace", namespace]));
        self.kubectl(&arguments).map(drop)
    }

    /// Deletes an object at once, without a grace period, and waits until it is gone.
    ///
    /// # Errors
    /// There is no such object, or the API server refuses.
    pub fn delete(&self, namespace: Option<&str>, kind: &str, name: &str) -> Result<()> {
        let mut arguments = vec!["delete", kind, name, "--grace-period=0", "--force", "--wait=true"];
        arguments.extend(namespace.into_iter().flat_map(|namespace| ["--namespace", namespace]));
        self.kubectl(&arguments).map(drop)
    }

    /// Whether the API server lets this identity do something: `verb` `resource`, such as `list` `pods`.
    ///
    /// # Errors
    /// The API server does not answer.
    pub fn may(&self, verb: &str, resource: &str) -> Result<bool> {
        // The exit status is 1 for "no" as for an error, so the answer itself is read.
        let review = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": attributes(verb, resource) },
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = self.kubectl_with_input(&["create", "--raw", path, "--filename=-"], &review.to_string())?;
        let answer: Value = serde_json::from_str(&answer).context("the access review is not JSON")?;
        answer.pointer("/status/allowed").and_then(Value::as_bool).context("the access review has no answer")
    }
}

/// `pods`, `networkpolicies.networking.k8s.io` or `pods/log` as an access review wants it.
fn attributes(verb: &str, resource: &str) -> Value {
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    serde_json::json!({ "verb": verb, "group": group, "resource": resource, "subresource": subresource })
}
