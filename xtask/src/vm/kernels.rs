//! Kernels of Debian for virtual machines in clouds: small, with all of networking as modules.
//!
//! One package of each series is pinned with its checksum, so that a run today is a run of tomorrow. Debian takes packages
//! out of its pool when a newer one follows, so what the mirror no longer has is replaced by the newest that its suites
//! have of the series, and that is said.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use netpol_testbed::control_plane::installation::cache_directory;
use sha2::{Digest, Sha256};

use crate::process;
use crate::setup::debian::{self, Package};

/// What users call the newest that Debian has.
const NEWEST: &str = "newest";

/// Modules that are kept: networking, and what it computes with. The others are drivers of devices that no machine here
/// has, and file systems.
const KEPT: [&str; 4] = ["kernel/net", "kernel/lib", "kernel/crypto", "kernel/arch"];

/// Network devices that are made of software; the rest of their folder is hardware.
const DEVICES: [&str; 11] =
    ["bonding", "dummy", "geneve", "ifb", "ipvlan", "macvlan", "tun", "veth", "vrf", "vxlan", "wireguard"];

/// What the name of an image's package begins with, where that one has nothing in it but depends on these.
const PARTS: [&str; 3] = ["linux-binary-", "linux-modules-", "linux-base-"];

/// Packages of a series.
struct Series {
    /// As on the command line.
    name: &'static str,
    /// Where Debian has it, the best first.
    suites: &'static [&'static str],
    /// The kernel's image, then what else it is made of, below the mirror's root, with checksums.
    pinned: &'static [(&'static str, &'static str)],
}

const SERIES: [Series; 4] = [
    Series {
        name: "5.10",
        suites: &["bullseye", "bullseye-updates"],
        pinned: &[(
            "pool/main/l/linux-signed-amd64/linux-image-5.10.0-32-cloud-amd64_5.10.223-1_amd64.deb",
            "fb4a1229952d892138532c1d9f40a7fd0bd408e4dcf969c12e4524b6a89fdcb8",
        )],
    },
    Series {
        name: "6.1",
        suites: &["bookworm", "bookworm-updates"],
        pinned: &[(
            "pool/main/l/linux-signed-amd64/linux-image-6.1.0-50-cloud-amd64_6.1.176-1_amd64.deb",
            "efe19f605b6f54a8352e68d85a629abb2d30b72a085faef603a9152590baa791",
        )],
    },
    Series {
        name: "6.12",
        suites: &["trixie", "trixie-updates", "bookworm-backports"],
        pinned: &[(
            "pool/main/l/linux-signed-amd64/linux-image-6.12.107+deb13-cloud-amd64_6.12.107-1_amd64.deb",
            "04434ff520f860423eafe4203d986a35682ce73c2f71baa39e988ca0da93ac91",
        )],
    },
    Series {
        name: NEWEST,
        suites: &["trixie-backports", "sid"],
        // Since 6.19 the image, its modules, and the list of what is built in are packages of their own.
        pinned: &[
            (
                "pool/main/l/linux-signed-amd64/linux-binary-7.3.4+deb13-cloud-amd64_7.3.4-1~bpo13+1_amd64.deb",
                "c4fbc8e404958693b28825474c20742d70594d65ca58aea7be6a279c81eb6fa0",
            ),
            (
                "pool/main/l/linux/linux-modules-7.3.4+deb13-cloud-amd64_7.3.4-1~bpo13+1_amd64.deb",
                "359f04c363b7d3c5f9ce999ccb7351e00cc8eec0a30d6bc1cda37734987fc43d",
            ),
            (
                "pool/main/l/linux/linux-base-7.3.4+deb13-cloud-amd64_7.3.4-1~bpo13+1_amd64.deb",
                "e08baa43706ba6e8daff58029b039f46beecfb3b3750c6fa0d6d5ca508a46a43",
            ),
        ],
    },
];

/// The series that all must pass on, in order.
pub(super) fn all() -> Vec<String> {
    SERIES.iter().map(|series| series.name.to_owned()).collect()
}

/// A kernel, unpacked in the cache.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As on the command line.
    pub(super) series: String,
    /// As the kernel calls itself: 5.10.0-32-cloud-amd64.
    pub(super) release: String,
    /// The bootable image.
    pub(super) image: PathBuf,
    /// `lib/modules/<release>` with the modules that are kept, and their indices.
    pub(super) modules: PathBuf,
}

