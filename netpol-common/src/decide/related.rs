//! ICMP errors: they belong to the flow of the packet they quote (path MTU discovery and traceroute depend on them).

use super::{Case, Outcome, admit, link, tracking};
use crate::abi::Direction;
use crate::flow;
use crate::parse::{Address, Frame, Inner, inner};
use crate::tables::{FlowTable, Tables};
use crate::verdict::Reason;

/// Judges an ICMP error.
#[inline(never)]
pub(super) fn icmp_error<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, case: &mut Case) -> Outcome {
    link::redirects(case)?;
    link::addresses(tables, case)?;
    if find_quoted(tables, frame, case) {
        // The error leaves no trace in the flow: it would else keep one alive, or confirm one, that nobody answers.
        case.rule = case.row.rule;
        if !case.row_is_current() {
            match tracking::judge_again(tables, case) {
                Ok(()) => {}
                Err(Reason::Revoked) if tracking::keeps_established(tables) => {}
                Err(reason) => return Err(reason),
            }
        }
        case.state = case.state_of_row();
        return Ok(());
    }
    case.name_flow();
    admit::icmp_error(tables, case)
}

/// Looks up the flow that an error speaks of. What the pod receives an error about, it has sent; and the other way round.
#[inline(never)]
fn find_quoted<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, case: &mut Case) -> bool {
    let Some(quoted) = inner(frame, &case.packet) else { return false };
    let Inner { source, destination, source_port, destination_port, protocol } = quoted;
    // An error goes back to the sender of what it quotes, else it could carry data anywhere.
    if !source.same(case.packet.destination) {
        return false;
    }
    let (local, peer, local_port, peer_port) = match case.direction {
        Direction::Ingress => (source, destination, source_port, destination_port),
        Direction::Egress => (destination, source, destination_port, source_port),
    };
    case.key = flow::key_of(case.ifindex, local_port, peer_port, peer, protocol);
    find(tables, case, local, FlowTable::Confirmed) || find(tables, case, local, FlowTable::Embryonic)
}

#[inline(always)]
fn find<T: Tables>(tables: &T, case: &mut Case, local: Address, table: FlowTable) -> bool {
    tables.load_flow(table, &case.key, &mut case.row)
        && Address::new(case.row.local).same(local)
        && flow::is_alive(table, case.key.protocol, &case.row, case.now())
}
