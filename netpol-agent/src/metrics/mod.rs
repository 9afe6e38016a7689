//! What the agent tells about itself: one shared [`State`], set by whoever knows, read by [`crate::http`].
//!
//! The reconcile loop calls, in the course of its work:
//! - [`State::beat`] once a turn, [`State::programmed`] after the first full programming;
//! - [`State::applied`] for each kind whose version is now in the maps, [`State::synced`] after each clean round,
//!   [`State::sync_failed`] after any other;
//! - [`State::set_endpoints`], [`State::set_policies`], [`State::set_map`] with whole new values when they change;
//! - [`State::observe_programming`], [`State::observe_attach`] with each latency;
//! - [`State::map_update_failed`] and [`State::write_refused`] with each event;
//! - [`State::set_drop_counters`] once, with the way to read the counters; [`State::retire`] before the counters of a
//!   deleted endpoint are zeroed.
//!
//! The sources call [`State::watch_failed`], the intake [`State::set_rejected`] and [`State::count_rejected`].
//!
//! Nothing is kept twice: [`collector`] reads this state and the kernel's counters at each scrape. No label carries an
//! address, a port, a pod or a peer; what is zero has no series.

mod collector;
pub mod drops;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use netpol_policy::decode::Kind;
use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;
use serde_json::json;

use self::drops::Ledger;
pub use self::drops::{CounterSource, DropSample};
use crate::guard::GuardCounters;

/// The reconcile loop is taken for dead after this long without a turn.
pub const HEARTBEAT_LIMIT: Duration = Duration::from_secs(30);

/// Upper bounds in seconds: from one write of a map to a node that is far behind.
const LATENCY_BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Part of the work that failed; names are label values of `netpol_sync_errors_total` and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Following links and addresses.
    Interfaces,
    /// Attaching programs.
    Attach,
    /// Writing policy maps.
    Maps,
    /// Reading counters.
    Counters,
    /// The table of nftables.
    Guard,
}

impl Stage {
    const fn name(self) -> &'static str {
        match self {
            Self::Interfaces => "interfaces",
            Self::Attach => "attach",
            Self::Maps => "maps",
            Self::Counters => "counters",
            Self::Guard => "guard",
        }
    }
}

/// Why a pod of this node is not enforced; names are label values of `netpol_unmanaged_pods` and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnmanagedReason {
    /// It shares the node's network namespace, where policies do not apply.
    HostNetwork,
    /// No interface was found for it.
    NoInterface,
    /// Its interface refused the programs.
    AttachFailed,
}

impl UnmanagedReason {
    const fn name(self) -> &'static str {
        match self {
            Self::HostNetwork => "host_network",
            Self::NoInterface => "no_interface",
            Self::AttachFailed => "attach_failed",
        }
    }
}

/// Pods and interfaces of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounts {
    /// Pods with an interface that is ours.
    pub managed: usize,
    /// Those among them whose policy is in force.
    pub ready: usize,
    /// Managed pods that some policy isolates for ingress.
    pub isolated_ingress: usize,
    /// Managed pods that some policy isolates for egress.
    pub isolated_egress: usize,
    /// Interfaces whose pod is not known yet.
    pub pending_interfaces: usize,
    /// Pods whose addresses are not checked, by annotation.
    pub unchecked: usize,
    /// Pods that are not enforced.
    pub unmanaged: BTreeMap<UnmanagedReason, usize>,
}

/// Everything that metrics, health and `/v1/applied` tell. Cheap to share, and locked only for moments.
#[derive(Debug)]
pub struct State {
    inner: Mutex<Inner>,
    drops: Mutex<Ledger>,
    source: Mutex<Option<Arc<dyn CounterSource>>>,
    guard: Mutex<Option<GuardCounters>>,
    heartbeat: Mutex<Instant>,
    ready: AtomicBool,
    programming: Histogram,
    attach: Histogram,
    build: BuildInfo,
}

#[derive(Debug, Default)]
struct Inner {
    applied: BTreeMap<Kind, Applied>,
    endpoints: EndpointCounts,
    policies: usize,
    maps: BTreeMap<String, MapFill>,
    rejected: BTreeMap<&'static str, usize>,
    rejected_total: BTreeMap<&'static str, u64>,
    update_failures: BTreeMap<(String, String), u64>,
    refused: BTreeMap<String, u64>,
    sync_errors: BTreeMap<&'static str, u64>,
    watch_errors: BTreeMap<Kind, u64>,
    bridge_netfilter: BTreeMap<&'static str, bool>,
    armed: bool,
    used_up_shares: usize,
    last_sync: Option<Timestamp>,
}

