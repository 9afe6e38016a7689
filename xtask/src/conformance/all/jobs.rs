//! What `--all` runs, and how each says what it found: upstream's suite by its own summary, the suites of this project by
//! rows that they write to a file, or else by the number of their tests, and other kernels by what `cargo xtask vm`
//! prints.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::ValueEnum;
use netpol_testbed::{interrupt, kernel};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;

use super::Row;
use crate::cluster::{self, Families, Proxy};
use crate::conformance::report::Summary;
use crate::process;

/// Suites of this project in which verdicts are probed, and what they rest on: test binaries of `tests/suites`. Flows from
/// before a policy or an agent are in `lifecycle`, other nodes and the host network in `kubernetes`.
pub(super) const SUITES: [&str; 9] =
    ["sandbox", "kernels", "packets", "attacks", "conformance", "lifecycle", "combinations", "services", "kubernetes"];

/// Kernels beside the machine's own, as `cargo xtask vm` names them.
const KERNELS: [&str; 4] = ["5.10", "6.1", "6.12", "newest"];

/// The variable that names the file for a suite's rows; `netpol_suites::cells` reads it.
const VARIABLE: &str = "NETPOL_CELLS";

/// What begins a line about a test, or a part of one, that the kernel cannot carry; `netpol_suites::kernel::require` writes it.
const SKIP: &str = "skip: ";

/// How often a request to end is looked for.
const POLL: Duration = Duration::from_millis(100);

/// What one command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Upstream's specs in a cluster.
    Upstream { families: Families, proxy: Proxy },
    /// A test binary, on this machine's kernel.
    Suite(&'static str),
    /// The suites that fit into a virtual machine, on its kernel.
    Kernel(&'static str),
}

/// All of them: the quick ones first.
pub(super) fn all() -> Vec<Job> {
    let mut jobs: Vec<Job> = SUITES.map(Job::Suite).to_vec();
    for families in Families::value_variants() {
        for proxy in Proxy::value_variants() {
            jobs.push(Job::Upstream { families: *families, proxy: *proxy });
        }
    }
    jobs.extend(KERNELS.map(Job::Kernel));
    jobs
}

/// What jobs need.
pub(in crate::conformance) struct Context<'a> {
    /// Runs upstream's specs on one combination.
    pub(in crate::conformance) upstream: &'a dyn Fn(Families, Proxy) -> Result<Summary>,
    /// What of upstream's specs is chosen, in words; empty for all.
    pub(in crate::conformance) chosen: String,
    /// Where files of the run go.
    pub(in crate::conformance) folder: &'a Path,
}

impl Context<'_> {
    /// A job's name, in the record too.
    pub(super) fn name(&self, job: &Job) -> String {
        match job {
            Job::Upstream { families, proxy } => {
                let name = format!("upstream {} {} {}", cluster::name(*families), cluster::name(*proxy), self.chosen);
                name.trim_end().to_owned()
            }
            Job::Suite(name) => format!("suite {name}"),
            Job::Kernel(series) => format!("kernel {series}"),
        }
    }

    /// Runs a job to its end.
    pub(super) fn run(&self, job: &Job) -> Result<Vec<Row>> {
        match job {
            Job::Upstream { families, proxy } => {
                let summary = (self.upstream)(*families, *proxy)?;
                eprint!("{}", summary.text());
                Ok(vec![Row {
                    suite: "upstream".to_owned(),
                    family: cluster::name(*families),
                    proxy: cluster::name(*proxy),
                    kernel: kernel::release()?,
                    cells: number(summary.outcomes.len())?,
                    wrong: number(summary.failed().count() + summary.outcomes.len() - summary.ran())?,
                    skipped: number(summary.left_out.len())?,
                    reasons: once(summary.left_out.iter().map(|(_, lack)| lack.to_string())),
                    unit: "specs".to_owned(),
                }])
            }
            Job::Suite(name) => self.suite(name),
            Job::Kernel(series) => {
                let mut vm = Command::new(std::env::current_exe().context("the path of this program")?);
                vm.args(["vm", series]);
                kernel_rows(series, &captured(&mut vm)?.output)
            }
        }
    }

    fn suite(&self, name: &str) -> Result<Vec<Row>> {
        // What the suites run.
        process::run(process::cargo().args(["build", "--package", "netpol-agent", "--bins"]))?;
        let file = self.folder.join(format!("{name}.cells"));
        std::fs::write(&file, "").with_context(|| format!("cannot write {}", file.display()))?;
        let mut tests = process::cargo();
        tests.args(["test", "--package", "netpol-suites", "--no-fail-fast", "--test", name, "--", "--test-threads=1"]);
        // What is too long for `cargo xtask test` is ignored there, and not here.
        tests.arg("--include-ignored");
        tests.env(VARIABLE, &file);
        let Printed { output, errors } = captured(&mut tests)?;
        let skips: Vec<&str> = errors.lines().filter_map(|line| line.strip_prefix(SKIP)).collect();
        suite_rows(name, &kernel::release()?, &output, &read(&file)?, &skips)
    }
}

