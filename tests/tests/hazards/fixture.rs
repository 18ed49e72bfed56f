//! A lab with an agent in two pods of one node, and acceleration between them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sockpath_protocol::accel::{Pair, PairState, Reason};
use sockpath_tests::lab::Lab;
use sockpath_tests::torture::accelerator::{Accelerator, Choice};
use sockpath_tests::torture::peers::OwnProgram;
pub use sockpath_tests::torture::pods::exchange;
use sockpath_tests::torture::pods::{Pod, Remote};

/// `SO_*` and `TCP_*` values by name are in libc; these are the levels.
pub const SOCKET: i32 = libc::SOL_SOCKET;
pub const TCP: i32 = libc::IPPROTO_TCP;

pub struct Fixture {
    // Agents first: they have to be gone before the lab is.
    pub curl: Pod,
    pub httpbin: Pod,
    pub lab: Lab,
    /// The agents' program, when it is a copy.
    _program: Option<OwnProgram>,
}

impl Fixture {
    /// `None`, after saying so, where this test cannot run.
    pub fn new(test: &str) -> Option<Self> {
        if !sockpath_tests::root_or_skip(test) {
            return None;
        }
        let lab = Lab::up();
        Some(Self { curl: Pod::new(&lab, "curl"), httpbin: Pod::new(&lab, "httpbin"), lab, _program: None })
    }

    /// The same with agents that use FIONREAD. they are a separate program: one that does so is excluded, whatever connection it is, and
    /// other tests run beside this one.
    pub fn of_askers(test: &str) -> Option<Self> {
        if !sockpath_tests::root_or_skip(test) {
            return None;
        }
        let lab = Lab::up();
        let program = OwnProgram::of_torture().expect("a copy of the program");
        let pod = |name| Pod::of_program(&program, &lab, name);
        Some(Self { curl: pod("curl"), httpbin: pod("httpbin"), lab, _program: Some(program) })
    }

    pub fn accelerate(&self) -> Accelerator {
        Accelerator::start(&self.lab).expect("acceleration does not start")
    }

    pub fn accelerate_with(&self, choice: &Choice) -> Accelerator {
        Accelerator::start_with(&self.lab, choice).expect("acceleration does not start")
    }

    /// An address of httpbin.
    pub fn httpbin_at(&self, port: u16) -> SocketAddr {
        let ip = self.lab.pod("httpbin").ips.into_iter().find(|ip| ip.is_ipv4()).expect("no IPv4 address");
        SocketAddr::new(ip, port)
    }

    /// A connection from curl to httpbin: client's end, server's end.
    pub fn connect(&self, port: u16) -> (Remote, Remote) {
        let listener = self.httpbin.listen(port, &[]);
        let client = self.curl.connect(self.httpbin_at(port));
        let server = listener.accept();
        server.set(TCP, libc::TCP_NODELAY, 1);
        listener.close();
        (client, server)
    }

    /// The same, already accelerated.
    pub fn connect_accelerated(&self, on: &mut Accelerator, port: u16) -> (Remote, Remote) {
        let (client, server) = self.connect(port);
        await_accelerated(on, &client, &server);
        (client, server)
    }
}

/// The row of this connection in the next table.
pub fn pair(on: &mut Accelerator, client: &Remote) -> Option<Pair> {
    let local = client.local();
    let unmapped = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    let pairs = on.next_pairs().expect("no table of pairs").pairs;
    pairs.into_iter().find(|p| unmapped(p.client) == unmapped(local))
}

/// Exchanges messages until this connection's bytes go socket to socket.
pub fn await_accelerated(on: &mut Accelerator, client: &Remote, server: &Remote) {
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        exchange(client, server, 20);
        let row = pair(on, client);
        if row.as_ref().is_some_and(|p| p.state == PairState::Accelerated && p.bypassed_messages >= 10) {
            return;
        }
        assert!(Instant::now() < end, "this connection was not accelerated: {row:#?}, warnings {:?}", on.0.warnings);
    }
}

/// The connection's row in the first table that comes a second from now or later: it had every chance to be accelerated.
fn row_after_a_second(on: &mut Accelerator, client: &Remote) -> Option<Pair> {
    let end = Instant::now() + Duration::from_secs(1);
    loop {
        let row = pair(on, client);
        if Instant::now() >= end {
            return row;
        }
    }
}

/// Asserts that this connection is not accelerated, for that reason, after it had every chance.
pub fn assert_left_alone(on: &mut Accelerator, client: &Remote, reason: Reason) {
    let row = row_after_a_second(on, client).expect("no row for this connection");
    assert!(row.state != PairState::Accelerated && row.reason == Some(reason), "{row:#?}");
}

/// Asserts that the helper tracks this connection and that nothing of it went socket to socket.
pub fn assert_untouched(on: &mut Accelerator, client: &Remote) {
    let row = row_after_a_second(on, client);
    let row = row.unwrap_or_else(|| panic!("no row for the connection from {}: the test shows nothing", client.local()));
    assert_eq!(row.bypassed_messages, 0, "{row:#?}");
}
