//! What the property tests share: cells, answers, and a compiler together with the maps it writes.

#![allow(
    dead_code,
    unused_imports,
    clippy::allow_attributes,
    reason = "every test binary uses its own part of this module"
)]

use std::net::IpAddr;

use netpol_common::abi::{CLASS_ANY, PROTOCOL_ANY, PortKeyData, RuleKey, ServiceKey, rule_action};
use netpol_common::abi::{SET_ALLOW_ALL, SET_DENY_ALL, SET_PENDING};
use netpol_common::tables::Tables as _;
use netpol_policy::compile::memory::MemoryTables;
pub(crate) use netpol_policy::testing::{Cell, Meaning, Node, answer, cells, expected, local_backends, verdict};

/// Number of generated cases: `NETPOL_PROPERTY_CASES`, else the default.
pub(crate) fn cases(default: u64) -> u64 {
    std::env::var("NETPOL_PROPERTY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default)
}

/// First seed: `NETPOL_PROPERTY_SEED`, else 0.
pub(crate) fn first_seed() -> u64 {
    std::env::var("NETPOL_PROPERTY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0)
}

/// What the rows say to a set and a class, however a reader came by them.
pub(crate) fn judge(tables: &MemoryTables, set: u32, class: u32, cell: &Cell) -> bool {
    match set {
        SET_ALLOW_ALL => return true,
        SET_PENDING | SET_DENY_ALL => return false,
        _ => {}
    }
    for (class, protocol) in
        [(class, cell.protocol), (class, PROTOCOL_ANY), (CLASS_ANY, cell.protocol), (CLASS_ANY, PROTOCOL_ANY)]
    {
        let key = RuleKey { set, class, direction: cell.direction() as u8, protocol, pad: 0 };
        if let Some(row) = tables.rule(&key) {
            return match row.action {
                rule_action::ALLOW => true,
                rule_action::PORTS => cell.port.is_some_and(|port| {
                    let key =
                        PortKeyData { port_set: row.port_set.to_be_bytes(), port: port.to_be_bytes(), pad: [0; 2] };
                    tables.port(&key).is_some_and(|row| row.action == rule_action::ALLOW)
                }),
                _ => false,
            };
        }
    }
    false
}

/// The key of an address, the empty text for any address of the node, and a TCP port.
pub(crate) fn service_key(address: &str, port: u16) -> ServiceKey {
    let address = match address {
        "" => [0; 16],
        text => match text.parse().unwrap() {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        },
    };
    ServiceKey { address, port: port.to_be_bytes(), protocol: 6, pad: 0 }
}
