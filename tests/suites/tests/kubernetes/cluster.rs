//! A cluster of `cargo xtask cluster`, driven as people drive it: by commands. It is taken down when the test's process
//! ends, however it ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use netpol_testbed::control_plane::Client;
use netpol_testbed::control_plane::installation::{Installation, cache_directory};
use netpol_testbed::namespace::Namespace;
use netpol_testbed::place::Place;
use serde_json::Value;

/// The machine that runs the control plane.
pub(crate) const CONTROL_PLANE: &str = "control-plane";

/// Longer than anything waits for here: images are unpacked and daemons started, and a machine may be busy with much
/// else. Nothing that is measured waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Names an archive that `cargo xtask image` has written, if none is to be built: an optimised build takes minutes.
const IMAGE: &str = "NETPOL_IMAGE";

/// A cluster by its name, whether it is up or not.
pub(crate) struct Cluster {
    name: &'static str,
}

/// Processes that take clusters down when this process has ended, with the ends of their pipes.
static GUARDS: Mutex<Vec<Child>> = Mutex::new(Vec::new());

impl Cluster {
    /// The cluster with this name, of which nothing is left of an earlier run, and nothing will be left of this one.
    pub(crate) fn fresh(name: &'static str) -> Self {
        build_xtask();
        let cluster = Self { name };
        cluster.down();
        guard(&cluster);
        cluster
    }

    /// A command of `cargo xtask` about this cluster.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(xtask());
        command.args(arguments).env("NETPOL_CLUSTER", self.name);
        command
    }

    /// Runs such a command to its end; returns what it says.
    pub(crate) fn xtask(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "cargo xtask {}: {said}", arguments.join(" "));
        said
    }

    pub(crate) fn up(&self, options: &[&str]) {
        let _usage = self.xtask(&[&["cluster", "up"], options].concat());
    }

    pub(crate) fn down(&self) {
        let _said = self.xtask(&["cluster", "down"]);
    }

    /// Builds the agent's image, gives it to all nodes, and applies the manifests.
    pub(crate) fn install_agent(&self) {
        if std::env::var_os(IMAGE).is_none() {
            let _sizes = self.xtask(&["image", "--output", image().to_str().unwrap()]);
        }
        self.load_image();
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/base");
        self.client().apply_kustomization(&base).unwrap();
        let rollout = ["rollout", "status", "daemonset/netpol-agent", "--namespace=netpol-agent", "--timeout=300s"];
        let _progress = self.client().kubectl(&rollout).unwrap();
    }

    /// Gives the agent's image to all nodes that there are.
    pub(crate) fn load_image(&self) {
        let _nodes = self.xtask(&["cluster", "load", image().to_str().unwrap()]);
    }

    /// Where the cluster's state is.
    pub(crate) fn folder(&self) -> PathBuf {
        cache_directory().unwrap().join(format!("cluster-{}", self.name))
    }

    /// kubectl as the administrator.
    pub(crate) fn client(&self) -> Client {
        let kubectl = Installation::find().unwrap().component("kubectl").unwrap();
        let folder = self.folder();
        let place = Place::namespace(&self.machine(CONTROL_PLANE).file("net"));
        Client::new(&kubectl, &folder.join("admin.kubeconfig"), &folder, &place)
    }

    /// One of its machines, which must be there.
    pub(crate) fn machine(&self, name: &str) -> Machine {
        let path = self.folder().join(format!("machines/{name}.json"));
        let record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let pid = record["pid"].as_i64().unwrap();
        Machine { pid, group: format!("/netpol-cluster-{}-{name}", self.name) }
    }

    /// All its machines.
    pub(crate) fn machines(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder().join("machines")).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned()));
        names.collect()
    }
}

/// A machine of a cluster: the control plane, or a node.
pub(crate) struct Machine {
    pub(crate) pid: i64,
    /// What its processes' control groups begin with.
    group: String,
}

impl Machine {
    /// The file of one of its namespaces.
    pub(crate) fn file(&self, kind: &str) -> PathBuf {
        format!("/proc/{}/ns/{kind}", self.pid).into()
    }

