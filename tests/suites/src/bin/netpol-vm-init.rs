//! The first process of a virtual machine of `cargo xtask vm`: mounts what suites expect of a Linux machine, runs the
//! suites of its plan one after the other, and ends the machine.
//!
//! What it says of itself goes to the second serial line, where the suites' output goes too, in lines that begin with
//! `vm: `: `up <release>`, `begins <suite>`, `ends <suite> <seconds> status <status>`, `done`; any other is a failure.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;
use serde_json::Value;

/// The serial line of everything but the kernel.
const LINE: &str = "/dev/ttyS1";

/// What is mounted, and where.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
];

/// Modules that nothing asks for by itself: what belongs to a container host before its first pod.
const MODULES: [&str; 2] = ["br_netfilter", "nf_conntrack"];

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("this is the first process of a virtual machine: see `cargo xtask vm`");
        return ExitCode::from(2);
    }
    let outcome = mounts().and_then(|()| {
        let mut line = OpenOptions::new().read(true).write(true).open(LINE).with_context(|| LINE.to_owned())?;
        if let Err(error) = suites(&mut line) {
            writeln!(line, "vm: {error:#}").context("write")?;
        }
        Ok(())
    });
    if let Err(error) = outcome {
        // Without the serial line of its own there is only the kernel's.
        eprintln!("vm: {error:#}");
    }
    // A reboot is the end, since the emulator is told to take it for that.
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    eprintln!("vm: reboot: {error}");
    ExitCode::from(2)
}

fn mounts() -> Result<()> {
    for (kind, at) in MOUNTS {
        std::fs::create_dir_all(at).with_context(|| format!("mkdir {at}"))?;
        let none = None::<&str>;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), none).with_context(|| format!("mount {kind} on {at}"))?;
    }
    Ok(())
}

/// Runs what `/plan.json` says.
fn suites(line: &mut File) -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("osrelease")?;
    writeln!(line, "vm: up {}", release.trim()).context("write")?;
    let plan = std::fs::read("/plan.json").context("/plan.json")?;
    let plan: Value = serde_json::from_slice(&plan).context("/plan.json")?;
    let environment = strings_by_name(&plan["environment"])?;
    run(line, &environment, "ip", &["link", "set", "lo", "up"])?;
    for module in MODULES {
        run(line, &environment, "modprobe", &[module])?;
    }
    let arguments = strings(&plan["arguments"])?;
    let arguments: Vec<&str> = ["--test-threads=1"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    for suite in plan["suites"].as_array().context("the plan has no suites")? {
        let text = |key: &str| suite[key].as_str().with_context(|| format!("a suite without {key}"));
        let (name, program) = (text("name")?, text("program")?);
        writeln!(line, "vm: begins {name}").context("write")?;
        let begin = Instant::now();
        let status = child(line, &environment, program, &arguments)?;
        writeln!(line, "vm: ends {name} {:.1}s {status}", begin.elapsed().as_secs_f64()).context("write")?;
    }
    writeln!(line, "vm: done").context("write")
}

fn run(line: &File, environment: &BTreeMap<String, String>, program: &str, arguments: &[&str]) -> Result<()> {
    let status = child(line, environment, program, arguments)?;
    if status != "status 0" {
        bail!("{program} {}: {status}", arguments.join(" "));
    }
    Ok(())
}

/// Runs a program to its end and returns how it ended.
fn child(line: &File, environment: &BTreeMap<String, String>, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(environment).current_dir("/");
    for (name, value) in [("PATH", "/usr/bin"), ("HOME", "/root"), ("TMPDIR", "/tmp"), ("RUST_BACKTRACE", "1")] {
        command.env(name, value);
    }
    command.stdin(File::open(Path::new("/dev/null")).context("/dev/null")?);
    command.stdout(line.try_clone().context("dup")?).stderr(line.try_clone().context("dup")?);
    // PATH of this process is what the program is looked up by.
    let started = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let child = Pid::from_raw(i32::try_from(started.id()).context("a process id")?);
    loop {
        // Orphans are the first process's children, too.
        match wait().context("wait")? {
            WaitStatus::Exited(pid, status) if pid == child => return Ok(format!("status {status}")),
            WaitStatus::Signaled(pid, signal, _) if pid == child => return Ok(format!("signal {signal}")),
            _ => {}
        }
    }
}

fn strings(value: &Value) -> Result<Vec<String>> {
    let values = value.as_array().context("no array")?.iter();
    values.map(|value| value.as_str().map(str::to_owned).context("no string")).collect()
}

fn strings_by_name(value: &Value) -> Result<BTreeMap<String, String>> {
    let values = value.as_object().context("no object")?.iter();
    values.map(|(name, value)| Ok((name.clone(), value.as_str().context("no string")?.to_owned()))).collect()
}
