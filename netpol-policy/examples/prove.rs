//! Proves the clusters of consecutive seeds on several threads: the part of `cargo xtask prove` that is worth optimising.
//!
//! `prove FIRST CLUSTERS SHARE JOBS` prints a JSON object a line: the tally of each finished chunk of seeds, and each
//! disagreement. It goes on after a disagreement, and ends with status 0 whatever it found: who reads the lines decides.

use std::io::Write as _;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use netpol_policy::testing::{Disagreement, Tally, prove};
use serde_json::{Map, Value, json};

/// Seeds a line.
const CHUNK: u64 = 500;

struct Run {
    seeds: Range<u64>,
    share: usize,
    jobs: u64,
}

fn run_of(arguments: impl Iterator<Item = String>) -> Option<Run> {
    let numbers: Vec<u64> = arguments.map(|argument| argument.parse().ok()).collect::<Option<_>>()?;
    let [first, clusters, share, jobs] = numbers[..] else { return None };
    let share = usize::try_from(share).ok().filter(|share| *share > 0)?;
    Some(Run { seeds: first..first.checked_add(clusters)?, share, jobs: jobs.max(1) })
}

fn main() -> ExitCode {
    let Some(Run { seeds, share, jobs }) = run_of(std::env::args().skip(1)) else {
        eprintln!("usage: prove FIRST CLUSTERS SHARE JOBS");
        return ExitCode::from(2);
    };
    // Every disagreement is printed, panics among them.
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(seeds.start);
    let written = std::thread::scope(|scope| {
        let worker = || -> std::io::Result<()> {
            loop {
                let first = next.fetch_add(CHUNK, Ordering::Relaxed);
                if first >= seeds.end {
                    return Ok(());
                }
                chunk(first..seeds.end.min(first + CHUNK), share)?;
            }
        };
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().all(|worker| matches!(worker.join(), Ok(Ok(()))))
    });
    // Whoever reads has gone away, or a thread has died outside of what is proved.
    if written { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

fn chunk(seeds: Range<u64>, share: usize) -> std::io::Result<()> {
    let mut tally = Tally::default();
    let first = seeds.start;
    for seed in seeds {
        match prove(seed, share) {
            Ok(of_seed) => tally += of_seed,
            Err(Disagreement { seed, comparison, what }) => {
                print(&json!({ "seed": seed, "comparison": comparison, "what": what }))?;
                // It was looked at all the same.
                tally.clusters += 1;
            }
        }
    }
    let numbers = tally.numbers().map(|(name, number)| (name.to_owned(), Value::from(number)));
    print(&json!({ "first": first, "tally": numbers.into_iter().collect::<Map<_, _>>() }))
}

fn print(line: &Value) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{line}")
}
