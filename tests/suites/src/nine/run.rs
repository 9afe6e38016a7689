//! Puts cases in force and tries every connection.
//!
//! Almost all of a case's time is spent waiting: a denied connection is one that stays silent for longer than a SYN is
//! retransmitted. So several nodes, each with its own agent and its own nine pods, take cases from one list.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use netpol_testbed::probe::Outcome;
use netpol_testbed::sandbox::cells::{Cell, End, declared_ports};
use netpol_testbed::sandbox::{Answered, Families, Options, Policies, Sandbox, judge};

use super::case::{Case, Step};
use super::{Family, PODS, objects, ports, services};

/// Nodes at once: on two cores more of them only make the machine too slow to answer in time.
const NODES: usize = 4;

/// What a connection of a case goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// The pod's own address.
    Pod,
    /// The address of a Service that has the pod alone behind it.
    Service,
}

impl std::fmt::Display for Through {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod => f.write_str("pod addresses"),
            Self::Service => f.write_str("Service addresses"),
        }
    }
}

/// What came of a list of cases.
#[derive(Debug, Default)]
pub struct Tally {
    /// Cases.
    pub cases: usize,
    /// States that were put in force.
    pub steps: usize,
    /// How many of these have other pods than the nine, or nine with other ports.
    pub other_pods: usize,
    /// Connections tried between the nine pods and those that cases add.
    pub cells: usize,
    /// Connections tried to and from hosts outside that stand for the blocks of policies.
    pub outside: usize,
    /// How many of all these policies deny.
    pub denied: usize,
    /// Connections that did something else than they should, in words, by case and step.
    pub wrong: BTreeMap<String, Vec<String>>,
    /// How long it took, nodes included.
    pub took: Duration,
}

impl Tally {
    /// Prints the figures, tells them to whoever collects them ([`crate::cells`]), and fails if a cell is wrong or if
    /// nothing was tried.
    ///
    /// # Panics
    /// In those cases, or if the figures cannot be written.
    pub fn report(&self, suite: &str, families: Families, through: Through) {
        let Self { cases, steps, other_pods, cells, outside, denied, wrong, took } = self;
        let number: usize = wrong.values().map(Vec::len).sum();
        println!(
            "{suite}: families={} through={through}: {cases} cases, {steps} steps ({other_pods} with other pods), {cells} cells between \
             pods and {outside} with hosts outside, of them {denied} to be denied: {number} wrong, {:.1} s",
            families.name(),
            took.as_secs_f32(),
        );
        // Upstream's own suite, in a cluster, is a row of that name.
        let row = format!("{suite}, {through}");
        crate::cells::report(&row, families.name(), "-", cells + outside, number).expect("the file for rows");
        assert!(*cells > 0 && *denied > 0 && denied < cells, "{suite}: nothing was tried");
        let told = wrong.iter().take(20).fold(String::new(), |mut told, (step, cells)| {
            let _ = writeln!(told, "  {step}: {} cells, among them", cells.len());
            // Not the first ones: what is wrong of a step is often all of one kind, and neighbours are alike.
            for cell in cells.iter().step_by(cells.len().div_ceil(8)) {
                let _ = writeln!(told, "    {cell}");
            }
            told
        });
        assert_eq!(number, 0, "{suite}: {number} cells are wrong:\n{told}");
    }

    fn add(&mut self, other: Self) {
        let Self { cases, steps, other_pods, cells, outside, denied, wrong, took: _ } = other;
        self.cases += cases;
        self.steps += steps;
        self.other_pods += other_pods;
        self.cells += cells;
        self.outside += outside;
        self.denied += denied;
        self.wrong.extend(wrong);
    }
}

/// Runs all cases, each on one of several nodes.
///
/// # Errors
/// A node cannot be made, its agent ends, or its pods do not connect without policies.
pub fn run(agent: &Path, families: Families, through: Through, cases: &[Case]) -> Result<Tally> {
    let begin = Instant::now();
    let next = AtomicUsize::new(0);
    let mut tally = Tally::default();
    std::thread::scope(|scope| -> Result<()> {
        let node = || -> Result<Tally> {
            let mut sandbox = node(agent, families, through)?;
            let mut tally = Tally::default();
            while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                tally.add(
                    try_case(&mut sandbox, families, through, case).with_context(|| format!("case {}", case.name))?,
                );
            }
            Ok(tally)
        };
        let nodes: Vec<_> = (0..NODES.min(cases.len())).map(|_| scope.spawn(node)).collect();
        for node in nodes {
            tally.add(node.join().unwrap_or_else(|_panic| Err(anyhow!("a node's thread panicked")))?);
        }
        Ok(())
    })?;
    ensure!(tally.cases == cases.len(), "{} of {} cases were run", tally.cases, cases.len());
    tally.took = begin.elapsed();
    Ok(tally)
}

