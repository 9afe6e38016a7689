//! What the verifier says of a program that it accepts.

use anyhow::{Context as _, Result, bail};
use aya::programs::{ProgramError, SchedClassifier};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What comes before the number in the log (`print_verification_stats` in kernel/bpf/verifier.c).
const PROCESSED: &str = "processed ";

/// The number of instructions that the verifier follows, by its log, which every kernel writes. The loader must ask for
/// statistics (`VerifierLogLevel::STATS`), and the program must not be loaded; it is not loaded afterwards either.
///
/// aya shows the log of a load that fails only. This one fails after verification, at the very end of `bpf_prog_load()`,
/// because this process may have no further descriptor at that time.
///
/// # Errors
/// The verifier refuses the program, or its log has no such number.
pub fn instructions(program: &mut SchedClassifier) -> Result<u32> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).context("setrlimit")?;
    let outcome = program.load();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).context("setrlimit")?;
    match outcome {
        Err(ProgramError::LoadError { io_error, verifier_log }) => {
            let log = verifier_log.to_string();
            processed(&log).with_context(|| format!("BPF_PROG_LOAD: {io_error}, and its log is {log:?}"))
        }
        Err(other) => Err(other).context("loading"),
        Ok(()) => bail!("a program was loaded without a descriptor"),
    }
}

/// Reads the number in `processed 83745 insns (limit 1000000) max_states_per_insn …`.
#[must_use]
pub fn processed(log: &str) -> Option<u32> {
    let at = log.rfind(PROCESSED)? + PROCESSED.len();
    log.get(at..)?.split_whitespace().next()?.parse().ok()
}
