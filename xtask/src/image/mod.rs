//! `cargo xtask image`: the agent's container image, without a container engine.
//!
//! The agent is built as a static binary ([`build`]), which is all that the image holds; [`archive`] wraps it. Load the
//! result with `ctr --namespace k8s.io images import`, `kind load image-archive`, `docker load --input`, or
//! `skopeo copy oci-archive:…`.

mod archive;
mod tar;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::setup::{self, Need};
use archive::Image;

/// What the manifests in `deploy/base` ask for.
pub(crate) const REFERENCE: &str = concat!("netpol-agent:", env!("CARGO_PKG_VERSION"));

/// Options of `cargo xtask image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The archive to write [default: image/netpol-agent.tar in cargo's target folder]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name and tag of the image
    #[arg(long, default_value = REFERENCE)]
    tag: String,
    /// Wrap this static binary instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Cargo's profile of the agent: the default is what is shipped, dev is compiled sooner
    #[arg(long, default_value = "image", conflicts_with = "binary")]
    profile: String,
}

/// Runs `cargo xtask image`; prints one line for the binary and one for the archive.
///
/// # Errors
/// The agent cannot be built, or the archive cannot be written.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let Args { output, tag, binary, profile } = args;
    let built;
    let binary = match binary {
        Some(binary) => binary,
        None => {
            built = build_with(profile)?;
            &built
        }
    };
    let output = match output {
        Some(output) => output.clone(),
        None => process::target_directory()?.join("image/netpol-agent.tar"),
    };
    let Sizes { binary: of_binary, archive, digest } = write(binary, tag, &output)?;
    println!("binary  {} MB  {}", megabytes(of_binary), binary.display());
    println!("image   {} MB  {tag}  {}  sha256:{digest}", megabytes(archive), output.display());
    Ok(ExitCode::SUCCESS)
}

/// What was written, in bytes, and the archive's SHA-256.
pub(crate) struct Sizes {
    binary: usize,
    archive: usize,
    digest: String,
}

/// Wraps a static binary into an archive at `output`, named `reference`.
///
/// # Errors
/// The binary needs an interpreter, the reference is malformed, or a file cannot be read or written.
pub(crate) fn write(binary: &Path, reference: &str, output: &Path) -> Result<Sizes> {
    let content = std::fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    if needs_interpreter(&content).with_context(|| format!("{} is no 64-bit ELF file", binary.display()))? {
        bail!("{} is not static: an empty image has no dynamic loader for it", binary.display());
    }
    let image = Image {
        binary: &content,
        reference,
        architecture: architecture(std::env::consts::ARCH),
        version: env!("CARGO_PKG_VERSION"),
    };
    let archive = image.archive()?;
    if let Some(folder) = output.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    std::fs::write(output, &archive).with_context(|| format!("cannot write {}", output.display()))?;
    Ok(Sizes { binary: content.len(), archive: archive.len(), digest: archive::hex(&archive) })
}

/// Builds the agent as it is shipped in an image, and returns its path.
///
/// For the machine's own target with the C library linked in: that needs no other target installed. Naming the target
/// keeps the flag from build scripts and macros, which cannot be built with it.
///
/// # Errors
/// Something is missing and cannot be installed, or the build fails.
pub(crate) fn build() -> Result<PathBuf> {
    build_with("image")
}

/// Builds the agent as one static binary with a profile of the workspace, as [`build`] does.
///
/// # Errors
/// Something is missing and cannot be installed, or the build fails.
pub(crate) fn build_with(profile: &str) -> Result<PathBuf> {
    setup::ensure(&Need::BPF_TOOLCHAIN)?;
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    eprintln!("image: building the agent as one static binary");
    let mut build = process::cargo();
    build.args(["build", "--locked", "--profile", profile, "--package", "netpol-agent", "--bins", "--target", &target]);
    // The other variable that flags come from would win.
    build.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-C target-feature=+crt-static");
    process::run(&mut build)?;
    // The one profile whose folder has another name.
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(process::target_directory()?.join(target).join(folder).join("netpol-agent"))
}