/// A node with the nine pods, on which everything connects.
fn node(agent: &Path, families: Families, through: Through) -> Result<Sandbox> {
    let options = Options { families, agent: Some(agent.to_owned()), agent_arguments: Vec::new(), recorded: true };
    let mut sandbox = Sandbox::start(options)?;
    let uplink = sandbox.node().options().uplink.clone();
    for (family, own) in Family::of(families).iter().zip(uplink) {
        // Hosts outside know the way to the node's pod CIDR, and to no others.
        let line = format!("route add {} via {} dev uplink onlink", family.all_pods(), own.addr());
        let mut command = Command::new("ip");
        command.args(line.split(' '));
        sandbox.node().outside().network().place().prepare(&mut command)?;
        ensure!(command.status().context("cannot start ip")?.success(), "ip {line}");
    }
    let mut manifests = objects(families);
    if through == Through::Service {
        services::proxy(&sandbox.node().place(), families)?;
        manifests.extend(services::objects(families));
    }
    let refused = sandbox.arrange(&manifests)?;
    ensure!(refused.is_empty(), "the nine pods are refused: {refused:?}");
    sandbox.publish(Policies::InForce)?;
    match through {
        Through::Pod => sandbox.baseline()?,
        Through::Service => judge::baseline(&between_the_nine(&sandbox), |cells| probe_services(&sandbox, cells))?,
    };
    Ok(sandbox)
}

fn try_case(sandbox: &mut Sandbox, families: Families, through: Through, case: &Case) -> Result<Tally> {
    let mut tally = Tally { cases: 1, ..Tally::default() };
    for (number, Step { manifests, expected, changes_pods }) in case.steps.iter().enumerate() {
        let mut manifests = manifests.clone();
        if through == Through::Service {
            manifests.extend(services::objects(families));
        }
        let refused = sandbox.arrange(&manifests)?;
        ensure!(refused.is_empty(), "step {}: {refused:?}", number + 1);
        sandbox.publish(Policies::InForce)?;
        let matrix = match through {
            Through::Pod => sandbox.matrix()?,
            Through::Service => matrix_of_services(sandbox)?,
        };
        tally.steps += 1;
        for answered in &matrix {
            let is_outside = [&answered.cell.from, &answered.cell.to].iter().any(|end| matches!(end, End::Host(_)));
            *(if is_outside { &mut tally.outside } else { &mut tally.cells }) += 1;
            tally.denied += usize::from(!answered.expected);
            let by_oracle = if answered.expected { Outcome::Allow } else { Outcome::Deny };
            let by_hand = expected.iter().filter_map(|expected| expected.of(answered)).map(|hand| ("the case", hand));
            let others: Vec<_> = std::iter::once(("the oracle", by_oracle))
                .chain(by_hand)
                .filter(|(_, wanted)| *wanted != answered.observed)
                .map(|(who, wanted)| format!("{who} expects {wanted:?}"))
                .collect();
            if !others.is_empty() {
                let step = format!("case `{}`, step {}", case.name, number + 1);
                tally.wrong.entry(step).or_default().push(in_words(answered, &others.join(", ")));
            }
        }
        let is_between_pods =
            |answered: &&Answered| matches!((&answered.cell.from, &answered.cell.to), (End::Pod(_), End::Pod(_)));
        let (tried, there_are) = (matrix.iter().filter(is_between_pods).count(), all_cells(sandbox, families, through));
        let unchanged = PODS.len() * PODS.len() * ports().count() * Family::of(families).len();
        ensure!(tried == there_are, "step {}: {tried} cells were tried, and there are {there_are}", number + 1);
        ensure!(*changes_pods || tried == unchanged, "step {}: {tried} cells instead of {unchanged}", number + 1);
        tally.other_pods += usize::from(*changes_pods);
    }
    ensure!(tally.steps > 0, "it has no steps");
    Ok(tally)
}

/// How many cells there are between pods: each to each on all ports of the second one, in each family.
fn all_cells(sandbox: &Sandbox, families: Families, through: Through) -> usize {
    let pods = sandbox.cluster().pods.values();
    let tried = pods.filter(|pod| through == Through::Pod || PODS.contains(&pod.name.to_string().as_str()));
    let (pods, ports) = tried.fold((0, 0), |(pods, ports), pod| (pods + 1, ports + declared_ports(pod).len()));
    pods * ports * Family::of(families).len()
}

/// Cells between pods that have Services: hosts outside do not know the way to those, and pods that a case adds have none.
fn between_the_nine(sandbox: &Sandbox) -> Vec<Cell> {
    let has_service = |end: &End| PODS.contains(&end.to_string().as_str());
    sandbox.cells().into_iter().filter(|cell| has_service(&cell.from) && has_service(&cell.to)).collect()
}

fn probe_services(sandbox: &Sandbox, cells: &[&Cell]) -> Result<Vec<Outcome>> {
    let through: Vec<Cell> = cells.iter().map(|cell| services::through(cell)).collect();
    sandbox.probe(&through.iter().collect::<Vec<_>>())
}

fn matrix_of_services(sandbox: &Sandbox) -> Result<Vec<Answered>> {
    let probe = |cells: &[&Cell]| probe_services(sandbox, cells);
    let mut matrix = judge::matrix(between_the_nine(sandbox), sandbox.cluster(), probe)?;
    for answered in &mut matrix {
        answered.expected = services::is_allowed(sandbox.cluster(), &answered.cell);
    }
    Ok(matrix)
}

fn in_words(answered: &Answered, expected: &str) -> String {
    let Answered { cell, expected: _, observed } = answered;
    format!(
        "{} ({}) to {} ({}), {}: {expected}, observed {observed:?}",
        cell.from, cell.source, cell.to, cell.destination, cell.port,
    )
}
