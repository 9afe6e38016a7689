//! A real Kubernetes with Flannel, kube-proxy and kubelets (`cargo xtask cluster`), with the image and the manifests that
//! people install: the cluster's own life, what happens to nodes and pods under traffic, and what of a packet on its way
//! between nodes is judged where.
//!
//! `cargo xtask test --suite kubernetes -- --nocapture` prints every figure: datagrams lost and leaked in each case, how
//! long a starting pod waits, and memory.

mod cluster;
mod encapsulation;
mod flows;
mod hosts;
mod machines;
mod nodes;
mod probes;
mod site;
mod starting;
mod updates;
