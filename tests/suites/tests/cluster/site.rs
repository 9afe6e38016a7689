//! One node under the agent and a real API server: what each test of enforcement begins with.
//!
//! The control plane runs in the node's own network namespace, on loopback; the agent reaches it through a relay, so
//! that tests can do to its connections what networks do. The agent's identity is its service account's token, and its
//! rights are those of the manifests in deploy/.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_policy::model::Protocol;
use netpol_suites::agent_binary;
use netpol_testbed::agent::Agent;
use netpol_testbed::control_plane::{Client, ControlPlane, Options, Relay, actors};
use netpol_testbed::node::{Node, NodeOptions};
use netpol_testbed::pod::{Pod, PodSpec};
use netpol_testbed::probe::{self, Outcome, Probe};
use netpol_testbed::servers::{Listen, Served, Servers};
use serde_json::{Value, json};

/// Where every pod listens; its name is `http`.
pub(crate) const PORT: u16 = 8080;

/// The agent's user name.
pub(crate) const AGENT: &str = "system:serviceaccount:netpol-agent:netpol-agent";

/// The namespace of all pods here.
pub(crate) const NAMESPACE: &str = "shop";

/// Longer than anything waits for here: watches end within a minute, and machines are busy.
const PATIENCE: Duration = Duration::from_secs(150);

/// The node, what runs on it, and the control plane.
pub(crate) struct Site {
    // Dropped in this order: the agent before what it talks to, pods and node last.
    agent: Option<Agent>,
    relay: Relay,
    pub(crate) control_plane: ControlPlane,
    kubeconfig: PathBuf,
    servers: Servers,
    pods: BTreeMap<String, (Pod, Served)>,
    node: Node,
}

