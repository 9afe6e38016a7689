//! The ports of the pod bridge, from the moment a veth appears to the moment it is gone.
//!
//! A port is *attached* first (the programs drop everything while it has no row), then *identified*, then given an
//! endpoint number, and only once that number's policy is in the maps is its row written. Ports that were there before
//! the agent first ran on this node get an allow-all number at once and flip later (decision D13).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use netpol_common::abi::{InterfaceRow, interface_flags};

use crate::interfaces::identity::Identity;
use crate::interfaces::netlink::Link;

/// A port of the pod bridge.
#[derive(Clone, Debug)]
pub struct Port {
    /// The device.
    pub link: Link,
    /// When this agent first saw it; `None` if it was there before.
    pub seen: Option<Instant>,
    /// Its endpoint number, once it has one.
    pub endpoint: Option<u32>,
    /// The pod behind it, once known.
    pub identity: Option<Identity>,
    /// Whether it was there before any agent ran here, so that it passes everything until its policy is ready.
    pub adopted: bool,
    /// Whether both programs are attached.
    pub attached: bool,
    /// Whether its row is in the kernel.
    pub in_force: bool,
    /// Whether it is no veth, and so no pod: somebody has put another device in the pod bridge. It gets an allow-all
    /// set, so that what comes by it is stamped like everything else from that bridge.
    pub stranger: bool,
}

impl Port {
    /// The row that puts its endpoint in force.
    #[must_use]
    pub const fn row(endpoint: u32) -> InterfaceRow {
        InterfaceRow { endpoint, flags: interface_flags::POD_VETH }
    }
}

/// What a change of a link means for the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// A new port: attach it.
    New(u32),
    /// A port is gone: its number, if it had one.
    Gone {
        /// Interface index.
        ifindex: u32,
        /// Endpoint number.
        endpoint: Option<u32>,
    },
    /// Nothing that matters.
    None,
}

/// All ports of the pod bridge.
#[derive(Debug)]
pub struct Ports {
    bridge_name: String,
    bridge: Option<u32>,
    ports: HashMap<u32, Port>,
}

impl Ports {
    /// No ports yet.
    #[must_use]
    pub fn new(bridge_name: &str) -> Self {
        Self { bridge_name: bridge_name.to_owned(), bridge: None, ports: HashMap::new() }
    }

    /// Takes note of a link as it is now. `seen` is `None` for what was there before the agent.
    pub fn observe(&mut self, link: Link, seen: Option<Instant>) -> LinkChange {
        if link.name == self.bridge_name {
            self.bridge = Some(link.index);
        } else if self.bridge == Some(link.index) {
            // Renamed away: its ports stay managed until they leave.
            self.bridge = None;
        }
        let is_port = link.master.is_some() && link.master == self.bridge;
        let stranger = !link.veth;
        match (self.ports.get_mut(&link.index), is_port) {
            (None, true) => {
                let ifindex = link.index;
                let _none = self.ports.insert(
                    ifindex,
                    Port {
                        link,
                        seen,
                        endpoint: None,
                        identity: None,
                        adopted: false,
                        attached: false,
                        in_force: false,
                        stranger,
                    },
                );
                LinkChange::New(ifindex)
            }
            // Also a veth that was released from its bridge stays what it is: its pod is as isolated as before.
            (Some(port), _) => {
                port.link = link;
                LinkChange::None
            }
            (None, false) => LinkChange::None,
        }
    }

    /// A link is gone.
    pub fn gone(&mut self, ifindex: u32) -> LinkChange {
        if self.bridge == Some(ifindex) {
            self.bridge = None;
        }
        self.ports
            .remove(&ifindex)
            .map_or(LinkChange::None, |port| LinkChange::Gone { ifindex, endpoint: port.endpoint })
    }

    /// Name of the pod bridge.
    #[must_use]
    pub fn bridge_name(&self) -> &str {
        &self.bridge_name
    }

