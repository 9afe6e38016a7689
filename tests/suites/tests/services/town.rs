//! What each case begins with: a node under the agent, with a real API server and a real kube-proxy, pods on it and on
//! another node, and hosts outside.
//!
//! There is no controller: endpoint slices are made by hand, which also lets a case say exactly what a Service's backends
//! are. The other node is played by the namespace outside: its pods answer on their own addresses, as they would through
//! an overlay or a route.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_policy::model::Protocol;
use netpol_suites::backends::{self, Rewriter, Tally};
use netpol_suites::{agent_binary, cells};
use netpol_testbed::agent::Agent;
use netpol_testbed::control_plane::{Client, ControlPlane, Options, Relay, actors};
use netpol_testbed::namespace::Namespace;
use netpol_testbed::node::{Node, NodeOptions};
use netpol_testbed::pod::{Pod, PodSpec};
use netpol_testbed::servers::{Listen, Served, Servers};
use serde_json::{Value, json};

use super::proxy::{KubeProxy, Mode, Paused};
use super::service::{PORT, alone};

/// The namespace of all pods here.
pub(crate) const NAMESPACE: &str = "shop";

/// Connections of one case.
pub(crate) const MANY: usize = 200;

/// Every server listens on both, so that named ports can differ.
pub(crate) const PORTS: [u16; 2] = [8080, 8081];

/// A host outside of the cluster.
pub(crate) const STRANGER: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];

/// Hosts outside that serve the port of the Services here, which claim these addresses as external ones.
pub(crate) const FOREIGN: [&str; 2] = ["203.0.113.85", "2001:db8:113::85"];

/// Longer than anything waits for here: machines are busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// Node, pods, control plane and proxy.
pub(crate) struct Town {
    // Dropped in this order: what talks before what it talks to, pods and node last.
    agent: Option<Agent>,
    mode: Mode,
    proxy: KubeProxy,
    relay: Relay,
    control_plane: ControlPlane,
    kubeconfig: PathBuf,
    remote: Option<Served>,
    on_node: Option<Served>,
    servers: Servers,
    pods: BTreeMap<String, (Pod, Served)>,
    addresses: BTreeMap<String, Vec<IpAddr>>,
    node: Node,
}

/// `web-1` and `web-2` are on the node, `web-3` and `web-4` on the other one; odd ones are blue, even ones green. `client`
/// is what policies here isolate; `free` is never isolated. `host` is in the node's own network.
pub(crate) const BACKENDS: [&str; 4] = ["web-1", "web-2", "web-3", "web-4"];

