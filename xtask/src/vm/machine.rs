//! One run of the emulator. The kernel talks on the first serial line, the suites on the second; both end in files, which
//! are read while they grow. The machine is over when the emulator ends: a finished machine reboots, a kernel that panics
//! does so too, and the emulator takes a reboot for its end.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_testbed::interrupt;
use netpol_testbed::place::Place;
use netpol_testbed::process::Process;

use super::kernels::Kernel;
use super::report::Report;
use crate::process;

/// How often the serial line is looked at.
const TURN: Duration = Duration::from_millis(100);

/// How long a machine may take to its first process under KVM: it takes two seconds where KVM works, and where it does not
/// (nested, with other hardware in mind) the machine stands still from the first instruction.
const KVM_TRIAL: Duration = Duration::from_secs(20);

/// How many lines of a serial line are shown of a machine that failed.
const LAST: usize = 30;

/// What executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Accelerator {
    /// KVM, after a trial, and else emulation
    Auto,
    /// The processor, through KVM
    Kvm,
    /// Emulation, which works everywhere
    Tcg,
}

/// What a machine is made of.
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) initramfs: &'a Path,
    /// Where its serial lines are kept.
    pub(super) folder: &'a Path,
    /// Mebibytes.
    pub(super) memory: u32,
    pub(super) processors: u32,
    /// How long it may take in all.
    pub(super) limit: Duration,
}

/// How a machine ended.
pub(super) enum End {
    /// By itself; the report says how far it came.
    Itself,
    /// It was ended for this reason.
    Ended(String),
    /// It was tried, and its first process never came up, in time or at all.
    Stillborn,
}

/// Runs a machine and reads its report. With [`Accelerator::Auto`], settles which one it is, for the machines that follow.
///
/// # Errors
/// The emulator cannot be started, or the user has interrupted.
pub(super) fn run(machine: &Machine<'_>, accelerator: &mut Accelerator) -> Result<Report> {
    if *accelerator == Accelerator::Auto {
        *accelerator = match usable_kvm() {
            Ok(()) => match once(machine, Accelerator::Kvm, Some(KVM_TRIAL))? {
                (End::Stillborn, _) => {
                    eprintln!("vm: KVM is here, but no machine comes up in {KVM_TRIAL:?} with it: emulating");
                    Accelerator::Tcg
                }
                (End::Itself | End::Ended(_), report) => {
                    *accelerator = Accelerator::Kvm;
                    return Ok(report);
                }
            },
            Err(why) => {
                eprintln!("vm: emulating, which is slow: {why}");
                Accelerator::Tcg
            }
        };
    }
    once(machine, *accelerator, None).map(|(_, report)| report)
}

fn usable_kvm() -> Result<(), String> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("/dev/kvm: {error}")),
    }
}

