//! A machine of the cluster, from inside: the first process of a process namespace with a network, mounts and control
//! groups of its own, which starts daemons when it is told to and reaps every process that has ended.
//!
//! Its root is an overlay over the host's, whose upper layer is in memory and in no other mount namespace. So programs
//! and libraries are the host's, and whatever a machine writes is gone with its last process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{chdir, pivot_root, sethostname};

use super::cgroups::Hierarchies;
use super::control::{self, Daemon, Request, Running};
use super::state::{Machine, State, start_time};

/// What a machine has for itself and no other, on the memory file system rather than on the overlay: the kernel takes no
/// overlay as the upper layer of a container's, and the host may have files of its own in the others.
const OWN: [&str; 8] = [
    "var/lib/containerd",
    "var/lib/kubelet",
    "var/lib/cni",
    "var/lib/etcd",
    "var/log/pods",
    "var/log/containers",
    "etc/cni",
    "opt/cni",
];

/// Parameters that the kubelet sets although they are the whole host's: it is given files to write them to.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Options of the hidden command that a machine's first process runs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machine's name
    name: String,
    /// The state's folder
    #[arg(long)]
    state: PathBuf,
    /// Folders that look the same inside as outside
    #[arg(long)]
    keep: Vec<PathBuf>,
}

/// Becomes the machine, until it is killed.
pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let Args { name, state, keep } = args;
    let state = State { folder: state };
    let group = state.group(&name);
    let hierarchies = Hierarchies::read()?;
    let record = Machine {
        name: name.clone(),
        // The host's /proc is still mounted, and tells how the host numbers this process.
        pid: fs::read_link("/proc/self").context("/proc/self")?.to_string_lossy().parse().context("/proc/self")?,
        start: start_time(Path::new("/proc/self/stat")).context("/proc/self/stat")?,
        cgroups: hierarchies.groups(&group),
    };
    record.write(&state)?;
    // From here on `down` finds this process: it may outlive the one that started it.
    // SAFETY: prctl with PR_SET_PDEATHSIG takes a signal's number, 0 for none.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
    hierarchies.enter(&group)?;
    sethostname(&name).context("sethostname")?;
    let socket = state.machines().join(format!("{name}.sock"));
    let listener = UnixListener::bind(&socket).with_context(|| format!("bind({})", socket.display()))?;
    mounts(&state, &name, &keep, &hierarchies)?;
    let daemons = Daemons::default();
    let reaper = daemons.clone();
    std::thread::spawn(move || reaper.reap());
    let path = record.path(&state);
    std::thread::spawn(move || end_without(&path));
    // From here on the listener answers: `up` knows by the first answer that the machine is there.
    for stream in listener.incoming() {
        let served = control::answer(stream.context("accept")?, |request| match request {
            Request::Start(daemon) => daemons.start(&daemon).map(|()| serde_json::Value::Null),
            Request::List => serde_json::to_value(daemons.list()).context("a list"),
        });
        if let Err(error) = served {
            eprintln!("{name}: {error:#}");
        }
    }
    bail!("the listener of {name} ended")
}

/// Daemons by process id.
#[derive(Clone, Default)]
struct Daemons(Arc<Mutex<BTreeMap<i32, Running>>>);

impl Daemons {
    fn start(&self, daemon: &Daemon) -> Result<()> {
        let Daemon { name, program, arguments, environment, log } = daemon;
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("cannot open {}", log.display()))?;
        let errors = output.try_clone().context("dup")?;
        let mut command = Command::new(program);
        // Not the caller's: a proxy that is set there would be asked for the API server.
        command.args(arguments).env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
        command.current_dir("/").stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        // Held while it starts: a daemon that ends at once is then known when it is reaped, and the standard library
        // can wait by itself for one that cannot be executed.
        let mut daemons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let pid = i32::try_from(child.id()).context("a process id")?;
        daemons.insert(pid, Running { name: name.clone(), pid, ended: None, log: log.clone() });
        Ok(())
    }

    fn list(&self) -> Vec<Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Takes the exit status of every child, daemons and orphans alike.
    fn reap(&self) {
        loop {
            // Looks without taking, so that what is being started is left to whoever starts it.
            if waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).is_err() {
                // No child yet.
                std::thread::sleep(std::time::Duration::from_millis(100));
                continue;
            }
            let mut daemons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(status) = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) else { continue };
            if let Some(running) = status.pid().and_then(|pid| daemons.get_mut(&pid.as_raw())) {
                running.ended = Some(match status {
                    WaitStatus::Exited(_, code) => format!("exit status {code}"),
                    WaitStatus::Signaled(_, signal, _) => format!("{signal}"),
                    other => format!("{other:?}"),
                });
            }
        }
    }
}

