//! netpol-agent on a node: started, asked, stopped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::interrupt;
use crate::node::Node;
use crate::place::Place;
use crate::process::Process;

/// How long the agent may take until it is ready, or until what it was given is in force: generous, since machines are
/// busy; it is not what is measured.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a question may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How often it is asked again.
const PAUSE: Duration = Duration::from_millis(10);

/// A running agent; dropping it ends the process. What it has pinned goes with the node.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    place: Place,
    address: SocketAddr,
    log: File,
}

/// Drops of a namespace's pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dropped {
    /// Namespace of the pods.
    pub namespace: String,
    /// `ingress` or `egress`, as the pods see it.
    pub direction: String,
    /// Why.
    pub reason: String,
    /// How many.
    pub packets: u64,
}

impl Agent {
    /// Where the agent tells of itself, on the node's loopback.
    pub const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9640);

    /// Starts the agent on a node; `arguments` say where objects come from, and whatever else differs from its
    /// defaults.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(node: &Node, binary: &Path, arguments: &[&str]) -> Result<Self> {
        let place = node.place();
        let log = place.run(|| {
            let path = Path::new("/run/netpol-agent.log");
            File::options().create(true).append(true).read(true).open(path).context("cannot open the agent's log")
        })?;
        let mut command = Command::new(binary);
        command.args(["run", "--node-name", node.name(), "--metrics-address", &Self::ADDRESS.to_string()]);
        command.arg("--cni-cache").arg(node.cni_cache()).args(arguments);
        let through = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), log.as_raw_fd()));
        let process = Process::start("netpol-agent", command, &place, &through)?;
        Ok(Self { process, place, address: Self::ADDRESS, log })
    }

    /// Waits until everything that it knew at its start is in force.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait("ready", |agent| agent.get("/readyz").map(drop))
    }

    /// Waits until this version of every kind is in force, and no interface waits for its pod.
    ///
    /// # Errors
    /// It ends, or does not get there in time.
    pub fn wait_applied(&mut self, version: &str, pods: usize) -> Result<()> {
        self.wait("at the newest version", |agent| {
            let answer: Value = serde_json::from_str(&agent.get("/v1/applied")?).context("GET /v1/applied")?;
            for kind in ["Namespace", "Node", "Pod", "Service", "NetworkPolicy"] {
                let applied = &answer["applied"][kind]["version"];
                if applied != version {
                    bail!("{kind} is at version {applied}, and should be at {version}");
                }
            }
            if answer["endpoints"]["ready"].as_u64() < Some(pods as u64) || answer["pending"] != 0 {
                bail!("{pods} pods run, and it says: endpoints {}, pending {}", answer["endpoints"], answer["pending"]);
            }
            Ok(())
        })
    }

    /// What it has dropped so far.
    ///
    /// # Errors
    /// It does not answer.
    pub fn dropped(&self) -> Result<Vec<Dropped>> {
        Ok(dropped(&self.get("/metrics")?))
    }

    /// The body of a successful answer.
    ///
    /// # Errors
    /// It does not answer, or not with success.
    pub fn get(&self, path: &str) -> Result<String> {
        get(&self.place, self.address, path)
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// It has; the message has its last lines.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// All that it and its predecessors on this node have logged.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<String> {
        let through = format!("/proc/self/fd/{}", self.log.as_raw_fd());
        std::fs::read_to_string(through).context("cannot read the agent's log")
    }

    /// Ends it in order; what is in force stays.
    pub fn stop(mut self) {
        self.process.stop();
    }

    /// Ends it as a crash would.
    pub fn kill(mut self) {
        self.process.kill();
    }

    fn wait(&mut self, what: &str, is_there: impl Fn(&Self) -> Result<()>) -> Result<()> {
        let begin = Instant::now();
        loop {
            if interrupt::requested() {
                bail!(interrupt::Interrupted);
            }
            self.process.check()?;
            match is_there(self) {
                Ok(()) => return Ok(()),
                Err(error) if begin.elapsed() > PATIENCE => {
                    let lines = self.process.tail();
                    return Err(error
                        .context(format!("netpol-agent is not {what} after {PATIENCE:?}; its last lines:\n{lines}")));
                }
                Err(_not_yet) => thread::sleep(PAUSE),
            }
        }
    }
}

/// Asks the agent that listens at an address of a place; the body of a successful answer.
///
/// # Errors
/// It does not answer, or not with success.
pub fn get(place: &Place, address: SocketAddr, path: &str) -> Result<String> {
    place.run(move || {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER).context("the agent does not listen")?;
        stream.set_read_timeout(Some(ANSWER)).context("SO_RCVTIMEO")?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: agent\r\n\r\n").context("send")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("receive")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        match head.split(' ').nth(1) {
            Some("200") => Ok(body.to_owned()),
            Some(_) | None => bail!("GET {path}: {}: {}", head.lines().next().unwrap_or(""), body.trim()),
        }
    })
}

/// The drop counters among an agent's metrics, those that are 0 left out.
#[must_use]
pub fn dropped(metrics: &str) -> Vec<Dropped> {
    let mut dropped = Vec::new();
    for (labels, packets) in samples(metrics, "netpol_dropped_packets_total") {
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let (namespace, direction, reason) = (label("namespace"), label("direction"), label("reason"));
        if packets > 0.0 {
            dropped.push(Dropped { namespace, direction, reason, packets: packets as u64 });
        }
    }
    dropped.sort();
    dropped
}

/// The samples of one metric in the text format of Prometheus, each with its labels.
#[must_use]
pub fn samples(text: &str, metric: &str) -> Vec<(BTreeMap<String, String>, f64)> {
    let sample = |line: &str| {
        let rest = line.strip_prefix(metric)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        // No label of ours holds a comma or a quotation mark: they are names of namespaces and words of our own.
        let label = |pair: &str| {
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.trim_matches('"').to_owned()))
        };
        let labels = labels.split(',').filter_map(label).collect();
        Some((labels, value.split(' ').next()?.parse().ok()?))
    };
    text.lines().filter_map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_are_told_from_those_of_others() {
        let text =
            "# HELP a_total x\n# TYPE a counter\na_total{b=\"c\",d=\"e\"} 12\na_total_more{b=\"c\"} 1\na_total 3\n";
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(samples(text, "a_total"), [(labels(&[("b", "c"), ("d", "e")]), 12.0), (labels(&[]), 3.0)]);
    }
}
