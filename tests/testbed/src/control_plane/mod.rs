//! A real control plane: etcd and kube-apiserver with TLS and RBAC, on loopback of the caller's or any other network
//! namespace, for as long as a value lives.
//!
//! [`ControlPlane::start`] makes a certificate authority, picks free ports, and starts both daemons; [`Client`] is kubectl
//! under one identity; [`actors`] plays the controller manager and the kubelet; [`Etcd`] reaches the store behind the API
//! server's back; [`Relay`] does to connections what networks do. Everything is in a temporary folder, which goes with
//! the value, as the processes do.

pub mod actors;
mod audit;
pub mod certificates;
mod client;
mod etcd;
pub mod installation;
mod relay;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use self::audit::Request;
use self::certificates::{Authority, Identity};
pub use self::client::Client;
pub use self::etcd::Etcd;
use self::installation::Installation;
pub use self::relay::Relay;
use crate::place::Place;
use crate::process::Process;
pub use crate::{place, process};

/// How long a daemon may take to answer: generous, since tests run on machines that are busy compiling.
const START: Duration = Duration::from_secs(120);

/// Where and how a control plane runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The network namespace of both daemons and of all clients; its `lo` has to be up.
    pub place: Place,
    /// The API server's address, one of the namespace's own.
    pub address: IpAddr,
    /// ClusterIPs are taken from these, at most one of each family.
    pub service_cidrs: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            place: Place::default(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            service_cidrs: vec!["10.96.0.0/16".to_owned(), "fd00:10:96::/112".to_owned()],
        }
    }
}

/// A running control plane; dropping it leaves no trace.
pub struct ControlPlane {
    // Dropped in this order: the API server ends before the store that it writes to, and both before their files.
    api_server: Option<Process>,
    etcd: Process,
    store: Etcd,
    options: Options,
    installation: Installation,
    authority: Authority,
    serving: Identity,
    tokens: (PathBuf, PathBuf),
    address: SocketAddr,
    admin: Client,
    folder: TempDir,
}

impl ControlPlane {
    /// Starts etcd and the API server and returns when the latter is ready.
    ///
    /// # Errors
    /// The binaries are not built (`cargo xtask setup`), or a daemon ends or is not ready in time; the message has its
    /// last lines.
    pub fn start(options: Options) -> Result<Self> {
        let installation = Installation::find()?;
        let folder = own_folder()?;
        let authority = Authority::new(folder.path())?;
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1", "::1"];
        let mut names: Vec<String> = names.map(str::to_owned).to_vec();
        names.push(options.address.to_string());
        let serving = authority.server("kube-apiserver", names)?;
        let tokens = authority.key_pair("service-accounts")?;
        let [port, client_port, peer_port] = free_ports(&options)?;
        let address = SocketAddr::new(options.address, port);
        let etcd = start_etcd(&installation, &options, folder.path(), client_port, peer_port)?;
        let store = Etcd::new(SocketAddr::from((Ipv4Addr::LOCALHOST, client_port)), options.place.clone());
        // The group that RBAC's bootstrap policy gives everything to.
        let identity = authority.user("admin", "kubernetes-admin", Some("system:masters"))?;
        let kubeconfig = folder.path().join("admin.kubeconfig");
        let user = json!({ "client-certificate": identity.certificate, "client-key": identity.key });
        write_kubeconfig(&kubeconfig, address, &authority, &user)?;
        let kubectl = installation.component("kubectl")?;
        let admin = Client::new(&kubectl, &kubeconfig, folder.path(), &options.place);
        let mut control_plane = Self {
            api_server: None,
            etcd,
            store,
            options,
            installation,
            authority,
            serving,
            tokens,
            address,
            admin,
            folder,
        };
        control_plane.start_api_server()?;
        Ok(control_plane)
    }

    /// The client that may do everything.
    #[must_use]
    pub fn admin(&self) -> &Client {
        &self.admin
    }

    /// The store, reached without the API server.
    #[must_use]
    pub fn etcd(&self) -> &Etcd {
        &self.store
    }

    /// Where the API server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A relay in front of the API server, which its clients reach by [`ControlPlane::service_account`]'s `through`.
    ///
    /// # Errors
    /// No port can be bound.
    pub fn relay(&self) -> Result<Relay> {
        Relay::start(self.address, &self.options.place)
    }

