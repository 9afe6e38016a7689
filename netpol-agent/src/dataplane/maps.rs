//! Typed access to the pinned maps, and the one place that writes what the compiler planned.
//!
//! Programs alone write flows; the agent writes everything else, one [`MapOp`] at a time and in the plan's order, which
//! is what keeps every intermediate state correct (decision D10).

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use ipnet::IpNet;
use netpol_common::abi::Direction;
use netpol_common::abi::{
    self, AddressKey, AgentState, ClassRow, Counter, Digest, DigestKey, EndpointOptions, EndpointWord, InterfaceRow,
    PortKeyData, PortRow, RuleKey, RuleRow, ServiceKey, ServiceRow, Settings, counter_index, id_kind, mapped, names,
    setting_flags,
};
use netpol_policy::compile::{MapOp, Snapshot};

use super::flows::Flows;
use super::pins::Pins;
use super::sys;
use super::words::EndpointWords;

/// A map could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// aya refused or the kernel did.
    #[error("map {map}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// Why.
        source: MapError,
    },
    /// A raw call failed.
    #[error("map {map}: {source}")]
    Syscall {
        /// Name of the map.
        map: &'static str,
        /// Why.
        source: sys::SyscallError,
    },
    /// An endpoint number that the map has no room for.
    #[error("map {map}: endpoint number {endpoint} is out of range")]
    Range {
        /// Name of the map.
        map: &'static str,
        /// The number.
        endpoint: u32,
    },
}

impl MapsError {
    /// Name of the map.
    #[must_use]
    pub const fn map(&self) -> &'static str {
        match self {
            Self::Map { map, .. } | Self::Syscall { map, .. } | Self::Range { map, .. } => map,
        }
    }

    /// The kernel's errno; 0 if it was not the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Map { source: MapError::SyscallError(error), .. } => error.io_error.raw_os_error(),
            Self::Syscall { source, .. } => source.errno(),
            Self::Map { .. } | Self::Range { .. } => None,
        }
        .unwrap_or_default()
    }
}

pub(super) fn map_error(map: &'static str) -> impl Fn(MapError) -> MapsError {
    move |source| MapsError::Map { map, source }
}

/// Whether the kernel has refused with this error number.
pub(super) fn is_errno(error: &MapError, errno: i32) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(errno))
}

/// Removing what is not there is what was wanted.
pub(super) fn absent_is_fine(map: &'static str, result: Result<(), MapError>) -> Result<(), MapsError> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if is_errno(&error, libc::ENOENT) => Ok(()),
        Err(error) => Err(map_error(map)(error)),
    }
}

/// All maps that the agent reads or writes.
pub struct Maps {
    /// The flow tables.
    pub flows: Flows,
    words: EndpointWords,
    interfaces: HashMap<MapData, u32, InterfaceRow>,
    addresses: HashMap<MapData, AddressKey, u32>,
    options: Array<MapData, EndpointOptions>,
    class4: HashMap<MapData, [u8; 4], ClassRow>,
    class6: HashMap<MapData, [u8; 16], ClassRow>,
    cidr4: LpmTrie<MapData, [u8; 4], u32>,
    cidr6: LpmTrie<MapData, [u8; 16], u32>,
    rules: HashMap<MapData, RuleKey, RuleRow>,
    ports: LpmTrie<MapData, PortKeyData, PortRow>,
    counters: PerCpuArray<MapData, Counter>,
    settings: Array<MapData, Settings>,
    digests: HashMap<MapData, DigestKey, Digest>,
    state: Array<MapData, AgentState>,
    services: HashMap<MapData, ServiceKey, ServiceRow>,
    service_cidrs: LpmTrie<MapData, [u8; 16], u32>,
}

pub(super) fn open<T>(pins: &Pins, name: &'static str) -> Result<T, MapsError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let data = MapData::from_pin(pins.map(name)).map_err(map_error(name))?;
    Map::from_map_data(data).and_then(T::try_from).map_err(map_error(name))
}

