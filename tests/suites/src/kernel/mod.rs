//! What kernels have and lack: one place for every test that asks.
//!
//! A test that needs a feature asks [`require`] and returns where it is absent: that is a skip, printed with the reason,
//! past the test harness, which would hide it. A kernel that should have the feature, by its version or by its
//! configuration, and does not show it fails the test: otherwise a broken probe would look like an old kernel.

pub mod elements;
pub mod raw;
pub mod stack;
pub mod test_run;
pub mod verifier;

use std::fmt;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use netpol_agent::dataplane::attach::Mechanism;
use netpol_testbed::kernel::{BuildOption, IP_SCTP, IP_VS, NF_CT_PROTO_SCTP, release};
use netpol_testbed::servers::kernel_has_sctp;
use raw::Instruction;

/// Major and minor number of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16);

impl Version {
    /// The running kernel's.
    ///
    /// # Errors
    /// It does not say, or in no known form.
    pub fn running() -> Result<Self> {
        let release = release()?;
        Self::parse(&release).with_context(|| format!("a kernel that calls itself {release:?}"))
    }

    /// Reads what a kernel calls itself; `None` if that does not begin with two numbers.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Since when kernels have a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// A version, and the commit that brought it.
    Version(Version, &'static str),
    /// Older than any kernel that is supported, but an option of the configuration that some leave out.
    Option(BuildOption),
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version, commit) => write!(f, "there since {version}, commit {commit}"),
            Self::Option(option) => write!(f, "built by {}", option.name),
        }
    }
}

/// Something that not every supported kernel has, and that a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Programs attached by links, in an order of our choice.
    Tcx,
    /// `BPF_PROG_TEST_RUN` takes the device that a packet came in by.
    TestRunIngress,
    /// The kernel says how many instructions the verifier followed.
    VerifiedInstructions,
    /// Sockets for SCTP.
    SctpSockets,
    /// Connection tracking, and so rewriting, of SCTP.
    SctpTracking,
    /// IPVS, which kube-proxy's mode of that name uses.
    Ipvs,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Tcx,
        Self::TestRunIngress,
        Self::VerifiedInstructions,
        Self::SctpSockets,
        Self::SctpTracking,
        Self::Ipvs,
    ];

    /// Since when it is there.
    #[must_use]
    pub const fn since(self) -> Since {
        match self {
            // "bpf: Add fd-based tcx multi-prog infra with link support"
            Self::Tcx => Since::Version(Version(6, 6), "e420bed02507"),
            // "bpf: Permit ingress_ifindex in bpf_prog_test_run_xattr"
            Self::TestRunIngress => Since::Version(Version(5, 16), "b238290b965f"),
            // "bpf: Add verified_insns to bpf_prog_info and fdinfo"
            Self::VerifiedInstructions => Since::Version(Version(5, 16), "aba64c7da983"),
            Self::SctpSockets => Since::Option(IP_SCTP),
            Self::SctpTracking => Since::Option(NF_CT_PROTO_SCTP),
            Self::Ipvs => Since::Option(IP_VS),
        }
    }

    /// Asks the running kernel, whatever its version.
    fn is_there(self) -> Result<bool> {
        let nothing = || raw::load(&[Instruction::mov(raw::R0, 0), Instruction::EXIT]);
        Ok(match self {
            Self::Tcx => Mechanism::probe() == Mechanism::Tcx,
            Self::TestRunIngress => test_run::takes_ingress(&nothing()?)?,
            Self::VerifiedInstructions => raw::verified_instructions(&nothing()?)? > 0,
            Self::SctpSockets => kernel_has_sctp(),
            Self::SctpTracking => {
                NF_CT_PROTO_SCTP.load();
                Path::new("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_closed").exists()
            }
            Self::Ipvs => {
                IP_VS.load();
                Path::new("/proc/net/ip_vs").exists()
            }
        })
    }

    /// Whether this kernel must have it.
    fn is_promised(self) -> Result<bool> {
        match self.since() {
            Since::Version(version, _) => Ok(Version::running()? >= version),
            Since::Option(option) => option.is_built(),
        }
    }
}

/// Whether the running kernel has a feature, for tests that have another way without it.
///
/// # Panics
/// The kernel should have it and does not show it, or cannot be asked.
#[must_use]
pub fn has(feature: Feature) -> bool {
    let there = feature.is_there().unwrap_or_else(|error| panic!("{feature:?}: {error:#}"));
    if !there {
        let promised = feature.is_promised().unwrap_or_else(|error| panic!("{feature:?}: {error:#}"));
        let kernel = release().unwrap_or_default();
        assert!(!promised, "{feature:?} is {}, and {kernel} does not show it", feature.since());
    }
    there
}

/// Whether the running kernel has what the calling test cannot do without; where not, says so, for all to see.
///
/// # Panics
/// The kernel should have it and does not show it: that is no reason to skip.
#[must_use]
pub fn require(feature: Feature) -> bool {
    let there = has(feature);
    if !there {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        tell(&format!("skip: {test}: {feature:?} is {}", feature.since()));
    }
    there
}

/// Prints what is to be compared between kernels: `cargo xtask vm` makes a table of each `what`, with a column for each `of`.
pub fn figure(what: &str, of: &str, value: &str) {
    tell(&format!("figure: {what}: {of}: {value}"));
}

/// Prints a line past the harness, which captures what the print macros print, and shows it of failed tests only.
fn tell(line: &str) {
    // Should standard error be closed, nobody is there to be told.
    let _ = writeln!(std::io::stderr(), "\n{line}");
}
