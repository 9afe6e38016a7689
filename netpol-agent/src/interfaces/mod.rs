//! Which interfaces are pods', and which pod is behind each.
//!
//! [`netlink`] lists and follows links and the node's own addresses; [`cni`] reads what the container runtime recorded
//! about interfaces it made; [`identity`] ties a host-side veth to a pod's UID by decision D12. Nothing here ever
//! enters a pod's network namespace.

pub mod bridge_netfilter;
pub mod cni;
pub mod conntrack;
pub mod identity;
pub mod netlink;
pub mod nfnetlink;
