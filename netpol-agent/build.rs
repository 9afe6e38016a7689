//! Builds the TC programs and embeds them in the agent.
//!
//! The BPF target has no compiled core library, so cargo builds it, which is unstable on every channel:
//! `RUSTC_BOOTSTRAP` opens that for the one nested cargo, and for nothing else of this build.

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    // SAFETY: a build script is single-threaded up to here.
    unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "1") };
    let toolchain = std::env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "1.95.0".to_owned());
    let features: &[&str] =
        if std::env::var_os("CARGO_FEATURE_DATAPATH_LOG").is_some() { &["datapath-log"] } else { &[] };
    let programs = Package {
        name: "netpol-ebpf",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../netpol-ebpf"),
        no_default_features: false,
        features,
    };
    // A build script runs once: what it leaks goes with it.
    aya_build::build_ebpf([programs], Toolchain::Custom(toolchain.leak()))
        .context("building netpol-ebpf; `cargo xtask setup` installs what it needs")
}