/// The kernel of a series, downloaded if the cache does not have it. With `served`, what the mirror's suites have now and
/// not what is pinned.
///
/// # Errors
/// Nobody knows the series, or the mirror has no package of it.
pub(super) fn provide(name: &str, served: bool) -> Result<Kernel> {
    let Some(series) = SERIES.iter().find(|series| series.name == name) else {
        bail!("{name}: no such kernel here; there are {}", all().join(", "));
    };
    let cache = cache_directory()?.join("kernels");
    let pinned: Vec<Package> = series.pinned.iter().map(|(path, sha256)| pinned(path, sha256)).collect();
    if !served {
        let folder = folder(&cache, &pinned)?;
        if folder.is_dir() {
            return open(series, folder);
        }
    }
    let work = cache.join(format!("fetch-{}", std::process::id()));
    std::fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let folder = fetch(series, served, &pinned, &cache, &work);
    std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    open(series, folder?)
}

/// Downloads a kernel and returns its folder in the cache.
fn fetch(series: &Series, served: bool, pinned: &[Package], cache: &Path, work: &Path) -> Result<PathBuf> {
    let mirror = debian::mirror()?;
    let unpacked = work.join("unpacked");
    let unpack =
        |packages: &[Package]| packages.iter().try_for_each(|one| debian::unpack(&mirror, one, work, &unpacked));
    if !served {
        match unpack(pinned) {
            Ok(()) => return keep(&unpacked, folder(cache, pinned)?),
            Err(error) => eprintln!("vm: {}: the pinned package cannot be had: {error:#}", series.name),
        }
    }
    let (suite, packages) = newest(series, &mirror, work)?;
    let version = packages.first().map_or("", |package| &package.version);
    eprintln!("vm: {}: taking {version}, the newest that {suite} has", series.name);
    let folder = folder(cache, &packages)?;
    if folder.is_dir() {
        return Ok(folder);
    }
    unpack(&packages)?;
    keep(&unpacked, folder)
}

/// The newest packages of a series, and the suite that has them.
fn newest(series: &Series, mirror: &str, work: &Path) -> Result<(&'static str, Vec<Package>)> {
    let mut tried = Vec::new();
    for suite in series.suites {
        match debian::packages(mirror, suite, work) {
            Ok(list) => {
                if let Some(packages) = choose(series.name, list) {
                    return Ok((suite, packages));
                }
                tried.push(format!("{suite} has none"));
            }
            Err(error) => tried.push(format!("{suite}: {error:#}")),
        }
    }
    bail!("no kernel of series {}: {}", series.name, tried.join("; "))
}

/// The newest image of a series in a list, or the packages that it consists of.
fn choose(series: &str, list: Vec<Package>) -> Option<Vec<Package>> {
    let image = list
        .iter()
        .filter(|package| {
            let is_image = package.name.starts_with("linux-image-") && package.name.ends_with("-cloud-amd64");
            // The package without a version in its name only depends on the newest of the others.
            let has_release = package.name.contains(package.upstream_series());
            is_image && has_release && (series == NEWEST || package.upstream_series() == series)
        })
        .max_by_key(|package| numbers(&package.version))?
        .clone();
    let beside = |kind: &str| {
        let name = image.name.replacen("linux-image-", kind, 1);
        list.iter().find(|package| package.name == name).cloned()
    };
    let parts: Vec<Package> = PARTS.iter().filter_map(|kind| beside(kind)).collect();
    Some(if parts.is_empty() { vec![image] } else { parts })
}

impl Package {
    /// 5.10 of 5.10.223-1.
    fn upstream_series(&self) -> &str {
        let upstream = self.upstream();
        let end = upstream.match_indices('.').nth(1).map_or(upstream.len(), |(at, _)| at);
        upstream.get(..end).unwrap_or_default()
    }
}

/// The numbers of a version, in order: enough to compare versions that are made in the same way.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn pinned(path: &str, sha256: &str) -> Package {
    let file = path.rsplit('/').next().unwrap_or(path);
    let mut parts = file.split('_').map(str::to_owned);
    let (name, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    Package { name, version, path: path.to_owned(), sha256: sha256.to_owned() }
}

/// Where the cache has a kernel: named after its package and a hash of what is kept, so that another version, or one of which
/// less was kept, is another folder.
fn folder(cache: &Path, packages: &[Package]) -> Result<PathBuf> {
    let image = packages.first().context("a series without packages")?;
    let kept = KEPT.iter().chain(&DEVICES).copied().collect::<Vec<_>>().join(" ");
    let kept: String = Sha256::digest(kept).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Ok(cache.join(format!("{}_{}_{kept}", image.name, image.version)))
}