/// What a command has printed.
struct Printed {
    output: String,
    errors: String,
}

/// Runs a command, passes on what it prints, and returns that. Its status is not asked: what it printed says more, and
/// whoever reads that notices what is missing.
///
/// # Errors
/// It does not start, or the user interrupts, of which it is told.
fn captured(command: &mut Command) -> Result<Printed> {
    let line = process::line(command);
    // A group of its own: Ctrl-C in the terminal reaches it once, from here, as a request to this process does.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
    let stdout = child.stdout.take().context("a child has no standard output")?;
    let stderr = child.stderr.take().context("a child has no standard error")?;
    let group = Pid::from_raw(i32::try_from(child.id()).context("a process id")?);
    let printed = std::thread::scope(|scope| {
        let output = scope.spawn(|| pass_on(stdout));
        let errors = scope.spawn(|| pass_on(stderr));
        let mut told = false;
        while !(output.is_finished() && errors.is_finished()) {
            if interrupt::requested() && !told {
                told = true;
                // It may have ended in between, and that is as good.
                let _ = killpg(group, Signal::SIGINT);
            }
            std::thread::sleep(POLL);
        }
        let read = |reader: ScopedJoinHandle<'_, std::io::Result<String>>| {
            let outcome = reader.join().map_err(|_panic| anyhow!("a thread panicked"))?;
            outcome.with_context(|| format!("cannot read what `{line}` prints"))
        };
        anyhow::Ok(Printed { output: read(output)?, errors: read(errors)? })
    })?;
    child.wait().context("waitpid")?;
    if interrupt::requested() {
        bail!(interrupt::Interrupted);
    }
    Ok(printed)
}

fn pass_on(output: impl Read) -> std::io::Result<String> {
    let mut printed = String::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        eprintln!("{line}");
        printed.push_str(&line);
        printed.push('\n');
    }
    Ok(printed)
}

fn read(file: &PathBuf) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// What a suite writes to the file for its rows (`netpol_suites::cells`).
#[derive(Deserialize)]
struct Written {
    suite: String,
    family: String,
    proxy: String,
    cells: u64,
    wrong: u64,
}

/// The rows of a suite: those that it wrote, added up; its tests where it wrote none, where a test failed and no row says
/// so, or where one was skipped. A skip is a test's name and what the kernel lacks.
fn suite_rows(suite: &str, kernel: &str, printed: &str, written: &str, skips: &[&str]) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for line in written.lines() {
        let row: Written = serde_json::from_str(line).with_context(|| format!("{suite} wrote {line}"))?;
        let same =
            |other: &&mut Row| (&other.suite, &other.family, &other.proxy) == (&row.suite, &row.family, &row.proxy);
        if let Some(there) = rows.iter_mut().find(same) {
            there.cells += row.cells;
            there.wrong += row.wrong;
        } else {
            let Written { suite, family, proxy, cells, wrong } = row;
            let (kernel, unit) = (kernel.to_owned(), "cells".to_owned());
            rows.push(Row { suite, family, proxy, kernel, cells, wrong, skipped: 0, reasons: Vec::new(), unit });
        }
    }
    let results = printed.lines().filter_map(|line| line.strip_prefix("test result: "));
    let mut counts = (0, 0);
    let mut any = false;
    for result in results {
        let (passed, failed) = passed_and_failed(result).with_context(|| format!("{suite} printed {result}"))?;
        counts = (counts.0 + passed, counts.1 + failed);
        any = true;
    }
    if !any || counts.0 + counts.1 == 0 {
        bail!("{suite} ran no test");
    }
    if rows.is_empty() || !skips.is_empty() || (counts.1 > 0 && rows.iter().all(|row| row.wrong == 0)) {
        rows.push(tests(suite, kernel, counts.0 + counts.1, counts.1, skips)?);
    }
    Ok(rows)
}