/// An architecture's name in images, which is Go's.
fn architecture(rusts: &str) -> &str {
    match rusts {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether an ELF file asks for a dynamic loader (`PT_INTERP`); `None` if it is no little-endian 64-bit ELF file.
fn needs_interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| Some(u16::from_le_bytes(*elf.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(*elf.get(at..)?.first_chunk()?));
    // Magic, 64 bits, little-endian.
    elf.strip_prefix(b"\x7fELF\x02\x01")?;
    let table = usize::try_from(u64_at(32)?).ok()?;
    let (size, number) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for header in 0..number {
        let at = table.checked_add(header * size)?;
        if u32::from_le_bytes(*elf.get(at..)?.first_chunk()?) == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

/// For people: one decimal.
fn megabytes(bytes: usize) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_base_asks_for_the_image_that_is_built() {
        let manifest = process::workspace().join("deploy/base/daemonset.yaml");
        let manifest: Value = serde_saphyr::from_str(&std::fs::read_to_string(manifest).unwrap()).unwrap();
        let container = &manifest["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], REFERENCE);
        // The image's own entry point is the binary.
        assert!(container.get("command").is_none());
    }

    #[test]
    fn the_nodes_of_the_kind_cluster_have_a_bpf_file_system_each_and_no_policy_controller() {
        let manifest = process::workspace().join("deploy/overlays/kind/cluster.yaml");
        let cluster: Value = serde_saphyr::from_str(&std::fs::read_to_string(manifest).unwrap()).unwrap();
        assert_eq!((&cluster["apiVersion"], &cluster["kind"]), (&"kind.x-k8s.io/v1alpha4".into(), &"Cluster".into()));
        assert_eq!(cluster["networking"]["disableDefaultCNI"], true);
        let nodes = cluster["nodes"].as_array().unwrap();
        let mut folders = std::collections::BTreeSet::new();
        for node in nodes {
            let mount = &node["extraMounts"][0];
            assert_eq!(mount["containerPath"], "/sys/fs/bpf");
            let folder = mount["hostPath"].as_str().unwrap();
            // BPF file systems refuse names with dots.
            assert!(folder.starts_with("/sys/fs/bpf/") && !folder.contains('.'), "{folder}");
            assert!(folders.insert(folder), "{folder} is shared");
        }
        assert_eq!(folders.len(), 3);
    }

    #[test]
    fn the_dockerfile_builds_with_the_same_profile_and_runs_the_same_file() {
        let dockerfile = std::fs::read_to_string(process::workspace().join("deploy/Dockerfile")).unwrap();
        assert!(dockerfile.contains("cargo xtask image"), "{dockerfile}");
        assert!(dockerfile.contains(&format!("ENTRYPOINT [\"{}\"]", archive::ENTRYPOINT)), "{dockerfile}");
    }

    #[test]
    fn a_binary_that_needs_a_dynamic_loader_is_refused() {
        // This test itself is linked as cargo does it by default.
        let own = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("image.tar");
        let refusal = write(&own, REFERENCE, &output).err().unwrap().to_string();
        assert!(refusal.contains("not static"), "{refusal}");
        assert!(!output.exists());

        let text = folder.path().join("text");
        std::fs::write(&text, "#!/bin/sh\n").unwrap();
        assert!(write(&text, REFERENCE, &output).err().unwrap().to_string().contains("ELF"));
    }

    #[test]
    fn an_elf_file_that_is_cut_off_is_none() {
        assert_eq!(needs_interpreter(b"\x7fELF\x02\x01"), None);
        // No program headers: nothing asks for a loader.
        let mut header = b"\x7fELF\x02\x01".to_vec();
        header.resize(64, 0);
        assert_eq!(needs_interpreter(&header), Some(false));
        // One, beyond the end.
        header[32] = 64;
        header[56] = 1;
        assert_eq!(needs_interpreter(&header), None);
    }
}
