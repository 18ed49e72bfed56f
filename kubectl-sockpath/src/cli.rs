//! The command line: a contract with scripts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use sockpath_protocol::request::Protocol;

use crate::duration;
use crate::invocation::invocation;

/// Trace every kernel stage between two pods, then bypass the ones you don't need.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-sockpath",
    version,
    disable_help_subcommand = true,
    propagate_version = false,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage error, 3 ran but observed nothing, 130 interrupted after cleaning up."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
}

/// The definition of the command line; called as a kubectl plugin, usage says `kubectl sockpath`.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command().bin_name(invocation())
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Use the lab on this machine instead of a cluster
    #[arg(long, global = true)]
    pub lab: bool,
    /// Namespace of the pods
    #[arg(short, long, global = true, value_name = "NS")]
    pub namespace: Option<String>,
    /// Path of the kubeconfig file
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Cluster of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// User of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// User to impersonate
    #[arg(long = "as", global = true, value_name = "USER")]
    pub as_user: Option<String>,
    /// Group to impersonate, may be repeated
    #[arg(long, global = true, value_name = "GROUP")]
    pub as_group: Vec<String>,
    /// UID to impersonate
    #[arg(long, global = true, value_name = "UID")]
    pub as_uid: Option<String>,
    /// Address and port of the API server
    #[arg(short, long, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// Bearer token for the API server
    #[arg(long, global = true, value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Server name in the API server's certificate, if it differs from the address
    #[arg(long, global = true, value_name = "NAME")]
    pub tls_server_name: Option<String>,
    /// Do not verify the API server's certificate; this makes the connection insecure
    #[arg(long, global = true)]
    pub insecure_skip_tls_verify: bool,
    /// Certificate authority file
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub certificate_authority: Option<PathBuf>,
    /// Client certificate file
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub client_certificate: Option<PathBuf>,
    /// Client key file
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub client_key: Option<PathBuf>,
    /// Image of the helper pod
    #[arg(long, global = true, value_name = "IMAGE", env = "SOCKPATH_HELPER_IMAGE")]
    pub helper_image: Option<String>,
    /// Namespace of the helper pod
    #[arg(long, global = true, value_name = "NS", env = "SOCKPATH_HELPER_NAMESPACE", default_value = "sockpath")]
    pub helper_namespace: String,
    /// Seccomp profile of the helper pod: Unconfined if the runtime's profile refuses bpf(2)
    #[arg(long, global = true, value_name = "PROFILE", value_enum, default_value_t = Seccomp::RuntimeDefault, ignore_case = true)]
    pub seccomp: Seccomp,
    /// Timeout of one request to the API server
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration::parse, default_value = "30s")]
    pub request_timeout: Duration,
    /// Time to wait for a node's helper to start, including nodes that are not ready; other helpers do not wait
    /// [default: 2m, 20s without progress, 0 for nodes that are not ready]
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration::parse)]
    pub wait_nodes: Option<Duration>,
    /// Increase log verbosity
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// When to colour the output
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t = ColorChoice::Auto)]
    pub color: ColorChoice,
}

/// Seccomp profile of the helper pod, spelled as Kubernetes spells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Seccomp {
    /// The runtime's profile
    #[default]
    #[value(name = "RuntimeDefault")]
    RuntimeDefault,
    /// No profile
    #[value(name = "Unconfined")]
    Unconfined,
}

/// When to colour the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb
    Auto,
    /// Always, unless NO_COLOR is set
    Always,
    /// Never
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trace every kernel stage between two pods
    Trace(Box<Trace>),
    /// Redirect connections between pods, bypassing the node's network stack
    Accelerate(Accelerate),
    /// Show accelerated connections
    Status(Status),
    /// Stop acceleration and restore the normal path
    Stop(Stop),
    /// Check client, cluster and nodes
    Doctor(Doctor),
    /// Delete sockpath's remaining resources from cluster and nodes
    Cleanup(Cleanup),
    /// Create, show, use or remove the lab on this machine
    Lab(Lab),
    /// Print the versions of plugin and protocol
    Version(Version),
    /// Print a completion script
    Completion(Completion),
    /// Write manual pages, for packages
    #[command(hide = true)]
    Man(Man),
}

