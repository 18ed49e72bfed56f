//! Runs connections over a lab of its own while acceleration comes and goes, and adds up what all ends saw.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sockpath_protocol::accel::Via;
use sockpath_protocol::lab::LabStatus;

use super::accelerator::Choice;
use super::chaos::{self, Deeds};
use super::listener::Listener;
use super::peers::{OwnProgram, Peer};
use super::plan::{ASKING, DOOMED, TIGHT};
use super::prng::Prng;
use super::report::{Report, Totals};
use super::tight::TightMemory;
use crate::lab::Lab;

/// First port of the servers in every pod.
const PORT: u16 = 7000;
/// First port of the server that is killed again and again.
const DOOMED_PORT: u16 = 7100;
/// First port of the server whose TCP memory is limited.
const TIGHT_PORT: u16 = 7200;
/// First port of the server whose readers use FIONREAD.
const ASKING_PORT: u16 = 7300;
/// Numbers of the second client's connections begin here; a multiple of the range of source ports, so that both clients use equal ones.
const SECOND: u64 = 15_000_000_000;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Torture {
    /// Everything random follows from this.
    pub seed: u64,
    /// Connections in all.
    pub connections: u64,
    /// Switch acceleration on and off meanwhile.
    pub accelerate: bool,
    /// Accelerate by the copy of the programs without the order gate; this has to fail.
    pub without_order_gate: bool,
    /// The path; with [`Via::Auto`] the peers' program counts as proven for the socket path.
    pub via: Via,
    /// Make no new connections after this time.
    pub limit: Option<Duration>,
}

/// How a fault begins where the peer has reset the connection and this side did not learn that (`outcome.rs`).
const WAITED_AFTER_RESET: &str = "hung; after a reset at ";

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Sums of the clients.
    pub clients: Totals,
    /// Sums of the servers.
    pub servers: Totals,
    /// Connections to servers that were killed meanwhile, and how often one was.
    pub doomed: (u64, u64),
    /// Where memory was tight: most bytes of TCP memory in use.
    pub tight: u64,
    /// What went wrong, in words.
    pub faults: Vec<String>,
    /// Connections without any acceleration on which TCP itself lost the peer's reset, which is sent once: they waited without end.
    pub lost_resets: usize,
    /// What could not be tested.
    pub skipped: Vec<String>,
    /// What the second actor did.
    pub deeds: Option<Deeds>,
    /// How long it took.
    pub took: Duration,
}

impl Torture {
    /// What is accelerated, and how.
    fn choice(&self) -> Choice {
        let socket_programs = if self.via == Via::Auto { vec!["torture".to_owned()] } else { Vec::new() };
        Choice { without_order_gate: self.without_order_gate, via: self.via, socket_programs, ..Choice::default() }
    }

    /// Brings a lab up and runs everything in it.
    ///
    /// # Errors
    /// When the lab, the peers or the helper fail; wrong bytes and hangs are in the [`Verdict`].
    pub fn run(&self) -> Result<Verdict> {
        let start = Instant::now();
        let lab = Lab::up();
        let status = lab.status();
        forward_service_ports(&lab, &status)?;
        let over = AtomicBool::new(false);
        let mut verdict = std::thread::scope(|scope| {
            let (lab, over) = (&lab, &over);
            let chaos = self.accelerate.then(|| {
                let (on, is_on) = channel();
                let choice = self.choice();
                let chaos = scope.spawn(move || chaos::run(lab, self.seed, &choice, over, on));
                // Under the load of the connections starting takes many seconds: the first acceleration is there before them.
                let _ = is_on.recv();
                chaos
            });
            let doomed = scope.spawn(|| self.doomed(lab, &status, over));
            let verdict = self.batches(lab, &status);
            over.store(true, Ordering::Release);
            let mut verdict = verdict?;
            let (connections, deaths, faults) = joined(doomed.join())?;
            verdict.doomed = (connections, deaths);
            verdict.faults.extend(faults);
            if let Some(chaos) = chaos {
                match joined(chaos.join()) {
                    Ok(deeds) => verdict.deeds = Some(deeds),
                    Err(e) => verdict.faults.push(format!("the actor that switches acceleration: {e:#}")),
                }
            }
            anyhow::Ok(verdict)
        })?;
        let deviations = verdict.clients.deviations + verdict.servers.deviations;
        let is_tcp = !self.accelerate || self.via == Via::Short;
        if deviations > 0 && is_tcp {
            verdict.faults.push(format!("{deviations} connections saw no reset although the peer closed with unread bytes"));
        }
        let misled = verdict.clients.misled + verdict.servers.misled;
        if misled > 0 && is_tcp {
            verdict.faults.push(format!("on {misled} connections FIONREAD counted 0 bytes where some were unread"));
        }
        if self.accelerate
            && let Err(e) = chaos::nothing_left(&lab)
        {
            verdict.faults.push(format!("{e:#}"));
        }
        verdict.took = start.elapsed();
        Ok(verdict)
    }

