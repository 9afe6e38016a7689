//! What must hold for arbitrary bytes. The fuzz targets in `fuzz/` are these functions and nothing else, so that the normal
//! tests can call them with every input of the corpus.
//!
//! Each takes bytes and panics if something does not hold.

mod parser;
mod policy;

pub use self::parser::parser;
pub use self::policy::policy;

/// A target's body.
pub type Body = fn(&[u8]);

/// The targets by name, which is also that of their binary and of their corpus' folder.
pub const TARGETS: [(&str, Body); 2] = [("parser", parser), ("policy", policy)];
