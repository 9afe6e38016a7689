//! Objects from a directory of manifests, re-read whenever it changes (decision D15).
//!
//! All `*.yaml`, `*.yml` and `*.json` files of the directory, without its subdirectories. A thread of its own waits
//! for inotify, looks by itself once a second (not every file system notifies), and turns what differs from the last
//! reading into the same events that a watch would send; the whole directory then has one version, the first 16 hex
//! digits of the SHA-256 over each file's name, a zero byte, its content and a zero byte, in order of names.
//!
//! A file with a document that does not parse keeps saying what it said before: it is probably half written. If it
//! never parsed, its other documents count. A namespace that objects are in but nobody wrote down exists all the
//! same, as the API server would have insisted. Workloads are not expanded: only Pods have addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc as sync;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use netpol_policy::decode::{self, Kind, Object, Rejected};
use netpol_policy::model::ObjectName;
use notify::Watcher as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::files::{self, Parsed, Unparsable, Written};
use super::{Envelope, Event, Origin};
use crate::metrics::State;

/// How often the directory is looked at without being asked to.
const POLL: Duration = Duration::from_secs(1);

/// An editor replaces a file in several steps, between which it may be absent or empty: nothing is read until this
/// long after the last of them, …
const SETTLE: Duration = Duration::from_millis(100);

/// … but no later than this after the first.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

/// A file that was written so shortly before it was read may be written again without a change of its time stamp.
const TIMESTAMP_GRAIN: Duration = Duration::from_secs(2);

/// See [`super::run`].
pub async fn run(path: PathBuf, events: mpsc::Sender<Envelope>, _state: Arc<State>) -> anyhow::Result<Infallible> {
    let (result, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("manifests".into())
        .spawn(move || {
            // Nobody listens only if the process is about to end.
            let _ = result.send(watch(&path, &events));
        })
        .context("cannot start the thread that reads manifests")?;
    ended.await.context("the thread that reads manifests has died")?
}

/// Reads until nobody listens any more.
fn watch(path: &Path, events: &mpsc::Sender<Envelope>) -> anyhow::Result<Infallible> {
    let (wake, woken) = sync::channel();
    let notifier = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !is_write(&event.kind)) {
            return;
        }
        // The receiver is dropped only with the notifier.
        let _ = wake.send(());
    })
    .and_then(|mut notifier| {
        notifier.watch(path, notify::RecursiveMode::NonRecursive)?;
        Ok(notifier)
    });
    if let Err(error) = &notifier {
        tracing::warn!("--manifests {}: no notifications ({error}); looking once a second", path.display());
    }
    let mut directory = Directory::new(path);
    let mut seen = list(path).with_context(|| format!("--manifests {}", path.display()))?;
    let mut is_due = true;
    loop {
        if is_due {
            for event in directory.read() {
                if events.blocking_send(event.into()).is_err() {
                    break;
                }
            }
        }
        if events.is_closed() {
            anyhow::bail!("nobody takes what manifests say");
        }
        is_due = match woken.recv_timeout(POLL) {
            Ok(()) => true,
            Err(sync::RecvTimeoutError::Timeout) => seen.is_fresh() || list(path).ok().as_ref() != Some(&seen),
            // Without a notifier there is nobody to wake us.
            Err(sync::RecvTimeoutError::Disconnected) => {
                std::thread::sleep(POLL);
                seen.is_fresh() || list(path).ok().as_ref() != Some(&seen)
            }
        };
        if is_due {
            settle(&woken);
            seen = list(path).unwrap_or_default();
        }
    }
}

/// Our own reading is among what inotify tells of.
fn is_write(kind: &notify::EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}

fn settle(woken: &sync::Receiver<()>) {
    let deadline = std::time::Instant::now() + SETTLE_LIMIT;
    while std::time::Instant::now() < deadline {
        match woken.recv_timeout(SETTLE) {
            Ok(()) => {}
            Err(sync::RecvTimeoutError::Timeout) => return,
            Err(sync::RecvTimeoutError::Disconnected) => return std::thread::sleep(SETTLE),
        }
    }
}

