//! Many connections to one address at once, each with the backend that the proxy has picked for it.
//!
//! A connection is *allowed* if its payload comes back. Which backend it was sent to says the node's connection tracking,
//! by the connection's source port: also of those whose packets were dropped, since an entry is confirmed after the
//! rewriting and before the last hooks. Only what was dropped on its way into the node itself has none.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_policy::model::Protocol;
use netpol_testbed::namespace::Namespace;
use netpol_testbed::place::Place;
use netpol_testbed::probe::{Outcome, TIMEOUT};
use socket2::{Domain, Socket, Type};

const PAYLOAD: &[u8; 16] = b"is anybody there";

/// When an unanswered datagram is sent again.
const AGAIN: Duration = Duration::from_millis(300);

/// One connection.
#[derive(Clone, Debug)]
pub(crate) struct Shot {
    /// Its source port: no two of a burst have the same.
    pub(crate) source_port: u16,
    pub(crate) outcome: Outcome,
}

struct Flight {
    socket: Socket,
    source_port: u16,
    sent: Option<Instant>,
    received: usize,
    outcome: Option<Outcome>,
}

/// Opens `count` connections from an address of a namespace, all at the same time.
pub(crate) fn burst(
    from: &Namespace,
    source: IpAddr,
    to: SocketAddr,
    protocol: Protocol,
    count: usize,
) -> Result<Vec<Shot>> {
    from.place().run(|| {
        let mut flights = (0..count).map(|_| Flight::start(source, to, protocol)).collect::<Result<Vec<_>>>()?;
        let begin = Instant::now();
        while begin.elapsed() < TIMEOUT {
            let mut flying = 0;
            for flight in flights.iter_mut().filter(|flight| flight.outcome.is_none()) {
                flight.outcome = flight.turn(protocol);
                flying += 1;
            }
            if flying == 0 {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        let shot = |flight: Flight| Shot {
            source_port: flight.source_port,
            outcome: flight.outcome.unwrap_or(if flight.received == 0 {
                Outcome::Deny
            } else {
                Outcome::Error("the payload did not come back whole".to_owned())
            }),
        };
        Ok(flights.into_iter().map(shot).collect())
    })
}

impl Flight {
    fn start(source: IpAddr, to: SocketAddr, protocol: Protocol) -> Result<Self> {
        let (kind, number) = match protocol {
            Protocol::Tcp => (Type::STREAM, socket2::Protocol::TCP),
            Protocol::Udp => (Type::DGRAM, socket2::Protocol::UDP),
            Protocol::Sctp => bail!("no burst of SCTP"),
        };
        let socket = Socket::new(Domain::for_address(to), kind.nonblocking(), Some(number)).context("socket")?;
        socket.bind(&SocketAddr::new(source, 0).into()).context("bind")?;
        let mut outcome = None;
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => outcome = Some(Outcome::Error(error.to_string())),
        }
        let own = socket.local_addr().context("getsockname")?.as_socket().context("not an internet address")?;
        Ok(Self { socket, source_port: own.port(), sent: None, received: 0, outcome })
    }

    /// Looks what has happened; `Some` when it is over.
    fn turn(&mut self, protocol: Protocol) -> Option<Outcome> {
        match self.try_turn(protocol) {
            Ok(true) => Some(Outcome::Allow),
            Ok(false) => None,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => None,
            Err(error) => Some(Outcome::Error(error.to_string())),
        }
    }

    fn try_turn(&mut self, protocol: Protocol) -> std::io::Result<bool> {
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        let due = match (protocol, self.sent) {
            (_, None) => true,
            (Protocol::Udp, Some(sent)) => sent.elapsed() > AGAIN,
            (Protocol::Tcp | Protocol::Sctp, Some(_)) => false,
        };
        if due {
            let _connected = self.socket.peer_addr()?;
            self.socket.write_all(PAYLOAD)?;
            self.sent = Some(Instant::now());
        }
        let mut buffer = [0; 64];
        match self.socket.read(&mut buffer)? {
            0 => Err(std::io::Error::other("closed before the payload came back")),
            length => {
                self.received += length;
                Ok(self.received >= PAYLOAD.len())
            }
        }
    }
}

/// The backends of all connections to an address, by source port, from a node's connection tracking.
pub(crate) fn picked(
    node: &Place,
    source: IpAddr,
    to: SocketAddr,
    protocol: Protocol,
) -> Result<BTreeMap<u16, SocketAddr>> {
    let mut command = Command::new("conntrack");
    let family = if to.is_ipv4() { "ipv4" } else { "ipv6" };
    command.args(["-L", "-f", family, "-p", &protocol.name().to_lowercase()]);
    command.args(["--orig-src", &source.to_string(), "--orig-dst", &to.ip().to_string()]);
    command.args(["--orig-port-dst", &to.port().to_string()]);
    node.prepare(&mut command)?;
    let output = command.output().context("cannot start conntrack")?;
    if !output.status.success() {
        bail!("conntrack: {}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8_lossy(&output.stdout).lines().map(entry).collect()
}

/// `tcp 6 117 SYN_SENT src=A dst=B sport=1 dport=2 [UNREPLIED] src=C dst=D sport=3 dport=4 …`: the original direction,
/// then the reply's, whose source is the backend.
fn entry(line: &str) -> Result<(u16, SocketAddr)> {
    let values = |name: &str| {
        let values = line.split(' ').filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).collect::<Vec<_>>();
        <[&str; 2]>::try_from(values).ok().with_context(|| format!("{name} in {line:?}"))
    };
    let ([_, backend], [source_port, port]) = (values("src")?, values("sport")?);
    Ok((source_port.parse()?, SocketAddr::new(backend.parse()?, port.parse()?)))
}

/// Forgets all connections that a node tracks: the next datagram of a source port is another connection.
pub(crate) fn forget(node: &Place) -> Result<()> {
    for family in ["ipv4", "ipv6"] {
        let mut command = Command::new("conntrack");
        command.args(["-D", "-f", family, "-p", "udp"]);
        node.prepare(&mut command)?;
        // It fails if there is none.
        let _output = command.output().context("cannot start conntrack")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracked_connection_names_its_backend() {
        let line = "tcp      6 119 SYN_SENT src=10.244.0.2 dst=10.96.0.9 sport=4000 dport=80 [UNREPLIED] \
                    src=10.244.1.4 dst=10.244.0.2 sport=8080 dport=4000 mark=0 use=1";
        assert_eq!(entry(line).unwrap(), (4000, "10.244.1.4:8080".parse().unwrap()));
    }
}