    fn args(&self, role: &str, more: &[&str]) -> Vec<String> {
        let mut args = vec![role.to_owned(), "--seed".to_owned(), self.seed.to_string()];
        args.extend(more.iter().map(|s| (*s).to_owned()));
        args
    }

    /// The connections that have to come out right to the last byte.
    fn batches(&self, lab: &Lab, status: &LabStatus) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        let mut servers = Vec::new();
        for (pod, port) in [("curl", PORT), ("httpbin", PORT), ("httpbin-remote", PORT), ("httpbin", TIGHT_PORT)] {
            let mut server = Peer::start(lab, pod, &self.args("server", &["--port", &port.to_string()]))?;
            server.ready()?;
            servers.push(server);
        }
        let asking = OwnProgram::of_torture()?;
        let mut server = Peer::start_program(asking.path(), lab, "httpbin", &self.args("server", &["--port", &ASKING_PORT.to_string()]))?;
        server.ready()?;
        servers.insert(0, server);
        let mut clients = vec![self.asking_client(&asking, lab, status)?];
        let tight = servers.last().context("no server").and_then(|s| TightMemory::new(s.pid()));
        match &tight {
            Ok(_) => clients.push(self.tight_client(lab, status)?),
            Err(e) => verdict.skipped.push(format!("tight memory: {e:#}")),
        }
        let second = self.connections / 4;
        for (pod, from, count) in [("curl", 0, self.connections - second), ("httpbin", SECOND, second)] {
            let mut args = self.args("client", &["--from", &from.to_string(), "--count", &count.to_string()]);
            if let Some(limit) = self.limit {
                args.extend(["--limit-ms".to_owned(), limit.as_millis().to_string()]);
            }
            args.extend(routes(status, pod));
            clients.push(Peer::start(lab, pod, &args)?);
        }
        // Generous: what is not watched by a deadline of its own inside the peers still has to end.
        let patience = self.limit.unwrap_or_default() + Duration::from_secs(60) + Duration::from_millis(30 * self.connections);
        for client in &mut clients {
            add(&mut verdict.clients, &client.totals(patience)?);
        }
        for server in &mut servers {
            add(&mut verdict.servers, &server.end(Duration::from_secs(60))?);
        }
        for peer in clients.iter().chain(&servers) {
            let waited = |fault: &&Report| matches!(fault, Report::Fault { text, .. } if text.starts_with(WAITED_AFTER_RESET));
            let (lost, faults): (Vec<_>, Vec<_>) = peer.faults.iter().partition(|fault| !self.accelerate && waited(fault));
            verdict.lost_resets += lost.len();
            verdict.faults.extend(faults.iter().map(|f| format!("{f:?}")));
            verdict.skipped.extend(peer.skipped.iter().map(|s| format!("{}: {s}", peer.name)));
        }
        let (ours, theirs) = (verdict.clients.connections, verdict.servers.connections + verdict.servers.headless);
        let faulty = verdict.clients.faults + verdict.servers.faults;
        if faulty == 0 && ours != theirs {
            verdict.faults.push(format!("the clients made {ours} connections, the servers saw {theirs}"));
        }
        if faulty > 0 && verdict.faults.is_empty() && verdict.lost_resets == 0 {
            verdict.faults.push(format!("{faulty} connections with faults"));
        }
        if let Ok(tight) = tight {
            verdict.tight = tight.most_used();
        }
        Ok(verdict)
    }

    /// One connection in ten is between programs that use FIONREAD.
    fn asking_client(&self, asking: &OwnProgram, lab: &Lab, status: &LabStatus) -> Result<Peer> {
        let to = pod_ip(status, "httpbin", false).context("httpbin has no IPv4 address")?;
        let (from, count) = (ASKING.to_string(), (self.connections / 10).to_string());
        let route = format!("asking4={to}:{ASKING_PORT}");
        let mut args = self.args("client", &["--from", &from, "--count", &count, "--concurrency", "12", "--route", &route]);
        if let Some(limit) = self.limit {
            args.extend(["--limit-ms".to_owned(), limit.as_millis().to_string()]);
        }
        Peer::start_program(asking.path(), lab, "curl", &args)
    }

    /// One connection in twenty goes to the server whose memory is tight.
    fn tight_client(&self, lab: &Lab, status: &LabStatus) -> Result<Peer> {
        let to = pod_ip(status, "httpbin", false).context("httpbin has no IPv4 address")?;
        let (from, count) = (TIGHT.to_string(), (self.connections / 20).to_string());
        let route = format!("tight4={to}:{TIGHT_PORT}");
        let mut args = self.args("client", &["--from", &from, "--count", &count, "--concurrency", "12", "--route", &route]);
        if let Some(limit) = self.limit {
            args.extend(["--limit-ms".to_owned(), limit.as_millis().to_string()]);
        }
        Peer::start(lab, "curl", &args)
    }

    /// Connections to a server that is killed again and again: right bytes up to some point, then an end, never a hang.
    fn doomed(&self, lab: &Lab, status: &LabStatus, over: &AtomicBool) -> Result<(u64, u64, Vec<String>)> {
        let mut rng = Prng::new(self.seed, DOOMED);
        let (mut connections, mut deaths, mut faults) = (0, 0, Vec::new());
        let to = pod_ip(status, "httpbin", false).context("httpbin has no IPv4 address")?;
        while !over.load(Ordering::Acquire) {
            let mut server = Peer::start(lab, "httpbin", &self.args("server", &["--doomed", "--port", &DOOMED_PORT.to_string()]))?;
            server.ready()?;
            let from = (DOOMED + deaths * 1_000).to_string();
            let route = format!("doomed={to}:{DOOMED_PORT}");
            let more = ["--doomed", "--from", &from, "--count", "400", "--concurrency", "10", "--limit-ms", "1500", "--route", &route];
            let mut client = Peer::start(lab, "curl", &self.args("client", &more))?;
            std::thread::sleep(Duration::from_millis(rng.between(50, 900)));
            // Sometimes the client's pod dies, sometimes the server's.
            if rng.one_in(3) {
                client.kill();
                server.kill();
            } else {
                server.kill();
                connections += client.totals(Duration::from_secs(60))?.connections;
            }
            deaths += 1;
            faults.extend(client.faults.iter().chain(&server.faults).map(|f| format!("{f:?}")));
        }
        Ok((connections, deaths, faults))
    }
}

