//! The one writer (decision D16).
//!
//! [`Engine`] owns the compiler, the ports and the datapath, on a thread of its own. It takes [`Command`]s (objects from
//! the source, links from netlink) in bursts, hands them to the compiler, and carries out the plan. An interface becomes
//! a pod's only after the plan that holds the pod's policy is in the maps. Nothing is planned before every kind has been
//! listed once: until then what an earlier agent left stays in force.

mod attachment;
mod endpoints;
pub mod hooks;
pub mod numbers;
pub mod ports;
mod premises;
mod windows;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use netpol_common::abi::{AgentState, EndpointWord, SET_DENY_ALL, names, progress};
use netpol_policy::compile::{Change, Compiler, MapOp};
use netpol_policy::decode::{Kind, Object};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::clock::boot_seconds;
use crate::config::Config;
use crate::dataplane::Dataplane;
use crate::dataplane::attach;
use crate::dataplane::counters::{DropCounters, EndpointNamespaces};
use crate::guard::{Guard, GuardCounters};
use crate::intake::Intake;
use crate::interfaces::bridge_netfilter::BridgeNetfilter;
use crate::interfaces::identity::LocalPods;
use crate::interfaces::netlink::{Link, LinkEvent, Netlink, NetlinkError};
use crate::metrics::{Stage, State};
use crate::source::Envelope;
use hooks::{DeviceChange, Devices};
use numbers::Numbers;
use ports::{LinkChange, Ports};
use premises::{capacities, refuse_conflicts, settings};
use windows::Windows;

/// What the engine reacts to.
#[derive(Debug)]
pub enum Command {
    /// An object came, changed or went.
    Source(Box<Envelope>),
    /// A link or an address came, changed or went.
    Link(LinkEvent),
    /// End, leaving everything in force.
    Stop,
    /// End with an error: links can no longer be followed.
    Blind(NetlinkError),
}

/// Commands taken before a plan is made: enough to fold a burst, few enough to keep the latency of the first.
const BURST: usize = 512;
/// Writes of a plan after which new interfaces are looked at: a pod that starts must not wait for bulk work.
const WRITES_PER_TURN: usize = 256;
/// How often attachments are compared with what should be (decision D14).
const VERIFY_EVERY: Duration = Duration::from_secs(10);
/// How soon a failed attachment is tried again: a rename in between is over at once.
const ATTACH_AGAIN: Duration = Duration::from_millis(100);
/// How long every port has been attached before the node is armed: what passed a port before that is under way no more.
const ARM_AFTER: Duration = Duration::from_secs(1);
/// The longest sleep: the heartbeat that liveness is judged by.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The reconcile loop and all it owns.
pub struct Engine {
    config: Arc<Config>,
    state: Arc<State>,
    dataplane: Dataplane,
    netlink: Netlink,
    compiler: Compiler,
    intake: Intake,
    ports: Ports,
    devices: Devices,
    guard: Guard,
    /// Whether what comes from a pod without a stamp is dropped (decision D6).
    armed: bool,
    /// When a port was attached last.
    attached_at: Instant,
    bridge_netfilter: Option<BridgeNetfilter>,
    /// When to try again to write the guard's table where it failed.
    guard_at: Option<Instant>,
    pods: LocalPods,
    numbers: Numbers,
    windows: Windows,
    /// Interfaces whose flows are to be purged.
    purge: BTreeSet<u32>,
    /// When the oldest event of the current burst was seen.
    oldest: Option<Instant>,
    programmed: bool,
    /// Whether anything happened since metrics and `/v1/applied` were told: what they tell is a walk over everything.
    changed: bool,
    started: Instant,
    /// What the reader of the kernel's counters knows of endpoints.
    namespaces: EndpointNamespaces,
    counters: Arc<DropCounters>,
    next_verify: Instant,
    next_plan: Option<u64>,
    identify_at: Option<Instant>,
    /// When to try again to attach where it failed.
    attach_at: Option<Instant>,
    /// Commands that came while a plan was being written, in their order.
    backlog: VecDeque<Command>,
}

