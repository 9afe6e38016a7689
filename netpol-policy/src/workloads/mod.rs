//! From a folder of manifests to what an API server with controllers, a scheduler and one node's kubelet would show of
//! it: workloads become Pods with UID, nodeName and addresses, Services that select pods get EndpointSlices, lists are
//! taken apart, and namespaces that are referred to exist.
//!
//! [`expand`] is a pure function of the manifests and of what it answered before ([`ExpandOptions::previous`]): a pod
//! that an edit of the folder does not concern keeps its name, UID, addresses and start time.
//!
//! Differences from a real cluster, all of them so that a result can be named and repeated: pods of Deployments,
//! ReplicaSets, DaemonSets, Jobs and ReplicationControllers are numbered from 0 like those of a StatefulSet (`web-0`;
//! `web-deployment-0` where another object has that name already); UIDs are a digest of namespace and name; every pod
//! runs on the one node, whatever nodeName, nodeSelector or affinity say; a CronJob starts nothing; a Service gets no
//! ClusterIP that it does not name. Labels that carry a hash or a UID (`pod-template-hash`, `controller-revision-hash`,
//! `controller-uid`) are not added.

mod addresses;
mod slices;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use self::addresses::Pools;
use self::template::Workload;
use crate::decode::field::FieldError;
use crate::decode::{Kind, NAMESPACE_NAME_LABEL, Object, Rejected, flatten, kind_ignored, meta, object_of, time};
use crate::model::{ObjectName, Phase, Pod};

/// The node that the pods run on, and what it did before.
#[derive(Clone, Debug)]
pub struct ExpandOptions {
    /// Name of the node.
    pub node: String,
    /// Its addresses, best first. Host-network pods report them, and a Node object is made of them unless the
    /// manifests have one of that name.
    pub node_addresses: Vec<IpAddr>,
    /// Where pods get their addresses from: one block a family, in the order in which pods report them. The first
    /// host is left to the bridge.
    pub pod_cidrs: Vec<IpNet>,
    /// `status.startTime` of pods that have none yet, in seconds of the epoch.
    pub started: i64,
    /// What pods were given before; see [`assignments`].
    pub previous: Assignments,
}

/// What was given to pods.
pub type Assignments = BTreeMap<ObjectName, Assignment>;

/// What was given to a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its start time in seconds of the epoch.
    pub started: Option<i64>,
}

/// What the API server would show.
#[derive(Clone, Debug, Default)]
pub struct Expanded {
    /// Namespaces, nodes and pods by name, then all else that decides verdicts, in the order of the manifests, then the
    /// EndpointSlices of Services that select pods. What is malformed and neither pod nor workload is among them, for the decoder to refuse.
    pub objects: Vec<Value>,
    /// Pods and workloads that the API server would not have accepted or the node has no address for, each with the
    /// index of the manifest it comes from.
    pub rejected: Vec<(usize, Rejected)>,
}

/// A pod that is to run, before it is given anything.
struct Planned {
    manifest: usize,
    value: Value,
    decoded: Pod,
}

/// Expands manifests. Of several objects of one kind and name the last counts, as with `kubectl apply`.
#[must_use]
pub fn expand(values: &[Value], options: &ExpandOptions) -> Expanded {
    let mut expanded = Expanded::default();
    let mut pods = BTreeMap::<ObjectName, Planned>::new();
    let mut workloads = BTreeMap::<(Workload, ObjectName), (usize, Value)>::new();
    let mut others = Vec::<Value>::new();

    let flat = values
        .iter()
        .enumerate()
        .flat_map(|(index, value)| flatten(value.clone()).into_iter().map(move |value| (index, value)));
    for (manifest, mut value) in flat {
        if let Some(workload) = Workload::of(&value) {
            match workload.name(&value) {
                Ok(name) => drop(workloads.insert((workload, name), (manifest, value))),
                Err(rejected) => expanded.rejected.push((manifest, rejected)),
            }
        } else if Kind::of(&value) == Some(Kind::Pod) {
            match decode_pod(&value) {
                Ok(decoded) => drop(pods.insert(decoded.name.clone(), Planned { manifest, value, decoded })),
                Err(rejected) => expanded.rejected.push((manifest, rejected)),
            }
        } else if !kind_ignored(&value) {
            default_namespace(&mut value);
            others.retain(|other| !same_object(other, &value));
            others.push(value);
        }
    }
    for ((workload, name), (manifest, value)) in &workloads {
        match workload.pods(name, value, |name| pods.contains_key(name)) {
            Ok(made) => pods.extend(
                made.into_iter()
                    .map(|(value, decoded)| (decoded.name.clone(), Planned { manifest: *manifest, value, decoded })),
            ),
            Err(rejected) => expanded.rejected.push((*manifest, rejected)),
        }
    }
    let running = run(pods, options, &mut expanded.rejected);
    let slices = slices::slices(&running, &others, &options.pod_cidrs);
    others.extend(slices);
    assemble(running, others, options, &mut expanded.objects);
    expanded
}

