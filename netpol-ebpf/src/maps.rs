//! The maps, and [`Tables`] over them. Names, keys and values are the ABI's; sizes that depend on configuration are set
//! by the loader.

use aya_ebpf::bindings::{BPF_ANY, BPF_EXIST, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use netpol_common::abi::{
    ACCOUNTS, AddressKey, AgentState, ClassRow, Counter, DecidedKey, DecidedRow, Digest, DigestKey, EndpointOptions,
    EndpointWord, FlowKey, FlowRow, FragmentKey, FragmentRow, InterfaceRow, PORT_PREFIX_FULL, PortKeyData, PortRow,
    REASONS, RuleKey, RuleRow, ServiceKey, ServiceRow, Settings, budget, sizes,
};
use netpol_common::decide::Scratch;
use netpol_common::tables::{FlowTable, Full, Tables};

const COUNTER_ROWS: u32 = sizes::ENDPOINTS * 2 * REASONS;

// Memory-mapped, so that the agent stores set and epoch in one atomic write.
#[map]
static ENDPOINT_WORDS: Array<EndpointWord> = Array::with_max_entries(sizes::ENDPOINTS, BPF_F_MMAPABLE);
// Hashes that are sized for large clusters take their memory as they fill. An element that is removed can be handed out
// again at once on the same CPU (from 6.1 on, where they use the BPF allocator): rows are copied out right after the look-up.
#[map]
static INTERFACES: HashMap<u32, InterfaceRow> = HashMap::with_max_entries(sizes::INTERFACES, BPF_F_NO_PREALLOC);
#[map]
static ADDRESSES: HashMap<AddressKey, u32> = HashMap::with_max_entries(sizes::ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static OPTIONS: Array<EndpointOptions> = Array::with_max_entries(sizes::ENDPOINTS, 0);
#[map]
static CLASS4: HashMap<[u8; 4], ClassRow> = HashMap::with_max_entries(sizes::CLASSES, BPF_F_NO_PREALLOC);
#[map]
static CLASS6: HashMap<[u8; 16], ClassRow> = HashMap::with_max_entries(sizes::CLASSES, BPF_F_NO_PREALLOC);
// The kernel knows LPM tries without preallocation only.
#[map]
static CIDR4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(sizes::CIDRS, BPF_F_NO_PREALLOC);
#[map]
static CIDR6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(sizes::CIDRS, BPF_F_NO_PREALLOC);
#[map]
static RULES: HashMap<RuleKey, RuleRow> = HashMap::with_max_entries(sizes::RULES, BPF_F_NO_PREALLOC);
#[map]
static PORTS: LpmTrie<PortKeyData, PortRow> = LpmTrie::with_max_entries(sizes::PORTS, BPF_F_NO_PREALLOC);
#[map]
static EMBRYONIC: LruHashMap<FlowKey, FlowRow> = LruHashMap::with_max_entries(sizes::FLOWS / 2, 0);
#[map]
static OVER_EMBRYONIC: LruHashMap<FlowKey, FlowRow> = LruHashMap::with_max_entries(sizes::FLOWS / 2, 0);
#[map]
static CONFIRMED: HashMap<FlowKey, FlowRow> = HashMap::with_max_entries(sizes::FLOWS, BPF_F_NO_PREALLOC);
#[map]
static OVER_CONFIRMED: LruHashMap<FlowKey, FlowRow> = LruHashMap::with_max_entries(sizes::FLOWS, 0);
// Memory-mapped, so that the agent corrects a number while programs add to it.
#[map]
static HELD: Array<i64> = Array::with_max_entries(sizes::ENDPOINTS * ACCOUNTS, BPF_F_MMAPABLE);
#[map]
static TOMBSTONES: LruHashMap<FlowKey, FlowRow> = LruHashMap::with_max_entries(sizes::TOMBSTONES, 0);
#[map]
static OVER_TOMBSTONES: LruHashMap<FlowKey, FlowRow> = LruHashMap::with_max_entries(sizes::TOMBSTONES, 0);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentRow> = LruHashMap::with_max_entries(sizes::FRAGMENTS, 0);
#[map]
static OVER_FRAGMENTS: LruHashMap<FragmentKey, FragmentRow> = LruHashMap::with_max_entries(sizes::FRAGMENTS, 0);
#[map]
static BUCKETS: Array<u64> = Array::with_max_entries(sizes::ENDPOINTS * ACCOUNTS * budget::COUNT, 0);
#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(COUNTER_ROWS, 0);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
// The agent's own memory: programs do not read these.
#[map]
static DIGESTS: HashMap<DigestKey, Digest> = HashMap::with_max_entries(sizes::DIGESTS, BPF_F_NO_PREALLOC);
#[map]
static AGENT_STATE: Array<AgentState> = Array::with_max_entries(1, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(sizes::EVENTS, 0);
#[map]
static SERVICES: HashMap<ServiceKey, ServiceRow> = HashMap::with_max_entries(sizes::SERVICES, BPF_F_NO_PREALLOC);
#[map]
static SERVICE_CIDRS: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(sizes::SERVICE_CIDRS, BPF_F_NO_PREALLOC);
#[map]
static DECIDED: LruHashMap<DecidedKey, DecidedRow> = LruHashMap::with_max_entries(sizes::DECIDED, 0);

// This object's own, pinned nowhere. One for each CPU is enough: a TC program runs with bottom halves disabled, so none
// follows another on a CPU before that has finished.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The room of this CPU for the packet under way.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: valid for the program's run, which alone uses it; all zeros, as the kernel makes it, are valid.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// The maps of this object.
pub(crate) struct BpfTables;

/// Carries out an operation on the map of a flow table; they are of two types.
macro_rules! on_flows {
    ($table:expr, $map:ident => $operation:expr) => {
        match $table {
            FlowTable::Embryonic => {
                let $map = &EMBRYONIC;
                $operation
            }
            FlowTable::OverEmbryonic => {
                let $map = &OVER_EMBRYONIC;
                $operation
            }
            FlowTable::Confirmed => {
                let $map = &CONFIRMED;
                $operation
            }
            FlowTable::OverConfirmed => {
                let $map = &OVER_CONFIRMED;
                $operation
            }
            FlowTable::Tombstones => {
                let $map = &TOMBSTONES;
                $operation
            }
            FlowTable::OverTombstones => {
                let $map = &OVER_TOMBSTONES;
                $operation
            }
        }
    };
}

/// Copies a row out of a hash: its element may be recycled behind our back.
#[inline(always)]
fn row<K, V: Copy>(map: &HashMap<K, V>, key: &K) -> Option<V> {
    // SAFETY: the pointer is into the map's memory, which outlives the program's run.
    map.get_ptr(key).map(|row| unsafe { *row })
}

impl Tables for BpfTables {
    #[inline(always)]
    fn settings(&self) -> Option<Settings> {
        SETTINGS.get(0).copied()
    }

    #[inline(always)]
    fn interface(&self, ifindex: u32) -> Option<InterfaceRow> {
        row(&INTERFACES, &ifindex)
    }

    #[inline(always)]
    fn endpoint_word(&self, endpoint: u32) -> Option<EndpointWord> {
        // SAFETY: as in `row`. Volatile: one load, not two of 32 bits, because the agent stores the word while we read.
        ENDPOINT_WORDS.get_ptr(endpoint).map(|word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn endpoint_options(&self, endpoint: u32) -> Option<EndpointOptions> {
        OPTIONS.get(endpoint).copied()
    }

    #[inline(always)]
    fn owns_address(&self, key: &AddressKey) -> bool {
        ADDRESSES.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn class4(&self, address: &[u8; 4]) -> Option<ClassRow> {
        row(&CLASS4, address)
    }

    #[inline(always)]
    fn class6(&self, address: &[u8; 16]) -> Option<ClassRow> {
        row(&CLASS6, address)
    }

    #[inline(always)]
    fn cidr4(&self, address: &[u8; 4]) -> Option<u32> {
        CIDR4.get(Key::new(32, *address)).copied()
    }

    #[inline(always)]
    fn cidr6(&self, address: &[u8; 16]) -> Option<u32> {
        CIDR6.get(Key::new(128, *address)).copied()
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<RuleRow> {
        row(&RULES, key)
    }

    #[inline(always)]
    fn port(&self, key: &PortKeyData) -> Option<PortRow> {
        PORTS.get(Key::new(PORT_PREFIX_FULL, *key)).copied()
    }

    #[inline(always)]
    fn flow(&self, table: FlowTable, key: &FlowKey) -> Option<FlowRow> {
        // SAFETY: as in `row`.
        on_flows!(table, map => map.get_ptr(key)).map(|row| unsafe { *row })
    }

    #[inline(always)]
    fn load_flow(&self, table: FlowTable, key: &FlowKey, row: &mut FlowRow) -> bool {
        match on_flows!(table, map => map.get_ptr(key)) {
            // SAFETY: as in `row`. By words: the compiler else calls a byte loop.
            Some(found) => unsafe {
                let (from, to) = (found.cast::<u64>(), core::ptr::from_mut(row).cast::<u64>());
                let mut word = 0;
                while word < size_of::<FlowRow>() / 8 {
                    to.add(word).write_volatile(from.add(word).read_volatile());
                    word += 1;
                }
                true
            },
            None => false,
        }
    }

    #[inline(always)]
    fn put_flow(&self, table: FlowTable, key: &FlowKey, row: &FlowRow) -> Result<(), Full> {
        on_flows!(table, map => map.insert(key, row, u64::from(BPF_ANY))).map_err(|_errno| Full)
    }

    #[inline(always)]
    fn add_flow(&self, table: FlowTable, key: &FlowKey, row: &FlowRow) -> bool {
        on_flows!(table, map => map.insert(key, row, u64::from(BPF_NOEXIST))).is_ok()
    }

    #[inline(always)]
    fn replace_flow(&self, table: FlowTable, key: &FlowKey, row: &FlowRow) -> bool {
        on_flows!(table, map => map.insert(key, row, u64::from(BPF_EXIST))).is_ok()
    }

    #[inline(always)]
    fn remove_flow(&self, table: FlowTable, key: &FlowKey) -> bool {
        on_flows!(table, map => map.remove(key)).is_ok()
    }

    #[inline(always)]
    fn held(&self, account: u32) -> Option<i64> {
        // SAFETY: as in `row`; volatile, because others add to it.
        HELD.get_ptr(account).map(|held| unsafe { held.read_volatile() })
    }

    #[inline(always)]
    fn hold(&self, account: u32, add: i64) {
        if let Some(held) = HELD.get_ptr_mut(account) {
            // SAFETY: as in `row`; a load and a store of an aligned word. Not one atomic operation, which Rust does not offer
            // for a target without compare-and-swap: of two that come at once, one may be lost until the agent counts.
            unsafe { held.write_volatile(held.read_volatile().wrapping_add(add)) };
        }
    }

    #[inline(always)]
    fn touch_flow(&self, table: FlowTable, key: &FlowKey, last_seen: u32, phase: u32) {
        if let Some(row) = on_flows!(table, map => map.get_ptr_mut(key)) {
            // SAFETY: as in `row`; two aligned words, each stored at once, which other CPUs may store as well.
            unsafe {
                (&raw mut (*row).last_seen).write_volatile(last_seen);
                (&raw mut (*row).phase).write_volatile(phase);
            }
        }
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceRow> {
        row(&SERVICES, key)
    }

    #[inline(always)]
    fn load_service(&self, key: &ServiceKey, row: &mut ServiceRow) -> bool {
        match SERVICES.get_ptr(key) {
            // SAFETY: as in `row`. By words, as in `load_flow`.
            Some(found) => unsafe {
                let (from, to) = (found.cast::<u32>(), core::ptr::from_mut(row).cast::<u32>());
                let mut word = 0;
                while word < size_of::<ServiceRow>() / 4 {
                    to.add(word).write_volatile(from.add(word).read_volatile());
                    word += 1;
                }
                true
            },
            None => false,
        }
    }

    #[inline(always)]
    fn is_service_range(&self, address: &[u8; 16]) -> bool {
        SERVICE_CIDRS.get(Key::new(128, *address)).is_some()
    }

    #[inline(always)]
    fn decided(&self, key: &DecidedKey) -> Option<DecidedRow> {
        // SAFETY: as in `row`.
        DECIDED.get_ptr(key).map(|row| unsafe { *row })
    }

    #[inline(always)]
    fn put_decided(&self, key: &DecidedKey, row: &DecidedRow) {
        let _status = DECIDED.insert(key, row, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRow> {
        // SAFETY: as in `row`.
        FRAGMENTS.get_ptr(key).or_else(|| OVER_FRAGMENTS.get_ptr(key)).map(|row| unsafe { *row })
    }

    #[inline(always)]
    fn put_fragment(&self, key: &FragmentKey, row: &FragmentRow, over: bool) -> Result<(), Full> {
        if over {
            // An older one of the same name would be found in place of it.
            let _absent = FRAGMENTS.remove(key);
        }
        let map = if over { &OVER_FRAGMENTS } else { &FRAGMENTS };
        map.insert(key, row, u64::from(BPF_ANY)).map_err(|_errno| Full)
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<u64> {
        // SAFETY: as in `row`; volatile, because other CPUs store it.
        BUCKETS.get_ptr(index).map(|bucket| unsafe { bucket.read_volatile() })
    }

    #[inline(always)]
    fn put_bucket(&self, index: u32, value: u64) {
        if let Some(bucket) = BUCKETS.get_ptr_mut(index) {
            // SAFETY: as in `row`; one aligned store.
            unsafe { bucket.write_volatile(value) };
        }
    }

    #[inline(always)]
    fn count(&self, index: u32, add: Counter) {
        if let Some(counter) = COUNTERS.get_ptr_mut(index) {
            // SAFETY: this CPU's own element; a program is not interrupted by another one at the same hook.
            unsafe {
                (*counter).packets += add.packets;
                (*counter).bytes += add.bytes;
            }
        }
    }
}
