//! What goes on between two pods while something happens: datagrams by every family that both have, and a TCP
//! connection by each. Each figure is printed, and then asserted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netpol_testbed::traffic::{Echo, Flow, Stream, Tally};

use crate::site::{COUNTING, PORT, Pod};

/// Enough datagrams that a gap shows.
const WHILE: Duration = Duration::from_millis(800);

/// Traffic from one pod to another.
pub(crate) struct Pair<'p> {
    what: String,
    flows: Vec<(Flow, &'p Echo)>,
    streams: Vec<Stream>,
    started: Instant,
}

impl<'p> Pair<'p> {
    /// Datagrams only: they need not be allowed.
    pub(crate) fn datagrams(from: &Pod, to: &'p Pod) -> Self {
        let started = Instant::now();
        let mut flows = Vec::new();
        for ((source, destination), echo) in from.addresses.iter().zip(&to.addresses).zip(&to.echoes) {
            let flow = Flow::start(&from.network, *source, SocketAddr::new(*destination, COUNTING)).unwrap();
            flows.push((flow, echo));
        }
        Self { what: format!("{} to {}", from.name, to.name), flows, streams: Vec::new(), started }
    }

    /// Datagrams and connections, which are allowed now.
    pub(crate) fn open(from: &Pod, to: &'p Pod) -> Self {
        let mut pair = Self::datagrams(from, to);
        for destination in to.addresses.iter().take(from.addresses.len()) {
            pair.streams.push(Stream::start(&from.network, SocketAddr::new(*destination, PORT)).unwrap());
        }
        pair
    }

    /// When it began.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Stops sending, and waits for what is under way.
    pub(crate) fn end(&self) {
        for (flow, _) in &self.flows {
            flow.end();
        }
    }

    pub(crate) fn tally(&self, since: Instant, until: Instant) -> Tally {
        let mut sum = Tally::default();
        for (flow, echo) in &self.flows {
            sum += flow.tally(&[*echo], since, until);
        }
        sum
    }

    /// Asserts that of what was sent from `since` on nothing was lost. After [`Pair::end`].
    pub(crate) fn all_answered(&self, event: &str, since: Instant) {
        self.answered_between(event, since, Instant::now());
    }

    /// The same of what was sent before `until`.
    pub(crate) fn answered_between(&self, event: &str, since: Instant, until: Instant) {
        let tally = self.tally(since, until);
        eprintln!("{event}: {}: {} sent, {} lost", self.what, tally.sent, tally.lost());
        assert!(tally.sent > 50, "{event}: {}: {tally:?}", self.what);
        assert_eq!(tally.lost(), 0, "{event}: {}", self.what);
    }

    /// Asserts that of what was sent from `since` on nothing came. After [`Pair::end`].
    pub(crate) fn none_arrived(&self, event: &str, since: Instant) {
        self.none_between(event, since, Instant::now());
    }

    /// The same of what was sent before `until`.
    pub(crate) fn none_between(&self, event: &str, since: Instant, until: Instant) {
        let tally = self.tally(since, until);
        eprintln!("{event}: {}: {} sent, {} leaked", self.what, tally.sent, tally.arrived);
        assert!(tally.sent > 50, "{event}: {}: {tally:?}", self.what);
        assert_eq!(tally.arrived, 0, "{event}: {}", self.what);
    }

    /// Asserts that its connections go on.
    pub(crate) fn connections_live(&self, event: &str) {
        assert!(!self.streams.is_empty());
        for (family, stream) in self.streams.iter().enumerate() {
            assert!(stream.lives(), "{event}: the connection from {} is cut, family {family}", self.what);
        }
        let exchanged: u64 = self.streams.iter().map(Stream::exchanged).sum();
        eprintln!("{event}: {}: {} connections live after {exchanged} messages", self.what, self.streams.len());
    }

    /// Asserts that its connections are cut.
    pub(crate) fn connections_are_cut(&self, event: &str) {
        assert!(!self.streams.is_empty());
        for (family, stream) in self.streams.iter().enumerate() {
            assert!(!stream.lives(), "{event}: the connection from {} goes on, family {family}", self.what);
        }
    }
}

/// Lets traffic run on for a while.
pub(crate) fn run_on() {
    std::thread::sleep(WHILE);
}
