//! `cargo xtask conformance --all`: everything that holds the agent against the words of the API, on every combination
//! of address family, proxy mode and kernel that it fits.
//!
//! A [`jobs::Job`] is what one command runs; it gives one or more [`Row`]s of the table. [`record`] keeps the rows of
//! finished jobs with the commit they are of, so that a run that was interrupted goes on where it stopped, and a change
//! that concerns some of the jobs runs only those again.

mod jobs;
mod record;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use netpol_testbed::interrupt::{self, Interrupted};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Output;
pub(super) use jobs::Context;
use record::{Finished, Record};

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) suite: String,
    /// Of addresses: `ipv4`, `ipv6`, or `dual`.
    pub(super) family: String,
    /// kube-proxy's mode, or `-` where there is no proxy.
    pub(super) proxy: String,
    /// Its release.
    pub(super) kernel: String,
    /// How many were tried.
    pub(super) cells: u64,
    /// How many of them are not as they should be.
    pub(super) wrong: u64,
    /// How many were not tried, since the kernel lacks something. Not optional: a record from before it was counted is
    /// none, rather than one with no skips.
    pub(super) skipped: u64,
    /// What it lacks, once for each reason.
    pub(super) reasons: Vec<String>,
    /// What is counted: cells (connections that were tried), specs (of upstream's suite), tests.
    pub(super) unit: String,
}

/// A row as JSON shows it.
#[derive(Serialize)]
struct OfCommit<'a> {
    commit: &'a str,
    #[serde(flatten)]
    row: &'a Row,
}

/// Which jobs, and how.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Choice {
    /// Every suite on every combination of family, proxy mode and kernel, row by row; what is finished, and has not
    /// changed since, is not run again
    #[arg(long, conflicts_with_all = ["keep", "nodes", "proxy", "families"])]
    pub(super) all: bool,
    /// With --all: only jobs with this text in their names, such as "upstream ipv6"
    #[arg(long, value_name = "TEXT", requires = "all")]
    rows: Option<String>,
    /// With --all: run again what is finished
    #[arg(long, requires = "all", conflicts_with = "list")]
    again: bool,
    /// With --all: only say which jobs there are, and which of them are finished
    #[arg(long, requires = "all")]
    list: bool,
}

/// Runs what is not finished, and prints the table: 0 if nothing is wrong, 1 if something is, 2 if a job could not run.
///
/// # Errors
/// There is no job, the record cannot be read or written, or the user interrupts.
pub(super) fn main(choice: &Choice, context: &Context<'_>, output: Output) -> Result<ExitCode> {
    let Choice { all: _, rows, again, list } = choice;
    let wanted = |name: &String| rows.as_ref().is_none_or(|text| name.contains(text.as_str()));
    let jobs: Vec<_> = jobs::all().into_iter().map(|job| (context.name(&job), job)).collect();
    let jobs: Vec<_> = jobs.into_iter().filter(|(name, _)| wanted(name)).collect();
    if jobs.is_empty() {
        bail!("no job has this in its name");
    }
    let mut record = Record::open()?;
    if *list {
        print!("{}", listing(jobs.iter().map(|(name, _)| (name.as_str(), record.last(name)))));
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("conformance: {} jobs; the record is {}", jobs.len(), record.path().display());
    let mut finished: Vec<Finished> = Vec::new();
    let mut could_not = Vec::new();
    for (number, (name, job)) in jobs.iter().enumerate() {
        if !again && let Some(earlier) = record.find(name) {
            eprintln!("conformance: {}/{} {name}: finished earlier", number + 1, jobs.len());
            finished.push(earlier.clone());
            continue;
        }
        if interrupt::requested() {
            bail!(Interrupted);
        }
        eprintln!("conformance: {}/{} {name}", number + 1, jobs.len());
        let begin = Instant::now();
        match context.run(job) {
            Ok(rows) => {
                finished.push(record.add(name, rows, begin.elapsed().as_secs())?);
            }
            Err(_) if interrupt::requested() => bail!(Interrupted),
            Err(error) => {
                eprintln!("conformance: {name} could not run: {error:#}");
                could_not.push(name.clone());
            }
        }
    }
    let seconds: u64 = finished.iter().map(|finished| finished.seconds).sum();
    let of =
        |Finished { commit, job: _, rows, seconds: _ }| rows.into_iter().map(move |row| (String::clone(&commit), row));
    let rows: Vec<(String, Row)> = finished.into_iter().flat_map(of).collect();
    match output {
        Output::Text => print!("{}", table(&rows, &could_not)),
        Output::Json => {
            let rows: Vec<OfCommit<'_>> = rows.iter().map(|(commit, row)| OfCommit { commit, row }).collect();
            let document = json!({
                "commit": record.commit(), "changed": record.is_changed(), "seconds": seconds,
                "rows": rows, "not_run": could_not,
            });
            println!("{document}");
        }
    }
    Ok(match (could_not.is_empty(), rows.iter().all(|(_, row)| row.wrong == 0)) {
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::from(1),
        (false, _) => ExitCode::from(2),
    })
}

/// The jobs by name, with what is known of each.
fn listing<'a>(jobs: impl Iterator<Item = (&'a str, Option<&'a Finished>)>) -> String {
    let line = |(name, finished): (&str, Option<&Finished>)| match finished {
        Some(Finished { commit, job: _, rows, seconds }) => {
            let commit = short(commit);
            let wrong = rows.iter().filter(|row| row.wrong > 0).count();
            let rows = rows.len();
            let again = if wrong > 0 { ": to be run again" } else { "" };
            format!("{name:<28}  {commit}, in {seconds} s: {rows} rows, {wrong} of them with something wrong{again}\n")
        }
        None => format!("{name:<28}  not run\n"),
    };
    jobs.map(line).collect()
}

