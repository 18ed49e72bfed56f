//! A lab with an agent in each pod, and the short path for all of them.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sockpath_kernel::conntrack::{Conntrack, TCP, Tuple};
use sockpath_protocol::accel::{Pair, PairState, Reason, Via};
use sockpath_protocol::lab::Overlay;
use sockpath_tests::lab::Lab;
use sockpath_tests::planted::tcx_ingress_programs;
use sockpath_tests::torture::accelerator::{Accelerator, Choice};
pub use sockpath_tests::torture::pods::exchange;
use sockpath_tests::torture::pods::{Pod, Remote};

/// Longest wait for a connection to get to a state.
const PATIENCE: Duration = Duration::from_secs(15);

pub struct Scene {
    // Agents first: they have to be gone before the lab is.
    pub curl: Pod,
    pub httpbin: Pod,
    pub remote: Pod,
    pub lab: Lab,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Scene {
    /// `None`, after reporting it, where this test cannot run.
    pub fn new(test: &str) -> Option<Self> {
        Self::with(test, Overlay::None)
    }

    pub fn with(test: &str, overlay: Overlay) -> Option<Self> {
        if !sockpath_tests::root_or_skip(test) {
            return None;
        }
        let lab = Lab::up_with(overlay);
        let pod = |name| Pod::new(&lab, name);
        Some(Self { curl: pod("curl"), httpbin: pod("httpbin"), remote: pod("httpbin-remote"), lab })
    }

    pub fn accelerate(&self) -> Accelerator {
        Accelerator::start_with(&self.lab, &Choice { via: Via::Short, ..Choice::default() }).expect("the short path does not start")
    }

    /// How many tcx links are at the node's end of a pod's device, at ingress; `None` before Linux 6.6, which has only filters.
    pub fn links_at(&self, pod: &str) -> Option<usize> {
        let device = self.lab.host_veth(pod, "node-1");
        self.lab.inside("node-1", || tcx_ingress_programs(&device))
    }

    pub fn ip(&self, pod: &str, family: Family) -> IpAddr {
        let fits = |ip: &IpAddr| ip.is_ipv4() == (family == Family::V4);
        self.lab.pod(pod).ips.into_iter().find(fits).expect("no address of this family")
    }

    /// A connection from curl to a pod, dialled at some address: client's end, server's end.
    pub fn connect_to(&self, server: &Pod, port: u16, dialled: SocketAddr) -> (Remote, Remote) {
        let listener = server.listen(port, &[]);
        let client = self.curl.connect(dialled);
        let accepted = listener.accept();
        accepted.set(libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
        listener.close();
        (client, accepted)
    }

    /// A connection from curl to httpbin.
    pub fn connect(&self, port: u16) -> (Remote, Remote) {
        self.connect_to(&self.httpbin, port, SocketAddr::new(self.ip("httpbin", Family::V4), port))
    }

    /// The same, already on the short path.
    pub fn connect_short(&self, on: &mut Accelerator, port: u16) -> (Remote, Remote) {
        let (client, server) = self.connect(port);
        await_short(on, &client, &server);
        (client, server)
    }

    /// Does something with connection tracking of node-1.
    pub fn conntrack<T: Send>(&self, work: impl FnOnce(&mut Conntrack) -> T + Send) -> T {
        self.lab.inside("node-1", || work(&mut Conntrack::open().expect("connection tracking")))
    }

    /// The original tuple of a TCP connection that curl has dialled.
    pub fn tuple(client: &Remote, dialled: SocketAddr) -> Tuple {
        let local = client.local();
        Tuple { protocol: TCP, source: SocketAddr::new(local.ip().to_canonical(), local.port()), destination: dialled }
    }
}

/// The rows of this client's connection: one for each node that sees it.
pub fn rows(on: &mut Accelerator, client: &Remote) -> Vec<Pair> {
    let local = client.local();
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    let pairs = on.next_pairs().expect("no table of pairs").pairs;
    pairs.into_iter().filter(|p| p.client == local).collect()
}

/// Exchanges messages until `fine` holds for every row of the connection.
pub fn await_rows(on: &mut Accelerator, client: &Remote, server: &Remote, what: &str, fine: impl Fn(&Pair) -> bool) -> Vec<Pair> {
    let end = Instant::now() + PATIENCE;
    loop {
        exchange(client, server, 20);
        let rows = rows(on, client);
        if !rows.is_empty() && rows.iter().all(&fine) {
            return rows;
        }
        assert!(Instant::now() < end, "not {what}: {rows:#?}, warnings {:?}", on.0.warnings);
    }
}

/// Exchanges messages until the connection's packets are redirected, on every node that sees it.
pub fn await_short(on: &mut Accelerator, client: &Remote, server: &Remote) -> Vec<Pair> {
    await_rows(on, client, server, "on the short path", |p| p.state == PairState::Accelerated && p.bypassed_messages >= 20)
}

/// Exchanges messages until the connection is refused for this reason.
pub fn await_refused(on: &mut Accelerator, client: &Remote, server: &Remote, reason: Reason) {
    await_rows(on, client, server, "refused", |p| p.state == PairState::LeftAlone && p.reason == Some(reason));
}
