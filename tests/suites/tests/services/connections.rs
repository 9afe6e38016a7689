//! Many connections that outlive what they are tried for, all used at once: a denial is silence, and one after the other
//! would take a time-out each.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use netpol_testbed::probe::TIMEOUT;

use super::town::Town;

const MESSAGE: &[u8; 12] = b"still there?";

/// How long an answer may take after a denial: the kernel sends again what was lost, each time after twice as long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at a socket.
const POLL: Duration = Duration::from_millis(5);

/// Open connections of `client`.
pub(crate) struct Connections(Vec<Connection>);

struct Connection {
    stream: TcpStream,
    to: SocketAddr,
    /// Bytes that were sent and did not come back yet.
    owed: usize,
}

impl Connections {
    /// Opens so many to each address.
    pub(crate) fn open(town: &Town, to: &[SocketAddr], of_each: usize) -> Self {
        let open = |to: &SocketAddr| {
            let stream = town.network("client").place().run(|| TcpStream::connect(to).context("connect"));
            let stream = stream.unwrap_or_else(|error| panic!("{to}: {error:#}\n{}", town.tail()));
            stream.set_nonblocking(true).unwrap();
            Connection { stream, to: *to, owed: 0 }
        };
        Self(to.iter().flat_map(|to| std::iter::repeat_n(to, of_each)).map(open).collect())
    }

    /// Sends over each of them, and fails unless what was ever sent comes back on all, or nothing on any.
    pub(crate) fn expect(&mut self, town: &Town, answered: bool, when: &str) {
        for connection in &mut self.0 {
            // A dozen bytes find room, also after all that was not acknowledged.
            connection.stream.write_all(MESSAGE).unwrap_or_else(|error| panic!("{when}, {}: {error}", connection.to));
            connection.owed += MESSAGE.len();
        }
        let begin = Instant::now();
        let patience = if answered { PATIENCE } else { TIMEOUT };
        let mut waiting: Vec<&mut Connection> = self.0.iter_mut().collect();
        let mut wrong = Vec::new();
        while !waiting.is_empty() && begin.elapsed() < patience {
            waiting.retain_mut(|connection| match connection.read() {
                Ok(0) => connection.owed > 0,
                Ok(_) if answered => connection.owed > 0,
                Ok(_) => {
                    wrong.push(format!("{} answered", connection.to));
                    false
                }
                Err(error) => {
                    wrong.push(format!("{}: {error}", connection.to));
                    false
                }
            });
            std::thread::sleep(POLL);
        }
        if answered {
            wrong.extend(waiting.iter().map(|connection| format!("{} owes {} bytes", connection.to, connection.owed)));
        }
        for family in [false, true] {
            let of_family: Vec<&Connection> = self.0.iter().filter(|other| other.to.is_ipv6() == family).collect();
            if let Some(first) = of_family.first() {
                let wrong = wrong.len().min(of_family.len());
                town.report(first.to.ip(), of_family.len(), wrong);
            }
        }
        let (number, all) = (wrong.len(), self.0.len());
        wrong.dedup();
        assert_eq!(number, 0, "{when}: {number} of {all} should be {answered}: {wrong:?}\n{}", town.tail());
    }
}

impl Connection {
    /// Takes what has come back, and says how many bytes that are; 0 if nothing has.
    fn read(&mut self) -> std::io::Result<usize> {
        let mut answer = [0; 256];
        let wanted = answer.len().min(self.owed);
        match self.stream.read(&mut answer[..wanted]) {
            Ok(0) if wanted > 0 => Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.owed -= length;
                Ok(length)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }
}
