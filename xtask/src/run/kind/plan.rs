//! Everything that is run to make a kind cluster and to end it, in order: what `--dry-run` prints is what is done.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::config;
use crate::cluster::Families;
use crate::process;
use crate::run::live::api::resources;

/// The cluster's name.
pub(super) const CLUSTER: &str = "netpol";

/// CNI plugins that node images lack and Flannel's manifests do not bring: the module that has each, and its package.
const PLUGINS: [(&str, &str); 2] = [
    ("plugins", "github.com/containernetworking/plugins/plugins/main/bridge"),
    ("flannel-plugin", "github.com/containernetworking/plugins/plugins/meta/flannel"),
];

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// A program with its arguments.
    Run(Vec<String>),
    /// A file with its content.
    Write(PathBuf, Value),
}

/// What is planned.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// Before the cluster is there: these leave nothing that would have to be removed.
    pub(super) prepare: Vec<Step>,
    /// Making the cluster.
    pub(super) create: Vec<Step>,
    /// What `run` does in it, by way of kubectl, as in every real cluster.
    pub(super) inside: Vec<Step>,
    /// Ending it, whatever has happened.
    pub(super) end: Vec<Step>,
    /// The names of the nodes.
    pub(super) nodes: Vec<String>,
    /// Where kind writes the administrator's kubeconfig.
    pub(super) kubeconfig: PathBuf,
}

impl Plan {
    /// Plans. `engine` is the container engine's program, `work` a folder for what is made on the way, `archive` where the
    /// image is.
    pub(super) fn new(
        engine: &str,
        families: Families,
        work: &Path,
        archive: &Path,
        agent: Option<&Path>,
    ) -> Result<Self> {
        let configuration = config::cluster(families)?;
        let nodes = config::nodes(&configuration, CLUSTER);
        let folders = config::folders(&configuration);
        let file = |name: &str| work.join(name);
        let (cluster_file, flannel_file, kubeconfig) = (file("cluster.json"), file("flannel.json"), file("kubeconfig"));
        let [text_of_cluster, text_of_flannel, text_of_kubeconfig, text_of_archive] =
            [&cluster_file, &flannel_file, &kubeconfig, archive].map(|path: &Path| path.display().to_string());

        let kubectl =
            |arguments: &[&str]| run(&[&["kubectl", "--kubeconfig", &text_of_kubeconfig], arguments].concat());
        // kind finds docker by itself; another engine has to be named.
        let provider = format!("KIND_EXPERIMENTAL_PROVIDER={engine}");
        let kind = |arguments: &[&str]| match engine {
            "docker" => run(&[&["kind"], arguments].concat()),
            _ => run(&[&["env", provider.as_str(), "kind"], arguments].concat()),
        };

        let mut image = vec!["cargo", "xtask", "image", "--output", &text_of_archive];
        let agent = agent.map(|agent| agent.display().to_string());
        if let Some(agent) = &agent {
            image.extend(["--binary", agent]);
        }
        let mut prepare = vec![run(&image)];
        for (module, package) in PLUGINS {
            let source = format!("xtask/cluster-binaries/{module}");
            let output = format!("{}/", work.join("cni").display());
            let build = ["env", "CGO_ENABLED=0", "go", "-C", &source, "build", "-trimpath", "-o", &output, package];
            prepare.push(run(&build));
        }
        prepare.push(Step::Write(cluster_file, configuration));
        prepare.push(Step::Write(flannel_file, config::flannel(families)?));
        // Of the host's kernel; without it, what pods of one node send to a Service is not rewritten, and Flannel ends.
        prepare.push(run(&["modprobe", "br_netfilter"]));

        let as_str = |texts: &'_ [String]| -> Vec<String> { texts.to_vec() };
        let mut create = vec![Step::Run([vec!["mkdir".to_owned(), "-p".to_owned()], as_str(&folders)].concat())];
        let arguments = ["create", "cluster", "--name", CLUSTER, "--config", &text_of_cluster];
        create.push(kind(&[&arguments[..], &["--kubeconfig", &text_of_kubeconfig]].concat()));
        for node in &nodes {
            for (_, package) in PLUGINS {
                let name = package.rsplit('/').next().unwrap_or(package);
                let plugin = work.join("cni").join(name).display().to_string();
                create.push(run(&[engine, "cp", &plugin, &format!("{node}:/opt/cni/bin/{name}")]));
            }
        }
        create.push(kubectl(&["apply", "--server-side", "--filename", &text_of_flannel]));
        create.push(kubectl(&["wait", "nodes", "--all", "--for=condition=Ready", "--timeout=300s"]));
        // The example has name servers of its own, by the same name.
        let name_server = ["delete", "deployment", "coredns", "--namespace=kube-system", "--ignore-not-found"];
        create.push(kubectl(&name_server));
        create.push(kind(&["load", "image-archive", &text_of_archive, "--name", CLUSTER]));

        let inside = vec![
            kubectl(&["apply", "--server-side", "--kustomize", config::FOLDER]),
            kubectl(&["get", "daemonset", "netpol-agent", "--namespace=netpol-agent", "--output=json"]),
            kubectl(&["apply", "--server-side", "--filename=-"]),
            kubectl(&["get", &resources(), "--all-namespaces", "--output=json"]),
        ];

        let mut end = vec![kind(&["delete", "cluster", "--name", CLUSTER, "--kubeconfig", &text_of_kubeconfig])];
        // What is pinned in them holds the programs and maps of nodes that are gone.
        end.push(Step::Run([vec!["rm".to_owned(), "-rf".to_owned()], folders].concat()));
        Ok(Self { prepare, create, inside, end, nodes, kubeconfig })
    }
}

fn run(words: &[&str]) -> Step {
    Step::Run(words.iter().map(|word| (*word).to_owned()).collect())
}

