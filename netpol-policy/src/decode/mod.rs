//! From JSON to the [`crate::model`]: the API server's own defaulting and validation, so that an object from a file
//! means exactly what it would mean after `kubectl apply`, and an object from the API server means it a second time.
//!
//! [`flatten`] takes lists apart, [`kind_ignored`] tells what is none of our business, [`object`] decodes the rest or
//! says which field is wrong ([`Rejected`]). A NetworkPolicy that cannot be read still says whom it meant to isolate
//! (decision D15). [`crate::workloads`] turns a folder of manifests into what an API server would show of it.
//!
//! Fields that are not looked at are not checked, and unknown ones are no error: a newer API server must not blind us.

mod addresses;
mod cluster;
pub(crate) mod field;
pub(crate) mod meta;
mod pod;
pub(crate) mod policy;
mod service;
pub(crate) mod time;

use std::collections::VecDeque;

use serde_json::Value;

pub use self::addresses::{parse_address, parse_cidr};
pub use self::cluster::NAMESPACE_NAME_LABEL;
use self::field::{Field, FieldError};
pub use self::meta::DEFAULT_NAMESPACE;
pub use self::pod::ADDRESS_CHECK_ANNOTATION;
pub use self::service::SERVICE_NAME_LABEL;
use crate::model::{Cluster, EndpointSlice, Namespace, Node, ObjectName, Pod, Policy, Protocol, Service, ServiceCidr};

/// The kinds that decide verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1 Namespace`.
    Namespace,
    /// `v1 Pod`.
    Pod,
    /// `networking.k8s.io/v1 NetworkPolicy`.
    Policy,
    /// `v1 Service`.
    Service,
    /// `v1 Node`.
    Node,
    /// `discovery.k8s.io/v1 EndpointSlice`.
    EndpointSlice,
    /// `networking.k8s.io/v1 ServiceCIDR`, which servers have from 1.33 on.
    ServiceCidr,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Namespace, Self::Pod, Self::Policy, Self::Service, Self::Node, Self::EndpointSlice, Self::ServiceCidr];

    /// The API's name of the kind.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Policy => "NetworkPolicy",
            Self::Service => "Service",
            Self::Node => "Node",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }

    /// The API's `apiVersion` of the kind.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Pod | Self::Service | Self::Node => "v1",
            Self::Policy | Self::ServiceCidr => "networking.k8s.io/v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
        }
    }

    /// Whether its objects live in namespaces.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        match self {
            Self::Pod | Self::Policy | Self::Service | Self::EndpointSlice => true,
            Self::Namespace | Self::Node | Self::ServiceCidr => false,
        }
    }

    /// The kind of an object, if it is one of ours. Other groups have kinds of the same name
    /// (`crd.projectcalico.org NetworkPolicy`), so the group counts; the group `extensions` once had NetworkPolicy and
    /// whoever still writes it means ours. Without `apiVersion`, as in items of a typed list, the name decides.
    pub(crate) fn of(object: &Value) -> Option<Self> {
        let name = object.get("kind")?.as_str()?;
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == name)?;
        let ours = match object.get("apiVersion") {
            Some(Value::String(version)) => match kind {
                Self::Policy => matches!(group(version), "networking.k8s.io" | "extensions"),
                Self::EndpointSlice => group(version) == "discovery.k8s.io",
                Self::ServiceCidr => group(version) == "networking.k8s.io",
                Self::Namespace | Self::Pod | Self::Service | Self::Node => group(version).is_empty(),
            },
            Some(_) | None => true,
        };
        ours.then_some(kind)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

pub(crate) fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// A decoded object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Namespace.
    Namespace(Namespace),
    /// A Pod.
    Pod(Pod),
    /// A NetworkPolicy.
    Policy(Policy),
    /// A Service.
    Service(Service),
    /// A Node.
    Node(Node),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A ServiceCIDR.
    ServiceCidr(ServiceCidr),
}

