//! `BPF_PROG_TEST_RUN` on kernels that do not take a device as the one a packet came in by
//! ([`Feature::TestRunIngress`](super::Feature::TestRunIngress)).
//!
//! There the object is changed before it is loaded: instructions that read the context's `ingress_ifindex` read its
//! `priority`, which all kernels take and our programs do not use otherwise. All else of the programs is as it was.
//! That no other instruction was hit is what the tests themselves say: they compare each verdict with the verdict
//! function's.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object as _, ObjectSection as _};

use super::raw::{self, PROG_TEST_RUN};

/// `priority` in `struct __sk_buff`.
pub const PRIORITY: usize = 32;
/// `ingress_ifindex` in `struct __sk_buff`.
pub const INGRESS_IFINDEX: usize = 36;

/// A load of four bytes into a register.
const LOAD_WORD: u8 = 0x61;
/// The first of the two halves of a 64-bit constant.
const LOAD_CONSTANT: u8 = 0x18;
/// Bytes of an instruction.
const INSTRUCTION: usize = 8;

/// The section of entry points; only they have the context.
pub const SECTION: &str = "classifier";

/// Whether a test run takes an ingress device.
pub(super) fn takes_ingress(program: &OwnedFd) -> Result<bool> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        result: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_size_in: u32,
        context_size_out: u32,
        context_in: u64,
        context_out: u64,
    }
    let run = |context: &[u8]| {
        let frame = [0_u8; 64];
        let mut attributes = Attributes {
            program: program.as_raw_fd().unsigned_abs(),
            result: 0,
            data_size_in: 64,
            data_size_out: 0,
            data_in: frame.as_ptr() as u64,
            data_out: 0,
            repeat: 1,
            duration: 0,
            context_size_in: u32::try_from(context.len()).unwrap_or_default(),
            context_size_out: 0,
            context_in: context.as_ptr() as u64,
            context_out: 0,
        };
        raw::bpf(PROG_TEST_RUN, &mut attributes)
    };
    let mut context = [0; INGRESS_IFINDEX + 4];
    run(&context).context("BPF_PROG_TEST_RUN")?;
    context[INGRESS_IFINDEX..].copy_from_slice(&1_u32.to_ne_bytes());
    match run(&context) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error).context("BPF_PROG_TEST_RUN with an ingress device"),
    }
}

/// The object, with the entry points' loads of `ingress_ifindex` turned into loads of `priority`.
///
/// # Errors
/// It is no object of ours, or nothing in it asks for the ingress device.
pub fn ingress_in_priority(object: &[u8]) -> Result<Vec<u8>> {
    let file = ElfFile64::<LittleEndian>::parse(object).context("an ELF file")?;
    let section = file.section_by_name(SECTION).with_context(|| format!("no section {SECTION}"))?;
    let (begin, size) = section.file_range().context("a section without content")?;
    let (begin, size) = (usize::try_from(begin)?, usize::try_from(size)?);
    let mut changed = object.to_vec();
    let mut number = 0_usize;
    let mut rest = changed.get_mut(begin..begin + size).context("a section beyond the file")?;
    while let Some((instruction, after)) = rest.split_at_mut_checked(INSTRUCTION) {
        let [code, _registers, low, high, ..] = instruction else { break };
        if *code == LOAD_WORD && usize::from(u16::from_le_bytes([*low, *high])) == INGRESS_IFINDEX {
            *low = PRIORITY as u8;
            number += 1;
        }
        let halves = usize::from(*code == LOAD_CONSTANT);
        rest = after.get_mut(halves * INSTRUCTION..).unwrap_or_default();
    }
    ensure!(number > 0, "no entry point asks for the ingress device");
    Ok(changed)
}
