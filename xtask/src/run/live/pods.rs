//! The pods' network namespaces, found on the nodes, with a server on every port that a pod declares.
//!
//! libcni leaves a record of each interface that it has made: the pod's UID, and the file that the container runtime has
//! mounted for its network namespace. Both are the node's own, so they are read from within the node's mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use netpol_policy::model::{ObjectName, Pod};
use netpol_testbed::namespace::Namespace;
use netpol_testbed::place::Place;
use netpol_testbed::sandbox::cells::declared_ports;
use netpol_testbed::sandbox::listens;
use netpol_testbed::servers::{Listen, Served, Servers};
use serde_json::Value;

/// Where libcni keeps its records.
const RECORDS: &str = "/var/lib/cni/results";

/// The network interface that is the pod's own.
const INTERFACE: &str = "eth0";

/// Pods that are probed, and the nodes of those that share their node's network.
pub(super) struct Pods {
    servers: Servers,
    running: BTreeMap<ObjectName, Running>,
    nodes: BTreeMap<String, Node>,
}

struct Running {
    // The servers' sockets keep the namespace alive: they go first.
    served: (BTreeSet<Listen>, Served),
    network: Namespace,
    uid: String,
}

struct Node {
    served: Option<(BTreeSet<Listen>, Served)>,
    network: Namespace,
}

impl Pods {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { servers: Servers::start()?, running: BTreeMap::new(), nodes: BTreeMap::new() })
    }

    /// Makes servers listen in these pods and in no others.
    pub(super) fn arrange(&mut self, pods: &[Pod], places: &BTreeMap<String, Place>) -> Result<()> {
        for (name, place) in places {
            if !self.nodes.contains_key(name) {
                let path = place.network().with_context(|| format!("{name} has no network of its own"))?;
                let network = Namespace::opened(File::open(path).with_context(|| path.display().to_string())?);
                self.nodes.insert(name.clone(), Node { served: None, network });
            }
        }
        self.nodes.retain(|name, _| places.contains_key(name));
        self.running.retain(|name, running| pods.iter().any(|pod| pod.name == *name && pod.uid == running.uid));
        for (name, place) in places {
            self.open(name, place, pods)?;
        }
        for pod in pods.iter().filter(|pod| !pod.host_network) {
            let running = self.running.get_mut(&pod.name).with_context(|| format!("pod {} is on no node", pod.name))?;
            let wanted = listens(&pod.addresses, &declared_ports(pod));
            if running.served.0 != wanted {
                // Closed before the same port is listened on again.
                running.served = (BTreeSet::new(), self.servers.listen(&running.network, &BTreeSet::new())?);
                let served = self.servers.listen(&running.network, &wanted);
                running.served = (wanted, served.with_context(|| format!("servers of pod {}", pod.name))?);
            }
        }
        for (name, Node { served, network }) in &mut self.nodes {
            let own = pods.iter().filter(|pod| pod.host_network && pod.node == *name);
            let wanted: BTreeSet<Listen> = own.flat_map(|pod| listens(&pod.addresses, &declared_ports(pod))).collect();
            if served.as_ref().is_none_or(|(before, _)| *before != wanted) {
                drop(served.take());
                let now = self.servers.listen(network, &wanted).with_context(|| format!("servers on {name}"))?;
                *served = Some((wanted, now));
            }
        }
        Ok(())
    }

    /// Opens the namespaces of a node's pods that are not open yet.
    fn open(&mut self, node: &str, place: &Place, pods: &[Pod]) -> Result<()> {
        let new: Vec<&Pod> = pods
            .iter()
            .filter(|pod| !pod.host_network && pod.node == node && !self.running.contains_key(&pod.name))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut opened = place.run(|| {
            let records = records(Path::new(RECORDS))?;
            let open = |pod: &&Pod| {
                let path = records.get(&pod.uid);
                let path = path.with_context(|| format!("{node}: no CNI record of pod {} in {RECORDS}", pod.name))?;
                File::open(path).with_context(|| format!("{node}: pod {}: {}", pod.name, path.display()))
            };
            new.iter().map(open).collect::<Result<Vec<File>>>()
        })?;
        for (pod, file) in new.into_iter().zip(opened.drain(..)) {
            let network = Namespace::opened(file);
            let served = (BTreeSet::new(), self.servers.listen(&network, &BTreeSet::new())?);
            self.running.insert(pod.name.clone(), Running { served, network, uid: pod.uid.clone() });
        }
        Ok(())
    }

    /// Servers on hosts outside, until the value is dropped.
    pub(super) fn serve(&self, network: &Namespace, places: &BTreeSet<Listen>) -> Result<Served> {
        self.servers.listen(network, places)
    }

    /// Where connections of a pod begin.
    pub(super) fn namespace(&self, pod: &Pod) -> Result<&Namespace> {
        let own = self.running.get(&pod.name).map(|running| &running.network);
        let of_node = || self.nodes.get(&pod.node).filter(|_| pod.host_network).map(|node| &node.network);
        match own.or_else(of_node) {
            Some(network) => Ok(network),
            None => bail!("pod {} does not run", pod.name),
        }
    }
}

/// The files of network namespaces by the UIDs of their pods. A pod whose sandbox was made anew may have several records,
/// of which the newest counts.
fn records(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut newest = BTreeMap::<String, (SystemTime, PathBuf)>::new();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
    };
    for entry in entries.flatten() {
        // Gone since it was listed, or half written: it is of another pod than those that run.
        let Ok(text) = std::fs::read(entry.path()) else { continue };
        let Some((uid, network)) = record(&text) else { continue };
        let written = entry.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        if newest.get(&uid).is_none_or(|(before, _)| *before <= written) {
            newest.insert(uid, (written, network));
        }
    }
    Ok(newest.into_iter().map(|(uid, (_, network))| (uid, network)).collect())
}

/// The pod's UID and the file of its network namespace.
fn record(text: &[u8]) -> Option<(String, PathBuf)> {
    let record: Value = serde_json::from_slice(text).ok()?;
    if record["ifName"] != INTERFACE {
        return None;
    }
    let uid = record["cniArgs"].as_array()?.iter().find(|pair| pair[0] == "K8S_POD_UID")?[1].as_str()?;
    Some((uid.to_owned(), record["netns"].as_str()?.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_record_of_a_pods_own_interface_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, interface: &str, network: &str, seconds: u64| {
            let record = json!({
                "kind": "cniCacheV1", "ifName": interface, "netns": network,
                "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_UID", "u-1"]],
            });
            let path = folder.path().join(name);
            std::fs::write(&path, record.to_string()).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        };
        write("a", "eth0", "/run/netns/new", 20);
        write("b", "eth0", "/run/netns/old", 10);
        write("c", "net1", "/run/netns/other", 30);
        std::fs::write(folder.path().join("d"), "{").unwrap();
        let expected = BTreeMap::from([("u-1".to_owned(), PathBuf::from("/run/netns/new"))]);
        assert_eq!(records(folder.path()).unwrap(), expected);
        assert_eq!(records(&folder.path().join("none")).unwrap(), BTreeMap::new());
    }
}
