//! etcd, kube-apiserver and kubectl, built from their Go modules by the recipe in `xtask/kubernetes`: a registry of Go
//! modules is all that it takes, and go.sum says what the result is made of.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use netpol_testbed::control_plane::installation::{COMPONENTS, Recipe};

use super::progress::Progress;
use crate::process;

/// The name of the binary that the components' names link to.
const BINARY: &str = "control-plane";

pub(super) fn missing() -> Result<Option<String>> {
    let recipe = Recipe::read()?;
    let complete = recipe.installation()?.is_complete();
    Ok((!complete).then(|| format!("etcd, kube-apiserver and kubectl of Kubernetes {}", recipe.version)))
}

pub(super) fn install() -> Result<()> {
    let recipe = Recipe::read()?;
    in_its_place(&recipe.installation()?.directory, |fresh| {
        eprintln!("setup:   downloading Go modules, then compiling: about five minutes on two cores, once");
        build(&recipe, fresh)
    })
}

/// Builds into a folder beside `target` and renames it, so that what is in place is always whole.
pub(super) fn in_its_place(target: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let cache = target.parent().context("the cache has no folder")?;
    if process::find("go").is_none() {
        bail!("Go is not installed: get it from https://go.dev/dl, or `apt-get install golang`");
    }
    let fresh = cache.join(format!("building-{}", std::process::id()));
    std::fs::create_dir_all(&fresh).with_context(|| format!("cannot create {}", fresh.display()))?;
    let built = build(&fresh).and_then(|()| {
        // Left by an installation that was incomplete.
        if target.exists() {
            std::fs::remove_dir_all(target).with_context(|| format!("cannot remove {}", target.display()))?;
        }
        std::fs::rename(&fresh, target).with_context(|| format!("cannot create {}", target.display()))
    });
    if built.is_err() {
        // The build's own error is what matters; a left-over folder is only untidy.
        let _ = std::fs::remove_dir_all(&fresh);
    }
    built
}

/// Calls `go` with `arguments` for packages of the module in `source`, and shows how far it is.
pub(super) fn compile(source: &Path, c: bool, arguments: &[String], packages: &[&str], output: &Path) -> Result<()> {
    let go = || {
        let mut go = process::command("go");
        // A static binary runs in every mount namespace. No other flags: the caller's could change what is built.
        go.current_dir(source).env("CGO_ENABLED", if c { "1" } else { "0" }).env_remove("GOFLAGS");
        go
    };
    let count = process::output(go().args(["list", "-deps", "-mod=readonly"]).args(packages))?.lines().count();
    let mut compile = go();
    compile.args(arguments).arg("-o").arg(output).args(packages);
    compile.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = compile.spawn().context("cannot start go")?;
    let stderr = child.stderr.take().context("go has no standard error")?;
    let mut progress = Progress::new("Go packages", count);
    // With -v, go prints a package's path when it begins with it; anything else is what went wrong.
    let mut messages = String::new();
    for line in BufReader::new(stderr).lines() {
        let line = line.context("cannot read what go prints")?;
        if line.contains(' ') {
            messages.push_str(&line);
            messages.push('\n');
        } else {
            progress.advance();
        }
    }
    drop(progress);
    let status = child.wait().context("cannot wait for go")?;
    if !status.success() {
        bail!("`go build` in {} failed: {status}\n{}", source.display(), messages.trim_end());
    }
    Ok(())
}

fn build(recipe: &Recipe, into: &Path) -> Result<()> {
    compile(&recipe.directory, false, &recipe.build_arguments(), &["."], &into.join(BINARY))?;
    for component in COMPONENTS {
        let link = into.join(component);
        std::os::unix::fs::symlink(BINARY, &link).with_context(|| format!("cannot create {}", link.display()))?;
    }
    Ok(())
}
