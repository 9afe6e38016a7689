//! What is kept about a running cluster: a folder of the cache with certificates, logs, the kubeconfig, and one record
//! for each machine, so that `down` ends what `up` has started and nothing else.
//!
//! A machine is the first process of a process namespace: when it ends, the kernel ends every other process in it, and
//! with the last of them go its network, its mounts and all that was in them. So a record needs only that process, told
//! from a later one of the same number by its start time, and the control groups, which the kernel keeps.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_testbed::control_plane::installation::cache_directory;
use netpol_testbed::place::Place;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::Options;

/// How long the kernel may take to end a machine: hundreds of processes, with mounts to detach.
const END: Duration = Duration::from_secs(60);

/// The folder of a cluster: of the one, or of the one that `NETPOL_CLUSTER` names.
pub(super) struct State {
    /// Certificates, logs, records.
    pub(super) folder: PathBuf,
}

/// The cluster as it was asked for, written when it was ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cluster {
    /// What `up` was told.
    pub(super) options: Options,
    /// The installation that it runs, by its folder's name.
    pub(super) recipe: String,
}

/// A machine that was started, written by its first process before it does anything else.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Machine {
    /// Its name, which is its node's too.
    pub(super) name: String,
    /// Its first process, as the host numbers it.
    pub(super) pid: i32,
    /// When that process began, in clock ticks since the host did.
    pub(super) start: u64,
    /// Its control groups, as the host sees them.
    pub(super) cgroups: Vec<PathBuf>,
}

/// The folder of a cluster with a name. `cluster-v…` is where binaries are.
fn folder_of(name: &str) -> Result<String> {
    let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    if name.len() > 16 || !name.chars().all(plain) || name.starts_with('v') {
        bail!("NETPOL_CLUSTER={name}: at most 16 small letters and digits, and the first is not v");
    }
    Ok(format!("cluster-{name}"))
}

impl State {
    /// The state in its place, whether there is any or not.
    pub(super) fn find() -> Result<Self> {
        let folder = match std::env::var("NETPOL_CLUSTER") {
            Ok(name) if !name.is_empty() => folder_of(&name)?,
            _ => "cluster".to_owned(),
        };
        Ok(Self { folder: cache_directory()?.join(folder) })
    }

    /// What the control groups of a machine are called, beside those of other clusters.
    pub(super) fn group(&self, machine: &str) -> String {
        let cluster = self.folder.file_name().unwrap_or_default().to_string_lossy();
        format!("{cluster}-{machine}")
    }

