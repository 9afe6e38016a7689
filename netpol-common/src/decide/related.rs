//! ICMP errors: they belong to the flow of the packet they quote (path MTU discovery and traceroute depend on them).

use super::case::{Case, Entry};
use super::{Outcome, tracking};
use crate::abi::Direction;
use crate::flow;
use crate::parse::{Address, Frame, Inner, inner};
use crate::tables::{FlowTable, Tables};
use crate::verdict::Reason;

/// Looks up the flow that an error speaks of. What the pod receives an error about, it has sent; and the other way round.
#[inline(never)]
pub(super) fn look_up<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, case: &mut Case) -> Entry {
    if let Some(quoted) = inner(frame, &case.packet)
        && quoted.source.same(case.packet.destination)
    {
        // An error goes back to the sender of what it quotes, else it could carry data anywhere.
        let Inner { source, destination, source_port, destination_port, protocol } = quoted;
        let (local, peer, local_port, peer_port) = match case.direction {
            Direction::Ingress => (source, destination, source_port, destination_port),
            Direction::Egress => (destination, source, destination_port, source_port),
        };
        case.key = flow::key_of(case.ifindex, local_port, peer_port, peer, protocol);
        if find(tables, case, local, FlowTable::Confirmed)
            || find(tables, case, local, FlowTable::OverConfirmed)
            || find(tables, case, local, FlowTable::Embryonic)
            || find(tables, case, local, FlowTable::OverEmbryonic)
        {
            return Entry::Quoted;
        }
        case.name_flow();
    }
    Entry::None
}

/// An error about a flow that was judged again, if it had to be. The error leaves no trace in the flow: it would else keep
/// one alive, or confirm one, that nobody answers.
#[inline(always)]
pub(super) fn go_on<T: Tables>(tables: &T, case: &mut Case) -> Outcome {
    match case.judged {
        Reason::Passed => {}
        Reason::Revoked if tracking::keeps_established(tables) => {}
        reason => return Err(reason),
    }
    case.state = case.state_of_row();
    Ok(())
}

#[inline(never)]
fn find<T: Tables>(tables: &T, case: &mut Case, local: Address, table: FlowTable) -> bool {
    tables.load_flow(table, &case.key, &mut case.row)
        && Address::new(case.row.local).same(local)
        && flow::is_alive(table, case.key.protocol, &case.row, case.now())
}
