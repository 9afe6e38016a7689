//! The cluster that most tests here share, with the agent on every node; and what they make in it: namespaces of their
//! own, pods with servers in them, policies.
//!
//! Pods are real ones, whose container does nothing: packets are sent and received by this process, on sockets in the
//! pods' network namespaces, so that each of them is counted.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use netpol_policy::model::Protocol;
use netpol_testbed::agent::{self, Agent};
use netpol_testbed::control_plane::Client;
use netpol_testbed::namespace::Namespace;
use netpol_testbed::probe::{self, Outcome, Probe};
use netpol_testbed::servers::{Listen, Served, Servers};
use netpol_testbed::traffic::Echo;
use serde_json::{Value, json};

use crate::cluster::{Cluster, items, text, wait};

/// Where every pod answers what it gets, TCP and UDP.
pub(crate) const PORT: u16 = 8080;
/// Where every pod counts datagrams.
pub(crate) const COUNTING: u16 = 9999;

/// Upstream's test image of this release, which `up` gives to every node.
pub(crate) const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// A cluster with the agent.
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
    servers: Servers,
    namespaces: u32,
}

static SHARED: Mutex<Option<Site>> = Mutex::new(None);

/// The cluster that tests share: three nodes, both families, vxlan. A test that fails leaves its namespace, not more.
pub(crate) fn shared() -> Shared {
    let mut guard = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        *guard = Some(Site::start("suite", &["--nodes", "3", "--families", "dual"]));
    }
    Shared(guard)
}

/// The shared cluster, for one test at a time.
pub(crate) struct Shared(MutexGuard<'static, Option<Site>>);

impl std::ops::Deref for Shared {
    type Target = Site;

    fn deref(&self) -> &Site {
        self.0.as_ref().unwrap()
    }
}

impl std::ops::DerefMut for Shared {
    fn deref_mut(&mut self) -> &mut Site {
        self.0.as_mut().unwrap()
    }
}

/// A pod to make.
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    pub(crate) node: &'a str,
    /// Merged into the object: what differs from a pod that does nothing.
    pub(crate) patch: Value,
}

/// A pod that labels itself by its name.
pub(crate) fn pod<'a>(name: &'a str, node: &'a str) -> Wanted<'a> {
    Wanted { name, node, patch: json!({}) }
}

/// A pod that runs.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    /// In the order of the cluster's families.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) network: Namespace,
    /// The node's end of its link; none in the host's network.
    pub(crate) host_interface: Option<String>,
    /// One for each address.
    pub(crate) echoes: Vec<Echo>,
    _served: Option<Served>,
}

impl Site {
    /// Starts a cluster, and the agent in it.
    pub(crate) fn start(name: &'static str, options: &[&str]) -> Self {
        let cluster = Cluster::fresh(name);
        let begin = Instant::now();
        cluster.up(options);
        eprintln!("{name}: `cluster up {}`: {:.1} s", options.join(" "), begin.elapsed().as_secs_f32());
        Self::on(cluster)
    }

    /// Installs the agent in a cluster that is up.
    pub(crate) fn on(cluster: Cluster) -> Self {
        cluster.install_agent();
        let client = cluster.client();
        Self { cluster, client, servers: Servers::start().unwrap(), namespaces: 0 }
    }

    /// The nodes that there are.
    pub(crate) fn nodes(&self) -> Vec<String> {
        self.cluster.machines().into_iter().filter(|name| name.starts_with("node")).collect()
    }

    /// A namespace of the test's own; its objects go with the value.
    pub(crate) fn namespace(&mut self, name: &str) -> Workspace<'_> {
        self.namespaces += 1;
        let name = format!("{name}-{}", self.namespaces);
        let object = json!({ "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": { "team": name } } });
        self.client.apply(&object.to_string()).unwrap();
        Workspace { site: self, name }
    }

    /// What the agent of a node answers.
    pub(crate) fn ask(&self, node: &str, path: &str) -> Result<String> {
        agent::get(&self.cluster.machine(node).place(), Agent::ADDRESS, path)
    }

    /// Waits until the agents of all nodes report an object's version of a kind in force; returns when they did.
    pub(crate) fn applied(&self, kind: &str, version: u64) -> Instant {
        for node in self.nodes() {
            self.applied_on(&node, kind, version);
        }
        Instant::now()
    }

    /// Waits until the agent of one node does.
    pub(crate) fn applied_on(&self, node: &str, kind: &str, version: u64) {
        wait(&format!("{kind} {version} in force on {node}"), || {
            let answer: Value = serde_json::from_str(&self.ask(node, "/v1/applied")?).context("JSON")?;
            let there = text(&answer["applied"], &format!("/{kind}/version"))?.parse::<u64>()?;
            ensure!(there >= version, "{answer}");
            Ok(())
        });
    }
}

