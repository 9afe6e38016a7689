//! Objects from a Kubernetes API server: one list and watch a kind (decision D15).
//!
//! The loop of `kube::runtime::watcher` is not used, for three reasons: it hides the versions of lists and bookmarks,
//! which `/v1/applied` is about; it asks for the same version for ever if the server answers a watch request itself
//! with 410; and it wants typed metadata. Here every object is plain JSON until [`netpol_policy::decode`] has judged
//! it, so that one that cannot be read is one event, and nothing else.
//!
//! Lists leave the resourceVersion unset, so that the answer is current and not from a cache that lags, and are paged.
//! A watch ends within a minute, and one on which nothing comes for longer is dead. All requests have a time limit of
//! ours; the client's own retries are off, since they would hide failures for minutes.

mod client;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, TryStreamExt as _};
use kube::Client;
use kube::core::params::{ListParams, WatchParams};
use kube::core::request::Request;
use kube::core::{Status, WatchEvent};
use netpol_policy::decode::{self, Kind};
use netpol_policy::model::ObjectName;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tracing::Instrument as _;

pub use self::client::client;
use super::backoff::Backoff;
use super::{Envelope, Event, Origin};
use crate::metrics::State;

/// Time limits and sizes.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For the answer to a request: a page of a list, or the head of a watch.
    pub request: Duration,
    /// How long the server may keep a watch open, in whole seconds.
    pub watch: Duration,
    /// How much longer we wait for it to do so.
    pub watch_grace: Duration,
    /// A watch that brings nothing and ends sooner counts as a failure.
    pub watch_least: Duration,
    /// The first wait after a failure.
    pub backoff: Duration,
    /// Objects a page.
    pub page: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(30),
            watch: Duration::from_secs(50),
            watch_grace: Duration::from_secs(5),
            watch_least: Duration::from_secs(1),
            backoff: Duration::from_millis(800),
            page: 500,
        }
    }
}

/// The same failure is logged this often at most.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Why a list or a watch ended early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Client(#[from] kube::Error),
    #[error("the API server answers with an error: {} ({})", .0.message, .0.code)]
    Status(Box<Status>),
    #[error("no answer within {0:?}")]
    Silence(Duration),
    #[error("the answer is no list: {0}")]
    NotAList(serde_json::Error),
    #[error("the list has no resourceVersion")]
    NoVersion,
    #[error("an object without a name was deleted")]
    Nameless,
    #[error("the server ended the watch at once")]
    Short,
    #[error("nobody takes events any more")]
    Closed,
}

impl Failure {
    /// Whether the version we hold is of no use any more: compacted away, or from a future that the server, restored
    /// from a backup, does not know.
    fn needs_list(&self) -> bool {
        let status = match self {
            Self::Client(kube::Error::Api(status)) | Self::Status(status) => status,
            // Whatever that event was, the next list says what came of it; the same watch would say it again.
            Self::Client(kube::Error::SerdeError(_)) | Self::Nameless => return true,
            Self::Client(_) | Self::Silence(_) | Self::NotAList(_) | Self::NoVersion | Self::Short | Self::Closed => {
                return false;
            }
        };
        let is_too_large = |message: &str| message.contains("Too large resource version");
        // Code 0 is what the client makes of a line that is JSON and no event.
        matches!(status.code, 0 | 400 | 410) || status.reason == "Expired" || is_too_large(&status.message)
    }
}

impl Failure {
    /// Whether the server does not know the kind at all.
    fn is_unknown_kind(&self) -> bool {
        matches!(self, Self::Client(kube::Error::Api(status)) if status.code == 404)
    }
}

/// Watches all kinds until nobody takes their events any more.
pub async fn run(
    client: Client,
    timing: Timing,
    events: mpsc::Sender<Envelope>,
    state: Arc<State>,
) -> anyhow::Result<Infallible> {
    let watches = Kind::ALL.map(|kind| {
        let watch = Watch { kind, client: client.clone(), timing, events: events.clone(), state: Arc::clone(&state) };
        watch.run().instrument(tracing::info_span!("watch", %kind))
    });
    futures::future::join_all(watches).await;
    anyhow::bail!("nobody takes what the API server says")
}

