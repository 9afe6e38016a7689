//! From a port to an endpoint and back: taking over what an earlier agent left, adopting pods that already ran, finding
//! out which pod is behind a port, and letting go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use netpol_common::abi::{
    AgentState, DigestKey, EndpointOptions, EndpointWord, FlowKey, FlowRow, PENDING_ENDPOINT, RULE_NONE,
    SENDER_UNKNOWN, SET_ALLOW_ALL, admission, endpoint_flags, id_kind, initiator, mapped, names, phase, progress,
    stamp,
};
use netpol_policy::compile::{Change, Endpoint, MapOp};
use tracing::{debug, info, warn};

use super::Engine;
use super::hooks::{BRIDGE_ROW, Devices};
use super::numbers::{self, Numbers};
use super::ports::{Port, Ports};
use super::premises::share;
use super::windows::Windows;
use crate::clock::boot_seconds;
use crate::config::Config;
use crate::dataplane::Dataplane;
use crate::dataplane::attach::Role;
use crate::dataplane::flows::Swept;
use crate::interfaces::cni;
use crate::interfaces::conntrack::{self, Connection};
use crate::interfaces::identity::Identity;
use crate::interfaces::netlink::Netlink;
use crate::metrics::{EndpointCounts, Stage, UnmanagedReason};

const fn digest_key(number: u32) -> DigestKey {
    DigestKey { kind: id_kind::ENDPOINT, id: number }
}

