//! `v1 Pod`, as far as it decides verdicts.

use std::net::IpAddr;

use super::addresses::parse_address;
use super::field::{Field, FieldError};
use super::meta::Meta;
use super::{protocol, time};
use crate::model::{ContainerPort, HostPort, Phase, Pod};
use crate::syntax;

/// Opts a pod out of the source and destination address checks (decision D8), when set to `off`.
pub const ADDRESS_CHECK_ANNOTATION: &str = "netpol-agent.dev/address-check";

pub(super) fn decode(meta: Meta, object: &Field<'_>) -> Result<Pod, FieldError> {
    let Meta { name, uid, labels, annotations } = meta;
    let spec = object.member("spec")?;
    let status = object.member("status")?;
    // deletionTimestamp is not looked at: a terminating pod runs on and keeps its addresses (W7).
    let phase = match status.member("phase")?.string()? {
        Some("Succeeded" | "Failed") => Phase::Finished,
        Some(_) | None => Phase::Live,
    };
    let start_field = status.member("startTime")?;
    let started = match start_field.filled_string()? {
        Some(text) => {
            Some(time::seconds_of_epoch(text).ok_or_else(|| start_field.error("must be an RFC 3339 timestamp"))?)
        }
        None => None,
    };
    let host_network = spec.member("hostNetwork")?.boolean()?;
    let Ports { ports, mut host_ports } = ports(&spec)?;
    if host_network {
        host_ports.clear();
    }
    Ok(Pod {
        name,
        uid,
        labels,
        node: spec.member("nodeName")?.string()?.unwrap_or_default().to_owned(),
        host_network,
        phase,
        addresses: addresses(&status)?,
        ports,
        host_ports,
        address_check_off: annotations.get(ADDRESS_CHECK_ANNOTATION).is_some_and(|value| value == "off"),
        started,
    })
}

/// `podIPs`, all of them (B9); `podIP`, which is a copy of its first, only where it stands alone.
fn addresses(status: &Field<'_>) -> Result<Vec<IpAddr>, FieldError> {
    let mut addresses = Vec::new();
    let mut add = |field: Field<'_>| -> Result<(), FieldError> {
        if let Some(text) = field.filled_string()? {
            let address =
                parse_address(text).ok_or_else(|| field.error(format!("must be an IP address, not {text:?}")))?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Ok(())
    };
    let all = status.member("podIPs")?;
    for entry in all.items()? {
        add(entry.member("ip")?)?;
    }
    if all.items()?.len() == 0 {
        add(status.member("podIP")?)?;
    }
    Ok(addresses)
}

/// What containers declare.
#[derive(Default)]
struct Ports {
    ports: Vec<ContainerPort>,
    host_ports: Vec<HostPort>,
}

/// Ports of containers and of restartable init containers, which run beside them (P7).
fn ports(spec: &Field<'_>) -> Result<Ports, FieldError> {
    let mut ports = Ports::default();
    let containers = spec.member("containers")?;
    for container in containers.items()? {
        container_ports(&container, &mut ports)?;
    }
    let init_containers = spec.member("initContainers")?;
    for container in init_containers.items()? {
        if container.member("restartPolicy")?.string()? == Some("Always") {
            container_ports(&container, &mut ports)?;
        }
    }
    Ok(ports)
}

fn container_ports(container: &Field<'_>, Ports { ports, host_ports }: &mut Ports) -> Result<(), FieldError> {
    let list = container.member("ports")?;
    for entry in list.items()? {
        let name_field = entry.member("name")?;
        let name = name_field.filled_string()?;
        if let Some(name) = name {
            syntax::port_name(name).map_err(|problem| name_field.error(problem))?;
        }
        let number_field = entry.member("containerPort")?;
        let port = number_field.port()?.ok_or_else(|| number_field.error("is required"))?;
        let protocol = protocol(&entry.member("protocol")?)?;
        if let Some(host_port) = entry.member("hostPort")?.port_or_zero()? {
            let address = host_address(&entry.member("hostIP")?)?;
            host_ports.push(HostPort { address, protocol, port: host_port, container_port: port });
        }
        ports.push(ContainerPort { name: name.map(str::to_owned), protocol, port });
    }
    Ok(())
}

fn host_address(field: &Field<'_>) -> Result<Option<IpAddr>, FieldError> {
    let Some(text) = field.filled_string()? else { return Ok(None) };
    let address = parse_address(text).ok_or_else(|| field.error(format!("must be an IP address, not {text:?}")))?;
    Ok(Some(address).filter(|address| !address.is_unspecified()))
}
