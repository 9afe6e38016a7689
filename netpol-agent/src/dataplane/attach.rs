//! The programs on devices: two on a pod's host-side veth, one on every other device by which a packet can leave.
//!
//! What the pod sends is judged at TC *ingress* of its veth, what it receives at TC *egress*; what had to be deferred
//! is judged at TC egress of the device by which it leaves (decisions D2, D6). Where the kernel has TCX (6.6 and later),
//! each is a pinned link, first in its chain; else a clsact filter with a fixed priority and handle, which survives the
//! agent by itself. Both are adopted at the next start and never leave a moment without a program: a link's program is
//! exchanged in place, a filter is replaced. Other people's programs, filters and qdiscs are neither removed nor
//! reordered among themselves.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, TcError, tc};
use netpol_common::abi::programs;

use super::pins::{PinError, Pins};
use super::sys::{self, SyscallError, TcxHook};

/// Priority of our clsact filter: 1 is the first that runs.
const CLSACT_PRIORITY: u16 = 1;
/// Handles of our clsact filters, so that the next agent finds them. A device that becomes a pod's has both programs of
/// its egress hook for a moment.
const CLSACT_HANDLES: [u32; 2] = [0x6e70_0001, 0x6e70_0002];
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

/// A TC program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// Judges what a pod sends.
    PodEgress,
    /// Judges what a pod receives.
    PodIngress,
    /// Judges what pods send by its real destination, where it leaves by a device that is no pod's.
    HostEgress,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PodEgress, Self::PodIngress, Self::HostEgress];

    /// Its name in the object, and the name of its pin.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PodEgress => programs::POD_EGRESS,
            Self::PodIngress => programs::POD_INGRESS,
            Self::HostEgress => programs::HOST_EGRESS,
        }
    }

    /// Pin name of its second copy.
    #[must_use]
    pub const fn twin_name(self) -> &'static str {
        match self {
            Self::PodEgress => "pod_egress_twin",
            Self::PodIngress => "pod_ingress_twin",
            Self::HostEgress => "host_egress_twin",
        }
    }

    /// How the pins of its links end.
    #[must_use]
    pub const fn link_suffix(self) -> &'static str {
        match self {
            Self::PodEgress => "eg",
            Self::PodIngress => "in",
            Self::HostEgress => "he",
        }
    }

    /// The TC hook, as seen from the device: what a pod sends comes in by its veth.
    const fn tcx_hook(self) -> TcxHook {
        match self {
            Self::PodEgress => TcxHook::Ingress,
            Self::PodIngress | Self::HostEgress => TcxHook::Egress,
        }
    }

    const fn tc_hook(self) -> TcAttachType {
        match self {
            Self::PodEgress => TcAttachType::Ingress,
            Self::PodIngress | Self::HostEgress => TcAttachType::Egress,
        }
    }

    const fn clsact_handle(self) -> u32 {
        match self {
            Self::PodEgress | Self::PodIngress => CLSACT_HANDLES[0],
            Self::HostEgress => CLSACT_HANDLES[1],
        }
    }
}

/// What a device is to us, which says what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The host side of a pod's veth.
    Pod,
    /// Any other device by which packets of pods can leave.
    Host,
}

impl Role {
    /// The programs that such a device carries.
    #[must_use]
    pub const fn programs(self) -> &'static [Program] {
        match self {
            Self::Pod => &[Program::PodEgress, Program::PodIngress],
            Self::Host => &[Program::HostEgress],
        }
    }
}

/// A loaded program.
#[derive(Debug)]
struct Loaded {
    program: Program,
    fd: OwnedFd,
    id: u32,
    classifier: SchedClassifier,
    /// The same program once more: a program can be in a chain only once, so to go first again without a moment of
    /// absence, its twin is put in front before it is taken away. Loaded when that happens first.
    twin: Option<Twin>,
}

#[derive(Debug)]
struct Twin {
    fd: OwnedFd,
    id: u32,
}

impl Twin {
    /// `None` if it was never needed.
    fn open(pins: &Pins, program: Program) -> Result<Option<Self>, AttachError> {
        let path = pins.program(program.twin_name());
        if !path.exists() {
            return Ok(None);
        }
        let fd = sys::open_pinned(&path)?;
        let id = sys::program_info(fd.as_fd())?.id;
        Ok(Some(Self { fd, id }))
    }
}

impl Loaded {
    fn open(pins: &Pins, program: Program) -> Result<Self, AttachError> {
        let path = pins.program(program.name());
        let fd = sys::open_pinned(&path)?;
        let id = sys::program_info(fd.as_fd())?.id;
        let twin = Twin::open(pins, program)?;
        Ok(Self { program, fd, id, classifier: SchedClassifier::from_pin(&path)?, twin })
    }

