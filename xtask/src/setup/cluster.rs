//! The rest of a cluster: controllers, scheduler, kubelet, kube-proxy, containerd, flanneld, CNI plugins and two images,
//! built from their Go modules by the recipe in `xtask/cluster-binaries`, and the programs of Debian that they run.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{control_plane, packages};
use crate::cluster::images;
use crate::cluster::recipe::{BUILDS, Build, Recipe, directory};

/// Programs that nodes run, and the package that brings each.
const PROGRAMS: [(&str, &str); 6] = [
    ("runc", "runc"),
    // flanneld's and portmap's masquerading, and the proxy in this mode.
    ("iptables", "iptables"),
    ("ipset", "ipset"),
    ("conntrack", "conntrack"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
];

pub(super) fn missing() -> Result<Option<String>> {
    if let Some(missing) = packages::missing_of(&PROGRAMS) {
        return Ok(Some(missing));
    }
    let recipe = Recipe::read()?;
    let complete = recipe.installation()?.is_complete();
    Ok((!complete)
        .then(|| format!("kubelet, containerd, flanneld and more for a cluster of Kubernetes {}", recipe.version)))
}

pub(super) fn install() -> Result<()> {
    packages::install_of(&PROGRAMS)?;
    let recipe = Recipe::read()?;
    let target = recipe.installation()?.directory;
    if recipe.installation()?.is_complete() {
        return Ok(());
    }
    control_plane::in_its_place(&target, |fresh| {
        eprintln!("setup:   downloading Go modules, then compiling: about ten minutes on two cores, once");
        for step in &BUILDS {
            build(&recipe, step, fresh)?;
        }
        let images = fresh.join("images");
        images::write(&images.join("pause"), "pause", images::PAUSE, &[], &images)?;
        images::write(&images.join("agnhost"), "agnhost", images::AGNHOST, &["pause"], &images)
    })
}

fn build(recipe: &Recipe, step: &Build, into: &Path) -> Result<()> {
    let Build { module, packages, folder, c, links } = step;
    let folder = into.join(folder);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let source = directory().join(module);
    // A package that is the module itself takes the folder's name.
    let output = if *packages == ["."] { folder.join(module) } else { folder.clone() };
    control_plane::compile(&source, *c, recipe.build_arguments(), packages, &output)?;
    for link in *links {
        let link = folder.join(link);
        std::os::unix::fs::symlink(module, &link).with_context(|| format!("cannot create {}", link.display()))?;
    }
    if links.is_empty() && !packages.iter().all(|package| built(&folder, package, module).is_file()) {
        bail!("`go build` in {} left not all of {packages:?}", source.display());
    }
    Ok(())
}

/// The executable of a package.
fn built(folder: &Path, package: &str, module: &str) -> std::path::PathBuf {
    let name = package.rsplit('/').next().filter(|name| *name != ".").unwrap_or(module);
    folder.join(name)
}
