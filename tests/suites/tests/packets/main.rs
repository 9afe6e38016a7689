//! The loaded programs against the verdict function, packet by packet: what the compiler of the BPF target and the
//! verifier made of it must answer as the same source answers here. Needs root; touches no interface.

mod both;
mod corners;
mod generated;
mod ipv6;
mod loaded;
mod policy;
mod services;
