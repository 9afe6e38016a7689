//! What fuzzing takes beside Rust: libFuzzer comes as C++ source with its crate.

use anyhow::Result;

use super::packages;

/// Programs, and the package that brings each.
const PROGRAMS: [(&str, &str); 1] = [("c++", "g++")];

pub(super) fn missing() -> Option<String> {
    packages::missing_of(&PROGRAMS)
}

pub(super) fn install() -> Result<()> {
    packages::install_of(&PROGRAMS)
}
