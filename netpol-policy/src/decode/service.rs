//! Services, EndpointSlices and ServiceCIDRs, as far as proxies look at them.

use std::net::IpAddr;

use super::addresses::{parse_address, parse_cidr};
use super::field::{Field, FieldError};
use super::meta::Meta;
use super::protocol;
use crate::model::{EndpointPort, EndpointSlice, Service, ServiceCidr, ServicePort, TargetPort};
use crate::syntax;

/// Label by which an EndpointSlice names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

pub(super) fn service(meta: Meta, object: &Field<'_>) -> Result<Service, FieldError> {
    let Meta { name, uid: _, labels: _, annotations: _ } = meta;
    let spec = object.member("spec")?;
    let mut cluster_addresses = Vec::new();
    let list = spec.member("clusterIPs")?;
    for item in list.items()? {
        address(&item, &mut cluster_addresses)?;
    }
    address(&spec.member("clusterIP")?, &mut cluster_addresses)?;
    let mut addresses = cluster_addresses.clone();
    let external_addresses = spec.member("externalIPs")?;
    for item in external_addresses.items()? {
        address(&item, &mut addresses)?;
    }
    let status = object.member("status")?;
    let balancer = status.member("loadBalancer")?;
    // Those with ipMode Proxy too: what is deferred and not rewritten is judged by the same address a hook later.
    let entries = balancer.member("ingress")?;
    for entry in entries.items()? {
        address(&entry.member("ip")?, &mut addresses)?;
    }
    let is_external_name = spec.member("type")?.string()? == Some("ExternalName");
    // Proxies pass by what has no cluster address, whatever else it has.
    if is_external_name || cluster_addresses.is_empty() {
        addresses.clear();
    }
    let mut ports = Vec::new();
    let port_list = spec.member("ports")?;
    for entry in port_list.items()? {
        ports.push(service_port(&entry)?);
    }
    Ok(Service { name, addresses, ports, selector: spec.member("selector")?.string_map()? })
}

/// `None` is the API's word for a headless Service.
fn address(field: &Field<'_>, addresses: &mut Vec<IpAddr>) -> Result<(), FieldError> {
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

fn service_port(entry: &Field<'_>) -> Result<ServicePort, FieldError> {
    let name_field = entry.member("name")?;
    let name = name_field.filled_string()?.unwrap_or_default();
    if !name.is_empty() {
        syntax::dns_label(name).map_err(|problem| name_field.error(problem))?;
    }
    let port_field = entry.member("port")?;
    let port = port_field.port()?.ok_or_else(|| port_field.error("is required"))?;
    Ok(ServicePort {
        name: name.to_owned(),
        protocol: protocol(&entry.member("protocol")?)?,
        port,
        node_port: entry.member("nodePort")?.port_or_zero()?.unwrap_or_default(),
        target: target_port(&entry.member("targetPort")?, port)?,
    })
}

/// An `IntOrString`. Unset, which is also sent as 0 or as an empty string, it is the Service's own port.
fn target_port(field: &Field<'_>, port: u16) -> Result<TargetPort, FieldError> {
    if field.value().is_string() {
        return match field.filled_string()? {
            None => Ok(TargetPort::Number(port)),
            Some(name) => {
                syntax::port_name(name).map_err(|problem| field.error(problem))?;
                Ok(TargetPort::Named(name.to_owned()))
            }
        };
    }
    Ok(TargetPort::Number(field.port_or_zero()?.unwrap_or(port)))
}

pub(super) fn endpoint_slice(meta: Meta, object: &Field<'_>) -> Result<EndpointSlice, FieldError> {
    let Meta { name, uid: _, mut labels, annotations: _ } = meta;
    // Type FQDN is deprecated, and no proxy resolves names.
    let is_fqdn = object.member("addressType")?.string()? == Some("FQDN");
    let mut addresses = Vec::new();
    let endpoints = object.member("endpoints")?;
    for endpoint in endpoints.items()? {
        let list = endpoint.member("addresses")?;
        if is_fqdn || !may_be_picked(&endpoint.member("conditions")?)? {
            continue;
        }
        for item in list.items()? {
            address(&item, &mut addresses)?;
        }
    }
    let mut ports = Vec::new();
    let port_list = object.member("ports")?;
    for entry in port_list.items()? {
        let name = entry.member("name")?.string()?.unwrap_or_default().to_owned();
        let protocol = protocol(&entry.member("protocol")?)?;
        if let Some(port) = entry.member("port")?.port()? {
            ports.push(EndpointPort { name, protocol, port });
        }
    }
    let service = labels.remove(SERVICE_NAME_LABEL).unwrap_or_default();
    Ok(EndpointSlice { name, service, addresses, ports })
}

/// Ready ones are picked; where none is ready, those that are terminating and still serve. An unknown condition is to
/// be taken as `ready: true`, and `serving` as `ready` is.
fn may_be_picked(conditions: &Field<'_>) -> Result<bool, FieldError> {
    let condition = |name: &str| -> Result<Option<bool>, FieldError> {
        let field = conditions.member(name)?;
        if field.is_absent() { Ok(None) } else { field.boolean().map(Some) }
    };
    let ready = condition("ready")?.unwrap_or(true);
    Ok(ready || condition("serving")?.unwrap_or(ready))
}

pub(super) fn service_cidr(meta: Meta, object: &Field<'_>) -> Result<ServiceCidr, FieldError> {
    let Meta { name, uid: _, labels: _, annotations: _ } = meta;
    let spec = object.member("spec")?;
    let list = spec.member("cidrs")?;
    let mut cidrs = Vec::new();
    for item in list.items()? {
        let text = item.string()?.unwrap_or_default();
        let cidr = parse_cidr(text)
            .ok_or_else(|| item.error(format!("must be a CIDR such as 10.96.0.0/16 or fd00::/108, not {text:?}")))?;
        cidrs.push(cidr);
    }
    Ok(ServiceCidr { name: name.name, cidrs })
}
