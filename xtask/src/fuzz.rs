//! `cargo xtask fuzz`: builds the targets of `fuzz/` with the compiler's instrumentation and lets libFuzzer look for inputs
//! that panic.
//!
//! The toolchain is the pinned one: coverage needs no unstable flag, and memory cannot be corrupted by code that has no
//! `unsafe`. What a run learns stays in `target/fuzz/work`; `--minimize` puts what of it reaches new code into the committed
//! corpus, which the normal tests replay (`netpol-policy/tests/fuzz_corpus.rs`), and so does every input that panics.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use netpol_testbed::interrupt;

use crate::process;
use crate::setup::{self, Need};

/// What cargo-fuzz gives rustc, without the sanitizers: edges counted in eight bits, and the operands of comparisons.
const INSTRUMENTATION: [&str; 8] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Cforce-frame-pointers=yes",
];

/// Longer inputs say nothing new: frames and manifests are small.
const MOST_BYTES: u32 = 4096;

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this target
    #[arg(value_enum)]
    target: Option<Target>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Instead of fuzzing, put what runs have learnt into the committed corpus, as few and small inputs as reach it
    #[arg(long)]
    minimize: bool,
}

/// The targets of `fuzz/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Frames
    Parser,
    /// Manifests
    Policy,
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::Parser => "parser",
            Self::Policy => "policy",
        }
    }
}

/// Builds and runs the targets: the status is 1 if one has found something.
///
/// # Errors
/// Something is missing and cannot be installed, or a target cannot be built or run.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let Args { target, seconds, minimize } = args;
    setup::ensure(&[Need::Fuzzing])?;
    interrupt::listen()?;
    let folder = process::target_directory()?.join("fuzz");
    let binaries = build(&folder)?;
    let targets = target.as_ref().map_or(Target::value_variants(), std::slice::from_ref);
    let mut clean = true;
    for target in targets {
        let places = Places::new(&folder, target.name())?;
        let binary = binaries.join(target.name());
        if *minimize {
            places.minimize(&binary)?;
        } else {
            clean &= places.fuzz(&binary, *target, *seconds)?;
        }
        if interrupt::requested() {
            return Ok(ExitCode::from(130));
        }
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Builds all targets, and returns the folder that they are in.
fn build(folder: &Path) -> Result<PathBuf> {
    let host = host()?;
    let mut build = process::cargo();
    // With a target, the flags are for the programs alone and not for build scripts.
    build.args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", &host, "--target-dir"]);
    build.arg(folder).env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"));
    process::run(&mut build)?;
    Ok(folder.join(host).join("release"))
}

/// The target triple of this machine's own toolchain.
fn host() -> Result<String> {
    let printed = process::output(process::command("rustc").arg("-vV"))?;
    let host = printed.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).with_context(|| format!("rustc does not name its host: {printed}"))
}

/// The folders of one target.
struct Places {
    /// What is committed.
    corpus: PathBuf,
    /// What runs on this machine have added.
    work: PathBuf,
    /// Inputs that panicked in this run.
    found: PathBuf,
}

impl Places {
    fn new(folder: &Path, name: &str) -> Result<Self> {
        let corpus = process::workspace().join("fuzz/corpus").join(name);
        let (work, found) = (folder.join("work").join(name), folder.join("found").join(name));
        if found.is_dir() {
            std::fs::remove_dir_all(&found).with_context(|| format!("cannot remove {}", found.display()))?;
        }
        for folder in [&corpus, &work, &found] {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(Self { corpus, work, found })
    }

    fn command(&self, binary: &Path) -> Command {
        let mut command = process::command(binary);
        command.arg(format!("-artifact_prefix={}/", self.found.display())).arg(format!("-max_len={MOST_BYTES}"));
        command
    }

    /// Returns whether nothing was found.
    fn fuzz(&self, binary: &Path, target: Target, seconds: u32) -> Result<bool> {
        let begin = Instant::now();
        let mut command = self.command(binary);
        command.arg(format!("-max_total_time={seconds}")).args(["-timeout=20", "-print_final_stats=1"]);
        command.arg(&self.work).arg(&self.corpus);
        let line = process::line(&command);
        let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("cannot start `{line}`"))?;
        let printed = child.stderr.take().context("a child has no standard error")?;
        let mut executed = None;
        for printed in BufReader::new(printed).lines() {
            let printed = printed.with_context(|| format!("cannot read what `{line}` prints"))?;
            executed = executions(&printed).or(executed);
            eprintln!("{printed}");
        }
        let status = child.wait().context("waitpid")?;
        let found = kept(&self.found, &self.corpus)?;
        for input in &found {
            eprintln!("fuzz: {} panics; the tests replay it from now on", input.display());
        }
        if !status.success() && found.is_empty() && !interrupt::requested() {
            bail!("`{line}` failed, and left no input: {status}");
        }
        let executed = executed.map_or_else(|| "?".to_owned(), |number| number.to_string());
        let (name, seconds) = (target.name(), begin.elapsed().as_secs());
        println!("{name}: {executed} executions in {seconds} s, {} findings", found.len());
        Ok(found.is_empty())
    }

