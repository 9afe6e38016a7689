//! The two programs on a pod's host-side veth.
//!
//! What the pod sends is judged at TC *ingress* of its veth, what it receives at TC *egress* (decision D2). Where the
//! kernel has TCX (6.6 and later), each is a pinned link, first in its chain; else a clsact filter with a fixed priority
//! and handle, which survives the agent by itself. Both are adopted at the next start and never leave a moment without
//! a program: a link's program is exchanged in place, a filter is replaced. Other people's programs, filters and qdiscs
//! are neither removed nor reordered among themselves.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, TcError, tc};
use netpol_common::abi::{Direction, programs};

use super::pins::{PinError, Pins};
use super::sys::{self, SyscallError, TcxHook};

/// Priority of our clsact filter: 1 is the first that runs.
const CLSACT_PRIORITY: u16 = 1;
/// Handle of our clsact filter, so that the next agent finds it.
const CLSACT_HANDLE: u32 = 0x6e70_0001;
/// `BPF_LINK_TYPE_TCX`.
const LINK_TYPE_TCX: u32 = 11;

/// How programs are attached on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// TCX links.
    Tcx,
    /// Filters on a clsact qdisc.
    Clsact,
}

impl Mechanism {
    /// Asks the kernel. A kernel without TCX refuses the query with EINVAL, and so does one of 6.6 or later that was
    /// built without `CONFIG_NET_XGRESS`, which is why the version is not asked.
    #[must_use]
    pub fn probe() -> Self {
        // Every network namespace has its loopback device at index 1.
        const LOOPBACK: u32 = 1;
        match sys::tcx_query(LOOPBACK, TcxHook::Ingress) {
            Ok(_) => Self::Tcx,
            Err(_) => Self::Clsact,
        }
    }
}

/// A program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A raw call failed.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// A pin failed.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// aya refused or the kernel did.
    #[error("clsact filter: {0}")]
    Clsact(#[from] ProgramError),
    /// The qdisc could not be made.
    #[error("clsact qdisc: {0}")]
    Qdisc(#[from] TcError),
    /// The device has no name any more: it is gone.
    #[error("interface {0} is gone")]
    Gone(u32),
}

/// Place of our program among those of its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It runs first.
    First,
    /// Others run before it and can keep packets from it.
    Behind,
    /// It is not there.
    Missing,
}

/// A loaded program of one direction.
#[derive(Debug)]
struct Loaded {
    direction: Direction,
    fd: OwnedFd,
    id: u32,
    classifier: SchedClassifier,
    /// The same program once more: a program can be in a chain only once, so to go first again without a moment of
    /// absence, its twin is put in front before it is taken away.
    twin: OwnedFd,
    twin_id: u32,
}

impl Loaded {
    const fn is(&self, id: u32) -> bool {
        id == self.id || id == self.twin_id
    }
}

/// Attaches and checks the programs.
#[derive(Debug)]
pub struct Attacher {
    mechanism: Mechanism,
    loaded: [Loaded; 2],
}

/// TC hook, as seen from the veth, that judges a direction, as seen from the pod.
const fn tcx_hook(direction: Direction) -> TcxHook {
    match direction {
        Direction::Ingress => TcxHook::Egress,
        Direction::Egress => TcxHook::Ingress,
    }
}

const fn tc_hook(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Ingress => TcAttachType::Egress,
        Direction::Egress => TcAttachType::Ingress,
    }
}

/// Pin name of the second copy of a program.
#[must_use]
pub const fn twin_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "pod_ingress_twin",
        Direction::Egress => "pod_egress_twin",
    }
}

/// Name of the program that judges a direction.
#[must_use]
pub const fn program_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => programs::POD_INGRESS,
        Direction::Egress => programs::POD_EGRESS,
    }
}

