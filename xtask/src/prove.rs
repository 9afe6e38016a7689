//! `cargo xtask prove`: as many generated clusters as there is time for, each compared in every way in which two parts of
//! this project must agree.
//!
//! The comparisons are `netpol_policy::testing::prove`, which the normal tests call for some hundred clusters. Here its
//! example `prove` does the work, compiled with optimisation and on several threads; this module counts what it prints and
//! keeps the seed of each disagreement in [`KEPT`], from where the normal tests replay it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use netpol_testbed::interrupt;
use serde::{Deserialize, Serialize};

use crate::process;

/// Seeds that ever failed, in the workspace.
const KEPT: &str = "netpol-policy/tests/seeds/clusters.txt";

/// How often standard error says how far it is.
const PROGRESS: Duration = Duration::from_secs(30);

/// Options of `cargo xtask prove`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many clusters
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    clusters: u64,
    /// The first cluster's seed; the others follow it
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,
    /// Of all questions about a cluster, ask one in so many; which, differs from cluster to cluster
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    share: u16,
    /// What is printed on standard output
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON document, and nothing else
    Json,
}

/// A line of the example.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Chunk { first: u64, tally: BTreeMap<String, u64> },
    Disagreement(Disagreement),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Disagreement {
    seed: u64,
    comparison: String,
    what: String,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    first: u64,
    /// The first seed that has not been looked at, and none after it may have been.
    next: u64,
    share: u16,
    seconds: u64,
    /// What was compared, by name.
    compared: BTreeMap<String, u64>,
    disagreements: Vec<Disagreement>,
    /// First seeds of the chunks that are finished out of turn, with their clusters.
    #[serde(skip)]
    ahead: BTreeSet<(u64, u64)>,
}

impl Outcome {
    fn take(&mut self, line: &str) -> Result<()> {
        match serde_json::from_str(line).with_context(|| format!("the example printed {line}"))? {
            Line::Disagreement(disagreement) => self.disagreements.push(disagreement),
            Line::Chunk { first, tally } => {
                let clusters = tally.get("clusters").copied().context("a chunk without clusters")?;
                let _new = self.ahead.insert((first, clusters));
                while let Some((first, clusters)) = self.ahead.first().copied().filter(|(first, _)| *first == self.next)
                {
                    self.next = first + clusters;
                    let _chunk = self.ahead.pop_first();
                }
                for (name, number) in tally {
                    *self.compared.entry(name).or_default() += number;
                }
            }
        }
        Ok(())
    }

    fn clusters(&self) -> u64 {
        self.compared.get("clusters").copied().unwrap_or_default()
    }

    fn text(&self) -> String {
        let Self { first, next, share, seconds, compared, disagreements, ahead: _ } = self;
        let mut text = format!("seeds {first} to {}, one question in {share}, {seconds} s\n", next.saturating_sub(1));
        for (name, number) in compared {
            text.push_str(&format!("{number:>16}  {}\n", name.replace('_', " ")));
        }
        text.push_str(&format!("{:>16}  disagreements\n", disagreements.len()));
        for Disagreement { seed, comparison, what } in disagreements {
            text.push_str(&format!("seed {seed}: {comparison}: {what}\n"));
        }
        text
    }
}

/// Runs it: the status is 0 if there was no disagreement, and 1 if there was one.
///
/// # Errors
/// The example cannot be built or run, ends too early, or a seed cannot be kept.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let Args { clusters, seed, jobs, share, output } = *args;
    interrupt::listen()?;
    let numbers = [seed, clusters, u64::from(share), u64::from(jobs)].map(|number| number.to_string());
    let mut command = process::cargo();
    command.args(["run", "--release", "--package", "netpol-policy", "--example", "prove", "--"]).args(numbers);
    let line = process::line(&command);
    let begin = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{line}`"))?;
    let printed = child.stdout.take().context("a child has no standard output")?;
    let mut outcome = Outcome { first: seed, next: seed, share, ..Outcome::default() };
    let mut told = begin;
    for printed in BufReader::new(printed).lines() {
        let known = outcome.disagreements.len();
        outcome.take(&printed.with_context(|| format!("cannot read what `{line}` prints"))?)?;
        for disagreement in &outcome.disagreements[known..] {
            eprintln!("prove: seed {}: {}: {}", disagreement.seed, disagreement.comparison, disagreement.what);
            keep(&process::workspace().join(KEPT), disagreement)?;
        }
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            eprintln!("prove: {} of {clusters} clusters after {} s", outcome.clusters(), begin.elapsed().as_secs());
        }
    }
    let status = child.wait().context("waitpid")?;
    outcome.seconds = begin.elapsed().as_secs();
    match output {
        Output::Text => print!("{}", outcome.text()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&outcome)?),
    }
    let left = clusters.saturating_sub(outcome.next - seed);
    if left > 0 {
        eprintln!("prove: to go on: cargo xtask prove --seed {} --clusters {left} --share {share}", outcome.next);
        if interrupt::requested() {
            return Ok(ExitCode::from(130));
        }
        bail!("`{line}` ended before its last cluster: {status}");
    }
    Ok(if outcome.disagreements.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Writes a seed to the others, if it is not among them.
fn keep(file: &Path, disagreement: &Disagreement) -> Result<()> {
    let Disagreement { seed, comparison, what } = disagreement;
    let kept = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let number = seed.to_string();
    if kept.lines().any(|line| line.split_whitespace().next() == Some(number.as_str())) {
        return Ok(());
    }
    let what = what.lines().next().unwrap_or_default();
    let mut to =
        OpenOptions::new().append(true).open(file).with_context(|| format!("cannot open {}", file.display()))?;
    writeln!(to, "{seed} {comparison}: {what}").with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(first: u64, cells: u64) -> String {
        format!(r#"{{"first":{first},"tally":{{"clusters":500,"cells":{cells}}}}}"#)
    }

    #[test]
    fn chunks_are_added_up_and_a_run_goes_on_where_none_is_missing() {
        let mut outcome = Outcome { first: 1000, next: 1000, ..Outcome::default() };
        for (first, next) in [(1500, 1000), (2500, 1000), (1000, 2000), (2000, 3000)] {
            outcome.take(&chunk(first, 7)).unwrap();
            assert_eq!(outcome.next, next);
        }
        assert_eq!((outcome.clusters(), outcome.compared["cells"]), (2000, 28));
        assert!(outcome.text().contains("28  cells"), "{}", outcome.text());
        assert!(outcome.take("not ours").is_err());
    }

    #[test]
    fn a_disagreement_is_told_and_its_seed_kept_once() {
        let mut outcome = Outcome::default();
        outcome.take(r#"{"seed":77,"comparison":"cells","what":"one\nand two"}"#).unwrap();
        assert!(outcome.text().contains("seed 77: cells: one"), "{}", outcome.text());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("seeds.txt");
        std::fs::write(&file, "# Kept\n5 panic: old\n").unwrap();
        for _ in 0..2 {
            keep(&file, &outcome.disagreements[0]).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "# Kept\n5 panic: old\n77 cells: one\n");
    }

    #[test]
    fn the_file_of_seeds_is_where_the_tests_read_it() {
        let test = std::fs::read_to_string(process::workspace().join("netpol-policy/tests/prove.rs")).unwrap();
        assert!(process::workspace().join(KEPT).is_file() && test.contains("seeds/clusters.txt"));
    }
}
