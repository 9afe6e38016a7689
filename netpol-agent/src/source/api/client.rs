//! The way to the API server: address, credentials, and none of the client's own patience.

use std::path::Path;

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// A client by kubeconfig, or by the service account of the agent's own pod. `server` replaces the address of either;
/// the certificate is checked against the new one.
///
/// Sends nothing yet: a server that is not there is for the watches to find out and to wait for.
pub async fn client(kubeconfig: Option<&Path>, server: Option<&str>) -> anyhow::Result<Client> {
    let config = config(kubeconfig, server).await?;
    tracing::info!(server = %config.cluster_url, "objects come from the API server");
    Client::try_from(config).context("cannot make a client for the API server")
}

async fn config(kubeconfig: Option<&Path>, server: Option<&str>) -> anyhow::Result<Config> {
    let mut config = match kubeconfig {
        Some(path) => {
            let what = || format!("--kubeconfig {}", path.display());
            let kubeconfig = Kubeconfig::read_from(path).with_context(what)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.with_context(what)?
        }
        None => Config::incluster().context("neither --kubeconfig nor --manifests is given, and this is no pod")?,
    };
    if let Some(server) = server {
        config.cluster_url = server.parse().with_context(|| format!("--api-server {server}"))?;
    }
    // Up to 15 silent retries otherwise, minutes in which a watch looks alive. Ours are counted and logged.
    config.default_retry = false;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn kubeconfig(server: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{ "name": "here", "context": { "cluster": "c", "user": "u" } }],
            "clusters": [{ "name": "c", "cluster": { "server": server } }],
            "users": [{ "name": "u", "user": { "token": "t" } }],
        });
        file.write_all(text.to_string().as_bytes()).expect("write");
        file
    }

    #[tokio::test]
    async fn the_clients_own_retries_are_off() {
        let file = kubeconfig("https://10.0.0.1:6443");
        let config = config(Some(file.path()), None).await.expect("config");
        assert!(!config.default_retry);
        assert_eq!(config.cluster_url, "https://10.0.0.1:6443");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_yet_is_no_error() {
        let file = kubeconfig("https://127.0.0.1:1");
        assert!(client(Some(file.path()), None).await.is_ok());
    }

    #[tokio::test]
    async fn another_address_can_be_given() {
        let file = kubeconfig("https://10.96.0.1");
        let config = config(Some(file.path()), Some("https://192.0.2.1:6443")).await.expect("config");
        assert_eq!(config.cluster_url, "https://192.0.2.1:6443");
    }

    #[tokio::test]
    async fn a_kubeconfig_that_is_not_there_is_an_error_that_names_the_flag() {
        let error = config(Some(Path::new("/nowhere/kubeconfig")), None).await.expect_err("missing");
        assert!(error.to_string().contains("--kubeconfig /nowhere/kubeconfig"), "{error:#}");
    }
}
