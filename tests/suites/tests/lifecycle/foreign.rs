//! Somebody else's TCX program on a pod's veth: two instructions that end the chain with "pass".

use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya::programs;
use netpol_agent::dataplane::sys::{self, TcxHook};
use netpol_suites::kernel::{self, Feature};
use netpol_testbed::node::Node;

const PIN: &str = "/sys/fs/bpf/foreign";

/// `BPF_PROG_TYPE_SCHED_CLS` and `BPF_PROG_LOAD`.
const SCHED_CLS: u32 = 3;
const PROG_LOAD: libc::c_int = 5;

/// `r0 = 0; exit`: TCX_PASS, after which no other program runs.
const PASS: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];

#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u64; 3],
}

fn load() -> Result<OwnedFd> {
    let mut attribute = Load {
        prog_type: SCHED_CLS,
        insn_cnt: PASS.len() as u32,
        insns: PASS.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: a live attribute of the size that is passed; the instructions are constants.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw mut attribute, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("bpf(BPF_PROG_LOAD)");
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The index of an interface of the namespace that the caller is in.
pub(crate) fn index(interface: &str) -> Result<u32> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: a NUL-terminated name.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()).context("if_nametoindex"),
        index => Ok(index),
    }
}

/// Attaches the foreign program in front of ours, where the pod receives.
pub(crate) fn put_ahead(node: &Node, interface: &str) {
    node.place()
        .run(|| {
            let program = load()?;
            sys::pin(program.as_fd(), format!("{PIN}-program").as_ref())?;
            let link = sys::tcx_link_create(program.as_fd(), index(interface)?, TcxHook::Egress)?;
            Ok(sys::pin(link.as_fd(), PIN.as_ref())?)
        })
        .unwrap();
}

fn ids(node: &Node, interface: &str) -> Result<(Vec<u32>, Option<u32>)> {
    node.place().run(|| {
        let foreign = sys::open_pinned(format!("{PIN}-program").as_ref()).ok();
        let foreign = foreign.map(|program| sys::program_info(program.as_fd())).transpose()?.map(|info| info.id);
        Ok((sys::tcx_query(index(interface)?, TcxHook::Egress)?, foreign))
    })
}

/// Whether the foreign program runs first.
pub(crate) fn is_first(node: &Node, interface: &str) -> Result<bool> {
    let (ids, foreign) = ids(node, interface)?;
    Ok(ids.first().copied() == foreign)
}

/// Whether the foreign program is still attached.
pub(crate) fn is_there(node: &Node, interface: &str) -> Result<bool> {
    let (ids, foreign) = ids(node, interface)?;
    Ok(foreign.is_some_and(|foreign| ids.contains(&foreign)))
}

/// Number of TCX programs on an interface, both hooks together: none where the kernel has no such hooks.
pub(crate) fn count(node: &Node, interface: &str) -> Result<usize> {
    if !kernel::has(Feature::Tcx) {
        return Ok(0);
    }
    node.place().run(|| {
        let index = index(interface)?;
        Ok(sys::tcx_query(index, TcxHook::Ingress)?.len() + sys::tcx_query(index, TcxHook::Egress)?.len())
    })
}

/// Names of the TCX programs at a hook of an interface, in the order they run.
pub(crate) fn names(node: &Node, interface: &str, side: &str) -> Result<Vec<String>> {
    let hook = match side {
        "ingress" => TcxHook::Ingress,
        _ => TcxHook::Egress,
    };
    node.place().run(|| {
        let mut names = Vec::new();
        for id in sys::tcx_query(index(interface)?, hook)? {
            names.push(
                programs::loaded_programs().flatten().find(|known| known.id() == id).map_or_else(
                    || format!("program {id}"),
                    |known| known.name_as_str().unwrap_or_default().to_owned(),
                ),
            );
        }
        Ok(names)
    })
}
