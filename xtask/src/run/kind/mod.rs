//! The backend `kind`: nodes that are containers of a container engine on this machine.
//!
//! [`plan`] is everything that is run to make the cluster and to end it, of the files that [`config`] makes; inside of the
//! cluster [`super::live`] does what it does in any. Nodes are entered by their processes, so the engine has to be this
//! machine's own, and root's.

mod config;
mod plan;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use netpol_testbed::interrupt;
use netpol_testbed::place::Place;

use self::plan::{CLUSTER, Plan, Step};
use super::image::Image;
use super::live::{Run, Site};
use crate::cluster::Families;
use crate::cluster::outside::Outside;
use crate::process;

/// Container engines that kind knows, in the order in which it looks for them.
const ENGINES: [&str; 3] = ["docker", "podman", "nerdctl"];

/// How long an engine may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Why there can be no kind cluster on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Program(&'static str),
    Engine,
    Answer(&'static str),
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Program(name) => write!(f, "{name} is not on the PATH"),
            Self::Engine => write!(f, "no container engine is on the PATH (looked for {})", ENGINES.join(", ")),
            Self::Answer(engine) => write!(f, "`{engine} info` fails: its daemon does not run, or does not answer"),
        }
    }
}

/// The engine, if kind and kubectl are there too and the engine answers.
fn engine() -> Result<&'static str, Lack> {
    choose(|program| process::find(program).is_some(), answers)
}

fn choose(is_there: impl Fn(&str) -> bool, answers: impl Fn(&str) -> bool) -> Result<&'static str, Lack> {
    if let Some(missing) = ["kind", "kubectl"].into_iter().find(|program| !is_there(program)) {
        return Err(Lack::Program(missing));
    }
    let mut there = ENGINES.into_iter().filter(|engine| is_there(engine)).peekable();
    let first = *there.peek().ok_or(Lack::Engine)?;
    there.find(|engine| answers(engine)).ok_or(Lack::Answer(first))
}

fn answers(engine: &str) -> bool {
    let mut command = process::command(engine);
    command.arg("info").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let begin = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if begin.elapsed() < ANSWER => std::thread::sleep(Duration::from_millis(50)),
            Ok(None) | Err(_) => {
                // It is ours, and has not ended: neither can fail.
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

/// Whether kind is the backend unless another one is asked for.
pub(super) fn is_available() -> bool {
    engine().is_ok()
}

/// The plan, as it is printed; without an engine that of the first that is on the PATH.
pub(super) fn dry_run(families: Families, agent: Option<&Path>) -> Result<String> {
    let engine = engine().unwrap_or_else(|_lack| {
        ENGINES.into_iter().find(|engine| process::find(engine).is_some()).unwrap_or(ENGINES[0])
    });
    Ok(Plan::new(engine, families, &folder()?, &Image::path()?, agent)?.to_string())
}

fn folder() -> Result<PathBuf> {
    Ok(process::target_directory()?.join("kind"))
}

/// Runs it in a cluster that ends with this; see [`super::main`] for the status.
pub(super) fn main(run: &Run, families: Families, agent: Option<&Path>) -> Result<ExitCode> {
    let engine = match engine() {
        Ok(engine) => engine,
        Err(lack) => bail!("--backend kind: {lack}; --dry-run prints what would be done"),
    };
    let plan = Plan::new(engine, families, &folder()?, &Image::path()?, agent)?;
    let clusters = process::output(process::command("kind").args(["get", "clusters"]).envs(provider(engine)))?;
    if clusters.lines().any(|name| name == CLUSTER) {
        bail!("there is a kind cluster {CLUSTER} already: `kind delete cluster --name {CLUSTER}` first");
    }
    take(&plan.prepare)?;
    let _ending = Ending(&plan.end);
    take(&plan.create)?;
    let kind = Kind { engine, kubeconfig: plan.kubeconfig.clone(), nodes: nodes(engine, &plan.nodes)? };
    run.main(&kind)
}

fn provider(engine: &'static str) -> Option<(&'static str, &'static str)> {
    (engine != "docker").then_some(("KIND_EXPERIMENTAL_PROVIDER", engine))
}

fn take(steps: &[Step]) -> Result<()> {
    for step in steps {
        if interrupt::requested() {
            bail!(interrupt::Interrupted);
        }
        step.take()?;
    }
    Ok(())
}

/// Ends the cluster, whatever happens in it.
struct Ending<'a>(&'a [Step]);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        for step in self.0 {
            if let Err(error) = step.take() {
                eprintln!("run: {error:#}");
            }
        }
    }
}

