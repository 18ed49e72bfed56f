//! A helper that traces, as a test drives it, and what it has said.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use sockpath_protocol::message::{Counters, EndReason, Message, Probed};
use sockpath_protocol::packet::{Direction, Incident, Outcome, Packet, PacketKind, Place};
use sockpath_protocol::pod::{Node, Pod};
use sockpath_protocol::request::{ProbeRequest, Protocol, Request, TraceRequest};
use sockpath_tests::lab::Lab;

/// A helper that traces.
pub struct Session {
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    said: Vec<Message>,
}

/// What a trace has said.
pub struct Said {
    pub packets: Vec<Packet>,
    pub places: Vec<Place>,
    pub incidents: Vec<Incident>,
    pub counters: Counters,
    pub probed: Vec<Probed>,
    pub end: EndReason,
}

pub fn request(lab: &Lab, source: &str, target: &str) -> TraceRequest {
    let status = lab.status();
    let pod = |name: &str| Pod::from(status.pods.iter().find(|p| p.name == name).unwrap());
    TraceRequest {
        source: pod(source),
        targets: vec![pod(target)],
        addresses: Vec::new(),
        services: status.services.iter().map(|s| status.service(s)).collect(),
        port: None,
        nodes: status.nodes.iter().map(Node::from).collect(),
        every_packet: false,
        no_rules: false,
        packets_per_second: 0,
        count: None,
    }
}

impl Session {
    /// Starts a helper and waits until it is armed.
    pub fn start(lab: &Lab, request: TraceRequest) -> Self {
        let mut child = lab.helper().arg("session").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut session = Self { child, stdin, stdout, said: Vec::new() };
        session.ask(&Request::Trace(Box::new(request)));
        session.wait_for(|m| matches!(m, Message::Armed(_)));
        session
    }

    pub fn ask(&mut self, request: &Request) {
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        self.stdin.as_mut().unwrap().write_all(&line).unwrap();
    }

    /// Reads until a message of that kind; it and what came before stay for `finish`.
    pub fn wait_for(&mut self, wanted: impl Fn(&Message) -> bool) {
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the helper ended: {:?}", self.said.last());
            let message: Message = serde_json::from_str(&line).unwrap();
            assert!(!matches!(message, Message::Error { .. }), "{line}");
            let found = wanted(&message);
            self.said.push(message);
            if found {
                return;
            }
        }
    }

    pub fn probe(&mut self, protocol: Protocol, to: &str) {
        let to: SocketAddr = to.parse().unwrap();
        self.ask(&Request::Probe(ProbeRequest { protocol, to, timeout_ms: 3000, http: true, requests: 0 }));
        self.wait_for(|m| matches!(m, Message::Probed(_)));
    }

    pub fn finish(mut self) -> Said {
        self.ask(&Request::Finish);
        self.wait_for(|m| matches!(m, Message::End(_)));
        assert!(self.child.wait().unwrap().success());
        let mut said = Said {
            packets: Vec::new(),
            places: Vec::new(),
            incidents: Vec::new(),
            counters: Counters::default(),
            probed: Vec::new(),
            end: EndReason::Failed,
        };
        for message in self.said {
            match message {
                Message::Packet(p) => said.packets.push(*p),
                Message::Place(p) => said.places.push(p),
                Message::Incident(i) => said.incidents.push(i),
                Message::Counters(c) => said.counters = c,
                Message::Probed(p) => said.probed.push(p),
                Message::End(e) => said.end = e.reason,
                _ => {}
            }
        }
        said.packets.sort_by_key(|p| p.id);
        said
    }
}

/// Traces one probe.
pub fn traced(lab: &Lab, source: &str, target: &str, protocol: Protocol, to: &str) -> Said {
    let mut session = Session::start(lab, request(lab, source, target));
    session.probe(protocol, to);
    session.finish()
}

impl Said {
    /// The first packet of a kind in a direction.
    pub fn packet(&self, direction: Direction, kind: PacketKind) -> &Packet {
        let found = self.packets.iter().find(|p| p.direction == direction && p.kind == kind);
        found.unwrap_or_else(|| panic!("no {kind:?} in {:#?}", self.packets))
    }

    /// What holds for every trace of a probe that was answered.
    pub fn assert_sound(&self) {
        assert!(self.probed.iter().all(|p| p.answered), "{:?}", self.probed);
        assert_eq!(self.end, EndReason::Finished);
        assert_eq!((self.counters.lost_events, self.counters.untracked), (0, 0));
        assert_eq!(self.counters.recorded, self.packets.iter().filter(|p| p.id <= u64::from(u32::MAX)).count() as u64);
        for p in &self.packets {
            assert_eq!(p.outcome, Outcome::Delivered, "{p:#?}");
            assert!(p.hops.windows(2).all(|h| h[0].at_ns <= h[1].at_ns), "{p:#?}");
            assert!(p.hops.iter().all(|h| self.places.iter().any(|place| place.index == h.place)));
        }
        let conversations: BTreeSet<u64> = self.packets.iter().map(|p| p.conversation).collect();
        assert_eq!(conversations.len(), 1, "request and reply are one conversation: {:#?}", self.packets);
    }
}

pub fn stages(packet: &Packet) -> Vec<&'static str> {
    packet.hops.iter().map(|h| h.stage.key()).collect()
}
