//! What the running kernel was built with. Whoever leaves something out because the kernel cannot carry it asks here first,
//! so that a probe that fails for another reason is not taken for a kernel that lacks the thing.
//!
//! Its configuration says so, where it can be read. Elsewhere the kernel's table of functions does, `/proc/kallsyms`, which
//! has what is built in or loaded, and for the rest the list of its modules. Where these do not tell either, that is an
//! error and not a no.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// An option of the kernel's configuration, and what shows it in a kernel that was built with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildOption {
    /// As in the configuration: `CONFIG_IP_SCTP`.
    pub name: &'static str,
    /// A function that is only there with it; one of several files of source, so that no compiler does without it.
    function: &'static str,
    /// The module that the function is in.
    module: &'static str,
    /// A function of the module that is there without the option, too; none where the option is all of the module.
    without: Option<&'static str>,
}

/// Sockets for SCTP.
pub const IP_SCTP: BuildOption =
    BuildOption { name: "CONFIG_IP_SCTP", function: "sctp_do_sm", module: "sctp", without: None };

/// Connection tracking of SCTP: a part of the module that tracks everything else.
pub const NF_CT_PROTO_SCTP: BuildOption = BuildOption {
    name: "CONFIG_NF_CT_PROTO_SCTP",
    function: "nf_conntrack_sctp_packet",
    module: "nf_conntrack",
    without: Some("nf_conntrack_in"),
};

/// IPVS.
pub const IP_VS: BuildOption =
    BuildOption { name: "CONFIG_IP_VS", function: "register_ip_vs_scheduler", module: "ip_vs", without: None };

impl BuildOption {
    /// Whether the running kernel has it, built in or as a module.
    ///
    /// # Errors
    /// Nothing that can be read tells.
    pub fn is_built(&self) -> Result<bool> {
        Evidence::read(&release()?).decide(self)
    }

    /// Loads the module that it is in, unless it is built in or there is none: what follows from it says which.
    pub fn load(&self) {
        let _status = Command::new("modprobe").args(["--quiet", self.module]).status();
    }
}

/// What the running kernel calls itself: `5.10.0-32-cloud-amd64`.
///
/// # Errors
/// It does not say.
pub fn release() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("osrelease")?;
    Ok(text.trim().to_owned())
}

/// Whether a configuration has an option, built in or as a module.
#[must_use]
pub fn is_built(configuration: &str, option: &str) -> bool {
    let value = |line: &str| line.strip_prefix(option)?.strip_prefix('=').map(str::to_owned);
    configuration.lines().find_map(value).is_some_and(|value| value == "y" || value == "m")
}

/// What a kernel shows of itself; none where it cannot be read.
#[derive(Clone, Debug, Default)]
struct Evidence {
    configuration: Option<String>,
    /// `/proc/kallsyms`: lines of address, kind, name, and the module in brackets.
    functions: Option<String>,
    /// Its `modules.dep`, whose lines begin with the files of modules.
    modules: Option<String>,
    /// Whether it loads modules at all (`CONFIG_MODULES`).
    loads: bool,
}

impl Evidence {
    fn read(release: &str) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok().filter(|text| !text.is_empty());
        Self {
            configuration: configuration(release),
            functions: read("/proc/kallsyms"),
            modules: read(&format!("/lib/modules/{release}/modules.dep")),
            loads: Path::new("/proc/modules").exists(),
        }
    }

    fn decide(&self, option: &BuildOption) -> Result<bool> {
        let Self { configuration, functions, modules, loads } = self;
        let BuildOption { name, function, module, without } = option;
        if let Some(configuration) = configuration {
            return Ok(is_built(configuration, name));
        }
        let Some(functions) = functions else {
            bail!("whether the kernel has {name}: neither its configuration nor /proc/kallsyms can be read");
        };
        let has = |wanted: &str| functions.lines().any(|line| line.split_ascii_whitespace().nth(2) == Some(wanted));
        if has(function) {
            return Ok(true);
        }
        if without.is_some_and(has) || !loads {
            return Ok(false);
        }
        let file = |line: &str| line.split('.').next().is_some_and(|path| path.ends_with(&format!("/{module}")));
        match (modules.as_ref().map(|list| list.lines().any(file)), without) {
            (Some(false), _) => Ok(false),
            (Some(true), None) => Ok(true),
            (Some(true), Some(_)) => bail!("whether the kernel has {name}: its module {module} is not loaded"),
            (None, _) => bail!("whether the kernel has {name}: neither its configuration nor modules.dep can be read"),
        }
    }
}

