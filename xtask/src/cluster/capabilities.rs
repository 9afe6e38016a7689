//! Capabilities that the host withholds even from root, as inside of a container or a sandbox.
//!
//! runc refuses a container that asks for one of them, although what the container does may need it in other places only
//! (the DaemonSet asks for `SYS_RESOURCE` for kernels that this host is newer than). So containerd is given a runtime
//! that takes the withheld ones out of the container's specification and then is runc. Where nothing is withheld, it is
//! given runc itself.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// By their number: capabilities(7).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The capabilities that the kernel knows and this process can never have.
pub(super) fn withheld() -> Result<Vec<&'static str>> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let bounding =
        status.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("CapBnd of /proc/self/status")?;
    let bounding = u64::from_str_radix(bounding.trim(), 16).context("CapBnd of /proc/self/status")?;
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").context("cap_last_cap")?;
    let known = last.trim().parse::<usize>().context("cap_last_cap")? + 1;
    Ok(not_in(bounding, known))
}

fn not_in(bounding: u64, known: usize) -> Vec<&'static str> {
    let numbered = NAMES.iter().enumerate().take(known);
    numbered.filter(|(number, _)| bounding >> number & 1 == 0).map(|(_, name)| *name).collect()
}

/// Writes the runtime that asks for none of `withheld` into a folder that machines see.
pub(super) fn write_runtime(folder: &Path, withheld: &[&str]) -> Result<PathBuf> {
    let path = folder.join("runc");
    std::fs::write(&path, script(withheld)).with_context(|| format!("cannot write {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).context("chmod")?;
    Ok(path)
}

/// A shell's program: the specification is JSON, where a capability is a string that nothing else looks like.
fn script(withheld: &[&str]) -> String {
    let mut edits = String::new();
    for name in withheld {
        // With the comma after it, as the last of several, or alone.
        edits += &format!(" -e 's/\"CAP_{name}\",//g' -e 's/,\"CAP_{name}\"//g' -e 's/\"CAP_{name}\"//g'");
    }
    format!(
        "#!/bin/sh\n\
         # runc, but for capabilities that this machine has not got.\n\
         bundle= create= previous=\n\
         for argument; do\n\
         \tcase $argument in create|run) create=yes;; esac\n\
         \tcase $previous in --bundle|-b) bundle=$argument;; esac\n\
         \tprevious=$argument\n\
         done\n\
         if [ -n \"$create\" ] && [ -n \"$bundle\" ]; then\n\
         \tsed -i{edits} \"$bundle/config.json\" || exit 1\n\
         fi\n\
         exec runc \"$@\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_withheld_that_the_kernel_knows_and_the_bounding_set_lacks() {
        assert_eq!(not_in(0x1ff_ffff_ffff, 41), Vec::<&str>::new());
        assert_eq!(not_in(0x1ff_feff_ffff, 41), ["SYS_RESOURCE"]);
        // A kernel older than CAP_CHECKPOINT_RESTORE withholds nothing by not having it.
        assert_eq!(not_in(0xff_feff_ffff, 40), ["SYS_RESOURCE"]);
    }

    #[test]
    fn a_container_is_created_without_what_is_withheld() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.json");
        std::fs::write(&config, r#"{"a":["CAP_BPF","CAP_KILL"],"b":["CAP_KILL","CAP_BPF"],"c":["CAP_BPF"]}"#).unwrap();
        // In the place of runc, which the script looks for in its PATH.
        std::os::unix::fs::symlink("/bin/true", folder.path().join("runc")).unwrap();
        let script = folder.path().join("script");
        std::fs::write(&script, super::script(&["BPF"])).unwrap();
        let path = format!("{}:/usr/bin:/bin", folder.path().display());
        let mut command = std::process::Command::new("sh");
        command.arg(&script).args(["--root", "/r", "create", "--bundle"]).arg(folder.path()).env("PATH", path);
        assert!(command.status().unwrap().success());
        assert_eq!(std::fs::read_to_string(&config).unwrap(), r#"{"a":["CAP_KILL"],"b":["CAP_KILL"],"c":[]}"#);
    }
}