fn joined<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.map_err(|_| anyhow::anyhow!("a thread of the controller panicked"))?
}

fn add(sum: &mut Totals, more: &Totals) {
    sum.connections += more.connections;
    sum.headless += more.headless;
    sum.received += more.received;
    sum.sent += more.sent;
    sum.messages += more.messages;
    sum.faults += more.faults;
    sum.deviations += more.deviations;
    sum.misled += more.misled;
    sum.digest = sum.digest.wrapping_add(more.digest);
    for (route, n) in &more.routes {
        *sum.routes.entry(route.clone()).or_default() += n;
    }
}

fn pod_ip(status: &LabStatus, pod: &str, v6: bool) -> Option<std::net::IpAddr> {
    status.pods.iter().find(|p| p.name == pod)?.ips.iter().copied().find(|ip| ip.is_ipv6() == v6)
}

fn service_ip(status: &LabStatus, service: &str, v6: bool) -> Option<std::net::IpAddr> {
    status.services.iter().find(|s| s.name == service)?.cluster_ips.iter().copied().find(|ip| ip.is_ipv6() == v6)
}

/// The routes from a pod, as arguments of the client. Same-node routes come twice: they are what is accelerated.
fn routes(status: &LabStatus, from: &str) -> Vec<String> {
    let peer = if from == "curl" { "httpbin" } else { "curl" };
    let service = if from == "curl" { "svc" } else { "hairpin" };
    let mut args = Vec::new();
    for v6 in [false, true] {
        let family = if v6 { '6' } else { '4' };
        let local = Some(if v6 { std::net::Ipv6Addr::LOCALHOST.into() } else { std::net::Ipv4Addr::LOCALHOST.into() });
        let mut ways = vec![
            ("direct", pod_ip(status, peer, v6)),
            ("direct", pod_ip(status, peer, v6)),
            (service, service_ip(status, "httpbin", v6)),
            (service, service_ip(status, "httpbin", v6)),
            ("loopback", local),
            ("own", pod_ip(status, from, v6)),
        ];
        if from == "curl" {
            ways.push(("remote", pod_ip(status, "httpbin-remote", v6)));
        }
        for (name, ip) in ways {
            if let Some(ip) = ip {
                args.extend(["--route".to_owned(), format!("{name}{family}={}", std::net::SocketAddr::new(ip, PORT))]);
            }
        }
    }
    args
}

