//! The TC programs on a pod's host-side veth. Thin: they read the frame and the maps, and
//! [`netpol_common::decide::judge_in`] answers.
//!
//! A frame flows `__sk_buff` → [`packet::SkbFrame`] and [`Hook`] → `judge_in` over [`maps::BpfTables`] → a TC code. What
//! passes goes on to the next program of the chain: ours never ends it (decision D2).
#![no_std]
#![no_main]
#![deny(unused_must_use, unused_results)]

#[cfg(feature = "datapath-log")]
mod log;
mod maps;
mod packet;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use netpol_common::abi::Direction;
use netpol_common::decide::{Hook, judge_in};

use crate::maps::BpfTables;
use crate::packet::SkbFrame;

/// At TC *ingress* of a pod's host-side veth: what the pod sends.
#[classifier]
fn pod_egress(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, Direction::Egress)
}

/// At TC *egress* of a pod's host-side veth: what the pod receives.
#[classifier]
fn pod_ingress(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, Direction::Ingress)
}

/// Does nothing: what the cost of the other programs is compared with.
#[classifier]
fn empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[inline(always)]
fn run(skb: *mut __sk_buff, direction: Direction) -> i32 {
    // The element always exists; the verifier wants to see it checked.
    let Some(scratch) = maps::scratch() else { return TC_ACT_SHOT };
    let frame = SkbFrame::new(skb);
    let verdict = judge_in(&BpfTables, &frame, &hook(skb, direction), scratch);
    if verdict.passes() {
        // The same number as TCX_NEXT: the next program of the chain decides.
        return TC_ACT_UNSPEC;
    }
    #[cfg(feature = "datapath-log")]
    // SAFETY: `skb` is the program's context.
    log::dropped(&verdict, unsafe { (*skb).ifindex }, scratch);
    TC_ACT_SHOT
}

#[inline(always)]
fn hook(skb: *mut __sk_buff, direction: Direction) -> Hook {
    // SAFETY: the kernel hands a valid context to the program; its fields are read as the verifier demands, one by one.
    unsafe {
        Hook {
            direction,
            ifindex: (*skb).ifindex,
            ingress_ifindex: (*skb).ingress_ifindex,
            has_socket: !(*skb).__bindgen_anon_2.sk.is_null(),
            link_header: true,
            vlan: (*skb).vlan_present != 0,
            now_ns: bpf_ktime_get_boot_ns(),
            segments: (*skb).gso_segs,
        }
    }
}

/// Never reached: a panic would be an endless loop, which the verifier refuses.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The helpers in use do not ask for GPL, some that debugging uses do.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