    /// A client with a service account's token, as a pod that runs under it has; through a relay, or directly.
    ///
    /// # Errors
    /// There is no such service account.
    pub fn service_account(&self, namespace: &str, name: &str, through: Option<&Relay>) -> Result<Client> {
        let token = self.admin.kubectl(&["create", "token", name, "--namespace", namespace, "--duration=24h"])?;
        let file = self.folder.path().join(format!("{namespace}-{name}.token"));
        std::fs::write(&file, token.trim()).with_context(|| format!("cannot write {}", file.display()))?;
        self.client(&format!("{namespace}-{name}"), through, &json!({ "tokenFile": file }))
    }

    /// A client with a certificate of a user's name and one group.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn user(&self, name: &str, group: Option<&str>) -> Result<Client> {
        let file = format!("user-{}", name.replace(|sign: char| !sign.is_ascii_alphanumeric(), "-"));
        let identity = self.authority.user(&file, name, group)?;
        self.client(&file, None, &json!({ "client-certificate": identity.certificate, "client-key": identity.key }))
    }

    /// The requests of one user that the API server has answered so far, oldest first.
    ///
    /// # Errors
    /// The audit log cannot be read.
    pub fn requests(&self, user: &str) -> Result<Vec<Request>> {
        audit::requests(&self.folder.path().join(audit::LOG), user)
    }

    /// Ends the API server as a crash does: connections break, nothing is said to clients. The store goes on.
    pub fn kill_api_server(&mut self) {
        if let Some(mut process) = self.api_server.take() {
            process.kill();
        }
    }

    /// Ends the API server in order.
    pub fn stop_api_server(&mut self) {
        if let Some(mut process) = self.api_server.take() {
            process.stop();
        }
    }

    /// Starts the API server, which must not be running, on its old port, and returns when it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub fn start_api_server(&mut self) -> Result<()> {
        if self.api_server.is_some() {
            bail!("the API server is running");
        }
        let command = self.api_server_command()?;
        let log = self.folder.path().join("kube-apiserver.log");
        let mut process = Process::start("kube-apiserver", command, &self.options.place, &log)?;
        let admin = &self.admin;
        let address = self.address;
        let place = &self.options.place;
        wait(&mut process, || {
            // A refused connection costs nothing; kubectl is started only when someone listens.
            place.run(move || TcpStream::connect(address).context("connect"))?;
            admin.kubectl(&["get", "--raw", "/readyz"])?;
            // Made by a loop of the API server that readiness does not wait for.
            admin.kubectl(&["get", "namespace", "default", "kube-system"])
        })?;
        self.api_server = Some(process);
        Ok(())
    }

    /// Fails if one of the daemons has ended by itself.
    ///
    /// # Errors
    /// It has; the message has its last lines.
    pub fn check(&mut self) -> Result<()> {
        self.etcd.check()?;
        self.api_server.as_mut().map_or(Ok(()), Process::check)
    }

    fn client(&self, file: &str, through: Option<&Relay>, user: &Value) -> Result<Client> {
        let address = through.map_or(self.address, Relay::address);
        let kubeconfig = self.folder.path().join(format!("{file}-{}.kubeconfig", address.port()));
        write_kubeconfig(&kubeconfig, address, &self.authority, user)?;
        let kubectl = self.installation.component("kubectl")?;
        Ok(Client::new(&kubectl, &kubeconfig, self.folder.path(), &self.options.place))
    }

    fn api_server_command(&self) -> Result<Command> {
        let folder = self.folder.path();
        let policy = folder.join("audit-policy.json");
        std::fs::write(&policy, audit::policy().to_string()).context("cannot write the audit policy")?;
        let mut command = Command::new(self.installation.component("kube-apiserver")?);
        let mut flag = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            let mut argument = std::ffi::OsString::from(format!("--{name}="));
            argument.push(value);
            command.arg(argument);
        };
        flag("etcd-servers", &format!("http://{}", self.store.address()));
        flag("bind-address", &self.address.ip().to_string());
        flag("secure-port", &self.address.port().to_string());
        // Only told to clients inside the cluster, through a reconciler that is off; loopback would be refused.
        flag("advertise-address", &"192.0.2.1");
        flag("endpoint-reconciler-type", &"none");
        flag("tls-cert-file", &self.serving.certificate);
        flag("tls-private-key-file", &self.serving.key);
        flag("client-ca-file", &self.authority.certificate());
        flag("authorization-mode", &"Node,RBAC");
        flag("anonymous-auth", &"false");
        flag("service-account-issuer", &"https://kubernetes.default.svc");
        flag("service-account-signing-key-file", &self.tokens.0);
        flag("service-account-key-file", &self.tokens.1);
        flag("service-cluster-ip-range", &self.options.service_cidrs.join(","));
        // The DaemonSet's pods ask for capabilities; what may do so is decided by pod security, not by this.
        flag("allow-privileged", &"true");
        flag("audit-policy-file", &policy);
        flag("audit-log-path", &folder.join(audit::LOG));
        flag("cert-dir", &folder.join("unused-certificates"));
        Ok(command)
    }
}

