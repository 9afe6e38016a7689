//! Nodes: how a machine becomes one, and how one joins or dies while the cluster runs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use netpol_testbed::control_plane::installation;

use super::components::Components;
use super::recipe::{Installation, Recipe};
use super::state::{Machine, State};
use super::up::{kubectl, run, wait};
use super::{CONTROL_PLANE, machine, network};
use crate::process;

/// How many nodes may join those that `up` has started: their certificates are issued with the others', after which the
/// authority's key is gone.
pub(super) const SPARE: usize = 2;

/// The name of a node, by its number, which begins at 1.
pub(super) fn name(index: usize) -> String {
    format!("node{index}")
}

/// Starts a node that is not running, and returns when it is ready: one that has been killed, or another.
pub(super) fn start(state: &State, name: &str) -> Result<()> {
    let cluster = state.cluster()?.context("there is no cluster: `cargo xtask cluster up`")?;
    let last = usize::from(cluster.options.nodes) + SPARE;
    let index = (1..=last).find(|index| self::name(*index) == name);
    let index = index.with_context(|| format!("there may be nodes from node1 to node{last} in this cluster"))?;
    if state.record(name).is_ok_and(|node| node.is_alive()) {
        bail!("{name} is running");
    }
    kill(state, name)?;
    let control_plane = installation::Installation::find()?;
    let installation = Recipe::read()?.installation()?;
    let components = Components::new(state, &cluster.options, &control_plane, &installation)?;
    // The API server goes on telling what it has last heard of the node, until it hears something else.
    let query = "--output=jsonpath={range .status.conditions[?(@.type=='Ready')]}{.status} {.lastHeartbeatTime}{end}";
    let before = kubectl(state, &["get", "node", name, "--ignore-not-found", query])?;
    let node = begin(&components, &state.record(CONTROL_PLANE)?, index)?;
    finish(&components, &node, index)?;
    wait(state, name, || {
        let now = kubectl(state, &["get", "node", name, query])?;
        let heartbeat = |condition: &str| condition.split(' ').nth(1).map(str::to_owned);
        if !now.starts_with("True") || heartbeat(&now) == heartbeat(&before) {
            bail!("{name} is not ready");
        }
        Ok(())
    })
}

/// Ends a node as a failure of its power would: what it had in memory is lost, and it tells nobody.
pub(super) fn kill(state: &State, name: &str) -> Result<()> {
    if name == CONTROL_PLANE {
        bail!("{name} is no node");
    }
    match state.record(name) {
        Ok(node) => state.end(&node),
        Err(_there_is_none) => Ok(()),
    }
}

/// Starts a node's machine and its container runtime, and connects it.
pub(super) fn begin(components: &Components<'_>, control_plane: &Machine, index: usize) -> Result<Machine> {
    let name = name(index);
    let node = machine::start(components.state, &name, &components.keep())?;
    network::node(control_plane, &node, index, components.options.families)?;
    run(components.state, &node, &components.containerd(&name)?)?;
    Ok(node)
}

/// Starts what makes a node of a machine.
pub(super) fn finish(components: &Components<'_>, node: &Machine, index: usize) -> Result<()> {
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
    for image in components.cluster.images()? {
        import(components.cluster, node, &image)?;
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

fn ctr(cluster: &Installation, node: &Machine, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(cluster.binary("ctr"));
    command.args(["--address", "/run/containerd/containerd.sock"]).args(arguments);
    node.place().prepare(&mut command)?;
    machine::end_with_parent(&mut command);
    Ok(command)
}