/// `trace`.
#[derive(Debug, Args)]
#[command(after_help = "\
SOURCE is NAME, pod/NAME, NS/NAME, one pod of a workload (deploy/NAME, sts/, ds/, rs/, job/, rc/) or of a label (app=web, NS/app=web), node/NAME, or
an address of one of these. TARGET may also be svc/NAME, a DNS name (web.shop, web.shop.svc.cluster.local), any address, [IPV6]:PORT, and
localhost:PORT or :PORT for another container of the same pod. PORT is a number or a name; its protocol is that of the Service or the container.
A trace ends after 10 s or 100 requests; with --count after 5 minutes, and with -o jsonl after an hour at the latest.

Examples:
  kubectl sockpath trace curl httpbin                between two pods
  kubectl sockpath trace curl svc/httpbin --probe    through a Service, sending a probe immediately
  kubectl sockpath trace curl :8081                  to a sidecar, over loopback
  kubectl sockpath trace curl httpbin -o json        one document for scripts")]
pub struct Trace {
    /// The pod that sends requests
    #[arg(required_unless_present_any = ["replay", "diff", "explain"], value_name = "SOURCE")]
    pub source: Option<String>,
    /// The pod, Service or address that receives them
    #[arg(required_unless_present_any = ["replay", "diff", "explain"], value_name = "TARGET[:PORT]")]
    pub target: Option<String>,
    /// Container of TARGET that owns the port (within one pod: the receiving container)
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Send a probe immediately
    #[arg(long, conflicts_with = "no_probe")]
    pub probe: bool,
    /// Never send a probe
    #[arg(long)]
    pub no_probe: bool,
    /// Protocol of the probe [default: that of the Service's port, otherwise tcp]
    #[arg(long, value_enum)]
    pub protocol: Option<ProbeProtocol>,
    /// End after this many request packets with payload [default: 100, none with -o jsonl or --duration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this time [default: 10s, 5m with --count, 1h with -o jsonl or --follow]
    #[arg(long, value_name = "D", value_parser = positive_duration)]
    pub duration: Option<Duration>,
    /// When the traced pods are deleted, replaced or moved, continue with their successors; prints a report for each,
    /// and writes files for each (`report.html`, `report-2.html`)
    #[arg(long, conflicts_with_all = ["replay", "explain", "compare"])]
    pub follow: bool,
    /// Also measure the short path and the socket path and show what they save
    #[arg(long)]
    pub compare: bool,
    /// Record every packet instead of a sample at high packet rates
    #[arg(long)]
    pub every_packet: bool,
    /// Do not read netfilter rules (the helper pod runs without CAP_NET_ADMIN); the report then names no rule
    #[arg(long)]
    pub no_rules: bool,
    /// Accepted for compatibility; rules are named by default
    #[arg(long, hide = true, conflicts_with = "no_rules")]
    pub name_rules: bool,
    /// Output format [default: a waterfall diagram]
    #[arg(short, long, value_enum)]
    pub output: Option<TraceOutput>,
    /// Also write the report to a self-contained HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Also draw the path to an SVG file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Also write the packets to a file for ui.perfetto.dev: a track for each namespace and device, a slice for each stage
    #[arg(long, value_name = "FILE")]
    pub perfetto: Option<PathBuf>,
    /// Also write the packets to a pcapng file, one record per hop
    #[arg(long, value_name = "FILE")]
    pub pcapng: Option<PathBuf>,
    /// Also record the helpers' messages, for --replay
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    pub record: Option<PathBuf>,
    /// Render a recording instead of tracing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["source", "target", "probe", "compare"])]
    pub replay: Option<PathBuf>,
    /// Compare two recordings: what changed from A to B (with -o json as one document)
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["source", "target", "probe", "compare", "replay", "record", "html", "svg", "perfetto", "pcapng"])]
    pub diff: Option<Vec<PathBuf>>,
    /// Explain a finding, a mechanism of drops or a drop reason by its ID; without ID list them
    #[arg(long, value_name = "ID", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["source", "target", "probe", "compare", "replay"])]
    pub explain: Option<String>,
    /// Print the helper pod instead of tracing (with -o yaml or json)
    #[arg(long, value_name = "client", num_args = 0..=1, require_equals = true, default_missing_value = "client", value_parser = ["client", "none"])]
    pub dry_run: Option<String>,
}

