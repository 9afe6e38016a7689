//! Links and addresses over rtnetlink: one blocking socket for dumps, one on a thread of its own for notifications.
//!
//! Message shapes of `netlink-packet-route` change with every minor version, so this is the only module that sees them
//! (`conntrack` speaks another netlink family).

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Multicast groups of rtnetlink (`linux/rtnetlink.h`).
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;

/// Large enough for any datagram the kernel builds for a dump (it uses at most 32 KiB).
const BUFFER: usize = 64 * 1024;
/// Notifications of a burst of pods must not overflow the socket; an overflow is answered by listing again.
const NOTIFICATION_BUFFER: usize = 4 * 1024 * 1024;

/// The device on which kube-proxy keeps the addresses of all Services in its mode `ipvs`, so that IPVS gets to see what is
/// sent to them (`defaultDummyDevice` of pkg/proxy/ipvs).
const SERVICES: &CStr = c"kube-ipvs0";

/// A netlink exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A system call failed.
    #[error("netlink {call}: {source}")]
    Syscall {
        /// Which one.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel answered with an error.
    #[error("netlink request {request}: {source}")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// The kernel's errno.
        source: io::Error,
    },
}

fn syscall(call: &'static str) -> impl FnOnce(io::Error) -> NetlinkError {
    move |source| NetlinkError::Syscall { call, source }
}

/// A network device of the host, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name; may change at any time, never used as an identity.
    pub name: String,
    /// Index of the bridge (or other master) it is a port of.
    pub master: Option<u32>,
    /// Whether it is one end of a veth pair.
    pub veth: bool,
    /// Id, in this namespace, of the network namespace its peer is in.
    pub peer_namespace: Option<i32>,
    /// Index of the peer in that namespace.
    pub peer_index: Option<u32>,
    /// Hardware address.
    pub mac: Option<[u8; 6]>,
    /// Whether it is the loopback device.
    pub loopback: bool,
    /// Whether it is an intermediate functional block, to which ingress traffic is redirected for shaping.
    pub ifb: bool,
    /// Whether its frames have no link header.
    pub headerless: bool,
}

/// A routing rule that looks at the packet mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkRule {
    /// "IPv4" or "IPv6".
    pub family: &'static str,
    /// Its place among the rules.
    pub priority: u32,
    /// What the mark is compared with.
    pub mark: u32,
    /// The bits that are compared.
    pub mask: u32,
}

/// What the notification thread saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A link is new or changed.
    Changed(Link),
    /// A link is gone.
    Gone(u32),
    /// An address of this node came or went: list them again.
    AddressesChanged,
    /// Notifications were lost: list everything again.
    Overflow,
}

fn link(message: LinkMessage) -> Link {
    let layer = message.header.link_layer_type;
    let mut link = Link {
        index: message.header.index,
        loopback: layer == LinkLayerType::Loopback,
        headerless: is_headerless(layer),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            // 0 is sent when a port is released from its bridge.
            LinkAttribute::Controller(index) => link.master = (index != 0).then_some(index),
            LinkAttribute::LinkNetNsId(id) => link.peer_namespace = (id >= 0).then_some(id),
            LinkAttribute::Link(index) => link.peer_index = Some(index),
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::LinkInfo(infos) => {
                link.veth = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
                link.ifb = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Ifb)));
            }
            _ => {}
        }
    }
    link
}

/// Devices that carry bare IP: tun and WireGuard, tunnels, PPP and modems (`linux/if_arp.h`).
const fn is_headerless(layer: LinkLayerType) -> bool {
    matches!(
        layer,
        LinkLayerType::None
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ip6gre
            | LinkLayerType::Ppp
            | LinkLayerType::Rawip
    )
}

