//! Queue disciplines, filters and programs of devices (include/uapi/linux/rtnetlink.h, pkt_sched.h, pkt_cls.h).

use std::fs::File;
use std::io;

use anyhow::{Context, Result};
use libbpf_rs::libbpf_sys as sys;
use sockpath_kernel::link;
use sockpath_kernel::netlink::{Attributes, NETLINK_ROUTE, Socket, word};
use sockpath_kernel::netns::inside;
use sockpath_protocol::bypass::BypassKind;
use sockpath_protocol::message::DeviceFilters;

use super::environment::Environment;
use crate::node::programs::{Programs, attached};

const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

/// `struct tcmsg`.
const TCMSG: usize = 20;

/// Parents of the filters of clsact and ingress.
const AT_INGRESS: u32 = 0xffff_fff2;
const AT_EGRESS: u32 = 0xffff_fff3;

/// Disciplines that neither delay nor drop by themselves: those that only hold filters, and the absence of one.
const HARMLESS: [&str; 4] = ["noqueue", "clsact", "ingress", "mq"];

/// Something at a device: its name, what it is, and that in words.
pub type AtDevice = (String, BypassKind, String);

/// What packets meet at these devices (index and name) of a namespace.
pub fn on_devices(netns: &File, devices: &[(u32, String)], programs: &Programs) -> Result<Vec<AtDevice>> {
    inside(netns, || {
        let mut socket = Socket::open(NETLINK_ROUTE).context("cannot open a netlink socket")?;
        let qdiscs = socket.dump_all(RTM_GETQDISC, RTM_NEWQDISC, &tcmsg(0, 0)).context("cannot list queue disciplines")?;
        let qdiscs: Vec<Discipline> = qdiscs.iter().filter_map(|body| Discipline::read(body)).collect();
        let links = link::list(&mut socket).context("cannot list the devices")?;
        let mut found = Vec::new();
        for (index, name) in devices {
            for qdisc in qdiscs.iter().filter(|q| q.ifindex == *index) {
                if !HARMLESS.contains(&qdisc.kind.as_str()) {
                    found.push((name.clone(), BypassKind::Qdisc, qdisc.text()));
                }
                for (parent, side) in qdisc.filter_parents() {
                    let filters = socket
                        .dump_all(RTM_GETTFILTER, RTM_NEWTFILTER, &tcmsg(*index, parent))
                        .with_context(|| format!("cannot list the tc filters of {name}"))?;
                    found.extend(
                        filters.iter().filter_map(|f| filter(f, side, programs)).flatten().map(|(k, what)| (name.clone(), k, what)),
                    );
                }
            }
            let at_xdp = links.iter().filter(|link| link.index == *index).flat_map(|link| &link.xdp);
            found.extend(at_tcx(*index, programs)?.into_iter().map(|what| (name.clone(), BypassKind::TcProgram, what)));
            found.extend(at_xdp.map(|id| (name.clone(), BypassKind::XdpProgram, format!("program {}", programs.name(*id)))));
        }
        // A kernel lists a filter once as itself and once for each of its parts.
        found.dedup();
        Ok(found)
    })
}

/// What a trace's packets pass at tc and tcx of the pods' devices. Nothing of namespaces that do not say (asking for tcx needs
/// CAP_NET_ADMIN).
pub fn of_pods(environment: &Environment) -> Vec<DeviceFilters> {
    let programs = Programs::loaded().unwrap_or_default();
    let mut all = Vec::new();
    for (netns, traced) in environment.netns.iter().filter(|(_, t)| t.pod.is_some()) {
        let devices: Vec<(u32, String)> = environment.links_of(netns.inode).iter().map(|l| (l.ifindex, l.name.clone())).collect();
        let Ok(found) = on_devices(&netns.file, &devices, &programs) else { continue };
        for (_, device) in devices {
            let side = |side: &str| -> Vec<String> {
                let here = found.iter().filter(|(d, kind, _)| *d == device && !matches!(kind, BypassKind::Qdisc | BypassKind::XdpProgram));
                here.filter_map(|(.., what)| Some(what.strip_prefix(side)?.trim_start().to_owned())).collect()
            };
            let (ingress, egress) = (side("ingress "), side("egress "));
            all.push(DeviceFilters { node: traced.node.clone(), netns: netns.inode, device, ingress, egress });
        }
    }
    all
}

