//! Servers in any number of namespaces, all on one thread: a socket stays in the namespace that it was made in.
//!
//! TCP and UDP send back what they get. SCTP does so too where the kernel has it; where not, raw sockets answer an INIT
//! with an INIT ACK ([`crate::sctp`]), one socket an address for all its ports.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use netpol_policy::model::Protocol;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::namespace::Namespace;
use crate::sctp::{self, Message};

/// Connections that may wait to be accepted: as many as probes are ever in flight.
const BACKLOG: i32 = 4096;

/// Receive buffer of sockets that all of a burst arrives at, in bytes; the kernel doubles it for its own use.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The longest message that is sent back.
const MESSAGE: usize = 2048;

/// How long the thread sleeps before it looks whether it is still wanted, in milliseconds.
const TURN: u16 = 100;

/// Where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listen {
    /// An address of the namespace.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// The thread, and the sockets that it serves.
#[derive(Debug)]
pub struct Servers {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// The servers of one namespace; dropping it closes them and their connections.
#[derive(Debug)]
pub struct Served {
    shared: Arc<Shared>,
    owner: u64,
}

#[derive(Debug)]
struct Shared {
    epoll: Epoll,
    sockets: Mutex<Sockets>,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Sockets {
    next: u64,
    by_token: HashMap<u64, Owned>,
}

#[derive(Debug)]
struct Owned {
    owner: u64,
    socket: Arc<Serving>,
}

#[derive(Debug)]
enum Serving {
    Listener(Socket),
    Stream(Socket),
    Datagrams(Socket),
    Sctp { socket: Socket, ports: BTreeSet<u16> },
}

impl Serving {
    fn socket(&self) -> &Socket {
        match self {
            Self::Listener(socket) | Self::Stream(socket) | Self::Datagrams(socket) | Self::Sctp { socket, .. } => {
                socket
            }
        }
    }
}

impl Servers {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread or no epoll instance can be made.
    pub fn start() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
        let shared = Arc::new(Shared { epoll, sockets: Mutex::default(), stop: AtomicBool::new(false) });
        let turning = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("servers".to_owned()).spawn(move || turning.turn());
        Ok(Self { shared, thread: Some(thread.context("cannot start a thread")?) })
    }

    /// Listens in a namespace, from the moment that this returns.
    ///
    /// # Errors
    /// An address is not the namespace's, or a port is taken.
    pub fn listen(&self, namespace: &Namespace, places: &BTreeSet<Listen>) -> Result<Served> {
        let sockets = namespace.place().run(|| bind(places))?;
        let owner = {
            let mut sockets = self.shared.lock();
            sockets.next += 1;
            sockets.next
        };
        // Made first: if one cannot be registered, dropping it closes the others.
        let served = Served { shared: Arc::clone(&self.shared), owner };
        for socket in sockets {
            self.shared.add(owner, socket)?;
        }
        Ok(served)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let owner = self.owner;
        self.shared.lock().by_token.retain(|_, owned| owned.owner != owner);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, owner: u64, socket: Serving) -> Result<()> {
        let socket = Arc::new(socket);
        let token = {
            let mut sockets = self.lock();
            sockets.next += 1;
            let token = sockets.next;
            sockets.by_token.insert(token, Owned { owner, socket: Arc::clone(&socket) });
            token
        };
        self.epoll.add(socket.socket(), EpollEvent::new(EpollFlags::EPOLLIN, token)).context("epoll_ctl")
    }

    fn turn(&self) {
        let mut events = [EpollEvent::empty(); 256];
        while !self.stop.load(Ordering::Relaxed) {
            // Interrupted by a signal, or nothing: both mean to look again.
            let ready = self.epoll.wait(&mut events, TURN).unwrap_or(0);
            for event in events.iter().take(ready) {
                let token = event.data();
                let owned = self.lock().by_token.get(&token).map(|owned| (owned.owner, Arc::clone(&owned.socket)));
                if let Some((owner, socket)) = owned
                    && self.serve(owner, &socket) == Life::Over
                {
                    self.lock().by_token.remove(&token);
                }
            }
        }
    }