impl Attacher {
    /// Opens the pinned programs.
    pub fn open(pins: &Pins, mechanism: Mechanism) -> Result<Self, AttachError> {
        let open = |direction| -> Result<Loaded, AttachError> {
            let path = pins.program(program_name(direction));
            let fd = sys::open_pinned(&path)?;
            let id = sys::program_info(fd.as_fd())?.id;
            let twin = sys::open_pinned(&pins.program(twin_name(direction)))?;
            let twin_id = sys::program_info(twin.as_fd())?.id;
            Ok(Loaded { direction, fd, id, classifier: SchedClassifier::from_pin(&path)?, twin, twin_id })
        };
        Ok(Self { mechanism, loaded: [open(Direction::Egress)?, open(Direction::Ingress)?] })
    }

    /// How programs are attached.
    #[must_use]
    pub const fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Attaches both programs to an interface, or adopts what an earlier agent attached.
    pub fn attach(&mut self, pins: &Pins, ifindex: u32) -> Result<(), AttachError> {
        for loaded in &mut self.loaded {
            match self.mechanism {
                Mechanism::Tcx => attach_tcx(pins, ifindex, loaded)?,
                Mechanism::Clsact => attach_clsact(ifindex, loaded)?,
            }
        }
        Ok(())
    }

    /// Takes both programs off an interface. A device that is gone took them along; its pins go either way.
    pub fn detach(&mut self, pins: &Pins, ifindex: u32) -> Result<(), AttachError> {
        for loaded in &self.loaded {
            Pins::remove(&pins.link(ifindex, loaded.direction))?;
            if self.mechanism == Mechanism::Clsact
                && let Some(name) = interface_name(ifindex)
            {
                detach_clsact(&name, loaded.direction)?;
            }
        }
        Ok(())
    }

