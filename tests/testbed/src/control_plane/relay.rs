//! A TCP relay in front of the API server, for what networks do to a watch: end it, or let it hang without a word.
//! TLS goes through it untouched, since the server's certificate names the address and not the port.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::place::Place;

/// How often a relay that holds bytes back looks whether it still has to.
const PAUSE: Duration = Duration::from_millis(10);

/// A relay; dropping it ends all its connections.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
    place: Place,
}

#[derive(Debug, Default)]
struct State {
    connections: Mutex<Vec<TcpStream>>,
    silent: AtomicBool,
    /// Connections with a number below this are dead, and do not show it.
    swallowed: AtomicU64,
    /// The next connection's number.
    next: AtomicU64,
    ended: AtomicBool,
}

impl Relay {
    /// Listens on a free port of the server's own address.
    pub(super) fn start(server: SocketAddr, place: &Place) -> Result<Self> {
        let listener = place.run(|| TcpListener::bind((server.ip(), 0)).context("bind"))?;
        let address = listener.local_addr().context("getsockname")?;
        let state = Arc::new(State::default());
        let acceptor = thread::spawn({
            let (state, place) = (Arc::clone(&state), place.clone());
            move || {
                // Without the namespace no connection to the server succeeds, and clients see theirs end.
                if place.enter().is_ok() {
                    accept(&listener, server, &state);
                }
            }
        });
        Ok(Self { address, state, acceptor: Some(acceptor), place: place.clone() })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection there is; new ones are relayed.
    pub fn cut(&self) {
        for connection in self.state.take() {
            // An error means that it has ended already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Lets nothing more through on the connections there are, for ever, without closing them: what is left of a
    /// connection when a firewall on the way has forgotten it. New ones are relayed.
    pub fn swallow(&self) {
        self.state.swallowed.store(self.state.next.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// From now on holds back all bytes, while connections stay open: what a client sees of a network that has
    /// swallowed its server. `false` lets them through again, none lost.
    pub fn silence(&self, silent: bool) {
        self.state.silent.store(silent, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the acceptor, which then sees that it is over; it has ended by itself if this fails.
        let address = self.address;
        let _ = self.place.run(move || TcpStream::connect(address).context("connect"));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl State {
    fn take(&self) -> Vec<TcpStream> {
        std::mem::take(&mut *self.connections.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, connection: TcpStream) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}

fn accept(listener: &TcpListener, server: SocketAddr, state: &Arc<State>) {
    for client in listener.incoming() {
        if state.ended.load(Ordering::SeqCst) {
            return;
        }
        // A server that is down shows as a connection that ends at once.
        let Ok(client) = client else { continue };
        let Ok(upstream) = TcpStream::connect(server) else { continue };
        let number = state.next.fetch_add(1, Ordering::SeqCst);
        let Ok(pairs) = duplicate(&client, &upstream) else { continue };
        for (from, to) in pairs {
            let state = Arc::clone(state);
            thread::spawn(move || copy(from, to, number, &state));
        }
        state.add(client);
        state.add(upstream);
    }
}

fn duplicate(client: &TcpStream, upstream: &TcpStream) -> std::io::Result<[(TcpStream, TcpStream); 2]> {
    Ok([(client.try_clone()?, upstream.try_clone()?), (upstream.try_clone()?, client.try_clone()?)])
}

/// Copies one direction until either end closes.
fn copy(mut from: TcpStream, mut to: TcpStream, number: u64, state: &State) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        while state.silent.load(Ordering::SeqCst) && !state.ended.load(Ordering::SeqCst) {
            thread::sleep(PAUSE);
        }
        if number < state.swallowed.load(Ordering::SeqCst) {
            continue;
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // Both directions end together: a client must not wait for an answer from a server that has gone.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut other = stream.try_clone().unwrap();
                    std::io::copy(&mut stream, &mut other)
                });
            }
        });
        address
    }

    fn exchange(stream: &mut TcpStream, sent: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(sent)?;
        let mut answer = vec![0; sent.len()];
        stream.read_exact(&mut answer).map(|()| answer)
    }

    #[test]
    fn bytes_pass_until_the_connection_is_cut_and_a_new_one_passes_again() {
        let relay = Relay::start(echo(), &Place::default()).unwrap();
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(exchange(&mut stream, b"one").unwrap(), b"one");
        relay.cut();
        assert!(exchange(&mut stream, b"two").is_err());
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(exchange(&mut stream, b"three").unwrap(), b"three");
    }

    #[test]
    fn a_silent_relay_keeps_the_connection_and_loses_nothing() {
        let relay = Relay::start(echo(), &Place::default()).unwrap();
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(exchange(&mut stream, b"one").unwrap(), b"one");
        relay.silence(true);
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream.write_all(b"two").unwrap();
        assert!(stream.read(&mut [0; 3]).is_err(), "nothing comes back");
        relay.silence(false);
        stream.set_read_timeout(None).unwrap();
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"two");
    }

    #[test]
    fn a_swallowed_connection_stays_dead_while_a_new_one_lives() {
        let relay = Relay::start(echo(), &Place::default()).unwrap();
        let mut old = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(exchange(&mut old, b"one").unwrap(), b"one");
        relay.swallow();
        old.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        old.write_all(b"two").unwrap();
        let error = old.read(&mut [0; 3]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "open, and silent");
        let mut new = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(exchange(&mut new, b"three").unwrap(), b"three");
    }
}
