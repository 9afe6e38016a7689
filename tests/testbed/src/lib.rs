//! Nodes and pods made of namespaces, a control plane, and probes, for tests and `cargo xtask run`.

pub mod control_plane;
pub mod place;
pub mod process;
