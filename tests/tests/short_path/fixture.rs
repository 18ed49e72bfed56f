//! A lab with an agent in each pod, and the short path for all of them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sockpath_kernel::conntrack::{Conntrack, TCP, Tuple};
use sockpath_protocol::accel::{Pair, PairState, Reason, Via};
use sockpath_protocol::lab::Overlay;
use sockpath_tests::lab::Lab;
use sockpath_tests::planted::tcx_ingress_programs;
use sockpath_tests::torture::accelerator::{Accelerator, Choice, status};
pub use sockpath_tests::torture::pods::exchange;
use sockpath_tests::torture::pods::{Pod, Remote};

/// The pods of the lab.
pub const PODS: [&str; 3] = ["curl", "httpbin", "httpbin-remote"];

/// Longest wait for a connection to get to a state.
const PATIENCE: Duration = Duration::from_secs(15);

pub struct Fixture {
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

impl Fixture {
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

    /// Where the maps of an acceleration are pinned.
    pub fn pins(&self) -> PathBuf {
        PathBuf::from(format!("/sys/fs/bpf/sockpath-{}", self.lab.instance()))
    }

    /// Has the pods' kernels compute checksums before a packet leaves its pod, and verify them where it arrives.
    pub fn without_checksum_offload(&self) {
        for pod in PODS {
            self.lab.inside(pod, || without_checksum_offload("eth0"));
        }
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
        self.await_short(on, &client, &server);
        (client, server)
    }

    /// As [`await_short`], by the rows that another session sees: the next table may be a second away.
    pub fn await_short(&self, on: &mut Accelerator, client: &Remote, server: &Remote) -> Vec<Pair> {
        let [local, remote] = [client, server].map(canonical);
        // The third part of a pod's address is the number of its node, the fourth in IPv6.
        let number = |end: SocketAddr| match end.ip() {
            IpAddr::V4(ip) => ip.octets()[2].into(),
            IpAddr::V6(ip) => ip.segments()[3],
        };
        let nodes = if number(local) == number(remote) { 1 } else { 2 };
        let end = Instant::now() + PATIENCE;
        loop {
            exchange(client, server, 20);
            let mut rows = status(&self.lab).expect("a status").pairs.pairs;
            // Conntrack takes the sender of the first packet for the client, also for a connection that is open already.
            rows.retain(|p| [p.client, p.dialled].contains(&local));
            if rows.len() == nodes && rows.iter().all(is_short) {
                return rows;
            }
            on.0.drain();
            assert!(Instant::now() < end, "not on the short path: {rows:#?}, warnings {:?}", on.0.warnings);
        }
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

fn is_short(p: &Pair) -> bool {
    p.state == PairState::Accelerated && p.bypassed_messages >= 20
}

fn canonical(socket: &Remote) -> SocketAddr {
    let local = socket.local();
    SocketAddr::new(local.ip().to_canonical(), local.port())
}

/// The rows of this client's connection: one for each node that sees it.
pub fn rows(on: &mut Accelerator, client: &Remote) -> Vec<Pair> {
    let local = canonical(client);
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
    await_rows(on, client, server, "on the short path", is_short)
}

/// Exchanges messages until the connection is refused for this reason.
pub fn await_refused(on: &mut Accelerator, client: &Remote, server: &Remote, reason: Reason) {
    await_rows(on, client, server, "refused", |p| p.state == PairState::LeftAlone && p.reason == Some(reason));
}

/// ETHTOOL_STXCSUM: the sender computes checksums itself.
fn without_checksum_offload(device: &str) {
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let mut value = [ETHTOOL_STXCSUM, 0];
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
    // SAFETY: the kernel reads the name and the two words that the request points to, which live until the call returns.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    assert_eq!(outcome, 0, "cannot turn checksum offload off: {}", std::io::Error::last_os_error());
}
