//! Images without a registry and without a container engine: a docker-archive is a tar of a manifest, a configuration
//! and one layer, and each of ours holds one static executable. containerd imports it as if it had been pulled.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::process;

/// The image of the process that holds a pod's namespaces, by the name that containerd is told.
pub(crate) const PAUSE: &str = "registry.k8s.io/pause:3.10.2";

/// Upstream's test servers and clients, by the name that its tests of this Kubernetes release ask for
/// (`test/utils/image/manifest.go`).
pub(crate) const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// Writes an archive of an image whose only file is `executable`, as `/name`, next to it.
pub(crate) fn write(executable: &Path, name: &str, image: &str, command: &[&str], into: &Path) -> Result<()> {
    let work = into.join(format!("{name}-image"));
    let layer = work.join("layer");
    std::fs::create_dir_all(layer.join("tmp")).with_context(|| format!("cannot create {}", layer.display()))?;
    std::fs::set_permissions(layer.join("tmp"), std::fs::Permissions::from_mode(0o1777)).context("chmod")?;
    let inside = layer.join(name);
    std::fs::copy(executable, &inside).with_context(|| format!("cannot copy {}", executable.display()))?;
    tar(&layer, &work.join("layer.tar"), &["."])?;
    let sum = process::output(process::command("sha256sum").arg(work.join("layer.tar")))?;
    let sum = sum.split_whitespace().next().context("sha256sum printed nothing")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let configuration = json!({
        "architecture": architecture, "os": "linux",
        "config": { "Entrypoint": [format!("/{name}")], "Cmd": command, "Env": ["PATH=/"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{sum}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"] }]);
    for (file, content) in [("config.json", configuration), ("manifest.json", manifest)] {
        std::fs::write(work.join(file), content.to_string()).with_context(|| format!("cannot write {file}"))?;
    }
    tar(&work, &into.join(format!("{name}.tar")), &["manifest.json", "config.json", "layer.tar"])?;
    std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}

fn tar(folder: &Path, archive: &Path, members: &[&str]) -> Result<()> {
    let mut command = process::command("tar");
    // The same content gives the same archive, whoever builds it and when.
    command.args(["--create", "--format=ustar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    command.args(["--mtime=@0", "--mode=u+rw,go+rX-w,a-s"]).arg("--file").arg(archive).arg("--directory").arg(folder);
    process::run(command.args(members))
}
