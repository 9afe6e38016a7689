//! The boot clock, which the programs stamp flows with: it goes on while the machine sleeps.

/// Seconds of the boot clock (`CLOCK_BOOTTIME`), as programs count them.
#[must_use]
pub fn boot_seconds() -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live timespec; the clock exists on every kernel that has BPF.
    let _zero = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    now.tv_sec as u32
}
