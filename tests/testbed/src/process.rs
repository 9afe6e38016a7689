//! A daemon, which never outlives the test that started it.
//!
//! `PR_SET_PDEATHSIG` ends the child with the *thread* that started it, and the test harness ends a thread with each
//! test. So children are started by one thread that lives as long as the process, and die with the process even if it
//! is killed; until then their owner's `Drop` ends them.

use std::fs::File;
use std::io::Error;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::place::Place;

/// How long a daemon has to end by itself before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running daemon; dropping it ends it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` in `place`; what it prints is appended to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, mut command: Command, place: &Place, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("cannot open {}", log.display()))?;
        let errors = output.try_clone().context("dup")?;
        // A group of its own: Ctrl-C in a terminal goes to the foreground group, and the order of the end is ours.
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        place.prepare(&mut command)?;
        let child = spawn(command).with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Fails if the process has ended.
    ///
    /// # Errors
    /// It has; the message has the last lines that it printed.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait().context("waitpid")? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}\n{}", self.name, self.tail()),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The last lines that the process printed.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Ends the process: asks first, then kills.
    pub fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(20)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        self.kill();
    }

    /// Ends the process as a crash would.
    pub fn kill(&mut self) {
        // Both fail only if the process has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn signal(&self, signal: i32) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        // SAFETY: kill takes two integers. The child has not been waited for, so its id is not another's.
        unsafe { libc::kill(pid, signal) };
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.stop();
        }
    }
}

type Order = (Command, Sender<std::io::Result<Child>>);

/// Starts a child from the thread that lives as long as the process.
fn spawn(mut command: Command) -> Result<Child> {
    static STARTER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    // SAFETY: between fork and exec only prctl is called, with constants.
    unsafe { command.pre_exec(die_with_parent) };
    let starter = STARTER.get_or_init(|| {
        let (sender, orders) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in orders {
                // Whoever asked has gone; the child then dies with its handle unwaited, at the end of the process.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (answer, child) = channel();
    let order = starter.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer));
    order.map_err(|_closed| anyhow!("the thread that starts processes is gone"))?;
    Ok(child.recv().context("the thread that starts processes is gone")??)
}

fn die_with_parent() -> std::io::Result<()> {
    // SAFETY: prctl with PR_SET_PDEATHSIG takes a signal's number.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_gone_when_its_owner_is() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000");
        let mut process = Process::start("sleep", command, &Place::default(), &folder.path().join("log")).unwrap();
        let entry = PathBuf::from(format!("/proc/{}", process.child.id()));
        process.check().unwrap();
        assert!(entry.exists());
        drop(process);
        assert!(!entry.exists());
    }

    #[test]
    fn a_process_survives_the_thread_that_asked_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("1000");
            Process::start("sleep", command, &Place::default(), &log).unwrap()
        };
        let mut process = thread::scope(|scope| scope.spawn(start).join().unwrap());
        process.check().unwrap();
    }

    #[test]
    fn an_early_end_is_reported_with_what_was_printed() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("ls");
        command.arg("/nonexistent-file");
        let mut process = Process::start("ls", command, &Place::default(), &folder.path().join("log")).unwrap();
        process.child.wait().unwrap();
        let error = process.check().unwrap_err().to_string();
        assert!(error.contains("/nonexistent-file"), "{error}");
    }
}
