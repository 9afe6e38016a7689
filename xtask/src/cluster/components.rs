//! What runs on each machine, with its flags and configuration files.
//!
//! Flags that are not explained are what any cluster sets. The others make room for what the host lacks: nodes share
//! its processors, its memory and its disk, may have version 1 of control groups, and there is no image registry.

use std::path::PathBuf;

use anyhow::{Context, Result};
use netpol_testbed::control_plane::certificates::Authority;
use netpol_testbed::control_plane::installation;
use serde_json::{Value, json};

use super::control::Daemon;
use super::network::CONTROL_PLANE;
use super::recipe::Installation;
use super::state::State;
use super::{Backend, Options, Proxy, capabilities, images};

/// The API server's port.
const PORT: u16 = 6443;

/// Everything that daemons' command lines are made of.
pub(super) struct Components<'a> {
    pub(super) state: &'a State,
    pub(super) options: &'a Options,
    pub(super) control_plane: &'a installation::Installation,
    pub(super) cluster: &'a Installation,
    /// What containerd runs containers with: a path, or a name to be looked up.
    runtime: PathBuf,
}

impl<'a> Components<'a> {
    /// Of a cluster with its state in a folder.
    pub(super) fn new(
        state: &'a State,
        options: &'a Options,
        control_plane: &'a installation::Installation,
        cluster: &'a Installation,
    ) -> Result<Self> {
        let withheld = capabilities::withheld()?;
        let runtime = if withheld.is_empty() {
            PathBuf::from("runc")
        } else {
            eprintln!("cluster: this machine withholds {}: containers run without", withheld.join(", "));
            capabilities::write_runtime(&state.folder, &withheld)?
        };
        Ok(Self { state, options, control_plane, cluster, runtime })
    }

    /// The folders that machines see as the host does.
    pub(super) fn keep(&self) -> [PathBuf; 3] {
        [self.state.folder.clone(), self.control_plane.directory.clone(), self.cluster.directory.clone()]
    }

