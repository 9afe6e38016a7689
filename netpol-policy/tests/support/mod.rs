//! What the property tests share: cells, answers, and a compiler together with the maps it writes.

#![allow(dead_code, clippy::allow_attributes, reason = "every test binary uses its own part of this module")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::abi::{
    CLASS_ANY, Direction, PROTOCOL_ANY, PortKeyData, RuleKey, ServiceKey, ServiceRow, rule_action,
};
use netpol_common::abi::{SET_ALLOW_ALL, SET_DENY_ALL, SET_PENDING};
use netpol_common::decide::{PolicyVerdict, policy_verdict};
use netpol_common::tables::Tables as _;
use netpol_policy::compile::memory::MemoryTables;
use netpol_policy::compile::{Capacities, Change, Compiler, Plan, Snapshot};
use netpol_policy::oracle;
use netpol_policy::testing::{NODE, World};

/// Number of generated cases: `NETPOL_PROPERTY_CASES`, else the default.
pub(crate) fn cases(default: u64) -> u64 {
    std::env::var("NETPOL_PROPERTY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default)
}

/// First seed: `NETPOL_PROPERTY_SEED`, else 0.
pub(crate) fn first_seed() -> u64 {
    std::env::var("NETPOL_PROPERTY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0)
}

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub(crate) endpoint: u32,
    pub(crate) egress: bool,
    pub(crate) peer: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) port: Option<u16>,
}

impl Cell {
    pub(crate) fn direction(&self) -> Direction {
        if self.egress { Direction::Egress } else { Direction::Ingress }
    }
}

pub(crate) fn cells(endpoints: &[u32], peers: &[IpAddr], packets: &[(u8, Option<u16>)]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for endpoint in endpoints {
        for egress in [false, true] {
            for peer in peers {
                for (protocol, port) in packets {
                    cells.push(Cell { endpoint: *endpoint, egress, peer: *peer, protocol: *protocol, port: *port });
                }
            }
        }
    }
    cells
}

/// What tables answer: by the very function that judges packets.
pub(crate) fn verdict(tables: &MemoryTables, cell: &Cell) -> PolicyVerdict {
    let set = tables.snapshot().words.get(&cell.endpoint).map_or(SET_PENDING, |word| word.set());
    let peer = match cell.peer {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    policy_verdict(tables, set, cell.direction(), &peer, cell.protocol, cell.port.map(u16::to_be_bytes))
}

/// Whether tables allow it.
pub(crate) fn answer(tables: &MemoryTables, cell: &Cell) -> bool {
    verdict(tables, cell).allowed
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

/// What the API text says; `None` where it has no opinion: the pod is not there, or takes no part, or the endpoint is
/// older than the agent and its pod's addresses are not known yet.
pub(crate) fn expected(world: &World, cell: &Cell) -> Option<bool> {
    let endpoint = world.endpoints.get(&cell.endpoint)?;
    let pod = world.pod(endpoint)?;
    if endpoint.adopted && pod.addresses.is_empty() {
        return None;
    }
    let ask = if cell.egress { oracle::egress } else { oracle::ingress };
    Some(ask(&world.cluster, pod, cell.peer, cell.protocol, cell.port))
}

/// A compiler and the maps that it writes.
pub(crate) struct Node {
    pub(crate) compiler: Compiler,
    pub(crate) tables: MemoryTables,
    pub(crate) now_ms: u64,
}

impl Node {
    pub(crate) fn new(capacities: Capacities, snapshot: Snapshot) -> Self {
        let tables = MemoryTables::of_snapshot(snapshot.clone());
        Self { compiler: Compiler::new(NODE, capacities, snapshot), tables, now_ms: 1 }
    }

    pub(crate) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.compiler.apply(change));
    }

    /// Plans and carries the plan out.
    pub(crate) fn program(&mut self) -> Plan {
        let plan = self.compiler.plan(self.now_ms);
        for op in &plan.ops {
            self.tables.apply(op);
        }
        plan
    }

    /// Plans until there is nothing left to do.
    pub(crate) fn quiesce(&mut self) {
        for _ in 0..20 {
            let plan = self.program();
            match plan.wake_at_ms {
                Some(at) => self.now_ms = at.max(self.now_ms),
                None if plan.ops.is_empty() => return,
                None => {}
            }
        }
        panic!("does not come to rest");
    }
}

