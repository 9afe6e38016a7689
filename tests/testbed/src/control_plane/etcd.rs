//! The store behind the API server, reached without it: to put there what today's API server would refuse but an older
//! one has stored, and to take its history away.
//!
//! Over etcd's JSON gateway: one small HTTP request each, with keys and values in base64.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::place::Place;

/// A client of one etcd.
#[derive(Clone, Debug)]
pub struct Etcd {
    address: SocketAddr,
    place: Place,
}

impl Etcd {
    pub(super) fn new(address: SocketAddr, place: Place) -> Self {
        Self { address, place }
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stores an object as if an API server had: JSON without any defaulting or validation. `key` is a resource's path
    /// below `/registry`, such as `networkpolicies/shop/db`.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn put(&self, key: &str, object: &Value) -> Result<()> {
        let key = format!("/registry/{key}");
        let request = json!({ "key": base64(key.as_bytes()), "value": base64(object.to_string().as_bytes()) });
        self.post("/v3/kv/put", &request).map(drop)
    }

    /// The store's current revision, which is what resourceVersions are.
    ///
    /// # Errors
    /// etcd does not answer, or not in the expected form.
    pub fn revision(&self) -> Result<i64> {
        let answer = self.post("/v3/kv/range", &json!({ "key": base64(b"/registry"), "count_only": true }))?;
        // The gateway prints 64-bit numbers as strings.
        let revision = answer.pointer("/header/revision").and_then(Value::as_str);
        revision.context("etcd's answer has no revision")?.parse().context("etcd's revision is no number")
    }

    /// Forgets all history before now: a list or watch that continues from an older resourceVersion gets 410 Gone.
    ///
    /// # Errors
    /// etcd does not answer, or has compacted this revision already.
    pub fn compact(&self) -> Result<()> {
        let revision = self.revision()?;
        self.post("/v3/kv/compaction", &json!({ "revision": revision.to_string(), "physical": true })).map(drop)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let address = self.address;
        let answer = self.place.run(move || {
            let mut stream = TcpStream::connect(address).context("cannot connect to etcd")?;
            stream.set_read_timeout(Some(Duration::from_secs(30))).context("setsockopt(SO_RCVTIMEO)")?;
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).context("write")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).context("read")?;
            Ok(answer)
        })?;
        let (head, content) = answer.split_once("\r\n\r\n").context("etcd's answer is not HTTP")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("etcd: {path}: {content}");
        }
        // The gateway may send the body in chunks, each behind a line with its length; its JSON is one line.
        let json = content.lines().find(|line| line.starts_with('{')).unwrap_or(content);
        serde_json::from_str(json).with_context(|| format!("etcd's answer is not JSON: {content:?}"))
    }
}

/// Standard base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(group);
        // Three bytes make four digits of six bits; missing bytes make padding.
        for digit in 0..4 {
            if digit > chunk.len() {
                text.push('=');
            } else {
                let index = (bits >> (18 - 6 * digit)) & 0x3f;
                text.push(char::from(ALPHABET[index as usize]));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_as_the_rfc_writes_it() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")];
        for (plain, encoded) in cases {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }
}
