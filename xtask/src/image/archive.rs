//! An image of one file as one archive that every loader takes: an OCI image layout, with the `manifest.json` beside it
//! that `docker load` wants. Both name the same blobs, so the archive is no larger for it; containerd and skopeo read the
//! layout, and older Docker engines the manifest.
//!
//! The layer is not compressed: registries and engines compress it on the way, each in its own manner, and so the bytes
//! here depend on the binary alone.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::tar::Tar;

/// Where the binary is in the image, and what the container runs; the DaemonSet gives only arguments.
pub(super) const ENTRYPOINT: &str = "/netpol-agent";

/// Of everything: an image that is built again is the same image.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What goes into an image.
pub(super) struct Image<'a> {
    /// The static binary.
    pub(super) binary: &'a [u8],
    /// `name:tag`, with or without a registry.
    pub(super) reference: &'a str,
    /// As Go names it: amd64, arm64.
    pub(super) architecture: &'a str,
    /// Version of the agent.
    pub(super) version: &'a str,
}

/// The files of the layout, in order.
struct Blobs(Vec<(String, Vec<u8>)>);

impl Blobs {
    /// Adds a blob and returns its descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = hex(&content);
        let descriptor =
            json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len() });
        self.0.push((digest, content));
        descriptor
    }
}

impl Image<'_> {
    /// The archive's bytes.
    ///
    /// # Errors
    /// The reference is malformed.
    pub(super) fn archive(&self) -> Result<Vec<u8>> {
        let Self { binary, reference, architecture, version } = *self;
        let full = full_name(reference)?;
        let mut layer = Tar::default();
        layer.file(ENTRYPOINT.trim_start_matches('/'), 0o755, binary)?;

        let mut blobs = Blobs(Vec::new());
        let layer = blobs.add("application/vnd.oci.image.layer.v1.tar", layer.finish());
        let config = json!({
            "created": CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": [ENTRYPOINT],
                // By number: an empty image has no /etc/passwd.
                "User": "0:0",
                "WorkingDir": "/",
                "Labels": {
                    "org.opencontainers.image.title": "netpol-agent",
                    "org.opencontainers.image.version": version,
                    "org.opencontainers.image.licenses": "Apache-2.0 OR MIT",
                },
            },
            // The digest of what is unpacked, which for a layer that is not compressed is the blob's own.
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
            "history": [{ "created": CREATED, "created_by": "cargo xtask image" }],
        });
        let config = blobs.add("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let docker = json!([{ "Config": path(&config)?, "RepoTags": [reference], "Layers": [path(&layer)?] }]);
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer] });
        let mut manifest = blobs.add(media_type, manifest.to_string().into_bytes());
        manifest["platform"] = json!({ "architecture": architecture, "os": "linux" });
        manifest["annotations"] = json!({
            // containerd takes this name as it is, and the kubelet asks for the full one.
            "io.containerd.image.name": full,
            "org.opencontainers.image.ref.name": full.rsplit_once(':').map(|(_, tag)| tag),
        });
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest],
        });

        let mut archive = Tar::default();
        archive.file("oci-layout", 0o644, json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes())?;
        archive.file("index.json", 0o644, index.to_string().as_bytes())?;
        archive.file("manifest.json", 0o644, docker.to_string().as_bytes())?;
        archive.directory("blobs/", 0o755)?;
        archive.directory("blobs/sha256/", 0o755)?;
        for (digest, content) in &blobs.0 {
            archive.file(&format!("blobs/sha256/{digest}"), 0o644, content)?;
        }
        Ok(archive.finish())
    }
}

/// Where a descriptor's blob is in the layout.
fn path(descriptor: &Value) -> Result<String> {
    let digest = descriptor["digest"].as_str().context("a descriptor without digest")?;
    Ok(format!("blobs/{}", digest.replace(':', "/")))
}

