//! rtnetlink inside one namespace: links, addresses, routes and neighbours, each error with the object that it concerns.

use std::fmt;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::netns::Netns;

/// rtnetlink of one namespace.
#[derive(Clone)]
pub struct Links {
    handle: Handle,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

/// One end of a veth pair that is not made in the namespace the request goes to.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// Its name there.
    pub name: &'a str,
    /// The namespace it appears in.
    pub netns: &'a File,
}

impl Links {
    /// Opens a netlink socket in `netns`; it stays there whatever this thread does afterwards. Must be called on the runtime.
    pub fn connect(netns: &Netns) -> Result<Self> {
        netns.run(|| {
            let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
            tokio::spawn(connection);
            Ok(Self { handle })
        })
    }

    async fn get(&self, name: &str) -> Result<Option<LinkMessage>> {
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(link) => Ok(link),
            Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::ENODEV => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot look up device {name}")),
        }
    }

    /// Index of a device.
    pub async fn index(&self, name: &str) -> Result<u32> {
        Ok(self.get(name).await?.with_context(|| format!("no device {name}"))?.header.index)
    }

    /// Whether there is a device of that name, and up.
    pub async fn is_up(&self, name: &str) -> Result<bool> {
        Ok(self.get(name).await?.is_some_and(|l| l.header.flags.contains(LinkFlags::Up)))
    }

    /// A device's alias.
    pub async fn alias(&self, name: &str) -> Result<Option<String>> {
        let link = self.get(name).await?;
        Ok(link.and_then(|l| l.attributes.into_iter().find_map(|a| if let LinkAttribute::IfAlias(alias) = a { Some(alias) } else { None })))
    }

    /// Adds a device and returns its index. `kind` is the kernel's name of that kind of device.
    pub async fn add(&self, name: &str, kind: &str, message: LinkMessage) -> Result<u32> {
        match self.handle.link().add(message).execute().await {
            Ok(()) => self.index(name).await,
            Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::EOPNOTSUPP => {
                let option = kind.to_uppercase();
                anyhow::bail!("this kernel does not support {kind} devices: load the module `{kind}`, or use a kernel with CONFIG_{option}")
            }
            Err(e) => Err(e).with_context(|| format!("cannot add {kind} device {name}")),
        }
    }

    /// Adds a veth pair between this namespace and another.
    pub async fn add_veth(&self, name: &str, mtu: u32, peer: Peer<'_>) -> Result<u32> {
        let far = LinkMessageBuilder::<LinkUnspec>::new().name(peer.name).mtu(mtu).setns_by_fd(peer.netns.as_raw_fd()).build();
        let near = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
            .build();
        self.add(name, "veth", near).await
    }

    /// Sets what `message` says, on the device it names.
    pub async fn set(&self, name: &str, message: LinkMessage) -> Result<()> {
        self.handle.link().set(message).execute().await.with_context(|| format!("cannot set up device {name}"))
    }

    /// Lets a bridge port send frames back out of the port they came from: a pod that reaches itself through a Service.
    pub async fn hairpin(&self, name: &str, index: u32) -> Result<()> {
        let message = LinkBridgePort::new(index).hairpin(true).build();
        self.handle.link().set_port(message).execute().await.with_context(|| format!("cannot set hairpin mode on bridge port {name}"))
    }

    /// Takes a device up.
    pub async fn up(&self, name: &str, index: u32) -> Result<()> {
        self.set(name, LinkUnspec::new_with_index(index).up().build()).await
    }

    /// Adds an address to a device.
    pub async fn address(&self, index: u32, address: impl Into<IpAddr>, prefix: u8) -> Result<()> {
        let address = address.into();
        let request = self.handle.address().add(index, address, prefix);
        request.execute().await.with_context(|| format!("cannot add address {address}/{prefix}"))
    }

    /// Adds a route; gateway and destination are of one family. `onlink`: take the gateway for reachable on the device although
    /// no address says so.
    pub async fn route<A: Into<IpAddr>>(&self, to: (A, u8), via: A, device: u32, onlink: bool) -> Result<()> {
        let (to, prefix, via) = (to.0.into(), to.1, via.into());
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to, prefix)
            .and_then(|route| route.gateway(via))
            .with_context(|| format!("a route to {to}/{prefix} cannot go via {via}"))?
            .output_interface(device)
            .scope(RouteScope::Universe);
        if onlink {
            route = route.onlink();
        }
        self.handle.route().add(route.build()).execute().await.with_context(|| format!("cannot add route {to}/{prefix} via {via}"))
    }

    /// Adds a permanent neighbour.
    pub async fn neighbour(&self, device: u32, address: impl Into<IpAddr>, mac: [u8; 6]) -> Result<()> {
        let address = address.into();
        let request = self.handle.neighbours().add(device, address).link_layer_address(&mac);
        request.execute().await.with_context(|| format!("cannot add neighbour {address}"))
    }

    /// Tells a VXLAN device which node a link address lives on.
    pub async fn vxlan_peer(&self, device: u32, mac: [u8; 6], node: Ipv4Addr) -> Result<()> {
        let mut request = self.handle.neighbours().add_bridge(device, &mac).flags(NeighbourFlags::Own);
        request.message_mut().attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(node)));
        request.execute().await.with_context(|| format!("cannot add the forwarding entry for node {node}"))
    }
}
