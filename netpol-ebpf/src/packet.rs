//! A frame as the verifier lets us read it.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_pull_data};
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

    #[inline(always)]
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let (start, end) = self.linear();
        let first = start + offset as usize;
        if first + N > end {
            return None;
        }
        // SAFETY: the bytes lie before the end of the linear part, as the verifier checks again.
        Some(unsafe { (first as *const [u8; N]).read() })
    }
}
