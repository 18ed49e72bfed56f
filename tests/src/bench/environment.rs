//! Where benchmarks run: a lab, servers in its pods bound to either CPU, and clients that run there.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sockpath_protocol::lab::{LabStatus, Overlay};

use super::peer::{Load, Place, Run};
use crate::lab::Lab;
use crate::torture::controller::forward_service_ports;

/// The lab's Service forwards these ports of httpbin too.
pub const PORT: u16 = 7300;

/// Whether both peers share a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cpus {
    /// Both on CPU 0.
    One,
    /// The client on CPU 0, the server on CPU 1.
    Two,
}

impl Cpus {
    /// In words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::One => "one CPU",
            Self::Two => "two CPUs",
        }
    }

    fn server(self) -> usize {
        usize::from(self == Self::Two)
    }
}

/// Which route a run takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// curl to httpbin, same node.
    Direct,
    /// curl to httpbin through its Service.
    Service,
    /// curl to httpbin-remote, other node.
    Remote,
    /// Inside curl, over its loopback device.
    Loopback,
    /// Inside httpbin, over its loopback device.
    OtherLoopback,
    /// Inside httpbin-remote, over its loopback device: it shares neither pod nor node with the pair that is traced.
    Elsewhere,
    /// AF_UNIX.
    Unix,
}

/// A background process that ends when its stdin closes; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Process {
    /// Starts a command whose stdin and stdout are ours.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        Ok(Self { child, stdin, lines })
    }

    /// The next line it prints.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn line(&mut self) -> Result<String> {
        match self.lines.next() {
            Some(line) => Ok(line?),
            None => bail!("a process ended early: {}", self.child.wait()?),
        }
    }

    /// Writes a line to it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn say(&mut self, line: &str) -> Result<()> {
        use std::io::Write;
        writeln!(self.stdin.as_mut().context("stdin is closed")?, "{line}").context("a process went away")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stdin.take();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The default of the kernel and of most distributions. Others, such as BBR, hold packets back by timers of their own.
const CONGESTION_CONTROL: &str = "cubic";

/// What the pods' network namespaces may choose of this machine's congestion controls; what it was before comes back when this is dropped.
#[derive(Debug)]
struct Allowed(Option<String>);

impl Allowed {
    const LIST: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

    /// Adds one where it is missing.
    fn with(name: &str) -> Result<Self> {
        let before = std::fs::read_to_string(Self::LIST).context(Self::LIST)?;
        if before.split_whitespace().any(|allowed| allowed == name) {
            return Ok(Self(None));
        }
        std::fs::write(Self::LIST, format!("{} {name}", before.trim())).with_context(|| format!("this kernel has no {name}"))?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = std::fs::write(Self::LIST, before.trim());
        }
    }
}

/// A lab with servers in it.
#[derive(Debug)]
pub struct Environment {
    /// The lab.
    pub lab: Lab,
    /// What is in it.
    pub status: LabStatus,
    program: PathBuf,
    servers: Vec<Process>,
    _allowed: Allowed,
}

impl Drop for Environment {
    fn drop(&mut self) {
        self.servers.clear();
        // A server that is killed leaves its path behind.
        for cpus in [Cpus::One, Cpus::Two] {
            let _ = std::fs::remove_file(self.unix_path(cpus));
        }
    }
}

impl Environment {
    /// Brings a lab and the servers up; this program is their program.
    ///
    /// # Errors
    /// When a server does not start.
    pub fn new() -> Result<Self> {
        Self::with_program(std::env::current_exe().context("cannot find this program")?)
    }

    /// The same in a lab with that overlay between its nodes.
    ///
    /// # Errors
    /// When a server does not start.
    pub fn with_overlay(overlay: Overlay) -> Result<Self> {
        Self::in_lab(Lab::up_with(overlay), std::env::current_exe().context("cannot find this program")?)
    }

    /// The same with the benchmark's program at `program`.
    ///
    /// # Errors
    /// When a server does not start.
    pub fn with_program(program: PathBuf) -> Result<Self> {
        Self::in_lab(Lab::up(), program)
    }