    /// The pod bridge, if it is there.
    #[must_use]
    pub const fn bridge(&self) -> Option<u32> {
        self.bridge
    }

    /// A port.
    #[must_use]
    pub fn get(&self, ifindex: u32) -> Option<&Port> {
        self.ports.get(&ifindex)
    }

    /// A port, to change it.
    pub fn get_mut(&mut self, ifindex: u32) -> Option<&mut Port> {
        self.ports.get_mut(&ifindex)
    }

    /// All ports.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Port)> {
        self.ports.iter().map(|(ifindex, port)| (*ifindex, port))
    }

    /// Ports whose pod is not known.
    #[must_use]
    pub fn unidentified(&self) -> Vec<u32> {
        let unidentified = self.ports.iter().filter(|(_, port)| port.identity.is_none() && !port.stranger);
        unidentified.map(|(ifindex, _)| *ifindex).collect()
    }

    /// Ports that are no pods and have no number yet.
    #[must_use]
    pub fn new_strangers(&self) -> Vec<u32> {
        let new = self.ports.iter().filter(|(_, port)| port.stranger && port.endpoint.is_none());
        new.map(|(ifindex, _)| *ifindex).collect()
    }

    /// Ports that are not attached: an attempt failed.
    #[must_use]
    pub fn unattached(&self) -> Vec<u32> {
        self.ports.iter().filter(|(_, port)| !port.attached).map(|(ifindex, _)| *ifindex).collect()
    }

    /// Whether an interface stands for a pod already.
    #[must_use]
    pub fn has_uid(&self, uid: &str) -> bool {
        self.ports.values().any(|port| port.identity.as_ref().is_some_and(|identity| identity.uid == uid))
    }

    /// How soon to look again for the pods behind unidentified ports: the record of the runtime follows a veth within
    /// milliseconds, a pod's status within a second or so.
    #[must_use]
    pub fn retry_in(&self, now: Instant) -> Option<Duration> {
        self.ports
            .values()
            .filter(|port| port.identity.is_none() && !port.stranger)
            .map(|port| match port.seen {
                Some(seen) if now.duration_since(seen) < Duration::from_secs(5) => Duration::from_millis(20),
                Some(seen) if now.duration_since(seen) < Duration::from_secs(60) => Duration::from_millis(200),
                Some(_) | None => Duration::from_secs(2),
            })
            .min()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn link(index: u32, name: &str, master: Option<u32>, veth: bool) -> Link {
        Link { index, name: name.into(), master, veth, ..Link::default() }
    }

    #[test]
    fn ports_of_the_pod_bridge_are_taken_and_only_veths_are_pods() {
        let mut ports = Ports::new("cni0");
        assert_eq!(ports.observe(link(2, "cni0", None, false), None), LinkChange::None);
        assert_eq!(ports.observe(link(3, "docker0", None, false), None), LinkChange::None);
        assert_eq!(ports.observe(link(5, "veth5", Some(3), true), None), LinkChange::None);
        assert_eq!(ports.observe(link(7, "veth7", Some(2), true), None), LinkChange::New(7));
        assert!(ports.new_strangers().is_empty());
        assert_eq!(ports.observe(link(6, "eth1", Some(2), false), None), LinkChange::New(6));
        assert_eq!(ports.new_strangers(), [6]);
        assert_eq!(ports.unidentified(), [7]);
    }

    #[test]
    fn a_port_that_leaves_the_bridge_stays_managed_until_it_is_gone() {
        let mut ports = Ports::new("cni0");
        let _ = ports.observe(link(2, "cni0", None, false), None);
        let _ = ports.observe(link(7, "veth7", Some(2), true), None);
        ports.get_mut(7).unwrap().endpoint = Some(4);
        assert_eq!(ports.observe(link(7, "veth7", None, true), None), LinkChange::None);
        assert_eq!(ports.gone(7), LinkChange::Gone { ifindex: 7, endpoint: Some(4) });
        assert_eq!(ports.gone(7), LinkChange::None);
    }
}
