//! Feature `datapath-log`: a line for each packet that is dropped, through aya-log's ring to the agent's log.
//!
//! A statement of aya-log costs hundreds of instructions and much stack, so this is for debugging only. It is a function
//! of its own, called when the verdict is there: the judging functions have returned their stack by then.

use aya_log_ebpf::warn;
use netpol_common::abi::Direction;
use netpol_common::decide::Scratch;
use netpol_common::verdict::Verdict;

/// Writes the line; without room in the ring it is lost.
///
/// The reason comes last and as its number: the agent knows the names.
#[inline(always)]
pub(crate) fn dropped(verdict: &Verdict, ifindex: u32, scratch: &Scratch) {
    let reason = verdict.reason as u32;
    match verdict.direction {
        Direction::Egress => egress(reason, ifindex, verdict.endpoint, scratch),
        Direction::Ingress => ingress(reason, ifindex, verdict.endpoint, scratch),
    }
}

/// Two functions rather than a text that is chosen: the verifier wants every length to be a constant.
macro_rules! statement {
    ($name:ident, $text:tt) => {
        #[inline(never)]
        fn $name(reason: u32, ifindex: u32, endpoint: u32, scratch: &Scratch) {
            let packet = scratch.packet();
            warn!(
                scratch,
                $text,
                packet.source.bytes(),
                u16::from_be_bytes(packet.source_port),
                packet.destination.bytes(),
                u16::from_be_bytes(packet.destination_port),
                packet.protocol,
                ifindex,
                endpoint,
                reason
            );
        }
    };
}

statement!(egress, "dropped egress from {:i} port {} to {:i} port {} protocol {} ifindex {} endpoint {} reason {}");
statement!(ingress, "dropped ingress from {:i} port {} to {:i} port {} protocol {} ifindex {} endpoint {} reason {}");
