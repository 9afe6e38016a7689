//! What manifests mean, also of objects that cannot be read: the oracle is to judge by the same cluster as the agent.

use std::collections::BTreeMap;

use netpol_policy::decode::{self, Kind, Object, Rejected};
use netpol_policy::model::{Cluster, ObjectName};
use serde_json::Value;

/// The objects that count.
#[derive(Debug, Default)]
pub struct Contents {
    cluster: Cluster,
    /// By kind and name, the last form that could be read of what is still there.
    last_good: BTreeMap<(Kind, ObjectName), Object>,
}

impl Contents {
    /// Reads all objects anew, and returns those that are refused.
    ///
    /// An object that has become unreadable keeps its last good form; a policy that never was readable isolates what it
    /// selects (decision D15).
    pub fn read(&mut self, objects: &[Value]) -> Vec<Rejected> {
        let mut good = BTreeMap::new();
        let mut rejected = Vec::new();
        let mut isolating = Vec::new();
        for object in objects {
            match decode::object(object) {
                Ok(object) => drop(good.insert((object.kind(), object.name()), object)),
                Err(error) => {
                    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == error.kind);
                    if let Some(key) = kind.zip(error.name.clone())
                        && let Some(last) = self.last_good.remove(&key)
                    {
                        good.insert(key, last);
                    } else {
                        isolating.extend(error.isolate.clone());
                    }
                    rejected.push(error);
                }
            }
        }
        let mut cluster = Cluster::default();
        for object in good.values().cloned() {
            cluster.insert(object);
        }
        for policy in isolating {
            cluster.policies.entry(policy.name.clone()).or_insert(policy);
        }
        (self.cluster, self.last_good) = (cluster, good);
        rejected
    }

    /// What they mean.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(spec: &Value) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": "shop", "name": "p" }, "spec": spec,
        })
    }

    #[test]
    fn a_policy_that_becomes_unreadable_keeps_its_last_good_form_until_it_is_gone() {
        let mut contents = Contents::default();
        let (good, bad) = (policy(&json!({ "ingress": [{}] })), policy(&json!({ "ingress": 7 })));
        let rules = |contents: &Contents| {
            let policy = contents.cluster().policies.values().next();
            policy.map(|policy| policy.ingress.as_ref().map_or(0, Vec::len))
        };
        assert_eq!(contents.read(std::slice::from_ref(&good)), []);
        assert_eq!(contents.read(std::slice::from_ref(&bad)).len(), 1);
        assert_eq!(rules(&contents), Some(1));
        contents.read(&[]);
        contents.read(&[bad]);
        assert_eq!(rules(&contents), Some(0), "never readable since it is back: it isolates");
    }
}
