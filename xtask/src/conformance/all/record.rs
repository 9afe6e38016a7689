//! The record of finished jobs: lines of JSON in a file of the cache, each with the commit it is of. Uncommitted changes
//! count: they are part of what a row is of, as a hash. A job of an earlier commit still counts if nothing that it runs has
//! changed since: a sentence in a document, or another suite's test, voids no row.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use netpol_testbed::control_plane::installation::cache_directory;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Row;
use super::jobs::SUITES;
use crate::{process, vm};

/// A job that has run to its end, whatever it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) commit: String,
    pub(super) job: String,
    pub(super) rows: Vec<Row>,
    pub(super) seconds: u64,
}

/// What the checkout holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    commit: String,
    /// A hash of what is not committed; none if everything is.
    changes: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    /// As in [`Source`].
    changes: Option<String>,
    #[serde(flatten)]
    finished: Finished,
}

/// What is asked of Git.
#[derive(Clone, Copy)]
struct Checkout {
    look: fn() -> Result<Source>,
    /// Whether there is a difference between two commits in what pathspecs name.
    differ: fn(&str, &str, &[String]) -> Result<bool>,
}

/// The rows of this checkout's content.
pub(super) struct Record {
    path: PathBuf,
    source: Source,
    finished: Vec<Finished>,
    /// Asked again before a row is added: what is being edited is no commit's.
    checkout: Checkout,
}

impl Record {
    /// Reads it.
    ///
    /// # Errors
    /// This is no Git checkout, or the file cannot be read.
    pub(super) fn open() -> Result<Self> {
        let checkout = Checkout { look: Source::look, differ };
        Self::read(cache_directory()?.join("conformance-record.jsonl"), checkout)
    }

    fn read(path: PathBuf, checkout: Checkout) -> Result<Self> {
        let source = (checkout.look)()?;
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let mut finished = Vec::new();
        for (number, line) in text.lines().enumerate() {
            match serde_json::from_str::<Line>(line) {
                Ok(Line { changes, finished: of }) => {
                    let same = of.commit == source.commit && changes == source.changes;
                    let clean = changes.is_none() && source.changes.is_none();
                    if same || (clean && !(checkout.differ)(&of.commit, &source.commit, &concern(&of.job))?) {
                        finished.push(of);
                    }
                }
                // A write that was cut off, or another version's: its job runs again.
                Err(error) => eprintln!("conformance: {}:{}: not a row: {error}", path.display(), number + 1),
            }
        }
        Ok(Self { path, source, finished, checkout })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The commit that is checked out.
    pub(super) fn commit(&self) -> &str {
        &self.source.commit
    }

    /// Whether there is something in the checkout that is not committed.
    pub(super) fn is_changed(&self) -> bool {
        self.source.changes.is_some()
    }

    /// What the last finished run of a job has found, whatever that is.
    pub(super) fn last(&self, job: &str) -> Option<&Finished> {
        self.finished.iter().rev().find(|finished| finished.job == job)
    }

    /// The same of a job that need not be run again: one that found something wrong is not done with.
    pub(super) fn find(&self, job: &str) -> Option<&Finished> {
        self.last(job).filter(|finished| finished.rows.iter().all(|row| row.wrong == 0))
    }

    /// Adds what a job has found, unless the checkout is not what it was when the record was opened.
    pub(super) fn add(&mut self, job: &str, rows: Vec<Row>, seconds: u64) -> Result<Finished> {
        let Source { commit, changes } = &self.source;
        let finished = Finished { commit: commit.clone(), job: job.to_owned(), rows, seconds };
        if (self.checkout.look)()? != self.source {
            eprintln!("conformance: the checkout has changed meanwhile: {job} is not recorded");
            return Ok(finished);
        }
        let line = Line { changes: changes.clone(), finished: finished.clone() };
        let mut line = serde_json::to_string(&line).context("a row")?;
        line.push('\n');
        let file = File::options().create(true).append(true).open(&self.path);
        let mut file = file.with_context(|| format!("cannot open {}", self.path.display()))?;
        file.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))?;
        self.finished.push(finished.clone());
        Ok(finished)
    }
}

