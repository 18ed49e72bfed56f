//! Which connections may use the short path, and what their packets become. Pure: what it depends on is in a [`Topology`].

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use sockpath_kernel::conntrack::{Entry, Tuple};
use sockpath_kernel::link::Link;
use sockpath_kernel::route::Route;
use sockpath_protocol::accel::Reason;

/// Where a chosen pod is attached to its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Index of the node's end of its veth pair.
    pub device: u32,
    /// The smaller MTU of the two ends, in bytes.
    pub mtu: u32,
    /// Index of the bridge that the node's end is a port of.
    pub bridge: Option<u32>,
    /// Why its packets may not be redirected, if so.
    pub refusal: Option<Reason>,
}

impl Port {
    /// That of a pod without a usable device.
    pub fn refused(reason: Reason) -> Self {
        Self { device: 0, mtu: 0, bridge: None, refusal: Some(reason) }
    }
}

/// A bridge of the node.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Why packets that the node routes through it may not be redirected, if so.
    pub refusal: Option<Reason>,
    /// It passes packets that it forwards to netfilter: IPv4, and IPv6.
    pub calls_netfilter: [bool; 2],
}

/// What a node looks like, as far as packets of the chosen pods are concerned.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The chosen pods of this node, by address.
    pub ports: HashMap<IpAddr, Port>,
    /// Addresses of chosen pods of other nodes.
    pub elsewhere: HashSet<IpAddr>,
    /// Addresses of the node itself.
    pub own: HashSet<IpAddr>,
    /// The node's devices, by index.
    pub links: HashMap<u32, Link>,
    /// The node's bridges, by index.
    pub bridges: HashMap<u32, Bridge>,
    /// Why packets that come in by a device may not be redirected.
    pub refused_devices: HashMap<u32, Reason>,
    /// The node has IPsec policies.
    pub ipsec: bool,
}

/// What is done with the packets of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// Into the pod behind this device of the node.
    Pod {
        /// The node's end of its veth pair.
        device: u32,
    },
    /// Out of a device to a next hop.
    Hop {
        /// The device.
        device: u32,
        /// The next hop's address.
        address: IpAddr,
    },
}

/// One direction of a connection; the tuples of its packets are those of [`directions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Leg {
    /// The device that its packets come in by.
    pub device: u32,
    /// Where they go.
    pub target: Target,
    /// MTU of the next link, in bytes.
    pub mtu: u32,
    /// The node routes them, so that TTL or hop limit goes down.
    pub routed: bool,
}

/// The two directions of a connection, the original one first: its packets as they come in, and what they are translated to.
#[must_use]
pub fn directions(original: Tuple, reply: Tuple) -> [(Tuple, Tuple); 2] {
    [(original, reply.reversed()), (reply, original.reversed())]
}

/// An end of a connection as this node sees it.
#[derive(Debug, Clone, Copy)]
enum End<'a> {
    Here(&'a Port),
    Elsewhere(IpAddr),
}

/// What becomes of the two directions of a connection, the original one first.
///
/// # Errors
/// Why it may not use the short path.
pub fn legs(entry: &Entry, topology: &Topology, mut route: impl FnMut(IpAddr, IpAddr, u32) -> Option<Route>) -> Result<[Leg; 2], Reason> {
    if let Some(reason) = refusal(entry) {
        return Err(reason);
    }
    let client = topology.end(entry.original.source.ip())?;
    let server = topology.end(entry.reply.source.ip())?;
    match (client, server) {
        (End::Here(client), End::Here(server)) => topology.between(entry, client, server),
        (End::Here(port), End::Elsewhere(ip)) => {
            let (out, back) = topology.half(port, entry.original.source.ip(), ip, &mut route)?;
            Ok([out, back])
        }
        (End::Elsewhere(ip), End::Here(port)) => {
            let (out, back) = topology.half(port, entry.reply.source.ip(), ip, &mut route)?;
            Ok([back, out])
        }
        (End::Elsewhere(_), End::Elsewhere(_)) => Err(Reason::PeerNotChosen),
    }
}

