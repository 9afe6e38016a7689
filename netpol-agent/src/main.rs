//! `netpol-agent`: see the library of the same name.

use std::process::ExitCode;

use netpol_agent::{agent, cli};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(command) => agent::main(command),
        Err(usage) => usage.report(),
    }
}