/// What `stat` tells of the manifests of a directory.
#[derive(Debug, Default, PartialEq, Eq)]
struct Listing(BTreeMap<String, (u64, u64, Option<SystemTime>)>);

impl Listing {
    fn is_fresh(&self) -> bool {
        let grain = SystemTime::now().checked_sub(TIMESTAMP_GRAIN);
        self.0.values().any(|(_, _, modified)| *modified >= grain)
    }
}

fn list(path: &Path) -> io::Result<Listing> {
    let mut listing = BTreeMap::new();
    for name in names(path)? {
        // Follows links: a ConfigMap's files are links to where the kubelet swaps directories.
        if let Ok(metadata) = fs::metadata(path.join(&name)) {
            listing.insert(name, (metadata.len(), metadata.ino(), metadata.modified().ok()));
        }
    }
    Ok(Listing(listing))
}

/// Names of the manifests, sorted.
fn names(path: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(path)? {
        if let Ok(name) = entry?.file_name().into_string()
            && files::is_manifest(&name)
        {
            names.insert(name);
        }
    }
    Ok(names)
}

type Key = (Kind, ObjectName);

/// What the directory said last.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// By file, the last reading in which every document parsed, or what could be parsed if there is none.
    files: BTreeMap<String, FileState>,
    sent: BTreeMap<Key, Result<Object, Rejected>>,
    unattributed: Vec<(Origin, Rejected)>,
    version: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct FileState {
    objects: Vec<Written>,
    /// Whether every document of `objects`' file parsed.
    is_whole: bool,
    /// What is wrong with the file as it is now.
    errors: Vec<(Option<usize>, String)>,
    /// Of the content, so that a file is parsed once.
    digest: Option<[u8; 32]>,
}

impl Directory {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            files: BTreeMap::new(),
            sent: BTreeMap::new(),
            unattributed: Vec::new(),
            version: None,
        }
    }

    /// Reads everything and says what has changed; nothing if nothing has.
    fn read(&mut self) -> Vec<Event> {
        let version = match self.read_files() {
            Ok(version) => version,
            Err(error) => {
                let origin = Origin::File { file: self.path.display().to_string(), document: None, item: None };
                let unattributed = vec![(origin, unreadable(error.to_string()))];
                return self.report(unattributed).into_iter().collect();
            }
        };
        let Contents { objects, mut unattributed } = self.contents();
        for (file, FileState { errors, .. }) in &self.files {
            for (document, message) in errors {
                let origin = Origin::File { file: file.clone(), document: *document, item: None };
                unattributed.push((origin, unreadable(message.clone())));
            }
        }
        let mut events: Vec<Event> = self.report(unattributed).into_iter().collect();
        let is_new = self.version.as_ref() != Some(&version);
        for (key, (origin, now)) in &objects {
            if self.sent.get(key) == Some(now) {
                continue;
            }
            events.push(match now.clone() {
                Ok(object) => Event::Upsert { object, progress: None },
                Err(rejected) => Event::Rejected { kind: key.0, rejected, origin: origin.clone(), progress: None },
            });
        }
        let is_changed = !events.is_empty() || objects.len() != self.sent.len();
        self.sent = objects.into_iter().map(|(key, (_, now))| (key, now)).collect();
        if is_new || is_changed {
            events.extend(Kind::ALL.map(|kind| Event::Listed {
                kind,
                names: self.sent.keys().filter(|key| key.0 == kind).map(|key| key.1.clone()).collect(),
                version: version.clone(),
            }));
        }
        self.version = Some(version);
        events
    }

    fn report(&mut self, unattributed: Vec<(Origin, Rejected)>) -> Option<Event> {
        if self.unattributed == unattributed {
            return None;
        }
        self.unattributed.clone_from(&unattributed);
        Some(Event::Unattributed(unattributed))
    }

    /// Brings `files` up to date; returns the version of the directory.
    fn read_files(&mut self) -> io::Result<String> {
        let names = names(&self.path)?;
        self.files.retain(|name, _| names.contains(name));
        let mut hash = Sha256::new();
        for name in names {
            let state = self.files.entry(name.clone()).or_default();
            match fs::read(self.path.join(&name)) {
                Ok(bytes) => {
                    for part in [name.as_bytes(), b"\0", &bytes, b"\0"] {
                        hash.update(part);
                    }
                    let digest = Some(Sha256::digest(&bytes).into());
                    if state.digest == digest {
                        continue;
                    }
                    match String::from_utf8(bytes) {
                        Ok(text) => state.take(files::parse(&name, &text)),
                        Err(error) => state.errors = vec![(None, error.to_string())],
                    }
                    state.digest = digest;
                }
                // It vanished after it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.files.remove(&name);
                }
                Err(error) => {
                    state.errors = vec![(None, error.to_string())];
                    state.digest = None;
                }
            }
        }
        Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// All objects of all files as they count, and what is wrong with those that no event can name.
    fn contents(&self) -> Contents {
        let mut contents = Contents::default();
        for (file, state) in &self.files {
            for Written { document, item, value } in &state.objects {
                let origin = Origin::File { file: file.clone(), document: Some(*document), item: *item };
                if decode::kind_ignored(value) {
                    tracing::debug!(%origin, kind = %value["kind"], "ignored: not a kind that decides verdicts");
                } else {
                    contents.add(origin, decode::object(value));
                }
            }
        }
        contents.imply_namespaces();
        contents
    }
}

