//! What a cluster's binaries are built from: the Go modules below `xtask/cluster-binaries`, each with the versions it
//! pins in its go.mod and their sums in go.sum, and where the result is: in a folder of the cache that is named after
//! the content of all of them. etcd, kube-apiserver and kubectl are the control plane's own
//! ([`netpol_testbed::control_plane::installation`]), of the same Kubernetes release.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use netpol_testbed::control_plane::installation::{self, RecipeDigest, cache_directory};

use crate::process;

/// One call of `go build`.
pub(crate) struct Build {
    /// The module's folder below `xtask/cluster-binaries`.
    pub(crate) module: &'static str,
    /// The packages; each becomes an executable in [`Build::folder`], named after its last path element.
    pub(crate) packages: &'static [&'static str],
    /// Below the installation.
    pub(crate) folder: &'static str,
    /// Whether C code is part of it: flanneld does not compile without.
    pub(crate) c: bool,
    /// Names that link to the (one) executable: a binary of several programs.
    pub(crate) links: &'static [&'static str],
}

/// Everything that is built, in this order.
pub(crate) const BUILDS: [Build; 7] = [
    Build {
        module: "plugins",
        packages: &[
            "github.com/containernetworking/plugins/plugins/main/bridge",
            "github.com/containernetworking/plugins/plugins/main/loopback",
            "github.com/containernetworking/plugins/plugins/ipam/host-local",
            "github.com/containernetworking/plugins/plugins/meta/portmap",
        ],
        folder: "cni",
        c: false,
        links: &[],
    },
    Build {
        module: "flannel-plugin",
        packages: &["github.com/containernetworking/plugins/plugins/meta/flannel"],
        folder: "cni",
        c: false,
        links: &[],
    },
    Build { module: "pause", packages: &["."], folder: "images", c: false, links: &[] },
    Build {
        module: "containerd",
        packages: &[
            "github.com/containerd/containerd/v2/cmd/containerd",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/ctr",
        ],
        folder: "bin",
        c: false,
        links: &[],
    },
    // Its executable is called as the CNI plugin is, so it has a folder of its own.
    Build { module: "flannel", packages: &["github.com/flannel-io/flannel"], folder: "flanneld", c: true, links: &[] },
    Build {
        module: "kubernetes",
        packages: &["."],
        folder: "bin",
        c: false,
        links: &["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"],
    },
    Build {
        module: "kubernetes",
        packages: &["k8s.io/kubernetes/test/images/agnhost"],
        folder: "images",
        c: false,
        links: &[],
    },
];

/// The recipe of this checkout.
pub(crate) struct Recipe {
    /// The Kubernetes release, such as `v1.36.3`.
    pub(crate) version: String,
    /// Of [`BUILDS`]' order: what `go` is called with, but for the output's path and the packages.
    arguments: Vec<String>,
    digest: String,
}

impl Recipe {
    /// Reads it.
    pub(crate) fn read() -> Result<Self> {
        // The same release and flags as the control plane, which the cluster runs too.
        let control_plane = installation::Recipe::read()?;
        let arguments = control_plane.build_arguments();
        let mut digest = RecipeDigest::default();
        for argument in &arguments {
            digest.part(argument.as_bytes());
        }
        for Build { module, packages, folder, c, links } in &BUILDS {
            digest.part(format!("{module} {packages:?} {folder} {c} {links:?}").as_bytes());
            for file in ["go.mod", "go.sum", "main.go"] {
                let path = directory().join(module).join(file);
                match std::fs::read(&path) {
                    Ok(content) => digest.part(&content),
                    // A module without code of its own, or one without dependencies.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => digest.part(b""),
                    Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
                }
            }
        }
        Ok(Self { version: control_plane.version, arguments, digest: digest.finish() })
    }

    /// What `go` is called with, but for the output's path and the packages.
    pub(crate) fn build_arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Where this recipe's result belongs, whether it is there or not.
    pub(crate) fn installation(&self) -> Result<Installation> {
        let directory = cache_directory()?.join(format!("cluster-{}-{}", self.version, self.digest));
        Ok(Installation { directory })
    }
}

/// The folder of the Go modules in this checkout.
pub(crate) fn directory() -> PathBuf {
    process::workspace().join("xtask/cluster-binaries")
}

/// What the recipe's builds have left.
#[derive(Clone, Debug)]
pub(crate) struct Installation {
    /// The folder.
    pub(crate) directory: PathBuf,
}

impl Installation {
    /// Whether everything is there. The folder is put in its place as a whole, so its last part stands for all.
    pub(crate) fn is_complete(&self) -> bool {
        self.images().is_ok_and(|images| !images.is_empty()) && self.binary("kubelet").is_file()
    }

    /// An executable of a node or of the control plane.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.directory.join("bin").join(name)
    }

    /// Where the executables are.
    pub(crate) fn binaries(&self) -> PathBuf {
        self.directory.join("bin")
    }

    /// flanneld.
    pub(crate) fn flanneld(&self) -> PathBuf {
        self.directory.join("flanneld/flannel")
    }

    /// The folder of the CNI plugins.
    pub(crate) fn plugins(&self) -> PathBuf {
        self.directory.join("cni")
    }

    /// The images' archives, which every node imports.
    pub(crate) fn images(&self) -> Result<Vec<PathBuf>> {
        let folder = self.directory.join("images");
        let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut images: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path()).filter(|path| is_archive(path)).collect();
        images.sort();
        Ok(images)
    }
}

fn is_archive(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tar")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_name_the_release_that_the_control_plane_is_of() {
        let release = Recipe::read().unwrap().version;
        let go_mod = std::fs::read_to_string(directory().join("kubernetes/go.mod")).unwrap();
        assert!(go_mod.contains(&format!("k8s.io/kubernetes {release}\n")), "{release}");
    }

    #[test]
    fn every_module_is_locked() {
        for Build { module, .. } in &BUILDS {
            let folder = directory().join(module);
            let go_mod = std::fs::read_to_string(folder.join("go.mod")).unwrap();
            assert_eq!(go_mod.contains("require"), folder.join("go.sum").is_file(), "{module}");
        }
    }
}