/// Ends the machine when its record is gone, as when somebody has emptied the cache: nothing else would.
fn end_without(record: &Path) {
    while record.exists() {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    std::process::exit(0);
}

/// Makes the machine's root and goes there.
fn mounts(state: &State, name: &str, keep: &[PathBuf], hierarchies: &Hierarchies) -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).context("mount --make-rprivate /")?;
    let base = state.machines().join(name);
    fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
    let memory = MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &base, Some("tmpfs"), memory, Some("mode=755")).context("mount -t tmpfs")?;
    let folder = |name: &str| {
        let path = base.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display())).map(|()| path)
    };
    let (upper, work, root) = (folder("upper")?, folder("work")?, folder("root")?);
    let layers = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
        .context("mount -t overlay")?;
    let inside = |path: &Path| {
        let path = root.join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display())).map(|()| path)
    };
    let fresh = |kind: &str, path: &str, data: Option<&str>| {
        let target = inside(Path::new(path))?;
        mount(Some(kind), &target, Some(kind), MsFlags::empty(), data)
            .with_context(|| format!("mount -t {kind} {path}"))
    };
    fresh("proc", "/proc", None)?;
    fresh("sysfs", "/sys", None)?;
    fresh("bpf", "/sys/fs/bpf", None)?;
    fresh("tmpfs", "/run", Some("mode=755"))?;
    hierarchies.mount(&root)?;
    let bind = |from: &Path, to: &Path, recursive: MsFlags| {
        mount(Some(from), to, none, MsFlags::MS_BIND | recursive, none)
            .with_context(|| format!("mount --bind {} {}", from.display(), to.display()))
    };
    bind(Path::new("/dev"), &inside(Path::new("/dev"))?, MsFlags::MS_REC)?;
    for own in OWN {
        bind(&folder(&format!("own/{own}"))?, &inside(Path::new(own))?, MsFlags::empty())?;
    }
    for path in keep {
        bind(path, &inside(path)?, MsFlags::empty())?;
    }
    for (tunable, value) in TUNABLES {
        let file = folder("tunables")?.join(tunable.replace('/', "."));
        fs::write(&file, value).with_context(|| format!("cannot write {}", file.display()))?;
        bind(&file, &root.join("proc/sys").join(tunable), MsFlags::empty())?;
    }
    chdir(&root).context("chdir")?;
    // Both at one place: pivot_root(2). The old root then lies over the new one, and is detached.
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("umount the host's root")?;
    chdir("/").context("chdir")?;
    // Volumes that a container mounts must reach the kubelet, and the other way round.
    mount(none, "/", none, MsFlags::MS_SHARED | MsFlags::MS_REC, none).context("mount --make-rshared /")
}

/// Starts a machine: returns when it answers.
///
/// # Errors
/// It ends before it answers; what it printed is part of the message.
pub(super) fn start(state: &State, name: &str, keep: &[PathBuf]) -> Result<Machine> {
    let log = state.logs().join(format!("{name}.log"));
    let socket = state.machines().join(format!("{name}.sock"));
    let mut command = Command::new(std::env::current_exe().context("the path of this program")?);
    command.args(["cluster", "machine", name, "--state"]).arg(&state.folder);
    for path in keep {
        command.arg("--keep").arg(path);
    }
    let output = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let errors = output.try_clone().context("dup")?;
    command.current_dir("/").stdin(Stdio::null()).stdout(output).stderr(errors);
    // SAFETY: between fork and exec only system calls are made, on constants.
    unsafe { command.pre_exec(isolate) };
    std::thread::scope(|scope| {
        // A thread of its own: all later children of a thread that has unshared its process namespace would be in it.
        // It lives until the machine has recorded itself, since until then the machine ends with it.
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWPID).context("unshare(CLONE_NEWPID)")?;
            let mut child = command.spawn().context("cannot start a machine")?;
            loop {
                if control::ask::<Vec<Running>>(&socket, &Request::List).is_ok() {
                    return state.record(name);
                }
                if let Some(status) = child.try_wait().context("waitpid")? {
                    let printed = fs::read_to_string(&log).unwrap_or_default();
                    bail!("the machine {name} ended: {status}\n{}", printed.trim_end());
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        thread.join().unwrap_or_else(|_panic| bail!("the thread that starts {name} panicked"))
    })
}

/// Makes a command end with the thread that starts it, which waits for it: an `up` that is killed leaves no client.
pub(super) fn end_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only prctl is called, with constants.
    unsafe { command.pre_exec(die_with_parent) };
}

fn die_with_parent() -> std::io::Result<()> {
    // SAFETY: prctl with PR_SET_PDEATHSIG takes a signal's number.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn isolate() -> std::io::Result<()> {
    die_with_parent()?;
    // Ctrl-C in the terminal is for `up` alone.
    nix::unistd::setsid()?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)?;
    Ok(())
}
