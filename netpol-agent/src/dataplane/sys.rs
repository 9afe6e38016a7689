//! The calls of bpf(2) that aya 0.14 does not offer: links by interface index and with a place in the chain, what is
//! attached by id, and maps in batches.
//!
//! Each struct is the part of `union bpf_attr` (include/uapi/linux/bpf.h) that its command reads; the kernel accepts a
//! shorter attribute and takes what is missing as zero.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// `BPF_F_BEFORE`: with no relative program or link, the first place in the chain (6.6, kernel commit 053c8e1f235d).
const BPF_F_BEFORE: u32 = 1 << 3;

/// A system call failed; the call's name is part of the error.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {source}")]
pub struct SyscallError {
    /// Which command of which system call.
    pub call: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl SyscallError {
    /// The errno, if there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// TCX attach points (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum TcxHook {
    /// `BPF_TCX_INGRESS`.
    Ingress = 46,
    /// `BPF_TCX_EGRESS`.
    Egress = 47,
}

fn bpf<T>(command: libc::c_int, call: &'static str, attribute: &mut T) -> Result<libc::c_long, SyscallError> {
    // SAFETY: `attribute` is a live repr(C) value, and its size is passed along with it. Pointers inside it are valid
    // for the length the same attribute states: each caller below builds both from one slice.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    if result < 0 { Err(SyscallError { call, source: io::Error::last_os_error() }) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor to us, nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_id: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches a program as the first of its chain by a TCX link.
pub fn tcx_link_create(program: BorrowedFd<'_>, ifindex: u32, hook: TcxHook) -> Result<OwnedFd, SyscallError> {
    let mut attribute = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_ifindex: ifindex,
        attach_type: hook as u32,
        flags: BPF_F_BEFORE,
        ..LinkCreate::default()
    };
    bpf(BPF_LINK_CREATE, "bpf(BPF_LINK_CREATE)", &mut attribute).map(owned)
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Replaces the program of a link, atomically: no packet sees the hook empty.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), SyscallError> {
    let mut attribute = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        ..LinkUpdate::default()
    };
    bpf(BPF_LINK_UPDATE, "bpf(BPF_LINK_UPDATE)", &mut attribute).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path, call: &'static str) -> Result<CString, SyscallError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| SyscallError { call, source: io::Error::new(io::ErrorKind::InvalidInput, error) })
}

/// Pins any BPF object.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<(), SyscallError> {
    const CALL: &str = "bpf(BPF_OBJ_PIN)";
    let path = c_path(path, CALL)?;
    let mut attribute =
        Object { pathname: path.as_ptr() as u64, bpf_fd: object.as_raw_fd() as u32, ..Object::default() };
    bpf(BPF_OBJ_PIN, CALL, &mut attribute).map(drop)
}

/// Opens a pinned BPF object.
pub fn open_pinned(path: &Path) -> Result<OwnedFd, SyscallError> {
    const CALL: &str = "bpf(BPF_OBJ_GET)";
    let path = c_path(path, CALL)?;
    let mut attribute = Object { pathname: path.as_ptr() as u64, ..Object::default() };
    bpf(BPF_OBJ_GET, CALL, &mut attribute).map(owned)
}

#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Ids of the programs in a TCX chain, in the order they run. Needs no more than CAP_NET_ADMIN, whereas opening a
/// program by id asks for CAP_SYS_ADMIN.
pub fn tcx_query(ifindex: u32, hook: TcxHook) -> Result<Vec<u32>, SyscallError> {
    // BPF_MPROG_MAX is 64 (kernel/bpf/mprog.c).
    let mut ids = [0_u32; 64];
    let mut attribute = ProgQuery {
        target_ifindex: ifindex,
        attach_type: hook as u32,
        prog_ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..ProgQuery::default()
    };
    let _zero = bpf(BPF_PROG_QUERY, "bpf(BPF_PROG_QUERY)", &mut attribute)?;
    let count = (attribute.count as usize).min(ids.len());
    Ok(ids[..count].to_vec())
}

#[repr(C)]
#[derive(Default)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The start of `struct bpf_link_info`, for a TCX link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkInfo {
    /// `enum bpf_link_type`; 11 is TCX.
    pub link_type: u32,
    /// Id of the link.
    pub id: u32,
    /// Id of its program.
    pub prog_id: u32,
    pad: u32,
    /// Interface; 0 once the device is gone.
    pub ifindex: u32,
    /// `enum bpf_attach_type`.
    pub attach_type: u32,
}

/// What a link is attached to.
pub fn link_info(link: BorrowedFd<'_>) -> Result<LinkInfo, SyscallError> {
    let mut info = LinkInfo::default();
    let mut attribute = Info {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    let _zero = bpf(BPF_OBJ_GET_INFO_BY_FD, "bpf(BPF_OBJ_GET_INFO_BY_FD)", &mut attribute)?;
    Ok(info)
}

/// The start of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramInfo {
    /// `enum bpf_prog_type`.
    pub program_type: u32,
    /// Id of the program.
    pub id: u32,
    /// SHA-1 (from 6.18 on SHA-256) of the instructions, cut to 8 bytes; maps are left out of it.
    pub tag: [u8; 8],
}

/// Id and tag of a program.
pub fn program_info(program: BorrowedFd<'_>) -> Result<ProgramInfo, SyscallError> {
    let mut info = ProgramInfo::default();
    let mut attribute = Info {
        bpf_fd: program.as_raw_fd() as u32,
        info_len: size_of::<ProgramInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    let _zero = bpf(BPF_OBJ_GET_INFO_BY_FD, "bpf(BPF_OBJ_GET_INFO_BY_FD)", &mut attribute)?;
    Ok(info)
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads a whole hash map in batches. Elements that come and go meanwhile may be missed or seen twice.
pub fn lookup_batch<K: aya::Pod + Default, V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    mut each: impl FnMut(K, V),
) -> Result<(), SyscallError> {
    const CHUNK: usize = 4096;
    let mut keys = vec![K::default(); CHUNK];
    let mut values = vec![V::default(); CHUNK];
    // Opaque position: at most a key's size for any map type.
    let mut position = [0_u8; 256];
    let mut first = true;
    loop {
        let mut attribute = Batch {
            in_batch: if first { 0 } else { position.as_mut_ptr() as u64 },
            out_batch: position.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: CHUNK as u32,
            map_fd: map.as_raw_fd() as u32,
            ..Batch::default()
        };
        let done = match bpf(BPF_MAP_LOOKUP_BATCH, "bpf(BPF_MAP_LOOKUP_BATCH)", &mut attribute) {
            Ok(_) => false,
            Err(error) if error.errno() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        for (key, value) in keys.iter().zip(&values).take(attribute.count as usize) {
            each(*key, *value);
        }
        if done {
            return Ok(());
        }
        first = false;
    }
}
