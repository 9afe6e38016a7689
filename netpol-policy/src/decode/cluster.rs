//! Namespaces and Nodes.

use super::addresses::parse_address;
use super::field::{Field, FieldError};
use super::meta::Meta;
use crate::model::{Namespace, Node};

/// Label that the control plane sets on every namespace, to its name, whatever the manifest says (A15).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) fn namespace(meta: Meta) -> Namespace {
    let Meta { name, uid: _, mut labels, annotations: _ } = meta;
    labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.name.clone());
    Namespace { name: name.name, labels }
}

/// An address that cannot be read is left out: cloud providers put what they like there, and the rest of the node's
/// addresses must not be lost for it.
pub(super) fn node(meta: Meta, object: &Field<'_>) -> Result<Node, FieldError> {
    let Meta { name, uid: _, labels: _, annotations: _ } = meta;
    let status = object.member("status")?;
    let mut addresses = Vec::new();
    let list = status.member("addresses")?;
    for entry in list.items()? {
        let kind = entry.member("type")?;
        if !matches!(kind.string()?, Some("InternalIP" | "ExternalIP")) {
            continue;
        }
        let field = entry.member("address")?;
        if let Some(address) = field.string()?.and_then(parse_address)
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    Ok(Node { name: name.name, addresses })
}
