//! What must be true, known or written before the first packet is judged: that nobody else uses our bits of the mark, how
//! much the maps hold, and what programs are told of the configuration.

use netpol_common::abi::{Bucket, Settings, names, setting_flags};
use netpol_common::flow::timeout;
use netpol_policy::compile::Capacities;
use tracing::info;

use crate::config::{Config, Established, Pending};
use crate::dataplane::Dataplane;
use crate::guard::conflicts::{self, Way};
use crate::interfaces::netlink::Netlink;

/// Refuses to stamp packets in bits of the mark that somebody else uses (decision D6): they would be rerouted, or lose
/// their stamps.
pub(super) fn refuse_conflicts(config: &Config, netlink: &mut Netlink) -> anyhow::Result<()> {
    let ours = config.mark_mask.bits();
    let uses = conflicts::uses(&netlink.mark_rules()?)?;
    let (conflicting, harmless): (Vec<_>, Vec<_>) = uses.into_iter().partition(|found| found.conflicts(ours));
    for found in harmless.iter().filter(|found| matches!(found.way, Way::Whole(_))) {
        info!("{found}; no packet of a pod is meant by that");
    }
    if conflicting.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = conflicting.iter().map(ToString::to_string).collect();
    anyhow::bail!(
        "--mark-mask {} is in use by others; pods' packets would be rerouted or lose their stamps. Give a mask of 16 bits \
         that nobody uses:\n  {}",
        config.mark_mask,
        list.join("\n  ")
    )
}

/// What the maps hold, as they were made: an adopted map keeps its size.
pub(super) fn capacities(dataplane: &Dataplane) -> anyhow::Result<Capacities> {
    let size = |name| dataplane.map_size(name);
    Ok(Capacities {
        endpoints: size(names::ENDPOINT_WORDS)?,
        addresses: size(names::ADDRESSES)?,
        class4: size(names::CLASS4)?,
        class6: size(names::CLASS6)?,
        cidr4: size(names::CIDR4)?,
        cidr6: size(names::CIDR6)?,
        rules: size(names::RULES)?,
        ports: size(names::PORTS)?,
        digests: size(names::DIGESTS)?,
        services: size(names::SERVICES)?,
        service_cidrs: size(names::SERVICE_CIDRS)?,
    })
}

/// An account may take a sixteenth of a table's places, so a pod, with four accounts, a quarter.
const SHARE: u32 = 16;

/// Places of a table that an account may take.
pub(super) const fn share(places: u32) -> u32 {
    places / SHARE
}

/// A budget by which an account never has more than its share of the places of an LRU, where an entry is wanted for
/// `life` seconds: half of it at once, the other half in that time.
const fn budget(places: u32, life: u32) -> Bucket {
    let half = share(places) as u64 / 2;
    let cost = life as u64 * 1_000_000_000 / half;
    Bucket { cost, burst: half * cost }
}

/// What programs are told.
pub(super) fn settings(config: &Config, dataplane: &Dataplane, armed: bool) -> anyhow::Result<Settings> {
    let mut flags = if armed { setting_flags::ARMED } else { 0 };
    match config.established {
        Established::Recheck => {}
        Established::Keep => flags |= setting_flags::KEEP_ESTABLISHED,
    }
    match config.pending {
        Pending::Deny => {}
        Pending::Allow => flags |= setting_flags::PENDING_ALLOW,
    }
    let mut overlay_ports = [[0; 2]; 4];
    for (slot, port) in overlay_ports.iter_mut().zip(&config.overlay_ports) {
        *slot = port.to_be_bytes();
    }
    Ok(Settings {
        flags,
        mark_shift: config.mark_mask.bits().trailing_zeros(),
        flows: config.flow_budget.bucket(),
        opening: budget(dataplane.map_size(names::EMBRYONIC)?, timeout::OPENING),
        fragments: budget(dataplane.map_size(names::FRAGMENTS)?, timeout::FRAGMENTS),
        tombstones: budget(dataplane.map_size(names::TOMBSTONES)?, timeout::CONNECTION),
        share: share(dataplane.map_size(names::CONFIRMED)?).into(),
        overlay_ports,
    })
}
