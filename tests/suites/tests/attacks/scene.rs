//! A node with an attacker, a victim and a bystander, a host outside, and the agent on a folder of manifests.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use netpol_policy::model::Protocol;
use netpol_suites::agent_binary;
use netpol_testbed::agent::{Agent, Dropped};
use netpol_testbed::node::{BRIDGE, Node, NodeOptions};
use netpol_testbed::place::Place;
use netpol_testbed::pod::{Pod, PodSpec};
use netpol_testbed::servers::{Listen, Served, Servers};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::wire::{self, Wire};

/// Who is on the node, and the last byte of their addresses.
pub(crate) const PODS: [(&str, u8); 3] = [("attacker", 10), ("victim", 11), ("bystander", 12)];

/// A host outside.
pub(crate) const OUTSIDE: [u8; 4] = [203, 0, 113, 10];

/// Its IPv6 address.
pub(crate) const OUTSIDE6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];

/// Where everybody listens, TCP and UDP.
pub(crate) const PORT: u16 = 8080;

const PATIENCE: Duration = Duration::from_secs(30);

/// Everything, in the order in which it is dropped.
pub(crate) struct Scene {
    agent: Option<Agent>,
    served: Vec<Served>,
    servers: Servers,
    pods: Vec<Pod>,
    pub(crate) node: Node,
    policies: Vec<Value>,
    /// Annotations of the attacker.
    annotations: Value,
    /// Flows that the agent is told to hold.
    flows: Option<u16>,
    folder: TempDir,
}

impl Scene {
    /// Node and host; no pods and no agent yet.
    pub(crate) fn new() -> Self {
        let node = Node::new(NodeOptions::default()).unwrap();
        let hosts = [OUTSIDE.into(), OUTSIDE6.into()];
        node.outside().add_hosts(&hosts).unwrap();
        let servers = Servers::start().unwrap();
        let served = vec![
            servers.listen(node.outside().network(), &everywhere(&hosts)).unwrap(),
            servers.listen(node.network(), &everywhere(&node.gateways())).unwrap(),
        ];
        let folder = tempfile::tempdir().unwrap();
        let (pods, policies, annotations) = (Vec::new(), Vec::new(), json!({}));
        Self { agent: None, served, servers, pods, node, policies, annotations, flows: None, folder }
    }

    /// Starts the pods; if the agent runs, it knows them when this returns.
    pub(crate) fn populate(&mut self) {
        let specs = PODS.map(|(name, last)| PodSpec {
            namespace: "shop".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            addresses: addresses(last),
            recorded: true,
        });
        self.pods = self.node.add_pods(specs.to_vec(), &[]).unwrap();
        for pod in &self.pods {
            let places = everywhere(&pod.spec().addresses);
            self.served.push(self.servers.listen(pod.network(), &places).unwrap());
        }
        if self.agent.is_some() {
            self.wait_managed(None);
        }
    }

    /// Lets the attacker be one whose addresses are not checked.
    pub(crate) fn check_no_addresses(&mut self) {
        self.annotations = json!({ "netpol-agent.dev/address-check": "off" });
    }

    /// Lets the agent hold no more than this number of flows.
    pub(crate) const fn limit_flows(&mut self, flows: u16) {
        self.flows = Some(flows);
    }