/// What connection tracking itself says against it.
#[must_use]
pub fn refusal(entry: &Entry) -> Option<Reason> {
    match entry {
        Entry { sequence_adjusted: true, .. } => Some(Reason::SequenceAdjusted),
        Entry { helper: true, .. } => Some(Reason::ConntrackHelper),
        Entry { offloaded: true, .. } => Some(Reason::Offloaded),
        Entry { zone: 1.., .. } => Some(Reason::ConntrackZone),
        _ => None,
    }
}

impl Topology {
    fn end(&self, ip: IpAddr) -> Result<End<'_>, Reason> {
        match self.ports.get(&ip) {
            Some(Port { refusal: Some(reason), .. }) => Err(*reason),
            Some(port) => Ok(End::Here(port)),
            None if self.elsewhere.contains(&ip) => Ok(End::Elsewhere(ip)),
            None if self.own.contains(&ip) => Err(Reason::HostNetwork),
            None => Err(Reason::PeerNotChosen),
        }
    }

    /// Two pods of this node.
    fn between(&self, entry: &Entry, client: &Port, server: &Port) -> Result<[Leg; 2], Reason> {
        if client.device == server.device {
            return Err(Reason::Hairpin);
        }
        if client.mtu != server.mtu {
            return Err(Reason::MtuDiffers);
        }
        let routed = self.routes(entry, client, server);
        if routed && let Some(reason) = self.refusal_of_bridge(client).or_else(|| self.refusal_of_bridge(server)) {
            return Err(reason);
        }
        let leg = |from: &Port, to: &Port| Leg { device: from.device, target: Target::Pod { device: to.device }, mtu: to.mtu, routed };
        Ok([leg(client, server), leg(server, client)])
    }

    /// Whether the node routes packets between two of its pods. A bridge that passes its packets to netfilter forwards those itself that are
    /// translated to an address behind it; if it does not, only routed packets are translated.
    fn routes(&self, entry: &Entry, client: &Port, server: &Port) -> bool {
        let Some(shared) = client.bridge.filter(|bridge| server.bridge == Some(*bridge)) else { return true };
        let family = usize::from(entry.original.source.is_ipv6());
        let is_translated = entry.original != entry.reply.reversed();
        is_translated && !self.bridges.get(&shared).is_some_and(|bridge| bridge.calls_netfilter[family])
    }

    /// Why packets that the node routes to or from the bridge of a pod may not be redirected.
    fn refusal_of_bridge(&self, port: &Port) -> Option<Reason> {
        self.bridges.get(&port.bridge?)?.refusal
    }

    /// This node's half of a connection with a pod of another node: what the pod sends, and what comes back.
    fn half(
        &self,
        port: &Port,
        near: IpAddr,
        far: IpAddr,
        route: &mut impl FnMut(IpAddr, IpAddr, u32) -> Option<Route>,
    ) -> Result<(Leg, Leg), Reason> {
        if self.ipsec {
            return Err(Reason::Ipsec);
        }
        let way_in = port.bridge.unwrap_or(port.device);
        let found = route(near, far, way_in).filter(|r| r.forwards && !r.encapsulates).ok_or(Reason::NoRoute)?;
        let usable = |l: &&Link| l.ethernet && l.up && !l.loopback;
        let link = self.links.get(&found.device).filter(usable).ok_or(Reason::NoRoute)?;
        if let Some(reason) = self.refused_devices.get(&found.device).copied().or_else(|| self.refusal_of_bridge(port)) {
            return Err(reason);
        }
        let out = Leg {
            device: port.device,
            target: Target::Hop { device: found.device, address: found.gateway.unwrap_or(far) },
            mtu: found.mtu.unwrap_or(link.mtu).min(link.mtu),
            routed: true,
        };
        let back = Leg { device: found.device, target: Target::Pod { device: port.device }, mtu: port.mtu, routed: true };
        Ok((out, back))
    }
}

