//! Whether bridged packets pass netfilter (`br_netfilter`).
//!
//! Without it, a proxy's rules see what a pod sends to a Service only if it leaves the bridge, and the reply of a backend
//! in the same bridge goes past the proxy, untranslated: Kubernetes asks for it on nodes with a pod bridge. Enforcement
//! does not depend on it, but Services do, and so do the guard's answers to what never leaves the bridge.

use std::fs;
use std::path::Path;

/// Whether it is on, by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgeNetfilter {
    /// For IPv4.
    pub ipv4: bool,
    /// For IPv6.
    pub ipv6: bool,
}

impl BridgeNetfilter {
    /// Asks the kernel: the parameter of the network namespace, or that of the bridge alone. Without the module there is
    /// neither.
    #[must_use]
    pub fn of(bridge: &str) -> Self {
        let is_on = |path: &str| fs::read_to_string(Path::new(path)).is_ok_and(|value| value.trim() == "1");
        let either = |name: &str, own: &str| {
            is_on(&format!("/proc/sys/net/bridge/bridge-nf-call-{name}"))
                || is_on(&format!("/sys/class/net/{bridge}/bridge/nf_call_{own}"))
        };
        Self { ipv4: either("iptables", "iptables"), ipv6: either("ip6tables", "ip6tables") }
    }
}