    fn in_lab(lab: Lab, program: PathBuf) -> Result<Self> {
        let status = lab.status();
        forward_service_ports(&lab, &status)?;
        let allowed = Allowed::with(CONGESTION_CONTROL)?;
        for pod in &status.pods {
            let set = || std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", CONGESTION_CONTROL);
            lab.inside(&pod.name, set).with_context(|| format!("pod {} cannot use {CONGESTION_CONTROL}", pod.name))?;
        }
        let mut environment = Self { lab, status, program, servers: Vec::new(), _allowed: allowed };
        for pod in ["curl", "httpbin", "httpbin-remote"] {
            for cpus in [Cpus::One, Cpus::Two] {
                let port = (PORT + cpus.server() as u16).to_string();
                let cpu = cpus.server().to_string();
                let mut args = vec!["server", "--cpu", &cpu, "--port", &port];
                let path = environment.unix_path(cpus);
                let path = path.to_string_lossy();
                if pod == "curl" {
                    args.extend(["--path", &path]);
                }
                let mut server = environment.start(pod, &args)?;
                server.line().with_context(|| format!("the server in {pod}"))?;
                environment.servers.push(server);
            }
        }
        Ok(environment)
    }

    fn unix_path(&self, cpus: Cpus) -> PathBuf {
        std::env::temp_dir().join(format!("sockpath-bench-{}-{}", self.lab.instance(), cpus.server()))
    }

    /// Starts this program with other arguments in a pod.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, pod: &str, args: &[&str]) -> Result<Process> {
        Process::start(self.exec(pod, args))
    }

    /// This program with other arguments in a pod, not yet started.
    #[must_use]
    pub fn exec(&self, pod: &str, args: &[&str]) -> Command {
        let program = self.program.to_string_lossy();
        self.lab.exec(pod, [&*program].into_iter().chain(args.iter().copied()))
    }

    /// An address of a pod.
    ///
    /// # Errors
    /// When it has none.
    pub fn ip(&self, pod: &str) -> Result<std::net::IpAddr> {
        let pod = self.status.pods.iter().find(|p| p.name == pod).with_context(|| format!("no pod {pod}"))?;
        pod.ips.iter().copied().find(std::net::IpAddr::is_ipv4).context("no IPv4 address")
    }

    /// The first address of a Service.
    ///
    /// # Errors
    /// When it has none.
    pub fn service_ip(&self, service: &str) -> Result<std::net::IpAddr> {
        let service = self.status.services.iter().find(|s| s.name == service).with_context(|| format!("no Service {service}"))?;
        service.cluster_ips.iter().copied().find(std::net::IpAddr::is_ipv4).context("no IPv4 address")
    }

    /// The client's pod and the server's place of a route.
    ///
    /// # Errors
    /// When an address is missing.
    pub fn place(&self, route: Route, cpus: Cpus) -> Result<(&'static str, Place)> {
        let port = PORT + cpus.server() as u16;
        let tcp = |ip| Place::Tcp(SocketAddr::new(ip, port));
        let localhost = std::net::Ipv4Addr::LOCALHOST.into();
        Ok(match route {
            Route::Direct => ("curl", tcp(self.ip("httpbin")?)),
            Route::Service => ("curl", tcp(self.service_ip("httpbin")?)),
            Route::Remote => ("curl", tcp(self.ip("httpbin-remote")?)),
            Route::Loopback => ("curl", tcp(localhost)),
            Route::OtherLoopback => ("httpbin", tcp(localhost)),
            Route::Elsewhere => ("httpbin-remote", tcp(localhost)),
            Route::Unix => ("curl", Place::Unix(self.unix_path(cpus))),
        })
    }

    /// One run.
    ///
    /// # Errors
    /// What the client says.
    pub fn run(&self, route: Route, cpus: Cpus, load: Load, size: usize, time: Duration) -> Result<Run> {
        let (pod, place) = self.place(route, cpus)?;
        let to = match place {
            Place::Tcp(a) => a.to_string(),
            Place::Unix(p) => p.to_string_lossy().into_owned(),
        };
        let load = clap::ValueEnum::to_possible_value(&load).context("a load without a name")?;
        let (size, ms) = (size.to_string(), time.as_millis().to_string());
        let args = ["client", "--cpu", "0", "--to", &to, "--load", load.get_name(), "--size", &size, "--ms", &ms];
        let out = self.exec(pod, &args).output().context("cannot run a client")?;
        ensure!(out.status.success(), "the client ({route:?}): {}", String::from_utf8_lossy(&out.stderr).trim());
        serde_json::from_slice(&out.stdout).context("the client printed no result")
    }
}
