//! Manifests that nobody wrote on purpose.

use std::net::IpAddr;
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::super::{Cell, Node, World, cells, expected, verdict};
use crate::compile::memory::MemoryTables;
use crate::compile::{Capacities, Change, Compiler, Snapshot};
use crate::decode::{self, Kind, Object, Rejected};
use crate::model::{ObjectName, Policy};

/// The namespace in which the pods are.
const NAMESPACE: &str = "shop";

/// Few packets, since all that matters is whether rules are read alike.
const PACKETS: [(u8, Option<u16>); 8] = [
    (1, None),
    (6, None),
    (6, Some(1)),
    (6, Some(80)),
    (6, Some(8080)),
    (17, Some(53)),
    (17, Some(65535)),
    (132, Some(80)),
];

/// Decodes bytes as JSON or YAML, or as a recipe by which a valid policy is spoiled; compiles what can be read of the
/// policies in it, and asks about it.
pub fn policy(data: &[u8]) {
    let value = match data {
        [0xff, recipe @ ..] => spoiled(recipe),
        _ => match written(data) {
            Some(value) => value,
            None => return,
        },
    };
    let _ignored = decode::kind_ignored(&value);
    for part in decode::flatten(value).into_iter().take(4) {
        let of_policy = decode::object_of(Kind::Policy, &part);
        let of_its_kind = decode::object(&part);
        assert_eq!(of_its_kind, decode::object(&part));
        match of_policy {
            Ok(Object::Policy(policy)) => enforce(policy),
            Ok(other) => panic!("a policy was decoded as {other:?}"),
            Err(Rejected { field, message, isolate, name, kind: _ }) => {
                assert!(!field.is_empty() && !message.is_empty());
                assert_eq!(isolate.is_some(), name.is_some(), "what has a name isolates");
                if let Some(policy) = isolate {
                    denies(&policy);
                    enforce(policy);
                }
            }
        }
        for kind in Kind::ALL {
            if let Ok(object) = decode::object_of(kind, &part) {
                assert_eq!(object.kind(), kind);
            }
        }
    }
}

fn written(data: &[u8]) -> Option<Value> {
    serde_json::from_slice(data).ok().or_else(|| {
        let options = serde_saphyr::options! { with_snippet: false };
        serde_saphyr::from_str_with_options(std::str::from_utf8(data).ok()?, options).ok()
    })
}

/// What cannot be read takes nothing but permissions away (decision D15).
fn denies(policy: &Policy) {
    let Policy { name: _, selector: _, ingress, egress } = policy;
    assert!(ingress.is_some() || egress.is_some(), "{policy:?} isolates nobody");
    assert!(ingress.iter().chain(egress).all(Vec::is_empty), "{policy:?} allows something");
}

/// Puts a policy, and no other, in force among some pods: tables and text must agree.
fn enforce(policy: Policy) {
    let Base { mut world, mut compiler, snapshot } = base().clone();
    // Wherever it was meant to be: here are pods.
    let policy = Policy { name: ObjectName::new(NAMESPACE, "fuzzed"), ..policy };
    let _none = world.cluster.policies.insert(policy.name.clone(), policy.clone());
    compiler.apply(Change::Upsert(Object::Policy(policy)));
    let plan = compiler.plan(1);
    // A policy that no map can hold is refused, and then the pod is denied more than the text says.
    let roomy = plan.refused.is_empty();
    let mut tables = MemoryTables::of_snapshot(snapshot);
    plan.ops.iter().for_each(|op| tables.apply(op));
    let endpoints: Vec<u32> = world.endpoints.keys().copied().collect();
    for cell in cells(&endpoints, &peers(&world), &PACKETS) {
        let Some(expected) = expected(&world, &cell) else { continue };
        let Cell { endpoint, egress, peer, protocol, port } = cell;
        let allowed = verdict(&tables, &cell).allowed;
        let agree = if roomy { allowed == expected } else { expected || !allowed };
        assert!(agree, "{endpoint} egress {egress} {peer} {protocol} {port:?}: {allowed}, the text says {expected}");
    }
}

fn peers(world: &World) -> Vec<IpAddr> {
    let all = world.addresses();
    let step = all.len() / 24 + 1;
    all.into_iter().step_by(step).collect()
}

