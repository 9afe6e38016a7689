//! Starting a cluster, step by step; the steps of all nodes at the same time.

use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_testbed::control_plane::certificates::Authority;
use netpol_testbed::control_plane::installation;
use netpol_testbed::interrupt;
use serde_json::Value;

use super::components::{Components, flannel_role};
use super::control::{Daemon, Request, Running, ask};
use super::recipe::{Installation, Recipe};
use super::state::{Cluster, Machine, State};
use super::{CONTROL_PLANE, Options, machine, network, nodes};
use crate::process;
use crate::setup::{self, Need};

/// How long one step may take: generous, since the host may be compiling.
const PATIENCE: Duration = Duration::from_secs(180);

pub(super) fn main(state: &State, options: &Options) -> Result<ExitCode> {
    setup::ensure(&[Need::Packages, Need::ControlPlane, Need::Cluster])?;
    let recipe = Recipe::read()?.installation()?;
    let name = recipe.directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let wanted = Cluster { options: options.clone(), recipe: name };
    let lock = state.lock()?;
    let records = state.records()?;
    let lock = match state.cluster()? {
        Some(there) if there == wanted && records.iter().all(Machine::is_alive) => {
            eprintln!("cluster: it is up already");
            usage(state)?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(there) if records.iter().any(Machine::is_alive) => {
            bail!("another cluster is up, with {}: `cargo xtask cluster down` first", there.options);
        }
        // Left by an `up` that was interrupted, or by a machine that has been restarted since.
        Some(_) | None => {
            super::remove(state)?;
            drop(lock);
            state.lock()?
        }
    };
    interrupt::listen()?;
    let begin = Instant::now();
    let outcome = start(state, options, &recipe).and_then(|()| state.complete(&wanted));
    if let Err(error) = outcome {
        // Ctrl-C ends the programs that are run at the moment too, whose failure then comes first.
        if interrupt::requested() {
            state.remove()?;
            eprintln!("cluster: interrupted; nothing is left of it");
            return Ok(ExitCode::from(130));
        }
        // What has failed can be looked at; the next `up` and `down` remove it.
        return Err(error.context(format!("the cluster did not start; logs are in {}", state.logs().display())));
    }
    drop(lock);
    eprintln!("cluster: {} nodes are ready after {:.1} s", options.nodes, begin.elapsed().as_secs_f32());
    usage(state)?;
    Ok(ExitCode::SUCCESS)
}

fn usage(state: &State) -> Result<()> {
    let record = state.record(CONTROL_PLANE)?;
    eprintln!("cluster: kubectl:      cargo xtask cluster kubectl get pods --all-namespaces");
    eprintln!("cluster: other tools:  nsenter --net={} <program>, with", record.namespace("net").display());
    eprintln!("cluster:               KUBECONFIG={}", state.kubeconfig("admin").display());
    for node in state.records()?.iter().filter(|machine| machine.name != CONTROL_PLANE) {
        eprintln!("cluster: {}:        nsenter --target={} --all", node.name, node.pid);
    }
    eprintln!("cluster: logs:         {}", state.logs().display());
    eprintln!("cluster: end it with:  cargo xtask cluster down");
    Ok(())
}

fn start(state: &State, options: &Options, cluster: &Installation) -> Result<()> {
    let control_plane = installation::Installation::find()?;
    let components = Components::new(state, options, &control_plane, cluster)?;
    let authority = Authority::new(&state.pki())?;
    components.credentials(&authority)?;
    step("the control plane");
    let main = machine::start(state, CONTROL_PLANE, &components.keep())?;
    network::control_plane(&main, options.families)?;
    run(state, &main, &components.etcd(CONTROL_PLANE)?)?;
    run(state, &main, &components.api_server(CONTROL_PLANE)?)?;
    for index in 1..=usize::from(options.nodes) + nodes::SPARE {
        components.node_credentials(&authority, &nodes::name(index))?;
    }
    // Nodes are made while the API server starts.
    let mut machines = Vec::new();
    for index in 1..=usize::from(options.nodes) {
        machines.push((index, nodes::begin(&components, &main, index)?));
    }
    wait(state, "the API server", || kubectl(state, &["get", "--raw", "/readyz"]))?;
    run(state, &main, &components.controller_manager(CONTROL_PLANE))?;
    run(state, &main, &components.scheduler(CONTROL_PLANE))?;
    // kubectl gives up on a server that is busy with its first description of itself.
    wait(state, "the API server's first objects", || apply(state, &flannel_role()))?;
    step("the nodes");
    std::thread::scope(|scope| {
        let threads: Vec<_> = machines
            .iter()
            .map(|(index, node)| {
                let components = &components;
                scope.spawn(move || nodes::finish(components, node, *index))
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_panic| bail!("a thread that starts a node panicked")))
    })?;
    wait(state, "the nodes", || {
        let ready = ready_nodes(state)?;
        if ready < machines.len() {
            bail!("{ready} of {} nodes are ready", machines.len());
        }
        Ok(())
    })
}

fn step(what: &str) {
    eprintln!("cluster: starting {what}");
}

pub(super) fn run(state: &State, machine: &Machine, daemon: &Daemon) -> Result<()> {
    let socket = state.machines().join(format!("{}.sock", machine.name));
    ask(&socket, &Request::Start(daemon.clone()))
}

/// Waits until `ready` succeeds, for as long as every daemon runs.
pub(super) fn wait<T>(state: &State, what: &str, mut ready: impl FnMut() -> Result<T>) -> Result<()> {
    let begin = Instant::now();
    loop {
        if interrupt::requested() {
            return Err(interrupt::Interrupted.into());
        }
        match ready() {
            Ok(_) => return Ok(()),
            Err(error) if begin.elapsed() > PATIENCE => {
                return Err(error.context(format!("{what}: not ready after {PATIENCE:?}")));
            }
            Err(_not_yet) => {}
        }
        check(state)?;
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Fails if a daemon has ended.
fn check(state: &State) -> Result<()> {
    for machine in state.records()? {
        let socket = state.machines().join(format!("{}.sock", machine.name));
        for Running { name, pid: _, ended, log } in ask::<Vec<Running>>(&socket, &Request::List)? {
            if let Some(how) = ended {
                let text = std::fs::read(&log).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(10)..].join("\n");
                bail!("{name} of {} ended: {how}\n{tail}", machine.name);
            }
        }
    }
    Ok(())
}

/// Runs kubectl as the administrator and returns what it prints.
pub(super) fn kubectl(state: &State, arguments: &[&str]) -> Result<String> {
    process::output(admin(state)?.args(arguments))
}

/// kubectl as the administrator; it ends with the thread that starts it.
pub(super) fn admin(state: &State) -> Result<std::process::Command> {
    let mut command = process::command(installation::Installation::find()?.component("kubectl")?);
    command.arg("--kubeconfig").arg(state.kubeconfig("admin"));
    // A user's own preferences and discovery cache have no place here.
    command.env("HOME", &state.folder).env("KUBECTL_KUBERC", "false").env_remove("KUBECONFIG");
    command.env("NO_PROXY", "*").env("no_proxy", "*");
    state.record(CONTROL_PLANE)?.network().prepare(&mut command)?;
    machine::end_with_parent(&mut command);
    Ok(command)
}

fn apply(state: &State, manifests: &str) -> Result<()> {
    use std::io::Write;
    let mut command = admin(state)?;
    command.args(["apply", "--server-side", "--validate=strict", "--filename=-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start kubectl")?;
    let mut input = child.stdin.take().context("kubectl has no standard input")?;
    // kubectl may end without reading to the end; its own message then says why.
    let _ = input.write_all(manifests.as_bytes());
    drop(input);
    let output = child.wait_with_output().context("waitpid")?;
    if !output.status.success() {
        bail!("kubectl apply: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// How many nodes are ready and have a network.
pub(super) fn ready_nodes(state: &State) -> Result<usize> {
    let nodes: Value = serde_json::from_str(&kubectl(state, &["get", "nodes", "--output=json"])?).context("nodes")?;
    let is_true = |node: &Value, kind: &str, status: &str| {
        let conditions = node["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|one| one["type"] == kind && one["status"] == status))
    };
    // NetworkUnavailable is Flannel's: without it, the first pods would fail and be tried again.
    let ready = |node: &&Value| is_true(node, "Ready", "True") && is_true(node, "NetworkUnavailable", "False");
    Ok(nodes["items"].as_array().map_or(0, |nodes| nodes.iter().filter(ready).count()))
}