impl Engine {
    /// Attaches to the ports that are there, adopts what an earlier agent left, and gets ready to take commands.
    ///
    /// `netlink` notifications must already be followed, so that no link is missed between the listing and them.
    pub fn start(config: Arc<Config>, state: Arc<State>) -> anyhow::Result<Self> {
        let mut netlink = Netlink::open()?;
        refuse_conflicts(&config, &mut netlink)?;
        let mut dataplane = Dataplane::open(&config)?;
        dataplane.check_owner(&config)?;
        let armed = dataplane.maps.state()?.armed != 0;
        let settings = settings(&config, &dataplane, armed)?;
        dataplane.maps.set_settings(settings)?;
        let mut numbers = Numbers::new(dataplane.map_size(names::ENDPOINT_WORDS)?, dataplane.maps.endpoint_digests()?);
        let first_run = dataplane.maps.state()?.progress == progress::NOTHING;
        let mut ports = Ports::new(config.pod_bridge.as_str());
        let mut devices = Devices::default();
        observe_all(&mut ports, &mut devices, &mut netlink)?;
        let mut windows = Windows::default();
        endpoints::take_over_rows(&mut dataplane, &mut ports, &devices, &mut numbers, &mut windows)?;
        if first_run {
            endpoints::adopt_running(&config, &mut dataplane, &mut netlink, &mut ports, &mut numbers, &mut windows)?;
        }
        if first_run {
            let state = AgentState { progress: progress::ADOPTED, ..dataplane.maps.state()? };
            dataplane.maps.set_state(state)?;
        }
        let now = Instant::now();
        let namespaces = EndpointNamespaces::default();
        let counters = Arc::new(dataplane.drop_counters(Arc::clone(&namespaces))?);
        state.set_drop_counters(Arc::clone(&counters) as _);
        state.set_guard_counters(GuardCounters::default());
        let compiler = Compiler::new(config.node.as_str(), capacities(&dataplane)?, dataplane.maps.snapshot()?);
        let mut engine = Self {
            compiler,
            intake: Intake::default(),
            pods: LocalPods::default(),
            purge: BTreeSet::new(),
            oldest: None,
            programmed: false,
            changed: true,
            started: now,
            namespaces,
            counters,
            next_verify: now + VERIFY_EVERY,
            next_plan: None,
            identify_at: None,
            attach_at: None,
            guard: Guard::new(config.mark_mask.shift()),
            guard_at: None,
            bridge_netfilter: None,
            armed,
            attached_at: now,
            backlog: VecDeque::new(),
            config,
            state,
            dataplane,
            netlink,
            ports,
            devices,
            numbers,
            windows,
        };
        engine.hook_all();
        engine.attach_all();
        engine.keep_guard();
        engine.look_at_bridge_netfilter();
        engine.read_node_addresses();
        engine.compiler.apply(Change::ServiceCidrs(engine.config.service_cidrs.clone()));
        info!(
            ports = engine.ports.iter().count(),
            first_run,
            mechanism = ?engine.dataplane.mechanism(),
            "attached to the ports of the pod bridge"
        );
        Ok(engine)
    }

