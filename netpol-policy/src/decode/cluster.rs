//! Namespaces, Services and Nodes.

use std::net::IpAddr;

use super::addresses::parse_address;
use super::field::{Field, FieldError};
use super::meta::Meta;
use super::protocol;
use crate::model::{Namespace, Node, Service, ServicePort};

/// Label that the control plane sets on every namespace, to its name, whatever the manifest says (A15).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) fn namespace(meta: Meta) -> Namespace {
    let Meta { name, uid: _, mut labels, annotations: _ } = meta;
    labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.name.clone());
    Namespace { name: name.name, labels }
}

pub(super) fn service(meta: Meta, object: &Field<'_>) -> Result<Service, FieldError> {
    let Meta { name, uid: _, labels: _, annotations: _ } = meta;
    let spec = object.member("spec")?;
    let mut addresses = Vec::new();
    let cluster_addresses = spec.member("clusterIPs")?;
    for item in cluster_addresses.items()? {
        service_address(&item, &mut addresses)?;
    }
    service_address(&spec.member("clusterIP")?, &mut addresses)?;
    let external_addresses = spec.member("externalIPs")?;
    for item in external_addresses.items()? {
        service_address(&item, &mut addresses)?;
    }
    let status = object.member("status")?;
    let balancer = status.member("loadBalancer")?;
    let entries = balancer.member("ingress")?;
    for entry in entries.items()? {
        service_address(&entry.member("ip")?, &mut addresses)?;
    }
    let mut ports = Vec::new();
    let port_list = spec.member("ports")?;
    for entry in port_list.items()? {
        let port_field = entry.member("port")?;
        let node_port_field = entry.member("nodePort")?;
        // 0 is what an unset nodePort is sent as.
        let node_port = match node_port_field.integer()? {
            None | Some(0) => 0,
            Some(_) => node_port_field.port()?.unwrap_or_default(),
        };
        ports.push(ServicePort {
            protocol: protocol(&entry.member("protocol")?)?,
            port: port_field.port()?.ok_or_else(|| port_field.error("is required"))?,
            node_port,
        });
    }
    Ok(Service { name, addresses, ports })
}

/// `None` is the API's word for a headless Service.
fn service_address(field: &Field<'_>, addresses: &mut Vec<IpAddr>) -> Result<(), FieldError> {
    match field.filled_string()? {
        None | Some("None") => {}
        Some(text) => {
            let address =
                parse_address(text).ok_or_else(|| field.error(format!("must be an IP address, not {text:?}")))?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    Ok(())
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
