//! The life of an agent and of its pods, under traffic: start, restart, crash, adoption of what already runs, pods that
//! come, go and are replaced, other programs on the same veth, removal. Real veths, real programs, the real binary.

mod bridge_netfilter;
mod flows;
mod foreign;
mod guard;
mod harness;
mod hooks;
mod marks;
mod services;
mod traffic;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use harness::{PORT, Site};
use netpol_agent::guard::TABLE;
use netpol_common::abi::ABI_VERSION;
use netpol_suites::kernel::{self, Feature};
use netpol_testbed::probe::Outcome;
use serde_json::{Value, json};
use traffic::{Tally, Traffic};

/// The ways of attaching that a test goes through: both, or filters alone where the kernel has no links for it, and that is
/// said.
fn mechanisms() -> &'static [&'static str] {
    let _said = kernel::require(Feature::Tcx);
    known_mechanisms()
}

/// The same, for what a test looks at on the way.
fn known_mechanisms() -> &'static [&'static str] {
    if kernel::has(Feature::Tcx) { &["tcx", "clsact"] } else { &["clsact"] }
}

/// A folder of pins, by the layout of this version: `links`, or `maps`.
fn pins(folder: &str) -> String {
    format!("/sys/fs/bpf/netpol-agent/v{ABI_VERSION}/{folder}")
}

/// Lets `client` in, on every port, and nobody else.
fn only_client() -> Value {
    json!({
        "podSelector": { "matchLabels": { "app": "server" } },
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }] }],
        "egress": [],
    })
}

fn deny_all() -> Value {
    json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] })
}

/// How many links are pinned whose names match.
fn links(site: &Site, pattern: &str) -> usize {
    site.on_node(&format!("ls {} | grep -c -e '{pattern}' || true", pins("links"))).trim().parse().unwrap()
}

fn lossless(tally: Tally, what: &str) {
    println!("{what}: {} datagrams sent, {} lost", tally.sent, tally.sent - tally.answered);
    assert!(tally.sent > 100, "{what}: {tally:?}");
    assert_eq!(tally.sent, tally.answered, "{what}");
}

/// A client that may reach a server that may answer it, and a stranger that may not.
fn shop(arguments: &[&str]) -> Site {
    let mut site = Site::new(arguments);
    for (name, last) in [("client", 10), ("server", 11), ("stranger", 12)] {
        site.add_pod(name, last);
    }
    site.set_policy("only-client", only_client());
    site
}

#[test]
fn a_policy_from_a_folder_is_enforced_in_both_families() {
    for mechanism in mechanisms() {
        let mut site = shop(&["--attach", mechanism]);
        site.start_agent();
        site.settle();
        site.expect("client", "server", &Outcome::Allow);
        site.expect("stranger", "server", &Outcome::Deny);
        site.expect("server", "stranger", &Outcome::Deny);
        site.expect("client", "stranger", &Outcome::Allow);
        let dropped = r#"netpol_dropped_packets_total{direction="ingress",namespace="shop",reason="no_rule"}"#;
        assert!(site.metric(dropped) >= 4.0, "the drops of the stranger are counted");
        site.delete_policy("only-client");
        site.settle();
        site.expect("stranger", "server", &Outcome::Allow);
    }
}

#[test]
fn stopping_starting_and_crashing_the_agent_under_traffic_loses_no_packet() {
    for mechanism in mechanisms() {
        for family in [0, 1] {
            let mut site = shop(&["--attach", mechanism]);
            site.start_agent();
            site.settle();
            let traffic = Traffic::start(site.pod("client"), site.pod("server"), family);
            traffic.run_on();
            site.stop_agent();
            traffic.run_on();
            site.expect("stranger", "server", &Outcome::Deny);
            site.start_agent();
            traffic.run_on();
            site.kill_agent();
            traffic.run_on();
            site.start_agent();
            site.settle();
            traffic.run_on();
            assert!(traffic.connection_lives());
            lossless(traffic.end(), &format!("restart and crash, {mechanism}, family {family}"));
            site.expect("stranger", "server", &Outcome::Deny);
        }
    }
}

/// Has the kernel track connections that pass a hook.
fn track(site: &Site, hook: &str) {
    let _out = site.on_node(&format!(
        "nft add table inet t && nft add chain inet t c '{{ type filter hook {hook} priority 0; }}' \
         && nft add rule inet t c ct state established counter accept"
    ));
}

