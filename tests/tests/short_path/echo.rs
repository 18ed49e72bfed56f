//! Connections and flows of datagrams with servers that send back what comes, such as those of the lab's pods: several at once.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use sockpath_protocol::accel::{Carrier, Pair, PairState, Reason};
use sockpath_tests::lab::Lab;
use sockpath_tests::torture::accelerator::{Accelerator, status};

const PATIENCE: Duration = Duration::from_secs(20);

/// Before tcx links (6.6), a device drops what it sends while it gets the queue discipline of the filters.
const LOSSES: usize = 3;

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

/// A connection, or datagrams between two ports.
#[derive(Debug)]
pub struct Flow {
    pub local: SocketAddr,
    pub dialled: SocketAddr,
    socket: Socket,
}

impl Flow {
    /// A connection from a pod or node.
    pub fn tcp(lab: &Lab, from: &str, dialled: SocketAddr) -> Self {
        let connected = lab.inside(from, || TcpStream::connect_timeout(&dialled, Duration::from_secs(10)));
        let stream = connected.unwrap_or_else(|e| panic!("{from} does not connect to {dialled}: {e}"));
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { local: stream.local_addr().expect("an address"), dialled, socket: Socket::Tcp(stream) }
    }

    /// Datagrams from a pod or node.
    pub fn udp(lab: &Lab, from: &str, dialled: SocketAddr) -> Self {
        let any: IpAddr = if dialled.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = lab.inside(from, || {
            let socket = UdpSocket::bind((any, 0)).expect("a socket");
            socket.connect(dialled).expect("connect");
            socket
        });
        socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
        Self { local: socket.local_addr().expect("an address"), dialled, socket: Socket::Udp(socket) }
    }

    /// One of each from a pod or node.
    pub fn both(lab: &Lab, from: &str, dialled: SocketAddr) -> [Self; 2] {
        [Self::tcp(lab, from, dialled), Self::udp(lab, from, dialled)]
    }

    pub fn is_tcp(&self) -> bool {
        matches!(self.socket, Socket::Tcp(_))
    }

    /// setsockopt(2) of an integer.
    pub fn set(&self, level: i32, name: i32, value: i32) {
        self.set_bytes(level, name, &value.to_ne_bytes());
    }

    /// setsockopt(2) of bytes.
    pub fn set_bytes(&self, level: i32, name: i32, value: &[u8]) {
        let fd = match &self.socket {
            Socket::Tcp(stream) => stream.as_raw_fd(),
            Socket::Udp(socket) => socket.as_raw_fd(),
        };
        let length = u32::try_from(value.len()).expect("a small number");
        // SAFETY: the kernel reads the bytes, which live until the call returns, with the length that is given.
        let outcome = unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), length) };
        assert_eq!(outcome, 0, "option {level}, {name}: {}", io::Error::last_os_error());
    }

    /// Sends this and receives it again.
    pub fn try_ask(&self, what: &[u8]) -> io::Result<()> {
        let mut answer = vec![0; what.len() + 1];
        let n = match &self.socket {
            Socket::Tcp(stream) => {
                let mut stream = stream;
                stream.write_all(what)?;
                stream.read_exact(&mut answer[..what.len()])?;
                what.len()
            }
            Socket::Udp(socket) => {
                socket.send(what)?;
                socket.recv(&mut answer)?
            }
        };
        assert_eq!(&answer[..n], what, "the answer from {}", self.dialled);
        Ok(())
    }

    /// The same; some datagrams may get lost.
    pub fn ask(&self, what: &[u8]) {
        let mut losses = 0;
        while let Err(e) = self.try_ask(what) {
            losses += 1;
            let is_lost = e.kind() == io::ErrorKind::WouldBlock && !self.is_tcp();
            assert!(is_lost && losses <= LOSSES, "no answer from {}: {e}", self.dialled);
        }
    }

    /// The rows of this flow in a table.
    pub fn rows<'a>(&self, pairs: &'a [Pair]) -> Vec<&'a Pair> {
        pairs.iter().filter(|p| p.client == self.local && p.dialled == self.dialled).collect()
    }
}

/// A server for connections at an address of a node, until the test program ends.
pub fn serve(lab: &Lab, node: &str, address: SocketAddr) {
    let listener = lab.inside(node, || TcpListener::bind(address).expect("listen"));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
}

/// Whether some node carries it, and each other node that sees it refuses it because it sees an address that is not a pod's.
pub fn is_short(rows: &[&Pair]) -> bool {
    let is_carried = |p: &&Pair| p.state == PairState::Accelerated && p.via == Carrier::Short && p.bypassed_messages >= 20;
    let is_refused = |p: &&Pair| p.state == PairState::LeftAlone && p.reason == Some(Reason::PeerNotChosen);
    rows.iter().any(is_carried) && rows.iter().all(|p| is_carried(p) || is_refused(p))
}

/// Whether a node refuses it for this reason, and none carries it.
pub fn is_refused(rows: &[&Pair], reason: Reason) -> bool {
    rows.iter().any(|p| p.state == PairState::LeftAlone && p.reason == Some(reason)) && rows.iter().all(|p| p.via == Carrier::Stack)
}

/// Exchanges messages on all flows until a table fits.
pub fn await_table(on: &mut Accelerator, flows: &[&Flow], what: &str, fine: impl Fn(&[Pair]) -> bool) -> Vec<Pair> {
    await_pairs(flows, what, || on.next_pairs().expect("no table of pairs").pairs, fine)
}

/// Exchanges messages until all flows are on the short path, by the rows that another session sees: the next table may be a second away.
pub fn await_short(lab: &Lab, flows: &[&Flow]) -> Vec<Pair> {
    await_pairs(flows, "on the short path", || known(lab), |pairs| flows.iter().all(|f| is_short(&f.rows(pairs))))
}

/// The flows that the programs know.
pub fn known(lab: &Lab) -> Vec<Pair> {
    status(lab).expect("a status").pairs.pairs
}

fn await_pairs(flows: &[&Flow], what: &str, mut pairs: impl FnMut() -> Vec<Pair>, fine: impl Fn(&[Pair]) -> bool) -> Vec<Pair> {
    let end = Instant::now() + PATIENCE;
    loop {
        for flow in flows {
            (0..15).for_each(|_| flow.ask(b"ping"));
        }
        let pairs = pairs();
        if fine(&pairs) {
            return pairs;
        }
        let rows: Vec<_> = flows.iter().map(|f| (f.dialled, f.is_tcp(), f.rows(&pairs))).collect();
        assert!(Instant::now() < end, "not {what}: {rows:#?}");
    }
}