/// A socket for requests.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a request socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(syscall("socket"))?;
        // Without strict checking the kernel ignores IFA_TARGET_NETNSID and answers with the host's own addresses.
        socket.set_netlink_get_strict_chk(true).map_err(syscall("setsockopt(NETLINK_GET_STRICT_CHK)"))?;
        let _address = socket.bind_auto().map_err(syscall("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(syscall("connect"))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// One dump, repeated while the kernel says that the list changed under it.
    fn dump<T>(
        &mut self,
        request: &'static str,
        message: &RouteNetlinkMessage,
        each: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        /// A list that never holds still is taken as it is: callers look again.
        const ATTEMPTS: usize = 5;
        let mut found = Vec::new();
        for _ in 0..ATTEMPTS {
            found.clear();
            if self.dump_once(request, message, |message| found.extend(each(message)))? {
                break;
            }
        }
        Ok(found)
    }

    /// Answers whether the dump is of one moment.
    fn dump_once(
        &mut self,
        request: &'static str,
        message: &RouteNetlinkMessage,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<bool, NetlinkError> {
        /// `NLM_F_DUMP_INTR`.
        const INTERRUPTED: u16 = 0x10;
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_DUMP | NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message.clone()));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        let _sent = self.socket.send(&bytes, 0).map_err(syscall("send"))?;
        let mut buffer = vec![0_u8; BUFFER];
        let mut whole = true;
        loop {
            let received = self.socket.recv(&mut &mut buffer[..], 0).map_err(syscall("recv"))?;
            for reply in messages(&buffer[..received]) {
                let reply = match reply {
                    Ok(reply) => reply,
                    // One device that this version cannot read must not hide all others.
                    Err(error) => {
                        tracing::warn!(request, error, "left out of a netlink answer");
                        continue;
                    }
                };
                // An answer to an earlier request that failed half way.
                if reply.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= reply.header.flags & INTERRUPTED == 0;
                match reply.payload {
                    NetlinkPayload::Done(_) => return Ok(whole),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(NetlinkError::Refused { request, source: error.to_io() });
                    }
                    NetlinkPayload::InnerMessage(inner) => each(inner),
                    _ => {}
                }
            }
        }
    }

    /// All links of this namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump("RTM_GETLINK", &request, |message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(link(message)),
            _ => None,
        })
    }

    /// All addresses of this node, loopback included: each is "the pod's own node" as a source (decision D7).
    ///
    /// Those of [`SERVICES`] are none: what is sent there is not delivered there, and would be judged by an address that
    /// it never reaches. kube-proxy masquerades what the node itself sends from them.
    pub fn node_addresses(&mut self) -> Result<BTreeSet<IpAddr>, NetlinkError> {
        // SAFETY: a NUL-terminated name. Without such a device it is 0, which no address is on.
        let services = unsafe { libc::if_nametoindex(SERVICES.as_ptr()) };
        let all = self.addresses(None)?;
        Ok(all.into_iter().filter(|(index, _)| *index != services).map(|(_, address)| address).collect())
    }

    /// The routing rules that look at the packet mark.
    pub fn mark_rules(&mut self) -> Result<Vec<MarkRule>, NetlinkError> {
        let mut found = Vec::new();
        for (family, name) in [(AddressFamily::Inet, "IPv4"), (AddressFamily::Inet6, "IPv6")] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let request = RouteNetlinkMessage::GetRule(message);
            found.extend(self.dump("RTM_GETRULE", &request, |message| match message {
                RouteNetlinkMessage::NewRule(message) => mark_rule(name, &message),
                _ => None,
            })?);
        }
        Ok(found)
    }

    /// Addresses of one device inside the network namespace that this one knows by `namespace`.
    ///
    /// Reads them from here, by id: entering the namespace would need CAP_SYS_ADMIN. A pod with CAP_NET_ADMIN can add
    /// any address to its device, so the answer may only be used to find which pod's recorded address it bears.
    pub fn peer_addresses(&mut self, namespace: i32, device: u32) -> Result<BTreeSet<IpAddr>, NetlinkError> {
        Ok(self
            .addresses(Some(namespace))?
            .into_iter()
            .filter(|(index, _)| *index == device)
            .map(|(_, address)| address)
            .collect())
    }

    fn addresses(&mut self, namespace: Option<i32>) -> Result<Vec<(u32, IpAddr)>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = AddressMessage::default();
            message.header.family = family;
            if let Some(id) = namespace {
                message.attributes.push(AddressAttribute::TargetNetNsId(id));
            }
            let request = RouteNetlinkMessage::GetAddress(message);
            found.extend(self.dump("RTM_GETADDR", &request, |message| match message {
                RouteNetlinkMessage::NewAddress(message) => device_address(&message),
                _ => None,
            })?);
        }
        Ok(found)
    }
}

