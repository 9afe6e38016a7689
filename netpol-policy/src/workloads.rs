//! From a folder of manifests to what an API server with controllers, a scheduler and one node's kubelet would show of
//! it: workloads become Pods with UID, nodeName and addresses, lists are taken apart, and namespaces that are referred
//! to exist.