fn start_etcd(
    installation: &Installation,
    options: &Options,
    folder: &Path,
    client_port: u16,
    peer_port: u16,
) -> Result<Process> {
    let (client, peer) = (format!("http://127.0.0.1:{client_port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = Command::new(installation.component("etcd")?);
    command.arg("--data-dir").arg(folder.join("etcd"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}"), "--log-level", "warn"]);
    // Nothing here has to survive the machine.
    command.arg("--unsafe-no-fsync");
    let mut process = Process::start("etcd", command, &options.place, &folder.join("etcd.log"))?;
    let store = Etcd::new(SocketAddr::from((Ipv4Addr::LOCALHOST, client_port)), options.place.clone());
    wait(&mut process, || store.revision())?;
    Ok(process)
}

/// A new folder, named after this process; those of processes that were killed are removed.
fn own_folder() -> Result<TempDir> {
    const PREFIX: &str = "netpol-control-plane-";
    let parent = std::env::temp_dir();
    let entries = std::fs::read_dir(&parent).with_context(|| format!("cannot read {}", parent.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists()) {
            // Another process may be removing it at the same time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir().context("mkdtemp")
}

/// Waits until `ready` succeeds, for as long as the process runs.
fn wait<T>(process: &mut Process, mut ready: impl FnMut() -> Result<T>) -> Result<()> {
    let begin = Instant::now();
    loop {
        process.check()?;
        match ready() {
            Ok(_) => return Ok(()),
            Err(error) if begin.elapsed() > START => {
                return Err(error.context(format!("not ready after {START:?}; its last lines:\n{}", process.tail())));
            }
            Err(_not_yet) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Ports that nobody listens on, on the API server's address and on loopback.
fn free_ports(options: &Options) -> Result<[u16; 3]> {
    let address = options.address;
    options.place.run(move || {
        // All are held at the same time, so that they differ.
        let listeners = [address, IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)]
            .map(|address| TcpListener::bind((address, 0)));
        let mut ports = [0; 3];
        for (port, listener) in ports.iter_mut().zip(listeners) {
            *port = listener.context("bind")?.local_addr().context("getsockname")?.port();
        }
        Ok(ports)
    })
}

/// Writes a kubeconfig with one context; JSON is YAML.
fn write_kubeconfig(path: &Path, server: SocketAddr, authority: &Authority, user: &Value) -> Result<()> {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "testbed",
        "clusters": [{ "name": "testbed", "cluster": {
            "server": format!("https://{server}"), "certificate-authority": authority.certificate(),
        }}],
        "users": [{ "name": "testbed", "user": user }],
        "contexts": [{ "name": "testbed", "context": { "cluster": "testbed", "user": "testbed" } }],
    });
    std::fs::write(path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_processes_that_were_killed_are_removed_and_others_are_not() {
        // No process has this number: the kernel's limit is 2^22.
        let left = std::env::temp_dir().join("netpol-control-plane-4194305-x");
        let others = std::env::temp_dir().join("netpol-control-plane-1-x");
        for folder in [&left, &others] {
            std::fs::create_dir_all(folder.join("etcd")).unwrap();
        }
        let own = own_folder().unwrap();
        assert!(!left.exists());
        assert!(others.exists());
        std::fs::remove_dir_all(others).unwrap();
        let path = own.path().to_owned();
        drop(own);
        assert!(!path.exists());
    }
}