#[test]
fn a_connection_to_the_own_node_lives_while_the_agent_waits_for_its_objects() {
    let mut site = shop(&[]);
    track(&site, "input");
    let connections: Vec<[TcpStream; 2]> = site
        .node
        .gateways()
        .into_iter()
        .map(|gateway| {
            let listener = site.node.place().run(|| Ok(TcpListener::bind(SocketAddr::new(gateway, 0))?)).unwrap();
            let to = listener.local_addr().unwrap();
            let client = site.pod("client").network().place().run(|| Ok(TcpStream::connect(to)?)).unwrap();
            [client, listener.accept().unwrap().0]
        })
        .collect();
    let goes_on = || connections.iter().all(|[client, server]| arrives(client, server) && arrives(server, client));
    assert!(goes_on());
    site.start_agent_without_objects();
    site.wait("the last guard is there", |site| {
        let table = site.on_node(&format!("nft list table inet {TABLE} 2>&1 || true"));
        if table.contains("hook input") { Ok(()) } else { anyhow::bail!("{table}") }
    });
    assert!(site.log().contains("adopted what was running"), "{}", site.log());
    for _ in 0..3 {
        assert!(goes_on());
    }
}

/// Whether what is sent at one end of a connection is heard at the other.
fn arrives(mut from: &TcpStream, mut to: &TcpStream) -> bool {
    let mut heard = [0; 5];
    to.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    from.write_all(b"hello").and_then(|()| to.read_exact(&mut heard)).is_ok()
}

#[test]
fn pods_that_already_run_are_adopted_without_cutting_what_is_allowed() {
    // With connection tracking, as wherever kube-proxy or a masquerade is, and without, where only the window helps.
    for (family, tracked) in [(0, true), (1, true), (0, false), (1, false)] {
        let mut site = shop(&[]);
        if tracked {
            track(&site, "forward");
        }
        let allowed = Traffic::start(site.pod("client"), site.pod("server"), family);
        let denied = Traffic::start(site.pod("stranger"), site.pod("client"), family);
        allowed.run_on();
        if tracked {
            let known = site.node.place().run(|| Ok(netpol_agent::interfaces::conntrack::connections()?)).unwrap();
            let (client, server) = (harness::addresses(10)[family], harness::addresses(11)[family]);
            let begun_by_client = |c: &netpol_agent::interfaces::conntrack::Connection| {
                c.original.source == client && c.original.destination == server
            };
            assert_eq!(known.iter().filter(|c| begun_by_client(c)).count(), 2, "UDP and TCP: {known:?}");
        }
        site.set_policy(
            "client-hears-nobody",
            json!({ "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Ingress"] }),
        );
        site.start_agent();
        site.settle();
        allowed.run_on();
        assert!(
            allowed.connection_lives(),
            "the server answers a connection from before, although it may not begin one"
        );
        if tracked {
            assert!(!denied.connection_lives(), "a connection that no policy allows ends when its pod is isolated");
            lossless(allowed.end(), &format!("first start, family {family}"));
        }
    }
}

#[test]
fn a_withdrawn_permission_cuts_its_connection_and_others_live() {
    let mut site = shop(&[]);
    site.start_agent();
    site.settle();
    let cut = Traffic::start(site.pod("client"), site.pod("server"), 0);
    let other = Traffic::start(site.pod("client"), site.pod("stranger"), 0);
    cut.run_on();
    site.set_policy(
        "only-client",
        json!({ "podSelector": { "matchLabels": { "app": "server" } }, "policyTypes": ["Ingress", "Egress"] }),
    );
    site.settle();
    assert!(!cut.connection_lives());
    assert!(other.connection_lives());
    lossless(other.end(), "a policy elsewhere changes");
    let tally = cut.end();
    assert!(tally.answered < tally.sent);
    let revoked = r#"netpol_dropped_packets_total{direction="ingress",namespace="shop",reason="revoked"}"#;
    assert!(site.metric(revoked) > 0.0);
}

#[test]
fn with_established_keep_a_withdrawn_permission_leaves_its_connections() {
    let mut site = shop(&["--established", "keep"]);
    site.start_agent();
    site.settle();
    let kept = Traffic::start(site.pod("client"), site.pod("server"), 0);
    kept.run_on();
    site.set_policy("only-client", deny_all());
    site.settle();
    assert!(kept.connection_lives());
    lossless(kept.end(), "established flows kept");
    site.expect("client", "server", &Outcome::Deny);
}

#[test]
fn a_new_interface_drops_everything_until_its_pod_is_known() {
    for recorded in [true, false] {
        let mut site = shop(&[]);
        site.start_agent();
        site.settle();
        site.add_sandbox("late", 13, recorded);
        site.wait("the interface is seen", |site| {
            let applied = site.applied()?;
            let seen = applied["pending"] == 1 || applied["endpoints"]["managed"] == 4;
            if seen { Ok(()) } else { anyhow::bail!("{applied}") }
        });
        site.expect("late", "stranger", &Outcome::Deny);
        site.expect("stranger", "late", &Outcome::Deny);
        site.add_object("late", 13);
        site.settle();
        site.expect("late", "stranger", &Outcome::Allow);
        site.expect("late", "server", &Outcome::Deny);
    }
}

