//! What packets of chosen pods pass on the network path, and redirected bytes bypass.

use serde::{Deserialize, Serialize};

/// One thing that would be bypassed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bypassed {
    /// What it is.
    pub kind: BypassKind,
    /// Its name, as its owner named it, and what it does as far as the kernel shows.
    pub what: String,
    /// Where it is: a device, a chain, a control group, a namespace of Kubernetes.
    pub place: String,
    /// Pods whose packets pass it, `namespace/name`; empty where it may be any of the chosen ones.
    pub pods: Vec<String>,
}

/// Kinds of things that only packets on the network meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BypassKind {
    /// A NetworkPolicy that selects the pods. What it allows is decided when a connection is made; later changes are watched for.
    NetworkPolicy,
    /// A bandwidth limit that the pod's annotations ask the network plugin for.
    Bandwidth,
    /// A netfilter rule that drops, logs, limits or copies packets.
    NetfilterRule,
    /// A queue discipline that shapes or delays.
    Qdisc,
    /// A tc filter that is not a BPF program.
    TcFilter,
    /// A tc BPF program (clsact or tcx).
    TcProgram,
    /// A tc action that copies packets to another device, or sends them there.
    Mirror,
    /// An XDP program.
    XdpProgram,
    /// A BPF program of a control group that sees its packets or its TCP events.
    CgroupProgram,
    /// A BPF program of another program's sockmap: its sockets are excluded.
    SockmapProgram,
}

impl BypassKind {
    /// The kind in a word or two, for tables.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Bandwidth => "bandwidth limit",
            Self::NetfilterRule => "netfilter rule",
            Self::Qdisc => "queue discipline",
            Self::TcFilter => "tc filter",
            Self::TcProgram => "tc program",
            Self::Mirror => "mirror",
            Self::XdpProgram => "XDP program",
            Self::CgroupProgram => "cgroup program",
            Self::SockmapProgram => "sockmap program",
        }
    }
}

/// Puts what was found for several pods together, sorted.
#[must_use]
pub fn gather(found: impl IntoIterator<Item = Bypassed>) -> Vec<Bypassed> {
    let mut gathered: Vec<Bypassed> = Vec::new();
    for one in found {
        let is_same = |b: &&mut Bypassed| (b.kind, &b.what, &b.place) == (one.kind, &one.what, &one.place);
        match gathered.iter_mut().find(is_same) {
            // Any pod is all that can be said.
            Some(same) if same.pods.is_empty() || one.pods.is_empty() => same.pods.clear(),
            Some(same) => same.pods.extend(one.pods),
            None => gathered.push(one),
        }
    }
    for one in &mut gathered {
        one.pods.sort_unstable();
        one.pods.dedup();
    }
    gathered.sort_unstable();
    gathered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_of_several_pods_is_listed_once() {
        let one = |what: &str, pods: &[&str]| Bypassed {
            kind: BypassKind::Qdisc,
            what: what.into(),
            place: "veth1".into(),
            pods: pods.iter().map(|p| (*p).to_owned()).collect(),
        };
        let gathered = gather([one("tbf", &["b"]), one("netem", &["c"]), one("tbf", &["a"]), one("tbf", &["a"])]);
        assert_eq!(gathered, [one("netem", &["c"]), one("tbf", &["a", "b"])]);
        assert_eq!(gather([one("tbf", &["b"]), one("tbf", &[])]), [one("tbf", &[])]);
    }
}