#[cfg(test)]
pub mod tests {
    use sockpath_kernel::conntrack::TCP;

    use super::*;

    fn tuple(source: &str, destination: &str) -> Tuple {
        Tuple { protocol: TCP, source: source.parse().expect("an address"), destination: destination.parse().expect("an address") }
    }

    /// An entry that nothing is against.
    pub fn entry(original: Tuple, reply: Tuple) -> Entry {
        Entry {
            original,
            reply,
            id: 1,
            assured: true,
            established: true,
            dying: false,
            sequence_adjusted: false,
            helper: false,
            offloaded: false,
            zone: 0,
            timeout: 100,
            liberal: false,
        }
    }

    /// One of a connection without translation.
    pub fn direct(source: &str, destination: &str) -> Entry {
        let original = tuple(source, destination);
        entry(original, original.reversed())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn topology() -> Topology {
        let port = |device| Port { device, mtu: 1500, bridge: Some(3), refusal: None };
        let eth0 = Link {
            index: 2,
            name: "eth0".into(),
            kind: String::new(),
            mtu: 1400,
            up: true,
            loopback: false,
            ethernet: true,
            master: None,
            peer: None,
            xdp: Vec::new(),
        };
        Topology {
            ports: HashMap::from([(ip("10.42.1.2"), port(5)), (ip("10.42.1.3"), port(6))]),
            elsewhere: HashSet::from([ip("10.42.2.2")]),
            own: HashSet::from([ip("10.42.1.1")]),
            links: HashMap::from([(2, eth0)]),
            bridges: HashMap::from([(3, Bridge { refusal: None, calls_netfilter: [true; 2] })]),
            ..Topology::default()
        }
    }

    fn no_route(_: IpAddr, _: IpAddr, _: u32) -> Option<Route> {
        None
    }

    fn by_eth0(_: IpAddr, _: IpAddr, _: u32) -> Option<Route> {
        Some(Route { forwards: true, device: 2, gateway: Some(ip("10.199.0.2")), mtu: None, encapsulates: false, source: None })
    }

    #[test]
    fn pods_of_one_bridge_are_not_routed() {
        let [there, back] = legs(&direct("10.42.1.2:4000", "10.42.1.3:80"), &topology(), no_route).expect("eligible");
        assert_eq!((there.device, there.target, there.routed), (5, Target::Pod { device: 6 }, false));
        assert_eq!((back.device, back.target), (6, Target::Pod { device: 5 }));
    }

    #[test]
    fn a_service_is_translated_in_both_directions() {
        let entry = entry(tuple("10.42.1.2:4000", "10.96.0.10:80"), tuple("10.42.1.3:8080", "10.42.1.2:4000"));
        let [there, back] = legs(&entry, &topology(), no_route).expect("eligible");
        assert!(!there.routed && !back.routed);
        let [there, back] = directions(entry.original, entry.reply);
        assert_eq!(there, (entry.original, tuple("10.42.1.2:4000", "10.42.1.3:8080")));
        assert_eq!(back, (entry.reply, tuple("10.96.0.10:80", "10.42.1.2:4000")));
    }

    #[test]
    fn a_bridge_without_netfilter_does_not_forward_what_is_translated() {
        let direct = direct("10.42.1.2:4000", "10.42.1.3:80");
        let masqueraded = entry(tuple("10.42.1.2:4000", "10.96.0.10:80"), tuple("10.42.1.3:8080", "10.42.1.1:4000"));
        let with = |calls_netfilter, refusal| Topology { bridges: HashMap::from([(3, Bridge { refusal, calls_netfilter })]), ..topology() };
        let routed = |entry, topology: &Topology| legs(entry, topology, no_route).map(|legs| legs.map(|l| l.routed));
        assert_eq!(routed(&masqueraded, &with([true, false], None)), Ok([false; 2]));
        assert_eq!(routed(&masqueraded, &with([false, true], None)), Ok([true; 2]));
        assert_eq!(routed(&direct, &with([false, true], None)), Ok([false; 2]));
        // Only what is routed passes the bridge's own device.
        let limited = with([false, true], Some(Reason::QueueDiscipline));
        assert_eq!(routed(&masqueraded, &limited), Err(Reason::QueueDiscipline));
        assert_eq!(routed(&direct, &limited), Ok([false; 2]));
        assert_eq!(legs(&self::direct("10.42.1.2:4000", "10.42.2.2:80"), &limited, by_eth0), Err(Reason::QueueDiscipline));
    }

    #[test]
    fn half_of_a_connection_leaves_by_the_routes_device_and_comes_back_by_it() {
        let [out, back] = legs(&direct("10.42.1.2:4000", "10.42.2.2:80"), &topology(), by_eth0).expect("eligible");
        assert_eq!((out.device, out.target, out.mtu), (5, Target::Hop { device: 2, address: ip("10.199.0.2") }, 1400));
        assert_eq!((back.device, back.target), (2, Target::Pod { device: 5 }));
        // The same when the other side has made it: the original direction comes from there.
        let [there, answer] = legs(&direct("10.42.2.2:4000", "10.42.1.2:80"), &topology(), by_eth0).expect("eligible");
        assert_eq!((there.device, answer.device), (2, 5));
    }

    #[test]
    fn what_may_not_is_refused_with_its_reason() {
        let of = |entry: &Entry, topology: &Topology| legs(entry, topology, no_route).expect_err("refused");
        let plain = direct("10.42.1.2:4000", "10.42.1.3:80");
        assert_eq!(of(&Entry { sequence_adjusted: true, ..plain.clone() }, &topology()), Reason::SequenceAdjusted);
        assert_eq!(of(&Entry { helper: true, ..plain.clone() }, &topology()), Reason::ConntrackHelper);
        assert_eq!(of(&Entry { offloaded: true, ..plain.clone() }, &topology()), Reason::Offloaded);
        assert_eq!(of(&Entry { zone: 7, ..plain.clone() }, &topology()), Reason::ConntrackZone);
        assert_eq!(of(&direct("10.42.1.2:4000", "192.0.2.1:80"), &topology()), Reason::PeerNotChosen);
        assert_eq!(of(&direct("10.42.1.2:4000", "10.42.1.1:80"), &topology()), Reason::HostNetwork);
        assert_eq!(of(&direct("10.42.1.2:4000", "10.42.2.2:80"), &topology()), Reason::NoRoute);
        let own = entry(tuple("10.42.1.2:4000", "10.96.0.10:80"), tuple("10.42.1.2:8080", "10.42.1.1:4000"));
        assert_eq!(of(&own, &topology()), Reason::Hairpin);
        let changed = |ip_: &str, change: &dyn Fn(&mut Port)| {
            let mut topology = topology();
            topology.ports.get_mut(&ip(ip_)).into_iter().for_each(change);
            topology
        };
        assert_eq!(of(&plain, &changed("10.42.1.3", &|p| p.mtu = 9000)), Reason::MtuDiffers);
        assert_eq!(of(&plain, &changed("10.42.1.3", &|p| p.refusal = Some(Reason::PodBridge))), Reason::PodBridge);
        let ipsec = Topology { ipsec: true, ..topology() };
        assert_eq!(legs(&direct("10.42.1.2:4000", "10.42.2.2:80"), &ipsec, by_eth0), Err(Reason::Ipsec));
        let refused = Topology { refused_devices: HashMap::from([(2, Reason::ForeignProgram)]), ..topology() };
        assert_eq!(legs(&direct("10.42.1.2:4000", "10.42.2.2:80"), &refused, by_eth0), Err(Reason::ForeignProgram));
    }
}