fn tcmsg(ifindex: u32, parent: u32) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(ifindex.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(parent.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message
}

/// A queue discipline.
#[derive(Debug, PartialEq, Eq)]
struct Discipline {
    ifindex: u32,
    handle: u32,
    kind: String,
    /// Bytes a second, of a token bucket.
    rate: Option<u64>,
}

impl Discipline {
    fn read(body: &[u8]) -> Option<Self> {
        const TCA_TBF_PARMS: u16 = 1;
        const TCA_TBF_RATE64: u16 = 4;
        /// Of the rate in `struct tc_ratespec`, with which `struct tc_tbf_qopt` begins.
        const RATE: usize = 8;
        let attributes = Attributes::of(body.get(TCMSG..)?);
        let kind = attributes.text(TCA_KIND)?;
        let options = attributes.nested(TCA_OPTIONS).filter(|_| kind == "tbf");
        let rate = options.and_then(|o| match o.get(TCA_TBF_RATE64) {
            Some(rate) => Some(u64::from_ne_bytes(rate.try_into().ok()?)),
            None => word(o.get(TCA_TBF_PARMS)?, RATE).map(u64::from),
        });
        Some(Self { ifindex: word(body, 4)?, handle: word(body, 8)?, kind, rate })
    }

    fn text(&self) -> String {
        let handle = if self.handle == 0 { String::new() } else { format!(" {:x}:", self.handle >> 16) };
        let rate = match self.rate {
            Some(rate) if rate >= 125_000 => format!(", {} Mbit/s", rate * 8 / 1_000_000),
            Some(rate) => format!(", {} kbit/s", rate * 8 / 1_000),
            None => String::new(),
        };
        format!("{}{handle}{rate}", self.kind)
    }

    /// Where it can have filters, and the direction that this is.
    fn filter_parents(&self) -> Vec<(u32, &'static str)> {
        match self.kind.as_str() {
            "clsact" => vec![(AT_INGRESS, "ingress"), (AT_EGRESS, "egress")],
            "ingress" => vec![(AT_INGRESS, "ingress")],
            "noqueue" => Vec::new(),
            _ if self.handle == 0 => Vec::new(),
            _ => vec![(self.handle, "egress")],
        }
    }
}

/// What one answer about filters names: a program or a filter, and what its actions copy elsewhere.
fn filter(body: &[u8], side: &str, programs: &Programs) -> Option<Vec<(BypassKind, String)>> {
    const TCA_BPF_OPS: u16 = 5;
    const TCA_BPF_NAME: u16 = 7;
    const TCA_BPF_ID: u16 = 11;
    let attributes = Attributes::of(body.get(TCMSG..)?);
    let kind = attributes.text(TCA_KIND)?;
    // The chain alone, without a filter in it, has no options.
    let options = attributes.nested(TCA_OPTIONS)?;
    let mut found = Vec::new();
    if kind == "bpf" {
        let name = match (options.text(TCA_BPF_NAME), options.get(TCA_BPF_ID).and_then(|id| word(id, 0))) {
            (_, Some(id)) => programs.name(id),
            (Some(name), None) => name,
            (None, None) if options.get(TCA_BPF_OPS).is_some() => "in classic BPF".to_owned(),
            (None, None) => return None,
        };
        found.push((BypassKind::TcProgram, format!("{side} program {name}")));
    }
    let actions: Vec<String> = actions(&kind, &options);
    let mirrors = actions.iter().filter(|a| a.starts_with("mirred"));
    found.extend(mirrors.map(|action| (BypassKind::Mirror, format!("{side} {kind} filter: {action}"))));
    let others: Vec<&str> = actions.iter().filter(|a| !a.starts_with("mirred")).map(String::as_str).collect();
    if kind != "bpf" && (actions.is_empty() || !others.is_empty()) {
        let actions = if others.is_empty() { String::new() } else { format!(": {}", others.join(", ")) };
        found.push((BypassKind::TcFilter, format!("{side} {kind} filter{actions}")));
    }
    Some(found)
}

/// The actions of a filter, in words.
fn actions(kind: &str, options: &Attributes<'_>) -> Vec<String> {
    const TCA_ACT_KIND: u16 = 1;
    const TCA_ACT_OPTIONS: u16 = 2;
    const TCA_MIRRED_PARMS: u16 = 2;
    /// What `struct tc_mirred` has behind the fields of every action.
    const EACTION: usize = 20;
    let list = match kind {
        "bpf" | "cgroup" => 1,
        "matchall" => 2,
        "basic" | "flower" => 3,
        "fw" => 4,
        "u32" => 7,
        _ => return Vec::new(),
    };
    let each = options.nested(list).map(|list| list.values().map(Attributes::of).collect::<Vec<_>>()).unwrap_or_default();
    let text = |action: &Attributes<'_>| {
        let name = action.text(TCA_ACT_KIND)?;
        let options = action.nested(TCA_ACT_OPTIONS).filter(|_| name == "mirred");
        let Some(parms) = options.and_then(|o| o.get(TCA_MIRRED_PARMS)) else { return Some(name) };
        let (how, to) = (word(parms, EACTION)?, word(parms, EACTION + 4)?);
        let how = match how {
            1 => "redirects to egress of",
            2 => "copies to egress of",
            3 => "redirects to ingress of",
            4 => "copies to ingress of",
            _ => "sends to",
        };
        Some(format!("mirred {how} device {to}"))
    };
    each.iter().filter_map(text).collect()
}

