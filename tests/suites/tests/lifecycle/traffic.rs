//! Traffic that runs while something happens to the agent, with every lost packet counted.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use netpol_testbed::pod::Pod;

/// Time between two datagrams: five hundred a second, so that a gap of two milliseconds shows.
const INTERVAL: Duration = Duration::from_millis(2);
const PORT: u16 = 9999;

/// What was sent and what came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
}

/// Datagrams with running numbers from one pod to another, each echoed; and a TCP connection that never pauses.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    stop_sending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    sent: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    transferred: Arc<AtomicU64>,
    broken: Arc<AtomicBool>,
}

impl Traffic {
    /// Starts; `family` is the position among the pods' addresses.
    pub(crate) fn start(from: &Pod, to: &Pod, family: usize) -> Self {
        let server = SocketAddr::new(to.spec().addresses[family], PORT);
        let client = SocketAddr::new(from.spec().addresses[family], 0);
        let (echo, listener) =
            to.network().place().run(|| Ok((UdpSocket::bind(server)?, TcpListener::bind(server)?))).unwrap();
        let (socket, stream) = from
            .network()
            .place()
            .run(|| {
                let socket = UdpSocket::bind(client)?;
                socket.connect(server)?;
                Ok((socket, TcpStream::connect(server)?))
            })
            .unwrap();
        let traffic = Self {
            stop: Arc::default(),
            stop_sending: Arc::default(),
            threads: Vec::new(),
            sent: Arc::default(),
            answered: Arc::default(),
            transferred: Arc::default(),
            broken: Arc::default(),
        };
        traffic.datagrams(echo, socket).stream(listener, stream)
    }

    fn spawn(&mut self, work: impl FnOnce(&AtomicBool) + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || work(&stop)));
    }

    fn datagrams(mut self, echo: UdpSocket, socket: UdpSocket) -> Self {
        let patience = Some(Duration::from_millis(200));
        echo.set_read_timeout(patience).unwrap();
        socket.set_read_timeout(patience).unwrap();
        let receiver = socket.try_clone().unwrap();
        let (sent, answered) = (Arc::clone(&self.sent), Arc::clone(&self.answered));
        self.spawn(move |stop| {
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, sender)) = echo.recv_from(&mut buffer) {
                    let _lost = echo.send_to(&buffer[..length], sender);
                }
            }
        });
        self.spawn(move |stop| {
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if socket.recv(&mut buffer).is_ok() {
                    let _before = answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let stop_sending = Arc::clone(&self.stop_sending);
        self.spawn(move |_stop| {
            while !stop_sending.load(Ordering::Relaxed) {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                let _lost = receiver.send(&number.to_be_bytes());
                thread::sleep(INTERVAL);
            }
        });
        self
    }

    fn stream(mut self, listener: TcpListener, mut client: TcpStream) -> Self {
        let (mut server, _) = listener.accept().unwrap();
        // A dropped segment is repaired by TCP; a connection that was cut is not.
        let patience = Some(Duration::from_secs(5));
        client.set_read_timeout(patience).unwrap();
        server.set_read_timeout(patience).unwrap();
        let (transferred, broken) = (Arc::clone(&self.transferred), Arc::clone(&self.broken));
        self.spawn(move |stop| {
            let mut buffer = [0; 1024];
            while !stop.load(Ordering::Relaxed) {
                match server.read(&mut buffer) {
                    Ok(0) | Err(_) => return,
                    Ok(length) => {
                        if server.write_all(&buffer[..length]).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        self.spawn(move |stop| {
            let mut buffer = [7; 1024];
            while !stop.load(Ordering::Relaxed) {
                if client.write_all(&buffer).is_err() || client.read_exact(&mut buffer).is_err() {
                    broken.store(true, Ordering::Relaxed);
                    return;
                }
                let _before = transferred.fetch_add(1, Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        });
        self
    }

    /// What was sent and answered so far.
    pub(crate) fn tally(&self) -> Tally {
        Tally { sent: self.sent.load(Ordering::Relaxed), answered: self.answered.load(Ordering::Relaxed) }
    }

    /// Whether the TCP connection has stopped making progress or was cut.
    pub(crate) fn connection_lives(&self) -> bool {
        let before = self.transferred.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(500));
        !self.broken.load(Ordering::Relaxed) && self.transferred.load(Ordering::Relaxed) > before
    }

    /// Lets it run on for a while.
    pub(crate) fn run_on(&self) {
        thread::sleep(Duration::from_millis(600));
    }

    /// Ends it; returns what was sent and what of it came back.
    pub(crate) fn end(mut self) -> Tally {
        self.stop_sending.store(true, Ordering::Relaxed);
        // For what is still under way.
        thread::sleep(Duration::from_millis(500));
        let tally = self.tally();
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        tally
    }
}
