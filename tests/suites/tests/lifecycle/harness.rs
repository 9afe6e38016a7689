//! A node, pods from the testbed, and the agent on a folder of manifests: what every test here starts from.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::maps::{HashMap, Map, MapData};
use netpol_common::abi::{InterfaceRow, names};
use netpol_policy::model::Protocol;
use netpol_suites::agent_binary;
use netpol_testbed::node::{Node, NodeOptions};
use netpol_testbed::pod::{Pod, PodSpec};
use netpol_testbed::probe::{self, Outcome, Probe};
use netpol_testbed::process::Process;
use netpol_testbed::servers::{Listen, Served, Servers};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::foreign;

/// The port that every pod listens on, TCP and UDP.
pub(crate) const PORT: u16 = 8080;
const METRICS: &str = "127.0.0.1:9640";
/// How long something may take that the agent does by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything, in the order in which it is dropped.
pub(crate) struct Site {
    agent: Option<Process>,
    served: Vec<(String, Served)>,
    servers: Servers,
    pods: Vec<Pod>,
    pub(crate) node: Node,
    objects: Vec<Value>,
    arguments: Vec<String>,
    folder: TempDir,
}

impl Site {
    /// A node without pods; the agent does not run yet.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        Self {
            agent: None,
            served: Vec::new(),
            servers: Servers::start().unwrap(),
            pods: Vec::new(),
            node: Node::new(NodeOptions::default()).unwrap(),
            objects: vec![json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } })],
            arguments: arguments.iter().map(ToString::to_string).collect(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    fn run_agent(&mut self, mut command: Command) {
        command.args(["--node-name", self.node.name(), "--metrics-address", METRICS]);
        let log = self.folder.path().join("agent.log");
        self.agent = Some(Process::start("netpol-agent", command, &self.node.place(), &log).unwrap());
    }

    /// Starts the agent with an API server that does not answer; it attaches, and waits for it.
    pub(crate) fn start_agent_without_objects(&mut self) {
        let kubeconfig = self.folder.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": "http://127.0.0.1:1" } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
            "users": [{ "name": "u", "user": {} }],
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        let mut command = Command::new(agent_binary());
        command.arg("run").arg("--kubeconfig").arg(kubeconfig).arg("--cni-cache").arg(self.node.cni_cache());
        command.args(&self.arguments);
        self.run_agent(command);
    }

    /// Starts the agent and waits until it has programmed everything once.
    pub(crate) fn start_agent(&mut self) {
        self.write_manifests();
        let command = self.agent_command();
        self.run_agent(command);
        self.wait("the agent is ready", |site| {
            let (status, body) = site.request("/readyz")?;
            if status == 200 { Ok(()) } else { bail!("/readyz: {status} {body}") }
        });
    }

    fn agent_command(&self) -> Command {
        let mut command = Command::new(agent_binary());
        command.arg("run").arg("--manifests").arg(self.manifests());
        command.arg("--cni-cache").arg(self.node.cni_cache());
        command.args(&self.arguments);
        command
    }

    /// Starts an agent that must refuse to run; returns what it says.
    pub(crate) fn try_agent(&self, arguments: &[&str]) -> String {
        self.write_manifests();
        let mut command = self.agent_command();
        for (flag, value) in [("--node-name", self.node.name()), ("--metrics-address", METRICS)] {
            if !arguments.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.args(arguments);
        self.node.place().prepare(&mut command).unwrap();
        let output = command.output().unwrap();
        assert!(!output.status.success(), "it runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Ends the agent as an upgrade does.
    pub(crate) fn stop_agent(&mut self) {
        self.agent.take().unwrap().stop();
    }

    /// Ends the agent as a crash does.
    pub(crate) fn kill_agent(&mut self) {
        self.agent.take().unwrap().kill();
    }

    /// Runs a verb of the agent's binary on the node to its end.
    pub(crate) fn agent_verb(&self, verb: &str) {
        let mut command = Command::new(agent_binary());
        command.arg(verb);
        self.node.place().prepare(&mut command).unwrap();
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a program on the node and returns what it prints.
    pub(crate) fn on_node(&self, line: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        self.node.place().prepare(&mut command).unwrap();
        let output = command.output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The sandbox of a pod, with its server, but no object.
    pub(crate) fn add_sandbox(&mut self, name: &str, last: u8, recorded: bool) {
        let spec = PodSpec {
            namespace: "shop".into(),
            name: name.into(),
            uid: format!("uid-{name}-{last}"),
            addresses: addresses(last),
            recorded,
        };
        let existing: Vec<&Pod> = self.pods.iter().collect();
        let pod = self.node.add_pods(vec![spec], &existing).unwrap().remove(0);
        let mut places = BTreeSet::new();
        for address in addresses(last) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let _new = places.insert(Listen { address, protocol, port: PORT });
            }
        }
        self.served.push((name.to_owned(), self.servers.listen(pod.network(), &places).unwrap()));
        self.pods.push(pod);
    }

    /// The object of a pod, as the kubelet reports it.
    pub(crate) fn add_object(&mut self, name: &str, last: u8) {
        let ips: Vec<Value> = addresses(last).iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
        self.objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "shop", "uid": format!("uid-{name}-{last}"), "labels": { "app": name },
            },
            "spec": { "nodeName": self.node.name(), "containers": [{ "name": "c", "image": "i" }] },
            "status": { "phase": "Running", "podIPs": ips },
        }));
    }

    /// A pod with sandbox and object.
    pub(crate) fn add_pod(&mut self, name: &str, last: u8) {
        self.add_sandbox(name, last, true);
        self.add_object(name, last);
    }

    /// Removes a pod's sandbox and object.
    pub(crate) fn remove_pod(&mut self, name: &str) {
        self.objects.retain(|object| object["metadata"]["name"] != name);
        self.served.retain(|(of, _)| of != name);
        let position = self.pods.iter().position(|pod| pod.spec().name == name).unwrap();
        let pod = self.pods.remove(position);
        self.node.remove_pod(pod).unwrap();
    }

    /// Adds or replaces a policy.
    pub(crate) fn set_policy(&mut self, name: &str, spec: Value) {
        self.delete_policy(name);
        self.objects.push(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": name, "namespace": "shop" }, "spec": spec,
        }));
    }

    /// Adds an object, or replaces the one of its kind and name.
    pub(crate) fn put_object(&mut self, object: Value) {
        let is_same =
            |other: &Value| other["kind"] == object["kind"] && other["metadata"]["name"] == object["metadata"]["name"];
        self.objects.retain(|other| !is_same(other));
        self.objects.push(object);
    }

    /// Waits until what bears no stamp is dropped.
    pub(crate) fn wait_armed(&mut self) {
        self.wait("the node is armed", |site| match site.metric("netpol_armed ") {
            1.0 => Ok(()),
            armed => bail!("netpol_armed {armed}"),
        });
    }

    pub(crate) fn delete_policy(&mut self, name: &str) {
        self.objects.retain(|object| object["metadata"]["name"] != name);
    }

    fn write_manifests(&self) {
        let folder = self.manifests();
        std::fs::create_dir_all(&folder).unwrap();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": self.objects });
        let draft = folder.join("objects.draft");
        std::fs::write(&draft, list.to_string()).unwrap();
        std::fs::rename(&draft, folder.join("objects.json")).unwrap();
    }

    /// Writes the objects as they are now, and waits until the agent has them in force and knows every sandbox.
    pub(crate) fn settle(&mut self) {
        let before = self.applied().unwrap()["applied"]["NetworkPolicy"]["version"].clone();
        let pods = self.pods.len();
        let written = std::fs::read(self.manifests().join("objects.json")).unwrap_or_default();
        self.write_manifests();
        let changed = std::fs::read(self.manifests().join("objects.json")).unwrap() != written;
        self.wait("what was written is in force", |site| {
            let applied = site.applied()?;
            if changed && applied["applied"]["NetworkPolicy"]["version"] == before {
                bail!("not read yet: {applied}");
            }
            if applied["endpoints"]["ready"] == pods && applied["pending"] == 0 { Ok(()) } else { bail!("{applied}") }
        });
    }

    pub(crate) fn applied(&self) -> Result<Value> {
        let (_, body) = self.request("/v1/applied")?;
        serde_json::from_str(&body).context("/v1/applied is not JSON")
    }

    /// What programs know of devices.
    fn interfaces(&self) -> Vec<(u32, InterfaceRow)> {
        let path = format!("{}/{}", crate::pins("maps"), names::INTERFACES);
        self.node
            .place()
            .run(|| {
                let map = Map::from_map_data(MapData::from_pin(path)?)?;
                let rows: HashMap<MapData, u32, InterfaceRow> = map.try_into()?;
                Ok(rows.iter().collect::<Result<_, _>>()?)
            })
            .unwrap()
    }

    /// Number of devices that programs know.
    pub(crate) fn rows(&self) -> usize {
        self.interfaces().len()
    }

    /// Endpoint numbers of devices, as programs know them.
    pub(crate) fn endpoints_of(&self, interfaces: &[&str]) -> Vec<Option<u32>> {
        let rows = self.interfaces();
        let index = |name: &&str| self.node.place().run(|| foreign::index(name)).unwrap();
        let row = |index: u32| rows.iter().find(|(ifindex, _)| *ifindex == index).map(|(_, row)| row.endpoint);
        interfaces.iter().map(index).map(row).collect()
    }

    /// A metric's value, by the start of its line; 0 if there is no such series.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let (_, body) = self.request("/metrics").unwrap();
        let line = body.lines().find(|line| line.starts_with(series));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
    }

    /// Whether there is such a series.
    pub(crate) fn has_metric(&self, series: &str) -> bool {
        let (_, body) = self.request("/metrics").unwrap();
        body.lines().any(|line| line.starts_with(series))
    }

    /// Everything that the running agent has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("agent.log")).unwrap()
    }

    /// Tries until it works, and fails with the last reason.
    pub(crate) fn wait(&mut self, what: &str, mut attempt: impl FnMut(&Self) -> Result<()>) {
        let begin = Instant::now();
        loop {
            let Err(error) = attempt(self) else { return };
            if let Some(agent) = &mut self.agent {
                agent.check().unwrap();
            }
            let log = self.agent.as_ref().map(Process::tail).unwrap_or_default();
            assert!(begin.elapsed() < PATIENCE, "{what}: {error:#}\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn request(&self, path: &str) -> Result<(u16, String)> {
        let address: SocketAddr = METRICS.parse()?;
        let answer = self.node.place().run(move || {
            let mut stream = TcpStream::connect(address).context("cannot connect to the agent")?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").context("write")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).context("read")?;
            Ok(answer)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
        Ok((head.split(' ').nth(1).context("no status")?.parse()?, body.to_owned()))
    }

    pub(crate) fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.spec().name == name).unwrap()
    }

    /// Connects from one pod to another by both families and protocols, and asserts one answer for all.
    pub(crate) fn expect(&self, from: &str, to: &str, expected: &Outcome) {
        let (from, to) = (self.pod(from), self.pod(to));
        let mut probes = Vec::new();
        for (source, destination) in from.spec().addresses.iter().zip(&to.spec().addresses) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                probes.push(Probe {
                    from: from.network(),
                    source: *source,
                    destination: *destination,
                    protocol,
                    port: PORT,
                });
            }
        }
        for (probe, outcome) in probes.iter().zip(probe::run(&probes).unwrap()) {
            assert_eq!(outcome, *expected, "{} {:?}", probe.destination, probe.protocol);
        }
    }
}

/// Whether what is sent to a server comes back.
pub(crate) fn echoes(mut stream: &TcpStream) -> bool {
    let mut answer = [0; 5];
    stream.set_read_timeout(Some(Duration::from_millis(800))).unwrap();
    stream.write_all(b"hello").and_then(|()| stream.read_exact(&mut answer)).is_ok()
}

/// The addresses of the pod with this number.
pub(crate) fn addresses(last: u8) -> Vec<IpAddr> {
    vec![IpAddr::from([10, 244, 0, last]), IpAddr::from([0xfd00, 0x10, 0x244, 0, 0, 0, 0, u16::from(last)])]
}
