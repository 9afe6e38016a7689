//! Devices that are no pod's, and the program that each carries at TC egress (decision D6).
//!
//! What a pod sends to a Service leaves the pod's veth undecided, and is judged by its real destination where it leaves
//! the node: by any device but loopback, ifb (which sees a pod's packets before a proxy rewrites them), the pod bridge
//! (its ports judge) and the pods' own veths. A device is hooked as soon as netlink tells of it. Most veths appear
//! before they are put in the pod bridge: they are hooked like any other device, and let go of once they carry the
//! programs of a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use netpol_common::abi::{AgentState, InterfaceRow, PENDING_ENDPOINT, interface_flags};
use tracing::{debug, info, warn};

use super::ports::Ports;
use super::premises::settings;
use super::{ARM_AFTER, Engine};
use crate::config::Families;
use crate::dataplane::attach::Role;
use crate::guard::{self, Wanted};
use crate::interfaces::bridge_netfilter::BridgeNetfilter;
use crate::interfaces::netlink::Link;
use crate::metrics::Stage;

/// How soon the guard's table is tried again.
const GUARD_AGAIN: Duration = Duration::from_secs(1);

/// A device that is to be hooked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name when it was last heard of, for messages.
    pub name: String,
    /// Whether its frames start at the network header.
    pub headerless: bool,
    /// Whether it carries the program.
    pub attached: bool,
}

impl Device {
    /// What programs are told of it.
    #[must_use]
    pub const fn row(&self) -> InterfaceRow {
        let header = if self.headerless { interface_flags::NO_LINK_HEADER } else { 0 };
        InterfaceRow { endpoint: PENDING_ENDPOINT, flags: interface_flags::HOOKED | header }
    }
}

/// The row of a pod bridge.
pub const BRIDGE_ROW: InterfaceRow = InterfaceRow { endpoint: PENDING_ENDPOINT, flags: interface_flags::POD_BRIDGE };

/// What a change of a link means for the devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceChange {
    /// A device to be hooked.
    Hook(u32),
    /// A device that is hooked and must not be any more: it became a pod's, or is gone.
    Unhook(u32),
    /// It is a pod bridge from now on.
    Bridge(u32),
    /// A pod bridge is gone.
    BridgeGone(u32),
    /// Nothing that matters.
    None,
}

/// All devices that are no pod's.
#[derive(Debug, Default)]
pub struct Devices {
    hooked: BTreeMap<u32, Device>,
    /// A bridge that was the pod bridge stays one until it is gone: renamed, it still has pods as its ports.
    bridges: BTreeSet<u32>,
}

impl Devices {
    /// Takes note of a link as it is now, after [`Ports::observe`] has.
    pub fn observe(&mut self, link: &Link, ports: &Ports) -> DeviceChange {
        let ifindex = link.index;
        if ports.bridge() == Some(ifindex) || self.bridges.contains(&ifindex) {
            // One that got its name later is hooked until the row says what it is.
            return if self.bridges.insert(ifindex) { DeviceChange::Bridge(ifindex) } else { DeviceChange::None };
        }
        if ports.get(ifindex).is_some() {
            return self.forget(ifindex);
        }
        if link.loopback || link.ifb {
            return DeviceChange::None;
        }
        match self.hooked.get_mut(&ifindex) {
            Some(device) => {
                device.name.clone_from(&link.name);
                DeviceChange::None
            }
            None => {
                let device = Device { name: link.name.clone(), headerless: link.headerless, attached: false };
                let _none = self.hooked.insert(ifindex, device);
                DeviceChange::Hook(ifindex)
            }
        }
    }

    /// A link is gone.
    pub fn gone(&mut self, ifindex: u32) -> DeviceChange {
        if self.bridges.remove(&ifindex) { DeviceChange::BridgeGone(ifindex) } else { self.forget(ifindex) }
    }

    /// Forgets a device that was to be hooked.
    fn forget(&mut self, ifindex: u32) -> DeviceChange {
        self.hooked.remove(&ifindex).map_or(DeviceChange::None, |_device| DeviceChange::Unhook(ifindex))
    }

    /// A device.
    #[must_use]
    pub fn get(&self, ifindex: u32) -> Option<&Device> {
        self.hooked.get(&ifindex)
    }

    /// All devices that are to be hooked.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Device)> {
        self.hooked.iter().map(|(ifindex, device)| (*ifindex, device))
    }

    /// The pod bridges.
    #[must_use]
    pub const fn bridges(&self) -> &BTreeSet<u32> {
        &self.bridges
    }
}

