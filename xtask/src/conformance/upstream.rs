//! One run of upstream's specs on one combination of the cluster's options.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use netpol_testbed::{interrupt, kernel};

use super::report::{Summary, line};
use super::runner::Program;
use super::site::{Right, Site};
use super::specs::{Lack, Selection, Spec, census};
use super::suite::{Recipe, SPECS};
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
        census(&specs, SPECS)?;
        let chosen: Vec<Spec> = specs.into_iter().filter(|spec| self.selection.contains(spec)).collect();
        let (sctp, mut chosen): (Vec<Spec>, Vec<Spec>) = chosen.into_iter().partition(Spec::needs_sctp);
        let mut left_out = Vec::new();
        match lacks_sctp(makes_sctp_sockets()?, || kernel::IP_SCTP.is_built())? {
            None => chosen.extend(sctp),
            Some(lack) => left_out.extend(sctp.into_iter().map(|spec| (spec, lack))),
        }
        if chosen.is_empty() && left_out.is_empty() {
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
        ensure!(outcomes.len() == chosen.len(), "{} of {} specs have an outcome", outcomes.len(), chosen.len());
        Ok(Summary { options: self.options.clone(), outcomes, left_out, seconds: begin.elapsed().as_secs_f64() })
    }
}

/// Why specs that need SCTP sockets are not run; none if they are. A kernel that is built with them may not skip them, even
/// where it makes none, as without its module: that is to be mended and not to be skipped.
fn lacks_sctp(makes_sockets: bool, is_built: impl FnOnce() -> Result<bool>) -> Result<Option<Lack>> {
    if makes_sockets {
        return Ok(None);
    }
    let option = kernel::IP_SCTP.name;
    ensure!(!is_built()?, "this kernel has {option} and makes no SCTP socket: modprobe sctp");
    Ok(Some(Lack::SctpSockets))
}

/// Whether this kernel, which every node of the cluster runs on, makes SCTP sockets.
fn makes_sctp_sockets() -> Result<bool> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_of_sctp_are_left_out_only_by_a_kernel_that_is_built_without_it() {
        assert_eq!(lacks_sctp(true, || bail!("nobody asks")).unwrap(), None);
        assert_eq!(lacks_sctp(false, || Ok(false)).unwrap(), Some(Lack::SctpSockets));
        assert!(lacks_sctp(false, || Ok(true)).is_err());
        assert!(lacks_sctp(false, || bail!("the kernel does not tell")).is_err());
    }
}