impl FileState {
    fn take(&mut self, Parsed { objects, errors }: Parsed) {
        let is_whole = errors.is_empty();
        if is_whole || !self.is_whole {
            self.objects = objects;
            self.is_whole = is_whole;
        }
        self.errors = errors.into_iter().map(|Unparsable { document, message }| (Some(document), message)).collect();
    }
}

/// All objects of a directory.
#[derive(Debug, Default)]
struct Contents {
    objects: BTreeMap<Key, (Origin, Result<Object, Rejected>)>,
    unattributed: Vec<(Origin, Rejected)>,
}

impl Contents {
    fn add(&mut self, origin: Origin, decoded: Result<Object, Rejected>) {
        let key = match &decoded {
            Ok(object) => Some((object.kind(), object.name())),
            Err(rejected) => {
                let kind = Kind::ALL.into_iter().find(|kind| kind.name() == rejected.kind);
                kind.zip(rejected.name.clone())
            }
        };
        match (key, decoded) {
            (Some(key), decoded) => {
                let (kind, name) = key.clone();
                if let Some((before, _)) = self.objects.insert(key, (origin.clone(), decoded)) {
                    // As with `kubectl apply`, the last one counts.
                    self.unattributed.push((
                        before,
                        Rejected {
                            kind: kind.name().to_owned(),
                            name: Some(name),
                            field: "metadata.name".to_owned(),
                            message: format!("is written again in {origin}, which counts"),
                            isolate: None,
                        },
                    ));
                }
            }
            (None, Err(rejected)) => self.unattributed.push((origin, rejected)),
            (None, Ok(_)) => unreachable!("a decoded object has a kind and a name"),
        }
    }

    fn imply_namespaces(&mut self) {
        let named: BTreeSet<String> = self
            .objects
            .keys()
            .filter(|(kind, _)| kind.is_namespaced())
            .map(|(_, name)| name.namespace.clone())
            .collect();
        for namespace in named {
            let key = (Kind::Namespace, ObjectName::new("", &namespace));
            if self.objects.contains_key(&key) {
                continue;
            }
            let written = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
            // A name that is no namespace's is the error of the object that bears it.
            if let Ok(object) = decode::object(&written) {
                let origin = Origin::File { file: "(implied)".to_owned(), document: None, item: None };
                self.objects.insert(key, (origin, Ok(object)));
            }
        }
    }
}

/// The kind of what has none.
const FILE_KIND: &str = "file";

fn unreadable(message: String) -> Rejected {
    Rejected { kind: FILE_KIND.to_owned(), name: None, field: "(root)".to_owned(), message, isolate: None }
}

#[cfg(test)]
mod tests;