    /// Takes commands until told to stop. An error ends the agent; what is in force stays in force.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> anyhow::Result<()> {
        loop {
            self.state.beat();
            let first = match self.backlog.pop_front() {
                Some(command) => Some(command),
                None => match tokio::time::timeout(self.next_wake(), commands.recv()).await {
                    Ok(Some(command)) => Some(command),
                    Ok(None) => return Ok(()),
                    Err(_elapsed) => None,
                },
            };
            let mut next = first;
            for _ in 0..BURST {
                match next {
                    Some(Command::Stop) => return Ok(()),
                    Some(Command::Blind(error)) => return Err(error).context("following links"),
                    Some(Command::Source(envelope)) => self.take_event(*envelope),
                    Some(Command::Link(event)) => self.take_link(event),
                    None => break,
                }
                next = self.backlog.pop_front().or_else(|| commands.try_recv().ok());
            }
            self.backlog.extend(next);
            self.look_up_from_work(&mut commands);
            self.tick(&mut commands)?;
        }
    }

    /// Between two writes of a long plan: new interfaces are attached at once, the rest waits its turn.
    fn look_up_from_work(&mut self, commands: &mut mpsc::Receiver<Command>) {
        self.state.beat();
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Link(event) => self.take_link(event),
                later @ (Command::Source(_) | Command::Stop | Command::Blind(_)) => self.backlog.push_back(later),
            }
        }
    }

    fn next_wake(&self) -> Duration {
        let now = Instant::now();
        let mut wait = HEARTBEAT.min(self.next_verify.saturating_duration_since(now));
        // Nobody can be identified before the pods are listed.
        if self.intake.all_listed()
            && let Some(at) = self.identify_at
        {
            wait = wait.min(at.saturating_duration_since(now));
        }
        if let Some(at) = self.attach_at {
            wait = wait.min(at.saturating_duration_since(now));
        }
        if !self.armed {
            wait = wait.min((self.attached_at + ARM_AFTER).saturating_duration_since(now).max(ATTACH_AGAIN));
        }
        if let Some(at_ms) = self.next_plan {
            wait = wait.min(Duration::from_millis(at_ms.saturating_sub(self.now_ms())));
        }
        wait
    }

    /// Milliseconds of the compiler's clock.
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn take_event(&mut self, Envelope { seen, event }: Envelope) {
        self.changed = true;
        for mut change in self.intake.take(event, &self.state) {
            // Addresses of a family that pods do not use here would only be rows that no packet asks for.
            match &mut change {
                Change::Upsert(Object::Pod(pod)) => pod.addresses.retain(|a| self.config.families.include(a)),
                Change::Upsert(Object::Node(node)) => node.addresses.retain(|a| self.config.families.include(a)),
                _ => {}
            }
            self.oldest = Some(self.oldest.map_or(seen, |oldest| oldest.min(seen)));
            match &change {
                Change::Upsert(Object::Pod(pod)) => {
                    self.pods.observe(pod, self.config.node.as_str(), seen);
                    if pod.node == self.config.node.as_str() {
                        // Its status may name the pod behind a pending interface.
                        self.identify_at = Some(Instant::now());
                    }
                }
                Change::Remove(Kind::Pod, name) => self.pods.forget(name),
                _ => {}
            }
            self.compiler.apply(change);
        }
    }

    fn take_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Changed(link) => self.observe(link),
            LinkEvent::Gone(ifindex) => self.lose(ifindex),
            LinkEvent::AddressesChanged => self.read_node_addresses(),
            LinkEvent::Overflow => {
                self.state.sync_failed(Stage::Interfaces);
                self.list_again();
                self.read_node_addresses();
            }
        }
    }

    /// Takes note of a link as it is now.
    fn observe(&mut self, link: Link) {
        self.changed = true;
        let change = self.ports.observe(link.clone(), Some(Instant::now()));
        // A new pod's programs first: the hook that its veth had before is no substitute for them.
        self.follow(change);
        let change = self.devices.observe(&link, &self.ports);
        self.follow_device(&change);
    }

    /// A link is gone.
    fn lose(&mut self, ifindex: u32) {
        self.changed = true;
        let change = self.ports.gone(ifindex);
        self.follow(change);
        let change = self.devices.gone(ifindex);
        self.follow_device(&change);
    }

    fn follow(&mut self, change: LinkChange) {
        match change {
            LinkChange::New(ifindex) => {
                self.attach(ifindex);
                self.identify_at = Some(Instant::now());
            }
            LinkChange::Gone { ifindex, endpoint } => self.drop_port(ifindex, endpoint),
            LinkChange::None => {}
        }
    }

    /// Compares what is there with what is known: after lost notifications, and regularly.
    fn list_again(&mut self) {
        let links = match self.netlink.links() {
            Ok(links) => links,
            Err(error) => {
                self.state.sync_failed(Stage::Interfaces);
                warn!(%error, "could not list links, trying again");
                return;
            }
        };
        let present: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
        let ports = self.ports.iter().map(|(ifindex, _)| ifindex);
        let devices = self.devices.iter().map(|(ifindex, _)| ifindex);
        let known: Vec<u32> = ports.chain(devices).chain(self.devices.bridges().iter().copied()).collect();
        for ifindex in known.into_iter().filter(|ifindex| !present.contains(ifindex)) {
            // A listing can miss a device while others go; letting go of a pod that lives would open it.
            if attach::interface_name(ifindex).is_none() {
                self.lose(ifindex);
            }
        }
        for link in in_order(links, self.config.pod_bridge.as_str()) {
            self.observe(link);
        }
    }

    fn read_node_addresses(&mut self) {
        match self.netlink.node_addresses() {
            Ok(addresses) => self.compiler.apply(Change::NodeAddresses(addresses)),
            Err(error) => {
                self.state.sync_failed(Stage::Interfaces);
                warn!(%error, "could not read the node's addresses, trying again");
                self.next_verify = Instant::now();
            }
        }
    }

    /// Programs everything that has changed.
    fn tick(&mut self, commands: &mut mpsc::Receiver<Command>) -> anyhow::Result<()> {
        let now = Instant::now();
        if self.intake.all_listed() {
            self.admit_strangers();
            if self.identify_at.is_some_and(|at| now >= at) || !self.programmed {
                self.identify();
            }
            self.program(commands)?;
        }
        if self.attach_at.is_some_and(|at| now >= at) {
            self.attach_at = None;
            for ifindex in self.ports.unattached() {
                self.attach(ifindex);
            }
            for ifindex in self.unhooked() {
                self.hook(ifindex);
            }
        }
        self.arm()?;
        self.keep_guard();
        if now >= self.next_verify {
            self.verify();
            self.sweep_flows();
            self.next_verify = now + VERIFY_EVERY;
        }
        self.purge()?;
        Ok(())
    }

    fn program(&mut self, commands: &mut mpsc::Receiver<Command>) -> anyhow::Result<()> {
        let plan = self.compiler.plan(self.now_ms());
        self.changed |= !plan.ops.is_empty();
        self.next_plan = plan.wake_at_ms;
        for refusal in &plan.refused {
            warn!(%refusal, "does not fit");
            self.state.write_refused(refusal.map);
        }
        for (position, op) in plan.ops.iter().enumerate() {
            if position > 0 && position % WRITES_PER_TURN == 0 {
                self.look_up_from_work(commands);
            }
            if let Err(error) = self.write(op) {
                self.state.map_update_failed(error.map(), error.errno());
                self.state.sync_failed(Stage::Maps);
                self.fail_closed(&plan.ops[position..]);
                return Err(error).context("writing a map; the endpoints that the plan concerns now drop everything");
            }
        }
        self.put_in_force()?;
        if !self.programmed {
            let state = AgentState { progress: progress::PROGRAMMED, ..self.dataplane.maps.state()? };
            self.dataplane.maps.set_state(state)?;
            self.programmed = true;
            info!(operations = plan.ops.len(), after = ?self.started.elapsed(), "first programming done");
        }
        if let Some(oldest) = self.oldest.take() {
            self.state.observe_programming(oldest.elapsed());
        }
        if std::mem::take(&mut self.changed) {
            self.publish();
        }
        self.state.synced();
        Ok(())
    }

    fn write(&mut self, op: &MapOp) -> Result<(), crate::dataplane::maps::MapsError> {
        match *op {
            // The compiler knows nothing of the reverse window, which is a matter of adoption.
            MapOp::SetOptions { endpoint, mut options } => {
                options.reverse_until = self.windows.with_options(endpoint, options.flags, boot_seconds());
                self.dataplane.maps.apply(&MapOp::SetOptions { endpoint, options })
            }
            MapOp::SetWord { endpoint, word } => {
                self.windows.with_set(endpoint, word.set());
                self.dataplane.maps.apply(op)
            }
            ref other => self.dataplane.maps.apply(other),
        }
    }

    /// After a write that failed half way, whoever waited for the rest of the plan gets the deny-all set: storing a
    /// word cannot fail. The next agent starts from what the maps say.
    fn fail_closed(&mut self, rest: &[MapOp]) {
        for op in rest {
            let written = match *op {
                // Before the words that bear it: the next agent must not give it out again.
                MapOp::SetEpoch(_) => self.dataplane.maps.apply(op),
                MapOp::SetWord { endpoint, word } if word != EndpointWord(0) => {
                    let word = EndpointWord::new(SET_DENY_ALL, word.epoch());
                    self.dataplane.maps.apply(&MapOp::SetWord { endpoint, word })
                }
                _ => continue,
            };
            if let Err(error) = written {
                error!(%error, "could not deny");
            }
        }
    }

    /// Writes what is now true where metrics and `/v1/applied` read it.
    fn publish(&mut self) {
        for (kind, version) in self.intake.versions() {
            self.state.applied(*kind, version);
        }
        self.state.set_policies(self.intake.in_force(Kind::Policy));
        self.publish_endpoints();
        self.state.programmed();
    }
}

/// Links with the pod bridge first, so that its ports are known as such.
fn in_order(mut links: Vec<Link>, bridge: &str) -> Vec<Link> {
    links.sort_by_key(|link| (link.name != bridge, link.index));
    links
}

/// What is there before the agent: all of it is attached to later, at once.
fn observe_all(ports: &mut Ports, devices: &mut Devices, netlink: &mut Netlink) -> anyhow::Result<()> {
    for link in in_order(netlink.links()?, ports.bridge_name()) {
        let _change = ports.observe(link.clone(), None);
        let _change: DeviceChange = devices.observe(&link, ports);
    }
    Ok(())
}
