//! Names of the maps. The kernel keeps 15 bytes of them.

/// [`super::EndpointWord`] by endpoint number; array, memory-mapped by the agent.
pub const ENDPOINT_WORDS: &str = "ENDPOINT_WORDS";
/// [`super::InterfaceRow`] by interface index; hash.
pub const INTERFACES: &str = "INTERFACES";
/// [`super::AddressKey`] → 1: the addresses that belong to an endpoint; hash.
pub const ADDRESSES: &str = "ADDRESSES";
/// [`super::EndpointOptions`] by endpoint number; array.
pub const OPTIONS: &str = "OPTIONS";
/// IPv4 address → [`super::ClassRow`]; hash.
pub const CLASS4: &str = "CLASS4";
/// IPv6 address → [`super::ClassRow`]; hash.
pub const CLASS6: &str = "CLASS6";
/// IPv4 prefix → class; LPM trie.
pub const CIDR4: &str = "CIDR4";
/// IPv6 prefix → class; LPM trie.
pub const CIDR6: &str = "CIDR6";
/// [`super::RuleKey`] → [`super::RuleRow`]; hash.
pub const RULES: &str = "RULES";
/// [`super::PortKeyData`] prefix → [`super::PortRow`]; LPM trie.
pub const PORTS: &str = "PORTS";
/// [`super::FlowKey`] → [`super::FlowRow`]: flows that no reply has confirmed yet, within their account's budget; LRU hash.
pub const EMBRYONIC: &str = "EMBRYONIC";
/// The same beyond their account's budget; LRU hash.
pub const OVER_EMBRYONIC: &str = "OVER_EMBRYONIC";
/// [`super::FlowKey`] → [`super::FlowRow`]: flows that have seen a reply, within their account's share; hash, from which
/// nothing is evicted.
pub const CONFIRMED: &str = "CONFIRMED";
/// The same beyond their account's share, or finished; LRU hash.
pub const OVER_CONFIRMED: &str = "OVER_CONFIRMED";
/// Rows of [`CONFIRMED`] that an [`super::account`] holds; array of u64, memory-mapped by the agent.
pub const HELD: &str = "HELD";
/// [`super::FlowKey`] → [`super::FlowRow`]: flows whose permission was revoked, within their account's budget; LRU hash.
pub const TOMBSTONES: &str = "TOMBSTONES";
/// The same beyond their account's budget; LRU hash.
pub const OVER_TOMBSTONES: &str = "OVER_TOMBSTONES";
/// [`super::FragmentKey`] → [`super::FragmentRow`]: ports of fragmented datagrams, within their account's budget;
/// LRU hash.
pub const FRAGMENTS: &str = "FRAGMENTS";
/// The same beyond their account's budget; LRU hash.
pub const OVER_FRAGMENTS: &str = "OVER_FRAGMENTS";
/// Token bucket by [`super::bucket_index`] (see [`crate::flow`]); array of u64.
pub const BUCKETS: &str = "BUCKETS";
/// [`super::Counter`] by [`super::counter_index`]; per-CPU array.
pub const COUNTERS: &str = "COUNTERS";
/// [`super::Settings`], one element; array.
pub const SETTINGS: &str = "SETTINGS";
/// [`super::DigestKey`] → [`super::Digest`]: what allocated ids mean; hash. Not read by programs.
pub const DIGESTS: &str = "DIGESTS";
/// [`super::AgentState`], one element; array. Not read by programs.
pub const AGENT_STATE: &str = "AGENT_STATE";

/// [`super::ServiceKey`] → [`super::ServiceRow`]: addresses and ports that a proxy rewrites; hash.
pub const SERVICES: &str = "SERVICES";
/// Prefix of a ClusterIP range, IPv4 in mapped form → 1; LPM trie.
pub const SERVICE_CIDRS: &str = "SERVICE_CIDRS";
/// [`super::DecidedKey`] → [`super::DecidedRow`]: deferred flows judged by their real destination; LRU hash.
pub const DECIDED: &str = "DECIDED";

/// All of them, for pinning and for comparing.
pub const ALL: [&str; 28] = [
    ENDPOINT_WORDS,
    INTERFACES,
    ADDRESSES,
    OPTIONS,
    CLASS4,
    CLASS6,
    CIDR4,
    CIDR6,
    RULES,
    PORTS,
    EMBRYONIC,
    OVER_EMBRYONIC,
    CONFIRMED,
    OVER_CONFIRMED,
    HELD,
    TOMBSTONES,
    OVER_TOMBSTONES,
    FRAGMENTS,
    OVER_FRAGMENTS,
    BUCKETS,
    COUNTERS,
    SETTINGS,
    DIGESTS,
    AGENT_STATE,
    EVENTS,
    SERVICES,
    SERVICE_CIDRS,
    DECIDED,
];
/// Ring buffer reserved for the rate-limited live stream of verdicts (decision D9); programs do not write it yet.
pub const EVENTS: &str = "EVENTS";
