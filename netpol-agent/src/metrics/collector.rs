//! The [`State`] as Prometheus sees it: computed at each scrape, nothing kept.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::drops::{DropTotal, direction_name};
use super::{Inner, MapFill, State};

/// Content type of [`render`].
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn render(state: &Arc<State>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register(
        "netpol_policy_programming_duration_seconds",
        "Time from an event to the maps in force",
        state.programming.clone(),
    );
    registry.register(
        "netpol_pod_attach_duration_seconds",
        "Time from the first sight of a pod's interface to programs on it",
        state.attach.clone(),
    );
    registry.register_collector(Box::new(Snapshot(Arc::clone(state))));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(classic(&text))
}

/// From the OpenMetrics text format, the only one that the library writes, to the one before it, which every scraper
/// reads. In OpenMetrics a counter's family lacks the suffix `_total`, so that the gauge `netpol_rejected_objects` and
/// the counter `netpol_rejected_objects_total` could not both be.
fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take_if(|(described, _)| *described == name) {
                // The library ends its own descriptions with a full stop.
                let help = help.trim_end_matches('.');
                text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if line != "# EOF" {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[derive(Debug)]
struct Snapshot(Arc<State>);

type Labels = Vec<(&'static str, String)>;

/// Counters that are not zero; the encoder appends `_total`.
fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut series = series.into_iter().filter(|(_, value)| *value > 0).peekable();
    if series.peek().is_none() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
    }
    Ok(())
}

/// Gauges with at least one series.
fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels, f64)>,
) -> fmt::Result {
    let mut series = series.into_iter().peekable();
    if series.peek().is_none() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        if labels.is_empty() {
            family.encode_gauge(&value)?;
        } else {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
    }
    Ok(())
}

fn label(name: &'static str, value: &str) -> Labels {
    vec![(name, value.to_owned())]
}

fn drop_counters(encoder: &mut DescriptorEncoder<'_>, drops: &[DropTotal]) -> fmt::Result {
    let labels = |drop: &DropTotal| {
        vec![
            ("direction", direction_name(drop.direction).to_owned()),
            ("namespace", drop.namespace.clone()),
            ("reason", drop.reason.to_owned()),
        ]
    };
    counters(
        encoder,
        "netpol_dropped_packets",
        "Packets of pods that were dropped",
        drops.iter().map(|drop| (labels(drop), drop.packets)),
    )?;
    counters(
        encoder,
        "netpol_dropped_bytes",
        "Bytes of pods that were dropped, with link headers",
        drops.iter().map(|drop| (labels(drop), drop.bytes)),
    )
}

fn maps(encoder: &mut DescriptorEncoder<'_>, inner: &Inner) -> fmt::Result {
    gauges(
        encoder,
        "netpol_bpf_map_entries",
        "Entries in a BPF map",
        inner.maps.iter().map(|(map, MapFill { entries, .. })| (label("map", map), *entries as f64)),
    )?;
    gauges(
        encoder,
        "netpol_bpf_map_capacity",
        "Entries that a BPF map can hold",
        inner.maps.iter().map(|(map, MapFill { capacity, .. })| (label("map", map), *capacity as f64)),
    )?;
    counters(
        encoder,
        "netpol_bpf_map_update_failures",
        "Writes to a BPF map that the kernel refused",
        inner
            .update_failures
            .iter()
            .map(|((map, errno), failures)| (vec![("map", map.clone()), ("errno", errno.clone())], *failures)),
    )?;
    counters(
        encoder,
        "netpol_refused_writes",
        "Rows that were withheld because they do not fit a BPF map",
        inner.refused.iter().map(|(map, refused)| (label("map", map), *refused)),
    )
}

