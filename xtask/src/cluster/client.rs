//! Programs that talk to the cluster's API server from outside of its machines, such as upstream's test programs.

use std::process::Command;

use anyhow::{Context, Result};

use super::state::State;
use super::{CONTROL_PLANE, machine, up};

/// Makes a program start in the control plane's network, as the administrator, and end with the thread that starts it.
///
/// # Errors
/// There is no cluster.
pub(crate) fn prepare(command: &mut Command) -> Result<()> {
    let state = State::find()?;
    let record = state.record(CONTROL_PLANE).context("there is no cluster")?;
    command.env("KUBECONFIG", state.kubeconfig("admin"));
    // No proxy reaches the cluster's own network.
    command.env("NO_PROXY", "*").env("no_proxy", "*");
    record.network().prepare(command)?;
    machine::end_with_parent(command);
    Ok(())
}

/// Runs kubectl as the administrator and returns what it prints.
///
/// # Errors
/// There is no cluster, or kubectl fails; its message is the error's.
pub(crate) fn kubectl(arguments: &[&str]) -> Result<String> {
    up::kubectl(&State::find()?, arguments)
}