/// Device and address of an answer. On point-to-point devices IFA_ADDRESS is the peer's; IFA_LOCAL, where there is one,
/// is ours.
fn device_address(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => address = Some(*local),
            AddressAttribute::Address(other) if address.is_none() => address = Some(*other),
            _ => {}
        }
    }
    address.map(|address| (message.header.index, address))
}

/// A rule compares the mark if it has a mask; one that was given without has all bits.
fn mark_rule(family: &'static str, message: &RuleMessage) -> Option<MarkRule> {
    let (mut priority, mut mark, mut mask) = (0, 0, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::FwMark(value) => mark = *value,
            RuleAttribute::FwMask(value) => mask = Some(*value),
            _ => {}
        }
    }
    mask.filter(|mask| *mask != 0).map(|mask| MarkRule { family, priority, mark, mask })
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Result<NetlinkMessage<RouteNetlinkMessage>, String>> + use<'_> {
    std::iter::from_fn(move || {
        if bytes.len() < 16 {
            return None;
        }
        let length = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if length < 16 || length > bytes.len() {
            bytes = &[];
            return Some(Err(format!("message length {length}")));
        }
        let message = decode(&bytes[..length]);
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some(message)
    })
}

fn decode<T: NetlinkDeserializable>(bytes: &[u8]) -> Result<NetlinkMessage<T>, String> {
    NetlinkMessage::<T>::deserialize(bytes).map_err(|error| error.to_string())
}

/// Makes room for a burst. With CAP_NET_ADMIN beyond `net.core.rmem_max`, which is 208 KiB where nobody raised it.
fn enlarge(socket: &Socket) -> Result<(), NetlinkError> {
    let size = NOTIFICATION_BUFFER as libc::c_int;
    // SAFETY: an open descriptor and a live integer, with its size.
    let forced = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if forced == 0 { Ok(()) } else { socket.set_rx_buf_sz(size).map_err(syscall("setsockopt(SO_RCVBUF)")) }
}

/// Follows links and addresses until `event` answers false. Blocks: runs on a thread of its own.
///
/// The socket is bound before `started` is called, so that a listing made after that misses nothing.
pub fn follow(started: impl FnOnce(), mut event: impl FnMut(LinkEvent) -> bool) -> Result<(), NetlinkError> {
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(syscall("socket"))?;
    let _address = socket.bind_auto().map_err(syscall("bind"))?;
    enlarge(&socket)?;
    for group in [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR] {
        socket.add_membership(group).map_err(syscall("setsockopt(NETLINK_ADD_MEMBERSHIP)"))?;
    }
    started();
    let mut buffer = vec![0_u8; BUFFER];
    loop {
        let received = match socket.recv(&mut &mut buffer[..], 0) {
            Ok(received) => received,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                if !event(LinkEvent::Overflow) {
                    return Ok(());
                }
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(syscall("recv")(error)),
        };
        for message in messages(&buffer[..received]) {
            let next = match message {
                Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(inner), .. }) => match inner {
                    // Bridges also announce their ports with family AF_BRIDGE, without the attributes that we read.
                    RouteNetlinkMessage::NewLink(message)
                        if message.header.interface_family == AddressFamily::Unspec =>
                    {
                        LinkEvent::Changed(link(message))
                    }
                    RouteNetlinkMessage::DelLink(message)
                        if message.header.interface_family == AddressFamily::Unspec =>
                    {
                        LinkEvent::Gone(message.header.index)
                    }
                    RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
                        LinkEvent::AddressesChanged
                    }
                    _ => continue,
                },
                Ok(_) => continue,
                // One message that this version cannot read may be the one that mattered.
                Err(_) => LinkEvent::Overflow,
            };
            if !event(next) {
                return Ok(());
            }
        }
    }
}
