//! `cargo xtask bench`: what a packet costs in each program, with few policies and with many.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::process;
use crate::setup::{self, Need};

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Given to the benchmark
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds and runs the benchmark, and returns its exit status.
///
/// # Errors
/// Something is missing and cannot be installed, or cargo cannot be started.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    setup::ensure(&Need::BPF_TOOLCHAIN)?;
    let mut bench = process::cargo();
    bench.args(["run", "--release", "--package", "netpol-suites", "--bin", "netpol-bench", "--"]).args(&args.arguments);
    let status = bench.status().context("cannot start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
