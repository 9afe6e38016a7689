//! From what a [`source`](crate::source) says to what the compiler should know.
//!
//! Pure bookkeeping, owned by the reconcile loop. An object that becomes unreadable stays in force in its last good
//! form; a policy that never was readable isolates what it means to select (decision D15); whatever a whole list no
//! longer names is gone.

use std::collections::{BTreeMap, BTreeSet};

use netpol_policy::compile::Change;
use netpol_policy::decode::{Kind, Object, Rejected};
use netpol_policy::model::{ObjectName, Policy};

use crate::metrics::State;
use crate::source::{Event, Origin};

/// What is known of all objects, short of the objects themselves, which the compiler keeps.
#[derive(Debug, Default)]
pub struct Intake {
    objects: BTreeMap<Kind, BTreeMap<ObjectName, Standing>>,
    in_force: BTreeMap<Kind, usize>,
    versions: BTreeMap<Kind, String>,
    unattributed: Vec<(Origin, Rejected)>,
    /// The set of unreadable objects differs from what metrics were told. Counting them takes a walk over everything.
    recount: bool,
}

/// What is in force of an object.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// What was last said of it.
    Good,
    /// What was said of it before it became unreadable.
    LastGood(Rejected),
    /// It never was readable: the isolation that stands in for a policy, for other kinds nothing.
    Never { rejected: Rejected, isolation: Option<Policy> },
}

impl Standing {
    fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Good => None,
            Self::LastGood(rejected) | Self::Never { rejected, .. } => Some(rejected),
        }
    }

    fn is_in_force(&self) -> bool {
        match self {
            Self::Good | Self::LastGood(_) => true,
            Self::Never { isolation, .. } => isolation.is_some(),
        }
    }
}

impl Intake {
    /// Takes an event in. Returns what the compiler must be told, in order; logs and counts what became unreadable.
    #[must_use]
    pub fn take(&mut self, event: Event, state: &State) -> Vec<Change> {
        let changes = match event {
            Event::Upsert { object, progress } => {
                let kind = object.kind();
                self.progress(kind, progress);
                vec![self.upsert(object)]
            }
            Event::Removed { kind, name, progress } => {
                self.progress(kind, progress);
                self.remove(kind, &name).into_iter().collect()
            }
            Event::Rejected { kind, rejected, origin, progress } => {
                self.progress(kind, progress);
                self.reject(kind, rejected, &origin, state).into_iter().collect()
            }
            Event::Listed { kind, names, version } => {
                self.progress(kind, Some(version));
                self.retain(kind, &names)
            }
            Event::Bookmark { kind, version } => {
                self.progress(kind, Some(version));
                Vec::new()
            }
            Event::Unattributed(now) => {
                self.unattributed(now, state);
                Vec::new()
            }
        };
        if std::mem::take(&mut self.recount) {
            state.set_rejected(self.rejected());
        }
        changes
    }