impl Town {
    /// Starts everything; returns when the agent knows all pods.
    pub(crate) fn start(mode: Mode) -> Self {
        let node = Node::new(NodeOptions { name: "node-1".to_owned(), ..NodeOptions::default() }).unwrap();
        let options = Options { place: node.network().place(), ..Options::default() };
        let control_plane = ControlPlane::start(options).unwrap();
        let admin = control_plane.admin();
        admin.apply_kustomization(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/base"))).unwrap();
        actors::register_node(admin, node.name(), &node.addresses()).unwrap();
        actors::register_node(admin, "node-2", &["198.18.9.2".parse().unwrap()]).unwrap();
        actors::create_namespace(admin, NAMESPACE, &[]).unwrap();
        // Bare INITs are forgotten after 3 s (net/netfilter/nf_conntrack_proto_sctp.c), before a busy machine has asked
        // for their backends. Without connection tracking of SCTP there is no such switch.
        let _unless_absent =
            node.network().set_sysctls(&[("net/netfilter/nf_conntrack_sctp_timeout_cookie_wait", "120")]);
        let proxy = control_plane.user("system:kube-proxy", None).unwrap();
        let proxy = KubeProxy::start(&node, &proxy, mode).unwrap();
        let relay = control_plane.relay().unwrap();
        let identity = control_plane.service_account("netpol-agent", "netpol-agent", Some(&relay)).unwrap();
        let kubeconfig = identity.kubeconfig().to_owned();
        let servers = Servers::start().unwrap();
        let mut town = Self {
            agent: None,
            mode,
            proxy,
            relay,
            control_plane,
            kubeconfig,
            remote: None,
            on_node: None,
            servers,
            pods: BTreeMap::new(),
            addresses: BTreeMap::new(),
            node,
        };
        town.start_agent();
        town.agent.as_mut().unwrap().wait_ready().unwrap();
        town.populate();
        town
    }

    fn populate(&mut self) {
        let app = |app: &str, color: &str| json!({ "app": app, "color": color });
        self.add_pod("client", 2, &app("client", "red"), 0);
        self.add_pod("free", 3, &app("free", "red"), 0);
        self.add_pod("web-1", 4, &app("web", "blue"), 0);
        self.add_pod("web-2", 5, &app("web", "green"), 1);
        let mut listen = BTreeSet::new();
        for (number, color, named) in [(3, "blue", 1), (4, "green", 0)] {
            let addresses = [format!("10.244.1.{number}"), format!("fd00:10:244:1::{number}")];
            let addresses = addresses.map(|address| address.parse().unwrap()).to_vec();
            let name = format!("web-{number}");
            self.create_pod(&name, &app("web", color), named, "node-2", &addresses, false);
            listen.extend(places(&addresses));
            self.addresses.insert(name, addresses);
        }
        let strangers = STRANGER.map(|address| address.parse().unwrap());
        listen.extend(places(&strangers));
        let foreign = FOREIGN.map(|address| address.parse().unwrap());
        listen.extend(foreign.map(|address| Listen { address, protocol: Protocol::Tcp, port: PORT }));
        let hosts: BTreeSet<IpAddr> = listen.iter().map(|listen| listen.address).collect();
        self.node.outside().add_hosts(&Vec::from_iter(hosts)).unwrap();
        self.remote = Some(self.servers.listen(self.node.outside().network(), &listen).unwrap());
        let own = self.node.addresses();
        self.create_pod("host", &app("web", "blue"), 0, "node-1", &own, true);
        self.on_node = Some(self.servers.listen(self.node.network(), &places(&own)).unwrap());
        self.addresses.insert("host".to_owned(), own);
    }

    /// A pod's object; `named` says which of [`PORTS`] is called `http`.
    fn create_pod(&self, name: &str, labels: &Value, named: usize, node: &str, addresses: &[IpAddr], host: bool) {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": labels },
            "spec": { "nodeName": node, "hostNetwork": host, "containers": [{
                "name": "server", "image": "server",
                "ports": [{ "name": "http", "containerPort": PORTS[named] }],
            }]},
        });
        self.admin().create(&format!("/api/v1/namespaces/{NAMESPACE}/pods"), &object).unwrap();
        actors::report_running(self.admin(), NAMESPACE, name, addresses).unwrap();
    }

    fn add_pod(&mut self, name: &str, number: usize, labels: &Value, named: usize) {
        let addresses = [format!("10.244.0.{number}"), format!("fd00:10:244::{number}")];
        let addresses = addresses.map(|address| address.parse().unwrap()).to_vec();
        self.create_pod(name, labels, named, "node-1", &addresses, false);
        let stored = self.admin().get(&format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}")).unwrap();
        let spec = PodSpec {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            uid: stored["metadata"]["uid"].as_str().unwrap().to_owned(),
            addresses: addresses.clone(),
            recorded: true,
        };
        let existing: Vec<&Pod> = self.pods.values().map(|(pod, _)| pod).collect();
        let pod = self.node.add_pods(vec![spec], &existing).unwrap().remove(0);
        let served = self.servers.listen(pod.network(), &places(&addresses)).unwrap();
        self.pods.insert(name.to_owned(), (pod, served));
        self.addresses.insert(name.to_owned(), addresses);
        let managed = self.pods.len();
        self.wait(&format!("{name} is managed"), |town| {
            let applied = town.applied()?;
            let ready = applied.pointer("/endpoints/ready").and_then(Value::as_u64).context("no endpoints")?;
            if usize::try_from(ready)? == managed { Ok(()) } else { bail!("{applied}") }
        });
    }

    /// Starts the agent; it need not be ready when this returns.
    fn start_agent(&mut self) {
        let kubeconfig = self.kubeconfig.to_str().unwrap();
        self.agent = Some(Agent::start(&self.node, &agent_binary(), &["--kubeconfig", kubeconfig]).unwrap());
    }

    /// The client that may do everything.
    pub(crate) fn admin(&self) -> &Client {
        self.control_plane.admin()
    }

    /// What is between the agent and the API server; kube-proxy does not go through it.
    pub(crate) fn relay(&self) -> &Relay {
        &self.relay
    }

    /// The node.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// Where a pod's sockets are.
    pub(crate) fn network(&self, pod: &str) -> &Namespace {
        self.pods[pod].0.network()
    }

    /// The address of a pod in a family: 0 is IPv4, 1 is IPv6.
    pub(crate) fn address(&self, pod: &str, family: usize) -> IpAddr {
        self.addresses[pod][family]
    }

    /// Applies an object in the pods' namespace, and waits until the agent has put it in force.
    pub(crate) fn apply(&self, object: &Value) {
        let version = self.apply_unseen(object);
        let kind = object["kind"].as_str().unwrap();
        self.wait(&format!("{kind} {version} is in force"), |town| {
            let applied = town.applied()?;
            let reached = applied.pointer(&format!("/applied/{kind}/version")).and_then(Value::as_str);
            let reached: u64 = reached.with_context(|| format!("no {kind} in {applied}"))?.parse()?;
            if reached >= version { Ok(()) } else { bail!("{applied}") }
        });
    }

    /// Applies an object in the pods' namespace, whether the agent hears of it or not; returns its version.
    pub(crate) fn apply_unseen(&self, object: &Value) -> u64 {
        let mut object = object.clone();
        object["metadata"]["namespace"] = json!(NAMESPACE);
        self.admin().apply(&object.to_string()).unwrap();
        let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        let stored = self.admin().kubectl(&["get", kind, name, "--namespace", NAMESPACE, "--output=json"]).unwrap();
        let stored: Value = serde_json::from_str(&stored).unwrap();
        stored["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    }

    /// Removes all objects of some kinds, and waits until the agent has seen that they are gone.
    pub(crate) fn remove(&self, kinds: &str) {
        self.admin().kubectl(&["delete", kinds, "--all", "--namespace", NAMESPACE]).unwrap();
        // Nobody tells which version a deletion had. Events of a kind come in order: what is made now is seen after it.
        for kind in kinds.split(',') {
            self.apply(&match kind {
                "services" => json!({
                    "apiVersion": "v1", "kind": "Service", "metadata": { "name": "later" },
                    "spec": { "clusterIP": "None", "ports": [{ "port": PORT }] },
                }),
                "endpointslices" => json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": { "name": "later" },
                    "addressType": "IPv4", "endpoints": [], "ports": [],
                }),
                other => panic!("{other} are not removed here"),
            });
        }
    }

    /// Stops the proxy where it is, until the value is dropped: what it has told the kernel stays in force.
    pub(crate) fn pause_proxy(&self) -> Paused {
        self.proxy.pause().unwrap()
    }

    /// Makes the router outside send these addresses to the node, as one does that a load balancer has told so.
    pub(crate) fn route_to_node(&self, addresses: &[IpAddr]) {
        for address in addresses {
            let node = self.node.addresses()[usize::from(address.is_ipv6())];
            let line = format!("route replace {} via {node} dev uplink onlink", alone(address));
            let mut command = Command::new("ip");
            command.args(line.split(' '));
            self.node.outside().network().place().prepare(&mut command).unwrap();
            assert!(command.status().unwrap().success(), "ip {line}");
        }
    }

    /// Removes all policies, Services and endpoint slices, and what is tracked of connections.
    pub(crate) fn clear(&self) {
        let kinds = "networkpolicies,services,endpointslices";
        self.admin().kubectl(&["delete", kinds, "--all", "--namespace", NAMESPACE]).unwrap();
        backends::forget(&self.node.place()).unwrap();
    }

    /// Tries connections from a pod to an address, and says which backend became of each.
    pub(crate) fn tally(&self, from: &str, to: SocketAddr, protocol: Protocol, count: usize) -> Result<Tally> {
        let source = self.address(from, usize::from(to.is_ipv6()));
        self.tally_from(self.network(from), source, to, protocol, count)
    }

    /// The same, from any namespace that is behind the node or that reaches it.
    pub(crate) fn tally_from(
        &self,
        from: &Namespace,
        source: IpAddr,
        to: SocketAddr,
        protocol: Protocol,
        count: usize,
    ) -> Result<Tally> {
        backends::tally((&self.node.place(), Rewriter::Nat), from, source, to, protocol, count)
    }

    /// Tells of connections to an address, and how many of them were not judged as they should be.
    pub(crate) fn report(&self, to: IpAddr, tried: usize, wrong: usize) {
        cells::report("services", cells::family_of(&to), self.mode.name(), tried, wrong).unwrap();
    }

    /// Waits until connections of a pod that nothing isolates reach all of a Service's backends, and no others.
    pub(crate) fn wait_for_proxy(&self, to: SocketAddr, protocol: Protocol, backends: &BTreeSet<SocketAddr>) {
        self.wait(&format!("kube-proxy sends {to} to {backends:?}"), |town| {
            let tally = town.tally("free", to, protocol, 24 * backends.len())?;
            let reached: BTreeSet<SocketAddr> = tally.answered.keys().copied().collect();
            if reached == *backends && tally.silent() == 0 { Ok(()) } else { bail!("{tally:?}") }
        });
    }

    /// Waits until `condition` holds; fails with its last objection.
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

    /// Fails if a daemon has ended.
    pub(crate) fn check(&mut self) {
        self.proxy.check().unwrap();
        self.agent.as_mut().unwrap().check().unwrap();
    }

    fn applied(&self) -> Result<Value> {
        let text = self.agent.as_ref().context("the agent does not run")?.get("/v1/applied")?;
        serde_json::from_str(&text).context("/v1/applied is not JSON")
    }

    /// What the agent has dropped, and what it has logged lately.
    pub(crate) fn tail(&self) -> String {
        let metrics = self.agent.as_ref().and_then(|agent| agent.get("/metrics").ok()).unwrap_or_default();
        let dropped = metrics.lines().filter(|line| line.starts_with("netpol_dropped_packets_total{"));
        let dropped = dropped.filter(|line| !line.ends_with(" 0")).collect::<Vec<_>>().join("\n");
        let log = self.agent.as_ref().map(Agent::log).transpose().ok().flatten().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("{dropped}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    }
}

/// All protocols on all ports of some addresses.
fn places(addresses: &[IpAddr]) -> BTreeSet<Listen> {
    let mut places = BTreeSet::new();
    for address in addresses {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            places.extend(PORTS.map(|port| Listen { address: *address, protocol, port }));
        }
    }
    places
}
