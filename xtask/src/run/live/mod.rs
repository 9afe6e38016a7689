//! A real cluster, from the agent's manifests to the last trace: as [`super::sandbox`], with pods that a scheduler has
//! placed, a kubelet started and Flannel connected.
//!
//! A [`Site`] is where the cluster is: it says how to reach the API server and the nodes. [`world`] makes the cluster what
//! the manifests say ([`objects`], by way of [`api`]), makes servers listen in its pods ([`pods`]), waits for the agents
//! ([`agents`]), and has connections probed. The policies that count are those that the API server shows.

mod agents;
pub(super) mod api;
mod objects;
mod pods;
mod world;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use netpol_testbed::interrupt;
use netpol_testbed::place::Place;
use netpol_testbed::sandbox::cells::End;
use netpol_testbed::sandbox::{Answered, Policies};

use self::world::{Addresses, World};
use super::manifests::{Folder, Manifests};
use super::{Output, report};
use crate::cluster::outside::Outside;

/// How often the folder, and how often the API server is looked at.
const POLL: Duration = Duration::from_millis(200);
const POLLS_FOR_EACH_SNAPSHOT: u32 = 10;

/// An editor replaces a file in several steps: nothing is done before the folder has been the same for this long.
const SETTLED: Duration = Duration::from_millis(300);

/// Where a cluster is.
pub(super) trait Site {
    /// kubectl as the administrator.
    fn kubectl(&self) -> Result<Command>;

    /// How a user calls it.
    fn kubectl_line(&self) -> String;

    /// The nodes, each with the place of its processes.
    fn nodes(&self) -> Result<BTreeMap<String, Place>>;

    /// How a user gets into a node.
    fn node_line(&self, node: &str) -> String;

    /// Removes what an agent has left in force on a node.
    fn uninstall(&self, node: &str) -> Result<()>;

    /// The agent's manifests.
    fn kustomization(&self) -> PathBuf;

    /// A place for hosts outside of the cluster, or why there is none; for blocks of pods' addresses and their nodes.
    fn outside(&self, nodes: &[(IpNet, IpAddr)]) -> Result<Result<Outside, &'static str>>;

    /// Networks in which no host outside can be.
    fn reserved(&self) -> Vec<IpNet>;
}

/// What to run.
pub(super) struct Run {
    /// Folder of the manifests.
    pub(super) manifests: PathBuf,
    /// Whether to end after the first matrix.
    pub(super) once: bool,
    /// What is printed.
    pub(super) output: Output,
    /// Whether the cluster outlives the run: what is made in it is then removed.
    pub(super) cluster_stays: bool,
}

impl Run {
    /// Runs it in a cluster whose nodes have the agent's image; see [`super::main`] for the status.
    pub(super) fn main(&self, site: &dyn Site) -> Result<ExitCode> {
        let was_installed = self.cluster_stays && agents::are_installed(site)?;
        let mut world = World::new(site, was_installed)?;
        let outcome = self.observe_and_watch(&mut world);
        if self.cluster_stays {
            eprintln!("run: removing what was made in the cluster");
            let removed = world.remove();
            // What went wrong first is the better message.
            if outcome.is_ok() {
                removed?;
            }
        }
        outcome
    }

