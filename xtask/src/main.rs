//! What developers run: `cargo xtask <command>`.
//!
//! This crate bootstraps everything else, so it depends on nothing that needs more than a Rust toolchain and a C
//! linker: not on the agent, not on the BPF toolchain. Every command first asks [`setup`] for what it needs and then
//! drives cargo, the sandbox, or the suites. Messages go to standard error; standard output belongs to what a command
//! prints as its result (`run --output json`).

mod bench;
mod cluster;
mod conformance;
mod fuzz;
mod image;
mod lint;
mod process;
mod prove;
mod run;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, run, test and measure netpol-agent", version)]
enum Command {
    /// Install what is missing on this machine; everything that is there already is left alone
    Setup(setup::Args),
    /// Run the agent against a cluster on this machine and check every connection against the policies
    Run(run::Args),
    /// A real Kubernetes with Flannel in namespaces of this machine
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Build the agent's container image, without a container engine
    Image(image::Args),
    /// Run the tests, the privileged ones included
    Test(test::Args),
    /// Run suites on other kernels, in virtual machines
    Vm(vm::Args),
    /// Run upstream's own tests of NetworkPolicy against the DaemonSet in a cluster of this machine
    Conformance(conformance::Args),
    /// Compare oracle, tables and packets, incremental and full, on very many generated clusters
    Prove(prove::Args),
    /// Fuzz the parser of packets and the reading of policies
    Fuzz(fuzz::Args),
    /// Measure what a packet costs in each program
    Bench(bench::Args),
    /// Check formatting, lints, and the size of modules
    Lint(lint::Args),
}

fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Setup(args) => setup::main(&args),
        Command::Run(args) => run::main(args),
        Command::Cluster(command) => cluster::main(command),
        Command::Image(args) => image::main(&args),
        Command::Test(args) => test::main(&args),
        Command::Vm(args) => vm::main(args),
        Command::Conformance(args) => conformance::main(&args),
        Command::Prove(args) => prove::main(&args),
        Command::Fuzz(args) => fuzz::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::Lint(args) => lint::main(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        // 1 says "ran, and something is not as it should be"; 2 says "could not run".
        ExitCode::from(2)
    })
}
