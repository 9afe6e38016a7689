//! What `cargo xtask prove` does for as long as one likes, for some clusters, and for each that ever was a disagreement.

mod support;

use netpol_policy::testing::{Tally, prove};
use support::{cases, first_seed};

/// Seeds are kept in here, one a line, with what they were about.
const KEPT: &str = include_str!("seeds/clusters.txt");

fn kept() -> Vec<u64> {
    let lines = KEPT.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_whitespace().next().and_then(|seed| seed.parse().ok()).expect(line)).collect()
}

#[test]
fn oracle_tables_packets_and_incremental_work_agree_on_generated_clusters() {
    let mut tally = Tally::default();
    let (first, cases) = (first_seed(), cases(200));
    for seed in first..first + cases {
        tally += prove(seed, 4).unwrap_or_else(|disagreement| panic!("{disagreement}"));
    }
    println!("{tally:?}");
    for (name, number) in tally.numbers() {
        assert!(number > 0, "no {name}");
    }
    assert!(tally.allowed < tally.cells);
}

#[test]
fn clusters_that_were_disagreed_about_are_agreed_about() {
    for seed in kept() {
        let tally = prove(seed, 1).unwrap_or_else(|disagreement| panic!("{disagreement}"));
        assert!(tally.cells > 0, "seed {seed} asks nothing");
    }
}
