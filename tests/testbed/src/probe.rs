//! Connections tried by real packets, thousands at a time, from any namespace, on one thread.
//!
//! *Allow* means that a payload drawn at random came back; *deny* means silence until the time-out; whatever else
//! happens is an *error*. What may be lost under load (UDP, and INIT of raw SCTP) is sent again within the time-out; the
//! kernel sends a SYN again after one second.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{Error, ErrorKind};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_policy::model::Protocol;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Socket, Type};

use crate::interrupt;
use crate::namespace::Namespace;
use crate::place::Place;
use crate::sctp::{self, Addressed, Message};
use crate::servers::{initialised, kernel_has_sctp, raw_socket, without_ip_header};

/// How long silence lasts until it is a denial: the kernel's first retransmission of a SYN (1 s) and its answer fit in.
pub const TIMEOUT: Duration = Duration::from_millis(1300);

/// A server that has accepted, but is slow to answer, gets this long more: that is no denial.
const GRACE: Duration = Duration::from_secs(2);

/// When an unanswered message is sent again, after the first time.
const AGAIN: [Duration; 3] = [Duration::from_millis(250), Duration::from_millis(600), Duration::from_millis(1000)];

/// Probes in flight, if descriptors allow; and how many are started before answers are looked at again.
const IN_FLIGHT: usize = 4096;
const BURST: usize = 64;

/// Descriptors that a probe takes (its socket and the server's), and those that others take.
const DESCRIPTORS: usize = 2;
const OTHER_DESCRIPTORS: usize = 4096;

/// One connection to try.
#[derive(Clone, Debug)]
pub struct Probe<'a> {
    /// Where from.
    pub from: &'a Namespace,
    /// Source address, one of that namespace's.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The payload came back.
    Allow,
    /// Nothing came back.
    Deny,
    /// Something else did.
    Error(String),
}

/// What became of a probe, and the port that it came from.
#[derive(Clone, Debug)]
pub struct Traced {
    /// Its source port; 0 if it could not begin.
    pub source_port: u16,
    /// What became of it.
    pub outcome: Outcome,
}

/// Tries all of them, and returns their outcomes in the same order.
///
/// # Errors
/// A namespace cannot be entered, the kernel has no descriptors left, or the user has interrupted.
pub fn run(probes: &[Probe<'_>]) -> Result<Vec<Outcome>> {
    Ok(trace(probes)?.into_iter().map(|traced| traced.outcome).collect())
}

/// As [`run`], and tells the source port of each, by which connection tracking and proxies know it.
///
/// # Errors
/// As [`run`].
pub fn trace(probes: &[Probe<'_>]) -> Result<Vec<Traced>> {
    let in_flight = descriptors()?.saturating_sub(OTHER_DESCRIPTORS).checked_div(DESCRIPTORS).unwrap_or(1);
    let in_flight = in_flight.clamp(1, IN_FLIGHT);
    // A thread of its own: it changes namespaces.
    Place::default().run(|| Run::new(probes)?.all(in_flight))
}

/// Raises the limit of open files as far as needed, and returns it.
pub(crate) fn descriptors() -> Result<usize> {
    let wanted = (IN_FLIGHT * DESCRIPTORS + OTHER_DESCRIPTORS) as u64;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    if soft < wanted {
        let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted));
        // Without the capability to raise the hard limit, up to that.
        raised.or_else(|_denied| setrlimit(Resource::RLIMIT_NOFILE, hard, hard)).context("setrlimit")?;
    }
    let (soft, _hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    Ok(usize::try_from(soft).unwrap_or(usize::MAX))
}

struct Run<'a, 'b> {
    probes: &'a [Probe<'b>],
    states: Vec<State>,
    source_ports: Vec<u16>,
    epoll: Epoll,
    /// What is due when, by probe.
    due: BTreeSet<(Instant, usize)>,
    flying: usize,
    entered: Option<PathBuf>,
    salt: u64,
}

