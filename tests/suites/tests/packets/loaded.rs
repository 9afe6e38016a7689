//! The programs, loaded once for all tests: the verifier takes longer over them than the packets of most tests take,
//! and on an emulated processor longer than all packets together.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use netpol_suites::programs::Programs;

/// Rows of each policy map.
const ROWS: u32 = 4096;

static PROGRAMS: Mutex<Option<Programs>> = Mutex::new(None);

/// The loaded programs, over maps without rows, for one test at a time.
pub(crate) struct Loaded(MutexGuard<'static, Option<Programs>>);

impl Loaded {
    /// Waits until no other test has them.
    pub(crate) fn take() -> Self {
        let mut programs = PROGRAMS.lock().unwrap_or_else(|poisoned: PoisonError<_>| {
            // A test has failed, and its maps are nobody's business any more.
            PROGRAMS.clear_poison();
            let mut programs = poisoned.into_inner();
            *programs = None;
            programs
        });
        match &mut *programs {
            Some(programs) => programs.reset().expect("reset"),
            none => *none = Some(Programs::load(ROWS).expect("load")),
        }
        Self(programs)
    }
}

impl Deref for Loaded {
    type Target = Programs;

    fn deref(&self) -> &Programs {
        self.0.as_ref().expect("loaded when it was taken")
    }
}

impl DerefMut for Loaded {
    fn deref_mut(&mut self) -> &mut Programs {
        self.0.as_mut().expect("loaded when it was taken")
    }
}
