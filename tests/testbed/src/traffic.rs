//! Traffic that runs while something happens, with every lost and every leaked packet counted.
//!
//! A [`Flow`] sends datagrams with running numbers; an [`Echo`] remembers which of them came and sends them back. So a
//! datagram was *leaked* if it came although it should not have, and *lost* if its answer did not come although it
//! should have. Every second one is sent from a port of its own: the others are what has been going on for a while. A
//! [`Stream`] is a TCP connection that never pauses.
//!
//! What happens takes effect at a moment, so a [`Tally`] is of the datagrams that were sent in a span of time.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::namespace::Namespace;
use crate::probe;

/// Time between two datagrams of a flow: a gap of a few milliseconds shows, and a dozen flows leave the machine time for
/// what is tested.
const INTERVAL: Duration = Duration::from_millis(4);

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a TCP connection may go without progress: more than the kernel waits before it sends a segment again for the
/// third time (0.2 s, 0.4 s, 0.8 s).
const STALL: Duration = Duration::from_secs(3);

/// The datagram's payload: the flow's number, and its own in that flow.
const PAYLOAD: usize = 16;

/// The token of a flow's first socket; other sockets have the number of the one datagram that they send, which is odd.
const STEADY: u64 = 0;

/// Sends back the datagrams that come to an address, and remembers them.
#[derive(Debug)]
pub struct Echo {
    arrived: Arc<Mutex<BTreeMap<u64, BTreeSet<u64>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Datagrams from one namespace to one address, without a pause.
#[derive(Debug)]
pub struct Flow {
    id: u64,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    log: Mutex<Log>,
    /// Nothing more is sent.
    ending: AtomicBool,
    /// Nothing more is waited for.
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Log {
    /// When each was sent; the index is its number.
    sent: Vec<Instant>,
    answered: BTreeSet<u64>,
}

/// What became of the datagrams of a span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sent.
    pub sent: u64,
    /// Came to an echo.
    pub arrived: u64,
    /// Came back from there.
    pub answered: u64,
}

impl Tally {
    /// Sent, and no answer came.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.sent - self.answered
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Self { sent, arrived, answered } = other;
        self.sent += sent;
        self.arrived += arrived;
        self.answered += answered;
    }
}

