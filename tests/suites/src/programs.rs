//! The real object in the kernel, fed with frames through `BPF_PROG_TEST_RUN`: no interface, no traffic.
//!
//! A test run sees the loopback device as its interface ([`IFINDEX`]) and always has a socket, so decision D7 is told
//! apart by the ingress device alone here.

use std::borrow::BorrowMut;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _};
use aya::{Ebpf, EbpfLoader, TestRunOptions, VerifierLogLevel};
use ipnet::IpNet;
use netpol_agent::dataplane::object::OBJECT;
use netpol_common::abi::{
    AddressKey, ClassRow, Counter, DecidedKey, DecidedRow, Direction, EndpointOptions, EndpointWord, FlowKey, FlowRow,
    InterfaceRow, PortKeyData, PortRow, RuleKey, RuleRow, ServiceKey, ServiceRow, Settings, mapped, names, programs,
};
use netpol_policy::compile::MapOp;

use crate::kernel::{self, Feature, elements, test_run, verifier};

/// Index of the loopback device, which is what a test run's packets belong to.
pub const IFINDEX: u32 = 1;
/// The program that does nothing.
pub const EMPTY: &str = "empty";
/// What a program says to let a packet on: the next program of the chain decides.
pub const NEXT: i32 = -1;
/// What a program says to drop it.
pub const SHOT: i32 = 2;

/// What loading a program cost.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Its name.
    pub name: &'static str,
    /// Instructions that the verifier followed; not all kernels say.
    pub verified_instructions: Option<u32>,
    /// Bytes of translated instructions.
    pub translated_bytes: Option<u32>,
    /// Wall-clock time of the load, verification and compilation included.
    pub time: Duration,
}

/// The loaded object.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    /// Where in `struct __sk_buff` a test run has the ingress device.
    ingress_field: usize,
    /// What loading cost, by program.
    pub loaded: Vec<Loaded>,
}

/// How a packet comes to a program, as far as its bytes do not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// Device that it came in by, 0 if it was made on this host.
    pub ingress_ifindex: u32,
    /// Its mark.
    pub mark: u32,
}

/// What a program did to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// What it said, in the end.
    pub action: i32,
    /// The mark that the packet goes on with.
    pub mark: u32,
    /// Mean time of one run.
    pub time: Duration,
}

/// The programs of the object, in the order in which they are loaded.
const ALL: [&str; 4] = [EMPTY, programs::POD_EGRESS, programs::POD_INGRESS, programs::HOST_EGRESS];

/// Maps that [`Programs::reset`] leaves as they are: counters only grow, and whoever looks at them looks at what is added;
/// nobody reads the ring buffer here; and what is left in the room for the packet under way must not matter.
const KEPT: [&str; 3] = [names::COUNTERS, names::EVENTS, "SCRATCH"];

/// The program of a direction.
#[must_use]
pub const fn program(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => programs::POD_INGRESS,
        Direction::Egress => programs::POD_EGRESS,
    }
}

impl Programs {
    /// Loads all programs over maps of their own; `rows` is the size of each policy map.
    pub fn load(rows: u32) -> Result<Self> {
        let (mut ebpf, ingress_field) = object(rows, VerifierLogLevel::default())?;
        let mut loaded = Vec::new();
        for name in ALL {
            let program = classifier(&mut ebpf, name)?;
            let start = Instant::now();
            program.load().with_context(|| format!("loading program {name}"))?;
            let time = start.elapsed();
            let info = program.info()?;
            loaded.push(Loaded {
                name,
                verified_instructions: info.verified_instruction_count(),
                translated_bytes: info.size_translated(),
                time,
            });
        }
        Ok(Self { ebpf, ingress_field, loaded })
    }

    /// Prints what loading cost.
    pub fn print_loaded(&self) {
        for Loaded { name, verified_instructions, translated_bytes, time } in &self.loaded {
            let verified = verified_instructions.map_or_else(|| "?".to_owned(), |number| number.to_string());
            println!(
                "{name}: {verified} instructions verified, {} translated, loaded in {:.1} ms",
                translated_bytes.unwrap_or_default() / 8,
                time.as_secs_f64() * 1e3
            );
        }
    }

