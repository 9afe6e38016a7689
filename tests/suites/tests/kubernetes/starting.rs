//! A pod that starts: from the moment its veth appears, what it sends to a denied destination is dropped, and what it
//! sends to an allowed one waits until the agent knows the pod. The CNI plugin of a later release closes that wait; here
//! it is measured.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netpol_agent::dataplane::sys::{self, TcxHook};
use netpol_testbed::place::Place;
use netpol_testbed::traffic::Flow;
use serde_json::{Value, json};

use crate::cluster::{Machine, PATIENCE, wait};
use crate::site::{AGNHOST, COUNTING, Pod, Wanted, pod, shared};

/// Where the first packets of init containers go: nothing answers there.
const FIRST: u16 = 7777;

/// How often things are looked at that last milliseconds.
const LOOK: Duration = Duration::from_micros(500);

fn to(name: &str) -> Value {
    json!({
        "podSelector": { "matchLabels": { "role": "starter" } }, "policyTypes": ["Ingress", "Egress"],
        "egress": [{ "to": [{ "podSelector": { "matchLabels": { "app": name } } }] }],
    })
}

/// When a new veth of a node appeared, and when the agent's programs were on it.
struct Attached {
    appeared: Instant,
    attached: Instant,
}

/// Watches a node until a link appears that was not there, and both hooks of it have a program.
fn watch_links(place: &Place, ready: &AtomicBool) -> Result<Attached> {
    let index = |link: &Path| -> Result<u32> {
        Ok(std::fs::read_to_string(link.join("ifindex")).context("ifindex")?.trim().parse()?)
    };
    place.run(|| {
        let list = || -> Result<BTreeSet<PathBuf>> {
            Ok(std::fs::read_dir("/sys/class/net").context("links")?.flatten().map(|entry| entry.path()).collect())
        };
        let before = list()?;
        ready.store(true, Ordering::Relaxed);
        let begin = Instant::now();
        let link = loop {
            if let Some(link) = list()?.difference(&before).next() {
                break link.clone();
            }
            ensure!(begin.elapsed() < PATIENCE, "no link appeared");
            thread::sleep(LOOK);
        };
        let appeared = Instant::now();
        // Made under another name, and renamed by the plugin.
        let index = index(&link)?;
        loop {
            let programs = |hook| sys::tcx_query(index, hook).map(|programs| programs.len()).unwrap_or_default();
            if programs(TcxHook::Ingress) > 0 && programs(TcxHook::Egress) > 0 {
                return Ok(Attached { appeared, attached: Instant::now() });
            }
            ensure!(begin.elapsed() < PATIENCE, "no program was attached");
            thread::sleep(LOOK);
        }
    })
}

/// Traffic of a pod from the moment that it can send at all, which is before its first container does.
struct Early {
    /// When its network namespace was there, and when it could send.
    made: Instant,
    begun: Instant,
    /// By family: to the allowed pod, and to the denied one.
    flows: Vec<(Flow, Flow)>,
}

fn watch_sandboxes(node: &Machine, ready: &AtomicBool, allowed: &[IpAddr], denied: &[IpAddr]) -> Result<Early> {
    let folder = Path::new("/run/netns");
    let begin = Instant::now();
    let in_time = || begin.elapsed() < PATIENCE;
    // The runtime makes the file first, and mounts the namespace on it then.
    let is_mounted = |path: &Path| File::open(path).is_ok_and(|file| is_network(&file));
    let path = node.place().run(|| {
        let list = || -> Result<BTreeSet<PathBuf>> {
            match std::fs::read_dir(folder) {
                Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
                // No pod has been here yet.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
                Err(error) => Err(error).context("/run/netns"),
            }
        };
        let before = list()?;
        ready.store(true, Ordering::Relaxed);
        loop {
            if let Some(path) = list()?.difference(&before).find(|path| is_mounted(path)) {
                return Ok(path.clone());
            }
            ensure!(in_time(), "no sandbox appeared");
            thread::sleep(LOOK);
        }
    })?;
    let network = node.namespace(&path)?;
    let made = Instant::now();
    let mut flows = Vec::new();
    for (allowed, denied) in allowed.iter().zip(denied) {
        let destinations = [SocketAddr::new(*allowed, COUNTING), SocketAddr::new(*denied, COUNTING)];
        let source = network.place().run(|| {
            loop {
                match source(destinations[0]) {
                    Some(source) => return Ok(source),
                    None => ensure!(in_time(), "the pod gets no address"),
                }
                thread::sleep(LOOK);
            }
        })?;
        let [to_allowed, to_denied] = destinations.map(|destination| Flow::start(&network, source, destination));
        flows.push((to_allowed?, to_denied?));
    }
    Ok(Early { made, begun: Instant::now(), flows })
}

/// Whether a file is a network namespace, and not what one is going to be mounted on.
fn is_network(file: &File) -> bool {
    // NSFS_MAGIC (include/uapi/linux/magic.h).
    const NSFS: i64 = 0x6e73_6673;
    // SAFETY: zeroes are a value of this structure.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and a structure that lives on.
    (unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut about) }) == 0 && about.f_type == NSFS
}

/// The address that a packet to a destination would bear, once the calling thread's namespace has one that it may.
fn source(destination: SocketAddr) -> Option<IpAddr> {
    let any = if destination.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(destination).ok()?;
    let source = socket.local_addr().ok()?.ip();
    // Before there is another, the link's own.
    let link_local = matches!(source, IpAddr::V6(source) if source.is_unicast_link_local());
    (!link_local && !source.is_unspecified()).then_some(source)
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1000.0
}

