//! The picture of a path, without how it is drawn: nodes, network namespaces, devices and stages in the order in which the request passes
//! them, what it skipped, where it was dropped, and the accelerated paths beside it. [`svg`] and [`mermaid`] draw it.

mod beside;
mod build;
mod describe;
mod draw;
mod ends;
mod layout;
pub mod mermaid;
mod place;
pub mod svg;

use sockpath_protocol::packet::{DeviceKind, Direction};
use sockpath_protocol::stage::Side;

use crate::duration::nanos;

/// What is drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Source and target.
    pub title: String,
    /// Where they are, and the packets behind the figures: a line each.
    pub about: Vec<String>,
    /// Time from end to end, and what it consists of; empty if it is not known.
    pub figures: String,
    /// The nodes in the order of the path.
    pub nodes: Vec<NodeBox>,
    /// What lies between one lane and the next.
    pub links: Vec<Link>,
    /// Accelerated paths beside the normal one.
    pub beside: Vec<Beside>,
    /// The time of request, reply and socket path, by place.
    pub bars: Vec<Bar>,
}

/// A node, or what lies outside of all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeBox {
    /// Its name, with its kernel where that is known.
    pub title: String,
    /// Its namespaces in the order of the path.
    pub namespaces: Vec<Namespace>,
}

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// The pod, or what else it belongs to.
    pub title: String,
    /// Its inode, or why the packets were not observed in it.
    pub detail: String,
    /// Whether packets were there.
    pub state: State,
    /// What packets passed in it: one lane, or two where they leave the stack and come back to it.
    pub lanes: Vec<Lane>,
}

/// Whether packets were in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// They were.
    Passed,
    /// They took a path beside it.
    Skipped,
    /// They did not arrive, or that was not observed.
    NotReached,
}

/// One traversal of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// Part of the path.
    pub side: Side,
    /// What packets passed, in order.
    pub items: Vec<Item>,
    /// Typical time in it, in nanoseconds.
    pub took_ns: Option<u64>,
}

/// Something in a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A process at its socket.
    Socket(String),
    /// A device; the stages after it are there.
    Device(DeviceBox),
    /// A stage that was observed.
    Stage(StageMark),
    /// An address was translated.
    Rewrite(String),
    /// Packets ended here.
    End(EndMark),
    /// Stages that were not observed, or did not happen.
    Unobserved(String),
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceBox {
    /// Its name.
    pub name: String,
    /// What it is, where that is known.
    pub kind: Option<DeviceKind>,
    /// The bridge it is a port of.
    pub bridge: Option<String>,
}

/// A stage with its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageMark {
    /// The article's number.
    pub step: Option<&'static str>,
    /// Its name.
    pub name: &'static str,
    /// Typical time in nanoseconds; absent for a moment, and where it cannot be measured.
    pub took_ns: Option<u64>,
    /// Its time lies between two clocks.
    pub unmeasurable: bool,
    /// Whether time spent here is waiting.
    pub waits: bool,
}

/// Where packets ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndMark {
    /// Direction of the packets.
    pub direction: Direction,
    /// What happened, in a few words.
    pub what: String,
    /// All that is known.
    pub text: String,
}

/// What lies between two lanes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What it is.
    pub kind: LinkKind,
    /// Whether packets were observed on both ends of it.
    pub taken: bool,
}

/// What lies between two lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// A veth pair.
    Veth,
    /// The loopback device.
    Loopback,
    /// The network between two nodes.
    Wire,
    /// A tunnel between two nodes.
    Tunnel,
    /// Something that was not observed.
    Unknown,
}

impl LinkKind {
    /// Its name in the picture.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Loopback => "lo",
            Self::Wire => "wire",
            Self::Tunnel => "tunnel",
            Self::Unknown => "",
        }
    }
}

/// An accelerated path beside the normal one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beside {
    /// Which one.
    pub path: Bypass,
    /// Whether packets took it; otherwise it is possible.
    pub taken: bool,
    /// What is known of it.
    pub text: String,
    /// The lane it leaves, by its number in [`Picture::lanes`].
    pub from: usize,
    /// The lane it ends in.
    pub to: usize,
}

/// The accelerated paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bypass {
    /// From device to device.
    Short,
    /// From socket to socket.
    Socket,
}

/// The time of one direction, by place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bar {
    /// Which direction.
    pub name: &'static str,
    /// Its places in order.
    pub parts: Vec<Part>,
    /// The direction was observed to its end, on one clock.
    pub whole: bool,
}

/// Time at one place, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The place.
    pub place: String,
    /// Typical time.
    pub took_ns: u64,
    /// Of it, waiting.
    pub waits_ns: u64,
}

impl Bar {
    /// Its whole time, in nanoseconds.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.parts.iter().map(|p| p.took_ns).sum()
    }

    /// The same in words; a lower bound where a part of it is not known.
    #[must_use]
    pub fn time(&self) -> String {
        format!("{}{}", if self.whole { "" } else { "≥ " }, nanos(self.total_ns()))
    }
}

impl Picture {
    /// All lanes with their namespaces, in the order of the path.
    pub fn lanes(&self) -> impl Iterator<Item = (&Namespace, &Lane)> {
        self.nodes.iter().flat_map(|node| &node.namespaces).flat_map(|ns| ns.lanes.iter().map(move |lane| (ns, lane)))
    }

    /// The longest time of a stage, in nanoseconds; at least 1.
    #[must_use]
    pub fn longest_ns(&self) -> u64 {
        let items = self.lanes().flat_map(|(_, lane)| &lane.items);
        items.filter_map(|i| if let Item::Stage(stage) = i { stage.took_ns } else { None }).max().unwrap_or(0).max(1)
    }
}
