//! The node agent.
//!
//! Objects flow `source` → `intake` → `netpol_policy::compile` (the index) → `reconcile` → `dataplane`; interfaces flow
//! `interfaces` → `reconcile` → `dataplane` (attach). One task owns the compiler, one thread does the bpf calls (D16).

pub mod dataplane;
pub mod cli;
pub mod config;
pub mod http;
pub mod intake;
pub mod metrics;
pub mod source;
pub mod telemetry;
