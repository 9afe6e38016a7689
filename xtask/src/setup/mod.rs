//! What a command needs on this machine, and how it gets there.
//!
//! Each [`Need`] answers two questions: what is missing, and how to install it. [`ensure`] asks the first and does the
//! second only where something is missing, so that it costs milliseconds on a machine that has everything, and every
//! command can begin with it. What is built or downloaded goes to the toolchain's own folders or to one cache outside
//! the source tree; `rm -r` of that cache is a clean start.

mod bpf_linker;
mod cluster;
mod conformance_suite;
mod control_plane;
pub(crate) mod debian;
mod fuzzing;
mod packages;
mod progress;
mod rust_src;
mod vm;

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use netpol_testbed::control_plane::installation::cache_directory;

/// Options of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these; everything if absent
    #[arg(long, value_enum, value_delimiter = ',')]
    what: Vec<Need>,
    /// Only say what is missing; the exit status is 1 if something is
    #[arg(long)]
    check: bool,
}

/// Something that a command cannot do without.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Need {
    /// Debian packages that the testbed runs programs of
    Packages,
    /// The sources of Rust's core library, which are compiled for the BPF target
    RustSrc,
    /// The linker that makes a BPF object from LLVM bitcode
    BpfLinker,
    /// etcd, kube-apiserver and kubectl
    ControlPlane,
    /// What nodes run: kubelet, containerd, flanneld, CNI plugins, kube-proxy, images
    Cluster,
    /// An emulator, and what its machines are made with
    Vm,
    /// Upstream's tests of NetworkPolicy, which run against a cluster
    ConformanceSuite,
    /// A C++ compiler, which libFuzzer is built with
    Fuzzing,
}

impl Need {
    /// What building the agent takes.
    pub(crate) const BPF_TOOLCHAIN: [Self; 2] = [Self::RustSrc, Self::BpfLinker];

    /// What is missing, in a few words.
    fn missing(self) -> Result<Option<String>> {
        match self {
            Self::Packages => Ok(packages::missing()),
            Self::RustSrc => rust_src::missing(),
            Self::BpfLinker => bpf_linker::missing(),
            Self::ControlPlane => control_plane::missing(),
            Self::Cluster => cluster::missing(),
            Self::Vm => Ok(vm::missing()),
            Self::ConformanceSuite => conformance_suite::missing(),
            Self::Fuzzing => Ok(fuzzing::missing()),
        }
    }

    fn install(self) -> Result<()> {
        match self {
            Self::Packages => packages::install(),
            Self::RustSrc => rust_src::install(),
            Self::BpfLinker => bpf_linker::install(),
            Self::ControlPlane => control_plane::install(),
            Self::Cluster => cluster::install(),
            Self::Vm => vm::install(),
            Self::ConformanceSuite => conformance_suite::install(),
            Self::Fuzzing => fuzzing::install(),
        }
    }
}

/// Runs `cargo xtask setup`.
///
/// # Errors
/// Something is missing and cannot be installed.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let needs = if args.what.is_empty() { Need::value_variants() } else { &args.what };
    if args.check {
        let mut complete = true;
        for need in needs {
            if let Some(missing) = need.missing()? {
                complete = false;
                eprintln!("setup: missing: {missing}");
            }
        }
        return Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(1) });
    }
    let installed = ensure(needs)?;
    if !installed {
        eprintln!("setup: nothing is missing");
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing of `needs`, in their order, and returns whether anything was.
///
/// # Errors
/// Something cannot be installed; the message says what, and what was tried.
pub(crate) fn ensure(needs: &[Need]) -> Result<bool> {
    let mut installed = false;
    for need in needs {
        if need.missing()?.is_none() {
            continue;
        }
        let _lock = lock()?;
        // Another checkout may have been installing the same while this one waited.
        let Some(missing) = need.missing()? else { continue };
        let begin = Instant::now();
        eprintln!("setup: installing {missing}");
        need.install().with_context(|| format!("cannot install {missing}"))?;
        if let Some(still) = need.missing()? {
            bail!("installed {missing}, and yet it is missing: {still}");
        }
        eprintln!("setup: installed {missing} in {} s", begin.elapsed().as_secs());
        installed = true;
    }
    Ok(installed)
}

/// The folder of tools that are kept from the user's own: its `bin` leads [`crate::process::path`].
pub(crate) fn private_tools() -> Option<PathBuf> {
    cache_directory().ok().map(|cache| cache.join("tools"))
}

/// Held while something is being installed: one at a time on this machine.
fn lock() -> Result<File> {
    let directory = cache_directory()?;
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let path = directory.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}
