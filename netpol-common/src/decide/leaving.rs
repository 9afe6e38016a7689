//! What pods send, where it leaves the node by a device that is no pod's (decision D6).

use super::case::Case;
use super::{Hook, Outcome, Scratch, deferred, fragment, read, sender};
use crate::abi::{Direction, PENDING_ENDPOINT, RULE_NONE, stamp};
use crate::parse::Frame;
use crate::tables::Tables;
use crate::verdict::{Reason, Verdict};

/// Where a packet leaves, and what its bytes do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Index of the device by which it leaves.
    pub ifindex: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// As in [`Hook`].
    pub ingress_ifindex: u32,
    /// What the kernel says of the protocol: IPv4 or IPv6.
    pub is_ip: bool,
    /// Segments of a GSO packet; 0 or 1 otherwise.
    pub segments: u32,
}

/// Judges one frame that leaves by a device that is no pod's, and counts it if something was left to be said about it.
///
/// `frame` starts at the network header; `clock` is the boot clock, in ns, read if need be. Packets of the host pass, and
/// those that a pod's veth has judged.
#[inline(always)]
pub fn judge_leaving<T: Tables, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    exit: &Exit,
    clock: impl FnOnce() -> u64,
    scratch: &mut Scratch,
) -> Verdict {
    let Scratch(case) = scratch;
    let Exit { ifindex, mark, ingress_ifindex, is_ip, segments } = *exit;
    let stamp = match sender::believed(tables, ingress_ifindex, mark) {
        Ok(stamp) if stamp::state(stamp) < stamp::DEFERRED => {
            return Verdict {
                reason: Reason::Passed,
                direction: Direction::Egress,
                endpoint: PENDING_ENDPOINT,
                rule: RULE_NONE,
                mark,
            };
        }
        other => other,
    };
    let hook = Hook {
        direction: Direction::Egress,
        ifindex,
        mark,
        ingress_ifindex,
        has_socket: false,
        link_header: false,
        vlan: false,
        now_ns: clock(),
        segments,
    };
    case.begin(&hook, frame.len());
    let outcome = match stamp {
        Ok(stamp) => {
            case.stamp = stamp;
            sender::blame(case, stamp::endpoint(stamp));
            by_real_destination(tables, frame, is_ip, case)
        }
        Err(lost) => {
            sender::blame(case, PENDING_ENDPOINT);
            Err(lost)
        }
    };
    case.reason = match outcome {
        Ok(()) => Reason::Passed,
        Err(reason) => {
            case.rule = RULE_NONE;
            case.count(tables, case.subject.endpoint, Direction::Egress, reason);
            reason
        }
    };
    case.verdict(tables)
}

#[inline(never)]
fn by_real_destination<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, is_ip: bool, case: &mut Case) -> Outcome {
    if !is_ip {
        return Err(Reason::EtherType);
    }
    frame.make_linear();
    read::<F, false>(frame, false, case.segments, &mut case.packet)?;
    fragment::find_ports(tables, case)?;
    deferred::judge(tables, frame, case)?;
    if case.packet.first_fragment {
        fragment::remember_ports(tables, case)?;
    }
    Ok(())
}
