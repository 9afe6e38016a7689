//! Where objects come from: an API server ([`api`]) or a directory of manifests ([`manifests`]) (decision D15).
//!
//! Both send [`Event`]s on one bounded channel, in the same terms, to [`crate::intake`]: whoever consumes them cannot
//! tell the sources apart. An object that cannot be read is an event like any other, never the end of a stream.

pub mod api;
mod backoff;
pub mod files;
pub mod manifests;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use netpol_policy::decode::{Kind, Object, Rejected};
use netpol_policy::model::ObjectName;
use tokio::sync::mpsc;

use crate::config::ObjectSource;
use crate::metrics::State;

/// Events that may wait for the reconcile loop. More would only hide that it is behind, and hold memory.
pub const CHANNEL_CAPACITY: usize = 1024;

/// What a source has to say.
///
/// `progress` is `Some(version)` once everything of that kind up to `version` has been sent: a resourceVersion, or
/// the hash of a directory. It is `None` while a list is still under way, which ends with [`Event::Listed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An object is there, perhaps changed, perhaps not.
    Upsert {
        /// The object.
        object: Object,
        /// See [`Event`].
        progress: Option<String>,
    },
    /// An object is gone.
    Removed {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: ObjectName,
        /// See [`Event`].
        progress: Option<String>,
    },
    /// An object is there and cannot be read.
    Rejected {
        /// Its kind, by which it was asked for or which it bears.
        kind: Kind,
        /// What is wrong.
        rejected: Rejected,
        /// Where it is written.
        origin: Origin,
        /// See [`Event`].
        progress: Option<String>,
    },
    /// All that exists of a kind, unreadable objects included: whatever is not among the names is gone.
    Listed {
        /// The kind.
        kind: Kind,
        /// All names.
        names: BTreeSet<ObjectName>,
        /// Version of the list.
        version: String,
    },
    /// Nothing of this kind has changed up to this version.
    Bookmark {
        /// The kind.
        kind: Kind,
        /// The version.
        version: String,
    },
    /// All that is written and belongs to no object: unparsable files, documents without a kind or a name. Replaces
    /// the set before.
    Unattributed(Vec<(Origin, Rejected)>),
}

/// An event, and when its source got hold of it: programming latency counts from there.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// When it was seen.
    pub seen: Instant,
    /// The event.
    pub event: Event,
}

impl From<Event> for Envelope {
    fn from(event: Event) -> Self {
        Self { seen: Instant::now(), event }
    }
}

/// Where an object is written, for error messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In the API server.
    ApiServer,
    /// In a file.
    File {
        /// Name within the directory.
        file: String,
        /// Document in the file, from 1; `None`: the file as a whole.
        document: Option<usize>,
        /// Item of the document, from 1, if that is a list.
        item: Option<usize>,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiServer => f.write_str("API server"),
            Self::File { file, document, item } => {
                f.write_str(file)?;
                if let Some(document) = document {
                    write!(f, ", document {document}")?;
                }
                if let Some(item) = item {
                    write!(f, ", item {item}")?;
                }
                Ok(())
            }
        }
    }
}

/// Runs the configured source until its consumer is gone, or until it cannot start: an unreadable kubeconfig, a
/// directory that is not there. Everything later is retried, counted and logged, and never ends it.
pub async fn run(
    source: &ObjectSource,
    events: mpsc::Sender<Envelope>,
    state: Arc<State>,
) -> anyhow::Result<Infallible> {
    match source {
        ObjectSource::ApiServer { kubeconfig, server } => {
            let client = api::client(kubeconfig.as_deref(), server.as_deref()).await?;
            api::run(client, api::Timing::default(), events, state).await
        }
        ObjectSource::Manifests(directory) => manifests::run(directory.clone(), events, state).await,
    }
}