    /// Makes the folder and keeps others from changing the cluster until the value is dropped.
    pub(super) fn lock(&self) -> Result<File> {
        for folder in [self.folder.clone(), self.machines(), self.logs(), self.pki()] {
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let file = File::open(&self.folder).with_context(|| format!("cannot open {}", self.folder.display()))?;
        if file.try_lock().is_err() {
            bail!("another `cargo xtask cluster` is at work");
        }
        Ok(file)
    }

    pub(super) fn exists(&self) -> bool {
        self.folder.exists()
    }

    pub(super) fn machines(&self) -> PathBuf {
        self.folder.join("machines")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    pub(super) fn pki(&self) -> PathBuf {
        self.folder.join("pki")
    }

    pub(super) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder.join(format!("{user}.kubeconfig"))
    }

    /// The cluster, if it has been ready.
    pub(super) fn cluster(&self) -> Result<Option<Cluster>> {
        let path = self.folder.join("cluster.json");
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| path.display().to_string()).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Records that the cluster is ready.
    pub(super) fn complete(&self, cluster: &Cluster) -> Result<()> {
        write(&self.folder.join("cluster.json"), &serde_json::to_vec(cluster).context("cluster.json")?)
    }

    /// The records of machines, the control plane's first.
    pub(super) fn records(&self) -> Result<Vec<Machine>> {
        let folder = self.machines();
        let Ok(entries) = fs::read_dir(&folder) else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let record: Machine =
                    serde_json::from_slice(&text).with_context(|| format!("{} is no record", path.display()))?;
                records.push(record);
            }
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    /// The record of one machine.
    pub(super) fn record(&self, name: &str) -> Result<Machine> {
        let found = self.records()?.into_iter().find(|machine| machine.name == name);
        found.with_context(|| format!("there is no machine {name}"))
    }

    /// Ends one machine and removes its record.
    pub(super) fn end(&self, machine: &Machine) -> Result<()> {
        machine.kill()?;
        machine.wait()?;
        machine.remove_cgroups()?;
        // The record last: until then the machine can be found.
        for file in [format!("{}.sock", machine.name), format!("{}.json", machine.name)] {
            let path = self.machines().join(file);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Ends every machine and removes the folder. What is gone already is no error.
    pub(super) fn remove(&self) -> Result<()> {
        let records = self.records()?;
        for machine in &records {
            machine.kill()?;
        }
        for machine in &records {
            machine.wait()?;
            machine.remove_cgroups()?;
        }
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.folder.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Machine {
    /// Writes the record, whole or not at all.
    pub(super) fn write(&self, state: &State) -> Result<()> {
        write(&self.path(state), &serde_json::to_vec(self).context("a machine's record")?)
    }

    /// Where the record is.
    pub(super) fn path(&self, state: &State) -> PathBuf {
        state.machines().join(format!("{}.json", self.name))
    }

    /// Whether its first process is still that process.
    pub(super) fn is_alive(&self) -> bool {
        start_time(Path::new(&format!("/proc/{}/stat", self.pid))) == Some(self.start)
    }

    /// Where its processes run, but for the process namespace.
    pub(super) fn place(&self) -> Place {
        Place::namespace(&self.namespace("net")).with_mounts(&self.namespace("mnt"))
    }

    /// Its network, with the caller's mounts.
    pub(super) fn network(&self) -> Place {
        Place::namespace(&self.namespace("net"))
    }

    /// A file that stands for one of its namespaces.
    pub(super) fn namespace(&self, kind: &str) -> PathBuf {
        format!("/proc/{}/ns/{kind}", self.pid).into()
    }

    fn kill(&self) -> Result<()> {
        if self.is_alive() {
            match kill(Pid::from_raw(self.pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("kill({})", self.pid)),
            }
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        let begin = Instant::now();
        while self.is_alive() {
            if begin.elapsed() > END {
                bail!("the machine {} (process {}) does not end", self.name, self.pid);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn remove_cgroups(&self) -> Result<()> {
        self.cgroups.iter().try_for_each(|group| remove_when_empty(group))
    }
}

/// Removes a control group whose processes are ending: it is busy for a moment after the last of them has.
pub(super) fn remove_when_empty(group: &Path) -> Result<()> {
    let begin = Instant::now();
    while let Err(error) = remove_groups(group) {
        if begin.elapsed() > END {
            return Err(error).with_context(|| format!("cannot remove {}", group.display()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Removes a control group with all below it. Its files go with it and cannot be removed by themselves.
pub(super) fn remove_groups(group: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// When the process of a `/proc/…/stat` began; none if there is none, or only its exit status is left.
pub(super) fn start_time(stat: &Path) -> Option<u64> {
    let text = fs::read_to_string(stat).ok()?;
    // The second field, a name in parentheses, may hold anything: proc(5).
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let state = fields.first()?;
    // starttime is field 22, and the state, which comes first here, is field 3.
    (!matches!(*state, "Z" | "X")).then(|| fields.get(19)?.parse().ok())?
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, content).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_by_its_start() {
        let own = Path::new("/proc/self/stat");
        let start = start_time(own).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let mut machine = Machine { name: "n".to_owned(), pid, start, cgroups: Vec::new() };
        assert!(machine.is_alive());
        machine.start += 1;
        assert!(!machine.is_alive());
    }

    #[test]
    fn a_name_for_a_cluster_is_one_that_a_folder_and_a_control_group_can_bear() {
        assert_eq!(folder_of("life2").unwrap(), "cluster-life2");
        for wrong in ["v2", "a/b", "..", "Life", "abcdefghijklmnopq"] {
            assert!(folder_of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_gone_is_removed_without_complaint() {
        let folder = tempfile::tempdir().unwrap();
        let state = State { folder: folder.path().join("cluster") };
        drop(state.lock().unwrap());
        // No process has this number: the kernel's limit is 2^22.
        let gone =
            Machine { name: "n1".to_owned(), pid: 4_194_305, start: 1, cgroups: vec!["/nonexistent/group".into()] };
        gone.write(&state).unwrap();
        assert_eq!(state.records().unwrap().len(), 1);
        state.remove().unwrap();
        assert!(!state.exists());
        state.remove().unwrap();
    }
}
