//! Upstream's tests of NetworkPolicy, built from the module of Kubernetes by the recipe in `xtask/conformance-suite`.

use anyhow::Result;

use super::control_plane;
use crate::conformance::suite::{PROGRAM, Recipe};

pub(super) fn missing() -> Result<Option<String>> {
    let recipe = Recipe::read()?;
    let complete = recipe.program()?.is_file();
    Ok((!complete).then(|| format!("upstream's NetworkPolicy tests of Kubernetes {}", recipe.version())))
}

pub(super) fn install() -> Result<()> {
    let recipe = Recipe::read()?;
    control_plane::in_its_place(&recipe.folder()?, |fresh| {
        eprintln!("setup:   downloading Go modules, then compiling: about two minutes on two cores, once");
        let source = Recipe::directory();
        control_plane::compile(&source, false, recipe.build_arguments(), &["."], &fresh.join(PROGRAM))
    })
}