impl Echo {
    /// Starts at an address of a namespace; it answers when this returns.
    ///
    /// # Errors
    /// The address is not the namespace's, or the port is taken.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let socket = namespace.place().run(|| UdpSocket::bind(address).with_context(|| format!("bind({address})")))?;
        // Long enough not to turn in vain, short enough to end soon.
        socket.set_read_timeout(Some(Duration::from_millis(200))).context("SO_RCVTIMEO")?;
        let arrived = Arc::<Mutex<BTreeMap<u64, BTreeSet<u64>>>>::default();
        let stop = Arc::<AtomicBool>::default();
        let (remembered, ended) = (Arc::clone(&arrived), Arc::clone(&stop));
        let thread = thread::Builder::new().name("echo".to_owned()).spawn(move || {
            let mut buffer = [0; PAYLOAD + 1];
            while !ended.load(Ordering::Relaxed) {
                let Ok((length, sender)) = socket.recv_from(&mut buffer) else { continue };
                if let Some((flow, number)) = buffer.get(..length).and_then(parse) {
                    let _new = lock(&remembered).entry(flow).or_default().insert(number);
                    // Lost like any datagram.
                    let _ = socket.send_to(&payload(flow, number), sender);
                }
            }
        });
        Ok(Self { arrived, stop, thread: Some(thread.context("cannot start a thread")?) })
    }

    fn arrived(&self, flow: u64, number: u64) -> bool {
        lock(&self.arrived).get(&flow).is_some_and(|numbers| numbers.contains(&number))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It does not panic; if it did, there is nothing left to stop.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Flow {
    /// Starts to send from an address of a namespace.
    ///
    /// # Errors
    /// The address is not the namespace's, or there is no route.
    pub fn start(from: &Namespace, source: IpAddr, destination: SocketAddr) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        probe::descriptors()?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::<Shared>::default();
        let place = from.place();
        let route = Route { source, destination };
        let steady =
            place.run(|| route.socket().with_context(|| format!("no socket from {source} to {destination}")))?;
        let sender = Sender::new(id, route, steady, Arc::clone(&shared))?;
        let (entered, outcome) = channel();
        let thread = thread::Builder::new().name("flow".to_owned()).spawn(move || {
            let there = place.enter();
            let is_there = there.is_ok();
            // Whoever asked waits for it.
            let _ = entered.send(there);
            if is_there {
                sender.run();
            }
        });
        let thread = Some(thread.context("cannot start a thread")?);
        // From then on its sockets keep the namespace, whatever becomes of `from`.
        outcome.recv().context("the thread of a flow")??;
        Ok(Self { id, shared, thread })
    }

    /// Stops sending, and waits for answers that are under way.
    pub fn end(&self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        let begin = Instant::now();
        let all_answered = || {
            let log = lock(&self.shared.log);
            log.answered.len() == log.sent.len()
        };
        while begin.elapsed() < PATIENCE && !all_answered() {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What became of what was sent from `since` on, and before `until`. Only after [`Flow::end`], or for a span that
    /// has ended a while ago, is what is still under way not counted as lost.
    #[must_use]
    pub fn tally(&self, echoes: &[&Echo], since: Instant, until: Instant) -> Tally {
        let mut tally = Tally::default();
        let log = lock(&self.shared.log);
        for (number, at) in (0_u64..).zip(&log.sent) {
            if *at >= since && *at < until {
                tally.sent += 1;
                tally.answered += u64::from(log.answered.contains(&number));
                tally.arrived += u64::from(echoes.iter().any(|echo| echo.arrived(self.id, number)));
            }
        }
        tally
    }

    /// When the first datagram was sent, and when the first that was answered.
    #[must_use]
    pub fn first(&self) -> (Option<Instant>, Option<Instant>) {
        let log = lock(&self.shared.log);
        let answered = log.answered.first().and_then(|number| log.sent.get(usize::try_from(*number).ok()?));
        (log.sent.first().copied(), answered.copied())
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        self.shared.stop.store(true, Ordering::Relaxed);
        // It does not panic; if it did, there is nothing left to stop.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[derive(Clone, Copy)]
struct Route {
    source: IpAddr,
    destination: SocketAddr,
}

impl Route {
    /// A connected socket with a port of its own, in the calling thread's namespace.
    fn socket(self) -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind(SocketAddr::new(self.source, 0))?;
        socket.connect(self.destination)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// The thread of a flow.
struct Sender {
    id: u64,
    route: Route,
    epoll: Epoll,
    steady: UdpSocket,
    /// Sockets of one datagram each, until its answer has come or is not waited for any more.
    fresh: HashMap<u64, UdpSocket>,
    expiring: VecDeque<(Instant, u64)>,
    shared: Arc<Shared>,
}

impl Sender {
    fn new(id: u64, route: Route, steady: UdpSocket, shared: Arc<Shared>) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
        epoll.add(&steady, EpollEvent::new(EpollFlags::EPOLLIN, STEADY)).context("epoll_ctl")?;
        Ok(Self { id, route, epoll, steady, fresh: HashMap::new(), expiring: VecDeque::new(), shared })
    }

    fn run(mut self) {
        let mut due = Instant::now();
        let mut events = [EpollEvent::empty(); 64];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            if now >= due && !self.shared.ending.load(Ordering::Relaxed) {
                self.send(now);
                // What could not be sent in time is not made up for: a burst would overflow queues.
                due = now + INTERVAL;
            }
            let pause = due.saturating_duration_since(Instant::now()).as_millis().clamp(1, INTERVAL.as_millis());
            let ready = self.epoll.wait(&mut events, u16::try_from(pause).unwrap_or(1)).unwrap_or(0);
            for event in events.iter().take(ready) {
                self.receive(event.data());
            }
            while let Some((_, number)) = self.expiring.pop_front_if(|(at, _)| at.elapsed() > PATIENCE) {
                let _answered = self.fresh.remove(&number);
            }
        }
    }

    fn send(&mut self, now: Instant) {
        let number = {
            let mut log = lock(&self.shared.log);
            log.sent.push(now);
            log.sent.len() as u64 - 1
        };
        let message = payload(self.id, number);
        // Whatever fails, the datagram does not come, which is what is counted.
        if number.is_multiple_of(2) {
            let _ = self.steady.send(&message);
        } else if let Ok(socket) = self.route.socket()
            && self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, number)).is_ok()
        {
            let _ = socket.send(&message);
            self.fresh.insert(number, socket);
            self.expiring.push_back((now, number));
        }
    }

    fn receive(&mut self, token: u64) {
        let socket = if token == STEADY { Some(&self.steady) } else { self.fresh.get(&token) };
        let Some(socket) = socket else { return };
        let mut buffer = [0; PAYLOAD + 1];
        loop {
            match socket.recv(&mut buffer) {
                Ok(length) => match buffer.get(..length).and_then(parse) {
                    Some((flow, number)) if flow == self.id => {
                        let _new = lock(&self.shared.log).answered.insert(number);
                    }
                    Some(_) | None => {}
                },
                // Nothing more; an ICMP error is reported once, and is no answer.
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_reported) => {}
            }
        }
    }
}

