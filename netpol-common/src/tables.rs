//! Access to the maps, as the verdict function needs it. Implemented over BPF maps in `netpol-ebpf` and over plain
//! collections in user space (tests, `explain`).
//!
//! Rows are returned by value: an element of a BPF hash can be recycled under its reader, so everything is copied out
//! at once. Methods take `&self` because programs run concurrently on shared maps.

use crate::abi::{
    AddressKey, ClassRow, Counter, DecidedKey, DecidedRow, EndpointOptions, EndpointWord, FlowKey, FlowRow,
    FragmentKey, FragmentRow, InterfaceRow, PortKeyData, PortRow, RuleKey, RuleRow, ServiceKey, ServiceRow, Settings,
};

/// The flow tables of decision D5 (and docs/adr/0003).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowTable {
    /// No reply yet.
    Embryonic,
    /// No reply yet, and opened faster than the account's budget: whoever else does so can evict it.
    OverEmbryonic,
    /// A reply was seen. Nothing is evicted.
    Confirmed,
    /// A reply was seen, but the account's share is used up, or the flow has finished: it can be evicted.
    OverConfirmed,
    /// Permission revoked.
    Tombstones,
    /// Permission revoked, and more of them at once than the account's budget: whoever else has so many can evict it.
    OverTombstones,
}

impl FlowTable {
    /// Whether its flows have seen a reply.
    #[must_use]
    #[inline(always)]
    pub const fn is_confirmed(self) -> bool {
        matches!(self, Self::Confirmed | Self::OverConfirmed)
    }
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
    /// Creates a flow; refused if there is one of this name, or no room.
    fn add_flow(&self, table: FlowTable, key: &FlowKey, row: &FlowRow) -> bool;
    /// Whole update of a flow that is there; refused if there is none.
    fn replace_flow(&self, table: FlowTable, key: &FlowKey, row: &FlowRow) -> bool;
    /// Removes a flow; answers whether it was there.
    fn remove_flow(&self, table: FlowTable, key: &FlowKey) -> bool;
    /// Rows of [`FlowTable::Confirmed`] that an account holds. The agent counts them now and then and corrects it: until
    /// then it may be a few off, also below zero.
    fn held(&self, account: u32) -> Option<i64>;
    /// Adds to that number.
    fn hold(&self, account: u32, add: i64);
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
    /// Ports of a fragmented datagram, wherever they are remembered.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRow>;
    /// Remembers the ports of a fragmented datagram; `over`: beyond the account's budget, where others can evict it.
    fn put_fragment(&self, key: &FragmentKey, row: &FragmentRow, over: bool) -> Result<(), Full>;
    /// A token bucket by [`bucket_index`](crate::abi::bucket_index): theoretical arrival time in ns of the boot clock (see
    /// [`crate::flow`]).
    fn bucket(&self, index: u32) -> Option<u64>;
    /// Stores a token bucket.
    fn put_bucket(&self, index: u32, value: u64);
    /// Adds to a counter; an index out of range is ignored.
    fn count(&self, index: u32, add: Counter);
}