/// A cluster without policies, compiled.
#[derive(Clone)]
struct Base {
    world: World,
    compiler: Compiler,
    snapshot: Snapshot,
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        // The first that has several pods of its own in the namespace, of both families.
        let has_pods = |world: &World| {
            let here = world.endpoints.values().filter_map(|endpoint| world.pod(endpoint));
            let here: Vec<_> = here.filter(|pod| pod.name.namespace == NAMESPACE).collect();
            here.len() > 1 && here.iter().any(|pod| pod.addresses.iter().any(IpAddr::is_ipv6))
        };
        let mut worlds = (0..10_000).map(World::new).filter(has_pods);
        let mut world = worlds.next().expect("a generated cluster with pods in the namespace");
        world.cluster.policies.clear();
        let mut node = Node::new(Capacities::default(), Snapshot::default());
        node.apply(world.everything());
        node.quiesce();
        let snapshot = node.tables.snapshot().clone();
        Base { world, compiler: node.compiler, snapshot }
    })
}

/// A policy with a part of every kind.
fn sample() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": NAMESPACE, "name": "fuzzed" },
        "spec": {
            "podSelector": {
                "matchLabels": { "app": "web" },
                "matchExpressions": [{ "key": "tier", "operator": "In", "values": ["front", "back"] }],
            },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [
                    { "podSelector": {}, "namespaceSelector": {} },
                    { "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.244.0.0/16"] } },
                ],
                "ports": [{ "port": 80, "endPort": 90, "protocol": "UDP" }, { "port": "http" }],
            }],
            "egress": [{
                "to": [{ "ipBlock": { "cidr": "fd00::/16" } }, { "podSelector": { "matchLabels": { "app": "db" } } }],
                "ports": [{ "port": 53, "protocol": "SCTP" }],
            }],
        },
    })
}

/// What is put into a place of [`sample`].
fn parts() -> Vec<Value> {
    let mut parts = vec![Value::Null, json!({}), json!([]), json!(true), json!("")];
    parts.extend(
        ["Ingress", "Egress", "In", "NotIn", "Exists", "DoesNotExist", "TCP", "UDP", "SCTP", "http", "dns"]
            .map(Value::from),
    );
    parts.extend(
        ["app", "tier", "web", "front", "-", "a/b/c", "HTTP", "80", "0.0.0.0/0", "::/0", "10.1.2.3/8"].map(Value::from),
    );
    parts.extend(
        ["10.244.1.0/24", "010.0.0.0/8", "::ffff:10.0.0.0/104", "fd00::/129", "169.254.169.254/32"].map(Value::from),
    );
    parts.extend([0, 1, 53, 80, 443, 8080, 65_535, 65_536, -1].map(Value::from));
    parts.extend([json!(1.5), json!(u64::MAX), json!([{}]), json!([null]), json!([[]]), json!({ "": {} })]);
    parts.extend([
        json!([{ "port": 1, "endPort": 65_535 }]),
        json!([{ "podSelector": {} }]),
        json!([{ "namespaceSelector": { "matchExpressions": [{ "key": "app", "operator": "DoesNotExist" }] } }]),
        json!({ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["10.0.0.0/9", "10.244.1.0/29"] } }),
        json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["web"] }] }),
        json!({ "ports": [{ "protocol": "TCP" }] }),
    ]);
    parts
}

/// A policy spoiled by a recipe: pairs of a place and what is put there, or nothing, which removes it.
fn spoiled(recipe: &[u8]) -> Value {
    let (mut value, parts) = (sample(), parts());
    for pair in recipe.chunks_exact(2).take(16) {
        let mut found = Vec::new();
        places(&value, "", &mut found);
        let place = &found[usize::from(pair[0]) % found.len()];
        match parts.get(usize::from(pair[1])) {
            Some(part) => value.pointer_mut(place).into_iter().for_each(|old| *old = part.clone()),
            None => remove(&mut value, place),
        }
    }
    value
}

fn remove(value: &mut Value, place: &str) {
    let Some((parent, key)) = place.rsplit_once('/') else { return };
    match value.pointer_mut(parent) {
        Some(Value::Object(members)) => drop(members.remove(key)),
        Some(Value::Array(items)) => {
            if let Some(index) = key.parse().ok().filter(|index| *index < items.len()) {
                let _item: Value = items.remove(index);
            }
        }
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) | None => {}
    }
}

/// All places in a value, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                places(item, &format!("{at}/{index}"), found);
            }
        }
        Value::Object(members) => {
            for (key, member) in members {
                places(member, &format!("{at}/{key}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