    fn is(&self, id: u32) -> bool {
        id == self.id || self.twin.as_ref().is_some_and(|twin| id == twin.id)
    }
}

/// Attaches and checks the programs.
#[derive(Debug)]
pub struct Attacher {
    mechanism: Mechanism,
    loaded: Vec<Loaded>,
}

impl Attacher {
    /// Opens the pinned programs.
    pub fn open(pins: &Pins, mechanism: Mechanism) -> Result<Self, AttachError> {
        let loaded = Program::ALL.into_iter().map(|program| Loaded::open(pins, program)).collect::<Result<_, _>>()?;
        Ok(Self { mechanism, loaded })
    }

    /// Whether second copies are needed to go first, and were not loaded yet.
    pub fn needs_twins(&self) -> bool {
        self.mechanism == Mechanism::Tcx && self.loaded.iter().any(|loaded| loaded.twin.is_none())
    }

    /// Opens the second copies that were pinned since.
    pub fn open_twins(&mut self, pins: &Pins) -> Result<(), AttachError> {
        for loaded in &mut self.loaded {
            loaded.twin = Twin::open(pins, loaded.program)?;
        }
        Ok(())
    }

    fn of(&self, role: Role) -> impl Iterator<Item = &Loaded> {
        self.loaded.iter().filter(move |loaded| role.programs().contains(&loaded.program))
    }

    /// How programs are attached.
    #[must_use]
    pub const fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Attaches what an interface of this role carries, or adopts what an earlier agent attached.
    pub fn attach(&mut self, pins: &Pins, ifindex: u32, role: Role) -> Result<(), AttachError> {
        for loaded in self.loaded.iter_mut().filter(|loaded| role.programs().contains(&loaded.program)) {
            match self.mechanism {
                Mechanism::Tcx => attach_tcx(pins, ifindex, loaded)?,
                Mechanism::Clsact => attach_clsact(ifindex, loaded)?,
            }
        }
        Ok(())
    }

    /// Takes what belongs to a role off an interface. A device that is gone took it along; its pins go either way.
    pub fn detach(&self, pins: &Pins, ifindex: u32, role: Role) -> Result<(), AttachError> {
        for program in role.programs() {
            Pins::remove(&pins.link(ifindex, *program))?;
            if self.mechanism == Mechanism::Clsact
                && let Some(name) = interface_name(ifindex)
            {
                detach_filter(&name, *program)?;
            }
        }
        Ok(())
    }

    /// Puts our programs in front of those that were attached before them. With clsact, priority 1 is in front already;
    /// who shares it comes in the order of handles, which attaching again does not change.
    pub fn go_first(&self, pins: &Pins, ifindex: u32, role: Role) -> Result<(), AttachError> {
        if self.mechanism == Mechanism::Clsact {
            return Ok(());
        }
        for loaded in self.of(role) {
            let hook = loaded.program.tcx_hook();
            let ids = sys::tcx_query(ifindex, hook)?;
            if ids.first().is_none_or(|id| loaded.is(*id)) {
                continue;
            }
            let other = match &loaded.twin {
                Some(twin) if ids.contains(&loaded.id) => &twin.fd,
                Some(_) | None => &loaded.fd,
            };
            let link = sys::tcx_link_create(other.as_fd(), ifindex, hook)?;
            let path = pins.link(ifindex, loaded.program);
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

    /// Where our programs are in the TCX chains of an interface: the worst of them. A clsact filter cannot be
    /// asked for by program id without CAP_SYS_ADMIN; attaching it again replaces it in place, or puts it back.
    pub fn place(&self, ifindex: u32, role: Role) -> Result<Place, AttachError> {
        let mut worst = Place::First;
        for loaded in self.of(role) {
            let ids = sys::tcx_query(ifindex, loaded.program.tcx_hook())?;
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
    let path = pins.link(ifindex, loaded.program);
    let hook = loaded.program.tcx_hook();
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
    for program in Program::ALL {
        match tc::qdisc_detach_program(&name, program.tc_hook(), program.name()) {
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
    let hook = loaded.program.tc_hook();
    let handle = TcHandle::from(loaded.program.clsact_handle());
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

fn detach_filter(name: &str, program: Program) -> Result<(), AttachError> {
    let handle = TcHandle::from(program.clsact_handle());
    match SchedClassifierLink::attached(name, program.tc_hook(), CLSACT_PRIORITY, handle, None) {
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
