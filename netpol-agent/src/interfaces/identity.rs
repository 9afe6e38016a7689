//! Which pod is behind a host-side veth (decision D12).
//!
//! Identity is the sandbox: interface and UID. In order of trust: what the runtime recorded ([`super::cni`]), else a
//! pod of this node whose status names an address found on the veth's peer, provided that status was first seen after
//! the veth, so that a new pod with a reused address is not taken for its predecessor. Until one of them answers, the
//! interface stays pending. Pure: the caller reads links, records and addresses.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use netpol_policy::model::{ObjectName, Phase, Pod};

use super::cni::Recorded;
use super::netlink::Link;

/// A pod of this node, with when its addresses were first seen.
#[derive(Clone, Debug)]
struct LocalPod {
    name: ObjectName,
    addresses: BTreeSet<IpAddr>,
    addressed_at: Instant,
    address_check_off: bool,
}

/// The pods that could be behind this node's veths.
#[derive(Debug, Default)]
pub struct LocalPods {
    by_uid: HashMap<String, LocalPod>,
    host_network: HashSet<ObjectName>,
}

/// The pod behind an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Namespace and name.
    pub pod: ObjectName,
    /// UID.
    pub uid: String,
    /// Addresses that the runtime recorded for the interface; the API may not show them yet.
    pub addresses: Vec<IpAddr>,
}

impl LocalPods {
    /// Takes note of a pod. Finished and host-network pods have no interface of their own.
    pub fn observe(&mut self, pod: &Pod, node: &str, now: Instant) {
        if pod.node == node && pod.host_network && pod.phase == Phase::Live {
            let _new = self.host_network.insert(pod.name.clone());
        } else {
            let _known = self.host_network.remove(&pod.name);
        }
        if pod.node != node || !pod.takes_part() {
            self.forget_uid(&pod.uid);
            return;
        }
        let addresses: BTreeSet<IpAddr> = pod.addresses.iter().copied().collect();
        let addressed_at = match self.by_uid.get(&pod.uid) {
            Some(known) if known.addresses == addresses => known.addressed_at,
            _ => now,
        };
        // A pod of the same name with another UID has replaced this one.
        self.by_uid.retain(|uid, known| *uid == pod.uid || known.name != pod.name);
        let _previous = self.by_uid.insert(
            pod.uid.clone(),
            LocalPod { name: pod.name.clone(), addresses, addressed_at, address_check_off: pod.address_check_off },
        );
    }

    /// A pod is gone.
    pub fn forget(&mut self, name: &ObjectName) {
        self.by_uid.retain(|_, pod| pod.name != *name);
        let _known = self.host_network.remove(name);
    }

    /// UIDs of the pods of this node that have an address and so should have an interface.
    pub fn addressed(&self) -> impl Iterator<Item = &str> {
        self.by_uid.iter().filter(|(_, pod)| !pod.addresses.is_empty()).map(|(uid, _)| uid.as_str())
    }

    /// Number of pods whose addresses are not checked, by annotation (decision D8).
    #[must_use]
    pub fn unchecked(&self) -> usize {
        self.by_uid.values().filter(|pod| pod.address_check_off).count()
    }

    /// Number of live pods in the node's own network namespace.
    #[must_use]
    pub fn host_network(&self) -> usize {
        self.host_network.len()
    }

    fn forget_uid(&mut self, uid: &str) {
        let _pod = self.by_uid.remove(uid);
    }

    /// The pod of this node whose UID fits: what an earlier agent knew of an interface.
    #[must_use]
    pub fn by_uid(&self, fits: impl Fn(&str) -> bool, records: &[Recorded]) -> Option<Identity> {
        let (uid, pod) = self.by_uid.iter().find(|(uid, _)| fits(uid))?;
        let recorded = records.iter().filter(|record| record.uid == *uid).flat_map(|record| record.addresses.iter());
        Some(Identity { pod: pod.name.clone(), uid: uid.clone(), addresses: recorded.copied().collect() })
    }

    /// The pod that a record names for this link. The hardware address, where recorded, must agree: names are reused.
    #[must_use]
    pub fn by_record(&self, link: &Link, records: &[Recorded]) -> Option<Identity> {
        let mut matching = records.iter().filter(|record| {
            record.host_interface == link.name && (record.host_mac.is_none() || record.host_mac == link.mac)
        });
        let record = matching.next()?;
        // Two records for one device: the runtime has not removed the old one. Only one with an equal hardware address
        // can be trusted to speak of this device.
        if let Some(other) = matching.next()
            && (record.host_mac.is_none() || other.host_mac.is_none() || record.uid != other.uid)
        {
            return None;
        }
        let pod = ObjectName::new(&record.namespace, &record.pod);
        let uid = if is_config_hash(&record.uid) { self.mirror(&pod)? } else { &record.uid };
        Some(Identity { pod, uid: uid.to_owned(), addresses: record.addresses.clone() })
    }

    /// UID of the mirror pod that stands for a static pod of this node; `None` if the API does not show it yet.
    fn mirror(&self, name: &ObjectName) -> Option<&str> {
        self.by_uid.iter().find(|(_, pod)| pod.name == *name).map(|(uid, _)| uid.as_str())
    }