/// The rows of a virtual machine, out of its lines: `5.10    5.10.0-32-cloud-amd64: up in 4 s, 60 s in all` first, then for
/// each suite `5.10    packets      ok. 15 passed; 0 failed; 1 skipped; 12 s`, its skips, such as
/// `5.10      skipped: a_test: Tcx is there since 6.6`, and its rows, such as
/// `5.10    packets      {"suite":"packets-three-ways",…}`.
fn kernel_rows(series: &str, printed: &str) -> Result<Vec<Row>> {
    let mut kernel = series.to_owned();
    // What was printed of each suite, in the order of the lines: its counts, its rows and its skips.
    let mut suites: Vec<(String, String, Vec<&str>, Vec<&str>)> = Vec::new();
    for line in printed.lines() {
        let Some(rest) = line.strip_prefix(series).filter(|rest| rest.starts_with(' ')) else { continue };
        let Some((first, rest)) = rest.trim_start().split_once(' ') else { continue };
        let rest = rest.trim_start();
        if rest.starts_with("up in ") || rest.starts_with("never up") {
            kernel = first.trim_end_matches(':').to_owned();
        } else if rest.starts_with('{') {
            let suite = suites.iter_mut().rfind(|(name, ..)| name == first);
            suite.with_context(|| format!("a row of no suite: {line}"))?.2.push(rest);
        } else if first == "skipped:" {
            suites.last_mut().with_context(|| format!("a skip of no suite: {line}"))?.3.push(rest);
        } else if passed_and_failed(rest).is_some() {
            suites.push((first.to_owned(), rest.to_owned(), Vec::new(), Vec::new()));
        }
    }
    if suites.is_empty() {
        bail!("`cargo xtask vm {series}` printed no suite");
    }
    let mut rows = Vec::new();
    for (suite, counts, written, skips) in suites {
        let (passed, failed) = passed_and_failed(&counts).context("counts")?;
        if counts.contains("FAILED") && failed == 0 {
            // It did not run to its end, and that is wrong whatever its tests said.
            rows.push(tests(&suite, &kernel, passed.max(1), 1, &skips)?);
        } else {
            let (counts, written) = (format!("test result: {counts}"), written.join("\n"));
            rows.extend(suite_rows(&suite, &kernel, &counts, &written, &skips)?);
        }
    }
    Ok(rows)
}

/// A row of a suite's tests.
fn tests(suite: &str, kernel: &str, tests: u64, wrong: u64, skips: &[&str]) -> Result<Row> {
    // The same is lacking in many tests.
    let lacking = |skip: &&str| skip.split_once(": ").map_or(*skip, |(_test, what)| what).to_owned();
    Ok(Row {
        suite: suite.to_owned(),
        family: "dual".to_owned(),
        proxy: "-".to_owned(),
        kernel: kernel.to_owned(),
        cells: tests,
        wrong,
        skipped: number(skips.len())?,
        reasons: once(skips.iter().map(lacking)),
        unit: "tests".to_owned(),
    })
}