#[derive(Debug)]
struct Applied {
    version: String,
    time: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct MapFill {
    entries: u64,
    capacity: u64,
}

#[derive(Debug)]
struct BuildInfo {
    version: &'static str,
    revision: &'static str,
    kernel: String,
}

impl State {
    /// Content type of [`State::render`].
    pub const CONTENT_TYPE: &str = collector::CONTENT_TYPE;

    /// A state that knows nothing: not ready, alive for the next [`HEARTBEAT_LIMIT`].
    #[must_use]
    pub fn new() -> Arc<Self> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Arc::new(Self {
            inner: Mutex::default(),
            drops: Mutex::default(),
            source: Mutex::default(),
            guard: Mutex::default(),
            heartbeat: Mutex::new(Instant::now()),
            ready: AtomicBool::new(false),
            programming: Histogram::new(LATENCY_BUCKETS),
            attach: Histogram::new(LATENCY_BUCKETS),
            build: BuildInfo {
                version: env!("CARGO_PKG_VERSION"),
                revision: option_env!("NETPOL_REVISION").unwrap_or("unknown"),
                kernel: kernel.trim().to_owned(),
            },
        })
    }

    /// The reconcile loop has begun a turn.
    pub fn beat(&self) {
        *self.heartbeat.lock() = Instant::now();
    }

    /// Whether the reconcile loop's last turn began less than [`HEARTBEAT_LIMIT`] before `now`.
    #[must_use]
    pub fn is_alive(&self, now: Instant) -> bool {
        now.saturating_duration_since(*self.heartbeat.lock()) < HEARTBEAT_LIMIT
    }

    /// The first full programming is done.
    pub fn programmed(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Whether [`State::programmed`] was called.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Everything of this kind up to this version is in the maps.
    pub fn applied(&self, kind: Kind, version: &str) {
        let mut inner = self.inner.lock();
        match inner.applied.get_mut(&kind) {
            Some(applied) if applied.version == version => {}
            _ => {
                let applied = Applied { version: version.to_owned(), time: Timestamp::now() };
                inner.applied.insert(kind, applied);
            }
        }
    }

    /// Replaces the counts of pods and interfaces.
    pub fn set_endpoints(&self, counts: EndpointCounts) {
        self.inner.lock().endpoints = counts;
    }

    /// Number of readable policies in the cluster.
    pub fn set_policies(&self, enforced: usize) {
        self.inner.lock().policies = enforced;
    }

    /// How full a map is.
    pub fn set_map(&self, map: &str, entries: u64, capacity: u64) {
        let fill = MapFill { entries, capacity };
        let mut inner = self.inner.lock();
        match inner.maps.get_mut(map) {
            Some(known) => *known = fill,
            None => {
                inner.maps.insert(map.to_owned(), fill);
            }
        }
    }

    /// Whether bridged packets pass netfilter, by the families that pods use.
    pub fn set_bridge_netfilter(&self, families: impl IntoIterator<Item = (&'static str, bool)>) {
        self.inner.lock().bridge_netfilter = families.into_iter().collect();
    }

    /// Whether what comes from a pod without a stamp is dropped.
    pub fn set_armed(&self, armed: bool) {
        self.inner.lock().armed = armed;
    }

    /// Accounts of pods that hold as many confirmed flows as they may.
    pub fn set_used_up_shares(&self, accounts: usize) {
        self.inner.lock().used_up_shares = accounts;
    }

    /// The kernel refused a write to a map; `errno` is the raw error number.
    pub fn map_update_failed(&self, map: &str, errno: i32) {
        // Its Debug form is the symbol, ENOSPC for 28.
        let errno = format!("{:?}", nix::errno::Errno::from_raw(errno));
        *self.inner.lock().update_failures.entry((map.to_owned(), errno)).or_default() += 1;
    }

    /// The compiler withheld rows because they do not fit the map.
    pub fn write_refused(&self, map: &str) {
        *self.inner.lock().refused.entry(map.to_owned()).or_default() += 1;
    }

    /// All that was known is now in force.
    pub fn synced(&self) {
        self.inner.lock().last_sync = Some(Timestamp::now());
    }

    /// Part of the work failed and will be tried again.
    pub fn sync_failed(&self, stage: Stage) {
        *self.inner.lock().sync_errors.entry(stage.name()).or_default() += 1;
    }

    /// A list or watch of this kind failed and will be tried again.
    pub fn watch_failed(&self, kind: Kind) {
        *self.inner.lock().watch_errors.entry(kind).or_default() += 1;
    }

    /// Time from the event to the maps in force.
    pub fn observe_programming(&self, latency: Duration) {
        self.programming.observe(latency.as_secs_f64());
    }

    /// Time from the first sight of an interface to programs on it.
    pub fn observe_attach(&self, latency: Duration) {
        self.attach.observe(latency.as_secs_f64());
    }

    /// Objects that cannot be read now, by the `kind` they bear.
    pub fn set_rejected<'a>(&self, counts: impl IntoIterator<Item = (&'a str, usize)>) {
        let mut rejected = BTreeMap::new();
        for (kind, count) in counts {
            *rejected.entry(kind_label(kind)).or_default() += count;
        }
        self.inner.lock().rejected = rejected;
    }