impl Maps {
    /// Opens the maps that are pinned.
    pub fn open(pins: &Pins) -> Result<Self, MapsError> {
        Ok(Self {
            words: EndpointWords::open(pins)?,
            interfaces: open(pins, names::INTERFACES)?,
            addresses: open(pins, names::ADDRESSES)?,
            options: open(pins, names::OPTIONS)?,
            class4: open(pins, names::CLASS4)?,
            class6: open(pins, names::CLASS6)?,
            cidr4: open(pins, names::CIDR4)?,
            cidr6: open(pins, names::CIDR6)?,
            rules: open(pins, names::RULES)?,
            ports: open(pins, names::PORTS)?,
            flows: Flows::open(pins)?,
            counters: open(pins, names::COUNTERS)?,
            settings: open(pins, names::SETTINGS)?,
            digests: open(pins, names::DIGESTS)?,
            state: open(pins, names::AGENT_STATE)?,
            services: open(pins, names::SERVICES)?,
            service_cidrs: open(pins, names::SERVICE_CIDRS)?,
        })
    }

    /// Carries out one operation.
    pub fn apply(&mut self, op: &MapOp) -> Result<(), MapsError> {
        match *op {
            MapOp::PutDigest(key, digest) => self.digests.insert(key, digest, 0).map_err(map_error(names::DIGESTS)),
            MapOp::RemoveDigest(key) => absent_is_fine(names::DIGESTS, self.digests.remove(&key)),
            MapOp::PutPort { prefix_len, key, row } => {
                self.ports.insert(&Key::new(prefix_len, key), row, 0).map_err(map_error(names::PORTS))
            }
            MapOp::RemovePort { prefix_len, key } => {
                absent_is_fine(names::PORTS, self.ports.remove(&Key::new(prefix_len, key)))
            }
            MapOp::PutRule(key, row) => self.rules.insert(key, row, 0).map_err(map_error(names::RULES)),
            MapOp::RemoveRule(key) => absent_is_fine(names::RULES, self.rules.remove(&key)),
            MapOp::PutClass(IpAddr::V4(address), row) => {
                self.class4.insert(address.octets(), row, 0).map_err(map_error(names::CLASS4))
            }
            MapOp::PutClass(IpAddr::V6(address), row) => {
                self.class6.insert(address.octets(), row, 0).map_err(map_error(names::CLASS6))
            }
            MapOp::RemoveClass(IpAddr::V4(address)) => {
                absent_is_fine(names::CLASS4, self.class4.remove(&address.octets()))
            }
            MapOp::RemoveClass(IpAddr::V6(address)) => {
                absent_is_fine(names::CLASS6, self.class6.remove(&address.octets()))
            }
            MapOp::PutCidr(IpNet::V4(prefix), class) => self
                .cidr4
                .insert(&Key::new(prefix.prefix_len().into(), prefix.network().octets()), class, 0)
                .map_err(map_error(names::CIDR4)),
            MapOp::PutCidr(IpNet::V6(prefix), class) => self
                .cidr6
                .insert(&Key::new(prefix.prefix_len().into(), prefix.network().octets()), class, 0)
                .map_err(map_error(names::CIDR6)),
            MapOp::RemoveCidr(IpNet::V4(prefix)) => absent_is_fine(
                names::CIDR4,
                self.cidr4.remove(&Key::new(prefix.prefix_len().into(), prefix.network().octets())),
            ),
            MapOp::RemoveCidr(IpNet::V6(prefix)) => absent_is_fine(
                names::CIDR6,
                self.cidr6.remove(&Key::new(prefix.prefix_len().into(), prefix.network().octets())),
            ),
            MapOp::SetWord { endpoint, word } => self.set_word(endpoint, word),
            MapOp::PutAddress(key) => self.addresses.insert(key, 1, 0).map_err(map_error(names::ADDRESSES)),
            MapOp::RemoveAddress(key) => absent_is_fine(names::ADDRESSES, self.addresses.remove(&key)),
            MapOp::SetOptions { endpoint, options } => {
                self.options.set(endpoint, options, 0).map_err(map_error(names::OPTIONS))
            }
            MapOp::PutService(key, row) => self.services.insert(key, row, 0).map_err(map_error(names::SERVICES)),
            MapOp::RemoveService(key) => absent_is_fine(names::SERVICES, self.services.remove(&key)),
            MapOp::PutServiceCidr(range) => {
                self.service_cidrs.insert(&service_range(range), 1, 0).map_err(map_error(names::SERVICE_CIDRS))
            }
            MapOp::RemoveServiceCidr(range) => {
                absent_is_fine(names::SERVICE_CIDRS, self.service_cidrs.remove(&service_range(range)))
            }
            MapOp::SetEpoch(epoch) => {
                let state = AgentState { epoch, ..self.state()? };
                self.set_state(state)
            }
        }
    }

