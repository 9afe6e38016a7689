//! Helpers shared by the suites in `tests/`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

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

/// A program of the real cluster, such as `kube-proxy`; built by `cargo xtask setup` if it is not there yet.
///
/// # Panics
/// It cannot be built.
#[must_use]
pub fn cluster_binary(name: &str) -> PathBuf {
    let mut xtask = Command::new(env!("CARGO"));
    xtask.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    xtask.args(["run", "--quiet", "--package", "xtask", "--", "cluster", "binary", name]);
    match xtask.stderr(Stdio::inherit()).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().into(),
        other => panic!("cargo xtask cluster binary {name}: {other:?}"),
    }
}

pub mod backends;
pub mod cells;
pub use netpol_policy::testing::frames;
pub mod kernel;
pub mod nine;
pub mod programs;