    /// Issues every certificate and writes every kubeconfig but the nodes' own.
    pub(super) fn credentials(&self, authority: &Authority) -> Result<()> {
        let families = self.options.families;
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1", "::1"];
        let mut names: Vec<String> = names.map(str::to_owned).to_vec();
        names.extend(families.addresses(CONTROL_PLANE).iter().map(ToString::to_string));
        names.extend(families.api_service());
        authority.server("kube-apiserver", names)?;
        authority.key_pair("service-accounts")?;
        authority.user("kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"))?;
        self.user(authority, "admin", "kubernetes-admin", Some("system:masters"))?;
        self.user(authority, "kube-controller-manager", "system:kube-controller-manager", None)?;
        self.user(authority, "kube-scheduler", "system:kube-scheduler", None)?;
        self.user(authority, "kube-proxy", "system:kube-proxy", None)?;
        self.user(authority, "flannel", "flannel", None)
    }

    /// Issues a node's certificate and writes its kubelet's kubeconfig.
    pub(super) fn node_credentials(&self, authority: &Authority, node: &str) -> Result<()> {
        self.user(authority, node, &format!("system:node:{node}"), Some("system:nodes"))
    }

    fn user(&self, authority: &Authority, file: &str, user: &str, group: Option<&str>) -> Result<()> {
        let identity = authority.user(file, user, group)?;
        let read = |path: PathBuf| {
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display())).map(|text| base64(&text))
        };
        // With the certificates inside, the file can be copied to wherever it is needed.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "netpol",
            "clusters": [{ "name": "netpol", "cluster": {
                "server": self.server(), "certificate-authority-data": read(authority.certificate())?,
            }}],
            "users": [{ "name": user, "user": {
                "client-certificate-data": read(identity.certificate)?, "client-key-data": read(identity.key)?,
            }}],
            "contexts": [{ "name": "netpol", "context": { "cluster": "netpol", "user": user } }],
        });
        self.write(&format!("{file}.kubeconfig"), &config.to_string()).map(|_path| ())
    }

    /// The API server's address, as the cluster's own components reach it.
    fn server(&self) -> String {
        let address = self.options.families.addresses(CONTROL_PLANE).into_iter().next();
        address.map_or_else(String::new, |address| format!("https://{}", std::net::SocketAddr::new(address, PORT)))
    }

    /// Writes a file that one daemon reads: kube-proxy ends when its file changes.
    fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.state.folder.join(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn pki(&self, file: &str) -> String {
        self.state.pki().join(file).display().to_string()
    }

    fn kubeconfig(&self, user: &str) -> String {
        self.state.kubeconfig(user).display().to_string()
    }

    fn daemon(&self, machine: &str, name: &str, program: PathBuf, arguments: Vec<String>) -> Daemon {
        let binaries = self.cluster.binaries();
        let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", binaries.display());
        Daemon {
            name: name.to_owned(),
            program,
            arguments,
            // Unused memory goes back sooner: many nodes share one host.
            environment: [("PATH", path.as_str()), ("HOME", "/root"), ("GOGC", "50")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            log: self.state.logs().join(format!("{machine}-{name}.log")),
        }
    }

    pub(super) fn etcd(&self, machine: &str) -> Result<Daemon> {
        let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
        let arguments = [
            "--data-dir=/var/lib/etcd".to_owned(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--log-level=warn".to_owned(),
            // It is in memory anyway.
            "--unsafe-no-fsync".to_owned(),
        ];
        Ok(self.daemon(machine, "etcd", self.control_plane.component("etcd")?, arguments.to_vec()))
    }

    pub(super) fn api_server(&self, machine: &str) -> Result<Daemon> {
        let families = self.options.families;
        let address = families.addresses(CONTROL_PLANE).into_iter().next().context("no family")?;
        let arguments = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            // Both families are served from this one.
            "--bind-address=::".to_owned(),
            format!("--secure-port={PORT}"),
            format!("--advertise-address={address}"),
            format!("--tls-cert-file={}", self.pki("kube-apiserver.crt")),
            format!("--tls-private-key-file={}", self.pki("kube-apiserver.key")),
            format!("--client-ca-file={}", self.pki("ca.crt")),
            format!("--kubelet-client-certificate={}", self.pki("kubelet-client.crt")),
            format!("--kubelet-client-key={}", self.pki("kubelet-client.key")),
            // Nodes' names are known to no name server.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-signing-key-file={}", self.pki("service-accounts.key")),
            format!("--service-account-key-file={}", self.pki("service-accounts.pub")),
            format!("--service-cluster-ip-range={}", families.service_cidrs()),
            "--allow-privileged=true".to_owned(),
            "--cert-dir=/run/kubernetes".to_owned(),
        ];
        let program = self.control_plane.component("kube-apiserver")?;
        Ok(self.daemon(machine, "kube-apiserver", program, arguments.to_vec()))
    }

    pub(super) fn controller_manager(&self, machine: &str) -> Daemon {
        let families = self.options.families;
        let arguments = [
            format!("--kubeconfig={}", self.kubeconfig("kube-controller-manager")),
            format!("--authentication-kubeconfig={}", self.kubeconfig("kube-controller-manager")),
            format!("--authorization-kubeconfig={}", self.kubeconfig("kube-controller-manager")),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            format!("--root-ca-file={}", self.pki("ca.crt")),
            format!("--service-account-private-key-file={}", self.pki("service-accounts.key")),
            "--allocate-node-cidrs=true".to_owned(),
            format!("--cluster-cidr={}", families.pod_cidrs()),
            format!("--service-cluster-ip-range={}", families.service_cidrs()),
            "--cert-dir=/run/kubernetes".to_owned(),
        ];
        let name = "kube-controller-manager";
        self.daemon(machine, name, self.cluster.binary(name), arguments.to_vec())
    }

    pub(super) fn scheduler(&self, machine: &str) -> Daemon {
        let arguments = [
            format!("--kubeconfig={}", self.kubeconfig("kube-scheduler")),
            "--leader-elect=false".to_owned(),
            "--cert-dir=/run/kubernetes".to_owned(),
        ];
        self.daemon(machine, "kube-scheduler", self.cluster.binary("kube-scheduler"), arguments.to_vec())
    }

    pub(super) fn containerd(&self, machine: &str) -> Result<Daemon> {
        let config = format!(
            r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{sandbox}"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
  BinaryName = "{runtime}"
"#,
            sandbox = images::PAUSE,
            runtime = self.runtime.display()
        );
        let file = self.write(&format!("{machine}-containerd.toml"), &config)?;
        let arguments = vec!["--config".to_owned(), file.display().to_string()];
        Ok(self.daemon(machine, "containerd", self.cluster.binary("containerd"), arguments))
    }

    pub(super) fn kubelet(&self, machine: &str, index: usize) -> Result<Daemon> {
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false }, "webhook": { "enabled": true },
                "x509": { "clientCAFile": self.pki("ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            // One group for all pods of a node, without a hierarchy of qualities: it needs no controller of version 2.
            "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": [], "failCgroupV1": false,
            "failSwapOn": false, "localStorageCapacityIsolation": false,
            // A host whose disk is nearly full would otherwise have its pods evicted.
            "evictionHard": { "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                "imagefs.available": "0%", "imagefs.inodesFree": "0%" },
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "resolvConf": "", "clusterDomain": "cluster.local",
            // Faster than the defaults, by which a new pod's readiness is seen after up to a minute.
            "syncFrequency": "10s", "nodeStatusUpdateFrequency": "5s", "maxPods": 110,
        });
        let file = self.write(&format!("{machine}-kubelet.json"), &config.to_string())?;
        let addresses: Vec<String> = self.options.families.addresses(index).iter().map(ToString::to_string).collect();
        let arguments = [
            format!("--config={}", file.display()),
            format!("--kubeconfig={}", self.kubeconfig(machine)),
            format!("--hostname-override={machine}"),
            format!("--node-ip={}", addresses.join(",")),
            "--cert-dir=/var/lib/kubelet/pki".to_owned(),
        ];
        Ok(self.daemon(machine, "kubelet", self.cluster.binary("kubelet"), arguments.to_vec()))
    }

    pub(super) fn proxy(&self, machine: &str) -> Result<Daemon> {
        let mode = match self.options.proxy {
            Proxy::Nftables => "nftables",
            Proxy::Iptables => "iptables",
        };
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": mode, "clientConnection": { "kubeconfig": self.kubeconfig("kube-proxy") },
            "clusterCIDR": self.options.families.pod_cidrs(),
            // The size of the connection table is the host's.
            "conntrack": { "maxPerCore": 0 },
        });
        let file = self.write(&format!("{machine}-kube-proxy.json"), &config.to_string())?;
        let arguments = vec![format!("--config={}", file.display()), format!("--hostname-override={machine}")];
        Ok(self.daemon(machine, "kube-proxy", self.cluster.binary("kube-proxy"), arguments))
    }

    pub(super) fn flanneld(&self, machine: &str) -> Result<Daemon> {
        let mut config = self.options.families.flannel();
        config["Backend"] = match self.options.backend {
            Backend::Vxlan => json!({ "Type": "vxlan" }),
            Backend::HostGw => json!({ "Type": "host-gw" }),
        };
        let file = self.write(&format!("{machine}-flannel.json"), &config.to_string())?;
        let arguments = [
            "--kube-subnet-mgr".to_owned(),
            format!("--kubeconfig-file={}", self.kubeconfig("flannel")),
            format!("--net-config-path={}", file.display()),
            "--ip-masq".to_owned(),
            "--iface=eth0".to_owned(),
        ];
        let mut daemon = self.daemon(machine, "flanneld", self.cluster.flanneld(), arguments.to_vec());
        daemon.environment.push(("NODE_NAME".to_owned(), machine.to_owned()));
        Ok(daemon)
    }

    /// The list of CNI plugins, as Flannel installs it.
    pub(super) fn conflist(&self) -> Value {
        json!({
            "name": "cbr0", "cniVersion": "0.3.1",
            "plugins": [
                { "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        })
    }
}

/// What Flannel reads and writes, as in its own manifests.
pub(super) fn flannel_role() -> String {
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": "flannel" },
        "rules": [
            { "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] },
            { "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"] },
        ],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "flannel" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flannel" },
        "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "flannel" }],
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": [role, binding] }).to_string()
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for position in 0..4 {
            let sign = SIGNS[(bits >> (18 - 6 * position) & 63) as usize];
            text.push(if position <= group.len() { char::from(sign) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_padded_to_groups_of_four() {
        for (plain, encoded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