/// Protocol of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProbeProtocol {
    /// Connect and send a small HTTP request
    Tcp,
    /// Send one datagram
    Udp,
    /// Send one echo request
    Icmp,
}

impl From<ProbeProtocol> for Protocol {
    fn from(protocol: ProbeProtocol) -> Self {
        match protocol {
            ProbeProtocol::Tcp => Self::Tcp,
            ProbeProtocol::Udp => Self::Udp,
            ProbeProtocol::Icmp => Self::Icmp,
        }
    }
}

/// Output formats of `trace`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TraceOutput {
    /// A table of hops with all details
    Wide,
    /// One JSON document
    Json,
    /// One JSON line per packet, as packets arrive
    Jsonl,
    /// The path as a Mermaid flowchart, for tickets and wikis
    Mermaid,
    /// One fact per line, without drawing characters, for screen readers
    Plain,
    /// With --dry-run=client: the helper pod
    Yaml,
}

/// `accelerate`.
#[derive(Debug, Args)]
#[command(after_help = "\
POD is NAME, pod/NAME, NS/NAME, or deploy/NAME (sts/, ds/, rs/, job/, rc/), svc/NAME and LABEL=VALUE for all of their pods.

Examples:
  kubectl sockpath accelerate -n prod --dry-run      what would be done, connection by connection
  kubectl sockpath accelerate -n prod                until Ctrl-C
  kubectl sockpath accelerate deploy/web deploy/db   connections between these two
  kubectl sockpath accelerate -l app=web --detach    for an hour; `status` shows it, `stop` ends it")]
pub struct Accelerate {
    /// Pods whose connections to accelerate [default: all in the namespace]
    #[arg(value_name = "POD")]
    pub pods: Vec<String>,
    /// Label selector
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// Pods of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// End after this time; with --detach, the lease [default: until Ctrl-C, at most 24h; 1h with --detach]
    #[arg(long = "for", value_name = "D", value_parser = duration::parse)]
    pub lease: Option<Duration>,
    /// Return and keep accelerating in the background
    #[arg(long)]
    pub detach: bool,
    /// Also accelerate readers that block inside recv(); a reset or a signal then ends that call with EAGAIN
    #[arg(long)]
    pub blocking_readers: bool,
    /// Path of accelerated connections: from device to device, from socket to socket on one node, or the further of both that is proven
    #[arg(long, value_enum, default_value = "auto")]
    pub via: Via,
    /// With --via auto, also redirect from socket to socket between programs with this file name (repeatable)
    #[arg(long = "socket-program", value_name = "NAME", value_parser = program_name)]
    pub socket_programs: Vec<String>,
    /// Observe for a few seconds and print what would be done; =client prints the helper pod
    #[arg(long, value_name = "client", num_args = 0..=1, require_equals = true, default_missing_value = "watch", value_parser = ["watch", "client", "none"])]
    pub dry_run: Option<String>,
    /// Output format [default: a table]
    #[arg(short, long, value_enum)]
    pub output: Option<ObjectOutput>,
}

/// Path of accelerated connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// From device to device, and from socket to socket between programs that are proven for it
    Auto,
    /// From device to device, past the node's bridge, netfilter and routing
    Short,
    /// From socket to socket
    Socket,
}

/// The name of a program's file.
fn program_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') || text.len() > 255 {
        return Err("name the program's file without its directory, for instance redis-server".to_owned());
    }
    Ok(text.to_owned())
}

/// Output of commands that print one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ObjectOutput {
    /// A table with complete names
    Wide,
    /// JSON
    Json,
    /// YAML (only for --dry-run=client)
    Yaml,
}

/// Output of commands that print a table or JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TableOutput {
    /// JSON
    Json,
}

/// Output of `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatusOutput {
    /// A table with complete names
    Wide,
    /// Only `node/NAME` of the nodes on which connections are accelerated
    Name,
    /// JSON
    Json,
}

/// `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Output format [default: a table]
    #[arg(short, long, value_enum)]
    pub output: Option<StatusOutput>,
}

