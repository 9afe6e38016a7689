//! What the kernel and user space share, and nothing else: the layout of every map ([`abi`]), the parser of a frame
//! ([`parse`]), the rules of connection tracking ([`flow`]), the typed outcomes ([`verdict`]) and the one verdict
//! function ([`decide`]).
//!
//! A frame flows `parse` → `decide` (flow look-up → class → rules → ports) → [`verdict::Verdict`]. The TC programs of
//! `netpol-ebpf` run exactly this code over BPF maps; tests, and later `explain`, run it over tables in memory, so
//! that an explanation cannot drift from enforcement (decision D1).
#![no_std]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod decide;
pub mod flow;
pub mod parse;
pub mod tables;
pub mod verdict;