/// A namespace of the cluster, and the way to change what is in it.
pub(crate) struct Workspace<'a> {
    pub(crate) site: &'a Site,
    pub(crate) name: String,
}

impl Workspace<'_> {
    /// Makes pods, and returns when they run, their servers listen, and the agents have them in force.
    pub(crate) fn pods<const N: usize>(&self, wanted: [Wanted<'_>; N]) -> [Pod; N] {
        self.create(&wanted);
        let names = wanted.map(|wanted| wanted.name.to_owned());
        let pods = names.each_ref().map(|name| self.running(name));
        self.settle();
        pods
    }

    /// Creates the objects of pods, and does not wait.
    pub(crate) fn create(&self, wanted: &[Wanted<'_>]) {
        let objects: Vec<Value> = wanted.iter().map(|wanted| self.object(wanted)).collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        self.site.client.apply(&list.to_string()).unwrap();
    }

    fn object(&self, Wanted { name, node, patch }: &Wanted<'_>) -> Value {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": self.name, "labels": { "app": name } },
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
                "enableServiceLinks": false, "tolerations": [{ "operator": "Exists" }],
                "containers": [{ "name": "idle", "image": AGNHOST, "args": ["pause"] }],
            },
        });
        merge(&mut object, patch);
        object
    }

    /// The object of a pod, or of anything else here.
    pub(crate) fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let answer = self.site.client.kubectl(&["get", kind, name, "--namespace", &self.name, "--output=json"])?;
        serde_json::from_str(&answer).context("JSON")
    }

    /// Waits until a pod is ready, and starts its servers.
    pub(crate) fn running(&self, name: &str) -> Pod {
        let object = wait(&format!("pod {name}"), || {
            let object = self.get("pod", name)?;
            let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
            let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
            ensure!(conditions.is_some_and(|conditions| conditions.iter().any(ready)), "{}", object["status"]);
            Ok(object)
        });
        let host_network = object["spec"]["hostNetwork"] == true;
        let uid = text(&object, "/metadata/uid").unwrap().to_owned();
        let node = text(&object, "/spec/nodeName").unwrap().to_owned();
        let addresses: Vec<IpAddr> = object["status"]["podIPs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ip| ip["ip"].as_str().unwrap().parse().unwrap())
            .collect();
        let machine = self.site.cluster.machine(&node);
        let (network, host_interface) = if host_network {
            (machine.network(), None)
        } else {
            let Sandbox { network, host_interface } = sandbox(self.site, &node, &uid).unwrap();
            (network, Some(host_interface))
        };
        let mut places = BTreeSet::new();
        for address in &addresses {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let _new = places.insert(Listen { address: *address, protocol, port: PORT });
            }
        }
        // A container that serves there itself is left alone.
        let idle = object["spec"]["containers"][0]["args"][0] == "pause";
        let served = idle.then(|| self.site.servers.listen(&network, &places).unwrap());
        let echo = |address: &IpAddr| Echo::start(&network, SocketAddr::new(*address, COUNTING)).unwrap();
        let echoes = addresses.iter().map(echo).collect();
        Pod { name: name.to_owned(), node, addresses, network, host_interface, echoes, _served: served }
    }

    /// Adds or replaces a policy, waits until it is in force on all nodes, and returns when it was.
    pub(crate) fn policy(&self, name: &str, spec: &Value) -> Instant {
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": name, "namespace": self.name }, "spec": spec,
        });
        self.site.client.apply(&object.to_string()).unwrap();
        let version = version(&self.get("networkpolicy", name).unwrap());
        self.site.applied("NetworkPolicy", version)
    }

    /// Changes labels of a pod or of the namespace; waits, and returns when the change was in force everywhere.
    pub(crate) fn label(&self, kind: &str, name: &str, labels: &[&str]) -> Instant {
        let mut arguments = vec!["label", kind, name, "--overwrite", "--output=jsonpath={.metadata.resourceVersion}"];
        arguments.extend(labels);
        let namespace = format!("--namespace={}", self.name);
        if kind == "pod" {
            arguments.push(&namespace);
        }
        let version = self.site.client.kubectl(&arguments).unwrap().parse().unwrap();
        self.site.applied(if kind == "pod" { "Pod" } else { "Namespace" }, version)
    }

    /// Deletes a pod, and returns when its object is gone.
    pub(crate) fn delete_pod(&self, name: &str) {
        let namespace = format!("--namespace={}", self.name);
        let _said = self.site.client.kubectl(&["delete", "pod", name, &namespace, "--wait=true"]).unwrap();
    }

    /// Waits until all agents have the pods of this namespace in force as they are now; returns when they had.
    pub(crate) fn settle(&self) -> Instant {
        let answer = self.site.client.get(&format!("/api/v1/namespaces/{}/pods", self.name)).unwrap();
        let newest = items(&answer).unwrap().iter().map(version).max().unwrap_or_default();
        let _when = self.site.applied("Pod", newest);
        for node in self.site.nodes() {
            wait(&format!("no interface of {node} is pending"), || {
                let answer: Value = serde_json::from_str(&self.site.ask(&node, "/v1/applied")?).context("JSON")?;
                let all = answer["endpoints"]["ready"] == answer["endpoints"]["managed"];
                if answer["pending"] == 0 && all { Ok(()) } else { bail!("{answer}") }
            });
        }
        Instant::now()
    }
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        // If the cluster is gone, so are they.
        let _ = self.site.client.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