    /// Whether every kind was listed once: before that, what is missing may only be late.
    #[must_use]
    pub fn all_listed(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.versions.contains_key(kind))
    }

    /// The version up to which everything of a kind has been taken in; no entry before its first list is complete.
    #[must_use]
    pub fn versions(&self) -> &BTreeMap<Kind, String> {
        &self.versions
    }

    /// Number of objects of a kind that are in force, last good forms and stand-ins included.
    #[must_use]
    pub fn in_force(&self, kind: Kind) -> usize {
        self.in_force.get(&kind).copied().unwrap_or_default()
    }

    /// How many objects cannot be read now, by the kind they bear.
    pub fn rejected(&self) -> impl Iterator<Item = (&str, usize)> {
        let attributed = self.objects.values().flat_map(BTreeMap::values).filter_map(Standing::rejected);
        attributed
            .chain(self.unattributed.iter().map(|(_, rejected)| rejected))
            .map(|rejected| (rejected.kind.as_str(), 1))
    }

    fn progress(&mut self, kind: Kind, version: Option<String>) {
        if let Some(version) = version {
            self.versions.insert(kind, version);
        }
    }

    /// Puts a standing in place of another, which it returns; the one place where objects come and go.
    fn replace(&mut self, kind: Kind, name: &ObjectName, standing: Option<Standing>) -> Option<Standing> {
        let is_in_force = standing.as_ref().is_some_and(Standing::is_in_force);
        let objects = self.objects.entry(kind).or_default();
        let before = match standing {
            Some(standing) => objects.insert(name.clone(), standing),
            None => objects.remove(name),
        };
        let count = self.in_force.entry(kind).or_default();
        *count += usize::from(is_in_force);
        *count -= usize::from(before.as_ref().is_some_and(Standing::is_in_force));
        before
    }

    fn upsert(&mut self, object: Object) -> Change {
        let (kind, name) = (object.kind(), object.name());
        let before = self.replace(kind, &name, Some(Standing::Good));
        if before.is_some_and(|before| before.rejected().is_some()) {
            tracing::info!(%kind, %name, "readable again");
            self.recount = true;
        }
        Change::Upsert(object)
    }

    fn remove(&mut self, kind: Kind, name: &ObjectName) -> Option<Change> {
        let gone = self.replace(kind, name, None)?;
        self.recount |= gone.rejected().is_some();
        gone.is_in_force().then(|| Change::Remove(kind, name.clone()))
    }

    fn retain(&mut self, kind: Kind, names: &BTreeSet<ObjectName>) -> Vec<Change> {
        let Some(objects) = self.objects.get(&kind) else { return Vec::new() };
        let gone: Vec<ObjectName> = objects.keys().filter(|name| !names.contains(name)).cloned().collect();
        gone.iter().filter_map(|name| self.remove(kind, name)).collect()
    }

    fn reject(&mut self, kind: Kind, rejected: Rejected, origin: &Origin, state: &State) -> Option<Change> {
        let Some(name) = rejected.name.clone() else {
            // Nothing to remember it by. The API server has no object without a name; files have another event.
            report(&rejected, origin, Consequence::NotEnforced, state);
            return None;
        };
        let before = self.replace(kind, &name, None);
        let is_news = before.as_ref().and_then(Standing::rejected) != Some(&rejected);
        let (standing, change, consequence) = match before {
            Some(Standing::Good | Standing::LastGood(_)) => {
                (Standing::LastGood(rejected.clone()), None, Consequence::LastGood)
            }
            Some(Standing::Never { isolation: before, .. }) => {
                let isolation = rejected.isolate.clone().or_else(|| before.clone());
                let change = isolation.clone().filter(|isolation| before.as_ref() != Some(isolation));
                let consequence = Consequence::of(isolation.as_ref());
                (Standing::Never { rejected: rejected.clone(), isolation }, change, consequence)
            }
            None => {
                let isolation = rejected.isolate.clone();
                let consequence = Consequence::of(isolation.as_ref());
                (Standing::Never { rejected: rejected.clone(), isolation: isolation.clone() }, isolation, consequence)
            }
        };
        self.replace(kind, &name, Some(standing));
        self.recount |= is_news;
        if is_news {
            report(&rejected, origin, consequence, state);
        }
        change.map(|policy| Change::Upsert(Object::Policy(policy)))
    }

    fn unattributed(&mut self, now: Vec<(Origin, Rejected)>, state: &State) {
        for (origin, rejected) in &now {
            if !self.unattributed.iter().any(|known| (&known.0, &known.1) == (origin, rejected)) {
                report(rejected, origin, Consequence::NotEnforced, state);
            }
        }
        self.recount |= self.unattributed != now;
        self.unattributed = now;
    }
}

/// What becomes of an object that cannot be read.
#[derive(Clone, Copy, Debug)]
enum Consequence {
    LastGood,
    Isolates,
    NotEnforced,
}

impl Consequence {
    const fn of(isolation: Option<&Policy>) -> Self {
        if isolation.is_some() { Self::Isolates } else { Self::NotEnforced }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::LastGood => "its last good form stays in force",
            Self::Isolates => "what it selects is isolated",
            Self::NotEnforced => "it is left out",
        }
    }
}

fn report(rejected: &Rejected, origin: &Origin, consequence: Consequence, state: &State) {
    state.count_rejected(&rejected.kind);
    tracing::error!(
        %origin,
        kind = rejected.kind,
        name = rejected.name.as_ref().map(tracing::field::display),
        field = rejected.field,
        "cannot read {origin}: {rejected}; {}",
        consequence.text(),
    );
}

#[cfg(test)]
mod tests;
