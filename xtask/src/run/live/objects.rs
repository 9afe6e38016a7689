//! From manifests to what is applied to a real API server.
//!
//! Workloads become the pods that they would make, as in the sandbox, so that a cell has the same name wherever it is
//! probed. Of a pod only that remains which policies can see: what it runs is replaced by a process that sleeps, since the
//! servers that probes talk to listen in its network namespace from outside ([`super::pods`]).

use std::collections::BTreeMap;

use netpol_policy::decode::{self, Kind, Object, Rejected};
use netpol_policy::model::{ObjectName, Phase};
use netpol_policy::workloads::{self, Assignments, ExpandOptions, Expanded};
use serde_json::{Map, Value, json};

use crate::cluster::images::AGNHOST;

/// On everything that `run` has made, so that it finds it again. Not a label: policies select by labels.
pub(super) const MARK: &str = "netpol-agent.dev/run";

/// What an object is called in the API.
pub(super) type Key = (Kind, ObjectName);

/// What the manifests ask for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// What is applied.
    pub(super) objects: BTreeMap<Key, Value>,
    /// What the API server would not accept, some with the index of its manifest.
    pub(super) refused: Vec<(Option<usize>, Rejected)>,
    /// What a real cluster does not take from manifests, in words.
    pub(super) left_out: Vec<String>,
}

/// Reads manifests.
pub(super) fn wanted(manifests: &[Value]) -> Wanted {
    // Without a node and without blocks nothing is scheduled and nothing gets an address: others do that here.
    let nowhere = ExpandOptions {
        node: String::new(),
        node_addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        started: 0,
        previous: Assignments::new(),
    };
    let Expanded { objects, rejected } = workloads::expand(manifests, &nowhere);
    let mut wanted = Wanted {
        refused: rejected.into_iter().map(|(index, rejected)| (Some(index), rejected)).collect(),
        ..Wanted::default()
    };
    let written: BTreeMap<Key, Value> = manifests.iter().cloned().flat_map(decode::flatten).filter_map(keyed).collect();
    for value in objects {
        match decode::object(&value) {
            Err(rejected) => wanted.refused.push((None, rejected)),
            Ok(object) => wanted.add(&object, value, &written),
        }
    }
    wanted
}

fn keyed(value: Value) -> Option<(Key, Value)> {
    let object = decode::object(&value).ok()?;
    Some(((object.kind(), object.name()), value))
}

impl Wanted {
    /// Adds an object as it is to be applied. `written` are the manifests: what a sandbox adds to Services and makes for
    /// them is the work of controllers.
    fn add(&mut self, object: &Object, value: Value, written: &BTreeMap<Key, Value>) {
        let key = (object.kind(), object.name());
        let mut applied = match object {
            Object::Node(_) | Object::ServiceCidr(_) => {
                self.left_out.push(format!("{} {}: the cluster has its own", key.0, key.1.name));
                return;
            }
            Object::Pod(pod) if pod.phase == Phase::Finished => {
                self.left_out.push(format!("Pod {}: no real pod begins by having ended", pod.name));
                return;
            }
            Object::Pod(_) => json!({ "metadata": value["metadata"], "spec": sleeping(&value["spec"]) }),
            Object::Namespace(_) => json!({ "metadata": value["metadata"] }),
            Object::Policy(_) | Object::Service(_) | Object::EndpointSlice(_) => match written.get(&key) {
                Some(written) => written.clone(),
                None => return,
            },
        };
        let mut metadata = Map::new();
        for field in ["labels", "annotations"] {
            if let Some(given) = applied["metadata"].get(field).filter(|given| !given.is_null()) {
                metadata.insert(field.to_owned(), given.clone());
            }
        }
        metadata.insert("name".to_owned(), json!(key.1.name));
        if key.0.is_namespaced() {
            metadata.insert("namespace".to_owned(), json!(key.1.namespace));
        }
        let mut metadata = Value::Object(metadata);
        metadata["annotations"][MARK] = json!("");
        applied["metadata"] = metadata;
        applied["apiVersion"] = json!(key.0.api_version());
        applied["kind"] = json!(key.0.name());
        if let Some(members) = applied.as_object_mut() {
            members.remove("status");
        }
        self.objects.insert(key, applied);
    }
}