/// tcx programs of a device of the namespace of this thread, in words.
fn at_tcx(ifindex: u32, programs: &Programs) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let index = i32::try_from(ifindex)?;
    for (kind, side) in [(sys::BPF_TCX_INGRESS, "ingress"), (sys::BPF_TCX_EGRESS, "egress")] {
        let ids = match attached(index, kind, 0) {
            // Kernels before 6.6 do not know the question, and have no such programs.
            Err(e) if e.downcast_ref().and_then(io::Error::raw_os_error) == Some(libc::EINVAL) => Vec::new(),
            ids => ids.context("cannot ask for tcx programs")?,
        };
        found.extend(ids.into_iter().map(|id| format!("{side} tcx program {}", programs.name(id))));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use sockpath_kernel::netlink::Body;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        Body::default().with(kind, value).bytes().to_vec()
    }

    fn message(kind: &str, options: &[u8]) -> Vec<u8> {
        let mut body = tcmsg(7, 0);
        body[8..12].copy_from_slice(&0x8001_0000u32.to_ne_bytes());
        body.extend(attribute(TCA_KIND, format!("{kind}\0").as_bytes()));
        body.extend(attribute(TCA_OPTIONS, options));
        body
    }

    #[test]
    fn a_token_bucket_is_named_with_its_rate() {
        let mut parms = vec![0; 36];
        parms[8..12].copy_from_slice(&125_000u32.to_ne_bytes());
        let qdisc = Discipline::read(&message("tbf", &attribute(1, &parms))).expect("a discipline");
        assert_eq!((qdisc.ifindex, qdisc.text().as_str()), (7, "tbf 8001:, 1 Mbit/s"));
        assert_eq!(Discipline::read(&message("netem", &[])).expect("a discipline").text(), "netem 8001:");
        assert_eq!(Discipline::read(&[0; 8]), None);
    }

    #[test]
    fn a_mirror_is_distinguished_from_other_filters() {
        let mut parms = vec![0; 28];
        parms[20..24].copy_from_slice(&2u32.to_ne_bytes());
        parms[24..28].copy_from_slice(&9u32.to_ne_bytes());
        let mirred = [attribute(1, b"mirred\0"), attribute(2, &attribute(2, &parms))].concat();
        let gact = attribute(1, b"gact\0");
        let one = |actions: &[u8]| filter(&message("matchall", &attribute(2, actions)), "ingress", &Programs::default());
        let copies = (BypassKind::Mirror, "ingress matchall filter: mirred copies to egress of device 9".to_owned());
        assert_eq!(one(&attribute(1, &mirred)), Some(vec![copies]));
        assert_eq!(one(&attribute(1, &gact)), Some(vec![(BypassKind::TcFilter, "ingress matchall filter: gact".to_owned())]));
        let program = [attribute(7, b"cls.o:[x]\0"), attribute(11, &12u32.to_ne_bytes())].concat();
        let named = filter(&message("bpf", &program), "egress", &Programs::default());
        assert_eq!(named, Some(vec![(BypassKind::TcProgram, "egress program id 12".to_owned())]));
    }
}