/// What starts other kernels.
const NOT_IN_GUESTS: &str = ":!xtask/src/vm";

/// What a job depends on, as pathspecs: all but documents, what other tests replay, and other suites.
fn concern(job: &str) -> Vec<String> {
    // This file measures nothing.
    let mut specs: Vec<String> =
        [".", ":!docs", ":!*.md", ":!fuzz", ":!netpol-policy/tests", ":!xtask/src/conformance/all/record.rs"]
            .map(str::to_owned)
            .into();
    match job.split_once(' ') {
        Some(("suite", name)) => {
            // A suite is a file or a folder. Git has no pathspec for "none but this one", so the others are named.
            let others = SUITES.iter().filter(|other| **other != name);
            specs.extend(others.map(|other| format!(":!tests/suites/tests/{other}*")));
            specs.push(NOT_IN_GUESTS.to_owned());
        }
        Some(("upstream", _)) => specs.extend([":!tests/suites".to_owned(), NOT_IN_GUESTS.to_owned()]),
        // Other kernels run several suites.
        _ => {
            let others = SUITES.iter().filter(|name| !vm::SUITES.contains(name));
            specs.extend(others.map(|other| format!(":!tests/suites/tests/{other}*")));
        }
    }
    specs
}

fn differ(one: &str, other: &str, specs: &[String]) -> Result<bool> {
    differ_in(process::workspace(), one, other, specs)
}

