//! What kind and Flannel are told: the files of `deploy/overlays/kind`, which are for IPv4, with the families that are
//! wanted.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Families;
use crate::process;

/// Where the files are, below the workspace.
pub(super) const FOLDER: &str = "deploy/overlays/kind";

/// kind's configuration.
pub(super) fn cluster(families: Families) -> Result<Value> {
    let mut cluster = documents("cluster.yaml")?.into_iter().next().context("cluster.yaml is empty")?;
    let family = match families {
        Families::Ipv4 => "ipv4",
        Families::Ipv6 => "ipv6",
        Families::Dual => "dual",
    };
    cluster["networking"]["ipFamily"] = json!(family);
    cluster["networking"]["podSubnet"] = json!(families.pod_cidrs());
    Ok(cluster)
}

/// The names that kind gives to the containers of the nodes.
pub(super) fn nodes(configuration: &Value, cluster: &str) -> Vec<String> {
    let mut seen = std::collections::BTreeMap::<&str, usize>::new();
    let nodes = configuration["nodes"].as_array().into_iter().flatten();
    let name = |node: &'_ Value| -> Option<String> {
        let role = if node["role"] == "control-plane" { "control-plane" } else { "worker" };
        let number = seen.entry(role).or_default();
        *number += 1;
        Some(if *number == 1 { format!("{cluster}-{role}") } else { format!("{cluster}-{role}{number}") })
    };
    nodes.filter_map(name).collect()
}

/// The folders of the host's BPF file system that the nodes are given.
pub(super) fn folders(configuration: &Value) -> Vec<String> {
    let nodes = configuration["nodes"].as_array().into_iter().flatten();
    let mounts = nodes.flat_map(|node| node["extraMounts"].as_array().into_iter().flatten());
    mounts.filter_map(|mount| mount["hostPath"].as_str().map(str::to_owned)).collect()
}

/// Flannel's manifests.
pub(super) fn flannel(families: Families) -> Result<Value> {
    let mut items = documents("flannel.yaml")?;
    for item in items.iter_mut().filter(|item| item["kind"] == "ConfigMap") {
        let mut network = families.flannel();
        network["Backend"] = json!({ "Type": "vxlan" });
        item["data"]["net-conf.json"] = json!(network.to_string());
    }
    Ok(json!({ "apiVersion": "v1", "kind": "List", "items": items }))
}

fn documents(file: &str) -> Result<Vec<Value>> {
    let path = process::workspace().join(FOLDER).join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_is_told_the_families_and_to_leave_the_network_to_flannel() {
        for (families, name, blocks) in [
            (Families::Ipv4, "ipv4", "10.244.0.0/16"),
            (Families::Ipv6, "ipv6", "fd00:10:244::/56"),
            (Families::Dual, "dual", "10.244.0.0/16,fd00:10:244::/56"),
        ] {
            let cluster = cluster(families).unwrap();
            let networking = json!({ "disableDefaultCNI": true, "ipFamily": name, "podSubnet": blocks });
            assert_eq!(cluster["networking"], networking);
        }
    }

    #[test]
    fn the_file_for_kind_alone_is_that_of_ipv4() {
        let mut given = documents("cluster.yaml").unwrap().remove(0);
        given["networking"]["ipFamily"] = json!("ipv4");
        assert_eq!(given, cluster(Families::Ipv4).unwrap());
        let network = |items: &[Value]| -> Value {
            let map = items.iter().find(|item| item["kind"] == "ConfigMap").unwrap();
            serde_json::from_str(map["data"]["net-conf.json"].as_str().unwrap()).unwrap()
        };
        let (given, made) = (documents("flannel.yaml").unwrap(), flannel(Families::Ipv4).unwrap());
        let (mut given, made) = (network(&given), network(made["items"].as_array().unwrap()));
        given["EnableIPv6"] = json!(false);
        assert_eq!(given, made);
    }

    #[test]
    fn flannels_version_is_that_of_the_cluster_in_namespaces() {
        let path = process::workspace().join("xtask/cluster-binaries/flannel/go.mod");
        let go_mod = std::fs::read_to_string(path).unwrap();
        let version = go_mod.split("github.com/flannel-io/flannel v").nth(1).unwrap();
        let image = format!("ghcr.io/flannel-io/flannel:v{}", version.split_whitespace().next().unwrap());
        let items = documents("flannel.yaml").unwrap();
        let daemon_set = items.iter().find(|item| item["kind"] == "DaemonSet").unwrap();
        let pod = &daemon_set["spec"]["template"]["spec"];
        for container in [&pod["containers"][0], &pod["initContainers"][0]] {
            assert_eq!(container["image"], image);
        }
    }

    #[test]
    fn nodes_are_called_as_kind_calls_them() {
        let cluster = cluster(Families::Ipv4).unwrap();
        assert_eq!(nodes(&cluster, "netpol"), ["netpol-control-plane", "netpol-worker", "netpol-worker2"]);
        assert_eq!(folders(&cluster).len(), 3);
    }
}
