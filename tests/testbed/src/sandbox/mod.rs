//! A cluster of one node out of manifests, with the agent on it, and every connection in it probed.
//!
//! [`Sandbox::arrange`] makes pods and outside hosts as the manifests say; [`Sandbox::publish`] gives the agent a rendered
//! copy of them and waits until it is in force; [`Sandbox::matrix`] tells what the policies say of each connection and
//! what real packets say. Called again with other manifests, each changes only what differs.

pub mod cells;
pub mod contents;
pub mod judge;
pub mod stand_ins;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use netpol_policy::decode::Rejected;
use netpol_policy::model::{Cluster, ObjectName, Pod as PodObject};
use netpol_policy::workloads::{self, Assignments, ExpandOptions, Expanded};
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::cells::{Cell, End, Port};
use self::contents::Contents;
pub use self::judge::Answered;
use self::stand_ins::StandIns;
use crate::agent::Agent;
use crate::namespace::Namespace;
use crate::node::{Node, NodeOptions};
use crate::pod::{Pod, PodSpec};
use crate::probe::{self, Outcome, Probe};
use crate::servers::{Listen, Served, Servers};

/// Where the agent finds what was rendered, on the node.
const MANIFESTS: &str = "/run/netpol-testbed/manifests";

/// Address families of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both, IPv4 first.
    Dual,
}

impl Families {
    /// As the agent's flag has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Dual => "dual",
        }
    }

    /// Whether pods have addresses of this one's family.
    #[must_use]
    pub const fn include(self, address: &IpAddr) -> bool {
        match (self, address) {
            (Self::Dual, _) | (Self::Ipv4, IpAddr::V4(_)) | (Self::Ipv6, IpAddr::V6(_)) => true,
            (Self::Ipv4, IpAddr::V6(_)) | (Self::Ipv6, IpAddr::V4(_)) => false,
        }
    }
}

/// What a sandbox is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Families of pods, node and outside hosts.
    pub families: Families,
    /// The agent's binary; without, nothing is enforced.
    pub agent: Option<PathBuf>,
    /// Flags for the agent beyond those that the sandbox needs.
    pub agent_arguments: Vec<String>,
    /// Whether the container runtime records CNI results; see [`PodSpec::recorded`].
    pub recorded: bool,
}

/// Which policies are given to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policies {
    /// None: everything has to connect.
    Withheld,
    /// All.
    InForce,
}

/// A cluster of one node; dropping it leaves no trace.
#[derive(Debug)]
pub struct Sandbox {
    options: Options,
    // Dropped in this order: the agent first, so that it does not see its pods go one by one.
    agent: Option<Agent>,
    host_servers: Option<(BTreeSet<Listen>, Served)>,
    node_servers: Option<(BTreeSet<Listen>, Served)>,
    pods: BTreeMap<ObjectName, Running>,
    leaving: Vec<Running>,
    servers: Servers,
    node: Node,
    objects: Vec<Value>,
    contents: Contents,
    given: Assignments,
    hosts: StandIns,
    host_ports: BTreeSet<Port>,
}

#[derive(Debug)]
struct Running {
    // The servers' sockets keep the namespace alive: they go first.
    served: (BTreeSet<Listen>, Served),
    pod: Pod,
}

impl Sandbox {
    /// Makes the node, and starts the agent on it with nothing to enforce.
    ///
    /// # Errors
    /// The node cannot be made, or the agent does not get ready.
    pub fn start(options: Options) -> Result<Self> {
        let mut of_node = NodeOptions::default();
        let is_wanted = |net: &IpNet| options.families.include(&net.addr());
        of_node.uplink.retain(is_wanted);
        of_node.pod_cidrs.retain(is_wanted);
        let node = Node::new(of_node).context("cannot make a node")?;
        let mut sandbox = Self {
            agent: None,
            host_servers: None,
            node_servers: None,
            pods: BTreeMap::new(),
            leaving: Vec::new(),
            servers: Servers::start()?,
            node,
            objects: Vec::new(),
            contents: Contents::default(),
            given: Assignments::new(),
            hosts: StandIns::default(),
            host_ports: BTreeSet::new(),
            options,
        };
        sandbox.arrange(&[])?;
        sandbox.write(Policies::InForce)?;
        if let Some(binary) = &sandbox.options.agent {
            let mut arguments = vec!["--manifests", MANIFESTS, "--families", sandbox.options.families.name()];
            arguments.extend(sandbox.options.agent_arguments.iter().map(String::as_str));
            // Before its pods, as on a node that is in use: a pod that runs before the agent's first start is given time.
            sandbox.agent.insert(Agent::start(&sandbox.node, binary, &arguments)?).wait_ready()?;
        }
        Ok(sandbox)
    }

