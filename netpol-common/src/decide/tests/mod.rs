//! One pod between its peers and its node, over tables in memory.

mod adoption;
mod flows;
mod fragments;
mod link;
mod policy;
mod services;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::vec::Vec;

use super::{Hook, judge};
use crate::abi::{
    AddressKey, ClassRow, Counter, DecidedKey, DecidedRow, Direction, EndpointOptions, EndpointWord, FlowKey, FlowRow,
    FragmentKey, FragmentRow, InterfaceRow, PortKeyData, PortRow, RULE_NONE, RuleKey, RuleRow, ServiceKey, ServiceRow,
    Settings, address_kind, counter_index, interface_flags, mapped, rule_action,
};
use crate::tables::{FlowTable, Full, Tables};
use crate::verdict::{Reason, Verdict};

const IFINDEX: u32 = 7;
const ENDPOINT: u32 = 3;
const SET: u32 = 20;
/// Another pod of this node.
const SENDER: u32 = 8;
const SENDER_SET: u32 = 21;
/// Where the stamp begins in a mark.
const MARK_SHIFT: u32 = 16;
const POD: [u8; 4] = [10, 244, 0, 5];
const POD6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
/// In class 5.
const PEER: [u8; 4] = [10, 244, 1, 6];
const PEER6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 6];
const PEER_CLASS: u32 = 5;
/// In no class.
const STRANGER: [u8; 4] = [192, 0, 2, 66];
const NODE: [u8; 4] = [10, 244, 0, 1];
const OTHER_NODE: [u8; 4] = [172, 18, 0, 3];

#[derive(Default)]
struct Written {
    embryonic: BTreeMap<FlowKey, FlowRow>,
    over_embryonic: BTreeMap<FlowKey, FlowRow>,
    confirmed: BTreeMap<FlowKey, FlowRow>,
    over_confirmed: BTreeMap<FlowKey, FlowRow>,
    held: BTreeMap<u32, i64>,
    tombstones: BTreeMap<FlowKey, FlowRow>,
    over_tombstones: BTreeMap<FlowKey, FlowRow>,
    fragments: BTreeMap<FragmentKey, FragmentRow>,
    over_fragments: BTreeMap<FragmentKey, FragmentRow>,
    decided: BTreeMap<DecidedKey, DecidedRow>,
    buckets: BTreeMap<u32, u64>,
    counters: BTreeMap<u32, Counter>,
    /// What another CPU does as soon as this one writes to a table.
    meanwhile: Option<(FlowTable, Meanwhile)>,
}

type Meanwhile = fn(&mut Written, &FlowKey, &FlowRow);

/// The tables, and when and how packets arrive.
struct World {
    settings: Option<Settings>,
    interface: Option<InterfaceRow>,
    /// Of other devices.
    others: BTreeMap<u32, InterfaceRow>,
    /// The pod's endpoint number.
    number: u32,
    word: EndpointWord,
    /// Of another pod, [`SENDER`].
    sender_word: EndpointWord,
    options: EndpointOptions,
    addresses: Vec<[u8; 16]>,
    classes: BTreeMap<[u8; 16], ClassRow>,
    rules: BTreeMap<RuleKey, RuleRow>,
    ports: BTreeMap<PortKeyData, PortRow>,
    services: BTreeMap<ServiceKey, ServiceRow>,
    /// Addresses of service ranges, one by one.
    service_ranges: Vec<[u8; 16]>,
    written: RefCell<Written>,
    full: bool,
    now: u64,
}

impl World {
    /// A pod whose set has no rows: isolated in both directions.
    fn isolated() -> Self {
        let row = |kind, class| ClassRow { kind, class };
        Self {
            settings: Some(Settings {
                mark_shift: MARK_SHIFT,
                overlay_ports: [8472_u16.to_be_bytes(), [0; 2], [0; 2], [0; 2]],
                ..Settings::default()
            }),
            interface: Some(InterfaceRow { endpoint: ENDPOINT, flags: interface_flags::POD_VETH }),
            others: BTreeMap::new(),
            number: ENDPOINT,
            word: EndpointWord::new(SET, 9),
            sender_word: EndpointWord::new(SENDER_SET, 9),
            options: EndpointOptions::default(),
            addresses: Vec::from([mapped(POD), POD6]),
            classes: BTreeMap::from([
                (mapped(PEER), row(address_kind::POD, PEER_CLASS)),
                (PEER6, row(address_kind::POD, PEER_CLASS)),
                (mapped(NODE), row(address_kind::THIS_NODE, 0)),
                (mapped(OTHER_NODE), row(address_kind::OTHER_NODE, 0)),
            ]),
            rules: BTreeMap::new(),
            ports: BTreeMap::new(),
            services: BTreeMap::new(),
            service_ranges: Vec::new(),
            written: RefCell::default(),
            full: false,
            now: 1000,
        }
    }

