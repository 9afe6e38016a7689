//! A real control plane: etcd and kube-apiserver.
pub mod installation;
