//! Where the datapath lives between two runs of the agent, and who may touch it.
//!
//! ```text
//! <bpf root>/netpol-agent/            locked while an agent runs
//!   v<ABI>/maps/<NAME>
//!   v<ABI>/programs/<name>
//!   v<ABI>/links/<ifindex>-<in|eg|he> TCX links only; clsact filters stay on their qdisc by themselves
//! ```
//! Names hold no dots: bpffs refuses them. The layout of this directory never changes, so that any version finds what
//! another one left (decision D14).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use netpol_common::abi::ABI_VERSION;

use super::attach::Program;

/// A pin could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// An operation on the directory failed.
    #[error("{operation} {path}: {source}", path = path.display())]
    Io {
        /// Which.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent runs on this node.
    #[error("another netpol-agent holds the lock on {path}", path = path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The root is not a BPF file system.
    #[error("{path} is no BPF file system: mount one with `mount -t bpf bpf {path}`", path = path.display())]
    NotBpffs {
        /// The root.
        path: PathBuf,
    },
}

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The pin directory of this ABI, and the lock on it.
#[derive(Debug)]
pub struct Pins {
    base: PathBuf,
    version: PathBuf,
    _lock: File,
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |source| PinError::Io { operation, path, source }
}

impl Pins {
    /// Creates the directories where they are missing and takes the lock.
    pub fn open(root: &Path) -> Result<Self, PinError> {
        require_bpffs(root)?;
        let base = root.join("netpol-agent");
        let version = base.join(format!("v{ABI_VERSION}"));
        for directory in ["maps", "programs", "links"] {
            let path = version.join(directory);
            fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        }
        let lock = File::open(&base).map_err(io_error("open", &base))?;
        // SAFETY: a plain call on a descriptor that is open.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let error = io::Error::last_os_error();
            return Err(if error.kind() == io::ErrorKind::WouldBlock {
                PinError::Locked { path: base }
            } else {
                PinError::Io { operation: "flock", path: base, source: error }
            });
        }
        Ok(Self { base, version, _lock: lock })
    }

    /// Path of a map.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.version.join("maps").join(name)
    }

    /// Path of a program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.version.join("programs").join(name)
    }

    /// Path of the link that attaches a program to an interface.
    #[must_use]
    pub fn link(&self, ifindex: u32, program: Program) -> PathBuf {
        self.version.join("links").join(format!("{ifindex}-{}", program.link_suffix()))
    }

    /// Interfaces that have a pinned link.
    pub fn linked_interfaces(&self) -> Result<Vec<u32>, PinError> {
        let path = self.version.join("links");
        let mut found: Vec<u32> = fs::read_dir(&path)
            .map_err(io_error("list", &path))?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.split('-').next()?.parse().ok())
            .collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Removes a pin; absent is fine.
    pub fn remove(path: &Path) -> Result<(), PinError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes what every version of the agent left here. The kernel detaches TCX links with their last pin.
    pub fn remove_all(self) -> Result<(), PinError> {
        fs::remove_dir_all(&self.base).map_err(io_error("remove", &self.base))
    }

    /// Removes the maps and programs of this ABI, so that a new set can be built. Links keep what they use alive.
    pub fn remove_objects(&self) -> Result<(), PinError> {
        for directory in ["maps", "programs"] {
            let path = self.version.join(directory);
            for entry in fs::read_dir(&path).map_err(io_error("list", &path))?.flatten() {
                Self::remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn require_bpffs(root: &Path) -> Result<(), PinError> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(root.as_os_str().as_bytes())
        .map_err(|error| io_error("statfs", root)(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    // SAFETY: statfs is plain data, for which zeroes are valid.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path and a buffer of the right type, both alive.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Err(io_error("statfs", root)(io::Error::last_os_error()));
    }
    if stat.f_type & 0xffff_ffff == BPF_FS_MAGIC { Ok(()) } else { Err(PinError::NotBpffs { path: root.to_owned() }) }
}
