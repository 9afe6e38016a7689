//! The cluster's own life: nothing is left of it, whatever was half made or half gone; and Flannel's other backend, for
//! which a second cluster is needed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use netpol_testbed::probe::Outcome;

use crate::cluster::{Cluster, wait};
use crate::encapsulation::judged_once_on_each_side;
use crate::site::{Site, expect, pod};

const NAME: &str = "suiteb";

/// Everything by which a cluster could outlive itself.
struct Traces {
    /// Its namespaces, as `/proc/<pid>/ns/*` names them.
    namespaces: BTreeSet<PathBuf>,
    /// Links of the host's own network, before there was a cluster.
    links: BTreeSet<String>,
}

impl Traces {
    /// What is to be remembered before there is a cluster.
    fn before() -> Self {
        Self { namespaces: BTreeSet::new(), links: links() }
    }

    /// Takes note of the namespaces of a cluster that is up, those of its pods among them.
    fn observe(&mut self, cluster: &Cluster) {
        let own = namespaces("self");
        for machine in cluster.machines() {
            for process in cluster.machine(&machine).processes() {
                self.namespaces.extend(namespaces(&process.pid.to_string()).difference(&own).cloned());
            }
        }
    }

    /// What is left.
    fn left(&self, cluster: &Cluster) -> Vec<String> {
        let mut left = Vec::new();
        let folder = cluster.folder();
        let folder = folder.to_str().unwrap();
        let group = format!("netpol-cluster-{NAME}-");
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            let inside = namespaces(&name).intersection(&self.namespaces).count();
            if inside > 0 || read("cgroup").contains(&group) || read("cmdline").contains(folder) {
                left.push(format!("process {name}: {}", read("cmdline").replace('\0', " ")));
            }
            // A namespace can be held by a descriptor alone.
            for descriptor in std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
                if std::fs::read_link(descriptor.path()).is_ok_and(|target| self.namespaces.contains(&target)) {
                    left.push(format!("process {name} holds {:?}", std::fs::read_link(descriptor.path())));
                }
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let of_cluster = |line: &&str| {
            line.contains(folder) || self.namespaces.iter().any(|one| line.contains(&*one.to_string_lossy()))
        };
        left.extend(mounts.lines().filter(of_cluster).map(|line| format!("mount {line}")));
        let mut groups = Vec::new();
        find(Path::new("/sys/fs/cgroup"), &group, &mut groups);
        left.extend(groups.iter().map(|group| format!("control group {}", group.display())));
        if Path::new(folder).exists() {
            left.push(folder.to_owned());
        }
        left.extend(links().difference(&self.links).map(|link| format!("link {link}")));
        left
    }
}

fn namespaces(process: &str) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{process}/ns")).into_iter().flatten().flatten();
    entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
}

fn links() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/sys/class/net").unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Folders below `folder` whose name begins with `prefix`.
fn find(folder: &Path, prefix: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(entry.path());
            }
            find(&entry.path(), prefix, found);
        }
    }
}

fn kill(pid: i64) {
    let status = Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_cluster_starts_after_an_interrupted_start_judges_host_gw_once_and_leaves_nothing_when_half_is_gone() {
    const OPTIONS: [&str; 6] = ["--nodes", "2", "--backend", "host-gw", "--proxy", "iptables"];
    let mut traces = Traces::before();
    let cluster = Cluster::fresh(NAME);

    // Killed when all machines are there, and before the cluster is.
    let mut up = cluster.command(&[&["cluster", "up"], &OPTIONS[..]].concat());
    let mut up = up.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait("its machines", || {
        anyhow::ensure!(cluster.machines().len() == 3, "{:?}", cluster.machines());
        Ok(())
    });
    std::thread::sleep(Duration::from_secs(1));
    traces.observe(&cluster);
    up.kill().unwrap();
    let status = up.wait().unwrap();
    assert!(!status.success(), "it had come to its end: {status}");
    assert!(!cluster.folder().join("cluster.json").exists(), "it was ready already");
    let begun = traces.namespaces.len();
    assert!(begun > 10, "{:?}", traces.namespaces);

    cluster.up(&OPTIONS);
    let mut earlier = Traces { namespaces: std::mem::take(&mut traces.namespaces), links: traces.links.clone() };
    // Of the first attempt no namespace lives, though the second has the same name.
    earlier.namespaces.retain(earlier_lives);
    assert_eq!(earlier.namespaces, BTreeSet::new());

    let mut site = Site::on(cluster);
    {
        let space = site.namespace("crossing");
        let [here, there] = space.pods([pod("here", "node1"), pod("there", "node2")]);
        expect(&here, &there, &Outcome::Allow);
        expect(&there, &here, &Outcome::Allow);
    }
    judged_once_on_each_side(&mut site, "host-gw");

    let Site { cluster, .. } = site;
    traces.observe(&cluster);
    // One machine is gone, of another the record.
    kill(cluster.machine("node2").pid);
    std::fs::remove_file(cluster.folder().join("machines/node1.json")).unwrap();
    cluster.down();
    wait("nothing is left", || {
        let left = traces.left(&cluster);
        anyhow::ensure!(left.is_empty(), "{left:#?}");
        Ok(())
    });
    eprintln!("cluster down, half gone: nothing is left of {} namespaces", traces.namespaces.len());
    // Again, of nothing.
    cluster.down();
    assert_eq!(traces.left(&cluster), [""; 0]);
}

/// Whether any process is in a namespace.
fn earlier_lives(namespace: &PathBuf) -> bool {
    let mut processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.bytes().all(|byte| byte.is_ascii_digit()) && namespaces(&name).contains(namespace)
    })
}