    /// Where its processes run.
    pub(crate) fn place(&self) -> Place {
        Place::namespace(&self.file("net")).with_mounts(&self.file("mnt"))
    }

    /// A network namespace on it, by the file that it is mounted on there.
    pub(crate) fn namespace(&self, path: &Path) -> Result<Namespace> {
        let open = || File::open(path).with_context(|| format!("cannot open {}", path.display()));
        Ok(Namespace::opened(self.place().run(open)?))
    }

    /// Its network.
    pub(crate) fn network(&self) -> Namespace {
        Namespace::opened(File::open(self.file("net")).unwrap())
    }

    /// Its processes, those of its containers among them.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            let of_machine = |line: &str| {
                let path = line.splitn(3, ':').nth(2).unwrap_or_default();
                // The group itself or one below it, which may be below a group of the caller's.
                path.split_once(self.group.as_str()).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('/'))
            };
            if read("cgroup").lines().any(of_machine) {
                let status = read("status");
                let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let resident = field("VmRSS:").and_then(|size| size.split(' ').next()?.parse().ok());
                found.push(Process {
                    pid: entry.file_name().to_string_lossy().parse().unwrap_or_default(),
                    name: field("Name:").unwrap_or_default().to_owned(),
                    resident: resident.unwrap_or_default(),
                });
            }
        }
        found
    }
}

/// A process of a machine.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) name: String,
    /// Resident memory in KiB, with pages that it shares with others.
    pub(crate) resident: u64,
}

/// Tries until it works, and fails with the last reason.
pub(crate) fn wait<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> T {
    let begin = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "{what}: {error:#}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The program behind `cargo xtask`, beside the suites' own folder.
fn xtask() -> PathBuf {
    profile_folder().join("xtask")
}

fn image() -> PathBuf {
    let given = std::env::var_os(IMAGE).map(PathBuf::from);
    given.unwrap_or_else(|| profile_folder().with_file_name("image").join("netpol-agent.tar"))
}

/// Cargo's folder for what is built with the suites' profile.
fn profile_folder() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned()
}

/// `cargo xtask test` has just built it; whoever runs the suite without may not have.
fn build_xtask() {
    if xtask().is_file() {
        return;
    }
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--package", "xtask"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(command.status().unwrap().success(), "xtask does not build");
}

/// Starts a process that takes the cluster down when this one has ended: it reads from a pipe that the kernel closes.
/// When the test harness ends in order, it is waited for.
fn guard(cluster: &Cluster) {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new("sh");
    command.args(["-c", "cat > /dev/null; exec \"$0\" cluster down"]).arg(xtask());
    // Ctrl-C is for the test alone.
    command.env("NETPOL_CLUSTER", cluster.name).stdin(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let child = command.spawn().unwrap();
    let mut guards = GUARDS.lock().unwrap_or_else(PoisonError::into_inner);
    if guards.is_empty() {
        // SAFETY: the handler touches only what lives as long as the process, and does not unwind.
        let registered = unsafe { libc::atexit(at_exit) };
        assert_eq!(registered, 0, "atexit");
    }
    guards.push(child);
}

extern "C" fn at_exit() {
    let mut guards = GUARDS.lock().unwrap_or_else(PoisonError::into_inner);
    for guard in guards.iter_mut() {
        drop(guard.stdin.take());
    }
    for guard in guards.iter_mut() {
        // Its failure is seen by the next run, which begins with the same command.
        let _ = guard.wait();
    }
}

/// The objects of an answer, or why there is none.
pub(crate) fn items(answer: &Value) -> Result<&Vec<Value>> {
    match answer["items"].as_array() {
        Some(items) => Ok(items),
        None => bail!("{answer} is no list"),
    }
}

/// A string in an object, by its path.
pub(crate) fn text<'a>(object: &'a Value, path: &str) -> Result<&'a str> {
    object.pointer(path).and_then(Value::as_str).with_context(|| format!("no {path} yet"))
}