/// The watch of one kind.
struct Watch {
    kind: Kind,
    client: Client,
    timing: Timing,
    events: mpsc::Sender<Envelope>,
    state: Arc<State>,
}

/// A page of a list; items stay text until their turn, since the tree of a page of pods is many times its size.
#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    #[serde(default)]
    items: Option<Vec<Box<RawValue>>>,
}

#[derive(Deserialize)]
struct PageMetadata {
    #[serde(rename = "resourceVersion", default)]
    version: String,
    #[serde(rename = "continue", default)]
    next: String,
}

impl Watch {
    /// Lists and watches, over and over.
    async fn run(self) {
        let mut backoff = Backoff::starting_at(self.timing.backoff);
        let mut log = FailureLog::default();
        // Where the next watch starts; none: list first.
        let mut version: Option<String> = None;
        loop {
            let result = match version.take() {
                None => self.list().await.map(|listed| {
                    backoff.reset();
                    version = Some(listed);
                }),
                Some(mut reached) => {
                    let result = self.watch(&mut reached, &mut backoff).await;
                    if !matches!(&result, Err(failure) if failure.needs_list()) {
                        version = Some(reached);
                    }
                    result
                }
            };
            match result {
                Ok(()) => log.recovered(),
                Err(Failure::Closed) => return,
                // The API has it since Kubernetes 1.33. A server that is upgraded has it later.
                Err(failure) if self.kind == Kind::ServiceCidr && failure.is_unknown_kind() => {
                    let nothing = Event::Listed { kind: self.kind, names: BTreeSet::new(), version: String::new() };
                    if self.send(nothing).await.is_err() {
                        return;
                    }
                    log.recovered();
                    tokio::select! {
                        () = tokio::time::sleep(self.timing.watch) => {}
                        () = self.events.closed() => return,
                    }
                }
                Err(failure) => {
                    self.state.watch_failed(self.kind);
                    log.failed(&failure);
                    tokio::select! {
                        () = tokio::time::sleep(backoff.step()) => {}
                        () = self.events.closed() => return,
                    }
                }
            }
        }
    }

    /// Lists everything, page by page; returns the version of the list.
    async fn list(&self) -> Result<String, Failure> {
        let mut names = BTreeSet::new();
        let mut parameters = ListParams::default().limit(self.timing.page);
        loop {
            let request = self.request().list(&parameters).map_err(kube::Error::BuildRequest)?;
            let text = self.in_time(self.client.request_text(request)).await?;
            let Page { metadata: PageMetadata { version, next }, items } =
                serde_json::from_str(&text).map_err(Failure::NotAList)?;
            for item in items.unwrap_or_default() {
                let value = serde_json::from_str(item.get()).map_err(Failure::NotAList)?;
                names.extend(name_of(self.kind, &value));
                let event = self.decode(value, None);
                self.send(event).await?;
            }
            if next.is_empty() {
                if version.is_empty() {
                    return Err(Failure::NoVersion);
                }
                tracing::debug!(objects = names.len(), version, "listed");
                self.send(Event::Listed { kind: self.kind, names, version: version.clone() }).await?;
                return Ok(version);
            }
            parameters = parameters.continue_token(&next);
        }
    }