/// A TCP connection to a server that sends back what it gets, with a message under way at all times.
#[derive(Debug)]
pub struct Stream {
    exchanged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// Connects from a namespace.
    ///
    /// # Errors
    /// The server does not answer in time.
    pub fn start(from: &Namespace, destination: SocketAddr) -> Result<Self> {
        let connect =
            || TcpStream::connect_timeout(&destination, STALL).with_context(|| format!("connect({destination})"));
        let mut client = from.place().run(connect)?;
        client.set_read_timeout(Some(Duration::from_millis(200))).context("SO_RCVTIMEO")?;
        let exchanged = Arc::<AtomicU64>::default();
        let stop = Arc::<AtomicBool>::default();
        let (counted, ended) = (Arc::clone(&exchanged), Arc::clone(&stop));
        let thread = thread::Builder::new().name("stream".to_owned()).spawn(move || {
            let mut under_way = 0;
            let mut buffer = [0; 64];
            while !ended.load(Ordering::Relaxed) {
                if under_way == 0 {
                    match client.write(&[7; PAYLOAD]) {
                        Ok(length) => under_way = length,
                        Err(_broken) => return,
                    }
                }
                match client.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => under_way = under_way.saturating_sub(length),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                    Err(_broken) => return,
                }
                if under_way == 0 {
                    let _before = counted.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(INTERVAL);
                }
            }
        });
        Ok(Self { exchanged, stop, thread: Some(thread.context("cannot start a thread")?) })
    }

    /// Whether it makes progress; a connection that does not is given time to repair losses.
    #[must_use]
    pub fn lives(&self) -> bool {
        let begin = Instant::now();
        let before = self.exchanged();
        // The first may have been under way when this began.
        while self.exchanged() < before + 2 {
            if begin.elapsed() > STALL {
                return false;
            }
            thread::sleep(INTERVAL);
        }
        true
    }

    /// Messages that went there and back.
    #[must_use]
    pub fn exchanged(&self) -> u64 {
        self.exchanged.load(Ordering::Relaxed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It does not panic; if it did, there is nothing left to stop.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn payload(flow: u64, number: u64) -> [u8; PAYLOAD] {
    (u128::from(flow) << 64 | u128::from(number)).to_be_bytes()
}

fn parse(message: &[u8]) -> Option<(u64, u64)> {
    let both = u128::from_be_bytes(message.try_into().ok()?);
    Some(((both >> 64) as u64, both as u64))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_names_its_flow_and_its_number() {
        assert_eq!(parse(&payload(7, u64::MAX)), Some((7, u64::MAX)));
        assert_eq!(parse(&[0; PAYLOAD + 1]), None);
        assert_eq!(parse(&[]), None);
    }
}