/// A commit as people write it.
fn short(commit: &str) -> &str {
    commit.get(..8).unwrap_or(commit)
}

/// The rows for people, each with its commit, and what was left out and what is missing.
fn table(rows: &[(String, Row)], could_not: &[String]) -> String {
    /// Columns of numbers, which stand to the right.
    const NUMBERS: [usize; 3] = [4, 6, 7];
    let mut text = String::new();
    let header = ["suite", "family", "proxy", "kernel", "probed", "", "wrong", "skipped", "commit"].map(str::to_owned);
    let mut lines = vec![header];
    for (commit, Row { suite, family, proxy, kernel, cells, wrong, skipped, reasons: _, unit }) in rows {
        let [cells, wrong, skipped] = [cells, wrong, skipped].map(u64::to_string);
        lines.push([suite, family, proxy, kernel, &cells, unit, &wrong, &skipped, short(commit)].map(str::to_owned));
    }
    let mut widths = [0; 9];
    for line in &lines {
        for (width, word) in widths.iter_mut().zip(line) {
            *width = word.len().max(*width);
        }
    }
    for line in &lines {
        let aligned = |(at, (word, width)): (usize, (&String, usize))| {
            if NUMBERS.contains(&at) { format!("{word:>width$}") } else { format!("{word:width$}") }
        };
        let cells: Vec<String> = line.iter().zip(widths).enumerate().map(aligned).collect();
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    let wrong = rows.iter().filter(|(_, row)| row.wrong > 0).count();
    let skipped: u64 = rows.iter().map(|(_, row)| row.skipped).sum();
    let _ = writeln!(text, "{} rows, {wrong} of them with something wrong, {skipped} skipped", rows.len());
    for (_, Row { suite, family, proxy, kernel, skipped, reasons, .. }) in rows {
        for reason in reasons {
            let _ = writeln!(text, "skipped: {suite} {family} {proxy} {kernel}: {skipped}: {reason}");
        }
    }
    for name in could_not {
        let _ = writeln!(text, "could not run: {name}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_row_and_says_what_could_not_run() {
        let row = |suite: &str, wrong| {
            let row = Row {
                suite: suite.to_owned(),
                family: "dual".to_owned(),
                proxy: "-".to_owned(),
                kernel: "6.18".to_owned(),
                cells: 1945,
                wrong,
                skipped: if suite == "upstream" { 3 } else { 0 },
                reasons: if suite == "upstream" { vec!["no SCTP".to_owned()] } else { Vec::new() },
                unit: "cells".to_owned(),
            };
            ("0123456789abcdef".to_owned(), row)
        };
        let text = table(&[row("sandbox", 0), row("upstream", 3)], &["kernel 5.10".to_owned()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "suite     family  proxy  kernel  probed         wrong  skipped  commit");
        assert_eq!(lines[1], "sandbox   dual    -      6.18      1945  cells      0        0  01234567");
        assert_eq!(lines[2], "upstream  dual    -      6.18      1945  cells      3        3  01234567");
        let rest = [
            "2 rows, 1 of them with something wrong, 3 skipped",
            "skipped: upstream dual - 6.18: 3: no SCTP",
            "could not run: kernel 5.10",
        ];
        assert_eq!(lines[3..], rest);
    }

    #[test]
    fn the_list_says_of_each_job_whether_it_is_finished() {
        let finished = Finished {
            commit: "0123456789abcdef".to_owned(),
            job: "suite packets".to_owned(),
            rows: Vec::new(),
            seconds: 12,
        };
        let text = listing([("suite packets", Some(&finished)), ("kernel 5.10", None)].into_iter());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("suite packets ") && lines[0].contains("01234567, in 12 s"), "{text}");
        assert!(lines[1].starts_with("kernel 5.10 ") && lines[1].ends_with("not run"), "{text}");
    }
}
