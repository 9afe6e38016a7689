//! What each map must look like: how the object's maps are sized, and what a pinned map is compared with.

use aya::maps::MapType;
use netpol_common::abi::{
    ACCOUNTS, AddressKey, AgentState, ClassRow, Counter, DecidedKey, DecidedRow, DigestKey, EndpointOptions,
    EndpointWord, FlowKey, FlowRow, FragmentKey, FragmentRow, InterfaceRow, PortKeyData, PortRow, REASONS, RuleKey,
    RuleRow, ServiceKey, ServiceRow, Settings, budget, names, sizes,
};

use crate::config::Config;

/// The shape of one map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Name.
    pub name: &'static str,
    /// Type.
    pub map_type: MapType,
    /// Bytes of a key. An LPM key has four bytes of prefix length in front.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Elements; bytes of a ring buffer.
    pub max_entries: u32,
}

const LPM_PREFIX: usize = 4;

const fn shape<K, V>(name: &'static str, map_type: MapType, max_entries: u32) -> Shape {
    Shape { name, map_type, key_size: size_of::<K>() as u32, value_size: size_of::<V>() as u32, max_entries }
}

const fn lpm<K, V>(name: &'static str, max_entries: u32) -> Shape {
    let key_size = (LPM_PREFIX + size_of::<K>()) as u32;
    Shape { name, map_type: MapType::LpmTrie, key_size, value_size: size_of::<V>() as u32, max_entries }
}

/// What depends on configuration.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Endpoint numbers.
    pub endpoints: u32,
    /// Confirmed flows.
    pub flows: u32,
}

impl Sizes {
    /// For maps that are there already and keep their size.
    pub const SMALLEST: Self = Self { endpoints: 1, flows: 2 };

    /// As configured.
    #[must_use]
    pub const fn of(config: &Config) -> Self {
        Self { endpoints: config.max_endpoints.get(), flows: config.max_flows.get() }
    }
}

/// The shapes of all maps.
#[must_use]
pub fn shapes(sizes: Sizes) -> Vec<Shape> {
    let Sizes { endpoints, flows } = sizes;
    let accounts = endpoints * ACCOUNTS;
    vec![
        shape::<u32, EndpointWord>(names::ENDPOINT_WORDS, MapType::Array, endpoints),
        shape::<u32, InterfaceRow>(names::INTERFACES, MapType::Hash, sizes::INTERFACES),
        shape::<AddressKey, u32>(names::ADDRESSES, MapType::Hash, sizes::ADDRESSES),
        shape::<u32, EndpointOptions>(names::OPTIONS, MapType::Array, endpoints),
        shape::<[u8; 4], ClassRow>(names::CLASS4, MapType::Hash, sizes::CLASSES),
        shape::<[u8; 16], ClassRow>(names::CLASS6, MapType::Hash, sizes::CLASSES),
        lpm::<[u8; 4], u32>(names::CIDR4, sizes::CIDRS),
        lpm::<[u8; 16], u32>(names::CIDR6, sizes::CIDRS),
        shape::<RuleKey, RuleRow>(names::RULES, MapType::Hash, sizes::RULES),
        lpm::<PortKeyData, PortRow>(names::PORTS, sizes::PORTS),
        shape::<FlowKey, FlowRow>(names::EMBRYONIC, MapType::LruHash, flows / 2),
        shape::<FlowKey, FlowRow>(names::OVER_EMBRYONIC, MapType::LruHash, flows / 2),
        shape::<FlowKey, FlowRow>(names::CONFIRMED, MapType::Hash, flows),
        shape::<FlowKey, FlowRow>(names::OVER_CONFIRMED, MapType::LruHash, flows),
        shape::<u32, i64>(names::HELD, MapType::Array, accounts),
        shape::<FlowKey, FlowRow>(names::TOMBSTONES, MapType::LruHash, sizes::TOMBSTONES),
        shape::<FlowKey, FlowRow>(names::OVER_TOMBSTONES, MapType::LruHash, sizes::TOMBSTONES),
        shape::<FragmentKey, FragmentRow>(names::FRAGMENTS, MapType::LruHash, sizes::FRAGMENTS),
        shape::<FragmentKey, FragmentRow>(names::OVER_FRAGMENTS, MapType::LruHash, sizes::FRAGMENTS),
        shape::<u32, u64>(names::BUCKETS, MapType::Array, accounts * budget::COUNT),
        shape::<u32, Counter>(names::COUNTERS, MapType::PerCpuArray, endpoints * 2 * REASONS),
        shape::<u32, Settings>(names::SETTINGS, MapType::Array, 1),
        shape::<DigestKey, [u8; 16]>(names::DIGESTS, MapType::Hash, sizes::DIGESTS),
        shape::<u32, AgentState>(names::AGENT_STATE, MapType::Array, 1),
        Shape {
            name: names::EVENTS,
            map_type: MapType::RingBuf,
            key_size: 0,
            value_size: 0,
            max_entries: sizes::EVENTS,
        },
        shape::<ServiceKey, ServiceRow>(names::SERVICES, MapType::Hash, sizes::SERVICES),
        lpm::<[u8; 16], u32>(names::SERVICE_CIDRS, sizes::SERVICE_CIDRS),
        shape::<DecidedKey, DecidedRow>(names::DECIDED, MapType::LruHash, sizes::DECIDED),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_a_shape() {
        let mut shaped: Vec<_> = shapes(Sizes::SMALLEST).iter().map(|shape| shape.name).collect();
        let mut all = names::ALL.to_vec();
        shaped.sort_unstable();
        all.sort_unstable();
        assert_eq!(shaped, all);
    }
}
