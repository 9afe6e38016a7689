//! Nodes and pods made of network namespaces, a control plane, and probes, for tests and `cargo xtask run`.

pub mod control_plane;
