//! The node agent.
//!
//! Objects flow `source` → `intake` → `netpol_policy::compile` (the index) → `reconcile` → `dataplane`; interfaces flow
//! `interfaces` → `reconcile` → `dataplane` (attach). One thread owns the compiler and does all bpf calls (D16);
//! `metrics` and `http` tell about it. [`agent`] puts the rooms together.

pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dataplane;
pub mod guard;
pub mod http;
pub mod intake;
pub mod interfaces;
pub mod metrics;
pub mod reconcile;
pub mod source;
pub mod telemetry;