    /// Adds a verdict row; `ports` empty means every port.
    fn allow(self, direction: Direction, class: u32, protocol: u8, rule: u32, ports: &[u16]) -> Self {
        self.allow_in(SET, direction, class, protocol, rule, ports)
    }

    fn allow_in(mut self, set: u32, direction: Direction, class: u32, protocol: u8, rule: u32, ports: &[u16]) -> Self {
        let key = RuleKey { set, class, direction: direction as u8, protocol, pad: 0 };
        let row = if ports.is_empty() {
            RuleRow { action: rule_action::ALLOW, port_set: 0, rule }
        } else {
            RuleRow { action: rule_action::PORTS, port_set: rule, rule: RULE_NONE }
        };
        let _ = self.rules.insert(key, row);
        for port in ports {
            let key = PortKeyData { port_set: rule.to_be_bytes(), port: port.to_be_bytes(), pad: [0; 2] };
            let _ = self.ports.insert(key, PortRow { action: rule_action::ALLOW, rule });
        }
        self
    }

    /// Takes all permissions away, as the agent does: new set, new epoch.
    fn revoke(&mut self) {
        self.rules.clear();
        self.next_epoch();
    }

    /// Gives the pod another endpoint number.
    fn renumber(&mut self, number: u32) {
        self.interface = Some(InterfaceRow { endpoint: number, flags: interface_flags::POD_VETH });
        self.number = number;
    }

    /// Another CPU does something once, when this one writes to a table: before it adds a flow, after it puts one.
    fn meanwhile(&self, table: FlowTable, what: Meanwhile) {
        self.written.borrow_mut().meanwhile = Some((table, what));
    }

    fn next_epoch(&mut self) {
        self.word = EndpointWord::new(self.word.set(), self.word.epoch() + 1);
    }

    fn verdict(&self, frame: &[u8], direction: Direction, ingress_ifindex: u32, has_socket: bool) -> Verdict {
        self.verdict_on(frame, direction, ingress_ifindex, has_socket, 0)
    }

    fn verdict_on(
        &self,
        frame: &[u8],
        direction: Direction,
        ingress_ifindex: u32,
        has_socket: bool,
        mark: u32,
    ) -> Verdict {
        judge(
            self,
            frame,
            &Hook {
                direction,
                ifindex: IFINDEX,
                mark,
                ingress_ifindex,
                has_socket,
                link_header: true,
                vlan: false,
                now_ns: self.now * 1_000_000_000,
                segments: 1,
            },
        )
    }

    /// The pod sends.
    fn send(&self, frame: &[u8]) -> Reason {
        self.verdict(frame, Direction::Egress, IFINDEX, true).reason
    }

    /// The pod is sent a packet that came in by another device.
    fn receive(&self, frame: &[u8]) -> Reason {
        self.verdict(frame, Direction::Ingress, 2, false).reason
    }

    /// A socket of the node sends to the pod.
    fn receive_from_node(&self, frame: &[u8]) -> Reason {
        self.verdict(frame, Direction::Ingress, 0, true).reason
    }

    fn flows(&self, table: FlowTable) -> usize {
        self.written.borrow_mut().table(table).len()
    }

    fn only_flow(&self, table: FlowTable) -> FlowRow {
        let mut written = self.written.borrow_mut();
        let flows = written.table(table);
        assert_eq!(flows.len(), 1);
        *flows.values().next().unwrap()
    }

    fn packets(&self, endpoint: u32, direction: Direction, reason: Reason) -> u64 {
        let index = counter_index(endpoint, direction, reason as u32);
        self.written.borrow().counters.get(&index).map_or(0, |counter| counter.packets)
    }
}

impl Written {
    fn interfere(&mut self, table: FlowTable, key: &FlowKey, row: &FlowRow) {
        if let Some((_, what)) = self.meanwhile.take_if(|(at, _)| *at == table) {
            what(self, key, row);
        }
    }

    fn table(&mut self, table: FlowTable) -> &mut BTreeMap<FlowKey, FlowRow> {
        match table {
            FlowTable::Embryonic => &mut self.embryonic,
            FlowTable::OverEmbryonic => &mut self.over_embryonic,
            FlowTable::Confirmed => &mut self.confirmed,
            FlowTable::OverConfirmed => &mut self.over_confirmed,
            FlowTable::Tombstones => &mut self.tombstones,
            FlowTable::OverTombstones => &mut self.over_tombstones,
        }
    }
}

