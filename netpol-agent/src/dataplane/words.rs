//! Arrays of 64-bit words, mapped into the agent: a word is read and changed with one atomic operation.
//!
//! One holds policy set and epoch of each endpoint: an update through bpf(2) copies the value byte by byte as it likes, so
//! that a program could read half of an old word and half of a new one; a hash element could be recycled under its reader.
//! Another holds how many flows each account has, to which programs add meanwhile. An array with `BPF_F_MMAPABLE` (5.5,
//! kernel commit fc9702273e2e) serves both.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use netpol_common::abi::{EndpointWord, names};

use super::maps::{MapsError, map_error};
use super::pins::Pins;
use super::sys::SyscallError;

/// A mapped array.
#[derive(Debug)]
pub struct Words {
    base: NonNull<AtomicU64>,
    count: u32,
}

// SAFETY: the mapping is shared memory that is only touched through atomics.
unsafe impl Send for Words {}

impl Words {
    /// Maps a pinned array map of 8-byte values.
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, MapsError> {
        let data = MapData::from_pin(pins.map(name)).map_err(map_error(name))?;
        let count = data.info().map_err(map_error(name))?.max_entries();
        Self::map(data.fd().as_fd(), count).map_err(|source| MapsError::Syscall { map: name, source })
    }

    fn map(array: BorrowedFd<'_>, count: u32) -> Result<Self, SyscallError> {
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
            _ => Err(SyscallError { call: "mmap(BPF array)", source: io::Error::last_os_error() }),
        }
    }

    fn word(&self, index: u32) -> Option<&AtomicU64> {
        // SAFETY: the index is below the number of mapped, aligned u64.
        (index < self.count).then(|| unsafe { self.base.add(index as usize).as_ref() })
    }

    /// All words that are not zero, as signed numbers.
    pub fn signed(&self) -> BTreeMap<u32, i64> {
        let all = (0..self.count).filter_map(|index| Some((index, self.word(index)?.load(Ordering::Relaxed) as i64)));
        all.filter(|(_, value)| *value != 0).collect()
    }

    /// Adds to a word. Programs may do so as well, at the same moment, and then undo this. An index out of range is ignored.
    pub fn add(&self, index: u32, add: i64) {
        if let Some(word) = self.word(index) {
            // Two's complement: adding wraps to the same bits.
            let _before = word.fetch_add(add as u64, Ordering::Relaxed);
        }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the range that `map` mapped; no reference into it outlives self.
        let _unmapped = unsafe { libc::munmap(self.base.as_ptr().cast(), self.count as usize * size_of::<u64>()) };
    }
}

/// The words of all endpoints.
#[derive(Debug)]
pub struct EndpointWords(Words);

impl EndpointWords {
    /// Maps the pinned array.
    pub(super) fn open(pins: &Pins) -> Result<Self, MapsError> {
        Words::open(pins, names::ENDPOINT_WORDS).map(Self)
    }

    /// The word of an endpoint; `None` when the number is out of range.
    #[must_use]
    pub fn get(&self, endpoint: u32) -> Option<EndpointWord> {
        let Self(words) = self;
        words.word(endpoint).map(|word| EndpointWord(word.load(Ordering::Acquire)))
    }

    /// Stores the word of an endpoint. Answers false when the number is out of range.
    #[must_use]
    pub fn set(&self, endpoint: u32, value: EndpointWord) -> bool {
        let Self(words) = self;
        words.word(endpoint).is_some_and(|word| {
            // Everything written before through bpf(2) is visible to a program that reads the new word.
            word.store(value.0, Ordering::SeqCst);
            true
        })
    }

    /// All words that are not zero.
    pub fn iter(&self) -> impl Iterator<Item = (u32, EndpointWord)> + '_ {
        let Self(words) = self;
        (0..words.count)
            .filter_map(|endpoint| self.get(endpoint).filter(|word| word.0 != 0).map(|word| (endpoint, word)))
    }
}
