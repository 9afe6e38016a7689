//! A frame as the verifier lets us read it.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative, bpf_skb_pull_data};
use netpol_common::parse::Frame;

/// Bytes that [`Frame::head`] reaches: Ethernet, IPv6, TCP.
const HEADERS: u32 = 14 + 40 + 20;

/// A frame in an `skb`.
pub(crate) struct SkbFrame {
    skb: *mut __sk_buff,
}

impl SkbFrame {
    /// Takes a frame, and makes its headers linear if they are not: then direct packet access reaches them. That fails
    /// only without memory; the parser then finds the frame truncated.
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        let frame = Self { skb };
        let (start, end) = frame.linear();
        let length = frame.len();
        if start + HEADERS as usize > end && ((end - start) as u32) < length {
            // SAFETY: `skb` is the program's context.
            let _status = unsafe { bpf_skb_pull_data(skb, if length < HEADERS { length } else { HEADERS }) };
        }
        frame
    }

    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        // SAFETY: `skb` is the program's context.
        unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) }
    }
}

impl Frame for SkbFrame {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: `skb` is the program's context.
        unsafe { (*self.skb).len }
    }

    /// By helper: it copes with offsets that the verifier cannot bound, and with frames that are not linear.
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes all `N` bytes, or fails.
        unsafe {
            if bpf_skb_load_bytes(self.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) != 0 {
                return None;
            }
            Some(bytes.assume_init())
        }
    }

    /// By direct packet access. `N` is 1 or even.
    #[inline(always)]
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let (start, end) = self.linear();
        let first = start + offset as usize;
        if first + N > end {
            return None;
        }
        let mut bytes = [0; N];
        if N == 1 || offset % 2 == 1 {
            for (position, byte) in bytes.iter_mut().enumerate() {
                // SAFETY: before the end of the linear part, as the verifier checks again.
                *byte = unsafe { ((first + position) as *const u8).read() };
            }
            return Some(bytes);
        }
        // By half-words: the target has no unaligned loads and would go byte by byte. Every even offset is a multiple of
        // two in memory, because a driver places the frame so that its headers are aligned.
        for (position, pair) in bytes.chunks_exact_mut(2).enumerate() {
            // SAFETY: as above.
            pair.copy_from_slice(&unsafe { ((first + 2 * position) as *const u16).read() }.to_ne_bytes());
        }
        Some(bytes)
    }
}

/// A packet in an `skb`, from its network header on: devices with tags, with another link header or with none look alike
/// so.
pub(crate) struct SkbPacket {
    skb: *mut __sk_buff,
}

impl SkbPacket {
    /// Takes a packet.
    #[inline(always)]
    pub(crate) const fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }
}

/// `BPF_HDR_START_NET` of the kernel's `enum bpf_hdr_start_off`.
const FROM_NETWORK_HEADER: u32 = 1;
/// Bytes that [`Frame::make_linear`] sees to: all headers that are read, in every packet that is not made to be odd.
const LINEAR: u32 = 256;

impl Frame for SkbPacket {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: `skb` is the program's context.
        unsafe { (*self.skb).len }
    }

    /// By the one helper that knows where the network header is. It reaches the linear part only.
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes all `N` bytes, also when it fails.
        unsafe {
            let to = bytes.as_mut_ptr().cast();
            if bpf_skb_load_bytes_relative(self.skb.cast(), offset, to, N as u32, FROM_NETWORK_HEADER) != 0 {
                return None;
            }
            Some(bytes.assume_init())
        }
    }

    #[inline(always)]
    fn make_linear(&self) {
        let length = self.len();
        // SAFETY: `skb` is the program's context. Without memory it fails, and the parser finds the packet truncated.
        let _status = unsafe { bpf_skb_pull_data(self.skb, if length < LINEAR { length } else { LINEAR }) };
    }
}
