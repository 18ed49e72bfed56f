//! Where things are: network namespaces and their devices, as the plugin shows them.

use std::collections::HashMap;

use sockpath_protocol::packet::{Device, DeviceKind, Place};

/// A network namespace that belongs to the trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedNetns {
    /// Inode of the namespace.
    pub netns: u32,
    /// Name of the node.
    pub node: String,
    /// `namespace/name` of the pod; absent for the node's own namespace.
    pub pod: Option<String>,
    /// Whether the source lives here.
    pub source: bool,
    /// Whether a target lives here.
    pub target: bool,
}

/// A device, and the queue discipline it transmits through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedDevice {
    /// The device.
    pub device: Device,
    /// Name of its root queue discipline.
    pub qdisc: String,
}

/// Reads the devices of a namespace by its inode.
pub type ReadDevices = Box<dyn FnMut(u32) -> Vec<TracedDevice>>;

/// Namespaces, their devices and the numbers that hops refer to them by.
pub struct Places {
    namespaces: HashMap<u32, TracedNetns>,
    devices: HashMap<(u32, u32), TracedDevice>,
    read: ReadDevices,
    index: HashMap<(u32, u32), u32>,
    known: Vec<Place>,
    /// How many of `known` were handed out by `fresh`.
    handed_out: usize,
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Places").field("namespaces", &self.namespaces).field("known", &self.known).finish_non_exhaustive()
    }
}

/// Devices that come and go while a trace runs are bounded by this.
const MAX_PLACES: usize = 4096;

impl Places {
    /// The places of a trace. `read` is called when a device turns up that is not known yet.
    pub fn new(namespaces: impl IntoIterator<Item = TracedNetns>, read: ReadDevices) -> Self {
        let namespaces = namespaces.into_iter().map(|t| (t.netns, t)).collect();
        Self { namespaces, devices: HashMap::new(), read, index: HashMap::new(), known: Vec::new(), handed_out: 0 }
    }

    /// What a namespace is in this trace.
    #[must_use]
    pub fn netns(&self, netns: u32) -> Option<&TracedNetns> {
        self.namespaces.get(&netns)
    }

    /// Takes note of the devices of a namespace.
    pub fn learn(&mut self, netns: u32, devices: Vec<TracedDevice>) {
        for e in devices {
            self.devices.insert((netns, e.device.ifindex), e);
        }
    }

    /// A device of a namespace; `None` when there is no such device.
    pub fn device(&mut self, netns: u32, ifindex: u32) -> Option<&Device> {
        self.traced_device(netns, ifindex).map(|e| &e.device)
    }

    /// A device of a namespace with its queue discipline.
    pub fn traced_device(&mut self, netns: u32, ifindex: u32) -> Option<&TracedDevice> {
        if ifindex == 0 {
            return None;
        }
        if !self.devices.contains_key(&(netns, ifindex)) {
            let read = (self.read)(netns);
            self.learn(netns, read);
        }
        self.devices.get(&(netns, ifindex))
    }

    /// Ports of bridges in a namespace whose other ends are in namespaces of the trace.
    #[must_use]
    pub fn ports_to_pods(&self, netns: u32) -> Vec<u32> {
        let leads = |d: &Device| d.kind == DeviceKind::Veth && d.bridge.is_some() && d.peer.is_some();
        let mut ports: Vec<u32> =
            self.devices.iter().filter(|((of, _), e)| *of == netns && leads(&e.device)).map(|((_, index), _)| *index).collect();
        ports.sort_unstable();
        ports
    }

    /// The number of a place.
    pub fn number(&mut self, netns: u32, ifindex: u32) -> u32 {
        if let Some(n) = self.index.get(&(netns, ifindex)) {
            return *n;
        }
        if self.known.len() >= MAX_PLACES {
            return 0;
        }
        // A device that is gone before it could be asked about keeps its number as a name.
        let device = self.device(netns, ifindex).cloned().or_else(|| {
            (ifindex != 0).then(|| Device { name: format!("if{ifindex}"), ifindex, kind: DeviceKind::Other, peer: None, bridge: None })
        });
        let (node, pod) = self.namespaces.get(&netns).map_or_else(|| (String::new(), None), |t| (t.node.clone(), t.pod.clone()));
        let number = u32::try_from(self.known.len()).unwrap_or(0);
        self.known.push(Place { index: number, node, pod, netns, device });
        self.index.insert((netns, ifindex), number);
        number
    }

    /// Places that were numbered since the last call; the plugin has to hear of them before it hears of hops there.
    pub fn fresh(&mut self) -> Vec<Place> {
        let fresh = self.known[self.handed_out..].to_vec();
        self.handed_out = self.known.len();
        fresh
    }
}