fn differ_in(checkout: &Path, one: &str, other: &str, specs: &[String]) -> Result<bool> {
    let mut command = process::command("git");
    command.args(["diff", "--quiet", one, other, "--"]).args(specs);
    // 1: they differ. A commit that is not there any more, 128 and a message, is as good as another one.
    command.current_dir(checkout).stderr(Stdio::null());
    Ok(!command.status().context("cannot start git")?.success())
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

    fn checkout(look: fn() -> Result<Source>) -> Checkout {
        Checkout { look, differ: |_, _, _| Ok(true) }
    }

    #[test]
    fn a_finished_job_is_found_by_the_same_commit_with_the_same_changes_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let mut record = Record::read(path.clone(), checkout(|| Ok(at("a", None)))).unwrap();
        let _finished = record.add("upstream ipv4", Vec::new(), 1).unwrap();
        let found = |look| Record::read(path.clone(), checkout(look)).unwrap().find("upstream ipv4").is_some();
        assert!(found(|| Ok(at("a", None))));
        assert!(!found(|| Ok(at("b", None))));
        assert!(!found(|| Ok(at("a", Some("1")))));
    }

    fn row(wrong: u64) -> Row {
        Row {
            suite: "packets".to_owned(),
            family: "dual".to_owned(),
            proxy: "-".to_owned(),
            kernel: "6.18".to_owned(),
            cells: 7,
            wrong,
            skipped: 0,
            reasons: Vec::new(),
            unit: "cells".to_owned(),
        }
    }

    #[test]
    fn a_job_that_found_something_wrong_is_run_again_until_it_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let read = || Record::read(path.clone(), checkout(|| Ok(at("a", None)))).unwrap();
        let _finished = read().add("suite packets", vec![row(0), row(1)], 1).unwrap();
        assert_eq!(read().find("suite packets"), None);
        assert!(read().last("suite packets").is_some(), "what it found is still told");
        let _finished = read().add("suite packets", vec![row(0), row(0)], 1).unwrap();
        assert!(read().find("suite packets").is_some());
        let _finished = read().add("suite packets", vec![row(2)], 1).unwrap();
        assert_eq!(read().find("suite packets"), None, "the last run counts");
    }

    #[test]
    fn a_record_from_before_skips_were_counted_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let read = || Record::read(path.clone(), checkout(|| Ok(at("a", None)))).unwrap();
        let _finished = read().add("suite packets", vec![row(0)], 1).unwrap();
        assert!(read().find("suite packets").is_some());
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(r#""skipped":0,"reasons":[],"#, "")).unwrap();
        assert_eq!(read().last("suite packets"), None);
    }

    #[test]
    fn a_job_of_another_commit_counts_if_what_it_runs_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let mut record = Record::read(path.clone(), checkout(|| Ok(at("a", None)))).unwrap();
        for job in ["upstream ipv4", "suite packets"] {
            let _finished = record.add(job, Vec::new(), 1).unwrap();
        }
        // A suite's test was changed.
        let differ = |_: &str, _: &str, specs: &[String]| Ok(!specs.iter().any(|spec| spec == ":!tests/suites"));
        let later = Checkout { look: || Ok(at("b", None)), differ };
        let record = Record::read(path.clone(), later).unwrap();
        assert_eq!(record.find("upstream ipv4").map(|finished| finished.commit.as_str()), Some("a"));
        assert_eq!(record.find("suite packets"), None);
        let edited = Checkout { look: || Ok(at("b", Some("1"))), differ };
        assert_eq!(Record::read(path, edited).unwrap().find("upstream ipv4"), None, "who knows what was edited");
    }

    #[test]
    fn a_job_depends_on_the_code_and_on_its_own_tests_and_not_on_documents_or_other_suites() {
        let folder = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| {
            let mut command = process::command("git");
            command.args(["-c", "user.name=test", "-c", "user.email=test@localhost"]).args(arguments);
            process::output(command.current_dir(folder.path())).unwrap().trim().to_owned()
        };
        let commit = |path: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
            let _output = git(&["add", "--all"]);
            let _output = git(&["commit", "--quiet", "--message", "one more"]);
            git(&["rev-parse", "HEAD"])
        };
        let _output = git(&["init", "--quiet"]);
        let mut before = commit("a");
        let jobs = ["suite packets", "suite sandbox", "upstream dual nftables", "kernel 5.10"];
        for (path, concerned) in [
            ("docs/semantics.md", [false, false, false, false]),
            ("README.md", [false, false, false, false]),
            ("tests/suites/tests/packets/main.rs", [true, false, false, true]),
            ("tests/suites/tests/sandbox.rs", [false, true, false, true]),
            ("tests/suites/tests/services/cases.rs", [false, false, false, false]),
            ("tests/suites/src/frames.rs", [true, true, false, true]),
            ("netpol-common/src/decide/mod.rs", [true, true, true, true]),
            ("xtask/src/vm/guest.rs", [false, false, false, true]),
            ("deploy/base/daemonset.yaml", [true, true, true, true]),
        ] {
            let after = commit(path);
            let found = jobs.map(|job| differ_in(folder.path(), &before, &after, &concern(job)).unwrap());
            assert_eq!(found, concerned, "{path}");
            before = after;
        }
        assert!(differ_in(folder.path(), "0123456789", &before, &concern("kernel 6.1")).unwrap(), "no such commit");
    }

    #[test]
    fn a_line_that_was_cut_off_costs_its_job_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let checkout = checkout(|| Ok(at("a", None)));
        let mut record = Record::read(path.clone(), checkout).unwrap();
        for job in ["one", "two"] {
            let _finished = record.add(job, Vec::new(), 1).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 10]).unwrap();
        let record = Record::read(path, checkout).unwrap();
        assert!(record.find("one").is_some() && record.find("two").is_none());
    }

    #[test]
    fn what_ran_while_the_checkout_changed_is_not_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let mut record = Record::read(path.clone(), checkout(|| Ok(at("a", None)))).unwrap();
        record.checkout.look = || Ok(at("a", Some("1")));
        let _finished = record.add("one", Vec::new(), 1).unwrap();
        assert!(!path.exists());
    }
}
