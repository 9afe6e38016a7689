//! Whose packet comes to a hook on its way out: what a pod sends bears the stamp of the pod's own veth (decision D6).

use super::{Case, Outcome};
use crate::abi::{
    CAME_FROM_POD, Direction, InterfaceRow, PENDING_ENDPOINT, Settings, interface_flags, setting_flags, stamp,
};
use crate::tables::Tables;
use crate::verdict::Reason;

/// Finds the stamp that is believed ([`stamp::NONE`] if there is none), and remembers by which device the packet came.
///
/// The stamp of a packet from elsewhere means nothing: other parts of the kernel copy marks to packets of their own
/// making, and connection marks back to packets.
#[inline(never)]
pub(super) fn find<T: Tables>(tables: &T, case: &mut Case) -> Outcome {
    if case.ingress_ifindex == 0 {
        // Made on this host, be it around a pod's packet that was looked at before it was wrapped.
        return Ok(());
    }
    let Settings { flags, mark_shift, .. } = tables.settings().ok_or(Reason::TableMissing)?;
    let (endpoint, kind) = match tables.interface(case.ingress_ifindex) {
        Some(InterfaceRow { endpoint, flags }) => (endpoint, flags),
        None => (PENDING_ENDPOINT, 0),
    };
    case.came_by = case.ingress_ifindex;
    if kind & (interface_flags::POD_BRIDGE | interface_flags::POD_VETH) == 0 {
        return Ok(());
    }
    case.came_by |= CAME_FROM_POD;
    let stamp = stamp::of_mark(case.mark, mark_shift);
    let mut believed = stamp::state(stamp) != stamp::NONE;
    if kind & interface_flags::POD_BRIDGE == 0 {
        believed &= stamp::endpoint(stamp) == endpoint;
        case.came_endpoint = endpoint;
        if endpoint == PENDING_ENDPOINT {
            // It will be another one's.
            case.came_by = 0;
        }
    }
    if believed {
        case.stamp = stamp;
    } else if flags & setting_flags::ARMED != 0 {
        blame(case, PENDING_ENDPOINT);
        return Err(Reason::MarkLost);
    } else {
        // Its veth has no program yet: what the flow will come by, and whose it is, its next packets say.
        case.came_by = 0;
    }
    Ok(())
}

/// What comes next is about the sender's egress.
#[inline(always)]
pub(super) const fn blame(case: &mut Case, endpoint: u32) {
    case.direction = Direction::Egress;
    case.subject.endpoint = endpoint;
}
