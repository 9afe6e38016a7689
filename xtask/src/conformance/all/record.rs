//! The record of finished jobs: lines of JSON in a file of the cache, each with the commit it is of. Uncommitted changes
//! count: they are part of what a row is of, as a hash.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use netpol_testbed::control_plane::installation::cache_directory;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Row;
use crate::process;

/// A job that has run to its end, whatever it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) job: String,
    pub(super) rows: Vec<Row>,
    pub(super) seconds: u64,
}

/// What the checkout holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Source {
    commit: String,
    /// A hash of what is not committed; none if everything is.
    changes: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    source: Source,
    #[serde(flatten)]
    finished: Finished,
}

/// The rows of this checkout's content.
pub(super) struct Record {
    path: PathBuf,
    source: Source,
    finished: Vec<Finished>,
    /// Asked again before a row is added: what is being edited is no commit's.
    look: fn() -> Result<Source>,
}

impl Record {
    /// Reads it.
    ///
    /// # Errors
    /// This is no Git checkout, or the file cannot be read.
    pub(super) fn open() -> Result<Self> {
        Self::read(cache_directory()?.join("conformance-record.jsonl"), Source::look)
    }

    fn read(path: PathBuf, look: fn() -> Result<Source>) -> Result<Self> {
        let source = look()?;
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let mut finished = Vec::new();
        for (number, line) in text.lines().enumerate() {
            match serde_json::from_str::<Line>(line) {
                Ok(line) if line.source == source => finished.push(line.finished),
                Ok(_of_another_commit) => {}
                // A write that was cut off, or another version's: its job runs again.
                Err(error) => eprintln!("conformance: {}:{}: not a row: {error}", path.display(), number + 1),
            }
        }
        Ok(Self { path, source, finished, look })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The commit that rows are of.
    pub(super) fn commit(&self) -> &str {
        &self.source.commit
    }

    /// Whether there is something in the checkout that is not committed.
    pub(super) fn is_changed(&self) -> bool {
        self.source.changes.is_some()
    }

    /// What the last finished run of a job has found.
    pub(super) fn find(&self, job: &str) -> Option<&Finished> {
        self.finished.iter().rev().find(|finished| finished.job == job)
    }

    /// Adds a job, unless the checkout is not what it was when the record was opened.
    pub(super) fn add(&mut self, finished: &Finished) -> Result<()> {
        if (self.look)()? != self.source {
            eprintln!("conformance: the checkout has changed meanwhile: {} is not recorded", finished.job);
            return Ok(());
        }
        let line = Line { source: self.source.clone(), finished: finished.clone() };
        let mut line = serde_json::to_string(&line).context("a row")?;
        line.push('\n');
        let file = File::options().create(true).append(true).open(&self.path);
        let mut file = file.with_context(|| format!("cannot open {}", self.path.display()))?;
        file.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))?;
        self.finished.push(finished.clone());
        Ok(())
    }
}

impl Source {
    fn look() -> Result<Self> {
        let git = |arguments: &[&str]| process::output(process::command("git").args(arguments));
        let commit = git(&["rev-parse", "HEAD"]).context("rows are recorded by commit")?.trim().to_owned();
        if commit.is_empty() {
            bail!("git rev-parse HEAD printed nothing");
        }
        let mut hash = Sha256::new();
        let difference = git(&["diff", "--binary", "HEAD"])?;
        hash.update(&difference);
        let others = git(&["ls-files", "-z", "--others", "--exclude-standard"])?;
        for path in others.split_terminator('\0') {
            hash.update(path.len().to_be_bytes());
            hash.update(path);
            let content =
                std::fs::read(process::workspace().join(path)).with_context(|| format!("cannot read {path}"))?;
            hash.update(content.len().to_be_bytes());
            hash.update(content);
        }
        let is_clean = difference.is_empty() && others.is_empty();
        let digest = || hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { commit, changes: (!is_clean).then(digest) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(commit: &str, changes: Option<&str>) -> Source {
        Source { commit: commit.to_owned(), changes: changes.map(str::to_owned) }
    }

    fn done(job: &str) -> Finished {
        Finished { job: job.to_owned(), rows: Vec::new(), seconds: 1 }
    }

    #[test]
    fn a_finished_job_is_found_by_the_same_commit_with_the_same_changes_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        Record::read(path.clone(), || Ok(at("a", None))).unwrap().add(&done("upstream ipv4")).unwrap();
        let found = |look| Record::read(path.clone(), look).unwrap().find("upstream ipv4").is_some();
        assert!(found(|| Ok(at("a", None))));
        assert!(!found(|| Ok(at("b", None))));
        assert!(!found(|| Ok(at("a", Some("1")))));
    }

    #[test]
    fn a_line_that_was_cut_off_costs_its_job_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let look = || Ok(at("a", None));
        let mut record = Record::read(path.clone(), look).unwrap();
        record.add(&done("one")).unwrap();
        record.add(&done("two")).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 10]).unwrap();
        let record = Record::read(path, look).unwrap();
        assert!(record.find("one").is_some() && record.find("two").is_none());
    }

    #[test]
    fn what_ran_while_the_checkout_changed_is_not_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let mut record = Record::read(path.clone(), || Ok(at("a", None))).unwrap();
        record.look = || Ok(at("a", Some("1")));
        record.add(&done("one")).unwrap();
        assert!(!path.exists());
    }
}
