//! The cases of the upstream NetworkPolicy suite (kubernetes/kubernetes, test/e2e/network/netpol), over pods in network
//! namespaces.
//!
//! Upstream's model: namespaces x, y, z, each with pods a, b, c, which serve TCP, UDP and SCTP on ports 80 and 81. Upstream
//! probes one port of nine by nine pairs by Service address; here every port of every pair is probed in both families by
//! the pod's address, since Services are not judged yet. Each matrix is held against two things: what upstream's case
//! expects of its port, written by hand, and what the oracle says of all.
//!
//! The cases share one node and one agent, and change its manifests: so each is also a test of going from any policy to
//! any other.

mod egress;
mod ingress;
mod protocols;
mod updates;
mod world;