#[test]
fn a_pod_that_sends_from_the_moment_it_has_an_address_reaches_nobody_it_may_not() {
    let event = "a pod starts";
    let mut site = shared();
    let space = site.namespace("starting");
    let [allowed, denied] = space.pods([pod("allowed", "node2"), pod("denied", "node2")]);
    let _when = space.policy("starters", &to("allowed"));
    let node = space.site.cluster.machine("node1");
    let place = node.place();
    for attempt in 1..=3 {
        let name = format!("starter{attempt}");
        let ready = [AtomicBool::new(false), AtomicBool::new(false)];
        let (attached, early) = thread::scope(|scope| {
            let links = scope.spawn(|| watch_links(&place, &ready[0]));
            let sandboxes = scope.spawn(|| watch_sandboxes(&node, &ready[1], &allowed.addresses, &denied.addresses));
            wait("both watches", || {
                ensure!(ready.iter().all(|one| one.load(Ordering::Relaxed)), "not yet");
                Ok(())
            });
            let patch = json!({ "metadata": { "labels": { "role": "starter" } } });
            space.create(&[Wanted { name: &name, node: "node1", patch }]);
            (links.join().unwrap().unwrap(), sandboxes.join().unwrap().unwrap())
        });
        let _running = space.running(&name);
        thread::sleep(Duration::from_secs(1));
        eprintln!(
            "{event}: programs {:.1} ms after the veth; it can send {:.1} ms after its namespace was made",
            milliseconds(attached.appeared, attached.attached),
            milliseconds(early.made, early.begun)
        );
        for (family, (to_allowed, to_denied)) in early.flows.iter().enumerate() {
            to_allowed.end();
            to_denied.end();
            let now = Instant::now();
            let leaked = to_denied.tally(&[&denied.echoes[family]], early.made, now);
            let (sent, answered) = to_allowed.first();
            let (sent, answered) = (sent.unwrap(), answered.unwrap());
            let waited = to_allowed.tally(&[&allowed.echoes[family]], early.made, answered);
            let after = to_allowed.tally(&[&allowed.echoes[family]], answered, now);
            eprintln!(
                "{event}, family {family}: to a denied pod {} sent, {} leaked; an allowed one is reached after {:.1} ms, {} \
                 packets; then {} sent, {} lost",
                leaked.sent,
                leaked.arrived,
                milliseconds(sent, answered),
                waited.sent,
                after.sent,
                after.lost()
            );
            assert!(leaked.sent > 50 && leaked.arrived == 0, "{leaked:?}");
            assert!(after.sent > 50 && after.lost() == 0, "{after:?}");
        }
    }
}

/// What comes to a pod's port, whoever sends it.
struct Arrivals {
    datagrams: UdpSocket,
    connections: TcpListener,
}

impl Arrivals {
    fn at(pod: &Pod) -> Self {
        let address = SocketAddr::new(pod.addresses[0], FIRST);
        let make = || Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?));
        let (datagrams, connections) = pod.network.place().run(make).unwrap();
        datagrams.set_nonblocking(true).unwrap();
        connections.set_nonblocking(true).unwrap();
        Self { datagrams, connections }
    }

    /// How many there have been since it was last asked.
    fn count(&self) -> (usize, usize) {
        let datagrams = std::iter::from_fn(|| self.datagrams.recv_from(&mut [0; 64]).ok()).count();
        (datagrams, std::iter::from_fn(|| self.connections.accept().ok()).count())
    }
}

/// A pod whose init container sends to a destination as the first thing it does.
fn with_init_container(protocol: &str, destination: &Pod) -> Value {
    let at = SocketAddr::new(destination.addresses[0], FIRST).to_string();
    let protocol = format!("--protocol={protocol}");
    json!({
        "metadata": { "labels": { "role": "starter" } },
        "spec": { "restartPolicy": "Never", "initContainers": [{
            "name": "first", "image": AGNHOST, "args": ["connect", protocol, "--timeout=5s", at],
        }] },
    })
}

#[test]
fn nothing_of_an_init_container_comes_through_to_a_denied_destination() {
    let mut site = shared();
    let space = site.namespace("init");
    let [allowed, denied] = space.pods([pod("allowed", "node2"), pod("denied", "node2")]);
    let _when = space.policy("starters", &to("allowed"));
    let arrivals = [&allowed, &denied].map(Arrivals::at);
    let starter =
        |name, protocol, destination| Wanted { name, node: "node1", patch: with_init_container(protocol, destination) };
    space.create(&[
        starter("may-tcp", "tcp", &allowed),
        starter("may-udp", "udp", &allowed),
        starter("maynot-tcp", "tcp", &denied),
        starter("maynot-udp", "udp", &denied),
    ]);
    let exit_code = |name: &str| {
        wait(&format!("the init container of {name}"), || {
            let object = space.get("pod", name)?;
            let code = &object["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"];
            code.as_i64().with_context(|| object["status"].to_string())
        })
    };
    let codes = ["may-tcp", "may-udp", "maynot-tcp", "maynot-udp"].map(exit_code);
    let [to_allowed, to_denied] = arrivals.each_ref().map(Arrivals::count);
    eprintln!(
        "init containers: {} datagrams and {} connections came to an allowed pod, {} and {} to a denied one; exit codes \
         {codes:?}",
        to_allowed.0, to_allowed.1, to_denied.0, to_denied.1
    );
    assert_eq!((to_allowed.1, codes[0]), (1, 0), "TCP repeats what was dropped while the pod was not known");
    // A container starts tens of milliseconds after its veth has appeared.
    assert!(to_allowed.0 > 0);
    assert_eq!(to_denied, (0, 0));
    assert!(codes[2] != 0 && codes[3] != 0);
}
