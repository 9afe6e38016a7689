//! Nodes and pods made of namespaces, a control plane, and probes, for tests and `cargo xtask run`.
//!
//! [`node::Node`] is a network namespace with a pod bridge and mounts of its own, [`pod::Pod`] one on a veth of that
//! bridge, [`outside::Outside`] all the hosts beyond the node. [`servers::Servers`] listens in any of them, and
//! [`probe`] tells by real packets which connections work. [`agent::Agent`] is netpol-agent on a node.
//! [`sandbox::Sandbox`] puts these together out of manifests, [`control_plane`] is a real API server. [`kernel`] says what
//! the kernel under all of them was built with.
//!
//! Nothing here leaves a trace, not even if the process is killed. Namespaces have no names: they live as long as a
//! descriptor of this process is open on them, and links, mounts and pins live in them. Children end with the process.

pub mod agent;
mod command;
pub mod control_plane;
pub mod interrupt;
pub mod kernel;
pub mod namespace;
pub mod node;
pub mod outside;
pub mod place;
pub mod pod;
pub mod probe;
pub mod process;
pub mod sandbox;
mod sctp;
pub mod servers;
pub mod traffic;
