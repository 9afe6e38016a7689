//! What pods send, where it leaves the node by a device that is no pod's (decision D6).

use super::case::Case;
use super::{Hook, Outcome, Scratch, deferred, fragment, read, sender};
use crate::abi::{Direction, PENDING_ENDPOINT, RULE_NONE, stamp};
use crate::parse::Frame;
use crate::tables::Tables;
use crate::verdict::{Reason, Verdict};

/// Judges one frame that leaves by a device that is no pod's, and counts it if something was left to be said about it.
///
/// `frame` starts at the network header; `is_ip` is what the kernel says of the protocol there. Packets of the host pass, and
/// those that a pod's veth has judged.
#[inline(always)]
pub fn judge_leaving<T: Tables, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    is_ip: bool,
    hook: &Hook,
    scratch: &mut Scratch,
) -> Verdict {
    let Scratch(case) = scratch;
    case.begin(hook, frame.len());
    case.rule = RULE_NONE;
    case.subject.endpoint = PENDING_ENDPOINT;
    let outcome = match sender::find(tables, case) {
        Ok(()) if case.is_deferred() => by_real_destination(tables, frame, is_ip, case),
        other => other,
    };
    case.reason = match outcome {
        Ok(()) => Reason::Passed,
        Err(reason) => {
            case.rule = RULE_NONE;
            case.count(tables, case.subject.endpoint, Direction::Egress, reason);
            reason
        }
    };
    let verdict = case.verdict(tables);
    // Without a stamp of ours the mark is somebody else's.
    if case.settled { verdict } else { Verdict { mark: hook.mark, ..verdict } }
}

#[inline(never)]
fn by_real_destination<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, is_ip: bool, case: &mut Case) -> Outcome {
    sender::blame(case, stamp::endpoint(case.stamp));
    if !is_ip {
        return Err(Reason::EtherType);
    }
    frame.make_linear();
    read::<F, false>(frame, false, case.segments, &mut case.packet)?;
    fragment::find_ports(tables, case);
    deferred::judge(tables, frame, case)?;
    if case.packet.first_fragment {
        fragment::remember_ports(tables, case)?;
    }
    Ok(())
}