    /// Answers all that has arrived at a socket.
    fn serve(&self, owner: u64, serving: &Serving) -> Life {
        let mut buffer = [MaybeUninit::uninit(); MESSAGE];
        match serving {
            Serving::Listener(listener) => {
                while let Ok((stream, _)) = listener.accept() {
                    // A client that has gone again, or too many descriptors: the probe will tell.
                    let _ = stream.set_nonblocking(true);
                    let _ = self.add(owner, Serving::Stream(stream));
                }
                Life::GoesOn
            }
            Serving::Stream(stream) => echo(stream),
            Serving::Datagrams(socket) => {
                while let Ok((length, sender)) = socket.recv_from(&mut buffer) {
                    // Lost like any datagram; the probe sends again.
                    let _ = socket.send_to(initialised(&buffer, length), &sender);
                }
                Life::GoesOn
            }
            Serving::Sctp { socket, ports } => {
                while let Ok((length, sender)) = socket.recv_from(&mut buffer) {
                    let message = without_ip_header(initialised(&buffer, length), sender.is_ipv4());
                    if let Some(Message::Init(addressed)) = message.and_then(sctp::parse) {
                        let is_served = ports.contains(&addressed.destination);
                        let answer = if is_served { sctp::init_ack(addressed) } else { sctp::abort(addressed) };
                        let _ = socket.send_to(&answer, &portless(&sender));
                    }
                }
                Life::GoesOn
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    GoesOn,
    Over,
}

fn echo(mut stream: &Socket) -> Life {
    let mut buffer = [0; MESSAGE];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Life::Over,
            Ok(length) => {
                let sent = buffer.get(..length).map(|message| stream.write_all(message));
                if !matches!(sent, Some(Ok(()))) {
                    return Life::Over;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Life::GoesOn,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_gone) => return Life::Over,
        }
    }
}

/// Makes the sockets, in the calling thread's namespace.
fn bind(places: &BTreeSet<Listen>) -> Result<Vec<Serving>> {
    let mut sockets = Vec::with_capacity(places.len());
    let mut raw = BTreeMap::<IpAddr, BTreeSet<u16>>::new();
    for listen in places {
        let Listen { address, protocol, port } = *listen;
        let made = match protocol {
            Protocol::Tcp => listener(address, port, socket2::Protocol::TCP),
            Protocol::Sctp if kernel_has_sctp() => listener(address, port, socket2::Protocol::SCTP),
            Protocol::Sctp => {
                raw.entry(address).or_default().insert(port);
                continue;
            }
            Protocol::Udp => datagrams(address, port),
        };
        sockets.push(made.with_context(|| format!("cannot listen on {address}, {} {port}", protocol.name()))?);
    }
    for (address, ports) in raw {
        let socket = raw_socket(address).with_context(|| format!("cannot listen for SCTP on {address}"))?;
        sockets.push(Serving::Sctp { socket, ports });
    }
    Ok(sockets)
}

fn listener(address: IpAddr, port: u16, protocol: socket2::Protocol) -> Result<Serving> {
    let at = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), Some(protocol)).context("socket")?;
    // Connections of an earlier server on this port may still be in TIME_WAIT.
    socket.set_reuse_address(true).context("SO_REUSEADDR")?;
    socket.bind(&at.into()).context("bind")?;
    socket.listen(BACKLOG).context("listen")?;
    Ok(Serving::Listener(socket))
}

fn datagrams(address: IpAddr, port: u16) -> Result<Serving> {
    let at = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM.nonblocking(), Some(socket2::Protocol::UDP));
    let socket = socket.context("socket")?;
    // Bound to one address, so that answers come from it; a wildcard socket would choose by route.
    socket.bind(&at.into()).context("bind")?;
    setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
    Ok(Serving::Datagrams(socket))
}

/// A raw SCTP socket on an address of the calling thread's namespace.
pub(crate) fn raw_socket(address: IpAddr) -> Result<Socket> {
    let at = SocketAddr::new(address, 0);
    let socket = Socket::new(Domain::for_address(at), Type::RAW.nonblocking(), Some(socket2::Protocol::SCTP));
    let socket = socket.context("socket")?;
    socket.bind(&at.into()).context("bind")?;
    setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
    Ok(socket)
}

/// Raw IPv6 sockets take the port for a protocol number (raw(7)).
fn portless(sender: &SockAddr) -> SockAddr {
    sender.as_socket().map_or_else(|| sender.clone(), |sender| SocketAddr::new(sender.ip(), 0).into())
}

/// Raw IPv4 sockets deliver the header, raw IPv6 sockets do not.
pub(crate) fn without_ip_header(packet: &[u8], is_ipv4: bool) -> Option<&[u8]> {
    if !is_ipv4 {
        return Some(packet);
    }
    let words = usize::from(packet.first()? & 0xf);
    packet.get(words * 4..)
}

/// What was received.
pub(crate) fn initialised(buffer: &[MaybeUninit<u8>], length: usize) -> &[u8] {
    let received = buffer.get(..length).unwrap_or_default();
    // SAFETY: recv has written the first `length` bytes, and MaybeUninit<u8> has the layout of u8.
    unsafe { &*(std::ptr::from_ref(received) as *const [u8]) }
}

/// Whether the kernel has sockets for SCTP; it may load a module to find out. Where it has, raw sockets would not do:
/// the kernel itself aborts what it knows nothing of.
#[must_use]
pub fn kernel_has_sctp() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| Socket::new(Domain::IPV4, Type::STREAM, Some(socket2::Protocol::SCTP)).is_ok())
}
