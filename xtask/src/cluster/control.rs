//! How a machine is told what to run: its first process listens on a socket in the state's folder, since only children
//! of that process are started with the machine's process namespace and reaped by it.
//!
//! One request per connection, each a JSON document: the client ends its half after it, and reads the answer to its end.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A daemon to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Daemon {
    /// By which it is listed.
    pub(super) name: String,
    /// The executable's path, and its arguments.
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    /// All that is in its environment.
    pub(super) environment: Vec<(String, String)>,
    /// What it prints goes here.
    pub(super) log: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Start a daemon; the answer is `null`.
    Start(Daemon),
    /// The answer is a list of [`Running`].
    List,
}

/// A daemon that was started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) name: String,
    /// In the machine's process namespace.
    pub(super) pid: i32,
    /// How it ended, if it has.
    pub(super) ended: Option<String>,
    pub(super) log: PathBuf,
}

/// Asks the machine that listens on `socket`.
pub(super) fn ask<T: DeserializeOwned>(socket: &Path, request: &Request) -> Result<T> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connect({})", socket.display()))?;
    stream.write_all(&serde_json::to_vec(request).context("a request")?).context("write")?;
    stream.shutdown(Shutdown::Write).context("shutdown")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("read")?;
    let answer: Result<T, String> = serde_json::from_str(&text).with_context(|| format!("the answer {text:?}"))?;
    match answer {
        Ok(answer) => Ok(answer),
        Err(message) => bail!("{message}"),
    }
}

/// Reads one request and answers it.
pub(super) fn answer(mut stream: UnixStream, work: impl FnOnce(Request) -> Result<serde_json::Value>) -> Result<()> {
    let mut text = String::new();
    stream.read_to_string(&mut text).context("read")?;
    let request: Request = serde_json::from_str(&text).context("a request")?;
    let answer: Result<_, String> = work(request).map_err(|error| format!("{error:#}"));
    stream.write_all(&serde_json::to_vec(&answer).context("an answer")?).context("write")
}