/// SHA-256, as 64 hexadecimal digits.
pub(super) fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reference as the kubelet and containerd write it: a first part that can be no host means Docker Hub, and there a
/// name of one part is in `library`.
///
/// # Errors
/// There is no tag, or something that a reference cannot hold.
pub(super) fn full_name(reference: &str) -> Result<String> {
    let (name, tag) = reference.rsplit_once(':').with_context(|| format!("{reference:?} has no tag"))?;
    let tag_is_valid = !tag.is_empty() && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let name_is_valid = !name.is_empty()
        && name.split('/').all(|part| !part.is_empty())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/:".contains(c));
    if !tag_is_valid || !name_is_valid {
        bail!("{reference:?} is no image name with a tag");
    }
    Ok(match name.split_once('/') {
        None => format!("docker.io/library/{reference}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => reference.to_owned(),
        Some(_) => format!("docker.io/{reference}"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tar::tests::extract;
    use super::*;

    const IMAGE: Image<'_> =
        Image { binary: b"\x7fELF", reference: "netpol-agent:0.1.0", architecture: "amd64", version: "0.1.0" };

    /// The blob of a descriptor, after its size and digest have been checked.
    fn blob<'a>(files: &'a std::collections::BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let content = &files[&path(descriptor).unwrap()];
        assert_eq!(descriptor["size"], json!(content.len()));
        assert_eq!(descriptor["digest"], json!(format!("sha256:{}", hex(content))));
        content
    }

    fn parsed(content: &[u8]) -> Value {
        serde_json::from_slice(content).unwrap()
    }

    #[test]
    fn the_layout_leads_from_its_index_to_the_binary() {
        let files = extract(&IMAGE.archive().unwrap());
        assert_eq!(parsed(&files["oci-layout"]), json!({ "imageLayoutVersion": "1.0.0" }));
        let index = parsed(&files["index.json"]);
        let entry = &index["manifests"][0];
        assert_eq!(entry["annotations"]["io.containerd.image.name"], "docker.io/library/netpol-agent:0.1.0");
        assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], "0.1.0");
        assert_eq!(entry["platform"], json!({ "architecture": "amd64", "os": "linux" }));

        let manifest = parsed(blob(&files, entry));
        let config = parsed(blob(&files, &manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/netpol-agent"]));
        let layer = blob(&files, &manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", hex(layer))]));
        let root = extract(layer);
        assert_eq!(root.keys().collect::<Vec<_>>(), ["netpol-agent"]);
        assert_eq!(root["netpol-agent"], IMAGE.binary);
        // Three blobs, and the files that lead to them.
        assert_eq!(files.len(), 6);
    }

    #[test]
    fn what_docker_load_reads_names_the_same_blobs() {
        let files = extract(&IMAGE.archive().unwrap());
        let docker = parsed(&files["manifest.json"]);
        let manifest = parsed(blob(&files, &parsed(&files["index.json"])["manifests"][0]));
        assert_eq!(docker[0]["RepoTags"], json!(["netpol-agent:0.1.0"]));
        assert_eq!(docker[0]["Config"], json!(path(&manifest["config"]).unwrap()));
        assert_eq!(docker[0]["Layers"], json!([path(&manifest["layers"][0]).unwrap()]));
    }

    #[test]
    fn the_same_binary_gives_the_same_archive_and_another_one_another() {
        let first = IMAGE.archive().unwrap();
        assert_eq!(hex(&first), hex(&IMAGE.archive().unwrap()));
        let other = Image { binary: b"\x7fELG", ..IMAGE };
        assert_ne!(hex(&first), hex(&other.archive().unwrap()));
    }

    #[test]
    fn names_are_completed_as_the_kubelet_completes_them() {
        let full = |reference| full_name(reference).unwrap();
        assert_eq!(full("netpol-agent:1"), "docker.io/library/netpol-agent:1");
        assert_eq!(full("someone/netpol-agent:1"), "docker.io/someone/netpol-agent:1");
        assert_eq!(full("ghcr.io/someone/netpol-agent:1"), "ghcr.io/someone/netpol-agent:1");
        assert_eq!(full("localhost:5000/netpol-agent:1"), "localhost:5000/netpol-agent:1");
        for refused in ["netpol-agent", "netpol-agent:", ":1", "Netpol:1", "a//b:1", "localhost:5000/netpol-agent"] {
            assert!(full_name(refused).is_err(), "{refused}");
        }
    }
}