    fn observe_and_watch(&self, world: &mut World<'_>) -> Result<ExitCode> {
        let begin = Instant::now();
        world.install()?;
        eprintln!("run: the agent is ready on {} nodes ({:.1} s)", world.nodes()?, begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        let mut folder = Folder::new(&self.manifests);
        let manifests = folder.read()?.unwrap_or_default();
        tell_refusals(&manifests, &world.arrange(&manifests.values, Policies::Withheld)?);
        let number = world.cells().len();
        if number == 0 {
            bail!("{}: no connection can be tried: no pod declares a port", self.manifests.display());
        }
        self.output.say(|| report::inventory(world.pods(), world.hosts(), world.policies()));
        eprintln!("run: {} pods run ({:.1} s)", world.pods().count(), begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        let number = world.baseline()?;
        eprintln!("run: without policies all {number} connections work ({:.1} s)", begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        world.arrange(&manifests.values, Policies::InForce)?;
        eprintln!("run: every agent has the policies in force ({:.1} s)", begin.elapsed().as_secs_f64());
        let mut cells = observe(world)?;
        self.output.say(|| report::matrix(&cells));
        self.tell_drops(world, &cells)?;
        if !self.once {
            self.output.say(|| world.usage());
            eprintln!("run: watching {}; Ctrl-C ends this", self.manifests.display());
            self.watch(world, &mut folder, manifests, &mut cells)?;
        }
        Ok(if cells.iter().all(Answered::agrees) { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    /// Follows the folder, and the API server, until the user has had enough.
    fn watch(
        &self,
        world: &mut World<'_>,
        folder: &mut Folder,
        mut manifests: Manifests,
        cells: &mut Vec<Answered>,
    ) -> Result<()> {
        for turn in 0_u32.. {
            std::thread::sleep(POLL);
            if interrupt::requested() {
                break;
            }
            let is_edited = match folder.read()? {
                Some(mut newer) => {
                    loop {
                        std::thread::sleep(SETTLED);
                        match folder.read()? {
                            Some(newest) => newer = newest,
                            None => break,
                        }
                    }
                    manifests = newer;
                    true
                }
                None => false,
            };
            let is_due = turn % POLLS_FOR_EACH_SNAPSHOT == 0;
            let mut step = || -> Result<Option<Vec<Answered>>> {
                if !(is_edited || is_due && world.has_changed()?) {
                    return Ok(None);
                }
                let before = world.addresses();
                tell_refusals(&manifests, &world.arrange(&manifests.values, Policies::InForce)?);
                readdress(cells, &before, &world.addresses());
                observe(world).map(Some)
            };
            match step() {
                Ok(Some(new)) => {
                    self.output.say(|| report::changes(cells, &new));
                    *cells = new;
                }
                Ok(None) => {}
                Err(_ended) if interrupt::requested() => break,
                // A manifest that the API server refuses, or a pod that does not start: the next edit may mend it.
                Err(error) => eprintln!("run: {error:#}"),
            }
        }
        Ok(())
    }

    fn tell_drops(&self, world: &World<'_>, cells: &[Answered]) -> Result<()> {
        let drops = world.drops()?;
        match self.output {
            Output::Text => print!("{}", report::dropped_by_node(&drops)),
            Output::Json => println!("{}", report::json(cells, &agents::total(&drops))),
        }
        Ok(())
    }
}

fn observe(world: &World<'_>) -> Result<Vec<Answered>> {
    let begin = Instant::now();
    let cells = world.matrix()?;
    eprintln!("run: probed {} connections in {:.1} s", cells.len(), begin.elapsed().as_secs_f64());
    Ok(cells)
}

/// Gives cells of before the addresses that pods have now: one that was made anew is to policies what it was.
fn readdress(cells: &mut [Answered], before: &Addresses, now: &Addresses) {
    let current = |end: &End, address: IpAddr| -> Option<IpAddr> {
        let End::Pod(name) = end else { return None };
        let key = (name.clone(), address.is_ipv4());
        // Another address than the pod's own is none that has changed with it.
        (before.get(&key) == Some(&address)).then(|| now.get(&key).copied())?
    };
    for Answered { cell, .. } in cells {
        cell.source = current(&cell.from, cell.source).unwrap_or(cell.source);
        cell.destination = current(&cell.to, cell.destination).unwrap_or(cell.destination);
    }
}

/// Names what in the manifests is refused or left out.
fn tell_refusals(manifests: &Manifests, wanted: &objects::Wanted) {
    for error in &manifests.errors {
        eprintln!("run: refused: {error}");
    }
    for (index, rejected) in &wanted.refused {
        eprintln!("run: refused: {}", manifests.describe(*index, rejected));
    }
    for what in &wanted.left_out {
        eprintln!("run: left out: {what}");
    }
}

/// Tries until it works: the last error, if that takes too long.
fn wait(patience: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    loop {
        if interrupt::requested() {
            bail!(interrupt::Interrupted);
        }
        match attempt() {
            Err(error) if begin.elapsed() > patience => {
                return Err(error).with_context(|| format!("waited {patience:?} in vain"));
            }
            Err(_not_yet) => std::thread::sleep(POLL),
            Ok(()) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::{ObjectName, Protocol};
    use netpol_testbed::probe::Outcome;
    use netpol_testbed::sandbox::cells::{Cell, Port};

    use super::*;

    #[test]
    fn a_pod_that_was_made_anew_is_the_same_end_with_another_address() {
        let name = ObjectName::new("shop", "web-0");
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let addresses = |own: &str| Addresses::from([((name.clone(), true), address(own))]);
        let cell = |destination: &str| Answered {
            cell: Cell {
                from: End::Host(address("203.0.113.1")),
                to: End::Pod(name.clone()),
                source: address("203.0.113.1"),
                destination: address(destination),
                port: Port { protocol: Protocol::Tcp, number: 80 },
            },
            expected: true,
            observed: Outcome::Allow,
        };
        let mut cells = [cell("10.244.0.5"), cell("10.96.0.7")];
        readdress(&mut cells, &addresses("10.244.0.5"), &addresses("10.244.1.9"));
        assert_eq!(cells, [cell("10.244.1.9"), cell("10.96.0.7")]);
    }
}
