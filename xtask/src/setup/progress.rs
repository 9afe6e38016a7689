//! What a person sees of a command that takes minutes: how far it is. On a terminal one line that changes, elsewhere
//! (CI's log) a line every half minute.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// Between two lines where lines are kept.
const QUIET: Duration = Duration::from_secs(30);

/// Counts towards a known number.
pub(super) struct Progress {
    what: &'static str,
    total: usize,
    done: usize,
    begin: Instant,
    last: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Begins at 0 of `total`; `what` is counted, such as "packages".
    pub(super) fn new(what: &'static str, total: usize) -> Self {
        Self { what, total, done: 0, begin: Instant::now(), last: None, terminal: stderr().is_terminal() }
    }

    /// One more is done.
    pub(super) fn advance(&mut self) {
        self.done += 1;
        let pause = if self.terminal { Duration::from_millis(200) } else { QUIET };
        if self.last.is_none_or(|last| last.elapsed() >= pause) {
            self.last = Some(Instant::now());
            self.print();
        }
    }

    fn print(&self) {
        let Self { what, total, done, begin, last: _, terminal } = self;
        let (start, end) = if *terminal { ("\r", "\x1b[K") } else { ("", "\n") };
        let mut stderr = stderr().lock();
        // Nothing useful can be done about a closed standard error.
        let _ = write!(stderr, "{start}setup:   {done} of {total} {what}, {} s{end}", begin.elapsed().as_secs());
        let _ = stderr.flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.last.is_some() {
            // What comes next begins on a line of its own.
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
