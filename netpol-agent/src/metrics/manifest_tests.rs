//! The manifests for the Prometheus operator, whose kinds no API server of the tests knows: their fields are checked
//! against the part of the operator's API that is used here, their expressions against what is exported.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use netpol_common::abi::Direction;
use netpol_common::verdict::Reason;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::*;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Manifest<S> {
    api_version: String,
    kind: String,
    metadata: BTreeMap<String, String>,
    spec: S,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitor {
    selector: Selector,
    job_label: String,
    pod_metrics_endpoints: Vec<MetricsEndpoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MetricsEndpoint {
    port: String,
    path: String,
    interval: String,
    honor_labels: bool,
    relabelings: Vec<Relabeling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Relabeling {
    source_labels: Vec<String>,
    target_label: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(rename = "for")]
    pending: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn deploy(file: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy")).join(file)
}

fn read<T: DeserializeOwned>(file: &str) -> T {
    let text = std::fs::read_to_string(deploy(file)).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[derive(Debug)]
struct OneDrop;

impl CounterSource for OneDrop {
    fn samples(&self) -> anyhow::Result<Vec<DropSample>> {
        let (direction, reason) = (Direction::Ingress, Reason::NoRule);
        Ok(vec![DropSample { endpoint: 1, namespace: "shop".into(), direction, reason, packets: 1, bytes: 60 }])
    }
}

/// Everything that is ever exported: what never happened has no series.
fn exported() -> String {
    let state = State::new();
    state.set_drop_counters(Arc::new(OneDrop));
    let unmanaged = BTreeMap::from([(UnmanagedReason::HostNetwork, 1)]);
    state.set_endpoints(EndpointCounts { unmanaged, ..EndpointCounts::default() });
    state.set_policies(1);
    state.set_map("RULES", 1, 2);
    state.map_update_failed("RULES", libc::ENOSPC);
    state.write_refused("RULES");
    state.sync_failed(Stage::Attach);
    state.watch_failed(Kind::Pod);
    state.count_rejected("NetworkPolicy");
    state.synced();
    state.render().unwrap()
}

/// The names of our metrics in an expression, each with the braces that follow it, empty if none.
fn metrics(expression: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices("netpol_") {
        let rest = &expression[at..];
        let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (name, rest) = rest.split_at(length);
        let braces = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
        found.push((name, braces));
    }
    found
}

/// The labels by which an expression groups, other than those that a scrape adds.
fn groupings(expression: &str) -> impl Iterator<Item = &str> {
    let lists = expression.split("by (").skip(1).filter_map(|rest| rest.split(')').next());
    lists.flat_map(|list| list.split(',')).map(str::trim).filter(|label| *label != "node")
}

#[test]
fn the_pod_monitor_scrapes_the_daemon_sets_port() {
    let Manifest { api_version, kind, metadata, spec }: Manifest<PodMonitor> =
        read("overlays/prometheus-operator/podmonitor.yaml");
    assert_eq!((api_version.as_str(), kind.as_str()), ("monitoring.coreos.com/v1", "PodMonitor"));
    assert_eq!(metadata["name"], "netpol-agent");

    let daemon_set: serde_json::Value = read("base/daemonset.yaml");
    let template = &daemon_set["spec"]["template"];
    for (label, value) in &spec.selector.match_labels {
        assert_eq!(template["metadata"]["labels"][label], value.as_str(), "{label}");
    }
    assert!(spec.selector.match_labels.contains_key(&spec.job_label));
    let [MetricsEndpoint { port, path, interval, honor_labels, relabelings }] = &spec.pod_metrics_endpoints[..] else {
        panic!("not one endpoint");
    };
    assert_eq!(template["spec"]["containers"][0]["ports"][0]["name"], port.as_str());
    assert_eq!((path.as_str(), interval.as_str(), honor_labels), ("/metrics", "30s", &true));
    let [Relabeling { source_labels, target_label }] = &relabelings[..] else { panic!("not one relabeling") };
    assert_eq!((source_labels[0].as_str(), target_label.as_str()), ("__meta_kubernetes_pod_node_name", "node"));
}

#[test]
fn alerts_ask_only_for_metrics_and_labels_that_are_exported() {
    let Manifest { api_version, kind, metadata, spec }: Manifest<Rules> =
        read("overlays/prometheus-operator/prometheusrule.yaml");
    assert_eq!((api_version.as_str(), kind.as_str()), ("monitoring.coreos.com/v1", "PrometheusRule"));
    assert_eq!(metadata["name"], "netpol-agent");
    let exported = exported();
    let series = |name: &str| exported.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap_or_default();
    let mut names = BTreeSet::new();
    for Group { name, rules } in &spec.groups {
        assert!(!name.is_empty());
        for Rule { alert, expr, pending, labels, annotations } in rules {
            assert!(names.insert(alert), "{alert}: twice");
            let metrics = metrics(expr);
            assert!(!metrics.is_empty() || expr.contains(r#"up{job="netpol-agent"}"#), "{alert}");
            for (metric, braces) in &metrics {
                assert!(exported.lines().any(|line| line.starts_with(&format!("{metric}{{")) || line.starts_with(&format!("{metric} "))), "{alert}: {metric}");
                for matcher in braces.split(',').filter(|matcher| !matcher.is_empty()) {
                    let label = matcher.split(['=', '!']).next().unwrap();
                    assert!(series(metric).contains(&format!("{label}=\"")), "{alert}: {metric} has no {label}");
                }
            }
            for label in groupings(expr) {
                let carried = metrics.iter().all(|(metric, _)| series(metric).contains(&format!("{label}=\"")));
                assert!(carried, "{alert}: {label}");
            }
            let duration = |text: &str| text.strip_suffix('m').is_some_and(|number| number.parse::<u32>().is_ok());
            assert!(pending.as_deref().is_none_or(duration), "{alert}: {pending:?}");
            assert!(["info", "warning", "critical"].contains(&labels["severity"].as_str()), "{alert}");
            assert!(!annotations["summary"].is_empty(), "{alert}");
        }
    }
}

#[test]
fn a_metric_is_found_with_its_matchers() {
    let expression = r#"sum by (node, map) (netpol_a_total{reason="x"}) / netpol_b > 0"#;
    assert_eq!(metrics(expression), [("netpol_a_total", r#"reason="x""#), ("netpol_b", "")]);
    assert_eq!(groupings(expression).collect::<Vec<_>>(), ["map"]);
    // The job's name is no metric.
    assert_eq!(metrics(r#"up{job="netpol-agent"} == 0"#), []);
}
