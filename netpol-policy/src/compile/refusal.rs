//! What does not fit, and what stands in for it.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::model::{ObjectName, Protocol};

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// An endpoint's policy set. The endpoint keeps its set if that permits no more than the new one, else it gets the
    /// deny-all set.
    PolicySet {
        /// Endpoint number.
        endpoint: u32,
    },
    /// An address's class. The address keeps its class if that is given no more than the new one, else it gets the
    /// class of the blocks that contain it.
    Class(IpAddr),
    /// An address of an endpoint: packets from and to it are dropped.
    EndpointAddress {
        /// Endpoint number.
        endpoint: u32,
        /// The address.
        address: IpAddr,
    },
    /// An endpoint number beyond the size of the maps; the endpoint stays pending.
    Endpoint(u32),
    /// An address and port that a proxy rewrites. It is judged as it stands, and what passes by where it really goes.
    Service {
        /// The address; `None` for every address of this node.
        address: Option<IpAddr>,
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Option<Protocol>,
    },
    /// A range that ClusterIPs are taken from. An address in it that no Service has is judged as it stands.
    ServiceRange(IpNet),
}

/// Something that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What.
    pub what: Refused,
    /// Objects that it comes from.
    pub objects: Vec<ObjectName>,
    /// The map that is full, or of which a namespace would hold more than half.
    pub map: &'static str,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, objects, map } = self;
        match what {
            Refused::PolicySet { endpoint } => write!(f, "policies of endpoint {endpoint}")?,
            Refused::Class(address) => write!(f, "class of {address}")?,
            Refused::EndpointAddress { endpoint, address } => write!(f, "address {address} of endpoint {endpoint}")?,
            Refused::Endpoint(endpoint) => write!(f, "endpoint {endpoint}")?,
            Refused::Service { address, port, protocol } => {
                let protocol = protocol.map_or("", Protocol::name);
                match address {
                    Some(address) => write!(f, "service at {}/{protocol}", SocketAddr::new(*address, *port))?,
                    None => write!(f, "service at port {port}/{protocol} of this node")?,
                }
            }
            Refused::ServiceRange(range) => write!(f, "service range {range}")?,
        }
        write!(f, " in map {map}")?;
        for (position, object) in objects.iter().enumerate() {
            write!(f, "{}{object}", if position == 0 { " (" } else { ", " })?;
        }
        if objects.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}