impl Tables for World {
    fn settings(&self) -> Option<Settings> {
        self.settings
    }
    fn interface(&self, ifindex: u32) -> Option<InterfaceRow> {
        if ifindex == IFINDEX { self.interface } else { self.others.get(&ifindex).copied() }
    }
    fn endpoint_word(&self, endpoint: u32) -> Option<EndpointWord> {
        match endpoint {
            0 => Some(EndpointWord(0)),
            number if number == self.number => Some(self.word),
            SENDER => Some(self.sender_word),
            _ => None,
        }
    }
    fn endpoint_options(&self, _endpoint: u32) -> Option<EndpointOptions> {
        Some(self.options)
    }
    fn owns_address(&self, key: &AddressKey) -> bool {
        key.endpoint == self.number && self.addresses.contains(&key.address)
    }
    fn class4(&self, address: &[u8; 4]) -> Option<ClassRow> {
        self.classes.get(&mapped(*address)).copied()
    }
    fn class6(&self, address: &[u8; 16]) -> Option<ClassRow> {
        self.classes.get(address).copied()
    }
    fn cidr4(&self, _address: &[u8; 4]) -> Option<u32> {
        None
    }
    fn cidr6(&self, _address: &[u8; 16]) -> Option<u32> {
        None
    }
    fn rule(&self, key: &RuleKey) -> Option<RuleRow> {
        self.rules.get(key).copied()
    }
    fn port(&self, key: &PortKeyData) -> Option<PortRow> {
        self.ports.get(key).copied()
    }
    fn flow(&self, table: FlowTable, key: &FlowKey) -> Option<FlowRow> {
        self.written.borrow_mut().table(table).get(key).copied()
    }
    fn put_flow(&self, table: FlowTable, key: &FlowKey, row: &FlowRow) -> Result<(), Full> {
        if self.full {
            return Err(Full);
        }
        let mut written = self.written.borrow_mut();
        let _ = written.table(table).insert(*key, *row);
        written.interfere(table, key, row);
        Ok(())
    }
    fn add_flow(&self, table: FlowTable, key: &FlowKey, row: &FlowRow) -> bool {
        let mut written = self.written.borrow_mut();
        written.interfere(table, key, row);
        let flows = written.table(table);
        let refused = self.full || flows.contains_key(key);
        if !refused {
            let _none = flows.insert(*key, *row);
        }
        !refused
    }
    fn replace_flow(&self, table: FlowTable, key: &FlowKey, row: &FlowRow) -> bool {
        self.written.borrow_mut().table(table).get_mut(key).map(|old| *old = *row).is_some()
    }
    fn remove_flow(&self, table: FlowTable, key: &FlowKey) -> bool {
        self.written.borrow_mut().table(table).remove(key).is_some()
    }
    fn held(&self, account: u32) -> Option<i64> {
        Some(self.written.borrow_mut().held.get(&account).copied().unwrap_or_default())
    }
    fn hold(&self, account: u32, add: i64) {
        *self.written.borrow_mut().held.entry(account).or_default() += add;
    }
    fn touch_flow(&self, table: FlowTable, key: &FlowKey, last_seen: u32, phase: u32) {
        if let Some(row) = self.written.borrow_mut().table(table).get_mut(key) {
            (row.last_seen, row.phase) = (last_seen, phase);
        }
    }
    fn service(&self, key: &ServiceKey) -> Option<ServiceRow> {
        self.services.get(key).copied()
    }
    fn is_service_range(&self, address: &[u8; 16]) -> bool {
        self.service_ranges.contains(address)
    }
    fn decided(&self, key: &DecidedKey) -> Option<DecidedRow> {
        self.written.borrow().decided.get(key).copied()
    }
    fn put_decided(&self, key: &DecidedKey, row: &DecidedRow) {
        let _ = self.written.borrow_mut().decided.insert(*key, *row);
    }
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRow> {
        let written = self.written.borrow_mut();
        written.fragments.get(key).or_else(|| written.over_fragments.get(key)).copied()
    }
    fn put_fragment(&self, key: &FragmentKey, row: &FragmentRow, over: bool) -> Result<(), Full> {
        let mut written = self.written.borrow_mut();
        if over {
            let _old = written.fragments.remove(key);
            let _old = written.over_fragments.insert(*key, *row);
        } else {
            let _old = written.fragments.insert(*key, *row);
        }
        Ok(())
    }
    fn bucket(&self, index: u32) -> Option<u64> {
        Some(self.written.borrow().buckets.get(&index).copied().unwrap_or_default())
    }
    fn put_bucket(&self, index: u32, value: u64) {
        let _old = self.written.borrow_mut().buckets.insert(index, value);
    }
    fn count(&self, index: u32, add: Counter) {
        let mut written = self.written.borrow_mut();
        let counter = written.counters.entry(index).or_default();
        counter.packets += add.packets;
        counter.bytes += add.bytes;
    }
}
