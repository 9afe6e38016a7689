//! The data-path tests of the upstream NetworkPolicy suite (kubernetes/kubernetes, test/e2e/network/netpol), as a table.
//!
//! Upstream probes the one port that a test names; here each step probes every port of every pair, of which the named
//! ones are expected by hand as upstream writes them, and the oracle judges all. What upstream asserts of an address
//! (`T34` to `T36`) is asserted of one address in each family.

mod egress;
mod ingress;
mod protocols;
mod updates;

use netpol_testbed::sandbox::Families;

use super::case::Case;

/// One test of upstream's.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// `T` for those that upstream runs over TCP, `U` and `S` for those that it repeats over UDP and SCTP; by their order
    /// in upstream's file.
    pub id: &'static str,
    /// Upstream's name of it.
    pub name: &'static str,
    steps: fn(Case, Families) -> Case,
}

impl Row {
    /// The case of this row.
    #[must_use]
    pub fn case(&self, families: Families) -> Case {
        (self.steps)(Case::new(format!("{} {}", self.id, self.name), families), families)
    }
}

const fn row(id: &'static str, name: &'static str, steps: fn(Case, Families) -> Case) -> Row {
    Row { id, name, steps }
}

/// All of them, in upstream's order.
#[rustfmt::skip]
pub const TABLE: [Row; 48] = [
    row("T01", "should support a 'default-deny-ingress' policy", ingress::default_deny),
    row("T02", "should support a 'default-deny-all' policy", ingress::default_deny_of_both),
    row("T03", "should enforce policy to allow traffic from pods within server namespace based on PodSelector", ingress::pod_selector),
    row("T04", "should enforce policy to allow ingress traffic for a target", ingress::for_a_target),
    row("T05", "should enforce policy to allow ingress traffic from pods in all namespaces", ingress::all_namespaces),
    row("T06", "should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector", ingress::namespace_selector),
    row("T07", "should enforce policy based on PodSelector with MatchExpressions", ingress::pod_expressions),
    row("T08", "should enforce policy based on NamespaceSelector with MatchExpressions", ingress::namespace_expressions),
    row("T09", "should enforce policy based on PodSelector or NamespaceSelector", ingress::pod_or_namespace),
    row("T10", "should enforce policy based on PodSelector and NamespaceSelector", ingress::pod_and_namespace),
    row("T11", "should enforce policy based on Multiple PodSelectors and NamespaceSelectors", ingress::pods_and_namespaces),
    row("T12", "should enforce policy based on any PodSelectors", ingress::any_pod_selector),
    row("T13", "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector", ingress::pod_of_another_namespace),
    row("T14", "should enforce policy based on Ports", ingress::ports),
    row("T15", "should enforce multiple, stacked policies with overlapping podSelectors", ingress::stacked),
    row("T16", "should support allow-all policy", ingress::allow_all),
    row("T17", "should allow ingress access on one named port", ingress::named_port),
    row("T18", "should allow ingress access from namespace on one named port", ingress::named_port_from_a_namespace),
    row("T19", "should allow egress access on one named port", egress::named_port),
    row("T20", "should enforce updated policy", updates::policy),
    row("T21", "should allow ingress access from updated namespace", updates::namespace_labels),
    row("T22", "should allow ingress access from updated pod", updates::pod_labels_of_a_peer),
    row("T23", "should deny ingress from pods on other namespaces", ingress::own_namespace),
    row("T24", "should deny ingress access to updated pod", updates::pod_labels_of_a_subject),
    row("T25", "should deny egress from pods based on PodSelector", egress::denied_by_pod_selector),
    row("T26", "should deny egress from all pods in a namespace", egress::denied_to_a_namespace),
    row("T27", "should work with Ingress, Egress specified together", egress::together_with_ingress),
    row("T28", "should support denying of egress traffic on the client side (even if the server explicitly allows this traffic)", egress::denied_on_the_client_side),
    row("T29", "should enforce egress policy allowing traffic to a server in a different namespace based on PodSelector and NamespaceSelector", egress::server_of_another_namespace),
    row("T30", "should enforce ingress policy allowing any port traffic to a server on a specific protocol", protocols::any_port),
    row("T31", "should enforce multiple ingress policies with ingress allow-all policy taking precedence", ingress::allow_all_takes_precedence),
    row("T32", "should enforce multiple egress policies with egress allow-all policy taking precedence", egress::allow_all_takes_precedence),
    row("T33", "should stop enforcing policies after they are deleted", updates::deletion),
    row("T34", "should allow egress access to server in CIDR block", egress::block),
    row("T35", "should enforce except clause while egress access to server in CIDR block", egress::block_with_except),
    row("T36", "should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed", egress::excepted_address_given_back),
    row("T37", "should enforce policies to check ingress and egress policies can be controlled independently based on PodSelector", egress::independent_of_ingress),
    row("T38", "should not mistakenly treat 'protocol: SCTP' as 'protocol: TCP', even if the plugin doesn't support SCTP", protocols::sctp_is_not_tcp),
    row("T39", "should properly isolate pods that are selected by a policy allowing SCTP, even if the plugin doesn't support SCTP", protocols::sctp_isolates),
    row("T40", "should not allow access by TCP when a policy specifies only UDP", protocols::udp_is_not_tcp),
    row("T41", "should enforce policy to allow traffic based on NamespaceSelector with MatchLabels using default ns label", ingress::namespace_selector),
    row("T42", "should enforce policy based on NamespaceSelector with MatchExpressions using default ns label", egress::default_namespace_label),
    row("U1", "should support a 'default-deny-ingress' policy", protocols::default_deny_of_udp),
    row("U2", "should enforce policy based on Ports", protocols::ports_of_udp),
    row("U3", "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector", protocols::pod_of_another_namespace_over_udp),
    row("S1", "should support a 'default-deny-ingress' policy", protocols::default_deny_of_sctp),
    row("S2", "should enforce policy based on Ports", protocols::ports_of_sctp),
    row("S3", "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector", protocols::pod_of_another_namespace_over_sctp),
];

/// All of them as cases.
#[must_use]
pub fn cases(families: Families) -> Vec<Case> {
    TABLE.iter().map(|row| row.case(families)).collect()
}
