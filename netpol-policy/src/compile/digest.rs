//! Content digests: what an allocated id stands for, in 128 bits of SHA-256.
//!
//! A restarted agent recognises sets, classes, port sets and rules by them (decision D10), so the encoding must not
//! depend on anything that lives in one process: no ids, no addresses, no map order. Every part is written with its
//! length, so that no two contents share an encoding.

use netpol_common::abi::Digest;
use sha2::{Digest as _, Sha256};

/// Writes a content, part by part.
pub(super) struct Content(Sha256);

impl Content {
    /// Starts a content of a kind; equal parts of different kinds have different digests.
    pub(super) fn new(kind: &str) -> Self {
        let mut content = Self(Sha256::new());
        content.text(kind);
        content
    }

    /// A number.
    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.0.update(number.to_be_bytes());
        self
    }

    /// The length of a list that follows.
    pub(super) fn length(&mut self, length: usize) -> &mut Self {
        self.number(length as u64)
    }

    /// A string.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.length(bytes.len());
        self.0.update(bytes);
        self
    }

    /// The first 128 bits.
    pub(super) fn digest(self) -> Digest {
        let mut digest = Digest::default();
        digest.copy_from_slice(&self.0.finalize()[..size_of::<Digest>()]);
        digest
    }
}
