//! The cluster as the manifests say: made so, and probed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use netpol_policy::decode::{self, Kind, Object};
use netpol_policy::model::{Cluster, ObjectName, Pod, Protocol};
use netpol_testbed::agent::Dropped;
use netpol_testbed::namespace::Namespace;
use netpol_testbed::probe::{self, Outcome, Probe};
use netpol_testbed::sandbox::cells::{self, Cell, End, Port};
use netpol_testbed::sandbox::stand_ins::{self, StandIns};
use netpol_testbed::sandbox::{Answered, Policies, judge, listens};
use netpol_testbed::servers::{Listen, Served};
use serde_json::Value;

use super::api::{self, Snapshot, trouble};
use super::objects::{self, Changes, Key, MARK, Wanted};
use super::pods::Pods;
use super::{Site, agents, wait};
use crate::cluster::outside::Outside;

/// How long pods may take until they run: generous, since the machine may be compiling.
const PATIENCE: Duration = Duration::from_secs(180);

/// Addresses of pods, by name and whether they are of IPv4.
pub(super) type Addresses = BTreeMap<(ObjectName, bool), IpAddr>;

/// A cluster in which manifests are applied.
pub(super) struct World<'a> {
    site: &'a dyn Site,
    /// Whether the agent was there before: it then stays.
    agent_stays: bool,
    /// Namespaces that were there before: they stay.
    foreign: BTreeSet<String>,
    applied: BTreeMap<Key, Value>,
    snapshot: Snapshot,
    pods: Pods,
    // The servers' sockets keep the hosts' namespace alive: they go first.
    host_servers: Option<(BTreeSet<Listen>, Served)>,
    outside: Option<Outside>,
    hosts: StandIns,
    host_ports: BTreeSet<Port>,
}

impl<'a> World<'a> {
    /// A cluster as it is, but for what an earlier run may have left in it.
    pub(super) fn new(site: &'a dyn Site, agent_stays: bool) -> Result<Self> {
        let snapshot = Snapshot::take(site)?;
        let left: Vec<Key> = snapshot.marked().map(|(key, _)| key).collect();
        api::delete(site, &left)?;
        let foreign = snapshot.cluster().namespaces.keys();
        let foreign = foreign.filter(|name| !left.contains(&(Kind::Namespace, ObjectName::new("", name.as_str()))));
        Ok(Self {
            site,
            agent_stays,
            foreign: foreign.cloned().collect(),
            applied: BTreeMap::new(),
            pods: Pods::new()?,
            host_servers: None,
            outside: None,
            hosts: StandIns::default(),
            host_ports: BTreeSet::new(),
            snapshot,
        })
    }

    /// Applies the agent's manifests, and returns when it is ready on every node. Hosts outside get a place to be.
    pub(super) fn install(&mut self) -> Result<()> {
        api::apply_kustomization(self.site, &self.site.kustomization())?;
        if self.agent_stays {
            agents::restart(self.site)?;
        }
        match self.site.outside(&blocks(&self.snapshot))? {
            Ok(outside) => self.outside = Some(outside),
            Err(reason) => eprintln!("run: hosts outside are not probed: {reason}"),
        }
        agents::wait_ready(self.site)
    }

    /// Makes the cluster what the manifests say, and returns when its pods run, servers listen in them, and every agent
    /// has in force what the API server shows.
    pub(super) fn arrange(&mut self, manifests: &[Value], policies: Policies) -> Result<Wanted> {
        let mut wanted = objects::wanted(manifests);
        for ((kind, name), object) in &mut wanted.objects {
            // What has no mark is not removed in the end.
            if *kind == Kind::Namespace
                && self.foreign.contains(&name.name)
                && let Some(annotations) = object["metadata"]["annotations"].as_object_mut()
            {
                annotations.remove(MARK);
            }
        }
        let mut after = wanted.objects.clone();
        match policies {
            Policies::InForce => {}
            Policies::Withheld => after.retain(|(kind, _), _| *kind != Kind::Policy),
        }
        self.apply(after)?;
        self.wait_for_pods()?;
        self.arrange_hosts(&wanted)?;
        let participants: Vec<Pod> = self.pods().cloned().collect();
        self.pods.arrange(&participants, &self.site.nodes()?)?;
        agents::wait_applied(self.site, &self.snapshot)?;
        Ok(wanted)
    }

    fn apply(&mut self, after: BTreeMap<Key, Value>) -> Result<()> {
        let Changes { delete, apply } = objects::changes(&self.applied, &after);
        let keeps = |(kind, name): &Key| *kind == Kind::Namespace && self.foreign.contains(&name.name);
        let delete: Vec<Key> = delete.into_iter().filter(|key| !keeps(key)).collect();
        api::delete(self.site, &delete)?;
        let (namespaces, others): (Vec<Value>, Vec<Value>) =
            apply.into_iter().partition(|object| object["kind"] == Kind::Namespace.name());
        if !namespaces.is_empty() {
            let names: BTreeSet<String> =
                namespaces.iter().filter_map(|one| one["metadata"]["name"].as_str().map(str::to_owned)).collect();
            api::apply(self.site, namespaces)?;
            self.wait_for_accounts(&names)?;
        }
        api::apply(self.site, others)?;
        self.applied = after;
        Ok(())
    }

