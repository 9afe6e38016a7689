//! Services that come, change and go under open connections, that lose their backends, or that the proxy knows before the
//! agent does. A connection stays where it was sent when it was opened, and so is judged by that; a new one by where the
//! proxy sends it now.

use std::net::{IpAddr, SocketAddr};

use anyhow::bail;
use netpol_policy::model::Protocol;
use netpol_suites::backends;
use netpol_testbed::probe::Outcome;
use serde_json::{Value, json};

use super::cases::{all_at, expect, is_blue, judge, judge_all};
use super::connections::Connections;
use super::service::{PORT, Service, alone, anywhere, egress, to_blue};
use super::town::{FOREIGN, MANY, PORTS, Town};

/// Addresses that hosts outside have, and that a Service claims as external ones.
fn foreign() -> [IpAddr; 2] {
    FOREIGN.map(|address| address.parse().unwrap())
}

/// A rule that names these addresses, and no pod.
fn blocks(addresses: &[IpAddr]) -> Value {
    json!([{ "to": addresses.iter().map(|address| json!({ "ipBlock": { "cidr": alone(address) } })).collect::<Vec<_>>() }])
}

/// Both lists of rules.
fn both(one: &Value, other: &Value) -> Value {
    json!([one.as_array().unwrap().as_slice(), other.as_array().unwrap().as_slice()].concat())
}

pub(crate) fn a_connection_lives_as_long_as_its_backend_is_allowed_whatever_becomes_of_the_service(town: &mut Town) {
    let (by_label, by_block) = (to_blue(&json!(PORTS[0]), Protocol::Tcp), blocks(&foreign()));
    let everything = both(&by_label, &by_block);
    for (pod, gone) in [("web-1", false), ("web-3", false), ("web-1", true), ("web-3", true)] {
        town.apply(&egress(&everything));
        let pods = [0, 1].map(|family| SocketAddr::new(town.address(pod, family), PORTS[0]));
        let owned = foreign().map(|address| SocketAddr::new(address, PORT));
        // From before the Service: to what will be its backend, and to the hosts whose addresses it will claim.
        let direct = Connections::open(town, &pods, MANY);
        let mut outside = Connections::open(town, &owned, MANY);
        let service = Service::new("web", Protocol::Tcp, &[(pod, PORTS[0])]).with(json!({ "externalIPs": FOREIGN }));
        let exposed = service.expose(town);
        for to in owned {
            town.wait_for_proxy(to, Protocol::Tcp, &service.reached(town, usize::from(to.is_ipv6())));
        }
        let cluster_ips: Vec<_> = exposed.addresses.iter().map(|address| SocketAddr::new(*address, PORT)).collect();
        let mut to_pod = [direct, Connections::open(town, &cluster_ips, MANY)];
        let mut claimed = Connections::open(town, &owned, MANY);
        let mut all = |of_pods: bool, of_hosts: bool, without: bool, when: &str| {
            let when = format!("{pod}, without Service: {gone}, {when}");
            for connections in &mut to_pod {
                connections.expect(town, of_pods, &when);
            }
            // An address outside of the cluster's ranges that no Service has is also asked about as what it is.
            claimed.expect(town, of_pods && (of_hosts || !without), &when);
            outside.expect(town, of_hosts, &format!("{when}, to hosts outside"));
        };
        all(true, true, false, "at first");
        if gone {
            town.remove("services,endpointslices");
        } else {
            // Other backends from now on.
            let others = [("web-2", PORTS[0]), ("web-4", PORTS[0])];
            let _exposed = Service::new("web", Protocol::Tcp, &others).with(service.spec.clone()).expose(town);
        }
        all(true, true, gone, "after the Service has changed");
        for (rules, of_pods, of_hosts) in
            [(&by_block, false, true), (&by_label, true, false), (&json!([]), false, false), (&everything, true, true)]
        {
            town.apply(&egress(rules));
            all(of_pods, of_hosts, gone, &format!("under {rules}"));
        }
        town.clear();
    }
}

/// Tries many connections, of which each is to be answered or not by the very address that it is for.
fn judge_as_outside(town: &Town, to: SocketAddr, allowed: bool) {
    // Of those that were denied under the Service.
    backends::forget(&town.node().place()).unwrap();
    let tally = town.tally("client", to, Protocol::Tcp, MANY).unwrap();
    expect(town, to, &tally, if allowed { MANY } else { 0 }, "no Service has it any more");
    // Where silent ones would have gone is not asked: their ports may be tracked from an earlier, ended connection.
    assert!(tally.answered.keys().all(|backend| *backend == to), "{to}: {tally:?}");
}

