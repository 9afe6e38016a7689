//! How a suite tells `cargo xtask conformance --all` what it has probed: a line of JSON for each matrix or set of
//! packets, appended to the file that `NETPOL_CELLS` names. Lines of the same suite, family and proxy mode are added up.
//! Nobody listens where the variable is not set.

use std::fmt::Debug;
use std::fs::File;
use std::io::Write;
use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::json;

/// Tells that `cells` connections or packets were tried, of which `wrong` were not judged as they should be. `family` is
/// `ipv4`, `ipv6` or `dual`, `proxy` kube-proxy's mode, or `-` where no Service is involved.
///
/// # Errors
/// The file cannot be written.
pub fn report(suite: &str, family: &str, proxy: &str, cells: usize, wrong: usize) -> Result<()> {
    let Some(path) = std::env::var_os("NETPOL_CELLS") else { return Ok(()) };
    let line = json!({ "suite": suite, "family": family, "proxy": proxy, "cells": cells, "wrong": wrong });
    let file = File::options().create(true).append(true).open(&path);
    let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
    // One write: lines of several processes do not mix.
    file.write_all(format!("{line}\n").as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// Tells of one connection or packet, where no Service is involved, and fails if it has another outcome than expected;
/// `what` says which one it was.
///
/// # Panics
/// In that case, or if the file cannot be written.
#[track_caller]
pub fn expect<T: Debug + PartialEq>(suite: &str, family: &str, observed: &T, expected: &T, what: impl Debug) {
    report(suite, family, "-", 1, usize::from(observed != expected)).expect("the file for rows");
    assert_eq!(observed, expected, "{what:?}");
}

/// The family of an address, as rows name it.
#[must_use]
pub const fn family_of(address: &IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "ipv4",
        IpAddr::V6(_) => "ipv6",
    }
}
