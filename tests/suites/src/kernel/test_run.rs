//! `BPF_PROG_TEST_RUN` on kernels that do not take a device as the one a packet came in by
//! ([`Feature::TestRunIngress`](super::Feature::TestRunIngress)).
//!
//! There the object is changed before it is loaded: instructions that read the context's `ingress_ifindex` read its
//! `priority`, which all kernels take and our programs do not use otherwise. All else of the programs is as it was.
//! That no other instruction was hit is what the tests themselves say: they compare each verdict with the verdict
//! function's.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};

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

/// Where entry points are; only they have the context.
const SECTION: &str = "classifier";

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
    let mut changed = object.to_vec();
    let mut number = 0_usize;
    for (begin, size) in sections(object, SECTION).context("an ELF file")? {
        let code = changed.get_mut(begin..begin + size).context("a section beyond the file")?;
        let mut rest = code;
        while let Some((instruction, after)) = rest.split_at_mut_checked(INSTRUCTION) {
            let [code, _registers, low, high, ..] = instruction else { break };
            if *code == LOAD_WORD && usize::from(u16::from_le_bytes([*low, *high])) == INGRESS_IFINDEX {
                *low = PRIORITY as u8;
                number += 1;
            }
            let halves = usize::from(*code == LOAD_CONSTANT);
            rest = after.get_mut(halves * INSTRUCTION..).unwrap_or_default();
        }
    }
    ensure!(number > 0, "no entry point asks for the ingress device");
    Ok(changed)
}

/// Offsets and sizes of the sections with a name, in a 64-bit little-endian ELF file.
fn sections(file: &[u8], wanted: &str) -> Option<Vec<(usize, usize)>> {
    let number = |at: usize, size: usize| {
        let mut bytes = [0; 8];
        bytes.get_mut(..size)?.copy_from_slice(file.get(at..at + size)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    file.starts_with(b"\x7fELF").then_some(())?;
    let (table, entry, count, names) = (number(40, 8)?, number(58, 2)?, number(60, 2)?, number(62, 2)?);
    let header = |index: usize| table + index * entry;
    let names = number(header(names) + 24, 8)?;
    let mut found = Vec::new();
    for index in 0..count {
        let at = header(index);
        let name = file.get(names + number(at, 4)?..)?;
        if name.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)) {
            found.push((number(at + 24, 8)?, number(at + 32, 8)?));
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use netpol_agent::dataplane::object::OBJECT;

    use super::*;

    #[test]
    fn nothing_but_the_offset_of_a_load_in_an_entry_point_changes() {
        let changed = ingress_in_priority(OBJECT).unwrap();
        assert_eq!(changed.len(), OBJECT.len());
        let differences: Vec<usize> = (0..OBJECT.len()).filter(|at| OBJECT[*at] != changed[*at]).collect();
        assert!(!differences.is_empty());
        let code = sections(OBJECT, SECTION).unwrap();
        for at in differences {
            let (begin, _) = code.iter().find(|(begin, size)| (*begin..begin + size).contains(&at)).unwrap();
            // The low byte of the offset field.
            assert_eq!((at - begin) % INSTRUCTION, 2);
            assert_eq!((usize::from(OBJECT[at]), usize::from(changed[at])), (INGRESS_IFINDEX, PRIORITY));
            assert_eq!(OBJECT[at - 2], LOAD_WORD);
        }
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(ingress_in_priority(b"no ELF").is_err());
    }
}
