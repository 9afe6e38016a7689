//! The compiled TC programs, as the build script made them.

/// The BPF object; aligned, because it is parsed in place.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpol-ebpf"));
