//! Helpers shared by the suites in `tests/`.

use std::path::PathBuf;

/// The agent that `cargo xtask test` or `cargo build --package netpol-agent` has built: beside the folder of the suites'
/// own binaries.
///
/// # Panics
/// It is not there: there is nothing to test.
#[must_use]
pub fn agent_binary() -> PathBuf {
    let binary = std::env::current_exe().ok().and_then(|suite| Some(suite.ancestors().nth(2)?.join("netpol-agent")));
    match binary {
        Some(binary) if binary.is_file() => binary,
        missing => panic!("{missing:?} is missing: cargo build --package netpol-agent"),
    }
}

pub mod cells;
pub mod frames;
pub mod kernel;
pub mod nine;
pub mod programs;