/// The specification of a pod that declares the same ports and does nothing.
fn sleeping(spec: &Value) -> Value {
    let port = |port: &Value| {
        let mut kept = Map::new();
        // A port of the host's would be forwarded to a pod in which nothing listens for the kubelet.
        for field in ["name", "containerPort", "protocol"] {
            if let Some(given) = port.get(field).filter(|given| !given.is_null()) {
                kept.insert(field.to_owned(), given.clone());
            }
        }
        Value::Object(kept)
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let container = |container: &Value| {
        json!({
            "name": container["name"], "image": AGNHOST, "imagePullPolicy": "IfNotPresent", "args": ["pause"],
            "ports": list(&container["ports"]).iter().map(port).collect::<Vec<_>>(),
        })
    };
    let mut containers: Vec<Value> = list(&spec["containers"]).iter().map(container).collect();
    // Containers that run beside the others although they are started before them: their ports count.
    let beside = |container: &&Value| container["restartPolicy"] == "Always";
    containers.extend(list(&spec["initContainers"]).iter().filter(beside).map(container));
    if containers.is_empty() {
        containers.push(container(&json!({ "name": "pause" })));
    }
    json!({
        "containers": containers,
        "hostNetwork": spec["hostNetwork"].as_bool().unwrap_or(false),
        // Long enough for the container runtime to be asked before the object is gone.
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
    })
}

/// What has to be done so that `after` is applied where `before` was.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes {
    /// Gone, or to be made anew.
    pub(super) delete: Vec<Key>,
    /// New or changed.
    pub(super) apply: Vec<Value>,
}

/// Compares.
pub(super) fn changes(before: &BTreeMap<Key, Value>, after: &BTreeMap<Key, Value>) -> Changes {
    let mut changes = Changes::default();
    for (key, was) in before {
        // Hardly anything in the specification of a pod can be changed.
        let is_other_pod = |is: &Value| key.0 == Kind::Pod && is["spec"] != was["spec"];
        if after.get(key).is_none_or(is_other_pod) {
            changes.delete.push(key.clone());
        }
    }
    changes.apply = after.iter().filter(|(key, is)| before.get(*key) != Some(*is)).map(|(_, is)| is.clone()).collect();
    changes
}

/// As much of an object as names it.
pub(super) fn named((kind, name): &Key) -> Value {
    let mut metadata = json!({ "name": name.name });
    if kind.is_namespaced() {
        metadata["namespace"] = json!(name.namespace);
    }
    json!({ "apiVersion": kind.api_version(), "kind": kind.name(), "metadata": metadata })
}

