//! One run of upstream's specs on one combination of the cluster's options.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use netpol_testbed::interrupt;

use super::report::{Summary, line};
use super::runner::Program;
use super::site::{Right, Site};
use super::specs::{Selection, Spec};
use super::suite::Recipe;
use crate::cluster::Options;

/// What to run, and where.
pub(super) struct Run<'a> {
    pub(super) options: &'a Options,
    pub(super) selection: &'a Selection,
    pub(super) parallel: usize,
    pub(super) keep: bool,
    /// The agent's image.
    pub(super) image: &'a Path,
    /// Where logs and reports go.
    pub(super) folder: PathBuf,
}

impl Run<'_> {
    /// Starts the cluster, runs the specs, and takes the cluster down.
    ///
    /// # Errors
    /// Something could not be started, or the user interrupts.
    pub(super) fn main(&self, right: &Right) -> Result<Summary> {
        let begin = Instant::now();
        let program = Program { path: Recipe::read()?.program()?, folder: self.folder.clone() };
        let (suite, specs) = program.list()?;
        let chosen: Vec<Spec> = specs.into_iter().filter(|spec| self.selection.contains(spec)).collect();
        let (sctp, mut chosen): (Vec<Spec>, Vec<Spec>) = chosen.into_iter().partition(Spec::needs_sctp);
        let mut without_sctp = Vec::new();
        if has_sctp()? {
            chosen.extend(sctp);
        } else {
            without_sctp = sctp;
        }
        if chosen.is_empty() && without_sctp.is_empty() {
            bail!("no spec is chosen");
        }
        let outcomes = {
            let _site = Site::start(right, self.options, self.image, self.keep)?;
            eprintln!("conformance: {} specs, {} at a time, with {}", chosen.len(), self.parallel, self.options);
            let total = chosen.len();
            let count = AtomicUsize::new(0);
            program.run(&suite, &chosen, self.parallel, &|outcome| {
                let number = count.fetch_add(1, Ordering::Relaxed) + 1;
                eprintln!("conformance: {number}/{total} {}", line(outcome));
            })?
        };
        if interrupt::requested() {
            bail!(interrupt::Interrupted);
        }
        Ok(Summary { options: self.options.clone(), outcomes, without_sctp, seconds: begin.elapsed().as_secs_f64() })
    }
}

/// Whether this kernel, which every node of the cluster runs on, makes SCTP sockets (`CONFIG_IP_SCTP`).
fn has_sctp() -> Result<bool> {
    // SAFETY: socket takes three numbers, and the descriptor is nobody else's.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) };
    if socket >= 0 {
        // SAFETY: the descriptor was made above, and is closed once.
        unsafe { libc::close(socket) };
        return Ok(true);
    }
    match std::io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(false),
        error => Err(error).context("socket(IPPROTO_SCTP)"),
    }
}
