//! One pod behind the test runs' interface: in the kernel's maps and in memory at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::abi::{
    AddressKey, ClassRow, Counter, Direction, EndpointOptions, EndpointWord, FlowRow, InterfaceRow, PortKeyData,
    PortRow, REASONS, RULE_NONE, RuleKey, RuleRow, Settings, address_kind, counter_index, interface_flags, names,
    programs, rule_action, stamp,
};
use netpol_common::decide::{Exit, Hook, Scratch, judge, judge_leaving};
use netpol_common::parse::FromNetworkHeader;
use netpol_common::tables::{FlowTable, Tables as _};
use netpol_common::verdict::Reason;
use netpol_policy::compile::MapOp;
use netpol_policy::compile::memory::MemoryTables;
use netpol_suites::programs::{Arrival, IFINDEX, NEXT, Run, SHOT, program};

use super::loaded::Loaded;

pub(crate) const ENDPOINT: u32 = 3;
pub(crate) const SET: u32 = 20;
/// Another pod of this node, and its policy set.
pub(crate) const SENDER: u32 = 8;
pub(crate) const SENDER_SET: u32 = 21;
/// Where the stamp begins in a mark.
pub(crate) const MARK_SHIFT: u32 = 16;
pub(crate) const POD: [u8; 4] = [10, 244, 0, 5];
pub(crate) const PEER: [u8; 4] = [10, 244, 1, 6];
pub(crate) const STRANGER: [u8; 4] = [192, 0, 2, 66];
pub(crate) const NODE: [u8; 4] = [10, 244, 0, 1];
pub(crate) const POD6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
pub(crate) const PEER6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 6];
pub(crate) const PEER_CLASS: u32 = 5;
/// The device that a pod's own packets come in by.
pub(crate) const IFINDEX_OF_POD: u32 = IFINDEX;
/// A device that packets come in by.
pub(crate) const UPLINK: u32 = 2;
/// The pod bridge.
pub(crate) const BRIDGE: u32 = 4;
/// The veth of [`SENDER`].
pub(crate) const SENDER_VETH: u32 = 5;

/// After how many packets all counters are compared, so that what is counted wrongly is found near its packet.
const PACKETS_BETWEEN: u64 = 256;

/// The tables of flows, on both sides.
const FLOWS: [(&str, FlowTable); 6] = [
    (names::EMBRYONIC, FlowTable::Embryonic),
    (names::OVER_EMBRYONIC, FlowTable::OverEmbryonic),
    (names::CONFIRMED, FlowTable::Confirmed),
    (names::OVER_CONFIRMED, FlowTable::OverConfirmed),
    (names::TOMBSTONES, FlowTable::Tombstones),
    (names::OVER_TOMBSTONES, FlowTable::OverTombstones),
];

/// What became of one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    /// Whether it goes on.
    pub(crate) passed: bool,
    /// The mark that it goes on with.
    pub(crate) mark: u32,
    /// Whom it was counted for, and as what.
    pub(crate) counted: Vec<(u32, Direction, Reason)>,
}

/// The two sides that must agree.
pub(crate) struct Both {
    pub(crate) kernel: Loaded,
    pub(crate) memory: MemoryTables,
    pub(crate) endpoint: u32,
    pub(crate) packets: u64,
    /// Endpoints whose counters are compared: 0 is nobody's.
    watched: BTreeSet<u32>,
    /// What the kernel's counters were before; they are not set back between tests.
    counted_before: BTreeMap<u32, Counter>,
}

