//! Access to the maps, as the verdict function needs it. Implemented over BPF maps in `netpol-ebpf` and over plain
//! collections in user space (tests, `explain`).
//!
//! Rows are returned by value: an element of a BPF hash can be recycled under its reader, so everything is copied out
//! at once. Methods take `&self` because programs run concurrently on shared maps.

use crate::abi::{
    AddressKey, ClassRow, Counter, DecidedKey, DecidedRow, EndpointOptions, EndpointWord, FlowKey, FlowRow,
    FragmentKey, FragmentRow, InterfaceRow, PortKeyData, PortRow, RuleKey, RuleRow, ServiceKey, ServiceRow, Settings,
};

/// The three flow tables of decision D5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowTable {
    /// No reply yet.
    Embryonic,
    /// A reply was seen.
    Confirmed,
    /// Permission revoked.
    Tombstones,
}

/// The element could not be written: the map is full, or the kernel had no memory. The packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// All tables of one node.
pub trait Tables {
    /// Settings; absent only before the agent wrote them, which must fail closed.
    fn settings(&self) -> Option<Settings>;
    /// The row of an interface.
    fn interface(&self, ifindex: u32) -> Option<InterfaceRow>;
    /// Set and epoch of an endpoint; `None` when the number is out of range.
    fn endpoint_word(&self, endpoint: u32) -> Option<EndpointWord>;
    /// Rarely changing switches of an endpoint.
    fn endpoint_options(&self, endpoint: u32) -> Option<EndpointOptions>;
    /// Whether an endpoint owns an address.
    fn owns_address(&self, key: &AddressKey) -> bool;
    /// Pod or node address → kind and class.
    fn class4(&self, address: &[u8; 4]) -> Option<ClassRow>;
    /// Pod or node address → kind and class.
    fn class6(&self, address: &[u8; 16]) -> Option<ClassRow>;
    /// Longest prefix → class, for every other address.
    fn cidr4(&self, address: &[u8; 4]) -> Option<u32>;
    /// Longest prefix → class, for every other address.
    fn cidr6(&self, address: &[u8; 16]) -> Option<u32>;
    /// Verdict row.
    fn rule(&self, key: &RuleKey) -> Option<RuleRow>;
    /// Longest prefix of {port set, port}.
    fn port(&self, key: &PortKeyData) -> Option<PortRow>;
    /// Flow look-up.
    fn flow(&self, table: FlowTable, key: &FlowKey) -> Option<FlowRow>;
    /// Flow look-up into a row that is there already: the BPF stack has no room for another. Answers whether there is one.
    #[inline(always)]
    fn load_flow(&self, table: FlowTable, key: &FlowKey, row: &mut FlowRow) -> bool {
        match self.flow(table, key) {
            Some(found) => {
                *row = found;
                true
            }
            None => false,
        }
    }
    /// Whole update of a flow; creates it.
    fn put_flow(&self, table: FlowTable, key: &FlowKey, row: &FlowRow) -> Result<(), Full>;
    /// Removes a flow; absent is fine.
    fn remove_flow(&self, table: FlowTable, key: &FlowKey);
    /// In-place store of `last_seen` and `phase` of an existing flow; absent is fine.
    fn touch_flow(&self, table: FlowTable, key: &FlowKey, last_seen: u32, phase: u32);
    /// The backends on this node of an address and port that a proxy rewrites; `None`: no proxy is known to.
    fn service(&self, key: &ServiceKey) -> Option<ServiceRow>;
    /// The same into a row that is there already. Answers whether there is one.
    #[inline(always)]
    fn load_service(&self, key: &ServiceKey, row: &mut ServiceRow) -> bool {
        match self.service(key) {
            Some(found) => {
                *row = found;
                true
            }
            None => false,
        }
    }
    /// Whether an address, IPv4 in mapped form, is in a range that ClusterIPs are taken from.
    fn is_service_range(&self, address: &[u8; 16]) -> bool;
    /// What was decided of a deferred flow.
    fn decided(&self, key: &DecidedKey) -> Option<DecidedRow>;
    /// Remembers what was decided. A full table loses it, which costs another judgement.
    fn put_decided(&self, key: &DecidedKey, row: &DecidedRow);
    /// Ports of a fragmented datagram.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRow>;
    /// Remembers the ports of a fragmented datagram.
    fn put_fragment(&self, key: &FragmentKey, row: &FragmentRow) -> Result<(), Full>;
    /// The token bucket of an endpoint: theoretical arrival time in ns of the boot clock (see [`crate::flow`]).
    fn bucket(&self, endpoint: u32) -> Option<u64>;
    /// Stores a token bucket.
    fn put_bucket(&self, endpoint: u32, value: u64);
    /// Adds to a counter; an index out of range is ignored.
    fn count(&self, index: u32, add: Counter);
}