    /// Puts our programs in front of those that were attached before them. With clsact, priority 1 is in front already;
    /// who shares it comes in the order of handles, which attaching again does not change.
    pub fn go_first(&self, pins: &Pins, ifindex: u32) -> Result<(), AttachError> {
        if self.mechanism == Mechanism::Clsact {
            return Ok(());
        }
        for loaded in &self.loaded {
            let hook = tcx_hook(loaded.direction);
            let ids = sys::tcx_query(ifindex, hook)?;
            if ids.first().is_none_or(|id| loaded.is(*id)) {
                continue;
            }
            let other = if ids.contains(&loaded.id) { &loaded.twin } else { &loaded.fd };
            let link = sys::tcx_link_create(other.as_fd(), ifindex, hook)?;
            let path = pins.link(ifindex, loaded.direction);
            let new = path.with_file_name(format!("{ifindex}-new"));
            Pins::remove(&new)?;
            sys::pin(link.as_fd(), &new)?;
            // The link that was pinned there loses its last holder and leaves the chain.
            std::fs::rename(&new, &path).map_err(|source| PinError::Io {
                operation: "rename",
                path: new.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Where our programs are in the TCX chains of an interface: the worse of both directions. A clsact filter cannot be
    /// asked for by program id without CAP_SYS_ADMIN; attaching it again replaces it in place, or puts it back.
    pub fn place(&self, ifindex: u32) -> Result<Place, AttachError> {
        let mut worst = Place::First;
        for loaded in &self.loaded {
            let ids = sys::tcx_query(ifindex, tcx_hook(loaded.direction))?;
            let place = match ids.iter().position(|id| loaded.is(*id)) {
                Some(0) => Place::First,
                Some(_) => Place::Behind,
                None => Place::Missing,
            };
            worst = match (worst, place) {
                (Place::Missing, _) | (_, Place::Missing) => Place::Missing,
                (Place::Behind, _) | (_, Place::Behind) => Place::Behind,
                (Place::First, Place::First) => Place::First,
            };
        }
        Ok(worst)
    }
}

fn attach_tcx(pins: &Pins, ifindex: u32, loaded: &Loaded) -> Result<(), AttachError> {
    let path = pins.link(ifindex, loaded.direction);
    let hook = tcx_hook(loaded.direction);
    if let Ok(link) = sys::open_pinned(&path) {
        let info = sys::link_info(link.as_fd())?;
        if info.link_type == LINK_TYPE_TCX && info.ifindex == ifindex && info.attach_type == hook as u32 {
            if loaded.is(info.prog_id) {
                return Ok(());
            }
            match sys::link_update(link.as_fd(), loaded.fd.as_fd()) {
                // The device went and its index came back between two looks: the link is dead.
                Err(error) if error.errno() == Some(libc::ENOLINK) => {}
                other => return other.map_err(Into::into),
            }
        }
        Pins::remove(&path)?;
    }
    let link = sys::tcx_link_create(loaded.fd.as_fd(), ifindex, hook)?;
    sys::pin(link.as_fd(), &path)?;
    Ok(())
}

/// Takes our filters off an interface, if it bears any: they are known by priority, handle and name.
pub fn detach_filters(ifindex: u32) -> Result<(), AttachError> {
    let Some(name) = interface_name(ifindex) else { return Ok(()) };
    for direction in [Direction::Ingress, Direction::Egress] {
        match tc::qdisc_detach_program(&name, tc_hook(direction), program_name(direction)) {
            Err(TcError::IoError(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            // Without a clsact qdisc there is no filter.
            Err(TcError::NetlinkError(error))
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::EOPNOTSUPP)) => {}
            other => other?,
        }
    }
    Ok(())
}

/// The current name of an interface. aya attaches by name, so a rename in between fails, and the caller tries again.
pub(crate) fn interface_name(ifindex: u32) -> Option<String> {
    let mut buffer = [0; libc::IF_NAMESIZE];
    // SAFETY: a buffer of IF_NAMESIZE bytes, as the call wants.
    let name = unsafe { libc::if_indextoname(ifindex, buffer.as_mut_ptr()) };
    if name.is_null() {
        return None;
    }
    // SAFETY: the call returned the buffer, NUL-terminated.
    Some(unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

fn attach_clsact(ifindex: u32, loaded: &mut Loaded) -> Result<(), AttachError> {
    let name = interface_name(ifindex).ok_or(AttachError::Gone(ifindex))?;
    match tc::qdisc_add_clsact(&name) {
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        other => other?,
    }
    let hook = tc_hook(loaded.direction);
    let handle = TcHandle::from(CLSACT_HANDLE);
    let options = NlOptions { priority: CLSACT_PRIORITY, handle, ..NlOptions::default() };
    let id = match loaded.classifier.attach_with_options(&name, hook, TcAttachOptions::Netlink(options)) {
        Ok(id) => id,
        // One of an earlier agent: replaced in place.
        Err(ProgramError::TcError(TcError::NetlinkError(error))) if error.raw_os_error() == Some(libc::EEXIST) => {
            let link = SchedClassifierLink::attached(&name, hook, CLSACT_PRIORITY, handle, None)
                .map_err(|_gone| AttachError::Gone(ifindex))?;
            loaded.classifier.attach_to_link(link)?
        }
        Err(error) => return Err(error.into()),
    };
    // aya detaches the filter when its link is dropped; ours has to outlive the agent.
    std::mem::forget(loaded.classifier.take_link(id)?);
    Ok(())
}

fn detach_clsact(name: &str, direction: Direction) -> Result<(), AttachError> {
    let handle = TcHandle::from(CLSACT_HANDLE);
    match SchedClassifierLink::attached(name, tc_hook(direction), CLSACT_PRIORITY, handle, None) {
        Ok(link) => {
            use aya::programs::links::Link as _;
            match link.detach() {
                // Without filter or qdisc there is nothing to take off.
                Err(ProgramError::NetlinkError(error))
                    if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) =>
                {
                    Ok(())
                }
                other => other.map_err(Into::into),
            }
        }
        // The device is gone.
        Err(_) => Ok(()),
    }
}
