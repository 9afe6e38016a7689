//! What the API server says that its clients have asked for: its audit log, one JSON document a line.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// The log's name in the control plane's folder.
pub(super) const LOG: &str = "audit.log";

/// One request that has been answered; a watch is, when it ends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// `get`, `list`, `watch`, `create`, …
    pub verb: String,
    /// `pods`, `networkpolicies`, …; empty for what is no resource, such as `/readyz`.
    pub resource: String,
    /// Path and query.
    pub uri: String,
    /// The HTTP status: 403 where RBAC refused, 410 where the history asked for is gone.
    pub status: u16,
}

/// The audit policy: every request of service accounts, once, without its body.
pub(super) fn policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [
            { "level": "Metadata", "userGroups": ["system:serviceaccounts"] },
            { "level": "None" },
        ],
    })
}

/// The requests of one user.
pub(super) fn requests(log: &Path, user: &str) -> Result<Vec<Request>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Event {
        verb: String,
        user: User,
        #[serde(rename = "requestURI")]
        request_uri: String,
        #[serde(default)]
        object_ref: Option<Reference>,
        #[serde(default)]
        response_status: Option<Status>,
    }
    #[derive(Deserialize)]
    struct User {
        username: String,
    }
    #[derive(Deserialize)]
    struct Reference {
        #[serde(default)]
        resource: String,
    }
    #[derive(Deserialize)]
    struct Status {
        #[serde(default)]
        code: u16,
    }

    let text = std::fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
    let mut requests = Vec::new();
    // The last line may be half written.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let event: Event = serde_json::from_str(line).with_context(|| format!("the audit log has a line {line:?}"))?;
        if event.user.username == user {
            requests.push(Request {
                verb: event.verb,
                resource: event.object_ref.map(|reference| reference.resource).unwrap_or_default(),
                uri: event.request_uri,
                status: event.response_status.map_or(0, |status| status.code),
            });
        }
    }
    Ok(requests)
}
