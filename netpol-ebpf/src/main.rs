//! The TC programs on a pod's host-side veth, and the one on every other device. Thin: they read the frame and the maps,
//! and [`netpol_common::decide`] answers.
//!
//! A frame flows `__sk_buff` → [`packet::SkbFrame`] and [`Hook`] → `judge_in` over [`maps::BpfTables`] → a TC code and a
//! mark. What passes goes on to the next program of the chain: ours never ends it (decision D2).
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
use netpol_common::decide::{Exit, Hook, Scratch, judge_in, judge_leaving};
use netpol_common::verdict::Verdict;

use crate::maps::BpfTables;
use crate::packet::{SkbFrame, SkbPacket};

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

/// At TC *egress* of a device that is no pod's: what pods send, by its real destination if that was deferred.
#[classifier]
fn host_egress(ctx: TcContext) -> i32 {
    const IP: u32 = u16::from_be_bytes([0x08, 0x00]).to_be() as u32;
    const IPV6: u32 = u16::from_be_bytes([0x86, 0xdd]).to_be() as u32;

    let skb = ctx.skb.skb;
    // SAFETY: as in `hook`.
    let exit = unsafe {
        let protocol = (*skb).protocol;
        Exit {
            ifindex: (*skb).ifindex,
            mark: (*skb).mark,
            ingress_ifindex: (*skb).ingress_ifindex,
            is_ip: protocol == IP || protocol == IPV6,
            segments: (*skb).gso_segs,
        }
    };
    if exit.ingress_ifindex == 0 {
        // Of this host, or wrapped by it: most packets of most devices.
        return TC_ACT_UNSPEC;
    }
    let Some(scratch) = maps::scratch() else { return TC_ACT_SHOT };
    // SAFETY: the helper reads a clock.
    let clock = || unsafe { bpf_ktime_get_boot_ns() };
    let verdict = judge_leaving(&BpfTables, &SkbPacket::new(skb), &exit, clock, scratch);
    carry_out(skb, &verdict, scratch)
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
    carry_out(skb, &verdict, scratch)
}

#[inline(always)]
#[cfg_attr(not(feature = "datapath-log"), expect(unused_variables, reason = "only the log reads the packet"))]
fn carry_out(skb: *mut __sk_buff, verdict: &Verdict, scratch: &Scratch) -> i32 {
    if verdict.passes() {
        // SAFETY: the program's context; one of its fields that a program may write.
        unsafe { (*skb).mark = verdict.mark };
        // The same number as TCX_NEXT: the next program of the chain decides.
        return TC_ACT_UNSPEC;
    }
    #[cfg(feature = "datapath-log")]
    // SAFETY: `skb` is the program's context.
    log::dropped(verdict, unsafe { (*skb).ifindex }, scratch);
    TC_ACT_SHOT
}

#[inline(always)]
fn hook(skb: *mut __sk_buff, direction: Direction) -> Hook {
    // SAFETY: the kernel hands a valid context to the program; its fields are read as the verifier demands, one by one.
    unsafe {
        Hook {
            direction,
            ifindex: (*skb).ifindex,
            mark: (*skb).mark,
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
