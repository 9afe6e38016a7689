//! The agents: one on each node, asked from within the node's network, where they listen.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netpol_policy::decode::Kind;
use netpol_testbed::agent::{Agent, Dropped, dropped, get, samples};
use netpol_testbed::interrupt;
use netpol_testbed::place::Place;
use serde_json::Value;

use super::api::{Snapshot, kubectl, trouble};
use super::{Site, wait};

/// How long a DaemonSet may take until it is ready everywhere, and an agent until what it sees is in force: generous,
/// since the machine may be compiling.
const PATIENCE: Duration = Duration::from_secs(180);

const NAMESPACE: &str = "--namespace=netpol-agent";

/// Whether the DaemonSet is there.
pub(super) fn are_installed(site: &dyn Site) -> Result<bool> {
    let found = kubectl(site, &["get", "daemonset", "netpol-agent", NAMESPACE, "--ignore-not-found", "--output=name"])?;
    Ok(!found.trim().is_empty())
}

/// Removes the DaemonSet with all that belongs to it, and then what it has left in force on the nodes.
pub(super) fn uninstall(site: &dyn Site) -> Result<()> {
    let folder = site.kustomization();
    let folder = folder.to_str().context("a folder's name is no UTF-8")?;
    kubectl(site, &["delete", "--ignore-not-found", "--wait=true", "--timeout=120s", "--kustomize", folder])?;
    site.nodes()?.keys().try_for_each(|node| site.uninstall(node).with_context(|| format!("uninstall on {node}")))
}

/// Replaces agents that run by ones of the image that the nodes have now.
pub(super) fn restart(site: &dyn Site) -> Result<()> {
    kubectl(site, &["rollout", "restart", "daemonset/netpol-agent", NAMESPACE]).map(drop)
}

/// Waits until the DaemonSet is ready on every node. If it does not get there, its last lines say why.
pub(super) fn wait_ready(site: &dyn Site) -> Result<()> {
    let nodes = site.nodes()?.len() as u64;
    let waited = wait(PATIENCE, || {
        let text = kubectl(site, &["get", "daemonset", "netpol-agent", NAMESPACE, "--output=json"])?;
        let daemon_set: Value = serde_json::from_str(&text).context("kubectl get daemonset")?;
        let status = &daemon_set["status"];
        let number = |field: &str| status[field].as_u64().unwrap_or(0);
        let ready = number("numberReady");
        if status["observedGeneration"] == daemon_set["metadata"]["generation"]
            && number("desiredNumberScheduled") == nodes
            && number("updatedNumberScheduled") == nodes
            && ready == nodes
        {
            return Ok(());
        }
        let text = kubectl(site, &["get", "pods", NAMESPACE, "--output=json"])?;
        let pods: Value = serde_json::from_str(&text).context("kubectl get pods")?;
        let reasons: Vec<String> = pods["items"].as_array().into_iter().flatten().map(trouble).collect();
        bail!("the agent is ready on {ready} of {nodes} nodes: {}", reasons.join("; "));
    });
    waited.map_err(|error| match kubectl(site, &["logs", "daemonset/netpol-agent", NAMESPACE, "--tail=5"]) {
        Ok(lines) if !interrupt::requested() => error.context(format!("the last lines of one agent:\n{lines}")),
        Ok(_) | Err(_) => error,
    })
}

/// Waits until every agent has all in force that the API server has shown, and no interface waits for its pod.
pub(super) fn wait_applied(site: &dyn Site, snapshot: &Snapshot) -> Result<()> {
    let nodes = site.nodes()?;
    wait(PATIENCE, || {
        for (node, place) in &nodes {
            is_applied(node, place, snapshot).with_context(|| format!("the agent on {node}"))?;
        }
        Ok(())
    })
}

fn is_applied(node: &str, place: &Place, snapshot: &Snapshot) -> Result<()> {
    let answer: Value = serde_json::from_str(&get(place, Agent::ADDRESS, "/v1/applied")?).context("GET /v1/applied")?;
    for kind in Kind::ALL {
        let wanted = snapshot.version(kind);
        // An agent that has seen no object of a kind tells the version of the list; one of a kind without any is nothing.
        let applied = answer["applied"][kind.name()]["version"].as_str().and_then(|version| version.parse().ok());
        if applied.unwrap_or(0_u64) < wanted {
            bail!("{kind} is at version {applied:?}, and should be at {wanted}");
        }
    }
    // A deletion leaves nothing that has a version; after it, the numbers tell.
    let policies = samples(&get(place, Agent::ADDRESS, "/metrics")?, "netpol_policies");
    let enforced = policies.iter().find(|(labels, _)| labels.get("mode").is_some_and(|mode| mode == "enforce"));
    let (enforced, wanted) = (enforced.map_or(0.0, |(_, number)| *number), snapshot.cluster().policies.len());
    if enforced as usize != wanted {
        bail!("{enforced} policies are in force, and should be {wanted}");
    }
    let pods = snapshot.cluster().pods.values().filter(|pod| pod.takes_part() && pod.node == node).count() as u64;
    if answer["endpoints"]["ready"].as_u64() < Some(pods) || answer["pending"] != 0 {
        bail!("{pods} pods run there, and it says: endpoints {}, pending {}", answer["endpoints"], answer["pending"]);
    }
    Ok(())
}

/// What each has dropped so far, by node.
pub(super) fn drops(site: &dyn Site) -> Result<BTreeMap<String, Vec<Dropped>>> {
    let of_node = |(node, place): (String, Place)| {
        let metrics = get(&place, Agent::ADDRESS, "/metrics").with_context(|| format!("the agent on {node}"))?;
        Ok((node, dropped(&metrics)))
    };
    site.nodes()?.into_iter().map(of_node).collect()
}

/// The same of all nodes together.
pub(super) fn total(drops: &BTreeMap<String, Vec<Dropped>>) -> Vec<Dropped> {
    let mut sums = BTreeMap::<(&String, &String, &String), u64>::new();
    for Dropped { namespace, direction, reason, packets } in drops.values().flatten() {
        *sums.entry((namespace, direction, reason)).or_default() += packets;
    }
    let sum = |((namespace, direction, reason), packets): ((&String, &String, &String), u64)| Dropped {
        namespace: namespace.clone(),
        direction: direction.clone(),
        reason: reason.clone(),
        packets,
    };
    sums.into_iter().map(sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_all_nodes_are_summed_by_namespace_direction_and_reason() {
        let dropped = |reason: &str, packets| Dropped {
            namespace: "shop".to_owned(),
            direction: "egress".to_owned(),
            reason: reason.to_owned(),
            packets,
        };
        let drops = BTreeMap::from([
            ("node1".to_owned(), vec![dropped("no_rule", 2), dropped("pending", 1)]),
            ("node2".to_owned(), vec![dropped("no_rule", 3)]),
        ]);
        assert_eq!(total(&drops), [dropped("no_rule", 5), dropped("pending", 1)]);
    }
}