    /// Runs a program on a frame `repeat` times.
    pub fn run(&mut self, name: &str, frame: &[u8], arrival: Arrival, repeat: u32) -> Result<Run> {
        // The kernel takes a prefix of `struct __sk_buff`, up to `ifindex`, and wants room to give the whole of it back.
        let mut context = [0; 44];
        context[8..12].copy_from_slice(&arrival.mark.to_ne_bytes());
        context[self.ingress_field..][..4].copy_from_slice(&arrival.ingress_ifindex.to_ne_bytes());
        context[40..44].copy_from_slice(&IFINDEX.to_ne_bytes());
        let mut after = [0; 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ctx_out: Some(&mut after),
            repeat,
            ..TestRunOptions::default()
        };
        let result = classifier(&mut self.ebpf, name)?.test_run(options).with_context(|| format!("running {name}"))?;
        let [_, _, _, _, _, _, _, _, a, b, c, d, ..] = after;
        let mark = u32::from_ne_bytes([a, b, c, d]);
        Ok(Run { action: result.return_value as i32, mark, time: result.duration })
    }

    /// Leaves no row of any map, and no flow, so that what follows finds what it would find after [`Programs::load`], for
    /// which the verifier takes its time. Counters go on.
    pub fn reset(&mut self) -> Result<()> {
        for (name, map) in self.ebpf.maps() {
            // With a dot begin the compiler's own, which programs do not write.
            if !KEPT.contains(&name) && !name.starts_with('.') {
                elements::reset(map).with_context(|| name.to_owned())?;
            }
        }
        Ok(())
    }

    /// A counter's value on all CPUs, by its index.
    pub fn counter(&self, index: u32) -> Result<Counter> {
        let map = self.ebpf.map(names::COUNTERS).context("no counters")?;
        let values = PerCpuArray::<_, Counter>::try_from(map)?.get(&index, 0)?;
        let add =
            |sum: Counter, of: &Counter| Counter { packets: sum.packets + of.packets, bytes: sum.bytes + of.bytes };
        Ok(values.iter().fold(Counter::default(), add))
    }

    /// Puts an endpoint behind the interface of the test runs.
    pub fn set_interface(&mut self, row: InterfaceRow) -> Result<()> {
        self.set_device(IFINDEX, row)
    }

    /// Says what another device is.
    pub fn set_device(&mut self, ifindex: u32, row: InterfaceRow) -> Result<()> {
        self.put(names::INTERFACES, ifindex, row)
    }

    /// Leaves the interface of the test runs without endpoint.
    pub fn remove_interface(&mut self) -> Result<()> {
        self.remove::<u32, InterfaceRow>(names::INTERFACES, IFINDEX)
    }

    /// Tells the programs their settings.
    pub fn set_settings(&mut self, settings: Settings) -> Result<()> {
        self.set(names::SETTINGS, 0, settings)
    }

    /// Writes a flow.
    pub fn put_flow(&mut self, table: &'static str, key: FlowKey, row: FlowRow) -> Result<()> {
        self.put(table, key, row)
    }

    /// All flows of a table, without the second they were last seen.
    pub fn flows(&self, table: &'static str) -> Result<Vec<(FlowKey, FlowRow)>> {
        let map = HashMap::<_, FlowKey, FlowRow>::try_from(self.ebpf.map(table).context(table)?)?;
        let mut flows = Vec::new();
        for entry in &map {
            let (key, row) = entry?;
            flows.push((key, FlowRow { last_seen: 0, ..row }));
        }
        flows.sort_unstable_by_key(|(key, _)| *key);
        Ok(flows)
    }

