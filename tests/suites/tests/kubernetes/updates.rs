//! What happens to agents, pods and labels while traffic goes on: nothing is lost where the event does not matter, and
//! where it does, from the moment that the agents report it in force, nothing is lost and nothing leaks.

use std::time::Instant;

use netpol_testbed::probe::Outcome;
use serde_json::{Value, json};

use crate::cluster::{text, wait};
use crate::flows::{Pair, run_on};
use crate::site::{Workspace, expect, pod, repository, shared};

/// Lets in pods with this label's value, and lets out nothing but answers.
fn only_from(label: &str, value: &str) -> Value {
    json!({
        "podSelector": { "matchLabels": { "app": "server" } },
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": [{ "podSelector": { "matchLabels": { label: value } } }] }],
    })
}

#[test]
fn a_rolling_restart_and_manifests_applied_again_lose_and_leak_nothing() {
    let event = "rolling restart";
    let mut site = shared();
    let space = site.namespace("restart");
    let [client, near, server, stranger, free] = space.pods([
        pod("client", "node1"),
        pod("near", "node2"),
        pod("server", "node2"),
        pod("stranger", "node3"),
        pod("free", "node3"),
    ]);
    let _when = space.policy(
        "only-friends",
        &json!({
            "podSelector": { "matchLabels": { "app": "server" } },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": [{ "podSelector": { "matchExpressions": [
                { "key": "app", "operator": "In", "values": ["client", "near"] },
            ] } }] }],
        }),
    );
    expect(&client, &server, &Outcome::Allow);
    expect(&stranger, &server, &Outcome::Deny);
    let allowed = [Pair::open(&client, &server), Pair::open(&near, &server), Pair::open(&stranger, &free)];
    let denied = [Pair::datagrams(&stranger, &server), Pair::datagrams(&server, &free)];
    run_on();
    let begin = Instant::now();
    let client = &space.site.client;
    let agents = ["daemonset/netpol-agent", "--namespace=netpol-agent"];
    let _said = client.kubectl(&[&["rollout", "restart"], &agents[..]].concat()).unwrap();
    let _said = client.kubectl(&[&["rollout", "status", "--timeout=300s"], &agents[..]].concat()).unwrap();
    eprintln!("{event}: {:.1} s for three nodes", begin.elapsed().as_secs_f32());
    client.apply_kustomization(&repository("deploy/base")).unwrap();
    let _said = client.kubectl(&[&["rollout", "status", "--timeout=300s"], &agents[..]].concat()).unwrap();
    run_on();
    for pair in &allowed {
        pair.connections_live(event);
        pair.end();
        pair.all_answered(event, pair.started());
    }
    for pair in &denied {
        pair.end();
        pair.none_arrived(event, pair.started());
    }
}

#[test]
fn a_pod_with_the_address_of_a_deleted_one_is_judged_as_itself() {
    let event = "an address reused";
    let mut site = shared();
    let space = site.namespace("reuse");
    let [client, other, server] = space.pods([pod("client", "node1"), pod("other", "node1"), pod("server", "node2")]);
    let _when = space.policy("only-client", &only_from("app", "client"));
    expect(&client, &server, &Outcome::Allow);
    expect(&other, &server, &Outcome::Deny);
    let [free] = space.pods([pod("free", "node3")]);
    let unconcerned = Pair::open(&other, &free);
    run_on();
    let addresses = client.addresses.clone();
    drop(client);
    space.delete_pod("client");
    next_address(&space, "node1", &addresses);
    let [thief] = space.pods([pod("thief", "node1")]);
    assert_eq!(thief.addresses, addresses, "the plugin gives the address that it was made to give");
    let since = Instant::now();
    let stolen = Pair::datagrams(&thief, &server);
    run_on();
    stolen.end();
    stolen.none_arrived(event, since);
    drop(stolen);
    drop(thief);
    space.delete_pod("thief");
    next_address(&space, "node1", &addresses);
    // Again the other way round: from one that may not to one that may.
    let [client] = space.pods([pod("client", "node1")]);
    assert_eq!(client.addresses, addresses);
    let since = Instant::now();
    let given = Pair::open(&client, &server);
    run_on();
    given.connections_live(event);
    given.end();
    given.all_answered(event, since);
    unconcerned.connections_live(event);
    unconcerned.end();
    unconcerned.all_answered(event, unconcerned.started());
}

/// Makes the plugin `host-local`, which gives addresses in turn, take these for the next.
fn next_address(space: &Workspace<'_>, node: &str, addresses: &[std::net::IpAddr]) {
    space
        .site
        .cluster
        .machine(node)
        .place()
        .run(|| {
            for (range, address) in addresses.iter().enumerate() {
                let folder = std::path::Path::new("/var/lib/cni/networks/cbr0");
                // The kubelet reports a pod gone before or after the runtime has given its address back.
                wait("the address is free", || {
                    anyhow::ensure!(!folder.join(address.to_string()).exists(), "{address} is taken");
                    Ok(())
                });
                let before = match address {
                    std::net::IpAddr::V4(address) => std::net::IpAddr::from((u32::from(*address) - 1).to_be_bytes()),
                    std::net::IpAddr::V6(address) => std::net::IpAddr::from((u128::from(*address) - 1).to_be_bytes()),
                };
                std::fs::write(folder.join(format!("last_reserved_ip.{range}")), before.to_string())?;
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn labels_of_pods_and_namespaces_take_effect_when_they_are_reported_in_force() {
    let mut site = shared();
    let space = site.namespace("labels");
    let [client, server, free] = space.pods([pod("client", "node1"), pod("server", "node2"), pod("free", "node3")]);
    let _when = space.policy("only-friends", &only_from("friend", "yes"));
    let unconcerned = Pair::open(&client, &free);
    let own = Pair::open(&free, &client);

    let event = "a pod's label given";
    let concerned = Pair::datagrams(&client, &server);
    run_on();
    let before = Instant::now();
    let given = space.label("pod", "client", &["friend=yes"]);
    run_on();
    concerned.end();
    concerned.none_between(event, concerned.started(), before);
    concerned.all_answered(event, given);

    let event = "a pod's label taken";
    let concerned = Pair::open(&client, &server);
    run_on();
    let before = Instant::now();
    let taken = space.label("pod", "client", &["friend=no"]);
    run_on();
    concerned.end();
    concerned.answered_between(event, concerned.started(), before);
    concerned.none_arrived(event, taken);
    concerned.connections_are_cut(event);

    let _when = space.policy(
        "only-friends",
        &json!({
            "podSelector": { "matchLabels": { "app": "server" } },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "friends": "yes" } } }] }],
        }),
    );
    let event = "a namespace's label given";
    let concerned = Pair::datagrams(&client, &server);
    run_on();
    let before = Instant::now();
    let given = space.label("namespace", &space.name, &["friends=yes"]);
    run_on();
    concerned.end();
    concerned.none_between(event, concerned.started(), before);
    concerned.all_answered(event, given);

    let event = "a namespace's label taken";
    let concerned = Pair::open(&client, &server);
    run_on();
    let before = Instant::now();
    let taken = space.label("namespace", &space.name, &["friends-"]);
    run_on();
    concerned.end();
    concerned.answered_between(event, concerned.started(), before);
    concerned.none_arrived(event, taken);
    concerned.connections_are_cut(event);

    for pair in [unconcerned, own] {
        pair.connections_live("labels elsewhere");
        pair.end();
        pair.all_answered("labels elsewhere", pair.started());
    }
    let labels = space.get("pod", "client").unwrap();
    assert_eq!(text(&labels, "/metadata/labels/friend").unwrap(), "no");
}
