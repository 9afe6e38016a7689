//! NetworkPolicy as pure data.
//!
//! Objects (JSON values, from files or from the API server) are decoded, defaulted and validated by [`decode`] into
//! the [`model`]. From there two independent ways lead to a verdict: [`compile`] turns a [`model::Cluster`] into the
//! tables of `netpol-common`, which `netpol_common::decide` reads; [`oracle`] answers from the text of the Kubernetes
//! API alone. Property tests hold one against the other.

pub mod compile;
pub mod decode;
pub mod model;
pub mod oracle;
pub mod selector;
mod syntax;
#[cfg(feature = "testing")]
pub mod testing;
pub mod workloads;