/// Lets the Service of httpbin forward the torture's ports as well, in the form kube-proxy gives its rules.
///
/// # Errors
/// When iptables refuses.
pub fn forward_service_ports(lab: &Lab, status: &LabStatus) -> Result<()> {
    for (program, v6) in [("iptables", false), ("ip6tables", true)] {
        let (Some(vip), Some(pod)) = (service_ip(status, "httpbin", v6), pod_ip(status, "httpbin", v6)) else { continue };
        let ports = "5000:7999";
        let rules = [
            "-t nat -N KUBE-SVC-TORTURE".to_owned(),
            format!("-t nat -A KUBE-SVC-TORTURE -s {pod} -j KUBE-MARK-MASQ"),
            format!("-t nat -A KUBE-SVC-TORTURE -p tcp -j DNAT --to-destination {pod}"),
            format!("-t nat -I KUBE-SERVICES -d {vip} -p tcp --dport {ports} -j KUBE-SVC-TORTURE"),
        ];
        for rule in rules {
            let words = [program, "-w"].into_iter().chain(rule.split(' '));
            let out = lab.exec("node-1", words).output().context("cannot run iptables")?;
            anyhow::ensure!(out.status.success(), "{program} {rule}: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
    Ok(())
}

impl Verdict {
    /// Whether everything was as it has to be.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.faults.is_empty()
    }

    /// The part of all writes, cross-node ones and those of unaccelerated times included, that went socket to socket. What peers that
    /// were killed meanwhile exchanged is in the first number only.
    #[must_use]
    pub fn bypassed_share(&self) -> f64 {
        let all = self.clients.messages + self.servers.messages;
        self.deeds.as_ref().map_or(0.0, |d| d.bypassed_messages as f64 / all.max(1) as f64)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MB: u64 = 1_000_000;
        writeln!(
            f,
            "{} connections in {:.1} s, {} MB to servers and {} MB to clients checked byte by byte",
            self.clients.connections,
            self.took.as_secs_f64(),
            self.servers.received / MB,
            self.clients.received / MB
        )?;
        let routes: Vec<_> = self.clients.routes.iter().map(|(r, n)| format!("{r} {n}")).collect();
        writeln!(f, "routes: {}", routes.join(", "))?;
        writeln!(f, "{} more to servers or by clients that were killed {} times", self.doomed.0, self.doomed.1)?;
        let (limit, used) = (TightMemory::TCP_BYTES, self.tight);
        writeln!(f, "where TCP memory was limited to {limit} bytes, {used} were in use at most")?;
        if let Some(deeds) = &self.deeds {
            let modes: Vec<_> = deeds.modes.iter().map(|(w, n)| format!("{w} {n}")).collect();
            writeln!(f, "acceleration went on and off: {}; it was on for {:.1} s", modes.join(", "), deeds.on.as_secs_f64())?;
            let (mb, messages) = (deeds.bypassed_bytes / MB, deeds.bypassed_messages);
            let all = self.clients.messages + self.servers.messages;
            writeln!(
                f,
                "{mb} MB in {messages} messages or packets bypassed the stack, {:.0} % of all {all} writes",
                100.0 * self.bypassed_share()
            )?;
            let mut passes: Vec<_> = deeds.passes.iter().collect();
            passes.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
            let passes: Vec<_> = passes.iter().map(|(reason, n)| format!("{} {n}", reason.text())).collect();
            writeln!(f, "messages and packets that did not: {}", passes.join(", "))?;
        }
        let deviations = self.clients.deviations + self.servers.deviations;
        if deviations > 0 {
            writeln!(f, "deviation: {deviations} connections whose peer closed with unread bytes saw a FIN where TCP sends a reset")?;
        }
        let misled = self.clients.misled + self.servers.misled;
        if misled > 0 {
            writeln!(f, "deviation: on {misled} connections the first FIONREAD counted 0 bytes although TCP bytes were unread")?;
        }
        if self.lost_resets > 0 {
            writeln!(f, "plain TCP lost the reset of {} connections, whose peers waited in vain", self.lost_resets)?;
        }
        for skipped in &self.skipped {
            writeln!(f, "skipped: {skipped}")?;
        }
        for fault in self.faults.iter().take(30) {
            writeln!(f, "FAULT: {fault}")?;
        }
        write!(f, "{} faults", self.faults.len())
    }
}

/// The ports that a server takes, for those who set rules.
#[must_use]
pub fn ports() -> std::ops::Range<u16> {
    PORT..PORT + Listener::PORTS
}
