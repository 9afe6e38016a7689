//! Namespaces that live as long as a descriptor of this process: without names, so that nothing has to be removed.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::command;
use crate::place::Place;

/// A network namespace; it is gone when this value, other files that hold it, its sockets and the processes in it are.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes a namespace with loopback up.
    ///
    /// # Errors
    /// The caller may not (CAP_SYS_ADMIN), or the kernel has no memory left.
    pub fn new() -> Result<Self> {
        let file = made(CloneFlags::CLONE_NEWNET, || File::open("/proc/thread-self/ns/net").context("open ns/net"))?;
        let namespace = Self { file };
        let addressing = [
            // Addresses are usable at once, and nobody but us gives any.
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            // Inherited from the machine's own network in IPv4.
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ];
        namespace.set_sysctls(&addressing)?;
        command::ip(&namespace.place(), &["link set lo up".to_owned()])?;
        Ok(namespace)
    }

    /// A namespace that something else has made, by a file that stands for it, such as `/proc/…/ns/net` or one that a
    /// container runtime has mounted. It stays while this value does.
    #[must_use]
    pub const fn opened(file: File) -> Self {
        Self { file }
    }

    /// A file that stands for the namespace, for other programs (`nsenter --net=`, `ip link set … netns`).
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path(&self.file)
    }

    /// The namespace as a place, with the caller's mounts.
    #[must_use]
    pub fn place(&self) -> Place {
        Place::namespace(&self.path())
    }

    /// Sets parameters of the namespace, by their path below /proc/sys.
    ///
    /// # Errors
    /// A parameter does not exist or does not take the value.
    pub fn set_sysctls(&self, values: &[(&str, &str)]) -> Result<()> {
        self.place().run(|| {
            for (name, value) in values {
                let path = Path::new("/proc/sys").join(name);
                std::fs::write(&path, value).with_context(|| format!("{} = {value}", path.display()))?;
            }
            Ok(())
        })
    }
}

/// A mount namespace: the machine's files, but an own `/run` and an own BPF file system. Gone with this value and the
/// processes in it.
#[derive(Debug)]
pub struct Mounts {
    file: File,
}

impl Mounts {
    /// Makes it.
    ///
    /// # Errors
    /// The caller may not (CAP_SYS_ADMIN), or the kernel has no BPF file system.
    pub fn new() -> Result<Self> {
        let file = made(CloneFlags::CLONE_NEWNS, || {
            let none = None::<&str>;
            // What is mounted here must not be seen outside, but what the machine unmounts should go here too.
            mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).context("mount --make-rslave /")?;
            mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
                .context("mount -t bpf /sys/fs/bpf")?;
            let nothing_special = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("tmpfs"), "/run", Some("tmpfs"), nothing_special, Some("mode=755"))
                .context("mount -t tmpfs /run")?;
            File::open("/proc/thread-self/ns/mnt").context("open ns/mnt")
        })?;
        Ok(Self { file })
    }

    /// A file that stands for the namespace (`nsenter --mount=`).
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path(&self.file)
    }
}

fn path(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// Runs `work` on a thread that has namespaces of its own.
fn made(flags: CloneFlags, work: impl FnOnce() -> Result<File> + Send) -> Result<File> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(flags).with_context(|| format!("unshare({flags:?})"))?;
            work()
        });
        thread.join().unwrap_or_else(|_panic| Err(anyhow!("a thread in a new namespace panicked")))
    })
}