impl Site {
    /// Starts everything; returns when the agent is ready, in a cluster with one namespace and no pods.
    pub(crate) fn start() -> Self {
        let node = Node::new(NodeOptions { name: "node-1".to_owned(), ..NodeOptions::default() }).unwrap();
        let options = Options { place: node.network().place(), ..Options::default() };
        let control_plane = ControlPlane::start(options).unwrap();
        let admin = control_plane.admin();
        admin.apply_kustomization(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/base"))).unwrap();
        actors::register_node(admin, node.name(), &node.addresses()).unwrap();
        actors::create_namespace(admin, NAMESPACE, &[]).unwrap();
        let relay = control_plane.relay().unwrap();
        let identity = control_plane.service_account("netpol-agent", "netpol-agent", Some(&relay)).unwrap();
        let kubeconfig = identity.kubeconfig().to_owned();
        let servers = Servers::start().unwrap();
        let pods = BTreeMap::new();
        let mut site = Self { agent: None, relay, control_plane, kubeconfig, servers, pods, node };
        site.start_agent();
        site.agent.as_mut().unwrap().wait_ready().unwrap();
        site
    }

    /// The client that may do everything.
    pub(crate) fn admin(&self) -> &Client {
        self.control_plane.admin()
    }

    /// What is between the agent and the API server.
    pub(crate) fn relay(&self) -> &Relay {
        &self.relay
    }

    /// Starts the agent; it need not be ready when this returns.
    pub(crate) fn start_agent(&mut self) {
        let kubeconfig = self.kubeconfig.to_str().unwrap();
        self.agent = Some(Agent::start(&self.node, &agent_binary(), &["--kubeconfig", kubeconfig]).unwrap());
    }

    /// Ends the agent as an upgrade does; what it has programmed stays.
    pub(crate) fn stop_agent(&mut self) {
        self.agent.take().unwrap().stop();
    }

    /// Creates a pod as user and kubelet do: object, sandbox, status; waits until the agent has taken it in.
    pub(crate) fn add_pod(&mut self, name: &str, labels: &Value) {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": labels },
            "spec": { "nodeName": self.node.name(), "containers": [{
                "name": "server", "image": "server",
                "ports": [{ "name": "http", "containerPort": PORT }],
            }]},
        });
        let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        self.admin().create(&pods, &object).unwrap();
        let stored = self.admin().get(&format!("{pods}/{name}")).unwrap();
        let number = self.pods.len() + 2;
        let addresses = [format!("10.244.0.{number}"), format!("fd00:10:244::{number}")];
        let addresses = addresses.map(|address| address.parse().unwrap()).to_vec();
        let spec = PodSpec {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            uid: stored["metadata"]["uid"].as_str().unwrap().to_owned(),
            addresses: addresses.clone(),
            // Whose a link is: of one pod the runtime's record says it, of the next only its status.
            recorded: number.is_multiple_of(2),
        };
        let existing: Vec<&Pod> = self.pods.values().map(|(pod, _)| pod).collect();
        let pod = self.node.add_pods(vec![spec], &existing).unwrap().remove(0);
        let listen = |address: &_| Listen { address: *address, protocol: Protocol::Tcp, port: PORT };
        let places: BTreeSet<Listen> = addresses.iter().map(listen).collect();
        let served = self.servers.listen(pod.network(), &places).unwrap();
        actors::report_running(self.admin(), NAMESPACE, name, &addresses).unwrap();
        self.pods.insert(name.to_owned(), (pod, served));
        let managed = self.pods.len();
        self.wait(&format!("{name} is managed"), |site| {
            let applied = site.applied()?;
            let ready = applied.pointer("/endpoints/ready").and_then(Value::as_u64).context("no endpoints")?;
            if usize::try_from(ready)? == managed { Ok(()) } else { bail!("{applied}") }
        });
    }

    /// A pod that [`Site::add_pod`] has made.
    pub(crate) fn pod(&self, name: &str) -> &Pod {
        &self.pods[name].0
    }

    /// Runs a line of shell on the node.
    pub(crate) fn on_node(&self, line: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        self.node.place().prepare(&mut command).unwrap();
        let output = command.output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Opens a connection between two pods, by IPv4, which stays.
    pub(crate) fn open(&self, from: &str, to: &str) -> Connection {
        let to = SocketAddr::new(self.pod(to).spec().addresses[0], PORT);
        let stream = self.pod(from).network().place().run(|| TcpStream::connect(to).context("connect")).unwrap();
        stream.set_read_timeout(Some(probe::TIMEOUT)).unwrap();
        Connection { stream }
    }

    /// Applies manifests of one kind in the pods' namespace, and waits until they are in force.
    pub(crate) fn apply(&self, object: &Value) {
        self.apply_only(object);
        let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        let stored = self.admin().kubectl(&["get", kind, name, "--namespace", NAMESPACE, "--output=json"]).unwrap();
        let stored: Value = serde_json::from_str(&stored).unwrap();
        let version = stored["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        self.wait_for_version(kind, version);
    }

    /// Applies an object in the pods' namespace, whether the agent hears of it or not.
    pub(crate) fn apply_only(&self, object: &Value) {
        let mut object = object.clone();
        object["metadata"]["namespace"] = json!(NAMESPACE);
        self.admin().apply(&object.to_string()).unwrap();
    }

    /// Waits until everything of a kind up to a version is in force.
    pub(crate) fn wait_for_version(&self, kind: &str, version: u64) {
        self.wait(&format!("{kind} {version} is in force"), |site| {
            let applied = site.applied()?;
            let reached = applied.pointer(&format!("/applied/{kind}/version")).and_then(Value::as_str);
            let reached: u64 = reached.context("nothing of this kind is in force")?.parse()?;
            if reached >= version { Ok(()) } else { bail!("{applied}") }
        });
    }

    /// Fails unless each (from, to) has this outcome now, in both families.
    pub(crate) fn assert(&self, expected: &[(&str, &str, Outcome)]) {
        if let Err(different) = self.compare(expected) {
            panic!("{different:#}\nThe agent's last lines:\n{}", self.tail());
        }
    }

    /// Waits until each (from, to) has this outcome at the same time.
    pub(crate) fn settle(&self, expected: &[(&str, &str, Outcome)]) {
        self.wait("every connection is as it should be", |site| site.compare(expected));
    }

    fn compare(&self, expected: &[(&str, &str, Outcome)]) -> Result<()> {
        let mut probes = Vec::new();
        let mut wanted = Vec::new();
        for (from, to, outcome) in expected {
            let (from, to) = (self.pod(from), self.pod(to));
            for (source, destination) in from.spec().addresses.iter().zip(&to.spec().addresses) {
                let (source, destination) = (*source, *destination);
                probes.push(Probe { from: from.network(), source, destination, protocol: Protocol::Tcp, port: PORT });
                wanted.push((&from.spec().name, &to.spec().name, destination, outcome));
            }
        }
        let mut different = Vec::new();
        for (found, (from, to, address, outcome)) in probe::run(&probes)?.iter().zip(wanted) {
            if found != outcome {
                different.push(format!("{from} to {to} ({address}): {found:?} instead of {outcome:?}"));
            }
        }
        if different.is_empty() { Ok(()) } else { bail!("{}", different.join("; ")) }
    }

    /// The value of one series of the agent's metrics, 0 if it is absent.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let text = self.running().and_then(|agent| agent.get("/metrics")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until `condition` holds; fails with its last objection, or as soon as a daemon has ended.
    pub(crate) fn wait(&self, what: &str, condition: impl Fn(&Self) -> Result<()>) {
        let begin = Instant::now();
        loop {
            match condition(self) {
                Ok(()) => return,
                Err(error) if begin.elapsed() > PATIENCE => {
                    panic!("waited for: {what}; {error:#}\nThe agent's last lines:\n{}", self.tail())
                }
                Err(_not_yet) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn applied(&self) -> Result<Value> {
        let text = self.running()?.get("/v1/applied")?;
        serde_json::from_str(&text).context("/v1/applied is not JSON")
    }

    fn running(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the agent does not run")
    }

    /// What the agent has logged lately.
    fn tail(&self) -> String {
        let log = self.running().and_then(Agent::log).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// A TCP connection that outlives a probe.
pub(crate) struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Sends something and says whether it came back.
    pub(crate) fn exchange(&mut self) -> Outcome {
        let sent = b"still there?";
        let mut answer = [0; 12];
        match self.stream.write_all(sent).and_then(|()| self.stream.read_exact(&mut answer)) {
            Ok(()) if &answer == sent => Outcome::Allow,
            Ok(()) => Outcome::Error("something else came back".to_owned()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Outcome::Deny,
            Err(error) => Outcome::Error(error.to_string()),
        }
    }
}