    /// All deferred flows that were decided.
    pub fn decided(&self) -> Result<Vec<(DecidedKey, DecidedRow)>> {
        let map = HashMap::<_, DecidedKey, DecidedRow>::try_from(self.ebpf.map(names::DECIDED).context("DECIDED")?)?;
        let mut rows = map.iter().collect::<Result<Vec<_>, _>>()?;
        rows.sort_unstable_by_key(|(key, _)| *key);
        Ok(rows)
    }

    /// Forgets a flow of a table; it need not be there.
    pub fn forget_flow(&mut self, table: &'static str, key: FlowKey) -> Result<()> {
        self.remove::<FlowKey, FlowRow>(table, key)
    }

    /// Forgets what was decided of a deferred flow; it need not be there.
    pub fn forget_decided(&mut self, key: DecidedKey) -> Result<()> {
        self.remove::<DecidedKey, DecidedRow>(names::DECIDED, key)
    }

    /// Forgets all flows and tokens.
    pub fn forget_flows(&mut self) -> Result<()> {
        for (key, _) in self.decided()? {
            self.forget_decided(key)?;
        }
        for table in [
            names::EMBRYONIC,
            names::OVER_EMBRYONIC,
            names::CONFIRMED,
            names::OVER_CONFIRMED,
            names::TOMBSTONES,
            names::OVER_TOMBSTONES,
        ] {
            for (key, _) in self.flows(table)? {
                self.forget_flow(table, key)?;
            }
        }
        Ok(())
    }

    /// Carries out what the compiler planned. What only a later agent reads is left out.
    pub fn apply(&mut self, op: &MapOp) -> Result<()> {
        match *op {
            MapOp::PutDigest(..) | MapOp::RemoveDigest(_) | MapOp::SetEpoch(_) => Ok(()),
            MapOp::PutPort { prefix_len, key, row } => self.put_prefix(names::PORTS, prefix_len, key, row),
            MapOp::RemovePort { prefix_len, key } => {
                self.remove_prefix::<PortKeyData, PortRow>(names::PORTS, prefix_len, key)
            }
            MapOp::PutRule(key, row) => self.put(names::RULES, key, row),
            MapOp::RemoveRule(key) => self.remove::<RuleKey, RuleRow>(names::RULES, key),
            MapOp::PutClass(IpAddr::V4(address), row) => self.put(names::CLASS4, address.octets(), row),
            MapOp::PutClass(IpAddr::V6(address), row) => self.put(names::CLASS6, address.octets(), row),
            MapOp::RemoveClass(IpAddr::V4(address)) => self.remove::<_, ClassRow>(names::CLASS4, address.octets()),
            MapOp::RemoveClass(IpAddr::V6(address)) => self.remove::<_, ClassRow>(names::CLASS6, address.octets()),
            MapOp::PutCidr(IpNet::V4(prefix), class) => {
                self.put_prefix(names::CIDR4, prefix.prefix_len().into(), prefix.network().octets(), class)
            }
            MapOp::PutCidr(IpNet::V6(prefix), class) => {
                self.put_prefix(names::CIDR6, prefix.prefix_len().into(), prefix.network().octets(), class)
            }
            MapOp::RemoveCidr(IpNet::V4(prefix)) => {
                self.remove_prefix::<_, u32>(names::CIDR4, prefix.prefix_len().into(), prefix.network().octets())
            }
            MapOp::RemoveCidr(IpNet::V6(prefix)) => {
                self.remove_prefix::<_, u32>(names::CIDR6, prefix.prefix_len().into(), prefix.network().octets())
            }
            MapOp::SetWord { endpoint, word } => self.set::<EndpointWord>(names::ENDPOINT_WORDS, endpoint, word),
            MapOp::PutAddress(key) => self.put(names::ADDRESSES, key, 1_u32),
            MapOp::RemoveAddress(key) => self.remove::<AddressKey, u32>(names::ADDRESSES, key),
            MapOp::PutService(key, row) => self.put(names::SERVICES, key, row),
            MapOp::RemoveService(key) => self.remove::<ServiceKey, ServiceRow>(names::SERVICES, key),
            MapOp::PutServiceCidr(range) => {
                let (length, address) = mapped_range(range);
                self.put_prefix(names::SERVICE_CIDRS, length, address, 1_u32)
            }
            MapOp::RemoveServiceCidr(range) => {
                let (length, address) = mapped_range(range);
                self.remove_prefix::<_, u32>(names::SERVICE_CIDRS, length, address)
            }
            MapOp::SetOptions { endpoint, options } => self.set::<EndpointOptions>(names::OPTIONS, endpoint, options),
        }
    }