impl Engine {
    pub(super) fn follow_device(&mut self, change: &DeviceChange) {
        match *change {
            DeviceChange::Hook(ifindex) => self.hook(ifindex),
            DeviceChange::Unhook(ifindex) => self.unhook(ifindex),
            DeviceChange::Bridge(ifindex) => {
                let _was_hooked = self.devices.forget(ifindex);
                self.write_row(ifindex, BRIDGE_ROW);
                self.take_off(ifindex);
            }
            DeviceChange::BridgeGone(ifindex) => self.remove_row(ifindex),
            DeviceChange::None => {}
        }
    }

    /// Rows and programs of everything that is there at the start. Bridges first: without their rows no stamp is
    /// believed.
    pub(super) fn hook_all(&mut self) {
        let bridges = self.devices.bridges().clone();
        for ifindex in bridges {
            self.write_row(ifindex, BRIDGE_ROW);
        }
        let devices: Vec<u32> = self.devices.iter().map(|(ifindex, _)| ifindex).collect();
        for ifindex in devices {
            self.hook(ifindex);
        }
    }

    /// Writes a device's row and attaches to it. A failure is counted and tried again.
    pub(super) fn hook(&mut self, ifindex: u32) {
        let Some(device) = self.devices.hooked.get(&ifindex) else { return };
        let row = device.row();
        self.write_row(ifindex, row);
        let result = self.dataplane.attach(ifindex, Role::Host);
        let Some(device) = self.devices.hooked.get_mut(&ifindex) else { return };
        device.attached = result.is_ok();
        if let Err(error) = result {
            warn!(interface = device.name, ifindex, %error, "could not hook, trying again");
            self.attach_later();
        }
    }

    fn unhook(&mut self, ifindex: u32) {
        self.remove_row(ifindex);
        self.take_off(ifindex);
    }

    fn take_off(&self, ifindex: u32) {
        if let Err(error) = self.dataplane.detach(ifindex, Role::Host) {
            debug!(ifindex, %error, "could not unhook");
        }
    }

    /// Devices without their program: an attempt failed.
    pub(super) fn unhooked(&self) -> Vec<u32> {
        self.devices.iter().filter(|(_, device)| !device.attached).map(|(ifindex, _)| ifindex).collect()
    }

    /// From when every port of the pod bridge has been attached, each packet of a pod is stamped, and what bears no stamp
    /// is dropped: by the programs, and by the guard. There is no way back but `uninstall`.
    pub(super) fn arm(&mut self) -> anyhow::Result<()> {
        let is_due = Instant::now() >= self.attached_at + ARM_AFTER;
        if self.armed || !is_due || !self.programmed || !self.ports.unattached().is_empty() {
            return Ok(());
        }
        // Remembered first: a successor must not wait again.
        let state = AgentState { armed: 1, ..self.dataplane.maps.state()? };
        self.dataplane.maps.set_state(state)?;
        let settings = settings(&self.config, &self.dataplane, true)?;
        self.dataplane.maps.set_settings(settings)?;
        self.armed = true;
        info!("armed: what comes from a pod without a stamp is dropped from now on");
        Ok(())
    }

    /// Makes the guard's table say what is attached now. Not where it is attached: a transaction waits for those of
    /// others, and a proxy's may take long.
    pub(super) fn keep_guard(&mut self) {
        let now = Instant::now();
        let ports = self.ports.iter().map(|(ifindex, _)| ifindex);
        let hooked = self.devices.iter().filter(|(_, device)| device.attached).map(|(ifindex, _)| ifindex);
        let wanted = Wanted {
            pods: ports.chain(self.devices.bridges().iter().copied()).collect(),
            hooked: hooked.collect(),
            armed: self.armed,
        };
        self.state.set_armed(self.armed);
        if self.guard.is(&wanted) || self.guard_at.is_some_and(|at| now < at) {
            return;
        }
        self.guard_at = None;
        if let Err(error) = self.guard.set(&wanted) {
            self.guard_at = Some(now + GUARD_AGAIN);
            self.state.sync_failed(Stage::Guard);
            warn!(%error, "could not set the guard, trying again");
        }
    }

    /// Finds out whether somebody changed the guard's table, as a firewall does that flushes all rules.
    pub(super) fn verify_guard(&mut self) {
        match self.guard.verify() {
            Ok(true) => {}
            Ok(false) => {
                self.state.sync_failed(Stage::Guard);
                warn!(table = guard::TABLE, "somebody changed the table of nftables, setting it again");
            }
            Err(error) => {
                self.state.sync_failed(Stage::Guard);
                warn!(%error, "could not verify the guard");
            }
        }
        self.keep_guard();
    }