/// Each of them once, in order.
fn once(all: impl Iterator<Item = String>) -> Vec<String> {
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The two numbers of `… 15 passed; 0 failed; …`.
fn passed_and_failed(line: &str) -> Option<(u64, u64)> {
    let before = |text: &str| line.split_once(text)?.0.split_whitespace().next_back()?.parse().ok();
    Some((before(" passed;")?, before(" failed;")?))
}

fn number(count: usize) -> Result<u64> {
    u64::try_from(count).context("a count")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_meets_every_proxy_mode() {
        let upstream = all().into_iter().filter(|job| matches!(job, Job::Upstream { .. })).count();
        assert_eq!(upstream, 6);
    }

    #[test]
    fn rows_of_one_kind_are_added_up_and_bear_the_kernel() {
        let written = [("ipv4", 10, 0), ("ipv6", 5, 1), ("ipv4", 7, 0)].map(|(family, cells, wrong)| {
            format!(r#"{{"suite":"services","family":"{family}","proxy":"iptables","cells":{cells},"wrong":{wrong}}}"#)
        });
        let printed = "test result: FAILED. 2 passed; 1 failed; 0 ignored\n";
        let rows = suite_rows("services", "6.18", printed, &written.join("\n"), &[]).unwrap();
        let numbers: Vec<_> = rows.iter().map(|row| (row.family.as_str(), row.cells, row.wrong)).collect();
        assert_eq!(numbers, [("ipv4", 17, 0), ("ipv6", 5, 1)]);
        assert!(rows.iter().all(|row| row.kernel == "6.18"));
    }

    #[test]
    fn a_failed_test_is_a_wrong_row_although_no_cell_was_wrong() {
        let written = r#"{"suite":"packets","family":"dual","proxy":"-","cells":10,"wrong":0}"#;
        let rows =
            suite_rows("packets", "6.18", "test result: FAILED. 1 passed; 1 failed; 0 ignored", written, &[]).unwrap();
        assert_eq!((rows.len(), rows[1].wrong, rows[1].unit.as_str()), (2, 1, "tests"));
    }

    #[test]
    fn skips_are_counted_beside_the_cells_of_their_suite_with_each_reason_once() {
        let written = r#"{"suite":"lifecycle","family":"ipv4","proxy":"-","cells":10,"wrong":0}"#;
        let skips = ["a: Tcx is there since 6.6", "b::c: Tcx is there since 6.6", "d: Ipvs is built by CONFIG_IP_VS"];
        let counts = "test result: ok. 9 passed; 0 failed; 0 ignored";
        let rows = suite_rows("lifecycle", "5.10", counts, written, &skips).unwrap();
        assert_eq!((rows.len(), rows[0].skipped, rows[1].skipped, rows[1].cells), (2, 0, 3, 9));
        assert_eq!(rows[1].reasons, ["Ipvs is built by CONFIG_IP_VS", "Tcx is there since 6.6"]);
    }

    #[test]
    fn a_suite_that_ran_nothing_is_no_row() {
        assert!(suite_rows("packets", "6.18", "error: no test target", "", &[]).is_err());
        assert!(suite_rows("packets", "6.18", "test result: ok. 0 passed; 0 failed; 0 ignored", "", &[]).is_err());
    }

    #[test]
    fn suites_of_a_virtual_machine_are_rows_and_its_other_lines_are_not() {
        let printed = "5.10    5.10.0-32-cloud-amd64: up in 4 s, 60 s in all\n\
                       5.10    kernels      ok. 15 passed; 0 failed; 1 skipped; 12 s\n\
                       5.10      skipped: a_test: Tcx is there since 6.6\n\
                       5.10    packets      ok. 20 passed; 0 failed; 0 skipped; 12 s\n\
                       5.10    packets      {\"cells\":7,\"family\":\"dual\",\"proxy\":\"-\",\"suite\":\"ways\",\"wrong\":0}\n\
                       5.10    packets      {\"cells\":3,\"family\":\"dual\",\"proxy\":\"-\",\"suite\":\"ways\",\"wrong\":1}\n\
                       5.10    sandbox      FAILED (did not end). 3 passed; 0 failed; 0 skipped; 9 s\n\
                       5.10    machine      FAILED. 0 passed; 1 failed; 0 skipped; the kernel says: Oops\n";
        let rows = kernel_rows("5.10", printed).unwrap();
        let numbers: Vec<_> =
            rows.iter().map(|row| (row.suite.as_str(), row.cells, row.wrong, row.unit.as_str())).collect();
        let expected = [
            ("kernels", 15, 0, "tests"),
            ("ways", 10, 1, "cells"),
            ("sandbox", 3, 1, "tests"),
            ("machine", 1, 1, "tests"),
        ];
        assert_eq!(numbers, expected);
        assert!(rows.iter().all(|row| row.kernel == "5.10.0-32-cloud-amd64"));
        assert_eq!(rows.iter().map(|row| row.skipped).collect::<Vec<_>>(), [1, 0, 0, 0]);
        assert_eq!(rows[0].reasons, ["Tcx is there since 6.6"]);
        assert!(kernel_rows("6.1", printed).is_err());
    }

    #[test]
    fn every_suite_that_is_named_is_a_test_binary() {
        for suite in SUITES {
            let folder = process::workspace().join("tests/suites/tests");
            assert!(
                folder.join(suite).join("main.rs").is_file() || folder.join(format!("{suite}.rs")).is_file(),
                "{suite}"
            );
        }
    }
}
