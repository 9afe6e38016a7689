//! `metadata`, common to all kinds.

use serde_json::Value;

use super::Kind;
use super::field::{Field, FieldError};
use crate::model::{Labels, ObjectName};
use crate::syntax;

/// Namespace of an object that names none, as `kubectl` sends it.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What `metadata` says.
pub(super) struct Meta {
    pub(super) name: ObjectName,
    pub(super) uid: String,
    pub(super) labels: Labels,
    pub(super) annotations: Labels,
}

/// Namespace and name, if both can be read, valid or not: enough to say whom an error is about.
pub(crate) fn readable_name(kind: Kind, object: &Value) -> Option<ObjectName> {
    let metadata = object.get("metadata")?;
    let name = metadata.get("name")?.as_str().filter(|name| !name.is_empty())?;
    let namespace = if kind.is_namespaced() {
        match metadata.get("namespace") {
            None | Some(Value::Null) => DEFAULT_NAMESPACE,
            Some(Value::String(namespace)) if namespace.is_empty() => DEFAULT_NAMESPACE,
            Some(Value::String(namespace)) => namespace,
            Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => return None,
        }
    } else {
        ""
    };
    Some(ObjectName::new(namespace, name))
}

/// Decodes and validates `metadata`.
pub(super) fn decode(kind: Kind, object: &Field<'_>) -> Result<Meta, FieldError> {
    let metadata = object.member("metadata")?;
    let name_field = metadata.member("name")?;
    let name = name_field.filled_string()?.ok_or_else(|| name_field.error("is required"))?;
    let checked = match kind {
        Kind::Namespace | Kind::Service => syntax::dns_label(name),
        Kind::Pod | Kind::Policy | Kind::Node | Kind::EndpointSlice | Kind::ServiceCidr => syntax::dns_subdomain(name),
    };
    checked.map_err(|problem| name_field.error(problem))?;
    let namespace = if kind.is_namespaced() {
        let field = metadata.member("namespace")?;
        let namespace = field.filled_string()?.unwrap_or(DEFAULT_NAMESPACE);
        syntax::dns_label(namespace).map_err(|problem| field.error(problem))?;
        namespace
    } else {
        ""
    };
    let label_field = metadata.member("labels")?;
    let labels = label_field.string_map()?;
    for (key, value) in label_field.entries()? {
        syntax::label_key(key).map_err(|problem| value.error(problem))?;
        syntax::label_value(value.string()?.unwrap_or_default()).map_err(|problem| value.error(problem))?;
    }
    Ok(Meta {
        name: ObjectName::new(namespace, name),
        uid: metadata.member("uid")?.string()?.unwrap_or_default().to_owned(),
        labels,
        annotations: metadata.member("annotations")?.string_map()?,
    })
}
