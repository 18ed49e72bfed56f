//! The accepting peer: one listener per variant and family, one thread per connection.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::conversation::{self, HEADER, Setting, parse_header, set_options};
use super::listener::Listener;
use super::net::{Kind, Socket};
use super::outcome::End;
use super::plan::{Plan, Side};
use super::prng::Prng;
use super::report::{Report, tell};
use super::tally::Tally;
use super::watch::{Call, DEADLINE, Watch};
use crate::state::look;

/// Options of the server.
#[derive(Debug, Clone, Copy)]
pub struct ServerOptions {
    /// First of [`Listener::PORTS`] ports.
    pub port: u16,
    /// The run's seed.
    pub seed: u64,
    /// The peer may be killed at any moment.
    pub doomed: bool,
}

struct Server {
    options: ServerOptions,
    watch: Watch,
    tally: Tally,
    busy: AtomicUsize,
}

/// Serves until stdin closes, then waits for what is open and reports.
///
/// # Errors
/// When a listener cannot be made.
pub fn run(options: ServerOptions) -> Result<()> {
    if std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").is_err() {
        tell(&Report::Skipped { text: "data in the SYN: net.ipv4.tcp_fastopen cannot be set here".to_owned() });
    }
    let watch = Watch::start(|hang| eprintln!("hang: {hang}"));
    let server = Arc::new(Server { options, watch, tally: Tally::default(), busy: AtomicUsize::new(0) });
    for variant in Listener::ALL {
        for v6 in [false, true] {
            let port = variant.port(options.port, v6);
            let kind = Kind { v6, mptcp: variant == Listener::Mptcp };
            match Socket::listen(kind, port, |s| listener_options(s, variant)) {
                Ok(listener) => {
                    let server = server.clone();
                    std::thread::spawn(move || server.accept(&listener, variant, v6));
                }
                Err(e) if variant == Listener::Mptcp => tell(&Report::Skipped { text: format!("MPTCP listener: {e}") }),
                Err(e) => return Err(e).with_context(|| format!("cannot listen on port {port} ({variant:?}, v6: {v6})")),
            }
        }
    }
    tell(&Report::Ready { pid: std::process::id() });
    io::stdin().read_to_end(&mut Vec::new()).context("cannot read stdin")?;
    let _ = look(DEADLINE * 2, || (server.busy.load(Ordering::Acquire) == 0).then_some(()));
    let left = server.busy.load(Ordering::Acquire);
    if left > 0 {
        server.tally.fault(None, Side::Server, "", format!("{left} connections did not end"));
    }
    tell(&Report::Done(server.tally.totals()));
    Ok(())
}

fn listener_options(socket: &Socket, variant: Listener) -> io::Result<()> {
    if variant != Listener::Mptcp {
        // Before the plan is known: urgent data that comes earlier would be taken out of the stream.
        socket.set(libc::SOL_SOCKET, libc::SO_OOBINLINE, 1)?;
    }
    match variant {
        Listener::Plain | Listener::Mptcp | Listener::Slow => Ok(()),
        Listener::Defer | Listener::DeferSlow => socket.set(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5),
        Listener::FastOpen => socket.set(libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 256),
        Listener::TinyBuffers => {
            socket.set(libc::SOL_SOCKET, libc::SO_RCVBUF, 4_096)?;
            socket.set(libc::SOL_SOCKET, libc::SO_SNDBUF, 4_096)
        }
        Listener::HugeBuffers => {
            socket.set(libc::SOL_SOCKET, libc::SO_RCVBUF, 8 << 20)?;
            socket.set(libc::SOL_SOCKET, libc::SO_SNDBUF, 8 << 20)
        }
    }
}

impl Server {
    fn accept(self: Arc<Self>, listener: &Socket, variant: Listener, v6: bool) {
        let slow = matches!(variant, Listener::Slow | Listener::DeferSlow);
        let mut rng = Prng::new(self.options.seed, u64::from(variant.port(0, v6)));
        loop {
            if slow && rng.one_in(2) {
                std::thread::sleep(Duration::from_micros(rng.below(8_000)));
            }
            match listener.accept() {
                Ok(socket) => {
                    self.busy.fetch_add(1, Ordering::AcqRel);
                    let server = self.clone();
                    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
                        server.serve(socket, variant);
                        server.busy.fetch_sub(1, Ordering::AcqRel);
                    });
                    if let Err(e) = thread {
                        self.busy.fetch_sub(1, Ordering::AcqRel);
                        self.tally.fault(None, Side::Server, "", format!("no thread for a connection: {e}"));
                    }
                }
                // The client reset before accept, which accept(2) tells as the new socket's error.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ECONNABORTED | libc::ECONNRESET | libc::EINTR)) => {}
                Err(e) => {
                    self.tally.fault(None, Side::Server, "", format!("accept: {e}"));
                    return;
                }
            }
        }
    }

    fn serve(&self, socket: Socket, variant: Listener) {
        let route = socket.peer().map_or_else(|e| e.to_string(), |a| a.to_string());
        let bytes = match self.read_header(&socket, variant, &route) {
            Ok(bytes) => bytes,
            Err(e) if End::of(&e) == End::Reset || self.options.doomed => return self.tally.headless(),
            Err(e) => return self.tally.fault(None, Side::Server, &route, format!("no header ({variant:?}): {e}")),
        };
        let Some(id) = parse_header(self.options.seed, &bytes) else {
            return self.tally.fault(None, Side::Server, &route, format!("the first bytes ({variant:?}) are wrong: {bytes:02x?}"));
        };
        let plan = Plan::new(self.options.seed, id);
        std::thread::sleep(Duration::from_micros(plan.accept_pause_us));
        if let Err(e) = set_options(&socket, &plan.server, &plan.client) {
            // A reset may have come already, then options are refused.
            if plan.deterministic() && !self.options.doomed {
                self.tally.fault(Some(id), Side::Server, &route, format!("socket options: {e}"));
            }
            return;
        }
        let label = format!("server of {id} from {route}, {plan}");
        let outcome = conversation::run(
            &plan,
            Side::Server,
            socket,
            Setting { seed: self.options.seed, watch: &self.watch, label, ahead: 0, doomed: self.options.doomed },
        );
        self.tally.count(&plan, Side::Server, "all", self.options.doomed, outcome);
    }

    fn read_header(&self, socket: &Socket, variant: Listener, route: &str) -> io::Result<[u8; HEADER]> {
        let guard = self.watch.add(format!("server header ({variant:?}) from {route}"), socket);
        let (mut bytes, mut have) = ([0; HEADER], 0);
        while have < HEADER {
            guard.begin(Call::Read, have as u64);
            // Not asleep in recv, or no connection would be accelerated.
            let n = socket.poll(libc::POLLIN, None).and_then(|_| socket.recv(&mut bytes[have..], libc::MSG_DONTWAIT));
            guard.end(Call::Read, have as u64);
            match n {
                Ok(0) => return Err(io::Error::other(format!("end of stream after {have} bytes"))),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(bytes)
    }
}
