//! Whose packet comes to a hook on its way out: what a pod sends bears the stamp of the pod's own veth (decision D6).

use super::{Case, Outcome};
use crate::abi::{
    CAME_FROM_POD, Direction, InterfaceRow, PENDING_ENDPOINT, Settings, interface_flags, setting_flags, stamp,
};
use crate::tables::Tables;
use crate::verdict::Reason;

/// Where a packet comes from, as far as stamps are concerned.
#[derive(Clone, Copy)]
struct Origin {
    /// By the pod bridge or a pod's veth: it must be stamped.
    from_pod: bool,
    /// The endpoint behind the veth; 0 if it is none, or if the pod is not known yet.
    endpoint: u32,
    is_veth: bool,
}

#[inline(always)]
fn origin<T: Tables>(tables: &T, ingress_ifindex: u32) -> Origin {
    let (endpoint, kind) = match tables.interface(ingress_ifindex) {
        Some(InterfaceRow { endpoint, flags }) => (endpoint, flags),
        None => (PENDING_ENDPOINT, 0),
    };
    let is_bridge = kind & interface_flags::POD_BRIDGE != 0;
    let is_veth = !is_bridge && kind & interface_flags::POD_VETH != 0;
    Origin { from_pod: is_bridge || is_veth, endpoint, is_veth }
}

/// The stamp that is believed; [`stamp::NONE`] for what needs none, or does not yet.
///
/// The stamp of a packet from elsewhere means nothing: other parts of the kernel copy marks to packets of their own
/// making, and connection marks back to packets.
#[inline(always)]
fn believe<T: Tables>(tables: &T, origin: Origin, mark: u32) -> Result<u16, Reason> {
    let Origin { from_pod, endpoint, is_veth } = origin;
    if !from_pod {
        return Ok(stamp::NONE);
    }
    let Settings { flags, mark_shift, .. } = tables.settings().ok_or(Reason::TableMissing)?;
    let stamp = stamp::of_mark(mark, mark_shift);
    if stamp::state(stamp) != stamp::NONE && (!is_veth || stamp::endpoint(stamp) == endpoint) {
        Ok(stamp)
    } else if flags & setting_flags::ARMED != 0 {
        Err(Reason::MarkLost)
    } else {
        Ok(stamp::NONE)
    }
}

/// The stamp of a packet, if it is believed.
#[inline(always)]
pub(super) fn believed<T: Tables>(tables: &T, ingress_ifindex: u32, mark: u32) -> Result<u16, Reason> {
    if ingress_ifindex == 0 {
        // Made on this host, be it around a pod's packet that was looked at before it was wrapped.
        return Ok(stamp::NONE);
    }
    believe(tables, origin(tables, ingress_ifindex), mark)
}

/// Finds the stamp of a packet that comes to a pod, and remembers by which device it came.
#[inline(never)]
pub(super) fn find<T: Tables>(tables: &T, case: &mut Case) -> Outcome {
    if case.ingress_ifindex == 0 {
        return Ok(());
    }
    let origin = origin(tables, case.ingress_ifindex);
    case.came_by = case.ingress_ifindex;
    if origin.from_pod {
        case.came_by |= CAME_FROM_POD;
    }
    if origin.is_veth {
        case.came_endpoint = origin.endpoint;
        if origin.endpoint == PENDING_ENDPOINT {
            // It will be another one's.
            case.came_by = 0;
        }
    }
    match believe(tables, origin, case.mark) {
        Ok(stamp) => {
            case.stamp = stamp;
            if stamp == stamp::NONE && origin.from_pod {
                // Its veth has no program yet: what the flow will come by, and whose it is, its next packets say.
                case.came_by = 0;
            }
            Ok(())
        }
        Err(lost) => {
            blame(case, PENDING_ENDPOINT);
            Err(lost)
        }
    }
}

/// What comes next is about the sender's egress.
#[inline(always)]
pub(super) const fn blame(case: &mut Case, endpoint: u32) {
    case.direction = Direction::Egress;
    case.subject.endpoint = endpoint;
}
