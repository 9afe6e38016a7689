//! What the agent does about flows that have expired, in the one table where nothing else removes them (docs/adr/0003).

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use netpol_common::abi::{FlowKey, FlowRow, admission, initiator, names, phase};
use netpol_common::flow::{account_of, timeout};
use netpol_testbed::probe::Outcome;
use nix::time::{ClockId, clock_gettime};

use super::harness::Site;
use super::{pins, shop};

const ICMP: u8 = 1;
/// Flows that nobody has ended.
const EXPIRED: u16 = 100;
/// By how many the number of a flow's account is made wrong.
const ASTRAY: i64 = 50;

/// The pinned table and what accounts hold of it.
struct Flows {
    rows: HashMap<MapData, FlowKey, FlowRow>,
    held: Array<MapData, i64>,
}

impl Flows {
    fn open(site: &Site) -> Self {
        let open =
            |name| -> Result<Map> { Ok(Map::from_map_data(MapData::from_pin(format!("{}/{name}", pins("maps")))?)?) };
        let both = || -> Result<Self> {
            Ok(Self { rows: open(names::CONFIRMED)?.try_into()?, held: open(names::HELD)?.try_into()? })
        };
        site.node.place().run(both).unwrap()
    }

    /// Flows that are there, by account.
    fn counted(&self) -> Result<BTreeMap<u32, i64>> {
        let mut counted = BTreeMap::new();
        for row in &self.rows {
            let (key, row) = row?;
            *counted.entry(account_of(key.protocol, &row)).or_default() += 1;
        }
        Ok(counted)
    }
}

#[test]
fn expired_flows_give_their_places_back_and_what_an_account_holds_is_set_right() {
    let mut site = shop(&[]);
    site.start_agent();
    site.settle();
    site.expect("client", "server", &Outcome::Allow);
    let endpoint = site.endpoints_of(&[site.pod("client").host_interface()])[0].unwrap();
    let mut flows = Flows::open(&site);
    let living = flows.counted().unwrap();
    assert!(!living.is_empty(), "connections that were answered have places");

    let now = u32::try_from(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap().tv_sec()).unwrap();
    let row = FlowRow {
        endpoint,
        last_seen: now - timeout::ICMP - 10,
        phase: phase::REPLIED,
        initiator: initiator::POD,
        admission: admission::POLICY,
        ..FlowRow::default()
    };
    let key = |id: u16| FlowKey { ifindex: 1, local_port: id.to_be_bytes(), protocol: ICMP, ..FlowKey::default() };
    for id in 0..EXPIRED {
        flows.rows.insert(key(id), row, 0).unwrap();
    }
    // As if programs on two processors had counted at once, and one of them were lost.
    let account = account_of(ICMP, &row);
    let held = flows.held.get(&account, 0).unwrap();
    flows.held.set(account, held + ASTRAY, 0).unwrap();

    site.wait("the sweep", |_site| {
        let left = (0..EXPIRED).filter(|id| flows.rows.get(&key(*id), 0).is_ok()).count();
        ensure!(left == 0, "{left} expired flows are left");
        let counted = flows.counted()?;
        for (account, counted) in &counted {
            let held = flows.held.get(account, 0)?;
            ensure!(held == *counted, "account {account} holds {held}, and {counted} are there");
        }
        let counted = counted.get(&account).copied().unwrap_or_default();
        let held = flows.held.get(&account, 0)?;
        ensure!(held == counted, "account {account} holds {held}, and {counted} are there");
        Ok(())
    });
    site.expect("client", "server", &Outcome::Allow);
}