    /// Starts the agent under these policies; returns when they are in force.
    pub(crate) fn start_agent(&mut self, policies: Vec<Value>) {
        self.policies = policies;
        self.write();
        let manifests = self.manifests();
        let mut arguments = vec!["--manifests".to_owned(), manifests.to_str().unwrap().to_owned()];
        if let Some(flows) = self.flows {
            arguments.extend(["--max-flows".to_owned(), flows.to_string()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.agent = Some(Agent::start(&self.node, &agent_binary(), &arguments).unwrap());
        self.agent.as_mut().unwrap().wait_ready().unwrap();
        self.wait_managed(None);
    }

    /// Puts other policies in force.
    pub(crate) fn set_policies(&mut self, policies: Vec<Value>) {
        let before = self.applied().unwrap()["applied"]["NetworkPolicy"]["version"].clone();
        self.policies = policies;
        self.write();
        self.wait_managed(Some(before));
    }

    /// Ends the agent as a crash does.
    pub(crate) fn kill_agent(&mut self) {
        self.agent.take().unwrap().kill();
    }

    fn wait_managed(&mut self, before: Option<Value>) {
        self.wait("all pods are managed", |scene| {
            let applied = scene.applied()?;
            if before.as_ref().is_some_and(|before| applied["applied"]["NetworkPolicy"]["version"] == *before) {
                bail!("not read yet: {applied}");
            }
            if applied["endpoints"]["ready"] == scene.pods.len() && applied["pending"] == 0 {
                Ok(())
            } else {
                bail!("{applied}")
            }
        });
    }

    fn applied(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.agent.as_ref().unwrap().get("/v1/applied")?)?)
    }

    fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    fn write(&self) {
        let pod = |(name, last): (&str, u8)| {
            let ips: Vec<Value> = addresses(last).iter().map(|ip| json!({ "ip": ip })).collect();
            let annotations = if name == "attacker" { self.annotations.clone() } else { json!({}) };
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": { "app": name },
                    "annotations": annotations,
                },
                "spec": { "nodeName": self.node.name(), "containers": [{ "name": "c", "image": "i" }] },
                "status": { "phase": "Running", "podIPs": ips },
            })
        };
        let mut items = vec![json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } })];
        items.extend(PODS.map(pod));
        items.extend(self.policies.iter().cloned());
        let folder = self.manifests();
        std::fs::create_dir_all(&folder).unwrap();
        let draft = folder.join("objects.draft");
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        std::fs::write(&draft, list.to_string()).unwrap();
        std::fs::rename(&draft, folder.join("objects.json")).unwrap();
    }

    /// Waits until `condition` holds; fails with its last objection.
    pub(crate) fn wait(&mut self, what: &str, condition: impl Fn(&Self) -> Result<()>) {
        let begin = Instant::now();
        while let Err(error) = condition(self) {
            if let Some(agent) = &mut self.agent {
                agent.check().unwrap();
            }
            assert!(begin.elapsed() < PATIENCE, "waited for: {what}; {error:#}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Packets that the agent has dropped so far in a direction for a reason.
    pub(crate) fn dropped(&self, direction: &str, reason: &str) -> u64 {
        let all = self.agent.as_ref().unwrap().dropped().unwrap();
        all.iter().filter(|one| one.direction == direction && one.reason == reason).map(|one| one.packets).sum()
    }

    /// What the agent says of itself.
    pub(crate) fn metrics(&self) -> Result<String> {
        self.agent.as_ref().unwrap().get("/metrics")
    }

    /// All of its drops, for messages.
    pub(crate) fn all_dropped(&self) -> Vec<Dropped> {
        self.agent.as_ref().unwrap().dropped().unwrap()
    }

    pub(crate) fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.spec().name == name).unwrap()
    }

    /// A pod's end of its link.
    pub(crate) fn wire(&self, pod: &str) -> Wire {
        Wire::open(&self.pod(pod).network().place(), "eth0").unwrap()
    }

    pub(crate) fn mac(&self, pod: &str) -> [u8; 6] {
        wire::mac(&self.pod(pod).network().place(), "eth0").unwrap()
    }

    /// The bridge's hardware address, which is every pod's router.
    pub(crate) fn router(&self) -> [u8; 6] {
        wire::mac(&self.node.network().place(), BRIDGE).unwrap()
    }

    /// Runs a line of shell on the node.
    pub(crate) fn on_node(&self, line: &str) {
        let _out = self.read_on_node(line);
    }

    /// The same; returns what it prints.
    pub(crate) fn read_on_node(&self, line: &str) -> String {
        shell(&self.node.place(), line)
    }
}

/// Runs a line of shell in a place; returns what it prints.
pub(crate) fn shell(place: &Place, line: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", line]);
    place.prepare(&mut command).unwrap();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn everywhere(addresses: &[IpAddr]) -> BTreeSet<Listen> {
    let both = |address: &IpAddr| {
        let address = *address;
        [Protocol::Tcp, Protocol::Udp].map(|protocol| Listen { address, protocol, port: PORT })
    };
    addresses.iter().flat_map(both).collect()
}

fn addresses(last: u8) -> Vec<IpAddr> {
    vec![v4(last).into(), v6(last).into()]
}

/// The IPv4 address of a pod by its last byte.
pub(crate) fn v4(last: u8) -> [u8; 4] {
    [10, 244, 0, last]
}

/// Its IPv6 address.
pub(crate) fn v6(last: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0x10, 2, 0x44, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// A policy of this namespace.
pub(crate) fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": "shop" }, "spec": spec,
    })
}

/// A selector for one of [`PODS`].
pub(crate) fn only(app: &str) -> Value {
    json!({ "matchLabels": { "app": app } })
}