impl Step {
    /// Does it.
    pub(super) fn take(&self) -> Result<()> {
        match self {
            Self::Run(words) => {
                eprintln!("run: {self}");
                let (program, arguments) = words.split_first().context("a step without a program")?;
                process::run(process::command(program).args(arguments))
            }
            Self::Write(path, content) => {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
                }
                std::fs::write(path, content.to_string()).with_context(|| format!("cannot write {}", path.display()))
            }
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Run(words) => f.write_str(&words.join(" ")),
            Self::Write(path, content) => write!(f, "cat > {} <<'END'\n{content}\nEND", path.display()),
        }
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { prepare, create, inside, end, nodes: _, kubeconfig: _ } = self;
        let mut text = String::new();
        for (title, steps) in [
            ("prepare, in the workspace's root", prepare),
            ("make the cluster, with Flannel and without another policy controller", create),
            ("in the cluster: the agent; its readiness; pods, then policies, from standard input; what counts", inside),
            ("in the end, also after a failure or Ctrl-C", end),
        ] {
            // Writing to a String does not fail.
            let _ = writeln!(text, "# {title}");
            for step in steps {
                let _ = writeln!(text, "{step}");
            }
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(engine: &str) -> Plan {
        Plan::new(engine, Families::Dual, Path::new("/plan"), Path::new("/plan/agent.tar"), None).unwrap()
    }

    fn lines(steps: &[Step]) -> Vec<String> {
        let of_command = |step: &Step| match step {
            Step::Run(words) => words.join(" "),
            Step::Write(path, _) => format!("write {}", path.display()),
        };
        steps.iter().map(of_command).collect()
    }

    #[test]
    fn the_plan_has_every_command_in_order() {
        let plan = plan("docker");
        assert_eq!(
            lines(&plan.prepare),
            [
                "cargo xtask image --output /plan/agent.tar",
                "env CGO_ENABLED=0 go -C xtask/cluster-binaries/plugins build -trimpath -o /plan/cni/ \
                 github.com/containernetworking/plugins/plugins/main/bridge",
                "env CGO_ENABLED=0 go -C xtask/cluster-binaries/flannel-plugin build -trimpath -o /plan/cni/ \
                 github.com/containernetworking/plugins/plugins/meta/flannel",
                "write /plan/cluster.json",
                "write /plan/flannel.json",
                "modprobe br_netfilter",
            ]
        );
        assert_eq!(
            lines(&plan.create),
            [
                "mkdir -p /sys/fs/bpf/kind-node-1 /sys/fs/bpf/kind-node-2 /sys/fs/bpf/kind-node-3",
                "kind create cluster --name netpol --config /plan/cluster.json --kubeconfig /plan/kubeconfig",
                "docker cp /plan/cni/bridge netpol-control-plane:/opt/cni/bin/bridge",
                "docker cp /plan/cni/flannel netpol-control-plane:/opt/cni/bin/flannel",
                "docker cp /plan/cni/bridge netpol-worker:/opt/cni/bin/bridge",
                "docker cp /plan/cni/flannel netpol-worker:/opt/cni/bin/flannel",
                "docker cp /plan/cni/bridge netpol-worker2:/opt/cni/bin/bridge",
                "docker cp /plan/cni/flannel netpol-worker2:/opt/cni/bin/flannel",
                "kubectl --kubeconfig /plan/kubeconfig apply --server-side --filename /plan/flannel.json",
                "kubectl --kubeconfig /plan/kubeconfig wait nodes --all --for=condition=Ready --timeout=300s",
                "kubectl --kubeconfig /plan/kubeconfig delete deployment coredns --namespace=kube-system \
                 --ignore-not-found",
                "kind load image-archive /plan/agent.tar --name netpol",
            ]
        );
        let agent = "kubectl --kubeconfig /plan/kubeconfig apply --server-side --kustomize deploy/overlays/kind";
        assert_eq!(lines(&plan.inside)[0], agent);
        assert_eq!(
            lines(&plan.end),
            [
                "kind delete cluster --name netpol --kubeconfig /plan/kubeconfig",
                "rm -rf /sys/fs/bpf/kind-node-1 /sys/fs/bpf/kind-node-2 /sys/fs/bpf/kind-node-3",
            ]
        );
    }

    #[test]
    fn what_is_printed_is_the_plan_with_the_files_in_it() {
        let plan = plan("docker");
        let text = plan.to_string();
        let mut rest = text.as_str();
        for step in [&plan.prepare, &plan.create, &plan.inside, &plan.end].into_iter().flatten() {
            let step = step.to_string();
            let (_, after) = rest.split_once(&step).unwrap_or_else(|| panic!("{step} is not in its place:\n{text}"));
            rest = after;
        }
        assert!(text.contains(r#""disableDefaultCNI":true"#), "{text}");
    }

    #[test]
    fn an_engine_that_is_not_docker_is_named_to_kind() {
        let plan = plan("podman");
        let commands = [lines(&plan.create), lines(&plan.end)].concat();
        let kinds: Vec<&String> = commands.iter().filter(|line| line.contains("kind ")).collect();
        assert!(kinds.iter().all(|line| line.starts_with("env KIND_EXPERIMENTAL_PROVIDER=podman kind ")), "{kinds:?}");
        assert!(commands.iter().any(|line| line.starts_with("podman cp ")));
    }

    #[test]
    fn a_binary_that_is_given_is_wrapped_instead_of_one_that_is_built() {
        let agent = Path::new("/plan/agent");
        let plan = Plan::new("docker", Families::Ipv4, Path::new("/w"), Path::new("/a.tar"), Some(agent)).unwrap();
        assert_eq!(lines(&plan.prepare)[0], "cargo xtask image --output /a.tar --binary /plan/agent");
    }
}
