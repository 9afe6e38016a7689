//! Starting a cluster, step by step; the steps of all nodes at the same time.

use std::path::{Path, PathBuf};
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
use super::{CONTROL_PLANE, Options, capabilities, machine, network};
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
            bail!("another cluster is up, {:?}: `cargo xtask cluster down` first", there.options);
        }
        // Left by an `up` that was interrupted, or by a machine that has been restarted since.
        Some(_) | None => {
            state.remove()?;
            drop(lock);
            state.lock()?
        }
    };
    interrupt::listen()?;
    let begin = Instant::now();
    let outcome = start(state, options, recipe).and_then(|()| state.complete(&wanted));
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

fn start(state: &State, options: &Options, cluster: Installation) -> Result<()> {
    let control_plane = installation::Installation::find()?;
    let keep: Vec<PathBuf> = vec![state.folder.clone(), control_plane.directory.clone(), cluster.directory.clone()];
    let withheld = capabilities::withheld()?;
    let runtime = if withheld.is_empty() {
        PathBuf::from("runc")
    } else {
        eprintln!("cluster: this machine withholds {}: containers run without", withheld.join(", "));
        capabilities::write_runtime(&state.folder, &withheld)?
    };
    let components = Components { state, options, control_plane: &control_plane, cluster: &cluster, runtime };
    let authority = Authority::new(&state.pki())?;
    components.credentials(&authority)?;
    step("the control plane");
    let main = machine::start(state, CONTROL_PLANE, &keep)?;
    network::control_plane(&main, options.families)?;
    run(state, &main, &components.etcd(CONTROL_PLANE)?)?;
    run(state, &main, &components.api_server(CONTROL_PLANE)?)?;
    // Nodes are made while the API server starts.
    let mut nodes = Vec::new();
    for index in 1..=usize::from(options.nodes) {
        let name = format!("node{index}");
        components.node_credentials(&authority, &name)?;
        let node = machine::start(state, &name, &keep)?;
        network::node(&main, &node, index, options.families)?;
        run(state, &node, &components.containerd(&name)?)?;
        nodes.push((index, node));
    }
    wait(state, "the API server", || kubectl(state, &["get", "--raw", "/readyz"]))?;
    run(state, &main, &components.controller_manager(CONTROL_PLANE))?;
    run(state, &main, &components.scheduler(CONTROL_PLANE))?;
    apply(state, &flannel_role())?;
    step("the nodes");
    let images = cluster.images()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = nodes
            .iter()
            .map(|(index, node)| {
                let (components, images) = (&components, &images);
                scope.spawn(move || start_node(components, node, *index, images))
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_panic| bail!("a thread that starts a node panicked")))
    })?;
    wait(state, "the nodes", || {
        let ready = ready_nodes(state)?;
        if ready < nodes.len() {
            bail!("{ready} of {} nodes are ready", nodes.len());
        }
        Ok(())
    })
}

fn start_node(components: &Components<'_>, node: &Machine, index: usize, images: &[PathBuf]) -> Result<()> {
    let (state, name) = (components.state, node.name.as_str());
    let plugins = components.cluster.plugins();
    let conflist = components.conflist().to_string();
    node.place().run(move || {
        let (programs, lists) = (Path::new("/opt/cni/bin"), Path::new("/etc/cni/net.d"));
        for folder in [programs, lists] {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        for entry in std::fs::read_dir(&plugins).context("the CNI plugins")?.flatten() {
            let link = programs.join(entry.file_name());
            std::os::unix::fs::symlink(entry.path(), &link).with_context(|| link.display().to_string())?;
        }
        std::fs::write(lists.join("10-flannel.conflist"), conflist).context("the list of CNI plugins")
    })?;
    wait(state, "containerd", || process::output(&mut ctr(components.cluster, node, &["version"])?))?;
    for image in images {
        import(components.cluster, node, image)?;
    }
    run(state, node, &components.kubelet(name, index)?)?;
    // Without it flanneld ends, and would have to be started again.
    wait(state, "the controller manager", || {
        let block = kubectl(state, &["get", "node", name, "--output=jsonpath={.spec.podCIDR}"])?;
        if block.is_empty() {
            bail!("{name} has no pod CIDR");
        }
        Ok(())
    })?;
    run(state, node, &components.flanneld(name)?)?;
    run(state, node, &components.proxy(name)?)
}

/// Gives a node's containerd an image, which need not be seen from inside the node.
pub(super) fn import(cluster: &Installation, node: &Machine, archive: &Path) -> Result<()> {
    let file = std::fs::File::open(archive).with_context(|| format!("cannot open {}", archive.display()))?;
    let mut command = ctr(cluster, node, &["--namespace", "k8s.io", "images", "import", "-"])?;
    let output = command.stdin(file).output().context("cannot start ctr")?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {} is not imported: {}", node.name, archive.display(), message.trim());
    }
    Ok(())
}

fn ctr(cluster: &Installation, node: &Machine, arguments: &[&str]) -> Result<std::process::Command> {
    let mut command = std::process::Command::new(cluster.binary("ctr"));
    command.args(["--address", "/run/containerd/containerd.sock"]).args(arguments);
    node.place().prepare(&mut command)?;
    machine::end_with_parent(&mut command);
    Ok(command)
}

fn step(what: &str) {
    eprintln!("cluster: starting {what}");
}

fn run(state: &State, machine: &Machine, daemon: &Daemon) -> Result<()> {
    let socket = state.machines().join(format!("{}.sock", machine.name));
    ask(&socket, &Request::Start(daemon.clone()))
}

/// Waits until `ready` succeeds, for as long as every daemon runs.
fn wait<T>(state: &State, what: &str, mut ready: impl FnMut() -> Result<T>) -> Result<()> {
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

fn admin(state: &State) -> Result<std::process::Command> {
    let mut command = process::command(installation::Installation::find()?.component("kubectl")?);
    command.arg("--kubeconfig").arg(state.kubeconfig("admin"));
    // A user's own preferences and discovery cache have no place here.
    command.env("HOME", &state.folder).env("KUBECTL_KUBERC", "false").env_remove("KUBECONFIG");
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