    /// Watches from `version` until the server ends the watch, and moves `version` along.
    async fn watch(&self, version: &mut String, backoff: &mut Backoff) -> Result<(), Failure> {
        let begun = Instant::now();
        // Without the spread all watches of a node would end in the same second for ever.
        let spread = Kind::ALL.iter().position(|kind| *kind == self.kind).unwrap_or_default() as u64;
        let limit = self.timing.watch + Duration::from_secs(spread);
        let seconds = u32::try_from(limit.as_secs()).unwrap_or(u32::MAX);
        let parameters = WatchParams::default().timeout(seconds);
        let request = self.request().watch(&parameters, version).map_err(kube::Error::BuildRequest)?;
        let mut stream = pin!(self.in_time(self.client.request_events::<Value>(request)).await?);
        let mut is_fruitful = false;
        loop {
            let event = next_event(&mut stream, limit + self.timing.watch_grace).await?;
            let Some(event) = event else { break };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let progress = version_of(&object);
                    self.advance(version, progress.as_ref());
                    let event = self.decode(object, progress);
                    self.send(event).await?;
                }
                WatchEvent::Deleted(object) => {
                    let progress = version_of(&object);
                    self.advance(version, progress.as_ref());
                    let name = name_of(self.kind, &object).ok_or(Failure::Nameless)?;
                    self.send(Event::Removed { kind: self.kind, name, progress }).await?;
                }
                WatchEvent::Bookmark(bookmark) => {
                    let progress = bookmark.metadata.resource_version;
                    self.advance(version, Some(&progress));
                    self.send(Event::Bookmark { kind: self.kind, version: progress }).await?;
                }
                WatchEvent::Error(status) => return Err(Failure::Status(status)),
            }
            is_fruitful = true;
            backoff.reset();
        }
        // A proxy that cuts watches at once must not make us spin.
        if is_fruitful || begun.elapsed() >= self.timing.watch_least { Ok(()) } else { Err(Failure::Short) }
    }

    fn advance(&self, version: &mut String, progress: Option<&String>) {
        if let Some(progress) = progress {
            version.clone_from(progress);
        }
    }

    /// The event that an object stands for.
    fn decode(&self, mut value: Value, progress: Option<String>) -> Event {
        // Often the larger half of an object, and of no use to us.
        if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
            metadata.remove("managedFields");
        }
        match decode::object_of(self.kind, &value) {
            Ok(object) => Event::Upsert { object, progress },
            Err(rejected) => Event::Rejected { kind: self.kind, rejected, origin: Origin::ApiServer, progress },
        }
    }

    async fn send(&self, event: Event) -> Result<(), Failure> {
        self.events.send(event.into()).await.map_err(|_closed| Failure::Closed)
    }

    async fn in_time<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
        let limit = self.timing.request;
        match tokio::time::timeout(limit, request).await {
            Ok(answer) => Ok(answer?),
            Err(_elapsed) => Err(Failure::Silence(limit)),
        }
    }

    fn request(&self) -> Request {
        Request::new(match self.kind {
            Kind::Namespace => "/api/v1/namespaces",
            Kind::Pod => "/api/v1/pods",
            Kind::Policy => "/apis/networking.k8s.io/v1/networkpolicies",
            Kind::Service => "/api/v1/services",
            Kind::Node => "/api/v1/nodes",
            Kind::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
            Kind::ServiceCidr => "/apis/networking.k8s.io/v1/servicecidrs",
        })
    }
}

/// The next event; `None` if the server has ended the watch, or has been silent for longer than it may keep it open.
async fn next_event(
    stream: &mut (impl Stream<Item = Result<WatchEvent<Value>, kube::Error>> + Unpin),
    limit: Duration,
) -> Result<Option<WatchEvent<Value>>, Failure> {
    match tokio::time::timeout(limit, stream.try_next()).await {
        Ok(event) => Ok(event?),
        Err(_elapsed) => Err(Failure::Silence(limit)),
    }
}

fn version_of(object: &Value) -> Option<String> {
    object["metadata"]["resourceVersion"].as_str().filter(|version| !version.is_empty()).map(str::to_owned)
}

fn name_of(kind: Kind, object: &Value) -> Option<ObjectName> {
    let metadata = &object["metadata"];
    let namespace = if kind.is_namespaced() { metadata["namespace"].as_str()? } else { "" };
    Some(ObjectName::new(namespace, metadata["name"].as_str()?))
}

/// Says that something fails, again now and then, and that it works again.
#[derive(Debug, Default)]
struct FailureLog {
    failures: u64,
    last: Option<Instant>,
}

impl FailureLog {
    fn failed(&mut self, failure: &Failure) {
        self.failures += 1;
        if self.last.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
            self.last = Some(Instant::now());
            tracing::warn!(failures = self.failures, "{failure}; what is known stays in force");
        } else {
            tracing::debug!(failures = self.failures, "{failure}");
        }
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.failures) > 0 {
            self.last = None;
            tracing::info!("works again");
        }
    }
}

#[cfg(test)]
mod tests;
