//! Namespaces and Nodes.

use std::net::IpAddr;

use super::addresses::{parse_address, parse_cidr};
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

/// Where Flannel says at which address other nodes reach its overlay, which need not be one that the kubelet reports
/// (its options `--iface` and `--public-ip`, and the annotations that overwrite them).
const FLANNEL_ADDRESSES: [&str; 4] = [
    "flannel.alpha.coreos.com/public-ip",
    "flannel.alpha.coreos.com/public-ipv6",
    "flannel.alpha.coreos.com/public-ip-overwrite",
    "flannel.alpha.coreos.com/public-ipv6-overwrite",
];

/// An address that cannot be read is left out: cloud providers put what they like there, and the rest of the node's
/// addresses must not be lost for it.
pub(super) fn node(meta: Meta, object: &Field<'_>) -> Result<Node, FieldError> {
    let Meta { name, uid: _, labels: _, annotations } = meta;
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
    let announced =
        FLANNEL_ADDRESSES.iter().filter_map(|key| annotations.get(*key)).filter_map(|text| parse_address(text));
    let mut overlay: Vec<IpAddr> = announced.collect();
    let mut broadcasts = Vec::new();
    let spec = object.member("spec")?;
    let ranges = spec.member("podCIDRs")?;
    for range in ranges.items()? {
        if let Some(range) = range.string()?.and_then(parse_cidr) {
            overlay.push(range.network());
            overlay.extend(range.hosts().find(|address| *address != range.network()));
            // Below that there is none (RFC 3021).
            if range.addr().is_ipv4() && range.prefix_len() < 31 {
                broadcasts.push(range.broadcast());
            }
        }
    }
    overlay.sort_unstable();
    overlay.dedup();
    overlay.retain(|address| !addresses.contains(address));
    broadcasts.retain(|address| !addresses.contains(address));
    Ok(Node { name: name.name, addresses, overlay, broadcasts })
}
