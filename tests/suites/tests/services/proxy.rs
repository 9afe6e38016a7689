//! The real kube-proxy, on a node of the testbed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_suites::cluster_binary;
use netpol_testbed::control_plane::Client;
use netpol_testbed::node::Node;
use netpol_testbed::place::Place;
use netpol_testbed::process::Process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

/// How kube-proxy rewrites addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Nftables,
    Iptables,
}

impl Mode {
    /// As kube-proxy's configuration has it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// A running kube-proxy; dropping it ends the process and leaves its rules, as a crash does.
pub(crate) struct KubeProxy {
    process: Process,
    place: Place,
    _folder: TempDir,
}

/// A kube-proxy that is stopped; dropping this lets it go on.
pub(crate) struct Paused(Pid);

impl Drop for Paused {
    fn drop(&mut self) {
        // It fails only if the process has ended, and then there is nothing to go on.
        let _ended = kill(self.0, Signal::SIGCONT);
    }
}

/// Pods of all nodes: what comes from elsewhere is from outside of the cluster.
const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/56";

/// Where it tells of its health, on every address of the node.
const HEALTH: &str = "127.0.0.1:10256";

const PATIENCE: Duration = Duration::from_secs(60);

impl KubeProxy {
    /// Starts it with an identity of its own, and returns when its rules are in force.
    pub(crate) fn start(node: &Node, identity: &Client, mode: Mode) -> Result<Self> {
        let folder = tempfile::tempdir().context("a folder for kube-proxy")?;
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": mode.name(),
            "clientConnection": { "kubeconfig": identity.kubeconfig() },
            "clusterCIDR": CLUSTER_CIDR,
            // The size of the connection table is the machine's.
            "conntrack": { "maxPerCore": 0 },
        });
        let file = folder.path().join("config.json");
        std::fs::write(&file, config.to_string()).context("kube-proxy's configuration")?;
        let mut command = Command::new(cluster_binary("kube-proxy"));
        command.arg(format!("--config={}", file.display())).arg(format!("--hostname-override={}", node.name()));
        let place = node.place();
        let process = Process::start("kube-proxy", command, &place, &folder.path().join("log"))?;
        let mut proxy = Self { process, place, _folder: folder };
        proxy.wait()?;
        Ok(proxy)
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// Stops it where it is: it hears of nothing, and its rules stay in force.
    pub(crate) fn pause(&self) -> Result<Paused> {
        let process = Pid::from_raw(i32::try_from(self.process.id()).context("a process id")?);
        kill(process, Signal::SIGSTOP).context("kill")?;
        Ok(Paused(process))
    }

    fn wait(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            self.process.check()?;
            match self.healthy() {
                Ok(()) => return Ok(()),
                Err(error) if begin.elapsed() > PATIENCE => {
                    return Err(error.context(format!("kube-proxy is not ready:\n{}", self.process.tail())));
                }
                Err(_not_yet) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn healthy(&self) -> Result<()> {
        let address: SocketAddr = HEALTH.parse().context(HEALTH)?;
        self.place.run(move || {
            let mut stream = TcpStream::connect(address).context("connect")?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).context("SO_RCVTIMEO")?;
            write!(stream, "GET /healthz HTTP/1.0\r\n\r\n").context("send")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).context("receive")?;
            if answer.split(' ').nth(1) == Some("200") { Ok(()) } else { bail!("{answer}") }
        })
    }
}
