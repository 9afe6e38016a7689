//! `cargo xtask vm`: the suites on other kernels, in virtual machines.
//!
//! [`kernels`] downloads a kernel of Debian, [`suites`] builds what runs, [`guest`] packs all of it into an initramfs
//! ([`cpio`]), and [`machine`] runs that and reads a [`report`] off a serial line. Inside, `netpol-vm-init` is the first
//! process: it mounts what suites expect, runs them one after the other, and says how each ended. Nothing is shared with
//! this machine, and its network is not reached.

mod cpio;
mod figures;
mod guest;
mod kernels;
mod machine;
mod report;
mod suites;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netpol_testbed::interrupt;

use crate::process;
use crate::setup::{self, Need};
use guest::Plan;
use machine::{Accelerator, Machine};

/// Suites that run on every kernel.
pub(crate) const SUITES: [&str; 4] = ["packets", "kernels", "sandbox", "ipvs"];

/// How many cases a property is tried on, if the caller says so.
const CASES: &str = "NETPOL_PROPERTY_CASES";

/// Where suites write what they have probed: to the line that all else of theirs goes to.
const ROWS: (&str, &str) = ("NETPOL_CELLS", "/dev/ttyS1");

/// Options of `cargo xtask vm`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernels: 5.10, 6.1, 6.12, newest [default: all of them]
    kernels: Vec<String>,
    /// Suites to run, in this order
    #[arg(long, value_delimiter = ',', default_values_t = SUITES.map(str::to_owned))]
    suite: Vec<String>,
    /// What executes the machines' instructions
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accelerator,
    /// Memory of a machine in MiB, which its files are in too
    #[arg(long, default_value_t = 3072)]
    memory: u32,
    /// Processors of a machine, with KVM; an emulated one has one
    #[arg(long, default_value_t = 2)]
    processors: u32,
    /// Seconds that a machine may take
    #[arg(long, default_value_t = 1800)]
    timeout: u64,
    /// The newest kernels that Debian has now rather than those that are pinned
    #[arg(long)]
    served: bool,
    /// Suites and agent compiled with optimisation
    #[arg(long)]
    release: bool,
    /// Given to the test binaries: a test's name, --nocapture, …
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs the suites on each kernel; the status is 1 if one of them fails on one of them.
///
/// # Errors
/// Something is missing and cannot be installed, a kernel cannot be had, or the emulator does not start.
pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let Args { kernels, suite, accel, memory, processors, timeout, served, release, arguments } = args;
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "the kernels that are known here are for x86_64, and what is built here is for {}",
            std::env::consts::ARCH
        );
    }
    interrupt::listen()?;
    setup::ensure(&Need::BPF_TOOLCHAIN)?;
    setup::ensure(&[Need::Packages, Need::Vm])?;
    let names = if kernels.is_empty() { kernels::all() } else { kernels };
    // All of them first: what cannot be had is known before anything takes long.
    let kernels = names.iter().map(|name| kernels::provide(name, served)).collect::<Result<Vec<_>>>()?;
    let built = suites::build(&suite, release)?;
    let root = process::target_directory()?.join("vm");
    std::fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    let common = guest::common(&built, &root)?;
    let mut environment = vec![(ROWS.0.to_owned(), ROWS.1.to_owned())];
    environment.extend(std::env::var(CASES).ok().map(|cases| (CASES.to_owned(), cases)));
    let mut accelerator = accel;
    let (mut summary, mut figures, mut good) = (Vec::new(), Vec::new(), true);
    for kernel in &kernels {
        let folder = root.join(&kernel.series);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let initramfs = folder.join("initramfs");
        let plan = Plan { arguments: &arguments, environment: &environment };
        // The kernel unpacks archives one after the other, as if they were one.
        let mut bytes = common.clone();
        bytes.extend(guest::own(kernel, &built, &plan)?);
        std::fs::write(&initramfs, &bytes).with_context(|| format!("cannot write {}", initramfs.display()))?;
        eprintln!("vm: {}: {}, {} MB of files", kernel.series, kernel.release, bytes.len() / 1_000_000);
        let limit = Duration::from_secs(timeout);
        let machine = Machine { kernel, initramfs: &initramfs, folder: &folder, memory, processors, limit };
        let report = machine::run(&machine, &mut accelerator)?;
        std::fs::remove_file(&initramfs).with_context(|| format!("cannot remove {}", initramfs.display()))?;
        good &= report.is_good(suite.len());
        summary.extend(report.lines(&kernel.series));
        figures.push((kernel.release.clone(), report.figures));
    }
    println!("{}", summary.join("\n"));
    print!("{}", figures::tables(&figures));
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// All files below a folder, sorted; none if there is no such folder.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))? {
            let path = entry.with_context(|| format!("cannot read {}", next.display()))?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
