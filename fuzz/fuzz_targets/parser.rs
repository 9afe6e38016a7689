//! The target `parser`: see `netpol_policy::testing::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| netpol_policy::testing::fuzz::parser(data));
