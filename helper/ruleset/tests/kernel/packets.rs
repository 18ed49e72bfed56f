//! The packets of the cases, and the network namespace they are sent in.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt, socket, sockopt};
use sockpath_ruleset::evaluate::{Run, State};
use sockpath_ruleset::{AddressType, Connection, Device, Packet, Word, state};

use crate::Random;

/// Addresses of the loopback device.
const ADDRESSES: [Ipv4Addr; 4] =
    [Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2), Ipv4Addr::new(10, 9, 1, 1), Ipv4Addr::new(10, 9, 2, 200)];
/// Ports that packets go to.
const PORTS: [u16; 6] = [53, 80, 443, 8080, 9999, 30000];
/// Flows with packets in both directions.
const FLOWS: u16 = 8;
/// Marks of packets.
const MARKS: [u32; 5] = [0, 1, 0x4000, 0x20000, 0x24001];
/// Expedited forwarding: what packets of a case are known by, so that answers of the kernel stay out.
const DSCP: i32 = 46 << 2;

/// One packet.
#[derive(Debug)]
pub struct Sample {
    /// What the evaluator is given.
    pub packet: Packet,
    /// Where it goes, and from where.
    from: SocketAddrV4,
    to: SocketAddrV4,
    mark: u32,
    kind: Kind,
    payload: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Datagram,
    /// Of a flow that is established, in this direction.
    OfFlow {
        number: u16,
        reply: bool,
    },
    Segment {
        flags: u8,
    },
}

/// The namespace.
pub struct Network {
    receivers: HashMap<SocketAddrV4, UdpSocket>,
    senders: Vec<UdpSocket>,
    raw: OwnedFd,
    /// Marks of the flows' connections.
    marks: HashMap<u16, Word>,
    next_port: u16,
}

fn tag(socket: &impl std::os::fd::AsFd, mark: u32) {
    setsockopt(socket, sockopt::Ipv4Tos, &DSCP).expect("cannot set the type of service");
    setsockopt(socket, sockopt::Mark, &mark).expect("cannot set a mark");
}

fn flow(number: u16) -> (SocketAddrV4, SocketAddrV4) {
    let pick = |i: u16| ADDRESSES[usize::from(i) % ADDRESSES.len()];
    let port = PORTS[usize::from(number) % PORTS.len()];
    (SocketAddrV4::new(pick(number), 20_000 + number), SocketAddrV4::new(pick(number + 1), port))
}

impl Network {
    /// Brings the loopback device up, and opens what receives.
    pub fn new() -> Self {
        let ip = |args: &[&str]| {
            let done = Command::new("ip").args(args).stderr(Stdio::inherit()).status().expect("cannot run ip");
            assert!(done.success(), "ip {args:?}");
        };
        ip(&["link", "set", "lo", "up"]);
        for address in ADDRESSES {
            ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        let mut receivers = HashMap::new();
        for at in ADDRESSES.iter().flat_map(|a| PORTS.iter().map(move |p| SocketAddrV4::new(*a, *p))) {
            let receiver = UdpSocket::bind(at).expect("cannot bind a receiver");
            receiver.set_nonblocking(true).expect("a socket");
            receivers.insert(at, receiver);
        }
        let senders = (0..FLOWS).map(|n| UdpSocket::bind(flow(n).0).expect("cannot bind a sender")).collect();
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).expect("no raw socket");
        Self { receivers, senders, raw, marks: HashMap::new(), next_port: 32_768 }
    }

    /// Makes flows with packets in both directions; no rules are there yet.
    pub fn establish(&mut self) {
        // Tracking begins with the first rule that asks for it.
        nft("table ip tracking { chain o { type filter hook output priority 0; ct state new accept; }; }");
        for number in 0..FLOWS {
            let (from, to) = flow(number);
            for mark in [0, 0] {
                tag(&self.senders[usize::from(number)], mark);
                self.senders[usize::from(number)].send_to(b"to", to).expect("cannot send");
                tag(&self.receivers[&to], mark);
                self.receivers[&to].send_to(b"back", from).expect("cannot send");
            }
        }
        self.drain();
    }

    fn drain(&self) {
        let mut buffer = [0; 2048];
        for receiver in self.receivers.values() {
            while receiver.recv(&mut buffer).is_ok() {}
        }
    }

