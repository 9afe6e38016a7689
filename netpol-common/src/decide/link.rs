//! The link and what pretends on it (decision D8): addresses that are not the pod's own, the protocols that every link
//! needs, frames that are not IP, and the overlay's own port.

use super::subject::Subject;
use super::{Case, Outcome, class_of, policy};
use crate::abi::{Settings, address_kind};
use crate::flow;
use crate::parse::{Address, Frame, Kind, advertised_target, arp_sender, ethernet_source, icmp_type, protocol};
use crate::tables::Tables;
use crate::verdict::Reason;

const ND_HOP_LIMIT: u8 = 255;

/// A pod sends from its own addresses, and is delivered only what is addressed to it: bridge flooding brings it more,
/// and a frame for another pod's link address can carry an outside destination past the sender's policy.
#[inline(never)]
pub(super) fn addresses<T: Tables>(tables: &T, case: &Case) -> Outcome {
    if !case.subject.checks_addresses() || case.subject.owns(tables, case.local()) {
        return Ok(());
    }
    if case.is_from_pod() {
        Err(Reason::SpoofedSource)
    } else if case.local().is_multicast() || class_of(tables, &case.local().bytes()).kind == address_kind::BROADCAST {
        Ok(())
    } else {
        Err(Reason::NotMine)
    }
}

/// Redirects and router advertisements are a router's business (CVE-2020-10749).
#[inline(always)]
pub(super) fn redirects(case: &Case) -> Outcome {
    let packet = &case.packet;
    if case.is_from_pod()
        && packet.protocol == protocol::ICMP
        && matches!(packet.kind, Kind::IcmpError | Kind::IcmpOther)
        && matches!(packet.detail, icmp_type::REDIRECT | icmp_type::ROUTER_ADVERTISEMENT)
    {
        return Err(Reason::NeighborDiscovery);
    }
    Ok(())
}

/// Whether a packet with this port, on the node's side, is of an overlay.
///
/// IP in IP always is: a tunnel device without a remote address, as Flannel's is, unwraps it from whomever
/// (`ip_tunnel_lookup` in net/ipv4/ip_tunnel.c), and no policy can allow it by its protocol.
#[inline(never)]
fn is_overlay<T: Tables>(tables: &T, protocol: u8, port: [u8; 2]) -> bool {
    if protocol == protocol::IPIP {
        return true;
    }
    if protocol != protocol::UDP {
        return false;
    }
    let Some(Settings { overlay_ports: [a, b, c, d], .. }) = tables.settings() else { return false };
    let port = u16::from_ne_bytes(port);
    port != 0
        && (port == u16::from_ne_bytes(a)
            || port == u16::from_ne_bytes(b)
            || port == u16::from_ne_bytes(c)
            || port == u16::from_ne_bytes(d))
}

/// Whether a node may be at the other end. It is in every multicast group of its bridge, and its overlay's socket is
/// bound to no address.
#[inline(always)]
fn peer_is_node<T: Tables>(tables: &T, case: &Case) -> bool {
    flow::peer(&case.packet, case.direction).is_multicast()
        || address_kind::is_heard_by_a_node(class_of(tables, &case.key.peer).kind)
}

/// A pod must not speak the overlay to a node: what the node unwraps has any source address the pod likes.
#[inline(always)]
pub(super) fn overlay<T: Tables>(tables: &T, case: &Case) -> Outcome {
    if case.is_from_pod()
        && is_overlay(tables, case.packet.protocol, case.packet.destination_port)
        && peer_is_node(tables, case)
    {
        return Err(Reason::Overlay);
    }
    Ok(())
}

/// Whether a proxy has given what a pod sends a destination that is a node's overlay.
#[inline(always)]
pub(super) fn leads_to_overlay<T: Tables>(tables: &T, destination: &[u8; 16], protocol: u8, port: [u8; 2]) -> bool {
    is_overlay(tables, protocol, port) && address_kind::is_heard_by_a_node(class_of(tables, destination).kind)
}