    fn set_word(&mut self, endpoint: u32, word: EndpointWord) -> Result<(), MapsError> {
        if self.words.set(endpoint, word) {
            Ok(())
        } else {
            Err(MapsError::Range { map: names::ENDPOINT_WORDS, endpoint })
        }
    }

    /// What the agent keeps for its successor.
    pub fn state(&self) -> Result<AgentState, MapsError> {
        self.state.get(&0, 0).map_err(map_error(names::AGENT_STATE))
    }

    /// Stores what the agent keeps for its successor.
    pub fn set_state(&mut self, state: AgentState) -> Result<(), MapsError> {
        self.state.set(0, state, 0).map_err(map_error(names::AGENT_STATE))
    }

    /// Tells the programs their settings.
    pub fn set_settings(&mut self, settings: Settings) -> Result<(), MapsError> {
        self.settings.set(0, settings, 0).map_err(map_error(names::SETTINGS))
    }

    /// Lets pass again what bears no stamp.
    pub fn disarm(&mut self) -> Result<(), MapsError> {
        let settings = self.settings.get(&0, 0).map_err(map_error(names::SETTINGS))?;
        self.set_settings(Settings { flags: settings.flags & !setting_flags::ARMED, ..settings })
    }

    /// Rows of all interfaces.
    pub fn interfaces(&self) -> Result<Vec<(u32, InterfaceRow)>, MapsError> {
        self.interfaces.iter().collect::<Result<_, _>>().map_err(map_error(names::INTERFACES))
    }

    /// Puts the policy of an endpoint in force at an interface; until then the interface is pending.
    pub fn put_interface(&mut self, ifindex: u32, row: InterfaceRow) -> Result<(), MapsError> {
        self.interfaces.insert(ifindex, row, 0).map_err(map_error(names::INTERFACES))
    }

    /// Forgets an interface.
    pub fn remove_interface(&mut self, ifindex: u32) -> Result<(), MapsError> {
        absent_is_fine(names::INTERFACES, self.interfaces.remove(&ifindex))
    }

    /// What the endpoint numbers of an earlier agent stand for.
    pub fn endpoint_digests(&self) -> Result<BTreeMap<u32, Digest>, MapsError> {
        let mut digests = BTreeMap::new();
        for entry in &self.digests {
            let (DigestKey { kind, id }, digest) = entry.map_err(map_error(names::DIGESTS))?;
            if kind == id_kind::ENDPOINT {
                let _none = digests.insert(id, digest);
            }
        }
        Ok(digests)
    }

