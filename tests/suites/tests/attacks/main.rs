//! Attacks, each with real packets (decisions D5 to D8): first without the agent, where it must succeed, or it proves
//! nothing; then with it, where nothing may come through, and the drops must be counted under the reason of the very rule
//! that stops it. So taking the rule out makes its test fail.

mod connections;
mod family;
mod flood;
mod fragments;
mod identity;
mod link;
mod live;
mod malformed;
mod marks;
mod path_mtu;
mod ports_again;
mod scene;
mod tracking;
mod wire;

use netpol_suites::cells;
use serde_json::Value;

use scene::Scene;

/// Its name in rows of the conformance table.
const SUITE: &str = "attacks";

/// The family of frames in rows: what is of neither concerns both.
fn family_of(frames: &[Vec<u8>]) -> &'static str {
    let ether_type = |frame: &Vec<u8>| {
        let tagged = frame[12..14] == [0x81, 0];
        if tagged { [frame[16], frame[17]] } else { [frame[12], frame[13]] }
    };
    match frames.first().map(ether_type) {
        // IPv4 and its ARP.
        Some([8, 0 | 6]) => "ipv4",
        Some([0x86, 0xdd]) => "ipv6",
        _ => "dual",
    }
}

/// One attack by frames from the attacker's link.
struct Attack<'a> {
    /// What the node is like beside the pods on it.
    node: &'a dyn Fn(&Scene),
    frames: &'a dyn Fn(&Scene) -> Vec<Vec<u8>>,
    /// In the payload of what must not arrive.
    marker: &'a [u8],
    /// The pod at which it must not.
    target: &'a str,
    policies: Vec<Value>,
    /// Whether the attacker is a pod whose addresses are not checked.
    unchecked: bool,
    /// Direction and reason by which it is counted.
    counted: (&'a str, &'a str),
}

impl Attack<'_> {
    /// Carries it out without and with the agent. That one is there before the pods: those that it finds running are
    /// treated with more patience for a while.
    fn prove(self) {
        let Self { node, frames, marker, target, policies, unchecked, counted: (direction, reason) } = self;
        let mut scene = Scene::new();
        scene.populate();
        node(&scene);
        let (from, to) = (scene.wire("attacker"), scene.wire(target));
        from.send(&frames(&scene)).unwrap();
        assert!(to.sees(marker).unwrap(), "without the agent it does not come through: it is no attack");
        let mut scene = Scene::new();
        if unchecked {
            scene.check_no_addresses();
        }
        scene.start_agent(policies);
        scene.populate();
        node(&scene);
        let (from, to) = (scene.wire("attacker"), scene.wire(target));
        let sent = frames(&scene);
        from.send(&sent).unwrap();
        let is_seen = to.sees(marker).unwrap();
        // Which of them came through, the marker does not say.
        cells::report(SUITE, family_of(&sent), "-", sent.len(), if is_seen { sent.len() } else { 0 }).unwrap();
        assert!(!is_seen, "it has come through");
        scene.wait("the drop is counted", |scene| match scene.dropped(direction, reason) {
            0 => anyhow::bail!("none for {direction} {reason}: {:?}", scene.all_dropped()),
            _ => Ok(()),
        });
    }
}
