//! The command line, and the environment behind it: the one place that reads either.
//!
//! Flags parse straight into the types of [`crate::config`], so that clap's own message names the flag whose value
//! was refused. Anything wrong with them ends the process with [`EXIT_USAGE`].

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

use crate::config::{
    Attach, Config, Established, Families, FlowBudget, InterfaceName, LogConfig, LogFormat, MarkMask, MaxEndpoints,
    MaxFlows, NodeName, ObjectSource, Pending,
};

/// Exit status for a bad command line (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// What the process is to do.
#[derive(Debug)]
pub enum Command {
    /// Enforce.
    Run(Box<Config>),
    /// Remove every program, link, map and runtime file.
    Uninstall(Uninstall),
    /// Print the version.
    Version,
}

/// Where the traces of an agent are.
#[derive(Clone, Debug)]
pub struct Uninstall {
    /// Mount point of the BPF file system.
    pub bpf_root: PathBuf,
    /// Runtime files.
    pub runtime_dir: PathBuf,
    /// Logging.
    pub log: LogConfig,
}

/// Why there is no [`Command`]: a bad command line, or a request for help.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// Refused by the parser; also `--help`.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// Not given, and the host name will not do.
    #[error("error: --node-name is not given, and the host name cannot stand in for it: {0}")]
    HostName(String),
}

impl UsageError {
    /// Prints the message where it belongs and says how to exit.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        match self {
            // Help goes to stdout and is a success. A closed pipe leaves nothing to report to.
            Self::Arguments(error) => {
                let _ = error.print();
                if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
            }
            Self::HostName(_) => {
                eprintln!("{self}");
                ExitCode::from(EXIT_USAGE)
            }
        }
    }
}

/// Enforces Kubernetes NetworkPolicy on a node, for network plugins that do not.
#[derive(Debug, Parser)]
#[command(name = "netpol-agent", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Watch objects and enforce policies until told to stop; what is enforced stays in force afterwards
    Run(Box<RunArgs>),
    /// Remove every program, link, map and runtime file from this node
    Uninstall {
        #[command(flatten)]
        paths: PathArgs,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
struct PathArgs {
    /// Mount point of the BPF file system
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpf_root: PathBuf,
    /// Directory for the lock and other runtime files
    #[arg(long, value_name = "DIR", default_value = "/run/netpol-agent")]
    runtime_dir: PathBuf,
}

#[derive(Debug, Args)]
struct LogArgs {
    /// Shape of log lines
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// What to log: a level, or directives such as netpol_agent=debug,kube=warn
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "info", value_parser = log_filter)]
    log_level: String,
}

impl From<LogArgs> for LogConfig {
    fn from(LogArgs { log_format, log_level }: LogArgs) -> Self {
        Self { format: log_format, filter: log_level }
    }
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Credentials for the API server; without this and --manifests, those of the agent's own pod
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    /// Address of the API server, instead of the one that the kubeconfig or the pod's environment names
    #[arg(long, value_name = "URL", env = "NETPOL_API_SERVER", value_parser = server_url)]
    api_server: Option<String>,
    /// Read objects from the YAML and JSON files of this directory instead of from an API server
    #[arg(long, value_name = "DIR", value_parser = directory)]
    manifests: Option<PathBuf>,
    /// Name of this node's Node object [default: the host name]
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<NodeName>,
    /// Bridge whose ports are pods
    #[arg(long, value_name = "INTERFACE", default_value = "cni0")]
    pod_bridge: InterfaceName,
    /// Bits of the packet mark that the agent may use: at least 16, next to each other
    #[arg(long, value_name = "MASK", default_value = "0xffff0000")]
    mark_mask: MarkMask,
    /// Range of Service addresses (repeatable)
    #[arg(long = "service-cidr", value_name = "CIDR", value_delimiter = ',')]
    service_cidrs: Vec<IpNet>,
    /// Address for metrics and health; [::] is every address of both families
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:9640")]
    metrics_address: SocketAddr,
    /// Address families that pods use
    #[arg(long, value_enum, default_value = "dual")]
    families: Families,
    #[command(flatten)]
    paths: PathArgs,
    #[command(flatten)]
    log: LogArgs,
    /// Connections whose permission was revoked: judge them again at their next packet, or keep them
    #[arg(long, value_enum, default_value = "recheck")]
    established: Established,
    /// Interfaces whose pod is not known yet: deny or allow their traffic
    #[arg(long, value_enum, default_value = "deny")]
    pending: Pending,
    /// New flows a second that one pod may open in the long run, and its peers with it; of connections and of other flows
    #[arg(long, value_name = "FLOWS", default_value = "50000", value_parser = clap::value_parser!(u32).range(1..))]
    flow_rate: u32,
    /// New flows that one pod may open at once
    #[arg(long, value_name = "FLOWS", default_value = "100000", value_parser = clap::value_parser!(u32).range(1..))]
    flow_burst: u32,
    /// Flows with a reply that this node can hold; no pod can take more than a quarter of it from the others
    #[arg(long, value_name = "FLOWS", default_value = "131072")]
    max_flows: MaxFlows,
    /// Pods that this node can hold
    #[arg(long, value_name = "NUMBER", default_value = "1024")]
    max_endpoints: MaxEndpoints,
    /// UDP port of the overlay, closed to pods on node addresses (up to four)
    #[arg(long = "overlay-port", value_name = "PORT", default_value = "8472", num_args = 1, value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..))]
    overlay_ports: Vec<u16>,
    /// How to attach programs: TCX links, clsact filters, or whichever the kernel has
    #[arg(long, value_enum, default_value = "auto")]
    attach: Attach,
    /// Directory in which libcni caches results
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni")]
    cni_cache: PathBuf,
    /// Take over what an agent with another source, cluster or node name has pinned
    #[arg(long)]
    takeover: bool,
}

