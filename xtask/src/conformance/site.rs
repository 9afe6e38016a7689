//! The cluster that the specs run in, with the agent in it as people install it: started, and taken down with all that
//! belongs to it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_testbed::control_plane::installation::cache_directory;
use netpol_testbed::interrupt;

use crate::cluster::{self, Command, Options, client};
use crate::image;

/// The variable that names a cluster ([`crate::cluster`]).
const VARIABLE: &str = "NETPOL_CLUSTER";

/// The cluster's name, unless the user has given one: the cluster that somebody works with is left alone.
const NAME: &str = "conformance";

/// How long one step may take, while the host may be compiling.
const PATIENCE: Duration = Duration::from_secs(300);

/// Between two tries.
const POLL: Duration = Duration::from_millis(500);

/// The right to this command's cluster: one run at a time on this machine.
pub(super) struct Right {
    _lock: File,
    /// Whether the cluster is one that this command has named.
    own: bool,
}

impl Right {
    /// Takes it, and makes this process and its children use the cluster.
    ///
    /// # Errors
    /// Another run has it.
    pub(super) fn take() -> Result<Self> {
        let callers = std::env::var(VARIABLE).ok().filter(|name| !name.is_empty());
        let own = callers.is_none();
        let name = callers.unwrap_or_else(|| NAME.to_owned());
        if own {
            // SAFETY: the command has just begun, and has no other thread.
            unsafe { std::env::set_var(VARIABLE, &name) };
        }
        let cache = cache_directory()?;
        std::fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let path = cache.join(format!("conformance-{name}.lock"));
        let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        if lock.try_lock().is_err() {
            bail!(
                "another `cargo xtask conformance` uses the cluster {name}; {VARIABLE}=<name> gives this one its own"
            );
        }
        Ok(Self { _lock: lock, own })
    }
}

/// A cluster with the agent ready on every node. It goes with this value.
pub(super) struct Site {
    keep: bool,
}

impl Site {
    /// Starts it. With `keep` it stays, and one that is there is used.
    ///
    /// # Errors
    /// The cluster does not start, the agent does not become ready, or the user interrupts.
    pub(super) fn start(right: &Right, options: &Options, image: &Path, keep: bool) -> Result<Self> {
        if right.own && !keep {
            // Left by a run that was killed.
            cluster::main(Command::Down)?;
        }
        let site = Self { keep };
        let begin = Instant::now();
        if cluster::main(Command::Up(options.clone()))? != ExitCode::SUCCESS {
            // Its only other outcome: nothing is left of it.
            bail!(interrupt::Interrupted);
        }
        cluster::main(Command::Load { archive: image.to_owned() })?;
        let base = crate::process::workspace().join("deploy/base");
        let base = base.to_str().context("the workspace's path is no UTF-8")?;
        patiently(|| client::kubectl(&["apply", "--server-side", "--validate=strict", "-k", base]))?;
        let namespace = "--namespace=netpol-agent";
        // With a cluster that was kept, the image may be another under the same name.
        if keep {
            client::kubectl(&["rollout", "restart", "daemonset/netpol-agent", namespace])?;
        }
        ready(namespace)?;
        eprintln!("conformance: cluster and agent are ready after {:.1} s", begin.elapsed().as_secs_f64());
        Ok(site)
    }
}

/// Waits until the agent is ready on every node.
fn ready(namespace: &str) -> Result<()> {
    // Short calls, so that a request to end is heard in between.
    let rollout = ["rollout", "status", "daemonset/netpol-agent", namespace, "--timeout=3s"];
    patiently(|| client::kubectl(&rollout)).map(drop).map_err(|error| {
        let pods = client::kubectl(&["get", "pods", namespace, "--output=wide"]).unwrap_or_default();
        let logs = client::kubectl(&["logs", namespace, "daemonset/netpol-agent", "--tail=20"]).unwrap_or_default();
        // Context hides what an error is.
        if error.is::<interrupt::Interrupted>() {
            error
        } else {
            error.context(format!("the agent is not ready\n{pods}{logs}"))
        }
    })
}

/// Tries until it works: a machine that compiles beside may answer late.
fn patiently<T>(mut work: impl FnMut() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    loop {
        match work() {
            Ok(done) => return Ok(done),
            Err(_) if interrupt::requested() => bail!(interrupt::Interrupted),
            Err(error) if begin.elapsed() > PATIENCE => return Err(error.context(format!("not after {PATIENCE:?}"))),
            Err(_not_yet) => std::thread::sleep(POLL),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("conformance: the cluster stays: `{VARIABLE}=… cargo xtask cluster down` ends it");
        } else if let Err(error) = cluster::main(Command::Down) {
            eprintln!("conformance: cannot take the cluster down: {error:#}");
        }
    }
}

/// Builds the agent's image, and returns its archive.
///
/// # Errors
/// It cannot be built.
pub(super) fn image(folder: &Path, profile: &str) -> Result<PathBuf> {
    let archive = folder.join("netpol-agent.tar");
    image::write(&image::build_with(profile)?, image::REFERENCE, &archive)?;
    Ok(archive)
}
