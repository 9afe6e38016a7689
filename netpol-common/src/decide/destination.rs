//! What the pod's veth can say of a destination (decision D6): that it is final, or that a proxy may put another one in its
//! place, so that the packet is judged, or judged once more, where it leaves.

use super::Case;
use super::policy::{ask, class_of, is_isolated};
use crate::abi::{Direction, LOCAL_BACKENDS, LocalBackend, ServiceKey, address_kind, stamp};
use crate::parse::Address;
use crate::tables::Tables;

/// In the answer of [`look_up`]: a proxy is known to rewrite the destination, so the policy is not asked here.
pub(super) const REWRITTEN: u32 = 1 << 16;

/// What is known of the destination of the flow [`Case::key`], which the pod has started: a state of [`stamp`], and
/// [`REWRITTEN`]. One register, because the BPF target cannot return two.
#[inline(never)]
pub(super) fn look_up<T: Tables>(tables: &T, case: &mut Case) -> u32 {
    let peer = case.key.peer;
    // What nothing isolates needs no second judgement: when that changes, so does the epoch, and the flow comes by again.
    if Address::new(peer).is_multicast() || !is_isolated(tables, case.subject.set, Direction::Egress) {
        return u32::from(stamp::JUDGED);
    }
    let kind = class_of(tables, &peer).kind;
    let mut key = ServiceKey { address: peer, port: case.key.peer_port, protocol: case.key.protocol, pad: 0 };
    let mut found = tables.load_service(&key, &mut case.service);
    if !found && kind == address_kind::THIS_NODE {
        key.address = [0; 16];
        found = tables.load_service(&key, &mut case.service);
    }
    let (state, rewritten) = if found {
        let state = if local_backends_allowed(tables, case) { stamp::DEFERRED_UNLESS_LOCAL } else { stamp::DEFERRED };
        (state, REWRITTEN)
    } else if tables.is_service_range(&peer) {
        (stamp::DEFERRED, REWRITTEN)
    } else {
        match kind {
            // Neither is ever rewritten: nobody can answer for all.
            address_kind::POD | address_kind::BROADCAST => (stamp::JUDGED, 0),
            address_kind::THIS_NODE => (stamp::DEFERRED_UNLESS_LOCAL, 0),
            // A proxy that nobody told us of may rewrite any other address.
            _ => (stamp::DEFERRED, 0),
        }
    };
    u32::from(state) | rewritten
}

/// Whether the service found last has backends on this node, and the pod may reach all of them.
#[inline(always)]
fn local_backends_allowed<T: Tables>(tables: &T, case: &mut Case) -> bool {
    let Case { service, question, subject, key, .. } = case;
    let count = service.count as usize;
    if count == 0 || count > LOCAL_BACKENDS {
        return false;
    }
    question.set = subject.set;
    question.direction = Direction::Egress;
    question.protocol = key.protocol;
    question.has_port = true;
    let v4 = Address::new(key.peer).is_v4();
    let mut asked = false;
    for (index, LocalBackend { address, port, pad: _ }) in service.local.iter().enumerate() {
        if index >= count {
            break;
        }
        // A node port's row names backends of both families, and a proxy picks one of the packet's own.
        if Address::new(*address).is_v4() != v4 {
            continue;
        }
        asked = true;
        question.peer = *address;
        question.port = *port;
        if !ask(tables, question).allowed {
            return false;
        }
    }
    asked
}
