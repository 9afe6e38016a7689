//! Where the control plane's processes and their clients run: the caller's own network namespace, or a named one.
//!
//! A socket belongs to the namespace of the thread that makes it, and a namespace is a thread's, not a process's. So
//! what has to be done elsewhere is done by a thread of its own, which never comes back into a pool.

use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

/// A network namespace, by the file that holds it open; none for the caller's own.
#[derive(Clone, Debug, Default)]
pub struct Place {
    namespace: Option<PathBuf>,
}

impl Place {
    /// The namespace that a file such as `/run/netns/name` stands for.
    #[must_use]
    pub fn namespace(path: &Path) -> Self {
        Self { namespace: Some(path.to_owned()) }
    }

    /// Runs `work` on a thread in this place.
    ///
    /// # Errors
    /// The namespace cannot be entered, `work` fails, or it panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread.join().unwrap_or_else(|_panic| Err(anyhow!("a thread in another network namespace panicked")))
        })
    }

    /// Makes the calling thread run in this place from now on.
    ///
    /// # Errors
    /// The namespace is gone, or the caller may not enter it (CAP_SYS_ADMIN).
    pub fn enter(&self) -> Result<()> {
        if let Some(namespace) = self.open()? {
            join(&namespace).with_context(|| format!("setns({:?})", self.namespace))?;
        }
        Ok(())
    }

    /// Makes a command start in this place.
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn prepare(&self, command: &mut Command) -> Result<()> {
        if let Some(namespace) = self.open()? {
            // SAFETY: between fork and exec only setns is called, which is one system call, on a descriptor that the
            // closure owns.
            unsafe { command.pre_exec(move || join(&namespace)) };
        }
        Ok(())
    }

    fn open(&self) -> Result<Option<File>> {
        let Some(path) = &self.namespace else { return Ok(None) };
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Some(file))
    }
}

fn join(namespace: &File) -> std::io::Result<()> {
    // SAFETY: setns takes a descriptor, which lives as long as the borrow, and a constant.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}