impl Cluster {
    /// Adds an object, or replaces the one of its kind and name.
    pub fn insert(&mut self, object: Object) {
        match object {
            Object::Namespace(it) => drop(self.namespaces.insert(it.name.clone(), it)),
            Object::Pod(it) => drop(self.pods.insert(it.name.clone(), it)),
            Object::Policy(it) => drop(self.policies.insert(it.name.clone(), it)),
            Object::Service(it) => drop(self.services.insert(it.name.clone(), it)),
            Object::Node(it) => drop(self.nodes.insert(it.name.clone(), it)),
            Object::EndpointSlice(it) => drop(self.slices.insert(it.name.clone(), it)),
            Object::ServiceCidr(it) => drop(self.service_cidrs.insert(it.name.clone(), it)),
        }
    }
}

impl Object {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Pod(_) => Kind::Pod,
            Self::Policy(_) => Kind::Policy,
            Self::Service(_) => Kind::Service,
            Self::Node(_) => Kind::Node,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
        }
    }

    /// Its name; without namespace for cluster-scoped kinds.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        match self {
            Self::Namespace(Namespace { name, .. })
            | Self::Node(Node { name, .. })
            | Self::ServiceCidr(ServiceCidr { name, .. }) => ObjectName::new("", name),
            Self::Pod(Pod { name, .. })
            | Self::Policy(Policy { name, .. })
            | Self::Service(Service { name, .. })
            | Self::EndpointSlice(EndpointSlice { name, .. }) => name.clone(),
        }
    }
}

/// An object that the API server would not have accepted, or that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {field}: {message}", self.subject())]
pub struct Rejected {
    /// Its kind as written, or `object` if it has none.
    pub kind: String,
    /// Namespace and name, if readable.
    pub name: Option<ObjectName>,
    /// Path of the field, such as `spec.ingress[0].from[1].ipBlock.cidr`; the first one that is wrong.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// What a NetworkPolicy with no last good form is enforced as (D15): no rules, for what its podSelector selects
    /// (the namespace, if that is what cannot be read), in its policyTypes (both, if unreadable). `None` for other
    /// kinds, and where namespace or name are unreadable.
    pub isolate: Option<Policy>,
}

impl Rejected {
    fn subject(&self) -> String {
        match &self.name {
            Some(name) => format!("{} {name}", self.kind),
            None => self.kind.clone(),
        }
    }

    pub(crate) fn new(
        kind: impl Into<String>,
        name: Option<ObjectName>,
        FieldError { field, message }: FieldError,
    ) -> Self {
        let field = if field.is_empty() { "(root)".to_owned() } else { field };
        Self { kind: kind.into(), name, field, message, isolate: None }
    }
}

/// Whether a value is none of our business: another kind than ours, a list of them aside, or an empty YAML document.
/// What has no readable kind is not ignored: it may have been meant for us.
#[must_use]
pub fn kind_ignored(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(members) => match members.get("kind") {
            Some(Value::String(kind)) => {
                let of_ours = |item: &str| item.is_empty() || Kind::ALL.into_iter().any(|kind| kind.name() == item);
                !kind.is_empty() && Kind::of(value).is_none() && !kind.strip_suffix("List").is_some_and(of_ours)
            }
            Some(_) | None => false,
        },
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => false,
    }
}

/// Takes `List`, `PodList` and the like apart, nested ones too; anything else is returned as it is. The items of a
/// typed list do not bear `kind` and `apiVersion`, so they inherit both.
#[must_use]
pub fn flatten(value: Value) -> Vec<Value> {
    let mut flat = Vec::new();
    let mut queue = VecDeque::from([value]);
    while let Some(value) = queue.pop_front() {
        match take_items(value) {
            Ok(items) => {
                for item in items.into_iter().rev() {
                    queue.push_front(item);
                }
            }
            Err(value) => flat.push(value),
        }
    }
    flat
}