/// What the pods among the objects were given: the next [`ExpandOptions::previous`].
#[must_use]
pub fn assignments(objects: &[Value]) -> Assignments {
    let pods =
        objects.iter().filter(|value| Kind::of(value) == Some(Kind::Pod)).filter_map(|value| decode_pod(value).ok());
    pods.map(|Pod { name, addresses, started, .. }| (name, Assignment { addresses, started })).collect()
}

#[expect(clippy::result_large_err, reason = "a decoded object is as large as the error")]
fn decode_pod(value: &Value) -> Result<Pod, Rejected> {
    match object_of(Kind::Pod, value)? {
        Object::Pod(pod) => Ok(pod),
        Object::Namespace(_)
        | Object::Policy(_)
        | Object::Service(_)
        | Object::Node(_)
        | Object::EndpointSlice(_)
        | Object::ServiceCidr(_) => {
            let error = FieldError { field: "kind".to_owned(), message: "must be Pod".to_owned() };
            Err(Rejected::new(Kind::Pod.name(), None, error))
        }
    }
}

/// The part of the scheduler and the kubelet.
fn run(
    pods: BTreeMap<ObjectName, Planned>,
    options: &ExpandOptions,
    rejected: &mut Vec<(usize, Rejected)>,
) -> BTreeMap<ObjectName, Value> {
    let mut pools = Pools::new(&options.pod_cidrs, &options.node_addresses);
    for Planned { decoded, .. } in pods.values() {
        pools.take(&decoded.addresses);
    }
    let needs_own = |pod: &Pod| pod.addresses.is_empty() && pod.takes_part();
    let mut kept = BTreeMap::<ObjectName, Vec<IpAddr>>::new();
    for (name, Planned { decoded, .. }) in &pods {
        if let Some(Assignment { addresses, started: _ }) = options.previous.get(name)
            && needs_own(decoded)
            && pools.may_keep(addresses)
        {
            pools.take(addresses);
            kept.insert(name.clone(), addresses.clone());
        }
    }
    let mut running = BTreeMap::new();
    for (name, Planned { manifest, mut value, decoded }) in pods {
        let addresses = if !decoded.addresses.is_empty() {
            Ok(decoded.addresses.clone())
        } else if let Some(addresses) = kept.remove(&name) {
            Ok(addresses)
        } else if decoded.phase == Phase::Finished {
            Ok(Vec::new())
        } else if decoded.host_network {
            Ok(options.node_addresses.clone())
        } else {
            pools.give()
        };
        match addresses {
            Ok(addresses) => {
                report(&mut value, &decoded, &addresses, options);
                running.insert(name, value);
            }
            Err(full) => {
                let message = format!("no address is left in {full}");
                let error = FieldError { field: "status.podIPs".to_owned(), message };
                rejected.push((manifest, Rejected::new(Kind::Pod.name(), Some(name), error)));
            }
        }
    }
    running
}

/// Writes into a pod what the kubelet reports of it. What the manifest says of itself is kept.
fn report(value: &mut Value, decoded: &Pod, addresses: &[IpAddr], options: &ExpandOptions) {
    let list = |addresses: &[IpAddr]| addresses.iter().map(|address| json!({ "ip": address })).collect::<Vec<_>>();
    let started = decoded
        .started
        .or_else(|| options.previous.get(&decoded.name).and_then(|assignment| assignment.started))
        .unwrap_or(options.started);

    let metadata = member(value, "metadata");
    metadata.insert("namespace".to_owned(), json!(decoded.name.namespace));
    if decoded.uid.is_empty() {
        metadata.insert("uid".to_owned(), json!(uid(&decoded.name)));
    }
    member(value, "spec").insert("nodeName".to_owned(), json!(options.node));
    let status = member(value, "status");
    if status.get("phase").is_none_or(Value::is_null) {
        status.insert("phase".to_owned(), json!("Running"));
    }
    status.insert("startTime".to_owned(), json!(time::rfc3339(started)));
    if let Some(first) = options.node_addresses.first() {
        status.insert("hostIP".to_owned(), json!(first));
        status.insert("hostIPs".to_owned(), json!(list(&options.node_addresses)));
    }
    if let Some(first) = addresses.first() {
        status.insert("podIP".to_owned(), json!(first));
        status.insert("podIPs".to_owned(), json!(list(addresses)));
    }
    if let Value::Object(members) = value {
        members.insert("apiVersion".to_owned(), json!(Kind::Pod.api_version()));
        members.insert("kind".to_owned(), json!(Kind::Pod.name()));
    }
}