#[test]
fn a_pod_that_gets_the_address_of_another_is_judged_as_itself() {
    for recorded in [true, false] {
        let mut site = shop(&[]);
        site.start_agent();
        site.settle();
        site.expect("client", "server", &Outcome::Allow);
        site.remove_pod("client");
        // The object of the old pod is gone, the new one's address is the old one's.
        site.add_sandbox("thief", 10, recorded);
        site.add_object("thief", 10);
        site.settle();
        site.expect("thief", "server", &Outcome::Deny);
        site.expect("thief", "stranger", &Outcome::Allow);
    }
}

#[test]
fn a_program_that_goes_ahead_of_ours_is_overtaken_and_one_taken_off_comes_back() {
    if !kernel::require(Feature::Tcx) {
        return;
    }
    let mut site = shop(&["--attach", "tcx"]);
    // Ingress only: what answers a packet that was let past our program belongs to no flow.
    let mut only_ingress = only_client();
    only_ingress["policyTypes"] = json!(["Ingress"]);
    site.set_policy("only-client", only_ingress);
    site.start_agent();
    site.settle();
    let server = site.pod("server").host_interface().to_owned();
    foreign::put_ahead(&site.node, &server);
    site.expect("stranger", "server", &Outcome::Allow);
    site.wait("the agent goes first again", |site| {
        if foreign::is_first(&site.node, &server)? { anyhow::bail!("the foreign program is first") } else { Ok(()) }
    });
    site.expect("stranger", "server", &Outcome::Deny);
    site.expect("client", "server", &Outcome::Allow);
    assert!(foreign::is_there(&site.node, &server).unwrap(), "the foreign program is left where it is");
    // Whoever removes our pins takes our programs off.
    let _out = site.on_node(&format!("rm {}/*", pins("links")));
    site.expect("stranger", "server", &Outcome::Allow);
    site.wait("the programs come back", |site| {
        let (pods, hooks) = (links(site, "-in\\|-eg"), links(site, "-he"));
        if (pods, hooks) == (6, 1) { Ok(()) } else { anyhow::bail!("{pods} links of pods, {hooks} of the uplink") }
    });
    site.expect("stranger", "server", &Outcome::Deny);
}

#[test]
fn a_second_agent_and_one_with_another_source_are_refused() {
    let mut site = shop(&[]);
    site.start_agent();
    let refused = site.try_agent(&["--metrics-address", "127.0.0.1:9641"]);
    assert!(refused.contains("another netpol-agent holds the lock"), "{refused}");
    site.stop_agent();
    let refused = site.try_agent(&["--node-name", "another"]);
    assert!(refused.contains("--takeover"), "{refused}");
}

#[test]
fn uninstall_leaves_no_program_no_pin_and_no_filter() {
    for mechanism in mechanisms() {
        let mut site = shop(&["--attach", mechanism]);
        site.start_agent();
        site.settle();
        site.stop_agent();
        site.expect("stranger", "server", &Outcome::Deny);
        site.agent_verb("uninstall");
        site.expect("stranger", "server", &Outcome::Allow);
        assert!(!site.on_node("ls /sys/fs/bpf").contains("netpol"));
        for pod in ["client", "server", "stranger"] {
            let interface = site.pod(pod).host_interface().to_owned();
            for side in ["ingress", "egress"] {
                let filters = site.on_node(&format!("tc filter show dev {interface} {side} 2>&1 || true"));
                assert!(!filters.contains("pod_"), "{filters}");
            }
            assert_eq!(foreign::count(&site.node, &interface).unwrap(), 0, "{interface}");
        }
        hooks::assert_bare(&site, netpol_testbed::outside::UPLINK);
    }
}

#[test]
fn probes_of_the_own_node_reach_an_isolated_and_a_pending_pod() {
    let mut site = shop(&[]);
    site.start_agent();
    site.set_policy("deny", deny_all());
    site.settle();
    site.add_sandbox("late", 13, true);
    for last in [11, 13] {
        for address in harness::addresses(last) {
            let address = SocketAddr::new(address, PORT);
            let connected =
                site.node.place().run(move || Ok(TcpStream::connect_timeout(&address, Duration::from_secs(3)).is_ok()));
            assert!(connected.unwrap(), "{address}");
        }
    }
    site.expect("client", "server", &Outcome::Deny);
}
