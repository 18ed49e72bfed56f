//! A full node: as many pods as a kubelet takes by default, and ten thousand connections among them.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use sockpath_protocol::Request;
use sockpath_protocol::accel::{AccelerateRequest, ChoosePods, Pair, PairState, Via};
use sockpath_protocol::pod::{Container, Locate, Pod};

use super::environment::{Environment, PORT, Process};
use super::many::{maps, memory, mib, use_until_accelerated};
use super::measure::Effort;
use super::table::{Table, goal};
use crate::torture::accelerator::{Accelerator, Choice};

/// The kubelet's default limit.
const PODS: u8 = 110;
const CONNECTIONS: usize = 10_000;
/// Last part of the first pod's address; the lab's own pods have lower ones.
const FIRST: u8 = 100;
/// Exchanges of each client between two looks.
const STEP: usize = 20;
/// How long the helper's CPU time is measured.
const WATCHED: Duration = Duration::from_secs(10);

/// Pods on node-1, with servers in the second half and clients in the first.
struct Crowd {
    pods: Vec<Pod>,
    netns: Vec<String>,
    cgroups: Vec<PathBuf>,
    servers: Vec<Process>,
    clients: Vec<Process>,
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.clients.clear();
        self.servers.clear();
        // `Process` has waited for them, so the groups are empty.
        for cgroup in self.cgroups.iter().rev() {
            if let Err(e) = fs::remove_dir(cgroup) {
                eprintln!("left behind: {}: {e}", cgroup.display());
            }
        }
        for name in &self.netns {
            if let Err(e) = ip(&["netns", "del", name], "") {
                eprintln!("left behind: {e:#}");
            }
        }
    }
}

fn ip(args: &[&str], commands: &str) -> Result<()> {
    let mut child = Command::new("ip").args(args).stdin(Stdio::piped()).spawn().context("cannot run ip")?;
    child.stdin.take().context("no stdin")?.write_all(commands.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "ip {}: {status}", args.join(" "));
    Ok(())
}

impl Crowd {
    fn of(environment: &Environment) -> Result<Self> {
        let model = environment.status.pods.iter().find(|p| p.name == "curl").context("no pod curl")?;
        let node = environment.status.nodes.iter().find(|n| n.name == model.node).context("no node")?;
        let node_netns = Path::new(&node.netns).file_name().context("a namespace without a name")?.to_string_lossy().into_owned();
        let IpAddr::V4(ip_of_model) = environment.ip("curl")? else { anyhow::bail!("no IPv4 address") };
        let [a, b, c, _] = ip_of_model.octets();
        let root = Path::new(&model.cgroup).parent().context("a cgroup without a parent")?;
        let mut crowd = Self { pods: Vec::new(), netns: Vec::new(), cgroups: Vec::new(), servers: Vec::new(), clients: Vec::new() };
        for host in (FIRST..).take(PODS.into()) {
            let name = format!("{}-crowd-{host}", environment.lab.instance());
            ip(&["netns", "add", &name], "")?;
            crowd.netns.push(name.clone());
            let device = format!("crowd{host}");
            let plug = format!("link add {device} type veth peer name eth0 netns {name}\nlink set {device} master cni0 up\n");
            ip(&["-netns", &node_netns, "-batch", "-"], &plug)?;
            let own = format!(
                "address add {a}.{b}.{c}.{host}/24 dev eth0\nlink set lo up\nlink set eth0 up\nroute add default via {a}.{b}.{c}.1\n"
            );
            ip(&["-netns", &name, "-batch", "-"], &own)?;
            let container = Container { name: "main".to_owned(), id: format!("{host:064x}") };
            let cgroup = root.join(&name);
            for dir in [cgroup.clone(), cgroup.join(&container.id)] {
                fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
                crowd.cgroups.push(dir);
            }
            crowd.pods.push(Pod {
                namespace: model.namespace.clone(),
                name: format!("crowd-{host}"),
                uid: format!("{host:032x}"),
                node: model.node.clone(),
                ips: vec![Ipv4Addr::new(a, b, c, host).into()],
                host_network: false,
                containers: vec![container],
                locate: Locate::Path { netns: format!("/run/netns/{name}"), cgroup: cgroup.to_string_lossy().into_owned() },
            });
        }
        crowd.connect()?;
        Ok(crowd)
    }

    /// Starts the servers, and clients that hold all connections.
    fn connect(&mut self) -> Result<()> {
        let half = self.pods.len() / 2;
        let port = PORT.to_string();
        for at in half..self.pods.len() {
            let server = self.start(at, &["server", "--cpu", "1", "--port", &port])?;
            self.servers.push(server);
        }
        self.servers.iter_mut().try_for_each(|server| server.line().map(drop)).context("a server")?;
        for at in 0..half {
            let to = format!("{}:{port}", self.pods[half + at].ips[0]);
            let count = CONNECTIONS / half + usize::from(at < CONNECTIONS % half);
            let client = self.start(at, &["many", "--cpu", "0", "--to", &to, "--count", &count.to_string()])?;
            self.clients.push(client);
        }
        self.clients.iter_mut().try_for_each(|client| client.line().map(drop)).context("a client")
    }