/// `stop`.
#[derive(Debug, Args)]
pub struct Stop {
    /// Maximum time to wait for unread bytes
    #[arg(long, value_name = "D", value_parser = duration::parse, default_value = "10s")]
    pub drain: Duration,
    /// Output format [default: text]
    #[arg(short, long, value_enum)]
    pub output: Option<TableOutput>,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Output format [default: a table]
    #[arg(short, long, value_enum)]
    pub output: Option<TableOutput>,
}

/// `cleanup`.
#[derive(Debug, Args)]
pub struct Cleanup {
    /// Output format [default: text]
    #[arg(short, long, value_enum)]
    pub output: Option<TableOutput>,
}

/// `version`.
#[derive(Debug, Args)]
pub struct Version {
    /// Output format [default: text]
    #[arg(short, long, value_enum)]
    pub output: Option<TableOutput>,
}

/// `completion`.
#[derive(Debug, Args)]
pub struct Completion {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Shells with a completion script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
    /// PowerShell
    #[value(name = "powershell", alias = "pwsh")]
    PowerShell,
}

/// `man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Directory for the pages
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub dir: PathBuf,
}

/// `lab`: forwarded to `sockpath-lab`, which is privileged.
#[derive(Debug, Args)]
pub struct Lab {
    /// What to do with the lab.
    #[command(subcommand)]
    pub command: LabCommand,
}

/// Commands of the lab.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Create two nodes, their pods and Services from network namespaces
    Up {
        /// Network between the nodes: host routes or a VXLAN tunnel
        #[arg(long, value_parser = ["none", "vxlan"], default_value = "none")]
        overlay: String,
    },
    /// Remove the lab completely
    Down,
    /// Show nodes, pods and Services
    Status {
        /// Output format [default: a table]
        #[arg(short, long, value_enum)]
        output: Option<TableOutput>,
    },
    /// Run a command inside a pod (its namespace and cgroup) or a node (its namespace)
    Exec {
        /// Pod or node
        pod: String,
        /// Container of the pod
        #[arg(short, long)]
        container: Option<String>,
        /// The command
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(Duration::ZERO) => Err("it must be longer than 0".to_owned()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["kubectl-sockpath"], args].concat())
    }

    #[test]
    fn clap_finds_no_contradiction() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_contract_parses() {
        for line in [
            "trace curl httpbin",
            "trace curl httpbin:8080 --probe --count 5 --duration 3s --compare -o json --lab",
            "--lab trace curl svc/httpbin -o jsonl --html a.html --svg d --perfetto e --pcapng b --record c",
            "trace --replay file -o wide",
            "trace --diff a b -o json",
            "trace --explain",
            "trace --explain no-endpoints",
            "trace a b --dry-run=client -o yaml",
            "trace a b --every-packet --no-probe --as me --as-group x --as-group y -v -v",
            "accelerate",
            "accelerate a b -n prod -l app=x --for 10m --detach --dry-run -o json",
            "accelerate -A --dry-run=client -o yaml",
            "status",
            "stop",
            "doctor -o json",
            "cleanup",
            "version",
            "completion bash",
            "lab up --overlay vxlan",
            "lab down",
            "lab status -o json",
            "lab exec curl -- sh -c true",
            "status -s https://api:6443 --token t --tls-server-name k --insecure-skip-tls-verify --as me --as-uid 17 --wait-nodes 30s",
            "doctor --certificate-authority ca --client-certificate crt --client-key key",
            "trace a b --kubeconfig f --context c --cluster d --user e --namespace n --helper-image i --helper-namespace h --request-timeout 5s",
        ] {
            let args: Vec<&str> = line.split(' ').collect();
            assert!(parse(&args).is_ok(), "{line}: {}", parse(&args).err().map(|e| e.to_string()).unwrap_or_default());
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            "",
            "trace",
            "trace a",
            "trace a b --probe --no-probe",
            "trace a b --count 0",
            "trace a b --duration 0",
            "trace a b --duration x",
            "trace a b -o xml",
            "trace a b --replay f",
            "trace --diff a",
            "trace --diff a b --replay f",
            "trace a b --explain dropped",
            "lab up --overlay gre",
            "lab exec curl",
            "accelerate -A -n prod",
            "frobnicate",
        ] {
            let args: Vec<&str> = line.split(' ').filter(|s| !s.is_empty()).collect();
            let code = parse(&args).err().map(|e| e.exit_code());
            assert_eq!(code, Some(2), "{line}");
        }
    }
}