    /// A pod is refused until the controller manager has made its namespace's default account.
    fn wait_for_accounts(&self, namespaces: &BTreeSet<String>) -> Result<()> {
        wait(PATIENCE, || {
            let arguments = ["get", "serviceaccounts", "--all-namespaces", "--field-selector=metadata.name=default"];
            let text = api::kubectl(self.site, &[&arguments[..], &["--output=json"]].concat())?;
            let listed: Value = serde_json::from_str(&text).context("kubectl get serviceaccounts")?;
            let there: BTreeSet<&str> = listed["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|account| account["metadata"]["namespace"].as_str())
                .collect();
            match namespaces.iter().find(|name| !there.contains(name.as_str())) {
                Some(name) => bail!("namespace {name} has no default service account"),
                None => Ok(()),
            }
        })
    }

    fn wait_for_pods(&mut self) -> Result<()> {
        let wanted: BTreeMap<ObjectName, Value> = self
            .applied
            .iter()
            .filter(|((kind, _), _)| *kind == Kind::Pod)
            .map(|((_, name), object)| (name.clone(), object.clone()))
            .collect();
        wait(PATIENCE, || {
            self.snapshot = Snapshot::take(self.site)?;
            let made = self.snapshot.made();
            // Pods without a controller: whoever deletes one gets another, as from the workload that it stands for.
            let gone = wanted.iter().filter(|(name, _)| !made.contains_key(name)).map(|(_, object)| object.clone());
            api::apply(self.site, gone.collect())?;
            let is_missing = |name: &&ObjectName| !made.get(name).is_some_and(|pod| pod.is_running);
            let missing: Vec<&ObjectName> = wanted.keys().filter(is_missing).collect();
            let Some(first) = missing.first() else { return Ok(()) };
            let why = made.get(first).map_or_else(|| "it is gone".to_owned(), |pod| trouble(pod.object));
            bail!("{} of {} pods do not run; {first}: {why}", missing.len(), wanted.len());
        })
    }

    fn arrange_hosts(&mut self, wanted: &Wanted) -> Result<()> {
        let Some(outside) = &mut self.outside else { return Ok(()) };
        // Also those that are still withheld: hosts are there before the policies.
        let mut cluster = self.snapshot.cluster().clone();
        for object in wanted.objects.values() {
            if let Ok(Object::Policy(policy)) = decode::object(object) {
                cluster.policies.entry(policy.name.clone()).or_insert(policy);
            }
        }
        let taken = cluster.pods.values().flat_map(|pod| &pod.addresses);
        let taken = taken.chain(cluster.nodes.values().flat_map(|node| &node.addresses));
        let mut reserved = self.site.reserved();
        reserved.extend(taken.copied().map(IpNet::from));
        let mut hosts = stand_ins::choose(cluster.policies.values(), &reserved);
        let is_routed = |address: &IpAddr| {
            cluster.nodes.values().flat_map(|node| &node.addresses).any(|own| own.is_ipv4() == address.is_ipv4())
        };
        hosts.hosts.retain(|address, _| is_routed(address));
        for vacant in hosts.vacant.iter().filter(|vacant| !self.hosts.vacant.contains(vacant)) {
            eprintln!(
                "run: no host can stand for {vacant}: it is the cluster's own network, or no host can have such an address"
            );
        }
        let addresses: Vec<IpAddr> = hosts.hosts.keys().copied().collect();
        outside.add_hosts(&addresses)?;
        let ports = cells::named_ports(&cluster);
        let places = listens(&addresses, &ports);
        if self.host_servers.as_ref().is_none_or(|(before, _)| *before != places) {
            // Closed before the same port is listened on again.
            drop(self.host_servers.take());
            let served = self.pods.serve(outside.network(), &places).context("servers on hosts outside")?;
            self.host_servers = Some((places, served));
        }
        (self.hosts, self.host_ports) = (hosts, ports);
        Ok(())
    }

    /// Whether what decides verdicts is no longer what was probed.
    pub(super) fn has_changed(&self) -> Result<bool> {
        Ok(Snapshot::take(self.site)?.cluster() != self.snapshot.cluster())
    }

    /// Connects every cell while policies are withheld; returns the number of cells.
    pub(super) fn baseline(&self) -> Result<usize> {
        judge::baseline(&self.cells(), |cells| self.probe(cells))
    }

    /// Every cell with both its answers.
    pub(super) fn matrix(&self) -> Result<Vec<Answered>> {
        judge::matrix(self.cells(), self.cluster(), |cells| self.probe(cells))
    }

    /// Every cell there is.
    pub(super) fn cells(&self) -> Vec<Cell> {
        cells::cells(self.pods(), self.hosts.hosts.keys().copied(), &self.host_ports)
    }

    /// The pods that connections are tried between.
    pub(super) fn pods(&self) -> impl Iterator<Item = &Pod> {
        let made = self.snapshot.made();
        self.cluster().pods.values().filter(move |pod| {
            (pod.takes_part() || pod.host_network) && !pod.addresses.is_empty() && made.contains_key(&pod.name)
        })
    }

    /// The pods' addresses, by name and whether they are of IPv4.
    pub(super) fn addresses(&self) -> Addresses {
        let of_pod = |pod: &Pod| {
            let name = pod.name.clone();
            pod.addresses.clone().into_iter().map(move |address| ((name.clone(), address.is_ipv4()), address))
        };
        self.pods().flat_map(of_pod).collect()
    }

    /// The hosts outside.
    pub(super) fn hosts(&self) -> &StandIns {
        &self.hosts
    }

    /// The policies that are or will be in force.
    pub(super) fn policies(&self) -> impl Iterator<Item = &ObjectName> {
        self.cluster().policies.keys()
    }

    /// How many nodes there are.
    pub(super) fn nodes(&self) -> Result<usize> {
        Ok(self.site.nodes()?.len())
    }

    /// What each agent has dropped so far, by node.
    pub(super) fn drops(&self) -> Result<BTreeMap<String, Vec<Dropped>>> {
        agents::drops(self.site)
    }

    /// How to look around.
    pub(super) fn usage(&self) -> String {
        let kubectl = self.site.kubectl_line();
        let mut lines = vec![
            "look around:".to_owned(),
            format!("  {kubectl} get pods --all-namespaces --output=wide"),
            format!("  {kubectl} logs --namespace=netpol-agent daemonset/netpol-agent"),
        ];
        let tcp = |pod: &Pod| cells::declared_ports(pod).into_iter().find(|port| port.protocol == Protocol::Tcp);
        let served = self.pods().find_map(|pod| {
            let port = tcp(pod)?.number;
            Some((&pod.name, std::net::SocketAddr::new(*pod.addresses.first()?, port)))
        });
        if let Some((own, server)) = served
            && let Some(client) = self.pods().find(|pod| !pod.host_network && pod.name != *own)
        {
            let ObjectName { namespace, name } = &client.name;
            let connect = format!("/agnhost connect {server} --timeout=2s");
            lines.push(format!("  {kubectl} exec --namespace={namespace} {name} -- {connect}"));
        }
        for node in self.snapshot.nodes().filter_map(|node| node["metadata"]["name"].as_str()) {
            lines.push(format!("  {node}: {}", self.site.node_line(node)));
        }
        lines.join("\n") + "\n"
    }

    /// Removes what was made in the cluster.
    pub(super) fn remove(&mut self) -> Result<()> {
        self.host_servers = None;
        self.outside = None;
        let snapshot = Snapshot::take(self.site)?;
        let made: Vec<Key> = snapshot.marked().map(|(key, _)| key).collect();
        api::delete(self.site, &made)?;
        if !self.agent_stays {
            agents::uninstall(self.site)?;
        }
        Ok(())
    }

    fn cluster(&self) -> &Cluster {
        self.snapshot.cluster()
    }

    fn probe(&self, cells: &[&Cell]) -> Result<Vec<Outcome>> {
        let probe = |cell: &&Cell| -> Result<Probe<'_>> {
            let Cell { ref from, to: _, source, destination, port: Port { protocol, number } } = **cell;
            Ok(Probe { from: self.namespace(from)?, source, destination, protocol, port: number })
        };
        probe::run(&cells.iter().map(probe).collect::<Result<Vec<_>>>()?)
    }

    fn namespace(&self, end: &End) -> Result<&Namespace> {
        match end {
            End::Host(_) => Ok(self.outside.as_ref().context("there are no hosts outside")?.network()),
            End::Pod(name) => self.pods.namespace(self.cluster().pods.get(name).context("a pod that is gone")?),
        }
    }
}

/// Blocks of pods' addresses, each with the address of its node in the same family.
fn blocks(snapshot: &Snapshot) -> Vec<(IpNet, IpAddr)> {
    let mut blocks = Vec::new();
    for node in snapshot.nodes() {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let addresses: Vec<IpAddr> = list(&node["status"]["addresses"])
            .iter()
            .filter(|address| address["type"] == "InternalIP")
            .filter_map(|address| address["address"].as_str()?.parse().ok())
            .collect();
        let cidrs = list(&node["spec"]["podCIDRs"]);
        for block in cidrs.iter().filter_map(|block| block.as_str()?.parse::<IpNet>().ok()) {
            let of_family = addresses.iter().find(|address| address.is_ipv4() == block.addr().is_ipv4());
            blocks.extend(of_family.map(|address| (block, *address)));
        }
    }
    blocks
}
