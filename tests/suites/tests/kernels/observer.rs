//! Programs that stamp or note packets and judge nothing.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use netpol_suites::kernel::raw::{self, Instruction as I, R0, R1, R2, R3, R4, R6, R10, Size};
use netpol_testbed::place::Place;

/// Bytes of each packet that are noted: Ethernet and IPv6 headers and both ports. No packet of interest is shorter.
const PREFIX: usize = 58;
/// The same in whole words.
const WORDS: usize = PREFIX.div_ceil(8);

/// Fields of `struct __sk_buff`.
const MARK: i16 = 8;
const INGRESS_IFINDEX: i16 = 36;
const SK: i16 = 168;

/// `bpf_skb_load_bytes`, `bpf_map_push_elem`.
const LOAD_BYTES: i32 = 26;
const PUSH: i32 = 87;
/// A full queue gives its oldest element up.
const BPF_EXIST: i32 = 2;
/// The next program, or filter, of the chain decides.
const NEXT: i32 = -1;

/// A packet as a program saw it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Seen {
    /// Its mark.
    pub(crate) mark: u32,
    /// Index of the device that it came in by; 0 for none.
    pub(crate) ingress_ifindex: u32,
    /// Whether a socket is attached to it.
    pub(crate) socket: u32,
    pad: u32,
    prefix: [u8; WORDS * 8],
}

impl Default for Seen {
    fn default() -> Self {
        Self { mark: 0, ingress_ifindex: 0, socket: 0, pad: 0, prefix: [0; WORDS * 8] }
    }
}

impl Seen {
    /// Source, destination, and their ports, if it is UDP in a whole packet.
    pub(crate) fn datagram(&self) -> Option<(IpAddr, IpAddr, [u16; 2])> {
        let field = |at: usize, size: usize| self.prefix.get(at..at + size);
        let (source, destination, next, transport): (IpAddr, IpAddr, u8, usize) = match field(12, 2)? {
            [0x08, 0x00] => {
                let address = |at| Some(IpAddr::from(<[u8; 4]>::try_from(field(at, 4)?).ok()?));
                (address(26)?, address(30)?, self.prefix[23], 14 + usize::from(self.prefix[14] & 0xf) * 4)
            }
            [0x86, 0xdd] => {
                let address = |at| Some(IpAddr::from(<[u8; 16]>::try_from(field(at, 16)?).ok()?));
                (address(22)?, address(38)?, self.prefix[20], 54)
            }
            _ => return None,
        };
        let port = |at| Some(u16::from_be_bytes(field(at, 2)?.try_into().ok()?));
        let ports = [port(transport)?, port(transport + 2)?];
        (i32::from(next) == libc::IPPROTO_UDP).then_some((source, destination, ports))
    }
}

/// Where a program sits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hook {
    Ingress,
    Egress,
}

impl Hook {
    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Notes all packets that pass a hook of a device.
#[derive(Debug)]
pub(crate) struct Observer {
    queue: OwnedFd,
}

impl Observer {
    pub(crate) fn new(place: &Place, device: &str, hook: Hook) -> Result<Self> {
        let size = size_of::<Seen>();
        let queue = raw::queue(u32::try_from(size)?, 512)?;
        // The note is built at the end of the stack.
        let base = -i16::try_from(size)?;
        let at = |field: usize| -> Result<i16> { Ok(base + i16::try_from(field)?) };
        let mut code = vec![
            I::copy(R6, R1),
            I::load(Size::Word, R2, R6, MARK),
            I::store(Size::Word, R10, at(0)?, R2),
            I::load(Size::Word, R2, R6, INGRESS_IFINDEX),
            I::store(Size::Word, R10, at(4)?, R2),
            I::mov(R3, 0),
            I::load(Size::Double, R2, R6, SK),
            I::skip_if_zero(R2, 1),
            I::mov(R3, 1),
            I::store(Size::Word, R10, at(8)?, R3),
            I::mov(R3, 0),
            I::store(Size::Word, R10, at(12)?, R3),
        ];
        for word in 0..WORDS {
            code.push(I::store(Size::Double, R10, at(16 + word * 8)?, R3));
        }
        // Fails for shorter packets, and leaves zeros.
        code.extend([I::copy(R1, R6), I::mov(R2, 0), I::copy(R3, R10), I::add(R3, at(16)?.into())]);
        code.extend([I::mov(R4, i32::try_from(PREFIX)?), I::call(LOAD_BYTES)]);
        code.extend(I::map(R1, &queue));
        code.extend([I::copy(R2, R10), I::add(R2, base.into()), I::mov(R3, BPF_EXIST), I::call(PUSH)]);
        code.extend([I::mov(R0, NEXT), I::EXIT]);
        attach(place, device, hook, &code)?;
        Ok(Self { queue })
    }

    /// The datagrams to a port that have passed since the last question.
    pub(crate) fn datagrams_to(&self, port: u16) -> Result<Vec<(IpAddr, IpAddr, Seen)>> {
        self.datagrams(|[_, to]| to == port)
    }

    /// The datagrams from a port that have passed since the last question.
    pub(crate) fn datagrams_from(&self, port: u16) -> Result<Vec<(IpAddr, IpAddr, Seen)>> {
        self.datagrams(|[from, _]| from == port)
    }

    fn datagrams(&self, wanted: impl Fn([u16; 2]) -> bool) -> Result<Vec<(IpAddr, IpAddr, Seen)>> {
        let mut datagrams = Vec::new();
        // SAFETY: integers only, and the queue's values are of this size.
        while let Some(seen) = unsafe { raw::pop::<Seen>(&self.queue) }? {
            if let Some((source, destination, ports)) = seen.datagram()
                && wanted(ports)
            {
                datagrams.push((source, destination, seen));
            }
        }
        Ok(datagrams)
    }
}

/// Writes a mark on all packets that pass a hook of a device.
pub(crate) fn stamp(place: &Place, device: &str, hook: Hook, mark: i32) -> Result<()> {
    let code = [I::mov(R2, mark), I::store(Size::Word, R1, MARK, R2), I::mov(R0, NEXT), I::EXIT];
    attach(place, device, hook, &code)
}

/// Puts a program at a hook; it goes with the device.
fn attach(place: &Place, device: &str, hook: Hook, code: &[I]) -> Result<()> {
    let program = raw::load(code)?;
    let path = PathBuf::from(format!("/sys/fs/bpf/{device}_{}", hook.name()));
    place.run(|| raw::pin(&program, &path))?;
    // Another program of ours may have brought the qdisc.
    let _ = tc(place, &format!("qdisc add dev {device} clsact"));
    let path = path.display();
    tc(place, &format!("filter add dev {device} {} bpf direct-action object-pinned {path}", hook.name()))
}

fn tc(place: &Place, arguments: &str) -> Result<()> {
    let mut command = Command::new("tc");
    command.args(arguments.split(' '));
    place.prepare(&mut command)?;
    let output = command.output().context("cannot start tc")?;
    ensure!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
