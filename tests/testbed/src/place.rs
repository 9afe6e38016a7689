//! Where something runs: in the caller's own namespaces, or in other ones.
//!
//! A socket belongs to the network namespace of the thread that makes it, and a namespace is a thread's, not a
//! process's. So what has to be done elsewhere is done by a thread of its own, which never comes back into a pool.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace and a mount namespace, each by the file that holds it open; none for the caller's own.
#[derive(Clone, Debug, Default)]
pub struct Place {
    network: Option<PathBuf>,
    mounts: Option<PathBuf>,
}

impl Place {
    /// The network namespace that a file such as `/run/netns/name` stands for, with the caller's mounts.
    #[must_use]
    pub fn namespace(path: &Path) -> Self {
        Self { network: Some(path.to_owned()), mounts: None }
    }

    /// The same network namespace, with the mounts of another mount namespace.
    #[must_use]
    pub fn with_mounts(self, path: &Path) -> Self {
        Self { mounts: Some(path.to_owned()), ..self }
    }

    /// The file that holds the network namespace open, if it is not the caller's.
    #[must_use]
    pub fn network(&self) -> Option<&Path> {
        self.network.as_deref()
    }

    /// Runs `work` on a thread in this place.
    ///
    /// # Errors
    /// The namespaces cannot be entered, `work` fails, or it panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread.join().unwrap_or_else(|_panic| Err(anyhow!("a thread in another namespace panicked")))
        })
    }

    /// Makes the calling thread run in this place from now on.
    ///
    /// # Errors
    /// A namespace is gone, or the caller may not enter it (CAP_SYS_ADMIN).
    pub fn enter(&self) -> Result<()> {
        self.open()?.join().with_context(|| format!("setns({self:?})"))
    }

    /// Makes a command start in this place.
    ///
    /// # Errors
    /// A namespace is gone.
    pub fn prepare(&self, command: &mut Command) -> Result<()> {
        let opened = self.open()?;
        // SAFETY: between fork and exec only setns and unshare are called, which are system calls, on descriptors that
        // the closure owns.
        unsafe { command.pre_exec(move || Ok(opened.join()?)) };
        Ok(())
    }

    fn open(&self) -> Result<Opened> {
        let open = |path: &Option<PathBuf>| {
            let open = |path: &PathBuf| File::open(path).with_context(|| format!("cannot open {}", path.display()));
            path.as_ref().map(open).transpose()
        };
        Ok(Opened { network: open(&self.network)?, mounts: open(&self.mounts)? })
    }
}

struct Opened {
    network: Option<File>,
    mounts: Option<File>,
}

impl Opened {
    fn join(&self) -> nix::Result<()> {
        let Self { network, mounts } = self;
        if let Some(network) = network {
            setns(network, CloneFlags::CLONE_NEWNET)?;
        }
        if let Some(mounts) = mounts {
            // The kernel refuses another mount namespace to a thread that shares its root and working directory.
            unshare(CloneFlags::CLONE_FS)?;
            setns(mounts, CloneFlags::CLONE_NEWNS)?;
        }
        Ok(())
    }
}
