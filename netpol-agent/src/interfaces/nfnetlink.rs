//! The netlink family of netfilter: dumps and transactions of nested attributes.
//!
//! Shared by whoever speaks to a subsystem of it: `conntrack` reads connections, [`crate::guard`] keeps a table of
//! nftables. Integers inside attributes are big endian, headers are of the host (include/uapi/linux/netfilter/nfnetlink.h).

use std::io;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
const ACK: u16 = 4;
/// `NLM_F_DUMP_INTR`: the list changed while it was read.
const INTERRUPTED: u16 = 0x10;
/// `NLM_F_DUMP`.
const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`: at the end of what is there.
pub const APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// Bytes of `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16;
const GENERIC: usize = 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// A transaction of nftables waits for that of others; one that takes longer than this is not coming.
const PATIENCE: Duration = Duration::from_secs(10);

/// Attributes under construction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one with these bytes.
    #[must_use]
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a text, NUL-terminated.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Adds a number of 32 bits.
    #[must_use]
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a number of 64 bits.
    #[must_use]
    pub fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds attributes inside one.
    #[must_use]
    pub fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// What was written.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A change in a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Subsystem in the upper byte, message in the lower.
    pub kind: u16,
    /// [`CREATE`] and the like.
    pub flags: u16,
    /// Address family, or netfilter's number for several.
    pub family: u8,
    /// What it says.
    pub attributes: Attributes,
}

/// The attributes of one level, without the flags in the upper two bits of their types.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a kind.
#[must_use]
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A number of 32 bits in an attribute.
#[must_use]
pub fn be32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A text in an attribute; what is not UTF-8 is replaced, since it is for people.
#[must_use]
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// A message of a datagram.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let message = Message {
            kind: u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?),
            payload: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The code of an error or acknowledgement: `Ok` is the latter.
fn code(payload: &[u8]) -> io::Result<()> {
    match payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

fn write(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, generic: [u8; GENERIC], attributes: &[u8]) {
    bytes.extend(((HEADER + GENERIC + attributes.len()) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(generic);
    bytes.extend(attributes);
}

/// A socket for requests, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Nfnetlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Nfnetlink {
    /// Opens it.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let _address = socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let patience = libc::timeval { tv_sec: PATIENCE.as_secs() as libc::time_t, tv_usec: 0 };
        // SAFETY: an open descriptor and a live timeval, with its size.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const patience).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { socket, sequence: 0, buffer: vec![0; 64 * 1024] })
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Lists what a request names; each answer's attributes, without its header, go through `each`. Repeated from the
    /// start while the list changes under it, a few times.
    pub fn dump<T>(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &Attributes,
        each: impl Fn(u8, &[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        const ATTEMPTS: usize = 5;
        let mut found = Vec::new();
        for _ in 0..ATTEMPTS {
            found.clear();
            if self.dump_once(kind, family, attributes, |family, attributes| found.extend(each(family, attributes)))? {
                break;
            }
        }
        Ok(found)
    }

    fn dump_once(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &Attributes,
        mut each: impl FnMut(u8, &[u8]),
    ) -> io::Result<bool> {
        let sequence = self.next_sequence();
        let mut request = Vec::new();
        write(&mut request, kind, DUMP, sequence, [family, 0, 0, 0], attributes.as_bytes());
        let _sent = self.socket.send(&request, 0)?;
        let mut whole = true;
        loop {
            let received = self.receive()?;
            for message in messages(&self.buffer[..received]) {
                // An answer to an earlier request that failed half way.
                if message.sequence != sequence {
                    continue;
                }
                whole &= message.flags & INTERRUPTED == 0;
                match message.kind {
                    NLMSG_DONE => return code(message.payload).map(|()| whole),
                    NLMSG_ERROR => code(message.payload)?,
                    _ => {
                        if let Some((generic, attributes)) = message.payload.split_at_checked(GENERIC) {
                            each(generic[0], attributes);
                        }
                    }
                }
            }
        }
    }

    /// Carries out all changes of a subsystem, or none.
    pub fn transact(&mut self, subsystem: u8, changes: &[Change]) -> io::Result<()> {
        let generic = [0, 0, 0, subsystem];
        let first = self.next_sequence();
        let mut bytes = Vec::new();
        write(&mut bytes, BATCH_BEGIN, 0, first, generic, &[]);
        let mut last = first;
        for (position, Change { kind, flags, family, attributes }) in changes.iter().enumerate() {
            last = self.next_sequence();
            let ack = if position + 1 == changes.len() { ACK } else { 0 };
            write(&mut bytes, *kind, flags | ack, last, [*family, 0, 0, 0], attributes.as_bytes());
        }
        let end = self.next_sequence();
        write(&mut bytes, BATCH_END, 0, end, generic, &[]);
        let _sent = self.socket.send(&bytes, 0)?;
        // Every change that is refused is answered, in order; the last one in any case. A batch that is refused as a
        // whole is answered at its begin.
        let mut result = Ok(());
        loop {
            let received = self.receive()?;
            for message in messages(&self.buffer[..received]) {
                let ours = message.sequence.wrapping_sub(first) <= end.wrapping_sub(first);
                if message.kind != NLMSG_ERROR || !ours {
                    continue;
                }
                let answer = code(message.payload);
                if result.is_ok() {
                    result = answer;
                }
                if message.sequence == last || message.sequence == first || message.sequence == end {
                    return result;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let inner = Attributes::new().be32(1, 7).text(2, "abc");
        let outer = Attributes::new().nested(3, &inner).be64(4, 9);
        let nested = attribute(outer.as_bytes(), 3).unwrap();
        assert_eq!(attribute(nested, 1).and_then(be32), Some(7));
        assert_eq!(attribute(nested, 2).map(text).as_deref(), Some("abc"));
        assert_eq!(attribute(outer.as_bytes(), 4), Some(&9_u64.to_be_bytes()[..]));
        assert_eq!(attribute(outer.as_bytes(), 5), None);
    }

    #[test]
    fn an_attribute_that_is_cut_ends_the_list() {
        let bytes = Attributes::new().be32(1, 7).be32(2, 8);
        let cut = &bytes.as_bytes()[..bytes.as_bytes().len() - 1];
        assert_eq!(attributes(cut).map(|(kind, _)| kind).collect::<Vec<_>>(), [1]);
    }
}