/// The network of a pod, as the runtime's record of its CNI plugins says.
pub(crate) struct Sandbox {
    pub(crate) network: Namespace,
    pub(crate) host_interface: String,
}

pub(crate) fn sandbox(site: &Site, node: &str, uid: &str) -> Result<Sandbox> {
    let machine = site.cluster.machine(node);
    let record = machine.place().run(|| {
        for entry in std::fs::read_dir("/var/lib/cni/results").context("the runtime's records")?.flatten() {
            let record = std::fs::read_to_string(entry.path()).unwrap_or_default();
            if record.contains("\"networkName\":\"cbr0\"") && record.contains(uid) {
                return serde_json::from_str::<Value>(&record).context("a record");
            }
        }
        bail!("no record of {uid}")
    })?;
    let network = machine.namespace(Path::new(text(&record, "/netns")?))?;
    let interfaces = record["result"]["interfaces"].as_array().context("no interfaces")?;
    let is_host_end = |one: &&Value| one["sandbox"].is_null() && one["name"] != "cni0";
    let host_end = interfaces.iter().find(is_host_end).context("no veth")?;
    Ok(Sandbox { network, host_interface: text(host_end, "/name")?.to_owned() })
}

/// The version of an object: numbers that grow, since Kubernetes 1.35 by definition (KEP-5504).
pub(crate) fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

/// A JSON merge patch (RFC 7386) without deletions, but that lists of one container are merged too.
fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

/// Probes every pair once, by every family that both have and both protocols, and asserts one answer for all.
pub(crate) fn expect(from: &Pod, to: &Pod, expected: &Outcome) {
    for (family, answers) in outcomes(from, to).into_iter().enumerate() {
        for (protocol, outcome) in answers {
            let (from, to) = (&from.name, &to.name);
            assert_eq!(outcome, *expected, "{from} to {to}, {protocol:?}, family {family}");
        }
    }
}

fn outcomes(from: &Pod, to: &Pod) -> Vec<Vec<(Protocol, Outcome)>> {
    let families = from.addresses.iter().zip(&to.addresses);
    families.map(|(source, destination)| try_both(&from.network, *source, *destination, PORT)).collect()
}

/// Tries TCP and UDP.
pub(crate) fn try_both(from: &Namespace, source: IpAddr, destination: IpAddr, port: u16) -> Vec<(Protocol, Outcome)> {
    let protocols = [Protocol::Tcp, Protocol::Udp];
    let probes = protocols.map(|protocol| Probe { from, source, destination, protocol, port });
    protocols.into_iter().zip(probe::run(&probes).unwrap()).collect()
}

/// A folder below the repository's root.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}
