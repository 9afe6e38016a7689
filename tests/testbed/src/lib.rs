//! Nodes and pods made of namespaces, a control plane, and probes, for tests and `cargo xtask run`.

mod command;
pub mod control_plane;
pub mod interrupt;
pub mod namespace;
pub mod node;
pub mod outside;
pub mod place;
pub mod pod;
pub mod probe;
pub mod process;
mod sctp;
pub mod servers;
