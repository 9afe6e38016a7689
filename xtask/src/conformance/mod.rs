//! `cargo xtask conformance`: upstream's own tests of NetworkPolicy, unchanged, against the DaemonSet in a cluster of
//! this machine; with `--all`, everything that is held against the API's words, on every combination.
//!
//! [`suite`] is the program that the specs are in, [`site`] the cluster with the agent, [`runner`] runs [`specs`], and
//! [`report`] says what came of it; [`upstream`] is these in order, for one combination, and [`all`] these and other suites for every one.

mod all;
mod report;
mod runner;
mod site;
mod specs;
pub(crate) mod suite;
mod upstream;

use std::cell::OnceCell;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use netpol_testbed::interrupt;

use crate::cluster::{self, Options};
use crate::process;
use crate::setup::{self, Need};
use site::Right;
use specs::Selection;
use upstream::Run;

/// Options of `cargo xtask conformance`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    selection: Selection,
    /// Specs at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: u8,
    /// The agent's image, an archive as `cargo xtask image` writes it, instead of one that is built from this checkout
    #[arg(long, value_name = "FILE", conflicts_with_all = ["profile", "all"])]
    image: Option<PathBuf>,
    /// Cargo's profile of the agent: the default is what is shipped, dev is compiled sooner
    #[arg(long, default_value = "image")]
    profile: String,
    /// Leave the cluster standing, and use the one that a run with this option has left
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    all: all::Choice,
    /// What is printed on standard output
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON document, and nothing else
    Json,
}

/// Runs it: the status is 0 if every spec passed, and 1 if one failed or was skipped without need.
///
/// # Errors
/// It could not run.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if !process::is_root() {
        bail!("namespaces and BPF need root");
    }
    let right = Right::take()?;
    setup::ensure(&[Need::Packages, Need::ControlPlane, Need::Cluster, Need::ConformanceSuite])?;
    interrupt::listen()?;
    match run(args, &right) {
        Err(error) if error.is::<interrupt::Interrupted>() || interrupt::requested() => {
            eprintln!("conformance: interrupted");
            Ok(ExitCode::from(130))
        }
        outcome => outcome,
    }
}

fn run(args: &Args, right: &Right) -> Result<ExitCode> {
    let Args { options, selection, parallel, image, profile, keep, all, output } = args;
    let folder = process::target_directory()?.join("conformance");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let built = OnceCell::new();
    if let Some(image) = image {
        let image = image.canonicalize().with_context(|| format!("--image {}", image.display()))?;
        let _ = built.set(image);
    }
    let upstream = |options: &Options| {
        let image = match built.get() {
            Some(image) => image,
            None => {
                let image = site::image(&folder, profile)?;
                built.get_or_init(|| image)
            }
        };
        let Options { nodes: _, backend, proxy, families } = options;
        let name = [cluster::name(*families), cluster::name(*proxy), cluster::name(*backend)].join("-");
        let parallel = usize::from(*parallel);
        Run { options, selection, parallel, keep: *keep, image, folder: folder.join(name) }.main(right)
    };
    if all.all {
        let context = all::Context {
            upstream: &|families, proxy| upstream(&Options { proxy, families, ..options.clone() }),
            chosen: selection.to_string(),
            folder: &folder,
        };
        return all::main(all, &context, *output);
    }
    let summary = upstream(options)?;
    match output {
        Output::Text => print!("{}", summary.text()),
        Output::Json => println!("{}", summary.json()),
    }
    Ok(if summary.complaints().is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn options_are_consistent_and_all_takes_none_of_one_combination() {
        Line::command().debug_assert();
        assert!(Line::try_parse_from(["", "--all", "--families", "ipv6"]).is_err());
        assert!(Line::try_parse_from(["", "--rows", "upstream"]).is_err());
        assert!(Line::parse_from(["", "--all", "--rows", "upstream", "--backend", "host-gw"]).args.all.all);
    }
}
