//! What connections say and what policies say, held against each other; the same for every kind of cluster that can be
//! probed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use netpol_policy::model::Cluster;

use super::cells::{self, Cell};
use crate::probe::Outcome;

/// How often a connection that nothing should hinder is tried again, and how long after.
const BASELINE_ATTEMPTS: usize = 3;
const BASELINE_PAUSE: Duration = Duration::from_millis(500);

/// A cell with its two answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The connection.
    pub cell: Cell,
    /// What the policies say.
    pub expected: bool,
    /// What the packets say.
    pub observed: Outcome,
}

impl Answered {
    /// Whether both say the same.
    #[must_use]
    pub fn agrees(&self) -> bool {
        matches!((self.expected, &self.observed), (true, Outcome::Allow) | (false, Outcome::Deny))
    }
}

/// Connects every cell while no policy is in force; `probe` tries cells and answers in their order. Returns the number of
/// cells.
///
/// # Errors
/// Something does not connect, and the message says what; or probing itself fails.
pub fn baseline(cells: &[Cell], probe: impl Fn(&[&Cell]) -> Result<Vec<Outcome>>) -> Result<usize> {
    let mut left: Vec<&Cell> = cells.iter().collect();
    let mut failed = Vec::new();
    for attempt in 0..BASELINE_ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(BASELINE_PAUSE);
        }
        let outcomes = probe(&left)?;
        failed = left.into_iter().zip(outcomes).filter(|(_, outcome)| *outcome != Outcome::Allow).collect();
        if failed.is_empty() {
            return Ok(cells.len());
        }
        left = failed.iter().map(|(cell, _)| *cell).collect();
    }
    let mut silent = BTreeMap::<String, Vec<String>>::new();
    for (cell, outcome) in &failed {
        let server = format!("{} ({}, {})", cell.to, cell.destination, cell.port);
        silent.entry(server).or_default().push(format!("{} ({outcome:?})", cell.from));
    }
    let lines: Vec<String> = silent
        .into_iter()
        .take(20)
        .map(|(server, clients)| {
            let tried =
                cells.iter().filter(|cell| format!("{} ({}, {})", cell.to, cell.destination, cell.port) == server);
            let what = if tried.count() == clients.len() { "never answered" } else { "did not answer" };
            format!("  {server} {what}: {}", clients.iter().take(5).cloned().collect::<Vec<_>>().join(", "))
        })
        .collect();
    bail!("{} of {} connections fail without any policy:\n{}", failed.len(), cells.len(), lines.join("\n"));
}

/// Every cell with both its answers; `cluster` is what the policies are about. A cell that should connect and does not is
/// tried once more.
///
/// # Errors
/// Probing itself fails.
pub fn matrix(
    cells: Vec<Cell>,
    cluster: &Cluster,
    probe: impl Fn(&[&Cell]) -> Result<Vec<Outcome>>,
) -> Result<Vec<Answered>> {
    let observed = probe(&cells.iter().collect::<Vec<_>>())?;
    let answer = |(cell, observed): (Cell, Outcome)| {
        let expected = cells::is_allowed(cluster, &cell);
        Answered { cell, expected, observed }
    };
    let mut answered: Vec<Answered> = cells.into_iter().zip(observed).map(answer).collect();
    let mut again: Vec<&mut Answered> =
        answered.iter_mut().filter(|answered| answered.expected && answered.observed == Outcome::Deny).collect();
    let second = probe(&again.iter().map(|answered| &answered.cell).collect::<Vec<_>>())?;
    for (answered, observed) in again.iter_mut().zip(second) {
        answered.observed = observed;
    }
    Ok(answered)
}
