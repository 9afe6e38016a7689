//! Frames as a hostile pod can make them, put on its own link, and whether they come out elsewhere.
//!
//! Each frame carries a marker that nobody else sends. It has arrived if the marker is in anything that a packet socket in
//! the other namespace has seen coming in.

use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use netpol_suites::frames::{checksum, ipv6};
use netpol_testbed::place::Place;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// Long enough for what is delivered at all: nothing is sent again.
const PATIENCE: Duration = Duration::from_millis(400);

/// How long a frame waits for room in the socket's buffer: many times what a link of the slowest machine needs to empty it.
const ROOM: Duration = Duration::from_secs(5);

/// All protocols, as a packet socket's protocol is written: network order.
const EVERYTHING: i32 = (libc::ETH_P_ALL as u16).to_be() as i32;

/// A packet socket on a device.
pub(crate) struct Wire {
    socket: Socket,
}

impl Wire {
    /// Opens it in a namespace.
    pub(crate) fn open(place: &Place, device: &str) -> Result<Self> {
        place.run(|| {
            let raw = Some(Protocol::from(EVERYTHING));
            let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), raw).context("socket(AF_PACKET)")?;
            let name = std::ffi::CString::new(device)?;
            // SAFETY: a NUL-terminated name.
            let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
            if index == 0 {
                return Err(Error::last_os_error()).with_context(|| format!("if_nametoindex({device})"));
            }
            socket.bind(&address(index)?).context("bind")?;
            Ok(Self { socket })
        })
    }

    /// Sends frames, in order, and no faster than the link takes them: with one processor for both of its ends, the socket's
    /// buffer fills (EAGAIN).
    pub(crate) fn send(&self, frames: &[Vec<u8>]) -> Result<()> {
        for frame in frames {
            let begin = Instant::now();
            let sent = loop {
                match self.socket.send(frame) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock && begin.elapsed() < ROOM => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    sent => break sent.context("send")?,
                }
            };
            anyhow::ensure!(sent == frame.len(), "{sent} of {} bytes sent", frame.len());
        }
        Ok(())
    }

    /// Whether a marker comes in within a while. What the namespace itself sends does not count.
    pub(crate) fn sees(&self, marker: &[u8]) -> Result<bool> {
        let begin = Instant::now();
        let mut buffer = vec![0_u8; 65_536];
        loop {
            let mut from = SockAddrStorage::zeroed();
            let mut size = from.size_of();
            // SAFETY: a buffer and an address of the sizes that are passed.
            let length = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                    from.view_as::<libc::sockaddr>(),
                    &raw mut size,
                )
            };
            if length < 0 {
                let error = Error::last_os_error();
                if error.kind() != ErrorKind::WouldBlock {
                    return Err(error).context("recvfrom");
                }
                if begin.elapsed() > PATIENCE {
                    return Ok(false);
                }
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            // SAFETY: a packet socket's addresses are of this type.
            let outgoing = unsafe { from.view_as::<libc::sockaddr_ll>() }.sll_pkttype == libc::PACKET_OUTGOING;
            let frame = &buffer[..length as usize];
            if !outgoing && frame.windows(marker.len()).any(|part| part == marker) {
                return Ok(true);
            }
        }
    }
}

fn address(index: u32) -> Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage is larger than the address, all of whose bit patterns are valid.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = EVERYTHING as u16;
    link.sll_ifindex = i32::try_from(index)?;
    // SAFETY: it was filled in just now, with its own length.
    Ok(unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) })
}

/// The hardware address of a device.
pub(crate) fn mac(place: &Place, device: &str) -> Result<[u8; 6]> {
    let mut command = Command::new("ip");
    command.args(["-o", "link", "show", device]);
    place.prepare(&mut command)?;
    let output = command.output().context("cannot start ip")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let address = text.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
    let bytes = address.with_context(|| format!("no address: {text}"))?.split(':');
    let bytes = bytes.map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().ok().context("not six bytes")
}

/// An ICMPv6 message with its checksum.
pub(crate) fn icmpv6(source: [u8; 16], destination: [u8; 16], hop_limit: u8, mut message: Vec<u8>) -> Vec<u8> {
    let mut pseudo = [source, destination].concat();
    pseudo.extend((message.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    pseudo.extend(&message);
    let sum = checksum(&pseudo);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv6(source, destination, 58, hop_limit, &message)
}
