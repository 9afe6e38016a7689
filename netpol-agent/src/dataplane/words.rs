//! The endpoint words, mapped into the agent: policy set and epoch of an endpoint change with one atomic store.
//!
//! An update through bpf(2) copies the value byte by byte as it likes, so that a program could read half of an old word
//! and half of a new one; a hash element could be recycled under its reader. An array with `BPF_F_MMAPABLE` (5.5, kernel
//! commit fc9702273e2e) avoids both.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use netpol_common::abi::EndpointWord;

use super::sys::SyscallError;

/// The mapped array.
#[derive(Debug)]
pub struct EndpointWords {
    base: NonNull<AtomicU64>,
    count: u32,
}

// SAFETY: the mapping is shared memory that is only touched through atomics.
unsafe impl Send for EndpointWords {}

impl EndpointWords {
    /// Maps an array map of `count` 8-byte values.
    pub fn map(array: BorrowedFd<'_>, count: u32) -> Result<Self, SyscallError> {
        // SAFETY: a fresh mapping at an address of the kernel's choice, of a descriptor that is open.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count as usize * size_of::<u64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                array.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(base.cast::<AtomicU64>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { base, count }),
            _ => Err(SyscallError { call: "mmap(ENDPOINT_WORDS)", source: io::Error::last_os_error() }),
        }
    }

    fn word(&self, endpoint: u32) -> Option<&AtomicU64> {
        // SAFETY: the index is below the number of mapped, aligned u64.
        (endpoint < self.count).then(|| unsafe { self.base.add(endpoint as usize).as_ref() })
    }

    /// The word of an endpoint; `None` when the number is out of range.
    #[must_use]
    pub fn get(&self, endpoint: u32) -> Option<EndpointWord> {
        self.word(endpoint).map(|word| EndpointWord(word.load(Ordering::Acquire)))
    }

    /// Stores the word of an endpoint. Answers false when the number is out of range.
    #[must_use]
    pub fn set(&self, endpoint: u32, value: EndpointWord) -> bool {
        self.word(endpoint).is_some_and(|word| {
            // Everything written before through bpf(2) is visible to a program that reads the new word.
            word.store(value.0, Ordering::SeqCst);
            true
        })
    }

    /// All words that are not zero.
    pub fn iter(&self) -> impl Iterator<Item = (u32, EndpointWord)> + '_ {
        (0..self.count)
            .filter_map(|endpoint| self.get(endpoint).filter(|word| word.0 != 0).map(|word| (endpoint, word)))
    }
}

impl Drop for EndpointWords {
    fn drop(&mut self) {
        // SAFETY: the range that `map` mapped; no reference into it outlives self.
        let _unmapped = unsafe { libc::munmap(self.base.as_ptr().cast(), self.count as usize * size_of::<u64>()) };
    }
}
