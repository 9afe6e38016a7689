//! The sandbox, from set-up to the last trace: one matrix, and another one whenever the folder changes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_testbed::interrupt;
use netpol_testbed::sandbox::{Answered, Families, Options, Policies, Sandbox};

use super::manifests::{Folder, Manifests};
use super::{Output, report};

/// How often the folder is looked at.
const POLL: Duration = Duration::from_millis(200);

/// An editor replaces a file in several steps: nothing is done before the folder has been the same for this long.
const SETTLED: Duration = Duration::from_millis(300);

/// What to run.
pub(super) struct Run {
    pub(super) manifests: PathBuf,
    pub(super) families: Families,
    pub(super) once: bool,
    pub(super) output: Output,
    pub(super) agent: PathBuf,
}

impl Run {
    /// Runs it; see [`super::main`] for the status.
    pub(super) fn main(&self) -> Result<ExitCode> {
        let begin = Instant::now();
        let mut folder = Folder::new(&self.manifests);
        let manifests = folder.read()?.unwrap_or_default();
        let mut sandbox = Sandbox::start(Options {
            families: self.families,
            agent: Some(self.agent.clone()),
            agent_arguments: Vec::new(),
            recorded: true,
        })?;
        arrange(&mut sandbox, &manifests)?;
        if sandbox.cells().is_empty() {
            bail!("{}: no connection can be tried: no pod declares a port", self.manifests.display());
        }
        sandbox.publish(Policies::Withheld)?;
        self.output.say(|| report::set_up(&sandbox));
        eprintln!("run: set up in {:.1} s", begin.elapsed().as_secs_f64());
        let connected = Instant::now();
        let number = sandbox.baseline()?;
        eprintln!("run: without policies all {number} connections work ({:.1} s)", connected.elapsed().as_secs_f64());
        sandbox.publish(Policies::InForce)?;
        let mut cells = self.observe(&sandbox)?;
        self.output.say(|| report::matrix(&cells));
        self.tell_drops(&mut sandbox, &cells)?;
        if !self.once {
            eprintln!("run: watching {}; Ctrl-C removes every trace", self.manifests.display());
            self.watch(&mut sandbox, &mut folder, &mut cells)?;
            eprintln!("\nrun: removing everything");
        }
        drop(sandbox);
        Ok(if cells.iter().all(Answered::agrees) { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    /// Follows the folder until the user has had enough.
    fn watch(&self, sandbox: &mut Sandbox, folder: &mut Folder, cells: &mut Vec<Answered>) -> Result<()> {
        while !interrupt::requested() {
            std::thread::sleep(POLL);
            if let Some(agent) = sandbox.agent() {
                agent.check()?;
            }
            let Some(mut manifests) = folder.read()? else { continue };
            loop {
                std::thread::sleep(SETTLED);
                match folder.read()? {
                    Some(newer) => manifests = newer,
                    None => break,
                }
            }
            arrange(sandbox, &manifests)?;
            sandbox.publish(Policies::InForce)?;
            let new = match self.observe(sandbox) {
                Err(error) if error.is::<interrupt::Interrupted>() => return Ok(()),
                new => new?,
            };
            self.output.say(|| report::changes(cells, &new));
            *cells = new;
        }
        Ok(())
    }

    fn observe(&self, sandbox: &Sandbox) -> Result<Vec<Answered>> {
        let begin = Instant::now();
        let cells = sandbox.matrix()?;
        eprintln!("run: probed {} connections in {:.1} s", cells.len(), begin.elapsed().as_secs_f64());
        Ok(cells)
    }

    fn tell_drops(&self, sandbox: &mut Sandbox, cells: &[Answered]) -> Result<()> {
        let dropped = sandbox.agent().context("no agent runs")?.dropped()?;
        match self.output {
            Output::Text => print!("{}", report::dropped(&dropped)),
            Output::Json => println!("{}", report::json(cells, &dropped)),
        }
        Ok(())
    }
}

/// Makes the sandbox what the manifests say, and names what in them is refused.
fn arrange(sandbox: &mut Sandbox, manifests: &Manifests) -> Result<()> {
    for error in &manifests.errors {
        eprintln!("run: refused: {error}");
    }
    for (index, rejected) in sandbox.arrange(&manifests.values)? {
        eprintln!("run: refused: {}", manifests.describe(index, &rejected));
    }
    for vacant in &sandbox.hosts().vacant {
        eprintln!(
            "run: no host can stand for {vacant}: it is the pods' own network, or no host can have such an address"
        );
    }
    Ok(())
}