    /// Says once what Services need and the node does not do.
    pub(super) fn look_at_bridge_netfilter(&mut self) {
        let now = BridgeNetfilter::of(self.config.pod_bridge.as_str());
        if self.bridge_netfilter.replace(now) == Some(now) {
            return;
        }
        let families = self.config.families;
        let used = [
            ("ipv4", "bridge-nf-call-iptables", now.ipv4, families != Families::Ipv6),
            ("ipv6", "bridge-nf-call-ip6tables", now.ipv6, families != Families::Ipv4),
        ];
        let used = used.into_iter().filter(|(.., is_used)| *is_used);
        self.state.set_bridge_netfilter(used.clone().map(|(family, _, is_on, _)| (family, is_on)));
        for (_, parameter, ..) in used.filter(|(.., is_on, _)| !is_on) {
            warn!(
                "net.bridge.{parameter} is off or br_netfilter is not loaded: Services between pods of this node fail"
            );
        }
    }

    fn write_row(&mut self, ifindex: u32, row: InterfaceRow) {
        if let Err(error) = self.dataplane.maps.put_interface(ifindex, row) {
            self.state.map_update_failed(error.map(), error.errno());
            self.state.sync_failed(Stage::Maps);
            warn!(ifindex, %error, "could not write its row");
        }
    }

    fn remove_row(&mut self, ifindex: u32) {
        if let Err(error) = self.dataplane.maps.remove_interface(ifindex) {
            self.state.map_update_failed(error.map(), error.errno());
            warn!(ifindex, %error, "could not remove its row");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ports::tests::link;
    use super::*;

    fn world() -> (Ports, Devices) {
        let mut ports = Ports::new("cni0");
        let mut devices = Devices::default();
        let bridge = link(2, "cni0", None, false);
        let _ = ports.observe(bridge.clone(), None);
        assert_eq!(devices.observe(&bridge, &ports), DeviceChange::Bridge(2));
        (ports, devices)
    }

    #[test]
    fn every_device_is_hooked_but_loopback_ifb_the_pod_bridge_and_pods() {
        let (mut ports, mut devices) = world();
        let loopback = Link { loopback: true, ..link(1, "lo", None, false) };
        let ifb = Link { ifb: true, ..link(3, "ifb0", None, false) };
        let uplink = link(4, "eth0", None, false);
        let pod = link(5, "veth5", Some(2), true);
        let tunnel = Link { headerless: true, ..link(6, "wg0", None, false) };
        let mut change = |link: &Link| {
            let _ = ports.observe(link.clone(), None);
            devices.observe(link, &ports)
        };
        assert_eq!(change(&loopback), DeviceChange::None);
        assert_eq!(change(&ifb), DeviceChange::None);
        assert_eq!(change(&pod), DeviceChange::None);
        assert_eq!(change(&uplink), DeviceChange::Hook(4));
        assert_eq!(change(&uplink), DeviceChange::None);
        assert_eq!(change(&tunnel), DeviceChange::Hook(6));
        let flags = |ifindex| devices.get(ifindex).map(|device| device.row().flags);
        assert_eq!(flags(4), Some(interface_flags::HOOKED));
        assert_eq!(flags(6), Some(interface_flags::HOOKED | interface_flags::NO_LINK_HEADER));
    }

    #[test]
    fn a_veth_is_hooked_until_it_is_put_in_the_pod_bridge() {
        let (mut ports, mut devices) = world();
        let free = link(7, "veth7", None, true);
        let _ = ports.observe(free.clone(), None);
        assert_eq!(devices.observe(&free, &ports), DeviceChange::Hook(7));
        let port = link(7, "veth7", Some(2), true);
        let _ = ports.observe(port.clone(), None);
        assert_eq!(devices.observe(&port, &ports), DeviceChange::Unhook(7));
        assert_eq!(devices.gone(7), DeviceChange::None);
    }

    #[test]
    fn a_pod_bridge_stays_one_until_it_is_gone() {
        let (mut ports, mut devices) = world();
        let renamed = link(2, "old", None, false);
        let _ = ports.observe(renamed.clone(), None);
        assert_eq!(devices.observe(&renamed, &ports), DeviceChange::None);
        assert_eq!(devices.gone(2), DeviceChange::BridgeGone(2));
        let _ = ports.observe(link(2, "eth1", None, false), None);
        assert_eq!(devices.observe(&link(2, "eth1", None, false), &ports), DeviceChange::Hook(2));
    }
}