    /// What of the committed and of the learnt inputs reaches something that no smaller one does, in the corpus' place.
    fn minimize(&self, binary: &Path) -> Result<()> {
        let merged = self.corpus.with_extension("merged");
        std::fs::create_dir_all(&merged).with_context(|| format!("cannot create {}", merged.display()))?;
        process::run(
            self.command(binary).args(["-merge=1", "-use_counters=0"]).arg(&merged).arg(&self.work).arg(&self.corpus),
        )?;
        // What once panicked stays, whatever it reaches now, and so does what somebody has given a name.
        for input in inputs(&self.corpus)?.into_iter().filter(|input| is_named(input)) {
            copy(&input, &merged)?;
        }
        std::fs::remove_dir_all(&self.corpus).with_context(|| format!("cannot remove {}", self.corpus.display()))?;
        std::fs::rename(&merged, &self.corpus).with_context(|| format!("cannot rename {}", merged.display()))?;
        println!("{}: {} inputs", self.corpus.display(), inputs(&self.corpus)?.len());
        Ok(())
    }
}

/// Copies what was found into the corpus, and returns it.
fn kept(found: &Path, corpus: &Path) -> Result<Vec<PathBuf>> {
    inputs(found)?.iter().filter(|input| is_finding(input)).map(|input| copy(input, corpus)).collect()
}

/// libFuzzer names its artifacts by what was wrong: crash-, timeout-, oom-, leak-; slow units are no findings.
fn is_finding(input: &Path) -> bool {
    let name = input.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ["crash-", "timeout-", "oom-", "leak-"].iter().any(|kind| name.starts_with(kind))
}

/// What libFuzzer has learnt bears the hash of its content.
fn is_named(input: &Path) -> bool {
    let name = input.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.len() != 40 || !name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn copy(input: &Path, folder: &Path) -> Result<PathBuf> {
    let to = folder.join(input.file_name().context("an input without a name")?);
    std::fs::copy(input, &to).with_context(|| format!("cannot copy {} to {}", input.display(), to.display()))?;
    Ok(to)
}

fn inputs(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>();
    paths.with_context(|| format!("cannot read {}", folder.display()))
}

/// How many executions a line of libFuzzer's speaks of: its statistics, or its status: `#4096 pulse cov: …`.
fn executions(line: &str) -> Option<u64> {
    if let Some(number) = line.strip_prefix("stat::number_of_executed_units:") {
        return number.trim().parse().ok();
    }
    line.strip_prefix('#')?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_read_from_status_and_statistics() {
        assert_eq!(executions("#65536\tpulse  cov: 812 ft: 2049 corp: 310/12Kb"), Some(65_536));
        assert_eq!(executions("stat::number_of_executed_units: 1234567"), Some(1_234_567));
        assert_eq!(executions("INFO: seed corpus: files: 12"), None);
    }

    #[test]
    fn what_panicked_is_put_into_the_corpus_and_what_was_slow_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (found, corpus) = (folder.path().join("found"), folder.path().join("corpus"));
        for folder in [&found, &corpus] {
            std::fs::create_dir(folder).unwrap();
        }
        for name in ["crash-12ab", "slow-unit-34cd"] {
            std::fs::write(found.join(name), name).unwrap();
        }
        assert_eq!(kept(&found, &corpus).unwrap(), [corpus.join("crash-12ab")]);
        assert_eq!(inputs(&corpus).unwrap(), [corpus.join("crash-12ab")]);
    }

    #[test]
    fn inputs_with_a_name_of_their_own_outlive_minimizing() {
        for (name, named) in [("jumbogram", true), ("crash-12ab", true), (&"0a".repeat(20), false)] {
            assert_eq!(is_named(Path::new(name)), named, "{name}");
        }
    }

    #[test]
    fn every_target_has_its_program() {
        for target in Target::value_variants() {
            let program = process::workspace().join(format!("fuzz/fuzz_targets/{}.rs", target.name()));
            assert!(program.is_file(), "{}", program.display());
        }
    }
}