/// Puts what machines need of an unpacked kernel into the cache.
fn keep(unpacked: &Path, folder: PathBuf) -> Result<PathBuf> {
    // Packages follow the merge of /lib into /usr since 6.19.
    let modules = ["usr/lib/modules", "lib/modules"].map(|path| unpacked.join(path));
    let modules = modules.iter().find(|path| path.is_dir()).context("the package has no modules")?;
    let release = only_entry(modules)?;
    let modules = modules.join(&release);
    let images = [unpacked.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
    let image = images.iter().find(|path| path.is_file()).context("the package has no image")?;
    let fresh = unpacked.with_extension("kept");
    let to = fresh.join("lib/modules").join(&release);
    std::fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut copied = 0_usize;
    for name in KEPT {
        copied += copy(&modules.join(name), &to.join(name), &|_| true)?;
    }
    let devices = "kernel/drivers/net";
    let is_device = |relative: &Path| {
        let first = relative.components().next().and_then(|part| part.as_os_str().to_str()).unwrap_or_default();
        DEVICES.contains(&first.split('.').next().unwrap_or_default())
    };
    copied += copy(&modules.join(devices), &to.join(devices), &is_device)?;
    ensure!(copied > 0, "{} has no modules of networking", modules.display());
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        std::fs::copy(modules.join(name), to.join(name)).with_context(|| format!("copying {name}"))?;
    }
    let configurations = [unpacked.join(format!("boot/config-{release}")), modules.join("config")];
    let configuration =
        configurations.iter().find(|path| path.is_file()).context("the package has no configuration")?;
    // Where tests look for it: it tells what this kernel should have.
    std::fs::copy(configuration, to.join("config")).context("copying the configuration")?;
    process::run(process::command("depmod").arg("--basedir").arg(&fresh).arg(&release))?;
    std::fs::copy(image, fresh.join("vmlinuz")).context("copying the image")?;
    match std::fs::rename(&fresh, &folder) {
        Ok(()) => Ok(folder),
        // Another run was faster.
        Err(_) if folder.is_dir() => Ok(folder),
        Err(error) => Err(error).with_context(|| format!("cannot create {}", folder.display())),
    }
}

/// Copies the files below a folder that `wanted` wants, by their path in it; returns how many.
fn copy(from: &Path, to: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<usize> {
    let mut copied = 0;
    for path in super::files_below(from)? {
        let relative = path.strip_prefix(from).context("a file outside of its folder")?;
        if wanted(relative) {
            let target = to.join(relative);
            let parent = target.parent().unwrap_or(to);
            std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            std::fs::copy(&path, &target).with_context(|| format!("copying {}", path.display()))?;
            copied += 1;
        }
    }
    Ok(copied)
}

fn open(series: &Series, folder: PathBuf) -> Result<Kernel> {
    let release = only_entry(&folder.join("lib/modules"))?;
    Ok(Kernel {
        series: series.name.to_owned(),
        image: folder.join("vmlinuz"),
        modules: folder.join("lib/modules").join(&release),
        release,
    })
}

fn only_entry(folder: &Path) -> Result<String> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    match &names[..] {
        [name] => Ok(name.clone()),
        _ => bail!("{} should have one entry, and has {names:?}", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> Package {
        pinned(&format!("pool/{name}_{version}_amd64.deb"), "")
    }

    #[test]
    fn the_newest_of_a_series_is_chosen_by_number() {
        let list = vec![
            package("linux-image-6.12.94+deb13-cloud-amd64", "6.12.94-1"),
            package("linux-image-6.12.107+deb13-cloud-amd64", "6.12.107-1"),
            package("linux-image-6.12.107+deb13-amd64", "6.12.107-1"),
            package("linux-image-cloud-amd64", "6.12.107-1"),
            package("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1"),
        ];
        assert_eq!(choose("6.12", list.clone()), Some(vec![list[1].clone()]));
        assert_eq!(choose("6.1", list.clone()), Some(vec![list[4].clone()]));
        assert_eq!(choose(NEWEST, list.clone()), Some(vec![list[1].clone()]));
        assert_eq!(choose("5.10", list), None);
    }

    #[test]
    fn an_image_without_content_is_replaced_by_its_parts() {
        let list = vec![
            package("linux-image-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
            package("linux-binary-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
            package("linux-modules-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
            package("linux-base-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
        ];
        assert_eq!(choose(NEWEST, list.clone()), Some(list[1..].to_vec()));
    }

    #[test]
    fn what_is_pinned_is_of_its_series() {
        for series in &SERIES {
            for (path, sha256) in series.pinned {
                let package = pinned(path, sha256);
                assert!(series.name == NEWEST || package.upstream_series() == series.name, "{path}");
                assert_eq!(sha256.len(), 64, "{path}");
            }
        }
    }
}
