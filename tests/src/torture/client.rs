//! The connecting peer: worker threads take connection numbers and play their plans.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::content::{Content, Direction};
use super::conversation::{self, Setting, header, set_options};
use super::listener::Listener;
use super::net::{Kind, Socket};
use super::plan::{Plan, Side};
use super::prng::Prng;
use super::report::{Report, tell};
use super::tally::Tally;
use super::watch::Watch;

/// A route to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// For reports.
    pub name: String,
    /// Where the server's ports begin.
    pub to: SocketAddr,
}

impl FromStr for Route {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let (name, to) = s.split_once('=').with_context(|| format!("a route is NAME=ADDRESS:PORT, not {s:?}"))?;
        Ok(Self { name: name.to_owned(), to: to.parse().with_context(|| format!("invalid address {to:?}: use ADDRESS:PORT"))? })
    }
}

/// Options of the client.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The run's seed.
    pub seed: u64,
    /// Number of its first connection.
    pub from: u64,
    /// How many connections it makes.
    pub count: u64,
    /// How many at a time.
    pub concurrency: usize,
    /// Stop after this time even if connections are left.
    pub limit: Option<Duration>,
    /// Servers may be killed at any moment.
    pub doomed: bool,
    /// The routes to choose from.
    pub routes: Vec<Route>,
}

/// Plays all connections and reports.
///
/// # Errors
/// Without routes.
pub fn run(options: &ClientOptions) -> Result<()> {
    ensure!(!options.routes.is_empty(), "no --route given");
    let tally = Tally::default();
    let watch = Watch::start(|hang| eprintln!("hang: {hang}"));
    let next = AtomicU64::new(0);
    let start = Instant::now();
    let work = || {
        while options.limit.is_none_or(|l| start.elapsed() < l) {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= options.count {
                return;
            }
            connect_and_talk(options, options.from + n, &watch, &tally);
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..options.concurrency {
            std::thread::Builder::new().stack_size(1 << 20).spawn_scoped(scope, work).context("cannot start a thread")?;
        }
        Ok(())
    })?;
    tell(&Report::Done(tally.totals()));
    Ok(())
}

fn connect_and_talk(options: &ClientOptions, id: u64, watch: &Watch, tally: &Tally) {
    let plan = Plan::new(options.seed, id);
    let mut rng = Prng::new(options.seed ^ 0x0c11_e247, id);
    let route = &options.routes[usize::try_from(rng.below(options.routes.len() as u64)).unwrap_or(0)];
    let connected = match connect(options, &plan, route, &mut rng, true) {
        // The pair of addresses is still in TIME_WAIT from a connection before.
        Err(e) if matches!(e.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse) => {
            connect(options, &plan, route, &mut rng, false)
        }
        r => r,
    };
    match connected {
        Ok((socket, ahead)) => {
            let label = format!("client of {id} by {} from {:?}, {plan}", route.name, socket.local().ok());
            let outcome =
                conversation::run(&plan, Side::Client, socket, Setting { seed: options.seed, watch, label, ahead, doomed: options.doomed });
            tally.count(&plan, Side::Client, &route.name, options.doomed, outcome);
        }
        Err(_) if options.doomed => {
            tally.headless();
            // The server is being replaced; a tight loop would only burn connection numbers.
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(e) => tally.fault(Some(id), Side::Client, &route.name, format!("connect and header: {e} ({plan})")),
    }
}

/// Connects and sends the header; yields how many bytes of content went with it.
fn connect(options: &ClientOptions, plan: &Plan, route: &Route, rng: &mut Prng, common_port: bool) -> io::Result<(Socket, usize)> {
    let ipv6 = route.to.is_ipv6();
    let to = SocketAddr::new(route.to.ip(), plan.listener.port(route.to.port(), ipv6 || plan.server_v6));
    let mptcp = plan.listener == Listener::Mptcp && plan.id & 4 == 0;
    let socket = Socket::new(Kind { v6: ipv6 || plan.client_v6, mptcp })?;
    set_options(&socket, &plan.client, &plan.server)?;
    if common_port && to.ip().is_loopback() {
        bind_to_common_port(&socket, to, plan)?;
    }
    let mut first = header(options.seed, plan.id).to_vec();
    let header_len = first.len();
    if plan.joined_header {
        let mut n = plan.client.writes.first().map_or(0, |w| *w as usize);
        if let super::plan::Ending::Abrupt(Side::Client, at) = plan.ending {
            n = n.min(usize::try_from(at).unwrap_or(usize::MAX));
        }
        first.extend(Content::new(options.seed, plan.id, Direction::ToServer).bytes(0, n));
    }
    let mut at = 0;
    if plan.listener == Listener::FastOpen && rng.one_in(2) {
        at = socket.connect_with(to, &first)?;
    } else if rng.one_in(4) {
        socket.nonblocking(true)?;
        match socket.connect(to) {
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {
                socket.poll(libc::POLLOUT, Some(super::watch::DEADLINE))?;
                let error = socket.get(libc::SOL_SOCKET, libc::SO_ERROR)?;
                if error != 0 {
                    return Err(io::Error::from_raw_os_error(error));
                }
            }
            r => r?,
        }
        socket.nonblocking(false)?;
    } else {
        socket.connect(to)?;
    }
    // A reset after the header is part of some plans and shows again where it is judged.
    while at < first.len() {
        match socket.send(&first[at..], 0) {
            Ok(n) => at += n,
            Err(_) if at >= header_len => break,
            Err(e) => return Err(e),
        }
    }
    Ok((socket, at - header_len))
}

/// Takes the source port that the plan names, so that pods with equal plans hold equal address pairs on their loopback devices.
fn bind_to_common_port(socket: &Socket, to: SocketAddr, plan: &Plan) -> io::Result<()> {
    socket.set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    let port = 15_000 + u16::try_from(plan.id % 15_000).unwrap_or(0);
    let v6_socket = socket.get(libc::SOL_SOCKET, libc::SO_DOMAIN)? == libc::AF_INET6;
    let ip = match to.ip() {
        IpAddr::V4(v4) if v6_socket => IpAddr::V6(v4.to_ipv6_mapped()),
        ip => ip,
    };
    socket.bind(SocketAddr::new(ip, port))
}