/// Reads a command line (with the program's name in front) and the environment.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    match Cli::try_parse_from(arguments)?.command {
        Verb::Run(run) => Ok(Command::Run(Box::new(config(*run)?))),
        Verb::Uninstall { paths: PathArgs { bpf_root, runtime_dir }, log } => {
            Ok(Command::Uninstall(Uninstall { bpf_root, runtime_dir, log: log.into() }))
        }
        Verb::Version => Ok(Command::Version),
    }
}

fn config(arguments: RunArgs) -> Result<Config, UsageError> {
    let RunArgs {
        kubeconfig,
        api_server,
        manifests,
        node_name,
        pod_bridge,
        mark_mask,
        service_cidrs,
        metrics_address,
        families,
        paths: PathArgs { bpf_root, runtime_dir },
        log,
        established,
        pending,
        flow_rate,
        flow_burst,
        max_flows,
        max_endpoints,
        overlay_ports,
        attach,
        cni_cache,
        takeover,
    } = arguments;
    if overlay_ports.len() > 4 {
        let message = format!("--overlay-port takes up to 4 ports, but {} are given\n", overlay_ports.len());
        return Err(clap::Error::raw(clap::error::ErrorKind::TooManyValues, message).into());
    }
    Ok(Config {
        source: match manifests {
            Some(directory) => ObjectSource::Manifests(directory),
            None => ObjectSource::ApiServer { kubeconfig, server: api_server },
        },
        node: node_name.map_or_else(host_name, Ok)?,
        pod_bridge,
        mark_mask,
        service_cidrs: service_cidrs.iter().map(IpNet::trunc).collect(),
        metrics_address,
        families,
        bpf_root,
        runtime_dir,
        established,
        pending,
        flow_budget: FlowBudget { rate: flow_rate, burst: flow_burst },
        max_flows,
        max_endpoints,
        overlay_ports,
        attach,
        cni_cache,
        takeover,
        log: log.into(),
    })
}

/// The kubelet registers its node under the lower-cased host name unless told otherwise.
fn host_name() -> Result<NodeName, UsageError> {
    let path = "/proc/sys/kernel/hostname";
    let name = std::fs::read_to_string(path).map_err(|error| UsageError::HostName(format!("{path}: {error}")))?;
    name.trim()
        .to_lowercase()
        .parse()
        .map_err(|error: crate::config::InvalidValue| UsageError::HostName(error.to_string()))
}

fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Ok(path),
        Ok(_) => Err("not a directory".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn server_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(authority) if !authority.is_empty() && !authority.starts_with('/') => Ok(text.to_owned()),
        _ => Err("not an http or https URL".into()),
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Command, UsageError> {
        parse(std::iter::once("netpol-agent").chain(words.iter().copied()).map(OsString::from))
    }

    fn run(words: &[&str]) -> Result<Config, UsageError> {
        let mut all = vec!["run", "--node-name", "node-1"];
        all.extend(words);
        match parse_words(&all)? {
            Command::Run(config) => Ok(*config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_those_of_flannel_on_a_dual_stack_node() {
        let config = run(&[]).expect("defaults");
        assert_eq!(config.source, ObjectSource::ApiServer { kubeconfig: None, server: None });
        assert_eq!(config.node.as_str(), "node-1");
        assert_eq!(config.pod_bridge.as_str(), "cni0");
        assert_eq!(config.mark_mask.bits(), 0xffff_0000);
        assert_eq!(config.metrics_address, SocketAddr::from(([0_u16; 8], 9640)));
        assert_eq!(config.families, Families::Dual);
        assert_eq!(config.bpf_root, PathBuf::from("/sys/fs/bpf"));
        assert_eq!(config.runtime_dir, PathBuf::from("/run/netpol-agent"));
        assert_eq!((config.established, config.pending), (Established::Recheck, Pending::Deny));
        assert_eq!(config.flow_budget, FlowBudget { rate: 50_000, burst: 100_000 });
        assert_eq!(config.max_flows.get(), 131_072);
        assert_eq!(config.max_endpoints.get(), 1024);
        assert_eq!(config.overlay_ports, [8472]);
        assert_eq!(config.cni_cache, PathBuf::from("/var/lib/cni"));
        assert!(!config.takeover);
    }

    #[test]
    fn a_refusal_names_the_flag_and_exits_with_64() {
        for words in [
            &["--mark-mask", "0xff"][..],
            &["--pod-bridge", "far-too-long-a-name"],
            &["--families", "ipx"],
            &["--service-cidr", "10.0.0.0/33"],
            &["--metrics-address", "9640"],
            &["--max-endpoints", "0"],
            &["--max-flows", "100"],
            &["--flow-rate", "0"],
            &["--manifests", "/nowhere/at/all"],
            &["--api-server", "10.0.0.1:6443"],
            &["--log-level", "a=b=c"],
            &["--overlay-port", "1,2,3,4,5"],
        ] {
            let error = run(words).expect_err("must be refused");
            assert!(error.to_string().contains(words[0]), "{words:?}: {error}");
            assert_eq!(format!("{:?}", error.report()), format!("{:?}", ExitCode::from(EXIT_USAGE)));
        }
    }

    #[test]
    fn a_directory_and_an_api_server_exclude_each_other() {
        let directory = std::env::temp_dir();
        let directory = directory.to_str().expect("UTF-8");
        let error = run(&["--manifests", directory, "--kubeconfig", "/etc/kubeconfig"]).expect_err("both");
        assert!(error.to_string().contains("--kubeconfig"), "{error}");
        let config = run(&["--manifests", directory]).expect("directory alone");
        assert_eq!(config.source, ObjectSource::Manifests(PathBuf::from(directory)));
    }

    #[test]
    fn repeated_flags_add_up() {
        let config =
            run(&["--service-cidr", "10.96.0.1/12", "--service-cidr", "fd00:96::/108", "--overlay-port", "8472,4789"])
                .expect("valid");
        let cidrs: Vec<String> = config.service_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(cidrs, ["10.96.0.0/12", "fd00:96::/108"]);
        assert_eq!(config.overlay_ports, [8472, 4789]);
    }

    #[test]
    fn uninstall_and_version_need_no_node() {
        assert!(matches!(parse_words(&["version"]), Ok(Command::Version)));
        let Ok(Command::Uninstall(uninstall)) = parse_words(&["uninstall", "--bpf-root", "/mnt/bpf"]) else {
            panic!("uninstall")
        };
        assert_eq!(uninstall.bpf_root, PathBuf::from("/mnt/bpf"));
    }

    #[test]
    fn help_is_not_a_failure() {
        let error = parse_words(&["run", "--help"]).expect_err("help is no command");
        assert_eq!(format!("{:?}", error.report()), format!("{:?}", ExitCode::SUCCESS));
    }
}
