//! What the plugin asks of the helper.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::accel::{AccelerateRequest, ChoosePods, PauseRequest, ResumeRequest, StopRequest};
use crate::pod::{Node, Pod};

/// One line from the plugin to the helper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Request {
    /// Watch the packets between two pods.
    Trace(Box<TraceRequest>),
    /// Send one probe from inside the source's network namespace (during a trace).
    Probe(ProbeRequest),
    /// Bytes of the pod pair may take the socket path from now on: show that path, too (during a trace). A helper finds out by itself
    /// within a second where it sees the pins of an acceleration.
    LookForBypass,
    /// Let pods of this node exchange bytes socket to socket.
    Accelerate(Box<AccelerateRequest>),
    /// Choose these pods instead of those before (during an acceleration).
    Choose(ChoosePods),
    /// Return pairs of these pods to TCP for the time being (during an acceleration).
    Pause(PauseRequest),
    /// Undo a `pause`.
    Resume(ResumeRequest),
    /// Report what is accelerated on this node.
    Status,
    /// Put connections back on their normal path.
    Stop(StopRequest),
    /// Examine what this node offers.
    Doctor,
    /// Remove sockpath's remaining resources on this node.
    Cleanup,
    /// Say `hello` (again) now. An attached stream begins after the helper's first line was written, so the plugin asks.
    Hello {
        /// Secret of the plugin's session: the first one that arrives counts, and a `hello` with another one is not answered. The plugin
        /// whose connection broke proves with it that it is the one that the session belongs to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        secret: Option<String>,
    },
    /// Read the clocks now.
    Clock {
        /// Comes back with the answer.
        id: u64,
    },
    /// The plugin is alive.
    Heartbeat,
    /// End the session in order: report what is pending, then `end`.
    Finish,
}

/// A Service between source and target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Its addresses (cluster, node or load balancer) and ports as clients dial them.
    pub frontends: Vec<Frontend>,
    /// Ready backends.
    pub backends: Vec<SocketAddr>,
}

/// One address a client may dial to reach a Service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frontend {
    /// Address and port as dialled.
    pub addr: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// Transport protocol of what is watched or probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP or ICMPv6.
    Icmp,
}

/// What to watch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceRequest {
    /// The pod that sends requests. On a node where it does not run, only its addresses matter.
    pub source: Pod,
    /// The pods that may answer: one, or the backends of a Service. Empty when the target is a bare address.
    pub targets: Vec<Pod>,
    /// Addresses that count as the target besides the pods' own: a bare IP, or none.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The Service that was named, if one was, or every Service whose backend the target is.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Only this destination port (as dialled or as translated); all ports when absent.
    #[serde(default)]
    pub port: Option<u16>,
    /// The nodes whose namespaces this helper watches.
    pub nodes: Vec<Node>,
    /// Record every packet instead of sampling whole packets when the packet rate is high.
    #[serde(default)]
    pub every_packet: bool,
    /// Leave netfilter's rules unread: none is named then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_rules: bool,
    /// When sampling: report at most this many packets a second. 0 means the default.
    #[serde(default)]
    pub packets_per_second: u32,
    /// End after this many delivered request packets with payload were reported.
    #[serde(default)]
    pub count: Option<u64>,
}

/// A probe from inside the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeRequest {
    /// How to probe: TCP connects (and closes), UDP and ICMP send one echo datagram.
    pub protocol: Protocol,
    /// Where to; the port is ignored for ICMP.
    pub to: SocketAddr,
    /// Give up after this many milliseconds.
    pub timeout_ms: u64,
    /// For TCP: send a small HTTP request after connecting and read what comes, so that data packets are seen.
    #[serde(default)]
    pub http: bool,
    /// For HTTP: so many requests one after the other on one connection, 20 ms apart; 0 is one, and the connection is closed.
    #[serde(default)]
    pub requests: u32,
}