/// The items of a list, or the value itself if it is no list.
fn take_items(mut value: Value) -> Result<Vec<Value>, Value> {
    let Some(item_kind) = value.get("kind").and_then(Value::as_str).and_then(|kind| kind.strip_suffix("List")) else {
        return Err(value);
    };
    let item_kind = item_kind.to_owned();
    let version = value.get("apiVersion").cloned();
    let mut items = match value.get_mut("items") {
        Some(Value::Array(items)) => std::mem::take(items),
        Some(Value::Null) => Vec::new(),
        // A list without items is an empty one; an unreadable one is left for the decoder to refuse.
        None => Vec::new(),
        Some(_) => return Err(value),
    };
    if !item_kind.is_empty() {
        for item in &mut items {
            if let Value::Object(members) = item {
                members.entry("kind").or_insert_with(|| Value::String(item_kind.clone()));
                if let Some(version) = &version {
                    members.entry("apiVersion").or_insert_with(|| version.clone());
                }
            }
        }
    }
    Ok(items)
}

/// Decodes an object that names its kind.
#[expect(clippy::result_large_err, reason = "a decoded object is as large as the error")]
pub fn object(value: &Value) -> Result<Object, Rejected> {
    if let Some(kind) = Kind::of(value) {
        return object_of(kind, value);
    }
    let root = Field::root(value);
    let kind = match root.member("kind").and_then(|field| field.filled_string().map(|kind| kind.map(str::to_owned))) {
        Ok(Some(kind)) => kind,
        Ok(None) => {
            let error = FieldError { field: "kind".to_owned(), message: "is required".to_owned() };
            return Err(Rejected::new("object", meta::readable_name(Kind::Pod, value), error));
        }
        Err(error) => return Err(Rejected::new("object", None, error)),
    };
    let message = if kind.ends_with("List") { "must be a list" } else { "is not a kind that decides verdicts" };
    let field = if kind.ends_with("List") { "items" } else { "kind" };
    let error = FieldError { field: field.to_owned(), message: message.to_owned() };
    Err(Rejected::new(kind, meta::readable_name(Kind::Pod, value), error))
}

/// Decodes an object whose kind the caller knows, such as an item of a typed list or of a watch.
#[expect(clippy::result_large_err, reason = "a decoded object is as large as the error")]
pub fn object_of(kind: Kind, value: &Value) -> Result<Object, Rejected> {
    decode(kind, value).map_err(|error| {
        let name = meta::readable_name(kind, value);
        let isolate = match kind {
            Kind::Policy => name.clone().map(|name| policy::isolation(name, value)),
            Kind::Namespace | Kind::Pod | Kind::Service | Kind::Node | Kind::EndpointSlice | Kind::ServiceCidr => None,
        };
        Rejected { isolate, ..Rejected::new(kind.name(), name, error) }
    })
}

fn decode(kind: Kind, value: &Value) -> Result<Object, FieldError> {
    let root = Field::root(value);
    check_version(kind, &root)?;
    let meta = meta::decode(kind, &root)?;
    Ok(match kind {
        Kind::Namespace => Object::Namespace(cluster::namespace(meta)),
        Kind::Pod => Object::Pod(pod::decode(meta, &root)?),
        Kind::Policy => Object::Policy(policy::decode(meta, &root)?),
        Kind::Service => Object::Service(service::service(meta, &root)?),
        Kind::Node => Object::Node(cluster::node(meta, &root)?),
        Kind::EndpointSlice => Object::EndpointSlice(service::endpoint_slice(meta, &root)?),
        Kind::ServiceCidr => Object::ServiceCidr(service::service_cidr(meta, &root)?),
    })
}

fn check_version(kind: Kind, root: &Field<'_>) -> Result<(), FieldError> {
    let field = root.member("apiVersion")?;
    match field.filled_string()? {
        Some(version) if version != kind.api_version() => {
            Err(field.error(format!("{version} is not served for {kind}, write {}", kind.api_version())))
        }
        Some(_) | None => Ok(()),
    }
}

/// A `protocol` field; absent is TCP (A9, A10).
fn protocol(field: &Field<'_>) -> Result<Protocol, FieldError> {
    match field.string()? {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(field.error(format!("must be TCP, UDP or SCTP, not {other:?}"))),
    }
}

#[cfg(test)]
mod tests;