    /// Starts this program with other arguments in a pod.
    fn start(&self, at: usize, args: &[&str]) -> Result<Process> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new("sh");
        let enter = r#"echo $$ > "$1/cgroup.procs" && shift && exec ip netns exec "$@""#;
        command.args(["-c", enter, "sh"]).arg(&self.cgroups[2 * at + 1]).arg(&self.netns[at]).arg(program).args(args);
        Process::start(command)
    }

    /// So many exchanges of each client, all at the same time.
    fn exchange(&mut self, each: usize) -> Result<()> {
        self.clients.iter_mut().try_for_each(|client| client.say(&each.to_string()))?;
        self.clients.iter_mut().try_for_each(|client| client.line().map(drop))
    }

    fn request(&self, environment: &Environment, via: Via) -> AccelerateRequest {
        let choice = Choice { via, lease: Duration::from_secs(60), socket_programs: vec!["bench".to_owned()], ..Choice::default() };
        let mut request = choice.request(&environment.lab);
        // `auto` alone asks which programs are proven.
        request.socket_programs.retain(|_| via == Via::Auto);
        request.pods.clone_from(&self.pods);
        request
    }
}

/// CPU time of a process so far, in seconds: by its clock, because that of /proc counts ticks, which timers of the process coincide with.
fn cpu_time(pid: u32) -> Result<f64> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?)).context("no CPU clock")?;
    let time = clock_gettime(clock).context("cannot read the CPU clock")?;
    Ok(Duration::from(time).as_secs_f64())
}

/// Share of a CPU that the helper takes while nothing is sent, in percent.
fn idle_share(pid: u32) -> Result<f64> {
    let (start, before) = (Instant::now(), cpu_time(pid)?);
    std::thread::sleep(WATCHED);
    Ok(100.0 * (cpu_time(pid)? - before) / start.elapsed().as_secs_f64())
}

/// Seconds from the choice of other pods to the first table in which the first pod has rows of its own, or none.
fn choose(on: &mut Accelerator, request: &AccelerateRequest, pods: &[Pod], first: &Pod, has_rows: bool) -> Result<f64> {
    let start = Instant::now();
    on.0.say(&Request::Choose(ChoosePods { pods: pods.to_vec(), elsewhere: request.elsewhere.clone() }))?;
    let is_chosen = |p: &Pair| first.ips.contains(&p.client.ip()) && !matches!(p.state, PairState::LeftAlone | PairState::Returned);
    on.await_pairs(Duration::from_secs(20), |p| p.pairs.iter().any(is_chosen) == has_rows)?;
    Ok(start.elapsed().as_secs_f64())
}

/// Times, memory and CPU time of a helper on a node that is full of pods.
///
/// # Errors
/// When a peer or the helper fails.
pub fn crowd(environment: &Environment, _: Effort) -> Result<Vec<Table>> {
    let mut crowd = Crowd::of(environment)?;
    let mut table = Table::new("110 pods with 10,000 connections on a node", &["path", "what", "measured", "goal"]);
    for (via, name) in [(Via::Short, "short"), (Via::Auto, "auto")] {
        let mut row = |what: &str, measured: String, goal: String| table.row(vec![name.to_owned(), what.to_owned(), measured, goal]);
        let none = || "-".to_owned();
        let request = crowd.request(environment, via);
        let before = maps()?;
        let start = Instant::now();
        let mut on = Accelerator::start_requested(&environment.lab, &request)?;
        row("command to armed", format!("{:.2} s", start.elapsed().as_secs_f64()), none());
        let accelerated = use_until_accelerated(CONNECTIONS, &mut on, || crowd.exchange(STEP))?;
        let all = goal("all", accelerated >= CONNECTIONS as u64);
        row(&format!("command to {accelerated} accelerated, in use meanwhile"), format!("{:.2} s", start.elapsed().as_secs_f64()), all);
        let (of_maps, of_helper) = memory(&before, &on)?;
        row("memory of the helper, and of its maps", format!("{:.1} MiB, {:.1} MiB", mib(of_helper), mib(of_maps)), none());
        row("CPU time of the helper while nothing is sent", format!("{:.1} % of a CPU", idle_share(on.0.pid())?), none());
        let first = &crowd.pods[0];
        let gone = choose(&mut on, &request, &crowd.pods[1..], first, false)?;
        row("a pod is removed from the choice: until a table shows it", format!("{gone:.2} s"), none());
        let back = choose(&mut on, &request, &crowd.pods, first, true)?;
        row("the pod is added again: until a table shows it", format!("{back:.2} s"), none());
        let start = Instant::now();
        on.finish()?;
        row("back to the stack", format!("{:.2} s", start.elapsed().as_secs_f64()), none());
        crowd.exchange(STEP).context("after the end")?;
    }
    Ok(vec![table])
}
