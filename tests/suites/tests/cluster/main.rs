//! The agent and its manifests against a real API server: etcd and kube-apiserver with TLS and RBAC, in a network
//! namespace. Nothing here is a fake but the roles of the controller manager and the kubelet, which tests play with the
//! same requests.

mod enforcement;
mod manifests;
mod outages;
mod premises;
mod services;
mod site;