/// A kernel's configuration, from wherever it is kept.
fn configuration(release: &str) -> Option<String> {
    let files = [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")];
    if let Some(text) = files.iter().find_map(|path| std::fs::read_to_string(path).ok()) {
        return Some(text);
    }
    let output = Command::new("zcat").arg("/proc/config.gz").output().ok()?;
    (output.status.success() && !output.stdout.is_empty()).then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "ffffffff81f42d60 T tcp_v4_rcv\nffffffffc0a1 t nf_conntrack_in\t[nf_conntrack]\n";

    fn kernel(functions: &str, modules: Option<&str>, loads: bool) -> Evidence {
        Evidence {
            configuration: None,
            functions: Some(functions.to_owned()),
            modules: modules.map(str::to_owned),
            loads,
        }
    }

    #[test]
    fn a_configuration_is_believed_before_anything_else() {
        let of = |text: &str| Evidence { configuration: Some(text.to_owned()), ..kernel("0 T sctp_do_sm", None, true) };
        assert!(of("CONFIG_IP_SCTP=m\n").decide(&IP_SCTP).unwrap());
        assert!(!of("# CONFIG_IP_SCTP is not set\n").decide(&IP_SCTP).unwrap());
    }

    #[test]
    fn without_a_configuration_functions_and_the_list_of_modules_tell() {
        let loaded = format!("{BARE}ffffffffc0 T sctp_do_sm\t[sctp]\n");
        assert!(kernel(&loaded, None, true).decide(&IP_SCTP).unwrap());
        let list = "kernel/net/netfilter/xt_sctp.ko: x\nkernel/net/sctp/sctp.ko.xz: kernel/lib/libcrc32c.ko.xz\n";
        assert!(kernel(BARE, Some(list), true).decide(&IP_SCTP).unwrap());
        assert!(!kernel(BARE, Some("kernel/net/netfilter/xt_sctp.ko: sctp\n"), true).decide(&IP_SCTP).unwrap());
        assert!(
            !kernel(BARE, None, false).decide(&IP_SCTP).unwrap(),
            "a kernel that loads none has it built in or not"
        );
    }

    #[test]
    fn a_part_of_a_module_is_told_by_the_module_that_is_loaded() {
        assert!(!kernel(BARE, None, true).decide(&NF_CT_PROTO_SCTP).unwrap());
        let list = Some("kernel/net/netfilter/nf_conntrack.ko:\n");
        assert!(kernel("0 T tcp_v4_rcv\n", list, true).decide(&NF_CT_PROTO_SCTP).is_err());
    }

    #[test]
    fn a_kernel_that_does_not_tell_is_an_error_and_not_one_without() {
        assert!(Evidence { loads: true, ..Evidence::default() }.decide(&IP_SCTP).is_err());
        assert!(kernel(BARE, None, true).decide(&IP_SCTP).is_err());
    }

    #[test]
    fn this_kernels_functions_do_not_contradict_its_configuration() {
        let told = Evidence::read(&release().unwrap());
        let by_functions = Evidence { configuration: None, ..told.clone() };
        for option in [IP_SCTP, NF_CT_PROTO_SCTP, IP_VS] {
            // A module that nobody has loaded, of a kernel whose list of modules is elsewhere, tells nothing.
            if let (Ok(one), Ok(other)) = (told.decide(&option), by_functions.decide(&option)) {
                assert_eq!(one, other, "{}", option.name);
            }
        }
    }
}