    /// An object became unreadable, or unreadable in another way.
    pub fn count_rejected(&self, kind: &str) {
        *self.inner.lock().rejected_total.entry(kind_label(kind)).or_default() += 1;
    }

    /// How to read the drop counters. Read at each scrape.
    pub fn set_drop_counters(&self, source: Arc<dyn CounterSource>) {
        *self.source.lock() = Some(source);
    }

    /// Tells the drops of the guard too, from now on.
    pub fn set_guard_counters(&self, counters: GuardCounters) {
        *self.guard.lock() = Some(counters);
    }

    /// Keeps the counts of deleted endpoints in this directory, so that they survive a restart as the pinned counters
    /// of live ones do, and reads what an agent before has left there.
    pub fn keep_retired_in(&self, runtime_dir: &Path) {
        self.drops.lock().keep_in(runtime_dir);
    }

    /// Moves the final counts of a deleted endpoint to its namespace's account. To be called once, when
    /// [`CounterSource`] no longer tells of the endpoint, and before its number is used again.
    pub fn retire(&self, endpoint: u32, last: &[DropSample]) {
        self.drops.lock().retire(endpoint, last);
    }

    /// Drops by namespace, direction and reason, as a scrape would show them.
    #[must_use]
    pub fn drops(&self) -> Vec<drops::DropTotal> {
        let source = self.source.lock().clone();
        // Held while the counters are read: an endpoint that is retired meanwhile would be counted as live again.
        let mut ledger = self.drops.lock();
        let samples = source.map(|source| source.samples());
        let guard = self.guard.lock().as_ref().map(GuardCounters::read);
        match samples {
            Some(Ok(samples)) => ledger.update(&samples),
            Some(Err(error)) => {
                tracing::warn!("cannot read drop counters: {error:#}");
                self.sync_failed(Stage::Counters);
            }
            None => {}
        }
        let mut totals = ledger.totals();
        match guard {
            None => {}
            Some(Ok(dropped)) => drops::add_guard(&mut totals, &dropped),
            Some(Err(error)) => {
                tracing::warn!("cannot read the counters of the guard: {error}");
                self.sync_failed(Stage::Counters);
            }
        }
        totals
    }

    /// All metrics, as [`State::CONTENT_TYPE`].
    pub fn render(self: &Arc<Self>) -> Result<String, fmt::Error> {
        collector::render(self)
    }

    /// The answer of `GET /v1/applied`.
    #[must_use]
    pub fn applied_json(&self) -> serde_json::Value {
        let inner = self.inner.lock();
        let kinds: serde_json::Map<_, _> = inner
            .applied
            .iter()
            .map(|(kind, Applied { version, time })| {
                (kind.name().to_owned(), json!({ "version": version, "time": time.to_string() }))
            })
            .collect();
        json!({
            "applied": kinds,
            "endpoints": { "managed": inner.endpoints.managed, "ready": inner.endpoints.ready },
            "pending": inner.endpoints.pending_interfaces,
        })
    }
}

/// Kinds come from files too, where anything can be written: a label value must not.
fn kind_label(kind: &str) -> &'static str {
    Kind::ALL.into_iter().map(Kind::name).find(|name| *name == kind).unwrap_or("other")
}

#[cfg(test)]
mod manifest_tests;
#[cfg(test)]
mod tests;
