//! The devices of a network namespace, asked for by rtnetlink from inside.

use std::collections::HashMap;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use sockpath_kernel::netns::inside;
use sockpath_protocol::packet::{Device, DeviceKind};

use super::places::TracedDevice;
use crate::node::Netns;

/// A device as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// What it is.
    pub kind: DeviceKind,
    /// Where its other end is: inode of the namespace (`None` for one that is not of this trace) and index.
    pub peer: Option<(Option<u32>, u32)>,
    /// Index of the bridge it is a port of.
    pub controller: Option<u32>,
    /// Name of its root queue discipline.
    pub qdisc: String,
}

/// The devices of the namespaces of a trace, by inode of the namespace.
pub type Links = HashMap<u32, Vec<Link>>;

/// Dumps the devices of `here`. Other ends are recognised in the namespaces `all`.
pub fn dump(here: &Netns, all: &[&Netns]) -> Result<Vec<Link>> {
    inside(&here.file, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start an event loop")?;
        runtime.block_on(async {
            let (connection, mut handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
            let connection = tokio::spawn(connection);
            let ids = namespace_ids(&mut handle, all).await?;
            let links = handle.link().get().execute().map_ok(|m| link(&m, &ids, here.inode)).try_collect().await;
            connection.abort();
            links.context("cannot list the devices")
        })
    })
    .with_context(|| format!("namespace {}", here.path.display()))
}

/// The numbers by which this namespace calls others (`ip netns list-id`), where it has given them any.
async fn namespace_ids(handle: &mut Handle, all: &[&Netns]) -> Result<HashMap<i32, u32>> {
    let mut ids = HashMap::new();
    for netns in all {
        let mut ask = NsidMessage::default();
        let fd = u32::try_from(netns.file.as_raw_fd()).context("a file descriptor is negative")?;
        ask.attributes.push(NsidAttribute::Fd(fd));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(ask));
        message.header.flags = NLM_F_REQUEST;
        let mut answers = handle.request(message).context("cannot ask for a namespace's number")?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(m)) => {
                    for a in m.attributes {
                        if let NsidAttribute::Id(id) = a
                            && id >= 0
                        {
                            ids.insert(id, netns.inode);
                        }
                    }
                }
                NetlinkPayload::Error(e) if e.code.is_some() => bail!("cannot ask for a namespace's number: {e}"),
                _ => {}
            }
        }
    }
    Ok(ids)
}

fn link(message: &LinkMessage, ids: &HashMap<i32, u32>, here: u32) -> Link {
    let mut link = Link {
        name: String::new(),
        ifindex: message.header.index,
        kind: DeviceKind::Other,
        peer: None,
        controller: None,
        qdisc: String::new(),
    };
    let (mut other, mut netns) = (None, None);
    if message.header.link_layer_type == LinkLayerType::Loopback {
        link.kind = DeviceKind::Loopback;
    }
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Qdisc(qdisc) => link.qdisc.clone_from(qdisc),
            LinkAttribute::Link(index) => other = Some(*index),
            LinkAttribute::LinkNetNsId(id) => netns = Some(*id),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = device_kind(kind);
                    }
                }
            }
            _ => {}
        }
    }
    if link.kind == DeviceKind::Veth {
        link.peer = other.map(|index| (netns.map_or(Some(here), |id| ids.get(&id).copied()), index));
    }
    link
}

fn device_kind(kind: &InfoKind) -> DeviceKind {
    match kind {
        InfoKind::Veth | InfoKind::Netkit => DeviceKind::Veth,
        InfoKind::Bridge => DeviceKind::Bridge,
        InfoKind::Vxlan
        | InfoKind::Geneve
        | InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::SitTun
        | InfoKind::GreTun
        | InfoKind::GreTap
        | InfoKind::GreTun6
        | InfoKind::GreTap6
        | InfoKind::Wireguard
        | InfoKind::Vti
        | InfoKind::Vti6
        | InfoKind::Xfrm => DeviceKind::Tunnel,
        _ => DeviceKind::Other,
    }
}

/// The devices of one namespace as the plugin shows them. `owner` names a namespace: its pod, or its node.
pub fn describe(netns: u32, links: &Links, owner: impl Fn(u32) -> Option<String>) -> Vec<TracedDevice> {
    let name_in = |netns: u32, index: u32| links.get(&netns)?.iter().find(|l| l.ifindex == index).map(|l| l.name.clone());
    links
        .get(&netns)
        .into_iter()
        .flatten()
        .map(|l| TracedDevice {
            device: Device {
                name: l.name.clone(),
                ifindex: l.ifindex,
                kind: l.kind,
                peer: l.peer.and_then(|(there, index)| Some(format!("{}@{}", name_in(there?, index)?, owner(there?)?))),
                bridge: l.controller.and_then(|index| name_in(netns, index)),
            },
            qdisc: l.qdisc.clone(),
        })
        .collect()
}

/// Devices of a node at which packets come in from elsewhere: not a port of a bridge, a tunnel or a link to a known namespace.
#[must_use]
pub fn uplinks(links: &[Link]) -> Vec<u32> {
    links
        .iter()
        .filter(|l| l.controller.is_none())
        .filter(|l| match l.kind {
            DeviceKind::Other => true,
            DeviceKind::Veth => l.peer.is_none_or(|(netns, _)| netns.is_none()),
            DeviceKind::Loopback | DeviceKind::Bridge | DeviceKind::Tunnel => false,
        })
        .map(|l| l.ifindex)
        .collect()
}
