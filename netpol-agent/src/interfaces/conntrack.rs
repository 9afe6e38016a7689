//! Connections that were there before the agent, read once from the kernel's connection tracking.
//!
//! When a pod that already runs is adopted, the programs would take whoever speaks next for the initiator of a
//! connection, and a server's reply would be judged as egress. The kernel knows better: each of its entries says which
//! side began, and what addresses the pod itself saw, before and after translation (decision D5). Spoken directly as
//! nfnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h): one dump, four levels of attributes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::nfnetlink::{Attributes, Nfnetlink, attributes};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const CT_GET: u16 = (1 << 8) | 1;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

/// `IPS_SEEN_REPLY`.
const SEEN_REPLY: u32 = 1 << 1;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port, network order.
    pub source_port: [u8; 2],
    /// Destination port, network order.
    pub destination_port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
}

/// A connection in which both sides have spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// As the initiator sent it.
    pub original: Tuple,
    /// As the answer comes, after translation.
    pub reply: Tuple,
}

/// All TCP, UDP and SCTP connections of this network namespace that have seen a reply.
///
/// Fails where the kernel has no connection tracking; the caller then lives with the bounded reverse window alone.
pub fn connections() -> io::Result<Vec<Connection>> {
    let mut netlink = Nfnetlink::open()?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        found.extend(netlink.dump(CT_GET, family as u8, &Attributes::new(), |_, bytes| connection(bytes))?);
    }
    Ok(found)
}

fn connection(bytes: &[u8]) -> Option<Connection> {
    let (mut original, mut reply, mut status) = (None, None, 0);
    for (kind, value) in attributes(bytes) {
        match kind {
            CTA_TUPLE_ORIG => original = tuple(value),
            CTA_TUPLE_REPLY => reply = tuple(value),
            CTA_STATUS => status = u32::from_be_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    (status & SEEN_REPLY != 0).then_some(Connection { original: original?, reply: reply? })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut source, mut destination, mut protocol, mut source_port, mut destination_port) =
        (None, None, None, None, None);
    for (kind, value) in attributes(bytes) {
        match kind {
            CTA_TUPLE_IP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        CTA_IP_V4_SRC => source = v4(value),
                        CTA_IP_V4_DST => destination = v4(value),
                        CTA_IP_V6_SRC => source = v6(value),
                        CTA_IP_V6_DST => destination = v6(value),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        CTA_PROTO_NUM => protocol = value.first().copied(),
                        CTA_PROTO_SRC_PORT => source_port = value.try_into().ok(),
                        CTA_PROTO_DST_PORT => destination_port = value.try_into().ok(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // Without ports it is ICMP or another protocol whose flows are short-lived: not worth planting.
    Some(Tuple {
        source: source?,
        destination: destination?,
        source_port: source_port?,
        destination_port: destination_port?,
        protocol: protocol?,
    })
}

fn v4(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).ok().map(|octets| IpAddr::V4(Ipv4Addr::from(octets)))
}

fn v6(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 16]>::try_from(bytes).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend((kind | 0x8000).to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple_bytes(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
        let ip = [attribute(CTA_IP_V4_SRC, &source), attribute(CTA_IP_V4_DST, &destination)].concat();
        let proto = [
            attribute(CTA_PROTO_NUM, &[6]),
            attribute(CTA_PROTO_SRC_PORT, &ports[0].to_be_bytes()),
            attribute(CTA_PROTO_DST_PORT, &ports[1].to_be_bytes()),
        ]
        .concat();
        [attribute(CTA_TUPLE_IP, &ip), attribute(CTA_TUPLE_PROTO, &proto)].concat()
    }

    #[test]
    fn both_directions_of_a_translated_connection_are_read() {
        let original = tuple_bytes([10, 0, 0, 1], [10, 96, 0, 1], [40000, 80]);
        let reply = tuple_bytes([10, 0, 0, 2], [10, 0, 0, 1], [8080, 40000]);
        let bytes = [
            attribute(CTA_TUPLE_ORIG, &original),
            attribute(CTA_TUPLE_REPLY, &reply),
            attribute(CTA_STATUS, &SEEN_REPLY.to_be_bytes()),
        ]
        .concat();
        let read = connection(&bytes).unwrap();
        assert_eq!(read.original.destination.to_string(), "10.96.0.1");
        assert_eq!(read.reply.source.to_string(), "10.0.0.2");
        assert_eq!(read.reply.source_port, 8080_u16.to_be_bytes());
    }

    #[test]
    fn a_connection_without_a_reply_and_a_cut_message_are_left_out() {
        let original = tuple_bytes([10, 0, 0, 1], [10, 96, 0, 1], [40000, 80]);
        let bytes = [
            attribute(CTA_TUPLE_ORIG, &original),
            attribute(CTA_TUPLE_REPLY, &original),
            attribute(CTA_STATUS, &0_u32.to_be_bytes()),
        ]
        .concat();
        assert_eq!(connection(&bytes), None);
        assert_eq!(connection(&bytes[..20]), None);
    }
}