    /// The pod whose status names one of the addresses found on the veth's peer.
    ///
    /// `seen` is when the veth was first seen, `None` if it was there before this agent, whose lists are then newer than
    /// it. `taken` are the UIDs that other interfaces already stand for.
    #[must_use]
    pub fn by_address(
        &self,
        found: &BTreeSet<IpAddr>,
        seen: Option<Instant>,
        taken: impl Fn(&str) -> bool,
    ) -> Option<Identity> {
        let mut matching = self.by_uid.iter().filter(|(uid, pod)| {
            seen.is_none_or(|seen| pod.addressed_at >= seen)
                && pod.addresses.iter().any(|address| found.contains(address))
                && !taken(uid)
        });
        let (uid, pod) = matching.next()?;
        // Two pods claim it: wait until one of them is gone.
        if matching.next().is_some() {
            return None;
        }
        Some(Identity { pod: pod.name.clone(), uid: uid.clone(), addresses: Vec::new() })
    }
}

/// Whether a runtime's UID is that of a static pod: the kubelet gives it the hash of its manifest, an MD5 sum, and only the
/// mirror pod that it creates for it has a UID of the API, which is a UUID.
fn is_config_hash(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn pod(name: &str, uid: &str, address: &str) -> Pod {
        Pod {
            name: ObjectName::new("shop", name),
            uid: uid.into(),
            labels: BTreeMap::new(),
            node: "n1".into(),
            host_network: false,
            phase: Phase::Live,
            addresses: vec![address.parse().unwrap()],
            ports: Vec::new(),
            address_check_off: false,
            started: None,
            host_ports: Vec::new(),
        }
    }

    fn found(address: &str) -> BTreeSet<IpAddr> {
        [address.parse().unwrap()].into()
    }

    fn link(name: &str, mac: [u8; 6]) -> Link {
        Link {
            index: 9,
            name: name.into(),
            master: Some(2),
            veth: true,
            peer_namespace: Some(1),
            peer_index: Some(2),
            mac: Some(mac),
            ..Link::default()
        }
    }

    fn record(uid: &str, mac: Option<[u8; 6]>) -> Recorded {
        Recorded {
            namespace: "shop".into(),
            pod: "web".into(),
            uid: uid.into(),
            host_interface: "veth1".into(),
            host_mac: mac,
            addresses: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    #[test]
    fn a_record_for_a_reused_name_with_another_hardware_address_is_not_believed() {
        let pods = LocalPods::default();
        assert!(pods.by_record(&link("veth1", [2; 6]), &[record("u1", Some([1; 6]))]).is_none());
        assert_eq!(pods.by_record(&link("veth1", [1; 6]), &[record("u1", Some([1; 6]))]).unwrap().uid, "u1");
    }

    #[test]
    fn two_records_without_hardware_addresses_decide_nothing() {
        let pods = LocalPods::default();
        assert!(pods.by_record(&link("veth1", [1; 6]), &[record("u1", None), record("u2", None)]).is_none());
    }

    #[test]
    fn an_address_seen_before_the_veth_does_not_name_its_pod() {
        let start = Instant::now();
        let mut pods = LocalPods::default();
        pods.observe(&pod("old", "u1", "10.0.0.5"), "n1", start);
        let veth = start + Duration::from_millis(5);
        assert!(pods.by_address(&found("10.0.0.5"), Some(veth), |_| false).is_none());
        pods.observe(&pod("new", "u2", "10.0.0.5"), "n1", veth + Duration::from_millis(5));
        assert_eq!(pods.by_address(&found("10.0.0.5"), Some(veth), |_| false).unwrap().uid, "u2");
    }

    #[test]
    fn a_veth_older_than_the_agent_is_named_by_the_only_claim() {
        let mut pods = LocalPods::default();
        let now = Instant::now();
        pods.observe(&pod("a", "u1", "10.0.0.5"), "n1", now);
        assert_eq!(pods.by_address(&found("10.0.0.5"), None, |_| false).unwrap().uid, "u1");
        pods.observe(&pod("b", "u2", "10.0.0.5"), "n1", now);
        assert!(pods.by_address(&found("10.0.0.5"), None, |_| false).is_none(), "two claims decide nothing");
        assert_eq!(pods.by_address(&found("10.0.0.5"), None, |uid| uid == "u1").unwrap().uid, "u2");
    }

    #[test]
    fn pods_of_other_nodes_host_network_and_finished_pods_are_no_candidates() {
        let mut pods = LocalPods::default();
        let now = Instant::now();
        for change in [
            |p: &mut Pod| p.node = "n2".into(),
            |p: &mut Pod| p.host_network = true,
            |p: &mut Pod| p.phase = Phase::Finished,
        ] {
            let mut candidate = pod("a", "u1", "10.0.0.5");
            change(&mut candidate);
            pods.observe(&candidate, "n1", now);
            assert!(pods.by_address(&found("10.0.0.5"), None, |_| false).is_none());
        }
    }

    #[test]
    fn a_static_pod_is_its_mirror_pod_once_the_api_shows_it() {
        let mac = [2, 0, 0, 0, 0, 1];
        let records = [record("0123456789abcdef0123456789abcdef", Some(mac))];
        let mut pods = LocalPods::default();
        assert_eq!(pods.by_record(&link("veth1", mac), &records), None);
        let name = records[0].pod.clone();
        pods.observe(&pod(&name, "5d0f8c1e-0000-4000-8000-000000000001", "10.244.0.5"), "n1", Instant::now());
        let found = pods.by_record(&link("veth1", mac), &records);
        assert_eq!(found.map(|identity| identity.uid).as_deref(), Some("5d0f8c1e-0000-4000-8000-000000000001"));
    }
}