/// The first process of each node's container, as this machine numbers it.
fn nodes(engine: &str, names: &[String]) -> Result<BTreeMap<String, u32>> {
    let node = |name: &String| {
        let arguments = ["inspect", "--format", "{{.State.Pid}}", name];
        let pid = process::output(process::command(engine).args(arguments))?;
        let pid: u32 = pid.trim().parse().with_context(|| format!("{engine} inspect {name}: {pid}"))?;
        // A file that kind's node images have: the process of that number is the node's.
        if pid == 0 || !Path::new(&format!("/proc/{pid}/root/kind")).exists() {
            bail!("{name} is not on this machine: its pods cannot be entered from here");
        }
        Ok((name.clone(), pid))
    };
    names.iter().map(node).collect()
}

/// The cluster.
struct Kind {
    engine: &'static str,
    kubeconfig: PathBuf,
    nodes: BTreeMap<String, u32>,
}

impl Site for Kind {
    fn kubectl(&self) -> Result<Command> {
        let mut command = process::command("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).env("KUBECTL_KUBERC", "false");
        Ok(command)
    }

    fn kubectl_line(&self) -> String {
        format!("kubectl --kubeconfig {}", self.kubeconfig.display())
    }

    fn nodes(&self) -> Result<BTreeMap<String, Place>> {
        let place = |(name, pid): (&String, &u32)| {
            let namespace = |kind: &str| PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
            (name.clone(), Place::namespace(&namespace("net")).with_mounts(&namespace("mnt")))
        };
        Ok(self.nodes.iter().map(place).collect())
    }

    fn node_line(&self, node: &str) -> String {
        format!("{} exec -it {node} bash", self.engine)
    }

    fn uninstall(&self, _node: &str) -> Result<()> {
        // What is in force goes with the node, and what is pinned with its folder: the plan's end removes both.
        Ok(())
    }

    fn kustomization(&self) -> PathBuf {
        process::workspace().join(config::FOLDER)
    }

    fn outside(&self, _nodes: &[(IpNet, IpAddr)]) -> Result<Result<Outside, &'static str>> {
        Ok(Err("the network of the nodes is the container engine's, in which nothing is changed"))
    }

    fn reserved(&self) -> Vec<IpNet> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_is_chosen_only_if_it_is_there_and_an_engine_answers() {
        let there = |all: &'static [&'static str]| move |program: &str| all.contains(&program);
        assert_eq!(choose(there(&["docker"]), |_| true), Err(Lack::Program("kind")));
        assert_eq!(choose(there(&["kind", "docker"]), |_| true), Err(Lack::Program("kubectl")));
        assert_eq!(choose(there(&["kind", "kubectl"]), |_| true), Err(Lack::Engine));
        let all = there(&["kind", "kubectl", "docker"]);
        assert_eq!(choose(all, |_| false), Err(Lack::Answer("docker")));
        assert_eq!(choose(all, |_| true), Ok("docker"));
        let of_two = choose(there(&["kind", "kubectl", "docker", "podman"]), |engine| engine == "podman");
        assert_eq!(of_two, Ok("podman"));
    }

    #[test]
    fn the_plan_is_printed_also_where_there_is_no_engine() {
        let text = dry_run(Families::Ipv4, None).unwrap();
        assert!(text.contains("kind create cluster --name netpol"), "{text}");
    }
}
