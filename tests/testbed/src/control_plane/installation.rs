//! Where the control plane's binaries are: outside the source tree, so that a fresh clone finds what an earlier one has
//! built, in a folder named after the content of the recipe they are built by, so that a clone with another recipe
//! never finds the wrong ones. `cargo xtask setup` puts them there; tests only look.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// What one multi-call binary is called by.
pub const COMPONENTS: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];

/// The Kubernetes module that the recipe builds.
const MODULE: &str = "k8s.io/kubernetes";

/// The folder for what is downloaded and built once for all checkouts: `$NETPOL_CACHE`, else `netpol-agent` below
/// `$XDG_CACHE_HOME` or `~/.cache`.
///
/// # Errors
/// None of these variables, nor `HOME`, is set.
pub fn cache_directory() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("NETPOL_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("netpol-agent")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/netpol-agent")))
        .context("set NETPOL_CACHE or HOME: there is no place for what is downloaded and built once")
}

/// The digest of what something is built from, which its folder in the cache is named after. Lengths keep the boundary
/// between two parts in what is hashed.
#[derive(Debug, Default)]
pub struct RecipeDigest(Sha256);

impl RecipeDigest {
    /// Takes in one part: a file's content, an argument.
    pub fn part(&mut self, bytes: &[u8]) {
        self.0.update(bytes.len().to_be_bytes());
        self.0.update(bytes);
    }

    /// The first 64 bits, in hexadecimal digits.
    #[must_use]
    pub fn finish(self) -> String {
        self.0.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// How the control plane is built: a Go module with its lock file.
#[derive(Debug)]
pub struct Recipe {
    /// The module's folder in the checkout.
    pub directory: PathBuf,
    /// The Kubernetes release it names, such as `v1.36.3`.
    pub version: String,
    digest: String,
}

impl Recipe {
    /// Reads the recipe of this checkout.
    ///
    /// # Errors
    /// Its files cannot be read, or its `go.mod` names no Kubernetes release.
    pub fn read() -> Result<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/kubernetes");
        let mut digest = RecipeDigest::default();
        let mut version = None;
        for name in ["go.mod", "go.sum", "main.go"] {
            let path = directory.join(name);
            let content = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            digest.part(content.as_bytes());
            if name == "go.mod" {
                version = module_version(&content).map(str::to_owned);
            }
        }
        let version = version.with_context(|| format!("{}/go.mod requires no {MODULE}", directory.display()))?;
        for argument in build_arguments(&version) {
            digest.part(argument.as_bytes());
        }
        Ok(Self { directory, version, digest: digest.finish() })
    }

    /// What `go` is called with, but for the output's path: `build`, and its flags.
    #[must_use]
    pub fn build_arguments(&self) -> Vec<String> {
        build_arguments(&self.version)
    }

    /// Where this recipe's binaries belong, whether they are there or not.
    ///
    /// # Errors
    /// There is no cache folder, see [`cache_directory`].
    pub fn installation(&self) -> Result<Installation> {
        let directory = cache_directory()?.join(format!("kubernetes-{}-{}", self.version, self.digest));
        Ok(Installation { directory })
    }
}

/// A folder that holds one executable for each of [`COMPONENTS`].
#[derive(Clone, Debug)]
pub struct Installation {
    /// The folder.
    pub directory: PathBuf,
}

impl Installation {
    /// The binaries of this checkout's recipe.
    ///
    /// # Errors
    /// They are not built yet: the message says how to.
    pub fn find() -> Result<Self> {
        let installation = Recipe::read()?.installation()?;
        if !installation.is_complete() {
            bail!("there is no control plane in {}: run `cargo xtask setup`", installation.directory.display());
        }
        Ok(installation)
    }

    /// Whether every component is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        COMPONENTS.iter().all(|component| self.directory.join(component).is_file())
    }

    /// The path of one component's executable.
    ///
    /// # Errors
    /// It is none of [`COMPONENTS`].
    pub fn component(&self, name: &str) -> Result<PathBuf> {
        ensure!(COMPONENTS.contains(&name), "{name} is not part of the control plane");
        Ok(self.directory.join(name))
    }
}

/// The release in a line `k8s.io/kubernetes v1.36.3` of a go.mod.
fn module_version(go_mod: &str) -> Option<&str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(MODULE)).then(|| words.next()).flatten()
    })
}

fn build_arguments(version: &str) -> Vec<String> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    // Without these the server calls itself v0.0.0, and clients and kubelets refuse the skew.
    let set = |name: &str, value: &str| format!("-X k8s.io/component-base/version.{name}={value}");
    let linker = [
        "-s -w".to_owned(),
        set("gitVersion", version),
        set("gitMajor", major),
        set("gitMinor", minor),
        set("gitTreeState", "clean"),
    ];
    let flags = ["build", "-v", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", &linker.join(" ")];
    flags.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_the_recipe_and_not_from_its_staging_modules() {
        let go_mod = "require (\n\tk8s.io/kubectl v0.36.3\n\tk8s.io/kubernetes v1.36.3\n)\n";
        assert_eq!(module_version(go_mod), Some("v1.36.3"));
        assert_eq!(module_version("module k8s.io/kubernetes-free\n"), None);
    }

    #[test]
    fn the_server_is_told_its_version() {
        let arguments = build_arguments("v1.36.3").join(" ");
        assert!(arguments.contains("version.gitVersion=v1.36.3 "), "{arguments}");
        assert!(arguments.contains("version.gitMinor=36 "), "{arguments}");
    }

    #[test]
    fn the_folder_is_named_after_the_recipes_content() {
        let recipe = Recipe::read().unwrap();
        let other =
            Recipe { digest: "0".repeat(16), directory: recipe.directory.clone(), version: recipe.version.clone() };
        assert_ne!(recipe.installation().unwrap().directory, other.installation().unwrap().directory);
    }
}
