//! What does not fit, and what stands in for it.

use std::net::IpAddr;

use crate::model::ObjectName;

/// What was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        }
        write!(f, " in map {map}")?;
        for (position, object) in objects.iter().enumerate() {
            write!(f, "{}{object}", if position == 0 { " (" } else { ", " })?;
        }
        if objects.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}