/// Takes over the interface rows of an earlier agent, and clears those whose device is gone or became another.
pub(super) fn take_over_rows(
    dataplane: &mut Dataplane,
    ports: &mut Ports,
    devices: &Devices,
    numbers: &mut Numbers,
    windows: &mut Windows,
) -> anyhow::Result<()> {
    let now = Instant::now();
    let progress = dataplane.maps.state()?.progress;
    let (mut kept, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for (ifindex, row) in dataplane.maps.interfaces()? {
        match ports.get_mut(ifindex) {
            Some(port) if row.endpoint != PENDING_ENDPOINT && numbers.digest(row.endpoint).is_some() => {
                port.endpoint = Some(row.endpoint);
                port.in_force = true;
                port.adopted = numbers.digest(row.endpoint) == Some(numbers::digest(ifindex, None));
                let options = dataplane.maps.options(row.endpoint)?;
                windows.resume(row.endpoint, options, progress == progress::PROGRAMMED);
                let _new = kept.insert(row.endpoint);
            }
            None if devices.get(ifindex).is_some_and(|device| device.row() == row) => {}
            None if devices.bridges().contains(&ifindex) && row == BRIDGE_ROW => {}
            Some(_) | None => {
                dataplane.maps.remove_interface(ifindex)?;
                let _new = gone.insert(ifindex);
            }
        }
    }
    if !gone.is_empty() {
        let _purged = dataplane.maps.flows.purge(&gone)?;
    }
    let unused: Vec<u32> = numbers.used().filter(|number| !kept.contains(number)).collect();
    for number in unused {
        numbers.release(number, now);
        dataplane.maps.apply(&MapOp::SetWord { endpoint: number, word: EndpointWord(0) })?;
        dataplane.maps.apply(&MapOp::RemoveDigest(digest_key(number)))?;
    }
    for ifindex in dataplane.linked_interfaces()? {
        if ports.get(ifindex).is_none() {
            dataplane.detach(ifindex, Role::Pod)?;
        }
        if devices.get(ifindex).is_none() {
            dataplane.detach(ifindex, Role::Host)?;
        }
    }
    if progress != progress::NOTHING {
        debug!(endpoints = kept.len(), "took over from an earlier agent");
    }
    Ok(())
}

/// Gives every port that ran before any agent did an allow-all number, with the flows that the kernel knows, so that
/// attaching breaks nothing; each flips to its policy once that is ready (decision D13).
pub(super) fn adopt_running(
    config: &Config,
    dataplane: &mut Dataplane,
    netlink: &mut Netlink,
    ports: &mut Ports,
    numbers: &mut Numbers,
    windows: &mut Windows,
) -> anyhow::Result<()> {
    let now = Instant::now();
    let epoch = dataplane.maps.state()?.epoch.max(1);
    dataplane.maps.set_state(AgentState { epoch, ..dataplane.maps.state()? })?;
    let records = cni::read(&config.cni_cache);
    let mut owners: HashMap<IpAddr, (u32, u32)> = HashMap::new();
    let running: Vec<u32> =
        ports.iter().filter(|(_, port)| port.endpoint.is_none()).map(|(ifindex, _)| ifindex).collect();
    for ifindex in running {
        let digest = numbers::digest(ifindex, None);
        let Some(number) = numbers.allocate(digest, now) else {
            warn!(ifindex, "no endpoint number left; the interface stays pending");
            continue;
        };
        let reverse_until = windows.open(number, boot_seconds());
        let options = EndpointOptions { flags: endpoint_flags::NO_ADDRESS_CHECK, reverse_until };
        dataplane.maps.apply(&MapOp::PutDigest(digest_key(number), digest))?;
        dataplane.maps.apply(&MapOp::SetOptions { endpoint: number, options })?;
        dataplane.maps.apply(&MapOp::SetWord { endpoint: number, word: EndpointWord::new(SET_ALLOW_ALL, epoch) })?;
        dataplane.maps.put_interface(ifindex, Port::row(number))?;
        if let Some(port) = ports.get_mut(ifindex) {
            port.endpoint = Some(number);
            port.adopted = true;
            port.in_force = true;
            for address in addresses_behind(netlink, port, &records) {
                let _shared = owners.insert(address, (ifindex, number));
            }
        }
    }
    match conntrack::connections() {
        Ok(connections) => {
            let seeded = seed(dataplane, netlink, &connections, &owners, epoch)?;
            info!(pods = windows.len(), flows = seeded, "adopted what was running");
        }
        Err(error) => warn!(%error, "connection tracking cannot be read; running connections have a bounded window"),
    }
    Ok(())
}

/// All addresses that the pod behind a port may use, recorded or found; only good for finding, never for enforcing.
fn addresses_behind(netlink: &mut Netlink, port: &Port, records: &[cni::Recorded]) -> BTreeSet<IpAddr> {
    let mut addresses: BTreeSet<IpAddr> = records
        .iter()
        .filter(|record| record.host_interface == port.link.name)
        .flat_map(|record| record.addresses.iter().copied())
        .collect();
    addresses.extend(peer_addresses(netlink, port));
    addresses
}

fn peer_addresses(netlink: &mut Netlink, port: &Port) -> BTreeSet<IpAddr> {
    let (Some(namespace), Some(index)) = (port.link.peer_namespace, port.link.peer_index) else {
        return BTreeSet::new();
    };
    netlink.peer_addresses(namespace, index).unwrap_or_else(|error| {
        debug!(interface = port.link.name, %error, "could not read the addresses behind it");
        BTreeSet::new()
    })
}

fn seed(
    dataplane: &mut Dataplane,
    netlink: &mut Netlink,
    connections: &[Connection],
    owners: &HashMap<IpAddr, (u32, u32)>,
    epoch: u32,
) -> anyhow::Result<usize> {
    let node = netlink.node_addresses()?;
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut seeded = 0;
    for Connection { original, reply } in connections {
        // The initiator's veth saw the original direction, before translation; the server's veth the reply, after it.
        let views = [
            (owners.get(&original.source), original, initiator::POD),
            (owners.get(&reply.source), reply, initiator::PEER),
        ];
        for (owner, tuple, who) in views {
            let Some((ifindex, number)) = owner else { continue };
            // Not the reply's destination: a masquerade has put an address of the node there for a client from outside.
            let own_node = who == initiator::PEER && node.contains(&original.source);
            let key = FlowKey {
                ifindex: *ifindex,
                local_port: tuple.source_port,
                peer_port: tuple.destination_port,
                peer: octets(tuple.destination),
                protocol: tuple.protocol,
                pad: [0; 3],
            };
            let row = FlowRow {
                local: octets(tuple.source),
                endpoint: *number,
                // Where the pod's own lead was not looked up here. With an epoch that is in force nowhere its next packet
                // is, and what nothing isolates yet needs no second judgement, which on the node itself nobody gives.
                epoch: if who == initiator::POD { 0 } else { epoch },
                rule: RULE_NONE,
                last_seen: boot_seconds(),
                phase: phase::REPLIED,
                initiator: who,
                admission: if own_node { admission::OWN_NODE } else { admission::POLICY },
                // Of a Service's address, the proxy's own tracking keeps the backend: what it was judged by is not known.
                stamp: match (who, own_node) {
                    (initiator::POD, _) => stamp::DEFERRED,
                    (_, true) => stamp::NONE,
                    (_, false) => SENDER_UNKNOWN,
                },
                came_by: 0,
                came_endpoint: 0,
            };
            match dataplane.maps.flows.seed(key, row) {
                Ok(()) => seeded += 1,
                // One connection less that survives; all that follows is worth more.
                Err(error) => warn!(%error, "could not plant a flow"),
            }
        }
    }
    Ok(seeded)
}

impl Engine {
    /// Looks for the pods behind ports that have none yet.
    pub(super) fn identify(&mut self) {
        let now = Instant::now();
        let unidentified = self.ports.unidentified();
        if unidentified.is_empty() {
            self.identify_at = None;
            return;
        }
        let records = cni::read(&self.config.cni_cache);
        for ifindex in unidentified {
            let Some(port) = self.ports.get(ifindex).cloned() else { continue };
            // What an earlier agent knew comes first: addresses behind an interface are the pod's to change.
            let known = port.endpoint.and_then(|number| self.numbers.digest(number));
            let was_known = known.is_some_and(|known| known != numbers::digest(ifindex, None));
            let fits = |uid: &str| known == Some(numbers::digest(ifindex, Some(uid)));
            let identity = self.pods.by_uid(fits, &records).or_else(|| self.pods.by_record(&port.link, &records));
            let identity = identity.or_else(|| {
                if was_known {
                    return None;
                }
                let found = peer_addresses(&mut self.netlink, &port);
                self.pods.by_address(&found, port.seen, |uid| self.ports.has_uid(uid))
            });
            match identity {
                Some(identity) => self.give_endpoint(ifindex, identity, now),
                // An earlier agent's row, and nobody knows any more whose: what it was then is not what it is now.
                None if !self.programmed && port.endpoint.is_some() => self.tell_compiler(&port),
                None => {}
            }
        }
        self.identify_at = self.ports.retry_in(now).map(|wait| now + wait);
    }

    fn give_endpoint(&mut self, ifindex: u32, identity: Identity, now: Instant) {
        self.changed = true;
        let digest = numbers::digest(ifindex, Some(&identity.uid));
        let Some(port) = self.ports.get_mut(ifindex) else { return };
        let known = port.endpoint.and_then(|number| self.numbers.digest(number));
        let number = match port.endpoint {
            Some(number) if known == Some(digest) => number,
            // Adopted without knowing its pod: the number stays, its meaning becomes known.
            Some(number) if known == Some(numbers::digest(ifindex, None)) => {
                self.numbers.rename(number, digest);
                number
            }
            other => {
                // An interface never changes its pod. If it seems to, what was known of it was wrong: pending first.
                if let Some(number) = other {
                    warn!(interface = port.link.name, pod = %identity.pod, "was another pod's; starting over");
                    port.endpoint = None;
                    port.in_force = false;
                    self.free_endpoint(ifindex, number);
                }
                let Some(number) = self.numbers.allocate(digest, now) else {
                    self.state.sync_failed(Stage::Interfaces);
                    warn!(pod = %identity.pod, "no endpoint number left; the pod stays pending, raise --max-endpoints");
                    return;
                };
                // Nothing of an earlier bearer of the number may be left: neither its counts nor its window.
                let options = MapOp::SetOptions { endpoint: number, options: EndpointOptions::default() };
                let cleared = self.dataplane.maps.reset_counters(number);
                if let Err(error) = cleared.and_then(|()| self.dataplane.maps.apply(&options)) {
                    self.state.map_update_failed(error.map(), error.errno());
                    warn!(number, %error, "could not clear an endpoint number; the pod stays pending");
                    self.numbers.release(number, now);
                    return;
                }
                number
            }
        };
        if let Err(error) = self.dataplane.maps.apply(&MapOp::PutDigest(digest_key(number), digest)) {
            // Without it, a restarted agent starts this pod over: a moment of pending, no wrong verdict.
            self.state.map_update_failed(error.map(), error.errno());
            warn!(number, %error, "could not record the endpoint");
        }
        debug!(ifindex, number, pod = %identity.pod, uid = identity.uid, "endpoint");
        let Some(port) = self.ports.get_mut(ifindex) else { return };
        port.endpoint = Some(number);
        port.identity = Some(identity);
        let port = port.clone();
        self.tell_compiler(&port);
        self.oldest = [self.oldest, port.seen].into_iter().flatten().min();
    }

    /// Gives ports that are no pods the allow-all set: without a stamp, what comes by them would be dropped once the
    /// node is armed.
    pub(super) fn admit_strangers(&mut self) {
        let now = Instant::now();
        for ifindex in self.ports.new_strangers() {
            let digest = numbers::digest(ifindex, None);
            let Some(number) = self.numbers.allocate(digest, now) else {
                self.state.sync_failed(Stage::Interfaces);
                warn!(ifindex, "no endpoint number left for a port that is no pod; raise --max-endpoints");
                return;
            };
            let record = MapOp::PutDigest(digest_key(number), digest);
            let cleared = self.dataplane.maps.reset_counters(number);
            if let Err(error) = cleared.and_then(|()| self.dataplane.maps.apply(&record)) {
                self.state.map_update_failed(error.map(), error.errno());
                warn!(number, %error, "could not prepare an endpoint number");
                self.numbers.release(number, now);
                return;
            }
            let Some(port) = self.ports.get_mut(ifindex) else { continue };
            info!(interface = port.link.name, ifindex, "a port of the pod bridge is no pod; it may send what it likes");
            port.endpoint = Some(number);
            port.adopted = true;
            let port = port.clone();
            self.tell_compiler(&port);
        }
    }

    fn tell_compiler(&mut self, port: &Port) {
        let Some(number) = port.endpoint else { return };
        self.compiler.apply(Change::EndpointUp(Endpoint {
            number,
            pod: port.identity.as_ref().map(|identity| (identity.pod.clone(), identity.uid.clone())),
            adopted: port.adopted,
            extra_addresses: port
                .identity
                .iter()
                .flat_map(|identity| identity.addresses.iter().copied())
                .filter(|address| self.config.families.include(address))
                .collect(),
        }));
    }

    /// Writes the rows of ports whose policy is now in the maps.
    pub(super) fn put_in_force(&mut self) -> anyhow::Result<()> {
        let waiting: Vec<(u32, u32)> = self
            .ports
            .iter()
            .filter(|(_, port)| !port.in_force && (port.identity.is_some() || port.stranger))
            .filter_map(|(ifindex, port)| port.endpoint.map(|number| (ifindex, number)))
            .collect();
        for (ifindex, number) in waiting {
            self.dataplane.maps.put_interface(ifindex, Port::row(number))?;
            self.changed = true;
            if let Some(port) = self.ports.get_mut(ifindex) {
                port.in_force = true;
            }
        }
        Ok(())
    }

    pub(super) fn drop_port(&mut self, ifindex: u32, endpoint: Option<u32>) {
        if let Err(error) = self.dataplane.detach(ifindex, Role::Pod) {
            debug!(ifindex, %error, "could not detach from a device that is gone");
        }
        if let Some(number) = endpoint {
            self.free_endpoint(ifindex, number);
        }
        let _new = self.purge.insert(ifindex);
    }

    fn free_endpoint(&mut self, ifindex: u32, number: u32) {
        if let Err(error) = self.dataplane.maps.remove_interface(ifindex) {
            warn!(ifindex, %error, "could not remove its row");
        }
        self.retire_counters(number);
        self.windows.forget(number);
        self.compiler.apply(Change::EndpointDown(number));
        self.numbers.release(number, Instant::now());
        if let Err(error) = self.dataplane.maps.apply(&MapOp::RemoveDigest(digest_key(number))) {
            warn!(number, %error, "could not remove its record");
        }
    }

    /// Moves an endpoint's counts to its namespace's account, before the number can mean another pod.
    fn retire_counters(&mut self, number: u32) {
        let Some(namespace) = self.namespaces.lock().remove(&number) else { return };
        match self.counters.of(number, &namespace) {
            Ok(last) => self.state.retire(number, &last),
            Err(error) => {
                self.state.sync_failed(Stage::Counters);
                warn!(number, %error, "could not read the last counts of an endpoint");
            }
        }
    }

    /// Tells metrics what endpoints there are now.
    pub(super) fn publish_endpoints(&mut self) {
        let mut counts = EndpointCounts::default();
        let mut namespaces: BTreeMap<u32, String> = [(PENDING_ENDPOINT, String::new())].into();
        for (_, port) in self.ports.iter() {
            if port.stranger {
                continue;
            }
            if !port.attached {
                *counts.unmanaged.entry(UnmanagedReason::AttachFailed).or_default() += 1;
            }
            let Some(number) = port.endpoint else {
                counts.pending_interfaces += 1;
                continue;
            };
            counts.managed += 1;
            // An adopted port whose pod is not known yet is counted once it is, all under its own namespace.
            if let Some(identity) = &port.identity {
                let _none = namespaces.insert(number, identity.pod.namespace.clone());
            }
            if let Some(endpoint) = self.compiler.endpoint_state(number) {
                counts.ready += usize::from(endpoint.ready && port.in_force && port.attached);
                counts.isolated_ingress += usize::from(endpoint.ingress_isolated);
                counts.isolated_egress += usize::from(endpoint.egress_isolated);
            }
        }
        let without = self.pods.addressed().filter(|uid| !self.ports.has_uid(uid)).count();
        if without > 0 {
            let _none = counts.unmanaged.insert(UnmanagedReason::NoInterface, without);
        }
        counts.unchecked = self.pods.unchecked();
        let host_network = self.pods.host_network();
        if host_network > 0 {
            let _none = counts.unmanaged.insert(UnmanagedReason::HostNetwork, host_network);
        }
        for (map, entries, capacity) in self.compiler.counts().maps {
            self.state.set_map(map, entries as u64, capacity as u64);
        }
        *self.namespaces.lock() = namespaces;
        self.state.set_endpoints(counts);
    }

    /// Removes expired flows from the table that evicts nothing. Where that fails, new flows may go without a place of their
    /// own, no worse.
    pub(super) fn sweep_flows(&mut self) {
        let swept = self.dataplane.map_size(names::CONFIRMED).and_then(|places| {
            let swept = self.dataplane.maps.flows.sweep(share(places).into(), boot_seconds())?;
            Ok((swept, places))
        });
        match swept {
            Ok((Swept { expired, left, used_up }, places)) => {
                debug!(expired, left, used_up, "swept the flows");
                self.state.set_map(names::CONFIRMED, left as u64, places.into());
                self.state.set_used_up_shares(used_up);
            }
            Err(error) => {
                self.state.sync_failed(Stage::Maps);
                warn!(%error, "could not sweep the flows, trying again");
            }
        }
    }

    /// Removes flows of interfaces that are gone.
    pub(super) fn purge(&mut self) -> anyhow::Result<()> {
        if !self.purge.is_empty() {
            let _purged = self.dataplane.maps.flows.purge(&std::mem::take(&mut self.purge))?;
        }
        Ok(())
    }
}