/// In the form of a UUID of version 8 (RFC 9562: content at the maker's choice), since that is what readers expect.
fn uid(name: &ObjectName) -> String {
    let digest = Sha256::digest(format!("pod {name}"));
    let mut id = [0_u8; 16];
    for (byte, from) in id.iter_mut().zip(digest) {
        *byte = from;
    }
    let bits = u128::from_be_bytes(id);
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x8 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

fn assemble(
    pods: BTreeMap<ObjectName, Value>,
    mut others: Vec<Value>,
    options: &ExpandOptions,
    objects: &mut Vec<Value>,
) {
    let of_kind = |kind: Kind| move |value: &mut Value| Kind::of(value) == Some(kind);
    let mut namespaces = BTreeMap::<String, Value>::new();
    let mut nodes = BTreeMap::<String, Value>::new();
    for mut value in others.extract_if(.., of_kind(Kind::Namespace)).collect::<Vec<_>>() {
        match meta::readable_name(Kind::Namespace, &value) {
            Some(ObjectName { name, namespace: _ }) => {
                add_name_label(&mut value, &name);
                namespaces.insert(name, value);
            }
            None => others.push(value),
        }
    }
    for value in others.extract_if(.., of_kind(Kind::Node)).collect::<Vec<_>>() {
        match meta::readable_name(Kind::Node, &value) {
            Some(ObjectName { name, namespace: _ }) => drop(nodes.insert(name, value)),
            None => others.push(value),
        }
    }
    let named_by_others = others.iter().filter_map(|value| meta::readable_name(Kind::of(value)?, value));
    let referred: BTreeSet<String> =
        pods.keys().cloned().chain(named_by_others).map(|ObjectName { namespace, name: _ }| namespace).collect();
    for name in referred.into_iter().filter(|name| crate::syntax::dns_label(name).is_ok()) {
        namespaces.entry(name.clone()).or_insert_with(|| {
            json!({
                "apiVersion": Kind::Namespace.api_version(),
                "kind": Kind::Namespace.name(),
                "metadata": { "name": name, "labels": { NAMESPACE_NAME_LABEL: name } },
            })
        });
    }
    if !options.node_addresses.is_empty() {
        let internal = |address: &IpAddr| json!({ "type": "InternalIP", "address": address });
        let addresses: Vec<Value> = options.node_addresses.iter().map(internal).collect();
        nodes.entry(options.node.clone()).or_insert_with(|| {
            json!({
                "apiVersion": Kind::Node.api_version(),
                "kind": Kind::Node.name(),
                "metadata": { "name": options.node },
                "status": { "addresses": addresses },
            })
        });
    }
    objects.extend(namespaces.into_values());
    objects.extend(nodes.into_values());
    objects.extend(pods.into_values());
    objects.extend(others);
}

/// What the namespace controller does. Labels that cannot be read are left for the decoder to refuse.
fn add_name_label(namespace: &mut Value, name: &str) {
    let labels = member(namespace, "metadata").entry("labels").or_insert(Value::Null);
    if labels.is_null() {
        *labels = json!({});
    }
    if let Value::Object(labels) = labels {
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), json!(name));
    }
}

fn default_namespace(value: &mut Value) {
    if let Some(kind) = Kind::of(value).filter(|kind| kind.is_namespaced())
        && let Some(name) = meta::readable_name(kind, value)
    {
        member(value, "metadata").insert("namespace".to_owned(), json!(name.namespace));
    }
}

fn same_object(one: &Value, other: &Value) -> bool {
    let identity = |value: &Value| {
        let kind = Kind::of(value)?;
        Some((kind, meta::readable_name(kind, value)?))
    };
    identity(one).is_some_and(|identified| identity(other) == Some(identified))
}

/// A member that is an object; made one if it is null or missing. Anything else has been refused by the decoder
/// before, and would be replaced.
fn member<'v>(value: &'v mut Value, name: &str) -> &'v mut Map<String, Value> {
    let member = as_object(value).entry(name).or_insert(Value::Null);
    as_object(member)
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    loop {
        match value {
            Value::Object(members) => return members,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => *value = json!({}),
        }
    }
}

#[cfg(test)]
mod tests;
