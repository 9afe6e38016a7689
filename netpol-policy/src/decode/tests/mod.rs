//! Decoding against the API's rules, point by point. The ids (A1, P9, …) number the points of NetworkPolicy v1 that an
//! implementation can get wrong: A defaulting and selectors, P ports, B blocks, W pods and nodes.

mod objects;
mod policies;
mod properties;
mod services;

use serde_json::{Value, json};

use super::*;
use crate::model::{NamespaceScope, Operator, Peer, PortMatch, PortSpec, Requirement, Rule, Selector};

/// A policy `shop/p` of this spec.
fn manifest(spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "namespace": "shop", "name": "p" },
        "spec": spec,
    })
}

#[track_caller]
fn policy(spec: Value) -> Policy {
    match object(&manifest(spec)) {
        Ok(Object::Policy(policy)) => policy,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn rejected(spec: Value) -> Rejected {
    match object(&manifest(spec.clone())) {
        Err(rejected) => rejected,
        Ok(object) => panic!("{spec} was accepted: {object:?}"),
    }
}

/// The only ingress rule of a policy with this `ingress` entry.
#[track_caller]
fn rule(entry: Value) -> Rule {
    let Policy { ingress, .. } = policy(json!({ "podSelector": {}, "ingress": [entry] }));
    let mut rules = ingress.expect("ingress");
    assert_eq!(rules.len(), 1);
    rules.remove(0)
}

#[track_caller]
fn peer(entry: Value) -> Peer {
    let mut peers = rule(json!({ "from": [entry] })).peers.expect("from");
    assert_eq!(peers.len(), 1);
    peers.remove(0)
}

#[track_caller]
fn port(entry: Value) -> PortMatch {
    let mut ports = rule(json!({ "ports": [entry] })).ports.expect("ports");
    assert_eq!(ports.len(), 1);
    ports.remove(0)
}

#[track_caller]
fn peer_error(entry: Value) -> String {
    rejected(json!({ "ingress": [{}, { "from": [{ "podSelector": {} }, entry] }] })).field
}

#[track_caller]
fn port_error(entry: Value) -> String {
    rejected(json!({ "egress": [{ "ports": [entry] }] })).field
}

fn labelled(key: &str, value: &str) -> Selector {
    Selector::new(vec![Requirement { key: key.to_owned(), operator: Operator::In(vec![value.to_owned()]) }])
}