enum State {
    Waiting,
    Flying(Flight),
    Over(Outcome),
}

struct Flight {
    socket: Socket,
    talk: Talk,
    started: Instant,
    due: Instant,
    sent: usize,
}

enum Talk {
    /// TCP, or SCTP where the kernel has it; how much of the payload has come back, once it was sent.
    Stream { returned: Option<usize> },
    /// UDP.
    Datagram,
    /// SCTP by hand.
    Init(Addressed),
}

impl<'a, 'b> Run<'a, 'b> {
    fn new(probes: &'a [Probe<'b>]) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
        let states = probes.iter().map(|_| State::Waiting).collect();
        let salt = RandomState::new().build_hasher().finish();
        let source_ports = vec![0; probes.len()];
        Ok(Self { probes, states, source_ports, epoll, due: BTreeSet::new(), flying: 0, entered: None, salt })
    }

    fn all(mut self, in_flight: usize) -> Result<Vec<Traced>> {
        let mut next = 0;
        while next < self.probes.len() || self.flying > 0 {
            if interrupt::requested() {
                bail!(interrupt::Interrupted);
            }
            let mut started = 0;
            while next < self.probes.len() && self.flying < in_flight && started < BURST {
                self.start(next)?;
                next += 1;
                started += 1;
            }
            self.wait(next < self.probes.len() && self.flying < in_flight)?;
            self.expire()?;
        }
        let outcome = |state| match state {
            State::Over(outcome) => outcome,
            State::Waiting | State::Flying(_) => Outcome::Error("was never tried".to_owned()),
        };
        let traced = |(state, source_port)| Traced { source_port, outcome: outcome(state) };
        Ok(self.states.into_iter().zip(self.source_ports).map(traced).collect())
    }

    fn start(&mut self, index: usize) -> Result<()> {
        let Some(probe) = self.probes.get(index) else { return Ok(()) };
        let path = probe.from.path();
        if self.entered.as_ref() != Some(&path) {
            probe.from.place().enter()?;
            self.entered = Some(path);
        }
        let state = match self.launch(probe, index) {
            Ok(mut flight) => {
                let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
                self.epoll.add(&flight.socket, EpollEvent::new(events, index as u64)).context("epoll_ctl")?;
                if let Some(slot) = self.source_ports.get_mut(index) {
                    *slot = flight.source_port().context("getsockname")?;
                }
                self.flying += 1;
                flight.due = flight.next_due();
                self.due.insert((flight.due, index));
                State::Flying(flight)
            }
            Err(error) if is_our_fault(&error) => return Err(error).context("cannot probe"),
            Err(error) => State::Over(Outcome::Error(error.to_string())),
        };
        if let Some(slot) = self.states.get_mut(index) {
            *slot = state;
        }
        Ok(())
    }

    fn launch(&self, probe: &Probe<'_>, index: usize) -> std::io::Result<Flight> {
        let Probe { from: _, source, destination, protocol, port } = *probe;
        let (source, destination) = (SocketAddr::new(source, 0), SocketAddr::new(destination, port));
        let domain = Domain::for_address(destination);
        let stream = |protocol| -> std::io::Result<(Socket, Talk)> {
            let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(protocol))?;
            // The port is chosen at connect, so that it need only differ from those to the same destination.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(&source.into())?;
            match socket.connect(&destination.into()) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
                Ok(()) | Err(_) => Ok((socket, Talk::Stream { returned: None })),
            }
        };
        let (socket, talk) = match protocol {
            Protocol::Tcp => stream(socket2::Protocol::TCP)?,
            Protocol::Sctp if kernel_has_sctp() => stream(socket2::Protocol::SCTP)?,
            Protocol::Udp => {
                let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(socket2::Protocol::UDP))?;
                socket.bind(&source.into())?;
                socket.connect(&destination.into())?;
                (socket, Talk::Datagram)
            }
            Protocol::Sctp => {
                let socket = raw_socket(source.ip()).map_err(Error::other)?;
                // Connected, so that the kernel tells of ICMP errors; a raw IPv6 socket's port is a protocol number.
                socket.connect(&SocketAddr::new(destination.ip(), 0).into())?;
                // Outside of the range from which kernels choose ports, and different for a long time.
                let own = 1024 + (self.salt.wrapping_add(index as u64) % 31_000) as u16;
                let [_, _, _, _, tag @ ..] = self.payload(index).map(|byte| byte | 1);
                let tag = tag.first_chunk().map_or(1, |tag| u32::from_be_bytes(*tag));
                (socket, Talk::Init(Addressed { source: own, destination: port, tag }))
            }
        };
        let started = Instant::now();
        let mut flight = Flight { socket, talk, started, due: started, sent: 0 };
        flight.send(&self.payload(index))?;
        Ok(flight)
    }

    /// Of a probe: nobody else's answer can be taken for its own.
    fn payload(&self, index: usize) -> [u8; 16] {
        let number = (u128::from(self.salt) << 64) | index as u128;
        // An odd factor maps numbers one to one, and spreads them over all bytes.
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes()
    }

    fn wait(&mut self, more: bool) -> Result<()> {
        let mut events = [EpollEvent::empty(); 512];
        let next = self.due.first().map(|(due, _)| due.saturating_duration_since(Instant::now()));
        let pause = match next {
            _ if more => 0,
            // A turn now and then to look for an interrupt.
            Some(next) => u16::try_from(next.as_millis().saturating_add(1)).unwrap_or(u16::MAX).min(100),
            None => 0,
        };
        let ready = match self.epoll.wait(&mut events, pause) {
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error).context("epoll_wait"),
        };
        for event in events.iter().take(ready) {
            let index = event.data() as usize;
            let payload = self.payload(index);
            if let Some(State::Flying(flight)) = self.states.get_mut(index)
                && let Some(outcome) = flight.advance(&payload)
            {
                self.finish(index, outcome);
            }
        }
        Ok(())
    }

    fn expire(&mut self) -> Result<()> {
        let now = Instant::now();
        while let Some((due, index)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            let payload = self.payload(index);
            let Some(State::Flying(flight)) = self.states.get_mut(index) else {
                self.due.remove(&(due, index));
                continue;
            };
            match flight.expire(now, &payload) {
                Some(outcome) => self.finish(index, outcome),
                None => {
                    self.due.remove(&(due, index));
                    flight.due = flight.next_due();
                    self.due.insert((flight.due, index));
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, index: usize, outcome: Outcome) {
        if let Some(slot) = self.states.get_mut(index)
            && let State::Flying(flight) = std::mem::replace(slot, State::Over(outcome))
        {
            self.due.remove(&(flight.due, index));
            self.flying -= 1;
        }
    }
}

impl Flight {
    fn source_port(&self) -> std::io::Result<u16> {
        match &self.talk {
            Talk::Stream { .. } | Talk::Datagram => {
                Ok(self.socket.local_addr()?.as_socket().map_or(0, |own| own.port()))
            }
            // A raw socket has none.
            Talk::Init(addressed) => Ok(addressed.source),
        }
    }

    /// Sends what starts the talk; a stream has been started by connecting.
    fn send(&mut self, payload: &[u8]) -> std::io::Result<()> {
        let sent = match &self.talk {
            Talk::Stream { .. } => Ok(0),
            Talk::Datagram => self.socket.send(payload),
            Talk::Init(addressed) => self.socket.send(&sctp::init(*addressed)),
        };
        self.sent += 1;
        match sent {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            sent => sent.map(drop),
        }
    }

    /// Goes on after something happened at the socket.
    fn advance(&mut self, payload: &[u8]) -> Option<Outcome> {
        let result = match &mut self.talk {
            Talk::Stream { returned } => stream(&self.socket, returned, payload),
            Talk::Datagram => datagram(&self.socket, payload),
            Talk::Init(addressed) => init_ack(&self.socket, addressed),
        };
        match result {
            Ok(outcome) => outcome,
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => Some(Outcome::Error(error.to_string())),
        }
    }

    fn next_due(&self) -> Instant {
        let again = match self.talk {
            Talk::Stream { returned: None } => None,
            Talk::Stream { returned: Some(_) } => return self.started + TIMEOUT + GRACE,
            Talk::Datagram | Talk::Init(_) => AGAIN.get(self.sent.wrapping_sub(1)),
        };
        self.started + again.copied().unwrap_or(TIMEOUT)
    }

    /// Something is due: another attempt, or the end.
    fn expire(&mut self, now: Instant, payload: &[u8]) -> Option<Outcome> {
        // The answer may have come while this thread was busy with others.
        if let Some(outcome) = self.advance(payload) {
            return Some(outcome);
        }
        match self.talk {
            Talk::Stream { returned: Some(_) } if now < self.started + TIMEOUT + GRACE => None,
            Talk::Stream { returned: Some(_) } => {
                Some(Outcome::Error("connected, but the payload did not come back".to_owned()))
            }
            _ if now >= self.started + TIMEOUT => Some(Outcome::Deny),
            Talk::Stream { returned: None } => None,
            Talk::Datagram | Talk::Init(_) => self.send(payload).err().map(|error| Outcome::Error(error.to_string())),
        }
    }
}

fn stream(mut socket: &Socket, returned: &mut Option<usize>, payload: &[u8]) -> std::io::Result<Option<Outcome>> {
    use std::io::Read;
    if returned.is_none() {
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        match socket.peer_addr() {
            Ok(_connected) => {}
            Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(None),
            Err(error) => return Err(error),
        }
        let sent = socket.send(payload)?;
        if sent != payload.len() {
            return Ok(Some(Outcome::Error(format!("only {sent} bytes could be sent"))));
        }
        *returned = Some(0);
    }
    let mut buffer = [0; 64];
    loop {
        let before = returned.unwrap_or_default();
        match socket.read(&mut buffer)? {
            0 => return Ok(Some(Outcome::Error("closed before the payload came back".to_owned()))),
            length => {
                let got = buffer.get(..length).unwrap_or_default();
                if payload.get(before..before + length) != Some(got) {
                    return Ok(Some(Outcome::Error("something else than the payload came back".to_owned())));
                }
                *returned = Some(before + length);
                if before + length == payload.len() {
                    return Ok(Some(Outcome::Allow));
                }
            }
        }
    }
}

fn datagram(socket: &Socket, payload: &[u8]) -> std::io::Result<Option<Outcome>> {
    let mut buffer = [MaybeUninit::uninit(); 64];
    let length = socket.recv(&mut buffer)?;
    Ok(Some(if initialised(&buffer, length) == payload {
        Outcome::Allow
    } else {
        Outcome::Error("something else than the payload came back".to_owned())
    }))
}

fn init_ack(socket: &Socket, sent: &Addressed) -> std::io::Result<Option<Outcome>> {
    let is_ipv4 = socket.local_addr()?.is_ipv4();
    let mut buffer = [MaybeUninit::uninit(); 512];
    loop {
        // The socket gets every SCTP packet of its pair of addresses.
        let length = socket.recv(&mut buffer)?;
        let back = Addressed { source: sent.destination, destination: sent.source, tag: sent.tag };
        match without_ip_header(initialised(&buffer, length), is_ipv4).and_then(sctp::parse) {
            Some(Message::InitAck(addressed)) if addressed == back => return Ok(Some(Outcome::Allow)),
            Some(Message::Abort(addressed)) if addressed == back => {
                return Ok(Some(Outcome::Error("aborted".to_owned())));
            }
            Some(_) | None => {}
        }
    }
}

/// Whether an error says something of this process rather than of the way to the destination.
fn is_our_fault(error: &Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EPERM | libc::EADDRNOTAVAIL))
}
