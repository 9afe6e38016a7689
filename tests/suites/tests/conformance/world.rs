//! Upstream's nine pods, and the expectations of a case.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use netpol_policy::model::{ObjectName, Protocol};
use netpol_suites::agent_binary;
use netpol_testbed::probe::Outcome;
use netpol_testbed::sandbox::cells::Port;
use netpol_testbed::sandbox::{Answered, Families, Options, Policies, Sandbox};
use serde_json::{Value, json};

/// All pods, as `namespace/name`.
pub(crate) const PODS: [&str; 9] = ["x/a", "x/b", "x/c", "y/a", "y/b", "y/c", "z/a", "z/b", "z/c"];

/// TCP 80.
pub(crate) const TCP_80: Port = Port { protocol: Protocol::Tcp, number: 80 };
/// TCP 81.
pub(crate) const TCP_81: Port = Port { protocol: Protocol::Tcp, number: 81 };

/// Upstream's cluster.
pub(crate) struct World {
    sandbox: Sandbox,
    objects: Vec<Value>,
}

/// The one cluster of this suite, with no policies and unchanged labels.
pub(crate) fn world() -> MutexGuard<'static, World> {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    let shared = WORLD.get_or_init(|| {
        let options = Options {
            families: Families::Dual,
            agent: Some(agent_binary()),
            agent_arguments: Vec::new(),
            recorded: true,
        };
        let mut sandbox = Sandbox::start(options).expect("sandbox");
        let objects = objects();
        assert_eq!(sandbox.arrange(&objects).expect("arrange"), []);
        sandbox.publish(Policies::InForce).expect("publish");
        sandbox.baseline().expect("everything connects without policies");
        Mutex::new(World { sandbox, objects })
    });
    // A case that failed says nothing of the next one.
    let mut world = shared.lock().unwrap_or_else(PoisonError::into_inner);
    world.objects = objects();
    world
}

fn objects() -> Vec<Value> {
    let mut objects = Vec::new();
    for name in ["x", "y", "z"] {
        objects.push(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
    }
    for pod in PODS {
        let (namespace, name) = split(pod);
        let containers: Vec<Value> = [80, 81]
            .into_iter()
            .flat_map(|port| ["TCP", "UDP", "SCTP"].map(|protocol| (port, protocol)))
            .map(|(port, protocol)| {
                let label = format!("serve-{port}-{}", protocol.to_lowercase());
                json!({
                    "name": format!("cont-{port}-{}", protocol.to_lowercase()),
                    "ports": [{ "containerPort": port, "name": label, "protocol": protocol }],
                })
            })
            .collect();
        objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "labels": { "pod": name } },
            "spec": { "containers": containers },
        }));
    }
    objects
}

fn split(pod: &str) -> (&str, &str) {
    pod.split_once('/').expect("namespace/name")
}

impl World {
    /// Creates a policy in namespace x, or replaces it.
    pub(crate) fn policy(&mut self, name: &str, spec: Value) -> &mut Self {
        self.policy_in("x", name, spec)
    }

    /// Creates a policy, or replaces it.
    pub(crate) fn policy_in(&mut self, namespace: &str, name: &str, spec: Value) -> &mut Self {
        self.objects.push(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": namespace, "name": name }, "spec": spec,
        }));
        self
    }

    /// Deletes all policies.
    pub(crate) fn delete_policies(&mut self) -> &mut Self {
        self.objects.retain(|object| object["kind"] != "NetworkPolicy");
        self
    }

    /// Adds a label to a namespace or pod.
    pub(crate) fn label(&mut self, object: &str, key: &str, value: &str) -> &mut Self {
        let (namespace, name) = match object.split_once('/') {
            Some((namespace, name)) => (json!(namespace), name),
            None => (Value::Null, object),
        };
        let is_it = |object: &&mut Value| {
            let metadata = &object["metadata"];
            object["kind"] != "NetworkPolicy" && metadata["name"] == name && metadata["namespace"] == namespace
        };
        let object = self.objects.iter_mut().find(is_it).expect("object");
        object["metadata"]["labels"][key] = json!(value);
        self
    }

    /// The addresses of a pod as blocks of one address.
    pub(crate) fn blocks(&self, pod: &str) -> Vec<String> {
        let (namespace, name) = split(pod);
        let pod = self.sandbox.cluster().pods.get(&ObjectName::new(namespace, name)).expect("pod");
        pod.addresses.iter().map(|address| block(*address)).collect()
    }

    /// Puts the manifests in force, probes everything, and holds it against the oracle, and one port against what
    /// upstream expects: `denied` from whom to whom, given as `namespace/name`. A pod's connections to itself are no
    /// business of policies.
    pub(crate) fn expect(&mut self, port: Port, denied: impl Fn(&str, &str) -> bool) -> &mut Self {
        assert_eq!(self.sandbox.arrange(&self.objects).expect("arrange"), []);
        self.sandbox.publish(Policies::InForce).expect("publish");
        let matrix = self.sandbox.matrix().expect("matrix");
        let is_expected = |answered: &&Answered| {
            let (from, to) = (answered.cell.from.to_string(), answered.cell.to.to_string());
            let is_of_the_case =
                answered.cell.port == port && PODS.contains(&from.as_str()) && PODS.contains(&to.as_str());
            let by_hand = if from != to && denied(&from, &to) { Outcome::Deny } else { Outcome::Allow };
            answered.agrees() && (!is_of_the_case || answered.observed == by_hand)
        };
        let wrong: Vec<&Answered> = matrix.iter().filter(|answered| !is_expected(answered)).collect();
        assert!(
            wrong.is_empty(),
            "{} of {} cells, among them {:#?}",
            wrong.len(),
            matrix.len(),
            &wrong[..wrong.len().min(5)]
        );
        self
    }

    /// Everything connects on the port.
    pub(crate) fn expect_open(&mut self, port: Port) -> &mut Self {
        self.expect(port, |_, _| false)
    }
}

fn block(address: std::net::IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// Namespace of a pod.
pub(crate) fn namespace(pod: &str) -> &str {
    split(pod).0
}

/// A selector of pods by upstream's label.
pub(crate) fn pod(name: &str) -> Value {
    json!({ "matchLabels": { "pod": name } })
}

/// A selector of a namespace by the label that each has.
pub(crate) fn ns(name: &str) -> Value {
    json!({ "matchLabels": { "kubernetes.io/metadata.name": name } })
}

/// A selector with one expression.
pub(crate) fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] })
}

/// The label of a namespace's name.
pub(crate) const NAME: &str = "kubernetes.io/metadata.name";

/// A policy for ingress to the pods selected.
pub(crate) fn ingress(selector: Value, rules: Value) -> Value {
    json!({ "podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules })
}

/// A policy for egress from the pods selected.
pub(crate) fn egress(selector: Value, rules: Value) -> Value {
    json!({ "podSelector": selector, "policyTypes": ["Egress"], "egress": rules })
}
