//! A case: manifests that change step by step, and what is expected by hand after each.

use std::collections::BTreeMap;

use netpol_testbed::probe::Outcome;
use netpol_testbed::sandbox::cells::Port;
use netpol_testbed::sandbox::{Answered, Families};
use serde_json::{Value, json};

use super::{PODS, objects, split};

/// A case, with its steps in order.
#[derive(Debug)]
pub struct Case {
    /// What it is called in reports.
    pub name: String,
    /// What is to be put in force, one after the other.
    pub steps: Vec<Step>,
    manifests: Vec<Value>,
    is_changed: bool,
}

/// What is in force at one moment.
#[derive(Debug)]
pub struct Step {
    /// All objects.
    pub manifests: Vec<Value>,
    /// What the author expects, beside what the oracle says.
    pub expected: Vec<Expected>,
    /// Whether there are other pods than the nine, or nine that declare other ports.
    pub changes_pods: bool,
}

/// Whether a pod's connections to another are denied, both as `namespace/name`.
type Denied = dyn Fn(&str, &str) -> bool + Send + Sync;

/// What is expected by hand of one port of all pairs of the nine pods.
pub struct Expected {
    port: Port,
    denied: Box<Denied>,
}

impl std::fmt::Debug for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expected").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Expected {
    /// What was expected of this cell, if it is among those that this speaks of. A pod's connections to itself are not:
    /// upstream's expectations leave them out.
    #[must_use]
    pub fn of(&self, Answered { cell, .. }: &Answered) -> Option<Outcome> {
        let (from, to) = (cell.from.to_string(), cell.to.to_string());
        let is_of_the_nine = PODS.contains(&from.as_str()) && PODS.contains(&to.as_str());
        (cell.port == self.port && is_of_the_nine && from != to)
            .then(|| if (self.denied)(&from, &to) { Outcome::Deny } else { Outcome::Allow })
    }
}

impl Case {
    /// A case that begins with the nine pods and no policies.
    #[must_use]
    pub fn new(name: impl Into<String>, families: Families) -> Self {
        Self { name: name.into(), steps: Vec::new(), manifests: objects(families), is_changed: true }
    }

    /// Creates a policy in namespace x, or replaces it.
    #[must_use]
    pub fn policy(self, name: &str, spec: Value) -> Self {
        self.policy_in("x", name, spec)
    }

    /// Creates a policy, or replaces it.
    #[must_use]
    pub fn policy_in(self, namespace: &str, name: &str, spec: Value) -> Self {
        self.object(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": namespace, "name": name }, "spec": spec,
        }))
    }

    /// Creates an object, or replaces it.
    #[must_use]
    pub fn object(mut self, object: Value) -> Self {
        let identity = |object: &Value| {
            let metadata = &object["metadata"];
            (object["kind"].clone(), metadata["namespace"].clone(), metadata["name"].clone())
        };
        match self.manifests.iter_mut().find(|other| identity(other) == identity(&object)) {
            Some(before) => *before = object,
            None => self.manifests.push(object),
        }
        self.is_changed = true;
        self
    }

    /// Deletes a namespace with all that is in it, a pod (`namespace/name`), or a policy by its name alone.
    #[must_use]
    pub fn delete(mut self, kind: &str, name: &str) -> Self {
        let before = self.manifests.len();
        self.manifests.retain(|object| {
            let metadata = &object["metadata"];
            match kind {
                "Namespace" => metadata["namespace"] != name && (object["kind"] != kind || metadata["name"] != name),
                "Pod" => {
                    let (namespace, name) = split(name);
                    object["kind"] != kind || metadata["name"] != name || metadata["namespace"] != namespace
                }
                _ => object["kind"] != kind || metadata["name"] != name,
            }
        });
        assert!(self.manifests.len() < before, "{}: there is no {kind} {name}", self.name);
        self.is_changed = true;
        self
    }

    /// Deletes all policies.
    #[must_use]
    pub fn delete_policies(mut self) -> Self {
        self.manifests.retain(|object| object["kind"] != "NetworkPolicy");
        self.is_changed = true;
        self
    }

    /// Sets a label of a namespace or of a pod (`namespace/name`).
    #[must_use]
    pub fn label(mut self, object: &str, key: &str, value: &str) -> Self {
        let (namespace, name) = match object.split_once('/') {
            Some((namespace, name)) => (json!(namespace), name),
            None => (Value::Null, object),
        };
        let is_it = |object: &&mut Value| {
            let metadata = &object["metadata"];
            object["kind"] != "NetworkPolicy" && metadata["name"] == name && metadata["namespace"] == namespace
        };
        let object = self.manifests.iter_mut().find(is_it).expect("an object to label");
        object["metadata"]["labels"][key] = json!(value);
        self.is_changed = true;
        self
    }

    /// Everything is as the oracle says.
    #[must_use]
    pub fn probe(mut self) -> Self {
        // What is probed follows from pods' names and containers, and not from their labels.
        let pods = |objects: &[Value]| -> BTreeMap<String, Value> {
            let pods = objects.iter().filter(|object| object["kind"] == "Pod");
            pods.map(|pod| {
                (pod["metadata"]["namespace"].to_string() + &pod["metadata"]["name"].to_string(), pod["spec"].clone())
            })
            .collect()
        };
        let changes_pods = pods(&self.manifests) != pods(&objects(Families::Dual));
        self.steps.push(Step { manifests: self.manifests.clone(), expected: Vec::new(), changes_pods });
        self.is_changed = false;
        self
    }

    /// Everything is as the oracle says, and one port as expected by hand: `denied` from whom to whom, given as
    /// `namespace/name`.
    #[must_use]
    pub fn expect(self, port: Port, denied: impl Fn(&str, &str) -> bool + Send + Sync + 'static) -> Self {
        let mut case = if self.is_changed { self.probe() } else { self };
        let step = case.steps.last_mut().expect("a step was just added");
        step.expected.push(Expected { port, denied: Box::new(denied) });
        case
    }

    /// Everything connects on the port.
    #[must_use]
    pub fn expect_open(self, port: Port) -> Self {
        self.expect(port, |_, _| false)
    }
}