pub(crate) fn an_address_that_loses_its_last_backend_is_judged_by_where_it_leads(town: &mut Town) {
    let claimed = foreign().map(|address| SocketAddr::new(address, PORT));
    let by_label = to_blue(&json!(PORTS[0]), Protocol::Tcp);
    let allowed = Service::new("web", Protocol::Tcp, &[("web-3", PORTS[0])]).with(json!({ "externalIPs": FOREIGN }));
    let exposed = allowed.expose(town);
    let addresses: Vec<SocketAddr> =
        exposed.addresses.iter().map(|address| SocketAddr::new(*address, PORT)).chain(claimed).collect();
    // The Service's addresses are in a block that is allowed.
    town.apply(&egress(&both(&by_label, &anywhere())));
    let (in_range, outside) = addresses.split_at(exposed.addresses.len());
    let mut open = [in_range, outside].map(|addresses| Connections::open(town, addresses, MANY));
    let mut all = |expected: [bool; 2], when: &str| {
        for (connections, expected) in open.iter_mut().zip(expected) {
            connections.expect(town, expected, when);
        }
    };
    all([true; 2], "at first");
    // Both of them denied, one here and one on another node.
    let last = [("web-2", PORTS[0]), ("web-4", PORTS[0])];
    let denied = Service::new("web", Protocol::Tcp, &last).with(allowed.spec.clone());
    let _exposed = denied.expose(town);
    {
        // The agent knows of no backend any more; the proxy has not heard of that, and still sends to the last ones.
        let _silence = town.pause_proxy();
        town.remove("endpointslices");
        for to in &addresses {
            let _tally = judge(town, *to, &denied, |_| false);
        }
        all([true; 2], "without backends");
    }
    for to in &addresses {
        town.wait("the proxy refuses", |town| {
            // A host outside has the address and would answer, but the Service still claims it. Not every connection
            // is refused: the kernel sends only so many errors a second (`icmp_ratelimit`).
            let source = town.address("free", usize::from(to.is_ipv6()));
            let shots = backends::burst(town.network("free"), source, *to, Protocol::Tcp, 20)?;
            let refused = shots.iter().any(|shot| matches!(shot.outcome, Outcome::Error(_)));
            let answered = shots.iter().any(|shot| shot.outcome == Outcome::Allow);
            if refused && !answered { Ok(()) } else { bail!("{shots:?}") }
        });
        let source = town.address("client", usize::from(to.is_ipv6()));
        let shots = backends::burst(town.network("client"), source, *to, Protocol::Tcp, MANY).unwrap();
        // Refused by the proxy or silent: what it says to that is not the agent's.
        let answered = shots.iter().filter(|shot| shot.outcome == Outcome::Allow).count();
        town.report(to.ip(), MANY, answered);
        assert_eq!(answered, 0, "{to}");
    }
    all([true; 2], "after the proxy has forgotten them too");
    town.remove("services");
    for to in claimed {
        town.wait_for_proxy(to, Protocol::Tcp, &[to].into());
    }
    // New connections now really go to the hosts outside, old ones to the pod where they always went. Those to an address
    // that no range of Services contains must be allowed as what it is, too: nothing says any more where they lead.
    for (rules, of_hosts, of_pod) in [
        (&both(&by_label, &anywhere()), true, [true, true]),
        (&blocks(&foreign()), true, [false, false]),
        (&by_label, false, [true, false]),
    ] {
        town.apply(&egress(rules));
        for to in claimed {
            judge_as_outside(town, to, of_hosts);
        }
        all(of_pod, &format!("under {rules}, without the Service"));
    }
    let exposed = allowed.expose(town);
    judge_all(town, &exposed, &allowed, |_| true);
    town.apply(&egress(&both(&by_label, &anywhere())));
    all([true; 2], "with the Service again");
}

pub(crate) fn a_service_that_the_agent_does_not_know_yet_leaks_nothing(town: &mut Town) {
    let rules = both(&to_blue(&json!(PORTS[0]), Protocol::Tcp), &anywhere());
    town.apply(&egress(&rules));
    town.relay().silence(true);
    let service = Service::new("web", Protocol::Tcp, &all_at(PORTS[0])).with(json!({
        "externalIPs": ["203.0.113.90", "2001:db8:113::90"],
    }));
    let exposed = service.expose_unseen(town);
    let external = ["203.0.113.90", "2001:db8:113::90"].map(|address| address.parse::<IpAddr>().unwrap());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for address in exposed.addresses.iter().copied().chain(external) {
            let to = SocketAddr::new(address, PORT);
            town.wait_for_proxy(to, Protocol::Tcp, &service.reached(town, usize::from(to.is_ipv6())));
            let _tally = judge(town, to, &service, |backend| is_blue(town, backend));
        }
    }));
    town.relay().silence(false);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