    /// Makes pods and outside hosts what the manifests say, and returns what in them was refused, with the index of the
    /// manifest where that is known. The agent learns of it by [`Sandbox::publish`].
    ///
    /// # Errors
    /// The kernel refuses a link, an address or a socket.
    pub fn arrange(&mut self, manifests: &[Value]) -> Result<Vec<(Option<usize>, Rejected)>> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let options = ExpandOptions {
            node: self.node.name().to_owned(),
            node_addresses: self.node.addresses(),
            pod_cidrs: self.node.options().pod_cidrs.clone(),
            started: i64::try_from(started).unwrap_or_default(),
            previous: std::mem::take(&mut self.given),
        };
        let Expanded { objects, rejected } = workloads::expand(manifests, &options);
        self.given = workloads::assignments(&objects);
        let mut refused: Vec<(Option<usize>, Rejected)> =
            rejected.into_iter().map(|(index, rejected)| (Some(index), rejected)).collect();
        refused.extend(self.contents.read(&objects).into_iter().map(|rejected| (None, rejected)));
        self.objects = objects;
        self.arrange_hosts()?;
        self.arrange_pods()?;
        Ok(refused)
    }

    /// Gives the agent what was arranged, and returns when it is in force. Pods that are no more go afterwards.
    ///
    /// # Errors
    /// The agent has ended, or does not get there.
    pub fn publish(&mut self, policies: Policies) -> Result<()> {
        let version = self.write(policies)?;
        if let Some(agent) = &mut self.agent {
            agent.wait_applied(&version, self.pods.len())?;
        }
        for Running { served, pod } in self.leaving.drain(..) {
            drop(served);
            self.node.remove_pod(pod)?;
        }
        Ok(())
    }

    /// Connects every cell while policies are withheld, so that a server that never listened cannot pass for a denial;
    /// returns the number of cells.
    ///
    /// # Errors
    /// Something does not connect; the message says what.
    pub fn baseline(&self) -> Result<usize> {
        judge::baseline(&self.cells(), |cells| self.probe(cells))
    }

    /// Every cell with both its answers. A cell that should connect and does not is tried once more.
    ///
    /// # Errors
    /// Probing itself fails, or the user interrupts.
    pub fn matrix(&self) -> Result<Vec<Answered>> {
        judge::matrix(self.cells(), self.cluster(), |cells| self.probe(cells))
    }

    /// Every cell there is.
    #[must_use]
    pub fn cells(&self) -> Vec<Cell> {
        let pods: Vec<PodObject> = self.participants().collect();
        cells::cells(&pods, self.hosts.hosts.keys().copied(), &self.host_ports)
    }

    /// What the manifests mean.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        self.contents.cluster()
    }

    /// The hosts outside.
    #[must_use]
    pub fn hosts(&self) -> &StandIns {
        &self.hosts
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The agent, if there is one.
    pub fn agent(&mut self) -> Option<&mut Agent> {
        self.agent.as_mut()
    }

    /// Tries connections from ends that there are, and returns their outcomes in the same order.
    ///
    /// # Errors
    /// A source does not run, or probing itself fails.
    pub fn probe(&self, cells: &[&Cell]) -> Result<Vec<Outcome>> {
        let probe = |cell: &&Cell| -> Result<Probe<'_>> {
            let Cell { ref from, to: _, source, destination, port: Port { protocol, number } } = **cell;
            Ok(Probe { from: self.namespace(from)?, source, destination, protocol, port: number })
        };
        probe::run(&cells.iter().map(probe).collect::<Result<Vec<_>>>()?)
    }

    /// The network that an end of connections is in.
    ///
    /// # Errors
    /// No such pod runs.
    pub fn namespace(&self, end: &End) -> Result<&Namespace> {
        match end {
            End::Host(_) => Ok(self.node.outside().network()),
            End::Pod(name) => match self.pods.get(name) {
                Some(running) => Ok(running.pod.network()),
                None if self.cluster().pods.get(name).is_some_and(|pod| pod.host_network) => Ok(self.node.network()),
                None => bail!("pod {name} does not run"),
            },
        }
    }

    /// Pods that have a place to be probed from, with their addresses of the families that there are.
    fn participants(&self) -> impl Iterator<Item = PodObject> {
        let pods = self.cluster().pods.values().filter(|pod| pod.takes_part() || pod.host_network);
        pods.map(|pod| {
            let mut pod = pod.clone();
            pod.addresses.retain(|address| self.options.families.include(address));
            pod
        })
        .filter(|pod| !pod.addresses.is_empty())
    }

    fn arrange_hosts(&mut self) -> Result<()> {
        let options = self.node.options();
        let mut reserved: Vec<IpNet> = options.pod_cidrs.iter().chain(&options.uplink).map(IpNet::trunc).collect();
        reserved.extend(self.cluster().pods.values().flat_map(|pod| &pod.addresses).copied().map(IpNet::from));
        let mut hosts = stand_ins::choose(self.cluster().policies.values(), &reserved);
        hosts.hosts.retain(|address, _| self.options.families.include(address));
        let addresses: Vec<IpAddr> = hosts.hosts.keys().copied().collect();
        let ports = cells::named_ports(self.cluster());
        self.node.outside().add_hosts(&addresses)?;
        let places = listens(&addresses, &ports);
        serve(&self.servers, self.node.outside().network(), places, &mut self.host_servers)?;
        (self.hosts, self.host_ports) = (hosts, ports);
        Ok(())
    }

    fn arrange_pods(&mut self) -> Result<()> {
        let (own, of_node): (Vec<PodObject>, Vec<PodObject>) = self.participants().partition(|pod| !pod.host_network);
        // Pods in the node's network share its addresses.
        let places = of_node.iter().flat_map(|pod| listens(&pod.addresses, &cells::declared_ports(pod))).collect();
        serve(&self.servers, self.node.network(), places, &mut self.node_servers)?;

        let is_same = |pod: &PodObject, running: &Running| {
            let PodSpec { uid, addresses, .. } = running.pod.spec();
            (uid, addresses) == (&pod.uid, &pod.addresses)
        };
        let wanted: BTreeMap<&ObjectName, &PodObject> = own.iter().map(|pod| (&pod.name, pod)).collect();
        let over = self.pods.extract_if(.., |name, running| !wanted.get(name).is_some_and(|pod| is_same(pod, running)));
        for (_, running) in over.collect::<Vec<_>>() {
            // One whose address is needed again has to go at once.
            if own.iter().any(|pod| pod.addresses.iter().any(|address| running.pod.spec().addresses.contains(address)))
            {
                drop(running.served);
                self.node.remove_pod(running.pod)?;
            } else {
                self.leaving.push(running);
            }
        }
        let new: Vec<&PodObject> = own.iter().filter(|pod| !self.pods.contains_key(&pod.name)).collect();
        let specs = new.iter().map(|pod| PodSpec {
            namespace: pod.name.namespace.clone(),
            name: pod.name.name.clone(),
            uid: pod.uid.clone(),
            addresses: pod.addresses.clone(),
            recorded: self.options.recorded,
        });
        let existing: Vec<&Pod> = self.pods.values().map(|running| &running.pod).collect();
        let made = self.node.add_pods(specs.collect(), &existing)?;
        for (object, pod) in new.into_iter().zip(made) {
            let places = listens(&object.addresses, &cells::declared_ports(object));
            let served = self.servers.listen(pod.network(), &places)?;
            self.pods.insert(object.name.clone(), Running { served: (places, served), pod });
        }
        for pod in &own {
            let places = listens(&pod.addresses, &cells::declared_ports(pod));
            if let Some(running) = self.pods.get_mut(&pod.name)
                && running.served.0 != places
            {
                // Closed before the same port is listened on again.
                running.served = (BTreeSet::new(), self.servers.listen(running.pod.network(), &BTreeSet::new())?);
                running.served = (places.clone(), self.servers.listen(running.pod.network(), &places)?);
            }
        }
        Ok(())
    }

    /// Writes the rendered copy, and returns the agent's version of it.
    fn write(&self, policies: Policies) -> Result<String> {
        let is_policy = |object: &&Value| object["kind"] == "NetworkPolicy";
        let text = |objects: Vec<&Value>| objects.into_iter().map(|object| format!("{object}\n")).collect::<String>();
        let (of_policies, others): (Vec<&Value>, Vec<&Value>) = self.objects.iter().partition(is_policy);
        let of_policies = match policies {
            Policies::Withheld => Vec::new(),
            Policies::InForce => of_policies,
        };
        let files = [("objects.json", text(others)), ("policies.json", text(of_policies))];
        let mut hash = Sha256::new();
        for (name, text) in &files {
            for part in [name.as_bytes(), b"\0", text.as_bytes(), b"\0"] {
                hash.update(part);
            }
        }
        self.node.write_files(files.map(|(name, text)| (Path::new(MANIFESTS).join(name), text)))?;
        Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Where to listen so that every port is served on every address.
#[must_use]
pub fn listens(addresses: &[IpAddr], ports: &BTreeSet<Port>) -> BTreeSet<Listen> {
    let at = |address: &IpAddr| {
        let address = *address;
        ports.iter().map(move |Port { protocol, number }| Listen { address, protocol: *protocol, port: *number })
    };
    addresses.iter().flat_map(at).collect()
}

/// Makes servers listen where they should, unless they do already.
fn serve(
    servers: &Servers,
    namespace: &Namespace,
    places: BTreeSet<Listen>,
    served: &mut Option<(BTreeSet<Listen>, Served)>,
) -> Result<()> {
    if served.as_ref().is_none_or(|(before, _)| *before != places) {
        // Closed before the same port is listened on again.
        drop(served.take());
        *served = Some((places.clone(), servers.listen(namespace, &places)?));
    }
    Ok(())
}
