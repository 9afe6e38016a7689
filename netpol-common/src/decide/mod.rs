//! The one verdict function (decision D1).

mod policy;

pub use policy::{PolicyVerdict, class_of, is_isolated, policy_verdict};