/// Whether an answer to this packet would be overlay traffic from the pod.
#[inline(always)]
pub(super) fn is_from_overlay<T: Tables>(tables: &T, case: &Case) -> bool {
    !case.is_from_pod()
        && is_overlay(tables, case.packet.protocol, case.packet.source_port)
        && peer_is_node(tables, case)
}

/// ARP passes, pending or not; but a pod only speaks for itself, or asks whether an address is free.
#[inline(never)]
pub(super) fn arp<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, case: &Case) -> Outcome {
    if !case.is_from_pod() || !case.subject.checks_addresses() {
        return Ok(());
    }
    let sender = arp_sender(frame).ok_or(Reason::Truncated)?;
    if sender.is_unspecified() || case.subject.owns(tables, sender) { Ok(()) } else { Err(Reason::SpoofedSource) }
}

/// Whether a pod may use an address on its link: one of its own, or the link-local one of its Ethernet address.
#[inline(always)]
fn is_own_on_link<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, subject: &Subject, address: Address) -> bool {
    if address.is_link_local()
        && let Some(mac) = ethernet_source(frame)
        && address.same(Address::link_local_of(mac))
    {
        return true;
    }
    subject.owns(tables, address)
}

/// Neighbour discovery passes, pending or not, if it is of this link: nobody but a neighbour can send hop limit 255.
/// It is never fragmented (RFC 6980).
#[inline(never)]
pub(super) fn neighbor_discovery<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, case: &Case) -> Outcome {
    let Case { packet, subject, .. } = case;
    if packet.hop_limit != ND_HOP_LIMIT || packet.first_fragment {
        return Err(Reason::NeighborDiscovery);
    }
    if !case.is_from_pod() {
        return Ok(());
    }
    if matches!(packet.detail, icmp_type::V6_ROUTER_ADVERTISEMENT | icmp_type::V6_REDIRECT) {
        return Err(Reason::NeighborDiscovery);
    }
    if !subject.checks_addresses() {
        return Ok(());
    }
    // Duplicate address detection and the first router solicitation have no source yet.
    let without_source = packet.source.is_unspecified()
        && matches!(packet.detail, icmp_type::V6_NEIGHBOR_SOLICITATION | icmp_type::V6_ROUTER_SOLICITATION);
    if !without_source && !is_own_on_link(tables, frame, subject, packet.source) {
        return Err(Reason::SpoofedSource);
    }
    if packet.detail == icmp_type::V6_NEIGHBOR_ADVERTISEMENT {
        let target = advertised_target(frame, packet).ok_or(Reason::Truncated)?;
        if !is_own_on_link(tables, frame, subject, target) {
            return Err(Reason::SpoofedSource);
        }
    }
    Ok(())
}

/// Multicast listener messages pass, pending or not: a snooping bridge else withholds neighbour discovery from the pod.
#[inline(never)]
pub(super) fn multicast_listener<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, case: &Case) -> Outcome {
    let Case { packet, subject, .. } = case;
    if case.is_from_pod()
        && subject.checks_addresses()
        && !packet.source.is_unspecified()
        && !is_own_on_link(tables, frame, subject, packet.source)
    {
        return Err(Reason::SpoofedSource);
    }
    Ok(())
}

/// Frames that no policy can speak of: dropped for an isolated pod; a tag is never taken from a pod, because tagged
/// frames pass the bridge's netfilter hooks by.
#[inline(never)]
pub(super) fn not_ip<T: Tables>(tables: &T, case: &Case) -> Outcome {
    if case.subject.is_closed() {
        return Err(Reason::Pending);
    }
    let tagged = case.packet.kind == Kind::Vlan;
    if (tagged && case.is_from_pod()) || policy::is_isolated(tables, case.subject.set, case.direction) {
        Err(if tagged { Reason::VlanTag } else { Reason::EtherType })
    } else {
        Ok(())
    }
}
