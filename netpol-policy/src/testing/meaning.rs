//! What tables say, whatever ids they use: incremental work and a full recompute allocate different ones.

use std::collections::BTreeMap;

use netpol_common::abi::DigestKey;
use netpol_common::abi::id_kind::{CLASS, PORT_SET, RULE, SET};

use crate::compile::Snapshot;
use crate::compile::memory::MemoryTables;

/// Tables without ids: what must be equal where only ids may differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Meaning(BTreeMap<String, String>);

impl Meaning {
    /// What the rows say, with contents in the place of ids.
    ///
    /// # Panics
    /// Two rows say the same.
    #[must_use]
    pub fn of(tables: &MemoryTables) -> Self {
        let Snapshot {
            digests,
            ports,
            rules,
            classes,
            cidrs,
            words,
            addresses,
            options,
            services,
            service_cidrs,
            epoch: _,
        } = tables.snapshot();
        let mut meaning = BTreeMap::new();
        let digest = |kind: u32, id: u32| {
            let key = DigestKey { kind, id };
            digests.get(&key).map_or_else(|| format!("#{id}"), |digest| format!("{digest:x?}"))
        };
        let mut put = |key: String, value: String| {
            let old = meaning.insert(key.clone(), value);
            assert_eq!(old, None, "two rows mean the same: {key}");
        };
        for (key, of) in digests {
            put(format!("digest {} {of:x?}", key.kind), String::new());
        }
        for ((prefix_len, key), row) in ports {
            let set = digest(PORT_SET, u32::from_be_bytes(key.port_set));
            put(
                format!("port {set} {:?}/{prefix_len}", key.port),
                format!("{} {}", row.action, digest(RULE, row.rule)),
            );
        }
        for (key, row) in rules {
            let (set, class) = (digest(SET, key.set), digest(CLASS, key.class));
            let ports = digest(PORT_SET, row.port_set);
            put(
                format!("rule {set} {class} {} {}", key.direction, key.protocol),
                format!("{} {ports} {}", row.action, digest(RULE, row.rule)),
            );
        }
        for (address, row) in classes {
            put(format!("address {address}"), format!("{} {}", row.kind, digest(CLASS, row.class)));
        }
        for (prefix, class) in cidrs {
            put(format!("prefix {prefix}"), digest(CLASS, *class));
        }
        for (endpoint, word) in words.iter().filter(|(_, word)| word.0 != 0) {
            put(format!("endpoint {endpoint}"), digest(SET, word.set()));
        }
        for key in addresses {
            put(format!("owned {} {:x?}", key.endpoint, key.address), String::new());
        }
        for (endpoint, options) in options.iter().filter(|(_, options)| options.flags != 0) {
            put(format!("options {endpoint}"), options.flags.to_string());
        }
        for (key, row) in services {
            put(format!("service {key:?}"), format!("{row:?}"));
        }
        for range in service_cidrs {
            put(format!("service range {range}"), String::new());
        }
        Self(meaning)
    }

    /// What one of them says and the other does not.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (Self(ours), Self(theirs)) = (self, other);
        let only = |who, these: &BTreeMap<String, String>, those: &BTreeMap<String, String>| -> Vec<String> {
            let missing = these.iter().filter(|(key, value)| those.get(*key) != Some(value));
            missing.map(|(key, value)| format!("{who} only: {key} = {value}")).collect()
        };
        [only("first", ours, theirs), only("second", theirs, ours)].concat()
    }

    /// Insists that both say the same.
    ///
    /// # Panics
    /// They do not.
    pub fn assert_same(&self, other: &Self, context: &str) {
        let differing = self.differences(other);
        assert!(differing.is_empty(), "{context}: {differing:#?}");
    }
}