    /// What is recorded for an id.
    pub fn digest(&self, key: DigestKey) -> Result<Option<Digest>, MapsError> {
        match self.digests.get(&key, 0) {
            Ok(digest) => Ok(Some(digest)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(map_error(names::DIGESTS)(error)),
        }
    }

    /// Everything that a compiler may have planned, as it is in the kernel.
    pub fn snapshot(&self) -> Result<Snapshot, MapsError> {
        let mut snapshot = Snapshot { epoch: self.state()?.epoch, ..Snapshot::default() };
        snapshot.words = self.words.iter().collect();
        for entry in &self.digests {
            let (key, digest) = entry.map_err(map_error(names::DIGESTS))?;
            let _ = snapshot.digests.insert(key, digest);
        }
        for entry in &self.rules {
            let (key, row) = entry.map_err(map_error(names::RULES))?;
            let _ = snapshot.rules.insert(key, row);
        }
        for entry in &self.ports {
            let (key, row) = entry.map_err(map_error(names::PORTS))?;
            let _ = snapshot.ports.insert((key.prefix_len(), key.data()), row);
        }
        for entry in &self.class4 {
            let (address, row) = entry.map_err(map_error(names::CLASS4))?;
            let _ = snapshot.classes.insert(IpAddr::from(address), row);
        }
        for entry in &self.class6 {
            let (address, row) = entry.map_err(map_error(names::CLASS6))?;
            let _ = snapshot.classes.insert(IpAddr::from(address), row);
        }
        for entry in &self.cidr4 {
            let (key, class) = entry.map_err(map_error(names::CIDR4))?;
            if let Ok(prefix) = IpNet::new(IpAddr::from(key.data()), key.prefix_len() as u8) {
                let _ = snapshot.cidrs.insert(prefix, class);
            }
        }
        for entry in &self.cidr6 {
            let (key, class) = entry.map_err(map_error(names::CIDR6))?;
            if let Ok(prefix) = IpNet::new(IpAddr::from(key.data()), key.prefix_len() as u8) {
                let _ = snapshot.cidrs.insert(prefix, class);
            }
        }
        for entry in &self.services {
            let (key, row) = entry.map_err(map_error(names::SERVICES))?;
            let _ = snapshot.services.insert(key, row);
        }
        for entry in &self.service_cidrs {
            let (key, _) = entry.map_err(map_error(names::SERVICE_CIDRS))?;
            if let Some(range) = range_of(key.prefix_len(), key.data()) {
                let _ = snapshot.service_cidrs.insert(range);
            }
        }
        for key in self.addresses.keys() {
            let _ = snapshot.addresses.insert(key.map_err(map_error(names::ADDRESSES))?);
        }
        for endpoint in snapshot.words.keys() {
            let options = self.options.get(endpoint, 0).map_err(map_error(names::OPTIONS))?;
            let _ = snapshot.options.insert(*endpoint, options);
        }
        Ok(snapshot)
    }

    /// The switches of an endpoint, as they are in force.
    pub fn options(&self, endpoint: u32) -> Result<EndpointOptions, MapsError> {
        self.options.get(&endpoint, 0).map_err(map_error(names::OPTIONS))
    }

    /// Sets all counters of an endpoint to zero, before its number is given to another pod.
    pub fn reset_counters(&mut self, endpoint: u32) -> Result<(), MapsError> {
        for direction in [Direction::Ingress, Direction::Egress] {
            for reason in 0..abi::REASONS {
                let index = counter_index(endpoint, direction, reason);
                let values = self.counters.get(&index, 0).map_err(map_error(names::COUNTERS))?;
                if values.iter().any(|value| *value != Counter::default()) {
                    let zero = vec![Counter::default(); values.len()]
                        .try_into()
                        .map_err(|error| map_error(names::COUNTERS)(MapError::IoError(error)))?;
                    self.counters.set(index, zero, 0).map_err(map_error(names::COUNTERS))?;
                }
            }
        }
        Ok(())
    }
}

/// Bits of a mapped address before those of the IPv4 address.
const MAPPED: u8 = 96;

/// A prefix as the key of a trie that holds both families.
fn service_range(range: IpNet) -> Key<[u8; 16]> {
    match range {
        IpNet::V4(range) => Key::new(u32::from(MAPPED + range.prefix_len()), mapped(range.network().octets())),
        IpNet::V6(range) => Key::new(u32::from(range.prefix_len()), range.network().octets()),
    }
}

/// The other way round; `None` for what [`service_range`] never makes.
fn range_of(prefix_len: u32, data: [u8; 16]) -> Option<IpNet> {
    let length = u8::try_from(prefix_len).ok()?;
    match IpAddr::from(data).to_canonical() {
        IpAddr::V4(address) => IpNet::new(address.into(), length.checked_sub(MAPPED)?).ok(),
        IpAddr::V6(address) => IpNet::new(address.into(), length).ok(),
    }
}