/// Nanoseconds of the boot clock, which is the programs' clock.
pub(crate) fn boot_clock() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the struct it is given.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    assert_eq!(status, 0, "clock_gettime");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Both {
    /// Nothing but settings: the interface is pending.
    pub(crate) fn pending() -> Self {
        let mut kernel = Loaded::take();
        let settings = Settings {
            mark_shift: MARK_SHIFT,
            overlay_ports: [8472_u16.to_be_bytes(), [0; 2], [0; 2], [0; 2]],
            ..Settings::default()
        };
        kernel.set_settings(settings).unwrap();
        let mut memory = MemoryTables::new();
        memory.settings = Some(settings);
        let (watched, counted_before) = (BTreeSet::new(), BTreeMap::new());
        let mut both = Self { kernel, memory, endpoint: 0, packets: 0, watched, counted_before };
        for endpoint in [0, ENDPOINT, SENDER] {
            both.watch(endpoint);
        }
        // An array of the kernel has every element; the memory only what was written.
        both.apply(MapOp::SetWord { endpoint: 0, word: EndpointWord(0) });
        both
    }

    /// A pod whose set has no rows yet: isolated both ways.
    pub(crate) fn isolated() -> Self {
        let mut both = Self::pending();
        both.bring_up(ENDPOINT);
        both.apply(MapOp::SetWord { endpoint: ENDPOINT, word: EndpointWord::new(SET, 9) });
        both.apply(MapOp::SetOptions { endpoint: ENDPOINT, options: EndpointOptions::default() });
        for address in [IpAddr::from(POD), IpAddr::from(POD6)] {
            both.apply(MapOp::PutAddress(AddressKey { endpoint: ENDPOINT, address: bytes(address) }));
        }
        for (address, kind, class) in [
            (IpAddr::from(PEER), address_kind::POD, PEER_CLASS),
            (IpAddr::from(PEER6), address_kind::POD, PEER_CLASS),
            (IpAddr::from(NODE), address_kind::THIS_NODE, 0),
        ] {
            both.apply(MapOp::PutClass(address, ClassRow { kind, class }));
        }
        both
    }

    pub(crate) fn bring_up(&mut self, endpoint: u32) {
        let row = InterfaceRow { endpoint, flags: interface_flags::POD_VETH };
        self.kernel.set_interface(row).unwrap();
        let _old = self.memory.interfaces.insert(IFINDEX, row);
        self.endpoint = endpoint;
        self.watch(endpoint);
    }

    /// Compares an endpoint's counters from now on.
    fn watch(&mut self, endpoint: u32) {
        if self.watched.insert(endpoint) {
            let before = counters_of(endpoint).map(|index| (index, self.kernel.counter(index).unwrap()));
            self.counted_before.extend(before);
        }
    }

    pub(crate) fn apply(&mut self, op: MapOp) {
        self.kernel.apply(&op).unwrap();
        self.memory.apply(&op);
    }

    /// The pod bridge, and another pod whose set has no rows.
    pub(crate) fn add_sender(&mut self) {
        self.add_device(BRIDGE, InterfaceRow { endpoint: 0, flags: interface_flags::POD_BRIDGE });
        self.add_device(SENDER_VETH, InterfaceRow { endpoint: SENDER, flags: interface_flags::POD_VETH });
        self.apply(MapOp::SetWord { endpoint: SENDER, word: EndpointWord::new(SENDER_SET, 9) });
    }

    pub(crate) fn add_device(&mut self, ifindex: u32, row: InterfaceRow) {
        self.kernel.set_device(ifindex, row).unwrap();
        let _old = self.memory.interfaces.insert(ifindex, row);
    }

    /// Allows a class and protocol; no ports are all ports.
    pub(crate) fn allow(&mut self, direction: Direction, class: u32, protocol: u8, rule: u32, ports: &[u16]) {
        self.allow_in(SET, direction, class, protocol, rule, ports);
    }

    /// The same in any policy set.
    pub(crate) fn allow_in(
        &mut self,
        set: u32,
        direction: Direction,
        class: u32,
        protocol: u8,
        rule: u32,
        ports: &[u16],
    ) {
        let key = RuleKey { set, class, direction: direction as u8, protocol, pad: 0 };
        let row = if ports.is_empty() {
            RuleRow { action: rule_action::ALLOW, port_set: 0, rule }
        } else {
            RuleRow { action: rule_action::PORTS, port_set: rule, rule: RULE_NONE }
        };
        for port in ports {
            let key = PortKeyData { port_set: rule.to_be_bytes(), port: port.to_be_bytes(), pad: [0; 2] };
            self.apply(MapOp::PutPort { prefix_len: 48, key, row: PortRow { action: rule_action::ALLOW, rule } });
        }
        self.apply(MapOp::PutRule(key, row));
    }

    pub(crate) fn settings(&mut self, settings: Settings) {
        self.kernel.set_settings(settings).unwrap();
        self.memory.settings = Some(settings);
    }

    /// Judges a frame on both sides, and insists on one answer.
    pub(crate) fn judge(&mut self, direction: Direction, frame: &[u8], ingress_ifindex: u32) -> Reason {
        let arrival = Arrival { ingress_ifindex, mark: 0 };
        let (reason, judged) = self.judge_as(program(direction), frame, arrival);
        let deferred = stamp::state(stamp::of_mark(judged.mark, MARK_SHIFT)) == stamp::DEFERRED;
        let counted = if judged.passed && direction == Direction::Egress && deferred {
            Vec::new()
        } else {
            vec![(self.endpoint, direction, reason)]
        };
        assert_eq!(judged.counted, counted);
        reason
    }

    /// The same for a program and a packet that may bear a stamp; and what it was counted as, and for whom.
    pub(crate) fn judge_as(&mut self, name: &str, frame: &[u8], arrival: Arrival) -> (Reason, Judged) {
        let Run { action, mark, time: _ } = self.kernel.run(name, frame, arrival, 1).unwrap();
        assert!(matches!(action, NEXT | SHOT), "said {action}");
        let before = self.memory.counters();
        let direction = if name == programs::POD_INGRESS { Direction::Ingress } else { Direction::Egress };
        let hook = Hook {
            direction,
            ifindex: IFINDEX,
            mark: arrival.mark,
            ingress_ifindex: arrival.ingress_ifindex,
            has_socket: true,
            link_header: true,
            vlan: false,
            now_ns: boot_clock(),
            segments: 0,
        };
        let verdict = if name == programs::HOST_EGRESS {
            let is_ip = matches!(frame[12..14], [0x08, 0x00] | [0x86, 0xdd]);
            let Hook { ifindex, mark, ingress_ifindex, segments, .. } = hook;
            let exit = Exit { ifindex, mark, ingress_ifindex, is_ip, segments };
            judge_leaving(&self.memory, &FromNetworkHeader(frame), &exit, boot_clock, &mut Scratch::new())
        } else {
            judge(&self.memory, frame, &hook)
        };
        let passed = verdict.passes();
        let after = if passed { verdict.mark } else { arrival.mark };
        let packet = || format!("{name} {arrival:?}: {frame:02x?}");
        assert_eq!((action == NEXT, mark), (passed, after), "kernel and verdict function differ: {}", packet());
        let mut counted = Vec::new();
        for (index, now) in self.memory.counters() {
            let old = before.get(&index).copied().unwrap_or_default();
            if now != old {
                assert_eq!((now.packets - old.packets, now.bytes - old.bytes), (1, frame.len() as u64), "{}", packet());
                self.compare_counter(index, now, &packet);
                counted.push(of_index(index));
            }
        }
        self.packets += 1;
        if self.packets.is_multiple_of(PACKETS_BETWEEN) {
            self.compare_counters();
        }
        (verdict.reason, Judged { passed, mark, counted })
    }

    fn compare_counter(&self, index: u32, memory: Counter, context: &dyn Fn() -> String) {
        let Some(before) = self.counted_before.get(&index) else { panic!("nobody watches counter {index}") };
        let kernel = self.kernel.counter(index).unwrap();
        let kernel = Counter { packets: kernel.packets - before.packets, bytes: kernel.bytes - before.bytes };
        let (endpoint, reason) = (index / (2 * REASONS), index % (2 * REASONS));
        assert_eq!(kernel, memory, "endpoint {endpoint}, counter {reason}: {}", context());
    }

    /// Insists that nothing was counted in the kernel that was not counted in memory.
    fn compare_counters(&self) {
        let memory = self.memory.counters();
        for index in self.counted_before.keys() {
            let count = memory.get(index).copied().unwrap_or_default();
            self.compare_counter(*index, count, &|| format!("after {} packets", self.packets));
        }
    }

    pub(crate) fn send(&mut self, frame: &[u8]) -> Reason {
        self.judge(Direction::Egress, frame, IFINDEX_OF_POD)
    }

    pub(crate) fn receive(&mut self, frame: &[u8]) -> Reason {
        self.judge(Direction::Ingress, frame, UPLINK)
    }

    pub(crate) fn receive_from_node(&mut self, frame: &[u8]) -> Reason {
        self.judge(Direction::Ingress, frame, 0)
    }

    /// How many flows the memory has in a table.
    pub(crate) fn flows(&self, table: FlowTable) -> usize {
        self.memory.flows(table).len()
    }

    /// Lets some seconds pass for all flows of a table, on both sides.
    pub(crate) fn age(&mut self, table: FlowTable, seconds: u32) {
        let (name, _) = FLOWS.into_iter().find(|(_, one)| *one == table).unwrap();
        for (key, row) in self.memory.flows(table) {
            // The boot clock begins at 0: a machine can be too young for what is to be so old.
            let last_seen = row.last_seen.checked_sub(seconds).expect("a machine that runs for that long");
            let row = FlowRow { last_seen, ..row };
            self.kernel.put_flow(name, key, row).unwrap();
            self.memory.put_flow(table, &key, &row).unwrap();
        }
    }

    /// Insists that both sides remember the same flows, and have counted alike.
    pub(crate) fn compare(&self) {
        for (name, table) in FLOWS {
            let memory = self.memory.flows(table).into_iter();
            let memory: Vec<_> = memory.map(|(key, row)| (key, FlowRow { last_seen: 0, ..row })).collect();
            assert_eq!(self.kernel.flows(name).unwrap(), memory, "{name}");
        }
        let memory: Vec<_> = self.memory.all_decided().into_iter().collect();
        assert_eq!(self.kernel.decided().unwrap(), memory);
        self.compare_counters();
    }

    /// Forgets all flows on both sides: those that the memory has, since to look for others in the kernel's tables takes
    /// as long as thousands of packets. [`Both::compare`] finds what is left.
    pub(crate) fn forget_flows(&mut self) {
        for (name, table) in FLOWS {
            for key in self.memory.flows(table).into_keys() {
                self.kernel.forget_flow(name, key).unwrap();
            }
        }
        for key in self.memory.all_decided().into_keys() {
            self.kernel.forget_decided(key).unwrap();
        }
        self.memory.forget_flows();
    }
}

/// All counters of an endpoint, by index.
fn counters_of(endpoint: u32) -> impl Iterator<Item = u32> {
    let first = counter_index(endpoint, Direction::Ingress, 0);
    assert_eq!(counter_index(endpoint, Direction::Egress, 0), first + REASONS);
    first..first + 2 * REASONS
}

/// Whose counter it is, and of what.
fn of_index(index: u32) -> (u32, Direction, Reason) {
    let (endpoint, rest) = (index / (2 * REASONS), index % (2 * REASONS));
    let directions = [Direction::Ingress, Direction::Egress];
    let mut all = directions.into_iter().flat_map(|direction| Reason::ALL.map(|reason| (direction, reason)));
    let found = all.find(|(direction, reason)| counter_index(0, *direction, *reason as u32) == rest);
    let (direction, reason) = found.unwrap_or_else(|| panic!("no reason has counter {index}"));
    (endpoint, direction, reason)
}

/// The sixteen bytes of an address, IPv4 in mapped form.
pub(crate) fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
