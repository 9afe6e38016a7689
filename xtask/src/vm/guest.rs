//! A machine's whole file system: suites, the agent, programs of this machine that they run, their shared libraries, and
//! the kernel's modules. It is unpacked into memory, so that no device and no file system of the kernel's is needed.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::cpio::Archive;
use super::kernels::Kernel;
use super::suites::Built;
use crate::process;

/// Programs of this machine that suites run, and `modprobe`, by which the kernel itself asks for modules.
const PROGRAMS: [&str; 8] = ["ip", "tc", "ss", "nft", "ipvsadm", "sysctl", "sh", "modprobe"];
/// Programs that some suites run, if they are here.
const WELCOME: [&str; 7] = ["cat", "cut", "grep", "ls", "rm", "sleep", "nsenter"];

/// The folder of all programs; others are links to it.
const BIN: &str = "usr/bin";

/// What a suite is given, beside what its own configuration is.
pub(super) struct Plan<'a> {
    /// Arguments of each test binary.
    pub(super) arguments: &'a [String],
    /// Names and values of environment variables.
    pub(super) environment: &'a [(String, String)],
}

/// What all machines have in common: an archive that one with modules and a plan follows.
///
/// # Errors
/// A program is missing, or a library of it.
pub(super) fn common(built: &Built, scratch: &Path) -> Result<Vec<u8>> {
    let Built { init, agent, suites } = built;
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev", "tmp", "run", "root", "etc", "var/lib", BIN] {
        archive.folder(folder)?;
    }
    for link in ["bin", "sbin", "usr/sbin"] {
        archive.link(link, if link.contains('/') { "bin" } else { BIN })?;
    }
    // The first process has no standard output before it mounts /dev, but for this.
    archive.device("dev/console", (5, 1))?;
    let mut libraries = BTreeSet::new();
    let mut add = |archive: &mut Archive, path: &Path, to: &str| -> Result<()> {
        libraries.extend(shared_libraries(path)?);
        archive.file(to, 0o755, &stripped(path, scratch)?)
    };
    add(&mut archive, init, "init")?;
    add(&mut archive, agent, "netpol/netpol-agent")?;
    for (name, path) in suites {
        add(&mut archive, path, &format!("netpol/deps/{name}"))?;
    }
    for name in PROGRAMS {
        let path = process::find(name).with_context(|| format!("{name} is missing: cargo xtask setup"))?;
        add(&mut archive, &path, &format!("{BIN}/{name}"))?;
    }
    for (name, path) in WELCOME.iter().filter_map(|name| Some((name, process::find(name)?))) {
        add(&mut archive, &path, &format!("{BIN}/{name}"))?;
    }
    for library in libraries {
        let path = library.to_str().with_context(|| format!("{} is no UTF-8", library.display()))?;
        archive.file(path, 0o755, &read(&library)?)?;
    }
    archive.finish()
}

/// What belongs to one kernel and one run.
///
/// # Errors
/// A module cannot be read.
pub(super) fn own(kernel: &Kernel, built: &Built, plan: &Plan<'_>) -> Result<Vec<u8>> {
    let Plan { arguments, environment } = plan;
    let mut archive = Archive::default();
    let root = format!("lib/modules/{}", kernel.release);
    for path in super::files_below(&kernel.modules)? {
        let relative = path.strip_prefix(&kernel.modules).context("a module outside of its folder")?;
        archive.file(&format!("{root}/{}", relative.display()), 0o644, &read(&path)?)?;
    }
    let suite = |(name, _): &(String, PathBuf)| json!({ "name": name, "program": format!("/netpol/deps/{name}") });
    let suites: Vec<_> = built.suites.iter().map(suite).collect();
    let environment: serde_json::Map<_, _> =
        environment.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let plan = json!({ "suites": suites, "arguments": arguments, "environment": environment });
    archive.file("plan.json", 0o644, plan.to_string().as_bytes())?;
    archive.finish()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A program without what only debuggers read; the names of functions stay, for backtraces.
fn stripped(path: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let copy = scratch.join("stripped");
    std::fs::copy(path, &copy).with_context(|| format!("copying {}", path.display()))?;
    // Programs of the system may be read-only even for their owner.
    let writable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&copy, writable).with_context(|| format!("chmod {}", copy.display()))?;
    process::run(process::command("strip").arg("--strip-debug").arg(&copy))?;
    read(&copy)
}

/// The libraries that the dynamic loader would open for a program, and the loader itself.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    // Both names of a program may be links; the loader looks at the file.
    let printed = process::command("ldd").arg(program).output().context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&printed.stdout).into_owned() + &String::from_utf8_lossy(&printed.stderr);
    if text.contains("not a dynamic executable") || text.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !printed.status.success() {
        bail!("ldd {}: {text}", program.display());
    }
    libraries(&text).with_context(|| format!("ldd {}", program.display()))
}

/// Reads what ldd prints: `libc.so.6 => /lib/…/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`, `linux-vdso.so.1 (0x…)`.
fn libraries(text: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        let name = line.split_once(" => ").map_or(line, |(_, target)| target);
        if name.starts_with("not found") {
            bail!("{line}");
        }
        // Without a path: the kernel's own library.
        if name.starts_with('/') {
            libraries.push(PathBuf::from(name.split(" (").next().unwrap_or(name)));
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_with_a_path() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(text).unwrap(), expected);
        assert!(libraries("\tlibmnl.so.0 => not found\n").is_err());
    }

    #[test]
    fn a_programs_libraries_are_found_on_this_machine() {
        let own = std::env::current_exe().unwrap();
        let libraries = shared_libraries(&own).unwrap();
        assert!(libraries.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{libraries:?}");
    }
}