/// Many objects as one.
pub(super) fn list(items: Vec<Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;
    use crate::run::manifests::Folder;

    fn example() -> Vec<Value> {
        Folder::new(&process::workspace().join("examples/payments")).read().unwrap().unwrap().values
    }

    fn deployment(replicas: u8, ports: &Value) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "namespace": "shop", "name": "web" },
            "spec": {
                "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
                "template": {
                    "metadata": { "labels": { "app": "web" }, "annotations": { "a": "b" } },
                    "spec": {
                        "nodeSelector": { "disk": "ssd" },
                        "containers": [{
                            "name": "web", "image": "registry.example/web", "ports": ports,
                            "readinessProbe": { "httpGet": { "port": 80 } },
                        }],
                    },
                },
            },
        })
    }

    fn pod(name: &str) -> Key {
        (Kind::Pod, ObjectName::new("shop", name))
    }

    #[test]
    fn every_object_of_the_example_is_applied_and_its_pods_have_the_sandboxs_names() {
        let Wanted { objects, refused, left_out } = wanted(&example());
        assert_eq!((refused, left_out), (Vec::new(), Vec::new()));
        let of = |kind: Kind| objects.keys().filter(|(own, _)| *own == kind).count();
        assert_eq!((of(Kind::Namespace), of(Kind::Pod), of(Kind::Policy)), (5, 19, 9));
        let names: Vec<String> = objects.keys().map(|(_, name)| name.to_string()).collect();
        for name in ["production/payment-api-0", "production/payment-api-1", "staging/dns-stub"] {
            assert!(names.iter().any(|own| own == name), "{name}: {names:?}");
        }
        assert!(objects.values().all(|object| object["metadata"]["annotations"][MARK] == ""));
    }

    #[test]
    fn of_a_pod_remains_what_policies_can_see() {
        let ports = json!([
            { "name": "http", "containerPort": 80, "hostPort": 8080 },
            { "containerPort": 53, "protocol": "UDP" },
        ]);
        let Wanted { objects, .. } = wanted(&[deployment(1, &ports)]);
        let object = &objects[&pod("web-0")];
        assert_eq!(object["metadata"]["labels"], json!({ "app": "web" }));
        assert_eq!(object["metadata"]["annotations"], json!({ "a": "b", MARK: "" }));
        let container = &object["spec"]["containers"][0];
        let kept = json!([{ "name": "http", "containerPort": 80 }, { "containerPort": 53, "protocol": "UDP" }]);
        assert_eq!(container["ports"], kept);
        assert_eq!(container["image"], AGNHOST);
        assert!(container.get("readinessProbe").is_none());
        for field in ["nodeName", "nodeSelector"] {
            assert!(object["spec"].get(field).is_none(), "{field}");
        }
        assert!(object.get("status").is_none() && object["metadata"].get("uid").is_none());
    }

    #[test]
    fn the_ports_of_containers_that_run_beside_the_others_count() {
        let spec = json!({
            "containers": [{ "name": "a" }],
            "initContainers": [
                { "name": "b", "restartPolicy": "Always", "ports": [{ "containerPort": 15001 }] },
                { "name": "c", "ports": [{ "containerPort": 15002 }] },
            ],
        });
        let names: Vec<Value> =
            sleeping(&spec)["containers"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn only_what_has_changed_is_applied_and_pods_with_other_ports_are_made_anew() {
        let one = json!([{ "containerPort": 80 }]);
        let before = wanted(&[deployment(2, &one)]).objects;
        assert_eq!(changes(&before, &before), Changes::default());
        let Changes { delete, apply } = changes(&before, &wanted(&[deployment(1, &one)]).objects);
        assert_eq!((delete, apply), (vec![pod("web-1")], Vec::new()));
        let Changes { delete, apply } = changes(&before, &wanted(&[deployment(2, &json!([]))]).objects);
        assert_eq!(delete, [pod("web-0"), pod("web-1")]);
        assert_eq!(apply.len(), 2);
        let mut labelled = deployment(2, &one);
        labelled["spec"]["template"]["metadata"]["labels"]["tier"] = json!("front");
        let Changes { delete, apply } = changes(&before, &wanted(&[labelled]).objects);
        assert_eq!((delete.len(), apply.len()), (0, 2));
    }

    #[test]
    fn services_are_applied_as_they_are_written() {
        let spec = json!({ "selector": { "app": "web" }, "ports": [{ "port": 80 }] });
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "shop", "name": "web", "uid": "u" },
            "spec": spec, "status": {},
        });
        let Wanted { objects, .. } = wanted(std::slice::from_ref(&service));
        let applied = &objects[&(Kind::Service, ObjectName::new("shop", "web"))];
        assert_eq!(applied["spec"], spec);
        assert!(applied.get("status").is_none() && applied["metadata"].get("uid").is_none());
    }

    #[test]
    fn nodes_and_ended_pods_are_no_business_of_manifests() {
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" } });
        let mut ended = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "shop", "name": "job" },
            "spec": { "containers": [{ "name": "a" }] },
        });
        ended["status"]["phase"] = json!("Succeeded");
        let Wanted { objects, left_out, .. } = wanted(&[node, ended]);
        assert_eq!(left_out.len(), 2);
        assert!(objects.keys().all(|(kind, _)| *kind == Kind::Namespace));
    }
}