fn once(machine: &Machine<'_>, accelerator: Accelerator, trial: Option<Duration>) -> Result<(End, Report)> {
    let Machine { folder, limit, .. } = machine;
    let (console, output, log) = (folder.join("console.log"), folder.join("output.log"), folder.join("qemu.log"));
    for path in [&console, &output, &log] {
        File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let command = emulator(machine, accelerator, &console, &output);
    std::fs::write(folder.join("command"), process::line(&command)).context("cannot write the command")?;
    let begin = Instant::now();
    let mut emulator = Process::start("qemu", command, &Place::default(), &log)?;
    let mut tail = Tail::open(&output)?;
    let mut report = Report::default();
    let end = loop {
        // Asked before reading: what is written before the end is then read after it.
        let running = emulator.check().is_ok();
        for line in tail.lines()? {
            if report.take(&line, begin.elapsed()) {
                eprintln!("[{}] {line}", machine.kernel.series);
            }
        }
        if !running {
            // Where KVM refuses what this processor has, the emulator itself gives up.
            break if trial.is_some() && !report.is_up() { End::Stillborn } else { End::Itself };
        }
        if trial.is_some_and(|trial| !report.is_up() && begin.elapsed() > trial) {
            break End::Stillborn;
        }
        if begin.elapsed() > *limit {
            break End::Ended(format!("it was not finished after {limit:?}"));
        }
        if interrupt::requested() {
            bail!(interrupt::Interrupted);
        }
        std::thread::sleep(TURN);
    };
    emulator.kill();
    report.wall = begin.elapsed();
    if let End::Ended(why) = &end {
        report.failures.push(why.clone());
    }
    report.console(&std::fs::read(&console).map(|bytes| lossy(&bytes)).unwrap_or_default());
    if !matches!(end, End::Stillborn) && !report.is_complete() {
        report.failures.push("it did not come to its end".to_owned());
        for (what, path) in [("the kernel's", &console), ("the suites'", &output), ("the emulator's", &log)] {
            let text = std::fs::read(path).map(|bytes| lossy(&bytes)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines.get(lines.len().saturating_sub(LAST)..).unwrap_or_default();
            eprintln!("vm: {}: {what} last lines, of {}:\n{}", machine.kernel.series, path.display(), last.join("\n"));
        }
    }
    Ok((end, report))
}

fn emulator(machine: &Machine<'_>, accelerator: Accelerator, console: &Path, output: &Path) -> Command {
    let Machine { kernel, initramfs, memory, processors, .. } = machine;
    let file = |path: &Path| format!("file:{}", path.display());
    let mut qemu = process::command("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    let processors = match accelerator {
        Accelerator::Kvm => {
            qemu.args(["-accel", "kvm", "-cpu", "host"]);
            *processors
        }
        // The machine's clock counts its instructions, two nanoseconds each, and jumps where it would sleep: a probe's
        // time-out is as long for the machine on a busy host as on an idle one, and waiting costs nothing. Such a clock
        // goes with one processor; two hardly come to boot. Five-level page tables cost each emulated access, and nothing
        // here needs them. What qemu up to 7.2 leaves in the flags behind CMPXCHG16B is garbage but for ZF: an interrupt that
        // comes right after it, as in the kernel's kmalloc(), returns into a mode that there is not, which is a double fault.
        // A kernel without that instruction takes a lock instead.
        Accelerator::Auto | Accelerator::Tcg => {
            qemu.args([
                "-accel",
                "tcg",
                "-icount",
                "shift=1,sleep=off",
                "-rtc",
                "clock=vm",
                "-cpu",
                "max,la57=off,cx16=off",
            ]);
            1
        }
    };
    qemu.args(["-m", &memory.to_string(), "-smp", &processors.to_string()]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    qemu.args(["-serial", &file(console), "-serial", &file(output)]);
    // An oops is as bad as a panic here, and a panic is the end. What guards against hostile programs on the same
    // processor costs much under emulation.
    let arguments = "console=ttyS0 panic=-1 oops=panic mitigations=off loglevel=6 rdinit=/init";
    qemu.args(["-append", arguments]);
    qemu
}

/// A file that grows.
struct Tail {
    file: File,
    path: PathBuf,
    rest: Vec<u8>,
}

impl Tail {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { file, path: path.to_owned(), rest: Vec::new() })
    }

    /// The whole lines that have come since the last call.
    fn lines(&mut self) -> Result<Vec<String>> {
        self.file.read_to_end(&mut self.rest).with_context(|| format!("cannot read {}", self.path.display()))?;
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(Vec::new()) };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        Ok(lossy(&whole).lines().map(str::to_owned).collect())
    }
}

/// Text of a serial line, which ends lines with two characters.
fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_line_is_given_when_it_is_whole() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut tail = Tail::open(file.path()).unwrap();
        file.write_all(b"one\r\ntw").unwrap();
        assert_eq!(tail.lines().unwrap(), ["one"]);
        assert_eq!(tail.lines().unwrap(), [""; 0]);
        file.write_all(b"o\r\nthree\r\n").unwrap();
        assert_eq!(tail.lines().unwrap(), ["two", "three"]);
    }
}
