//! Runs specs: a process for each, several at a time.
//!
//! A spec mostly waits, for pods to start and for denied connections to time out, and each makes namespaces of its own,
//! so several at a time do not meet. One process for each, rather than one that Ginkgo's command line would divide,
//! gives every spec its own report, log and time limit, and lets the next begin when any ends.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_testbed::interrupt::{self, Interrupted};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::specs::{self, End, Spec};
use crate::cluster::client;

/// What one spec may take: upstream's own patience with a pod that does not start is five minutes.
const LIMIT: Duration = Duration::from_secs(600);

/// What Ginkgo may take beyond that to clean up after itself.
const GRACE: Duration = Duration::from_secs(60);

/// How often a running process is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Upstream's program, and where it leaves reports and logs.
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) folder: PathBuf,
}

/// What came of a spec.
pub(super) struct Outcome {
    pub(super) spec: Spec,
    pub(super) end: End,
    pub(super) seconds: f64,
}

impl Program {
    /// The suite's description and its specs. Needs no cluster.
    ///
    /// # Errors
    /// The program does not run, or writes no report.
    pub(super) fn list(&self) -> Result<(String, Vec<Spec>)> {
        std::fs::create_dir_all(&self.folder).with_context(|| format!("cannot create {}", self.folder.display()))?;
        let report = self.folder.join("list.json");
        // With no focus at all, the framework leaves out what has a Feature label: all but two.
        let mut command = self.command(&report, ".");
        command.arg("--ginkgo.dry-run");
        let status = self.spawn(command, &self.folder.join("list.log"))?.wait().context("waitpid")?;
        if !status.success() {
            bail!("{} --ginkgo.dry-run: {status}; its output is in {}", self.path.display(), self.folder.display());
        }
        specs::listed(&read(&report)?)
    }

    /// Runs specs against the cluster, `parallel` at a time, and tells of each when it has ended.
    ///
    /// # Errors
    /// A process cannot be started, or the user interrupts.
    pub(super) fn run(
        &self,
        suite: &str,
        specs: &[Spec],
        parallel: usize,
        tell: &(dyn Fn(&Outcome) + Sync),
    ) -> Result<Vec<Outcome>> {
        let queue: Mutex<VecDeque<(usize, &Spec)>> = Mutex::new(specs.iter().enumerate().collect());
        let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
        let next = || queue().pop_front();
        let work = || -> Result<Vec<(usize, Outcome)>> {
            let mut ended = Vec::new();
            while let Some((index, spec)) = next() {
                // The others need not begin anything either.
                let outcome = self.one(suite, index, spec).inspect_err(|_| queue().clear())?;
                tell(&outcome);
                ended.push((index, outcome));
            }
            Ok(ended)
        };
        let mut all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..parallel.max(1)).map(|_| scope.spawn(work)).collect();
            let mut all = Vec::new();
            for thread in threads {
                all.extend(thread.join().unwrap_or_else(|_panic| bail!("a thread that runs specs panicked"))?);
            }
            anyhow::Ok(all)
        })?;
        all.sort_by_key(|(index, _)| *index);
        Ok(all.into_iter().map(|(_, outcome)| outcome).collect())
    }

    fn one(&self, suite: &str, index: usize, spec: &Spec) -> Result<Outcome> {
        let report = self.folder.join(format!("{:02}.json", index + 1));
        // An earlier run's would be taken for this one's.
        match std::fs::remove_file(&report) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", report.display()));
            }
            Ok(()) | Err(_) => {}
        }
        let log = self.folder.join(format!("{:02}.log", index + 1));
        let mut command = self.command(&report, &spec.focus(suite));
        command.arg(format!("--ginkgo.timeout={}s", LIMIT.as_secs()));
        client::prepare(&mut command)?;
        let begin = Instant::now();
        let mut child = Running(self.spawn(command, &log)?);
        let status = child.wait(begin)?;
        let seconds = begin.elapsed().as_secs_f64();
        let failed = |message: String| End::Failed { message, printed: last_lines(&log) };
        let end = match status {
            Some(status) => match read(&report).and_then(|report| specs::ended(&report, spec)) {
                Ok(Some(end)) => end,
                Ok(None) => failed(format!("it was not run ({status})")),
                Err(error) => failed(format!("{status}: {error:#}")),
            },
            None => failed(format!("it did not end within {:?}", LIMIT + GRACE)),
        };
        Ok(Outcome { spec: spec.clone(), end, seconds })
    }

    fn command(&self, report: &Path, focus: &str) -> Command {
        let mut command = Command::new(&self.path);
        // No cloud provider. The framework looks for the server's address and credentials in KUBECONFIG.
        command.args(["--provider=skeleton", "--ginkgo.no-color", "--ginkgo.focus", focus]);
        command.arg("--ginkgo.json-report").arg(report).current_dir(&self.folder);
        command
    }

    fn spawn(&self, mut command: Command, log: &Path) -> Result<Child> {
        let output = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let errors = output.try_clone().context("dup")?;
        // A group of its own: Ctrl-C in the terminal is for this command, which ends the specs.
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        command.spawn().with_context(|| format!("cannot start {}", self.path.display()))
    }
}

/// A process that does not outlive its value.
struct Running(Child);

impl Running {
    /// Its status, or none if it took too long.
    fn wait(&mut self, begin: Instant) -> Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.0.try_wait().context("waitpid")? {
                return Ok(Some(status));
            }
            if interrupt::requested() {
                bail!(Interrupted);
            }
            if begin.elapsed() > LIMIT + GRACE {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let (Ok(None), Ok(group)) = (self.0.try_wait(), i32::try_from(self.0.id())) {
            // It may end by itself in between, and that is as good.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

fn read(report: &Path) -> Result<Vec<u8>> {
    std::fs::read(report).with_context(|| format!("cannot read {}", report.display()))
}

/// The end of a log, which is all that there is of a process that has left no report.
fn last_lines(log: &Path) -> String {
    const LINES: usize = 20;
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