fn events(encoder: &mut DescriptorEncoder<'_>, inner: &Inner) -> fmt::Result {
    counters(
        encoder,
        "netpol_rejected_objects",
        "Times that an object became unreadable, or unreadable in another way",
        inner.rejected_total.iter().map(|(kind, times)| (label("kind", kind), *times)),
    )?;
    counters(
        encoder,
        "netpol_sync_errors",
        "Failures between an event and the kernel, by part of the work",
        inner.sync_errors.iter().map(|(stage, errors)| (label("stage", stage), *errors)),
    )?;
    counters(
        encoder,
        "netpol_watch_errors",
        "Lists and watches that failed",
        inner.watch_errors.iter().map(|(kind, errors)| (label("kind", kind.name()), *errors)),
    )
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(state) = self;
        // Before the lock below: reading counters may report a failure.
        let drops = state.drops();
        drop_counters(&mut encoder, &drops)?;
        let inner = state.inner.lock();
        let encoder = &mut encoder;

        let count = |value: usize| value as f64;
        let pods = &inner.endpoints;
        gauges(
            encoder,
            "netpol_managed_pods",
            "Pods with an interface that the agent enforces on",
            [(vec![], count(pods.managed))],
        )?;
        gauges(
            encoder,
            "netpol_isolated_pods",
            "Managed pods that a policy isolates",
            [
                (vec![("direction", "ingress".into())], count(pods.isolated_ingress)),
                (vec![("direction", "egress".into())], count(pods.isolated_egress)),
            ],
        )?;
        let unmanaged = pods.unmanaged.iter().filter(|(_, pods)| **pods > 0);
        gauges(
            encoder,
            "netpol_unmanaged_pods",
            "Pods of this node that are not enforced",
            unmanaged.map(|(reason, pods)| (vec![("reason", reason.name().into())], count(*pods))),
        )?;
        gauges(
            encoder,
            "netpol_pending_interfaces",
            "Interfaces whose pod is not known yet",
            [(vec![], count(pods.pending_interfaces))],
        )?;
        gauges(
            encoder,
            "netpol_address_check_off_pods",
            "Pods that may send from any address, by annotation",
            [(vec![], count(pods.unchecked))],
        )?;
        gauges(
            encoder,
            "netpol_bridge_netfilter",
            "Whether bridged packets pass netfilter, as Services between pods of a node need",
            inner.bridge_netfilter.iter().map(|(family, is_on)| (label("family", family), f64::from(u8::from(*is_on)))),
        )?;
        gauges(
            encoder,
            "netpol_armed",
            "Whether packets of pods that bear no stamp are dropped, as from when every port of the pod bridge is attached",
            [(vec![], f64::from(u8::from(inner.armed)))],
        )?;
        gauges(
            encoder,
            "netpol_flow_shares_used_up",
            "Shares of flows that pods of this node have used up: what they or their peers open beyond it can be evicted",
            [(vec![], count(inner.used_up_shares))],
        )?;
        let invalid = inner.rejected.get("NetworkPolicy").copied().unwrap_or_default();
        let modes = [("enforce", inner.policies), ("invalid", invalid)];
        gauges(
            encoder,
            "netpol_policies",
            "NetworkPolicies of the cluster; the same on each node",
            modes.map(|(mode, policies)| (vec![("mode", mode.into())], count(policies))),
        )?;
        gauges(
            encoder,
            "netpol_rejected_objects",
            "Objects that cannot be read now",
            inner
                .rejected
                .iter()
                .filter(|(_, objects)| **objects > 0)
                .map(|(kind, objects)| (label("kind", kind), count(*objects))),
        )?;
        maps(encoder, &inner)?;
        events(encoder, &inner)?;
        let last_sync = inner.last_sync.map(|time| (vec![], time.as_millisecond() as f64 / 1000.0));
        gauges(
            encoder,
            "netpol_last_successful_sync_timestamp_seconds",
            "When all that was known was in force",
            last_sync,
        )?;
        let build = &state.build;
        gauges(
            encoder,
            "netpol_build_info",
            "Version of the agent, and of the kernel under it",
            [(
                vec![
                    ("version", build.version.into()),
                    ("revision", build.revision.into()),
                    ("kernel", build.kernel.clone()),
                ],
                1.0,
            )],
        )
    }
}