/// Tables without ids: what must be equal where only ids may differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Meaning(pub(crate) BTreeMap<String, String>);

impl Meaning {
    pub(crate) fn of(tables: &MemoryTables) -> Self {
        let Snapshot {
            digests,
            ports,
            rules,
            classes,
            cidrs,
            words,
            addresses,
            options,
            services,
            service_cidrs,
            epoch: _,
        } = tables.snapshot();
        let mut meaning = BTreeMap::new();
        let digest = |kind: u32, id: u32| {
            let key = netpol_common::abi::DigestKey { kind, id };
            digests.get(&key).map_or_else(|| format!("#{id}"), |digest| format!("{digest:x?}"))
        };
        use netpol_common::abi::id_kind::{CLASS, PORT_SET, RULE, SET};
        let mut put = |key: String, value: String| {
            let old = meaning.insert(key.clone(), value);
            assert_eq!(old, None, "two rows mean the same: {key}");
        };
        for (key, of) in digests {
            put(format!("digest {} {of:x?}", key.kind), String::new());
        }
        for ((prefix_len, key), row) in ports {
            let set = digest(PORT_SET, u32::from_be_bytes(key.port_set));
            put(
                format!("port {set} {:?}/{prefix_len}", key.port),
                format!("{} {}", row.action, digest(RULE, row.rule)),
            );
        }
        for (key, row) in rules {
            let (set, class) = (digest(SET, key.set), digest(CLASS, key.class));
            let ports = digest(PORT_SET, row.port_set);
            put(
                format!("rule {set} {class} {} {}", key.direction, key.protocol),
                format!("{} {ports} {}", row.action, digest(RULE, row.rule)),
            );
        }
        for (address, row) in classes {
            put(format!("address {address}"), format!("{} {}", row.kind, digest(CLASS, row.class)));
        }
        for (prefix, class) in cidrs {
            put(format!("prefix {prefix}"), digest(CLASS, *class));
        }
        for (endpoint, word) in words.iter().filter(|(_, word)| word.0 != 0) {
            put(format!("endpoint {endpoint}"), digest(SET, word.set()));
        }
        for key in addresses {
            put(format!("owned {} {:x?}", key.endpoint, key.address), String::new());
        }
        for (endpoint, options) in options.iter().filter(|(_, options)| options.flags != 0) {
            put(format!("options {endpoint}"), options.flags.to_string());
        }
        for (key, row) in services {
            put(format!("service {key:?}"), format!("{row:?}"));
        }
        for range in service_cidrs {
            put(format!("service range {range}"), String::new());
        }
        Self(meaning)
    }

    pub(crate) fn assert_same(&self, other: &Self, context: &str) {
        let Self(ours) = self;
        let Self(theirs) = other;
        let differing: Vec<_> = ours
            .iter()
            .filter(|(key, value)| theirs.get(*key) != Some(value))
            .map(|(key, value)| format!("first only: {key} = {value}"))
            .chain(
                theirs
                    .iter()
                    .filter(|(key, value)| ours.get(*key) != Some(value))
                    .map(|(key, value)| format!("second only: {key} = {value}")),
            )
            .collect();
        assert!(differing.is_empty(), "{context}: {differing:#?}");
    }
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

/// The backends that a row names.
pub(crate) fn local_backends(row: &ServiceRow) -> BTreeSet<(IpAddr, u16)> {
    let meant = row.local.iter().take(row.count as usize);
    meant.map(|to| (IpAddr::from(to.address).to_canonical(), u16::from_be_bytes(to.port))).collect()
}
