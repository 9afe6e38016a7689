//! Programs of a few instructions, written by hand and loaded by the bare system call: for what is asked of a kernel
//! apart from the programs under test.

use std::ffi::CString;
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

/// Commands of bpf(2).
const MAP_CREATE: libc::c_long = 0;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
pub(super) const PROG_TEST_RUN: libc::c_long = 10;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;

const PROG_TYPE_SCHED_CLS: u32 = 3;
const MAP_TYPE_QUEUE: u32 = 22;

/// `src_reg` of a 64-bit constant that is a map's descriptor.
const PSEUDO_MAP_FD: u8 = 1;

/// What a program returns.
pub const R0: u8 = 0;
/// A program's context, and the first argument of a helper.
pub const R1: u8 = 1;
/// Arguments of helpers.
pub const R2: u8 = 2;
/// Arguments of helpers.
pub const R3: u8 = 3;
/// Arguments of helpers.
pub const R4: u8 = 4;
/// Survives calls of helpers.
pub const R6: u8 = 6;
/// The frame pointer.
pub const R10: u8 = 10;

/// How many bytes a memory access is of.
#[derive(Clone, Copy, Debug)]
pub enum Size {
    /// Four bytes.
    Word = 0x00,
    /// Eight bytes.
    Double = 0x18,
}

/// One instruction as the kernel reads it (Documentation/bpf/standardization/instruction-set.rst).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// Ends the program.
    pub const EXIT: Self = Self::new(0x95, 0, 0, 0, 0);

    const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers: source << 4 | destination, offset, immediate }
    }

    /// A register takes a number.
    #[must_use]
    pub const fn mov(register: u8, value: i32) -> Self {
        Self::new(0xb7, register, 0, 0, value)
    }

    /// A register takes another's value.
    #[must_use]
    pub const fn copy(register: u8, from: u8) -> Self {
        Self::new(0xbf, register, from, 0, 0)
    }

    /// Adds a number to a register.
    #[must_use]
    pub const fn add(register: u8, value: i32) -> Self {
        Self::new(0x07, register, 0, 0, value)
    }

    /// A register takes what is in memory.
    #[must_use]
    pub const fn load(size: Size, register: u8, base: u8, offset: i16) -> Self {
        Self::new(0x61 | size as u8, register, base, offset, 0)
    }

    /// Memory takes what is in a register.
    #[must_use]
    pub const fn store(size: Size, base: u8, offset: i16, register: u8) -> Self {
        Self::new(0x63 | size as u8, base, register, offset, 0)
    }

    /// Skips instructions if a register is zero.
    #[must_use]
    pub const fn skip_if_zero(register: u8, instructions: i16) -> Self {
        Self::new(0x15, register, 0, instructions, 0)
    }

    /// Calls a helper by its number.
    #[must_use]
    pub const fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, 0, helper)
    }

    /// A register takes a map: two instructions.
    #[must_use]
    pub fn map(register: u8, map: &OwnedFd) -> [Self; 2] {
        [Self::new(0x18, register, PSEUDO_MAP_FD, 0, map.as_raw_fd()), Self::new(0, 0, 0, 0, 0)]
    }
}

/// bpf(2) with attributes as a structure of theirs.
pub(super) fn bpf<T>(command: libc::c_long, attributes: &mut T) -> std::io::Result<i32> {
    // SAFETY: the kernel reads and writes within the size that it is given; pointers in the structure are the callers'.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(Error::last_os_error)
}

fn descriptor<T>(command: libc::c_long, attributes: &mut T) -> std::io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the command returns a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a TC program.
///
/// # Errors
/// The verifier refuses it; the message has its words.
pub fn load(instructions: &[Instruction]) -> Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        number: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
    }
    let mut log = vec![0_u8; 64 << 10];
    let license = c"Dual MIT/GPL";
    let mut attributes = Attributes {
        kind: PROG_TYPE_SCHED_CLS,
        number: u32::try_from(instructions.len()).context("too many instructions")?,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 1,
        log_size: u32::try_from(log.len()).context("too large a log")?,
        log: log.as_mut_ptr() as u64,
    };
    descriptor(PROG_LOAD, &mut attributes).with_context(|| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        format!("BPF_PROG_LOAD:\n{}", String::from_utf8_lossy(&log[..end]))
    })
}

/// A queue of values, of which the oldest gives way to a new one when it is full.
///
/// # Errors
/// The caller may not.
pub fn queue(value_size: u32, entries: u32) -> Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        key_size: u32,
        value_size: u32,
        entries: u32,
    }
    // Before 5.11 maps count as locked memory (bpf: Eliminate rlimit-based memory accounting for bpf maps). Where root may
    // not raise the limit, as in some containers, the map's own error says whether that matters.
    let _raised = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let mut attributes = Attributes { kind: MAP_TYPE_QUEUE, key_size: 0, value_size, entries };
    descriptor(MAP_CREATE, &mut attributes).context("BPF_MAP_CREATE of a queue")
}

/// Takes the oldest value of a queue, `None` if there is none. `T` is any plain structure of the queue's value size.
///
/// # Errors
/// The kernel refuses.
///
/// # Safety
/// Any bytes must be a valid `T`, and the queue's values must be no larger than it.
pub unsafe fn pop<T: Default>(queue: &OwnedFd) -> Result<Option<T>> {
    #[repr(C)]
    struct Attributes {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut value = T::default();
    let mut attributes = Attributes {
        map: queue.as_raw_fd().unsigned_abs(),
        pad: 0,
        key: 0,
        value: std::ptr::from_mut(&mut value) as u64,
        flags: 0,
    };
    match bpf(MAP_LOOKUP_AND_DELETE_ELEM, &mut attributes) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error).context("BPF_MAP_LOOKUP_AND_DELETE_ELEM"),
    }
}

/// Pins a program or map to a file of a BPF file system, in the calling thread's mounts.
///
/// # Errors
/// There is such a file, or no BPF file system.
pub fn pin(object: &OwnedFd, path: &Path) -> Result<()> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes()).context("a path with a zero byte")?;
    let mut attributes = Attributes { path: name.as_ptr() as u64, fd: object.as_raw_fd().unsigned_abs(), flags: 0 };
    bpf(OBJ_PIN, &mut attributes).with_context(|| format!("BPF_OBJ_PIN {}", path.display()))?;
    Ok(())
}

/// Instructions that the verifier followed; 0 if the kernel does not say.
pub(super) fn verified_instructions(program: &OwnedFd) -> Result<u32> {
    #[repr(C)]
    struct Attributes {
        fd: u32,
        length: u32,
        info: u64,
    }
    // `verified_insns` of `struct bpf_prog_info`; an older kernel's structure ends before it.
    const AT: usize = 216;
    let mut info = [0_u8; AT + 4];
    let mut attributes = Attributes {
        fd: program.as_raw_fd().unsigned_abs(),
        length: u32::try_from(info.len()).context("too large a structure")?,
        info: info.as_mut_ptr() as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attributes).context("BPF_OBJ_GET_INFO_BY_FD")?;
    let [.., a, b, c, d] = info;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}