    /// A random packet.
    pub fn sample(&mut self, random: &mut Random) -> Sample {
        let mark = random.of(&MARKS);
        let kind = match random.below(4) {
            0 | 1 => Kind::Datagram,
            2 => Kind::OfFlow { number: u16::try_from(random.below(u64::from(FLOWS))).expect("small"), reply: random.once_in(2) },
            _ => Kind::Segment { flags: random.of(&[0x02, 0x10, 0x18, 0x04, 0x14]) },
        };
        let (from, to) = match kind {
            Kind::OfFlow { number, reply: false } => flow(number),
            Kind::OfFlow { number, reply: true } => (flow(number).1, flow(number).0),
            _ => {
                self.next_port = if self.next_port > 60_000 { 32_768 } else { self.next_port + 1 };
                (SocketAddrV4::new(random.of(&ADDRESSES), self.next_port), SocketAddrV4::new(random.of(&ADDRESSES), random.of(&PORTS)))
            }
        };
        let payload = random.of(&[0, 20, 100, 700]);
        let packet = self.describe(kind, from, to, mark, payload);
        Sample { packet, from, to, mark, kind, payload }
    }

    fn describe(&self, kind: Kind, from: SocketAddrV4, to: SocketAddrV4, mark: u32, payload: usize) -> Packet {
        let segment = matches!(kind, Kind::Segment { .. });
        let (source, destination) = ((*from.ip()).into(), (*to.ip()).into());
        let mut packet = Packet::new(source, destination, if segment { 6 } else { 17 }).with_ports(from.port(), to.port());
        packet.mark = Word::known(mark);
        packet.length = u32::try_from(20 + if segment { 20 } else { 8 } + payload).ok();
        packet.input = Some(Some(Device { index: 1, name: Some("lo".to_owned()) }));
        packet.output = Some(None);
        (packet.source_type, packet.destination_type) = (Some(AddressType::Local), Some(AddressType::Local));
        packet.connection = match kind {
            Kind::OfFlow { number, reply } => Connection {
                states: state::ESTABLISHED,
                reply: Some(reply),
                status: None,
                mark: self.marks.get(&number).copied().unwrap_or(Word::known(0)),
            },
            Kind::Segment { flags } => {
                packet.tcp_flags = Some(flags);
                // A reset of no connection is invalid; an acknowledgement begins one.
                let invalid = flags & 4 != 0;
                if invalid { Connection::NONE } else { new() }
            }
            Kind::Datagram => new(),
        };
        packet
    }

    /// Sends it. When this returns, it has been delivered or dropped: the loopback device's work is done in the sender's call, or right
    /// after it on the same CPU.
    pub fn send(&self, sample: &Sample) {
        let payload = vec![7; sample.payload];
        match sample.kind {
            Kind::Datagram => {
                let sender = UdpSocket::bind(sample.from).or_else(|_| self.receivers[&sample.from].try_clone()).expect("cannot bind");
                tag(&sender, sample.mark);
                sender.send_to(&payload, sample.to).expect("cannot send");
            }
            Kind::OfFlow { number, reply } => {
                let sender = if reply { &self.receivers[&sample.from] } else { &self.senders[usize::from(number)] };
                tag(sender, sample.mark);
                sender.send_to(&payload, sample.to).expect("cannot send");
            }
            Kind::Segment { flags } => {
                tag(&self.raw, sample.mark);
                let to = SockaddrIn::from(sample.to);
                sendto(self.raw.as_raw_fd(), &segment(sample, flags, &payload), &to, MsgFlags::empty()).expect("cannot send");
            }
        }
        self.drain();
    }

    /// Marks that rules leave on a flow's connection stay there.
    pub fn remember(&mut self, sample: &Sample, run: &Run) {
        let Kind::OfFlow { number, .. } = sample.kind else { return };
        let ends = run.ends.iter().map(|e| e.state).chain(run.passes);
        let mark = ends.map(|s: State| s.connection.mark).reduce(Word::join).unwrap_or(Word::UNKNOWN);
        self.marks.insert(number, mark);
    }
}

fn new() -> Connection {
    Connection { states: state::NEW, reply: Some(false), status: None, mark: Word::known(0) }
}

/// A segment without checksum: it is tracked where it is sent, where conntrack does not verify that.
fn segment(sample: &Sample, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(40 + payload.len()).expect("short");
    let mut bytes = vec![0x45, u8::try_from(DSCP).expect("a byte")];
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    bytes.extend(sample.from.ip().octets());
    bytes.extend(sample.to.ip().octets());
    bytes.extend(sample.from.port().to_be_bytes());
    bytes.extend(sample.to.port().to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, if flags & 0x10 != 0 { 1 } else { 0 }, 0x50, flags, 2, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

/// Runs `nft -f -`.
pub fn nft(text: &str) {
    feed("nft", &["-f", "-"], text);
}

/// Runs a program with this input.
pub fn feed(program: &str, args: &[&str], text: &str) {
    use std::io::Write as _;
    let mut child =
        Command::new(program).args(args).stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("cannot start a program");
    child.stdin.take().expect("stdin is piped").write_all(text.as_bytes()).expect("cannot write");
    assert!(child.wait().expect("cannot wait").success(), "{program} refused\n{text}");
}
