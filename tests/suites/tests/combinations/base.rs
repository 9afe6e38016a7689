//! The policy that cases change in one respect: it lets some pods of two namespaces in, and out to some pods of two
//! others, so that whatever a case makes of it, some connections pass and some do not.

use netpol_suites::nine::case::Case;
use netpol_suites::nine::{NS, POD, expression};
use netpol_testbed::sandbox::Families;
use serde_json::{Value, json};

use crate::Direction;

/// Name of the policy.
pub(crate) const POLICY: &str = "base";

/// The base policy, with everything open to change.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) namespace: &'static str,
    pub(crate) spec: Value,
}

impl Base {
    /// Unchanged.
    pub(crate) fn new() -> Self {
        let tcp_80 = json!([{ "protocol": "TCP", "port": 80 }]);
        let peer = |namespaces: &[&str], pods: &[&str]| json!({ "namespaceSelector": expression(NS, "In", namespaces), "podSelector": expression(POD, "In", pods) });
        let spec = json!({
            "podSelector": { "matchLabels": { POD: "a" } },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": [peer(&["x", "y"], &["b", "c"])], "ports": tcp_80 }],
            "egress": [
                { "to": [peer(&["y", "z"], &["a", "b"])], "ports": tcp_80 },
                // Name resolution, as policies for egress have it.
                { "ports": [{ "protocol": "UDP", "port": 53 }, { "protocol": "TCP", "port": 53 }] },
            ],
        });
        Self { namespace: "x", spec }
    }

    /// With another namespace.
    pub(crate) fn in_namespace(mut self, namespace: &'static str) -> Self {
        self.namespace = namespace;
        self
    }

    /// With other subjects.
    pub(crate) fn selecting(mut self, pods: Value) -> Self {
        self.spec["podSelector"] = pods;
        self
    }

    /// With other rules.
    pub(crate) fn with_rules(mut self, direction: Direction, rules: Value) -> Self {
        self.spec[direction.rules()] = rules;
        self
    }

    /// With other peers in the first rule.
    pub(crate) fn with_peers(mut self, direction: Direction, peers: Vec<Value>) -> Self {
        self.spec[direction.rules()][0][direction.peers()] = Value::Array(peers);
        self
    }

    /// With other ports in the first rule.
    pub(crate) fn with_ports(mut self, direction: Direction, ports: Vec<Value>) -> Self {
        self.spec[direction.rules()][0]["ports"] = Value::Array(ports);
        self
    }

    /// Creates or replaces it.
    pub(crate) fn apply(self, case: Case) -> Case {
        let Self { namespace, spec } = self;
        case.policy_in(namespace, POLICY, spec)
    }

    /// A case of one step that has this policy and no other.
    pub(crate) fn case(self, name: impl Into<String>, families: Families) -> Case {
        self.apply(Case::new(name, families)).probe()
    }
}
