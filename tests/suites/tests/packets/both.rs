//! One pod behind the test runs' interface: in the kernel's maps and in memory at once.

use std::net::IpAddr;

use netpol_common::abi::{
    AddressKey, ClassRow, Direction, EndpointOptions, EndpointWord, FlowRow, InterfaceRow, PortKeyData, PortRow,
    RULE_NONE, RuleKey, RuleRow, Settings, address_kind, counter_index, interface_flags, names, programs, rule_action,
    stamp,
};
use netpol_common::decide::{Exit, Hook, Scratch, judge, judge_leaving};
use netpol_common::parse::FromNetworkHeader;
use netpol_common::tables::{FlowTable, Tables as _};
use netpol_common::verdict::Reason;
use netpol_policy::compile::MapOp;
use netpol_policy::compile::memory::MemoryTables;
use netpol_suites::programs::{Arrival, IFINDEX, Judged, Programs, program};

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

/// The two sides that must agree.
pub(crate) struct Both {
    pub(crate) kernel: Programs,
    pub(crate) memory: MemoryTables,
    pub(crate) endpoint: u32,
    pub(crate) packets: u64,
}

/// Nanoseconds of the boot clock, which is the programs' clock.
fn boot_clock() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the struct it is given.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    assert_eq!(status, 0, "clock_gettime");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Both {
    /// Nothing but settings: the interface is pending.
    pub(crate) fn pending() -> Self {
        let mut kernel = Programs::load(4096).unwrap();
        let settings = Settings {
            mark_shift: MARK_SHIFT,
            overlay_ports: [8472_u16.to_be_bytes(), [0; 2], [0; 2], [0; 2]],
            ..Settings::default()
        };
        kernel.set_settings(settings).unwrap();
        let mut memory = MemoryTables::new();
        memory.settings = Some(settings);
        let mut both = Self { kernel, memory, endpoint: 0, packets: 0 };
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
        let all = [0, ENDPOINT, SENDER, self.endpoint];
        let endpoints = &all[..if all[..3].contains(&self.endpoint) { 3 } else { 4 }];
        let whom: Vec<_> =
            endpoints.iter().flat_map(|number| [(*number, Direction::Ingress), (*number, Direction::Egress)]).collect();
        let kernel = self.kernel.judge(name, frame, arrival, &whom).unwrap();
        let counters = |memory: &MemoryTables| -> Vec<_> {
            let indices = whom.iter().flat_map(|(endpoint, direction)| {
                Reason::ALL.into_iter().map(|reason| counter_index(*endpoint, *direction, reason as u32))
            });
            indices.map(|index| memory.counter(index)).collect()
        };
        let before = counters(&self.memory);
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
        let after = counters(&self.memory);
        let reasons = whom
            .iter()
            .flat_map(|(endpoint, direction)| Reason::ALL.into_iter().map(|reason| (*endpoint, *direction, reason)));
        let changed = reasons.zip(before.iter().zip(&after)).filter(|(_, (before, after))| before != after);
        let counted = changed.map(|(what, _)| what).collect();
        let passed = verdict.passes();
        let memory = Judged { passed, mark: if passed { verdict.mark } else { arrival.mark }, counted };
        assert_eq!(kernel, memory, "kernel and verdict function differ: {name} {arrival:?}: {frame:02x?}");
        self.packets += 1;
        (verdict.reason, memory)
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

    /// Insists that both sides remember the same flows.
    pub(crate) fn compare_flows(&self) {
        for (name, table) in [
            (names::EMBRYONIC, FlowTable::Embryonic),
            (names::CONFIRMED, FlowTable::Confirmed),
            (names::TOMBSTONES, FlowTable::Tombstones),
        ] {
            let memory = self.memory.flows(table).into_iter();
            let memory: Vec<_> = memory.map(|(key, row)| (key, FlowRow { last_seen: 0, ..row })).collect();
            assert_eq!(self.kernel.flows(name).unwrap(), memory, "{name}");
        }
        for (key, row) in self.kernel.decided().unwrap() {
            assert_eq!(self.memory.decided(&key), Some(row), "{key:?}");
        }
    }
}

/// The sixteen bytes of an address, IPv4 in mapped form.
pub(crate) fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

impl Both {
    /// Forgets all flows on both sides.
    pub(crate) fn forget_flows(&mut self) {
        self.kernel.forget_flows().unwrap();
        let mut memory = MemoryTables::of_snapshot(self.memory.snapshot().clone());
        memory.settings = self.memory.settings;
        memory.interfaces = self.memory.interfaces.clone();
        self.memory = memory;
    }
}
