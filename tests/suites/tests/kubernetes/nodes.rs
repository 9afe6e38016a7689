//! Nodes that join and die, and what the cluster takes.

use std::time::Instant;

use netpol_testbed::probe::Outcome;
use serde_json::json;

use crate::cluster::{CONTROL_PLANE, wait};
use crate::flows::{Pair, run_on};
use crate::site::{Site, expect, pod, shared};

/// Waits until the agent runs on every node.
fn agents_everywhere(site: &Site) {
    wait("an agent on each node", || {
        for node in site.nodes() {
            let _ready = site.ask(&node, "/readyz")?;
        }
        Ok(())
    });
}

#[test]
fn a_node_that_joins_enforces_and_one_that_dies_takes_nothing_with_it() {
    let mut site = shared();
    let space = site.namespace("nodes");
    let [client, server, stranger] =
        space.pods([pod("client", "node1"), pod("server", "node2"), pod("stranger", "node3")]);
    let _when = space.policy(
        "only-clients",
        &json!({
            "podSelector": { "matchExpressions": [{ "key": "app", "operator": "In", "values": ["server", "guarded"] }] },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": [{ "podSelector": { "matchExpressions": [
                { "key": "app", "operator": "In", "values": ["client", "newcomer"] },
            ] } }] }],
        }),
    );
    let allowed = Pair::open(&client, &server);
    let free = Pair::open(&client, &stranger);
    let denied = Pair::datagrams(&stranger, &server);

    let event = "a node joins";
    let begin = Instant::now();
    let _said = space.site.cluster.xtask(&["cluster", "start-node", "node4"]);
    space.site.cluster.load_image();
    agents_everywhere(space.site);
    eprintln!("{event}: its agent is ready after {:.1} s", begin.elapsed().as_secs_f32());
    let [newcomer, guarded, intruder] =
        space.pods([pod("newcomer", "node4"), pod("guarded", "node4"), pod("intruder", "node4")]);
    let since = Instant::now();
    let pairs = [Pair::open(&newcomer, &server), Pair::open(&client, &guarded)];
    let intrusions = [Pair::datagrams(&intruder, &server), Pair::datagrams(&stranger, &guarded)];
    run_on();
    for pair in &pairs {
        pair.connections_live(event);
        pair.end();
        pair.all_answered(event, since);
    }
    for pair in &intrusions {
        pair.end();
        pair.none_arrived(event, since);
    }
    drop((pairs, intrusions));

    let event = "a node dies";
    drop((newcomer, guarded, intruder));
    let _said = space.site.cluster.xtask(&["cluster", "kill-node", "node4"]);
    run_on();
    let _said = space.site.client.kubectl(&["delete", "node", "node4"]).unwrap();
    run_on();

    // One that was there from the start, with a pod that policies concern, and comes back without memory.
    let event_again = "a node comes back";
    free.connections_live(event);
    free.end();
    free.all_answered(event, free.started());
    drop(free);
    denied.end();
    denied.none_arrived(event, denied.started());
    drop((denied, stranger));
    let _said = space.site.cluster.xtask(&["cluster", "kill-node", "node3"]);
    run_on();
    let begin = Instant::now();
    let _said = space.site.cluster.xtask(&["cluster", "start-node", "node3"]);
    space.site.cluster.load_image();
    agents_everywhere(space.site);
    eprintln!("{event_again}: its agent is ready after {:.1} s", begin.elapsed().as_secs_f32());
    // The kubelet makes a new sandbox for the pod, with another address perhaps.
    let stranger = wait("the pod has a new sandbox", || {
        let object = space.get("pod", "stranger")?;
        let status = &object["status"]["containerStatuses"][0];
        anyhow::ensure!(status["restartCount"].as_u64() > Some(0) && status["ready"] == true, "{status}");
        Ok(space.running("stranger"))
    });
    let since = space.settle();
    let denied = Pair::datagrams(&stranger, &server);
    let open = Pair::open(&client, &stranger);
    run_on();
    denied.end();
    denied.none_arrived(event_again, since);
    open.connections_live(event_again);
    open.end();
    open.all_answered(event_again, since);
    allowed.connections_live("nodes elsewhere");
    allowed.end();
    allowed.all_answered("nodes elsewhere", allowed.started());
    expect(&client, &server, &Outcome::Allow);
}

#[test]
fn memory_of_the_cluster_and_of_each_agent_is_told() {
    let site = shared();
    let mut whole = 0;
    for name in site.cluster.machines() {
        let processes = site.cluster.machine(&name).processes();
        let resident: u64 = processes.iter().map(|process| process.resident).sum();
        whole += resident;
        let agent: Vec<u64> =
            processes.iter().filter(|process| process.name == "netpol-agent").map(|process| process.resident).collect();
        let count = processes.len();
        eprintln!(
            "memory: {name}: {} MiB in {count} processes, of the agent {} KiB",
            resident / 1024,
            agent.iter().sum::<u64>()
        );
        assert_eq!(agent.len(), usize::from(name != CONTROL_PLANE), "{name}");
    }
    eprintln!("memory: the cluster: {} MiB resident", whole / 1024);
}
