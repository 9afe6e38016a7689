//! Feature `datapath-log`: what the programs write about each dropped packet, as lines of the agent's own log.
//!
//! The ring is pinned beside the other maps although the ABI does not know it: a program that is adopted goes on writing
//! to the ring that it was loaded with, so the next agent has to read that one. Agents without the feature leave the pin
//! alone; `uninstall` removes it with everything else.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use netpol_common::verdict::Reason;
use tracing::warn;

use super::{DataplaneError, Pins};

/// The name that aya-log gives its ring.
pub(super) const RING: &str = "AYA_LOGS";

/// How long a line waits at most; the ring holds several hundred.
const PAUSE: Duration = Duration::from_millis(50);

/// Forwards lines for as long as the process lives, and gives the object back without its ring.
///
/// One reader does for all objects, which share the pinned ring. The object's programs have to be loaded already: they
/// refer to the ring by its descriptor, which is the reader's from here on.
pub(super) fn forward(mut ebpf: Ebpf, pins: &Pins) -> Result<Ebpf, DataplaneError> {
    let error = |message: String| DataplaneError::Log { path: pins.map(RING), message };
    let mut logger = EbpfLogger::init_with_logger(&mut ebpf, Forward).map_err(|source| error(source.to_string()))?;
    std::thread::Builder::new()
        .name("datapath-log".into())
        .spawn(move || {
            loop {
                logger.flush();
                std::thread::sleep(PAUSE);
            }
        })
        .map_err(|source| error(format!("starting a thread: {source}")))?;
    Ok(ebpf)
}

/// From the `log` crate, which aya-log speaks, to `tracing`.
struct Forward;

impl Log for Forward {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        warn!(target: "netpol_agent::datapath", "{}", readable(&record.args().to_string()));
    }

    fn flush(&self) {}
}

/// Writes the reason by its name, and IPv4 addresses without the prefix that the programs keep them under.
fn readable(line: &str) -> String {
    let named = line.rsplit_once(' ').and_then(|(rest, number)| {
        let reason = Reason::ALL.get(number.parse::<usize>().ok()?)?;
        Some(format!("{rest} {}", reason.name()))
    });
    named.unwrap_or_else(|| line.to_owned()).replace("::ffff:", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_programs_is_told_with_names_and_plain_addresses() {
        let raw = "dropped egress from ::ffff:10.0.1.2 port 40000 to fd00::1 port 80 protocol 6 reason 1";
        let told = "dropped egress from 10.0.1.2 port 40000 to fd00::1 port 80 protocol 6 reason no_rule";
        assert_eq!(readable(raw), told);
        // Of a program that is newer than this agent.
        assert_eq!(readable("dropped reason 250"), "dropped reason 250");
    }
}
