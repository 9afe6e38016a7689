//! The program that upstream's specs are in: what it is built from, and where it is. A module of its own beside
//! `xtask/cluster-binaries`, so that a change to the one does not rebuild the other.

use std::path::PathBuf;

use anyhow::{Context, Result};
use netpol_testbed::control_plane::installation::{self, RecipeDigest, cache_directory};

use crate::process;

/// The program's name in its folder.
pub(crate) const PROGRAM: &str = "netpol-e2e";

/// How many specs of NetworkPolicy the release in `xtask/conformance-suite` has, and how many of them need SCTP sockets
/// ([`super::specs`]). Counted by hand at each release: a spec that a build tag or a focus takes away must not go unnoticed.
pub(crate) const SPECS: (usize, usize) = (50, 3);

/// The recipe of this checkout: `xtask/conformance-suite`.
pub(crate) struct Recipe {
    /// The same release and flags as the control plane's.
    control_plane: installation::Recipe,
    /// What `go` is called with, but for the output's path and the packages.
    arguments: Vec<String>,
    digest: String,
}

impl Recipe {
    /// Reads it.
    ///
    /// # Errors
    /// One of its files cannot be read.
    pub(crate) fn read() -> Result<Self> {
        let control_plane = installation::Recipe::read()?;
        let arguments = control_plane.build_arguments();
        let mut digest = RecipeDigest::default();
        for argument in &arguments {
            digest.part(argument.as_bytes());
        }
        for file in ["go.mod", "go.sum", "main.go"] {
            let path = Self::directory().join(file);
            digest.part(&std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        Ok(Self { control_plane, arguments, digest: digest.finish() })
    }

    /// The folder of the Go module in this checkout.
    pub(crate) fn directory() -> PathBuf {
        process::workspace().join("xtask/conformance-suite")
    }

    /// The Kubernetes release that the specs are of, such as `v1.36.3`.
    pub(crate) fn version(&self) -> &str {
        &self.control_plane.version
    }

    /// What `go` is called with, but for the output's path and the packages.
    pub(crate) fn build_arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The folder of the cache that the program belongs in, whether it is there or not.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        Ok(cache_directory()?.join(format!("conformance-{}-{}", self.version(), self.digest)))
    }

    /// The program.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        Ok(self.folder()?.join(PROGRAM))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines `k8s.io/… v…` of a go.mod, of its requirements and of its replacements.
    fn releases(go_mod: &str) -> Vec<(String, String)> {
        let mut releases = Vec::new();
        for line in go_mod.lines() {
            let words: Vec<&str> = line.split("//").next().unwrap_or_default().split_whitespace().collect();
            match words[..] {
                [module, release] if module.starts_with("k8s.io/") => {
                    releases.push((module.to_owned(), release.to_owned()));
                }
                [module, "=>", _, release] => releases.push((format!("{module} =>"), release.to_owned())),
                _ => {}
            }
        }
        releases
    }

    #[test]
    fn the_specs_are_of_the_release_that_the_cluster_runs() {
        let read = |folder: &str| {
            std::fs::read_to_string(process::workspace().join("xtask").join(folder).join("go.mod")).unwrap()
        };
        let cluster = releases(&read("kubernetes"));
        let suite = releases(&read("conformance-suite"));
        let kubernetes = suite.iter().find(|(module, _)| module == "k8s.io/kubernetes").unwrap();
        assert_eq!(kubernetes.1, Recipe::read().unwrap().version());
        let mut common = 0;
        for (module, release) in &suite {
            if let Some((_, other)) = cluster.iter().find(|(name, _)| name == module) {
                assert_eq!(release, other, "{module}");
                common += 1;
            }
        }
        assert!(common > 20, "{common}");
    }
}
