use netpol_common::abi::Direction;
use netpol_common::verdict::Reason;

use super::*;

#[derive(Debug)]
struct Fixed(Vec<DropSample>);

impl CounterSource for Fixed {
    fn samples(&self) -> anyhow::Result<Vec<DropSample>> {
        Ok(self.0.clone())
    }
}

#[derive(Debug)]
struct Broken;

impl CounterSource for Broken {
    fn samples(&self) -> anyhow::Result<Vec<DropSample>> {
        anyhow::bail!("no such map")
    }
}

fn drop_of(reason: Reason, direction: Direction, packets: u64) -> DropSample {
    DropSample { endpoint: 1, namespace: "shop".into(), direction, reason, packets, bytes: packets * 60 }
}

fn render(state: &Arc<State>) -> String {
    state.render().expect("render")
}

fn has_line(text: &str, line: &str) -> bool {
    text.lines().any(|known| known == line)
}

#[test]
fn drops_are_counted_by_direction_namespace_and_reason() {
    let state = State::new();
    state.set_drop_counters(Arc::new(Fixed(vec![
        drop_of(Reason::NoRule, Direction::Ingress, 2),
        drop_of(Reason::SpoofedSource, Direction::Egress, 3),
    ])));
    let text = render(&state);
    for line in [
        "# TYPE netpol_dropped_packets_total counter",
        r#"netpol_dropped_packets_total{direction="ingress",namespace="shop",reason="no_rule"} 2"#,
        r#"netpol_dropped_packets_total{direction="egress",namespace="shop",reason="spoofed_source"} 3"#,
        r#"netpol_dropped_bytes_total{direction="ingress",namespace="shop",reason="no_rule"} 120"#,
    ] {
        assert!(has_line(&text, line), "{line}\n{text}");
    }
}

#[test]
fn what_never_happened_has_no_series() {
    let text = render(&State::new());
    for name in ["dropped", "unmanaged", "rejected", "errors", "failures", "refused", "last_successful"] {
        assert!(!text.contains(&format!("netpol_{name}")), "{name}\n{text}");
    }
    assert!(has_line(&text, "netpol_managed_pods 0.0"), "{text}");
    assert!(text.contains(concat!("netpol_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"")), "{text}");
}

#[test]
fn every_setter_shows() {
    let state = State::new();
    state.set_endpoints(EndpointCounts {
        managed: 5,
        ready: 4,
        isolated_ingress: 3,
        isolated_egress: 2,
        pending_interfaces: 1,
        unchecked: 2,
        unmanaged: BTreeMap::from([(UnmanagedReason::HostNetwork, 7), (UnmanagedReason::NoInterface, 0)]),
    });
    state.set_policies(9);
    state.set_map("RULES", 10, 512);
    state.map_update_failed("RULES", libc::ENOSPC);
    state.write_refused("CIDR4");
    state.synced();
    state.sync_failed(Stage::Attach);
    state.watch_failed(Kind::Pod);
    state.set_rejected([("NetworkPolicy", 2), ("Gadget", 1), ("file", 1)]);
    state.count_rejected("NetworkPolicy");
    state.observe_programming(Duration::from_millis(3));
    state.observe_attach(Duration::from_secs(100));
    let text = render(&state);
    for line in [
        "netpol_managed_pods 5.0",
        r#"netpol_isolated_pods{direction="ingress"} 3.0"#,
        r#"netpol_isolated_pods{direction="egress"} 2.0"#,
        "netpol_pending_interfaces 1.0",
        "netpol_address_check_off_pods 2.0",
        r#"netpol_unmanaged_pods{reason="host_network"} 7.0"#,
        r#"netpol_policies{mode="enforce"} 9.0"#,
        r#"netpol_policies{mode="invalid"} 2.0"#,
        r#"netpol_bpf_map_entries{map="RULES"} 10.0"#,
        r#"netpol_bpf_map_capacity{map="RULES"} 512.0"#,
        r#"netpol_bpf_map_update_failures_total{map="RULES",errno="ENOSPC"} 1"#,
        r#"netpol_refused_writes_total{map="CIDR4"} 1"#,
        r#"netpol_sync_errors_total{stage="attach"} 1"#,
        r#"netpol_watch_errors_total{kind="Pod"} 1"#,
        "# TYPE netpol_rejected_objects gauge",
        r#"netpol_rejected_objects{kind="NetworkPolicy"} 2.0"#,
        r#"netpol_rejected_objects{kind="other"} 2.0"#,
        "# TYPE netpol_rejected_objects_total counter",
        r#"netpol_rejected_objects_total{kind="NetworkPolicy"} 1"#,
        r#"netpol_policy_programming_duration_seconds_bucket{le="0.005"} 1"#,
        r#"netpol_pod_attach_duration_seconds_bucket{le="60.0"} 0"#,
        r#"netpol_pod_attach_duration_seconds_bucket{le="+Inf"} 1"#,
    ] {
        assert!(has_line(&text, line), "{line}\n{text}");
    }
    assert!(!text.contains("no_interface"), "{text}");
    assert!(text.contains("\nnetpol_last_successful_sync_timestamp_seconds "), "{text}");
    assert!(!text.contains("# EOF"), "{text}");
}

#[test]
fn no_family_is_described_twice() {
    let state = State::new();
    state.set_rejected([("Pod", 1)]);
    state.count_rejected("Pod");
    let text = render(&state);
    let mut families: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let all = families.len();
    families.sort_unstable();
    families.dedup();
    assert_eq!(families.len(), all, "{text}");
}

#[test]
fn unreadable_counters_are_a_failure_and_keep_what_was_read() {
    let state = State::new();
    state.set_drop_counters(Arc::new(Fixed(vec![drop_of(Reason::NoRule, Direction::Ingress, 2)])));
    render(&state);
    state.set_drop_counters(Arc::new(Broken));
    let text = render(&state);
    assert!(text.contains(r#"reason="no_rule"} 2"#), "{text}");
    assert!(has_line(&text, r#"netpol_sync_errors_total{stage="counters"} 1"#), "{text}");
}

#[test]
fn the_loop_is_dead_when_its_last_turn_is_half_a_minute_old() {
    let state = State::new();
    state.beat();
    let now = Instant::now();
    assert!(state.is_alive(now));
    assert!(!state.is_alive(now + HEARTBEAT_LIMIT));
    // A clock reading from before the turn, taken by another task, is no reason for alarm.
    assert!(state.is_alive(now - Duration::from_millis(1)));
}

#[test]
fn applied_versions_are_told_by_kind() {
    let state = State::new();
    state.applied(Kind::Policy, "41");
    state.applied(Kind::Policy, "42");
    state.applied(Kind::Pod, "7");
    state.set_endpoints(EndpointCounts { managed: 3, ready: 2, pending_interfaces: 1, ..EndpointCounts::default() });
    let answer = state.applied_json();
    assert_eq!(answer["applied"]["NetworkPolicy"]["version"], "42");
    assert_eq!(answer["applied"]["Pod"]["version"], "7");
    assert!(answer["applied"]["Pod"]["time"].as_str().expect("time").ends_with('Z'));
    assert_eq!(answer["endpoints"], json!({ "managed": 3, "ready": 2 }));
    assert_eq!(answer["pending"], 1);
}