    fn map(&mut self, name: &'static str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))
    }

    fn set<V: aya::Pod>(&mut self, name: &'static str, index: u32, value: V) -> Result<()> {
        let mut map = Array::<_, V>::try_from(self.map(name)?)?;
        map.set(index, value, 0).with_context(|| format!("writing {name}"))
    }

    fn put<K: aya::Pod, V: aya::Pod>(&mut self, name: &'static str, key: K, value: V) -> Result<()> {
        let mut map = HashMap::<_, K, V>::try_from(self.map(name)?)?;
        map.insert(key, value, 0).with_context(|| format!("writing {name}"))
    }

    fn remove<K: aya::Pod, V: aya::Pod>(&mut self, name: &'static str, key: K) -> Result<()> {
        let mut map = HashMap::<_, K, V>::try_from(self.map(name)?)?;
        absent_is_fine(map.remove(&key)).with_context(|| format!("removing from {name}"))
    }

    fn put_prefix<K: aya::Pod, V: aya::Pod>(&mut self, name: &'static str, length: u32, key: K, row: V) -> Result<()> {
        let map = LpmTrie::<_, K, V>::try_from(self.map(name)?)?;
        insert_prefix(map, length, key, row).with_context(|| format!("writing {name}"))
    }

    fn remove_prefix<K: aya::Pod, V: aya::Pod>(&mut self, name: &'static str, length: u32, key: K) -> Result<()> {
        let mut map = LpmTrie::<_, K, V>::try_from(self.map(name)?)?;
        absent_is_fine(map.remove(&Key::new(length, key))).with_context(|| format!("removing from {name}"))
    }
}

/// The object with its maps, before any program is loaded, and where in `struct __sk_buff` a test run has the ingress
/// device.
fn object(rows: u32, log: VerifierLogLevel) -> Result<(Ebpf, usize)> {
    let mut loader = EbpfLoader::new();
    let _ = loader.verifier_log_level(log);
    for name in [names::CLASS4, names::CLASS6, names::CIDR4, names::CIDR6, names::RULES, names::PORTS] {
        let _ = loader.map_max_entries(name, rows);
    }
    if kernel::has(Feature::TestRunIngress) {
        return Ok((loader.load(OBJECT).context("loading the object")?, test_run::INGRESS_IFINDEX));
    }
    let changed = test_run::ingress_in_priority(OBJECT)?;
    Ok((loader.load(&changed).context("loading the object")?, test_run::PRIORITY))
}

/// How many instructions the verifier follows of each program, by its own words.
pub fn verified_instructions() -> Result<Vec<(&'static str, u32)>> {
    let (mut ebpf, _) = object(1, VerifierLogLevel::STATS)?;
    ALL.into_iter()
        .map(|name| Ok((name, verifier::instructions(classifier(&mut ebpf, name)?).with_context(|| name.to_owned())?)))
        .collect()
}

/// A prefix in a trie that holds both families.
fn mapped_range(range: IpNet) -> (u32, [u8; 16]) {
    match range {
        IpNet::V4(range) => (96 + u32::from(range.prefix_len()), mapped(range.network().octets())),
        IpNet::V6(range) => (range.prefix_len().into(), range.network().octets()),
    }
}

fn insert_prefix<T: BorrowMut<MapData>, K: aya::Pod, V: aya::Pod>(
    mut map: LpmTrie<T, K, V>,
    length: u32,
    key: K,
    row: V,
) -> Result<(), MapError> {
    map.insert(&Key::new(length, key), row, 0)
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?)
}
