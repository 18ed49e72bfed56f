//! Limits of what either side accepts from the other. Both check what they read before they use it: every user who may attach to
//! a helper's pod can send it requests, and a plugin reads untrusted recordings.

use std::fmt::Display;

use crate::accel::{AccelerateRequest, ChoosePods, PairsSnapshot, PauseRequest, PodElsewhere, PodName, ResumeRequest};
use crate::message::{Armed, DeviceFilters, Hello, Message};
use crate::packet::{Cause, Context, Device, Drop, Hop, Incident, Outcome, Packet, Place, Rule};
use crate::pod::{Locate, Node, Pod};
use crate::request::{Request, Service, TraceRequest};
use crate::text::{LONGEST_FIELD, field_within};

/// Longest line from the plugin to the helper, in bytes: a request that names 20,000 pods of other nodes has 3 MiB.
pub const LONGEST_REQUEST: usize = 8 << 20;

/// Longest line from the helper to the plugin, in bytes: a snapshot of the 16,384 pairs an acceleration can hold has about 10 MiB.
pub const LONGEST_MESSAGE: usize = 16 << 20;

/// Longest line of a helper's stderr that is read, in bytes; the rest of a longer one is skipped.
pub const LONGEST_STDERR_LINE: usize = 16 << 10;

/// Pods of one node in a request: kubelets run 110 by default, and a few hundred at most.
pub const MOST_PODS: usize = 4_096;

/// Programs that a user may name.
pub const MOST_PROGRAMS: usize = 256;

/// Pods of other nodes in a request: Kubernetes is tested with 150,000 in a cluster, of which a line holds fewer.
pub const MOST_PODS_ELSEWHERE: usize = 150_000;

/// Nodes in a request: Kubernetes is tested with 5,000 in a cluster.
pub const MOST_NODES: usize = 5_000;

/// Services in a request: those with the target behind them.
pub const MOST_SERVICES: usize = 1_000;

/// Addresses of one pod, node or target, and containers of one pod: a pod has two addresses, a node a few.
pub const MOST_OF_ONE: usize = 256;

/// Addresses of one Service (one for each node and port) and its backends.
pub const MOST_OF_SERVICE: usize = 65_536;

/// Longest name, in bytes: Kubernetes allows 253, a path of the lab has more.
pub const LONGEST_NAME: usize = 1_024;

/// Longest name of a node, pod or device in a message, in characters; longer ones are cut. `namespace/name` of a pod has up to 317.
pub const LONGEST_LABEL: usize = 512;

/// Hops of one packet: the longest path (two nodes with a tunnel and netfilter) has about 80.
pub const MOST_HOPS: usize = 512;

/// Hooks, features, programs, filters of a device and chains of a rule in one message: a trace uses about 60 hooks.
pub const MOST_ITEMS: usize = 1_024;

/// Pairs in one snapshot, and things that would be bypassed: twice what an acceleration can hold.
pub const MOST_PAIRS: usize = 32_768;

/// Why a request or a message is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooMuch(String);

impl Display for TooMuch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TooMuch {}

/// Checks a number of things; `of` names the object.
fn at_most(count: usize, most: usize, what: &str, of: impl Display) -> Result<(), TooMuch> {
    if count <= most { Ok(()) } else { Err(TooMuch(format!("{of} has {count} {what}, at most {most} are supported"))) }
}

/// Checks a name, which also must not hold control characters; `what` says of what.
fn name(text: &str, what: &str) -> Result<(), TooMuch> {
    if text.len() > LONGEST_NAME {
        let begin = field_within(text, 40);
        return Err(TooMuch(format!("{what} `{begin}` has {} bytes, at most {LONGEST_NAME} are supported", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(TooMuch(format!("{what} `{}` holds control characters", field_within(text, 80))));
    }
    Ok(())
}

/// Checks an identifier that becomes a part of a path on the node: one component of it.
fn identifier(text: &str, what: &str) -> Result<(), TooMuch> {
    name(text, what)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if text == "." || text == ".." || !text.chars().all(fits) {
        return Err(TooMuch(format!("{what} `{}` is not a valid identifier", field_within(text, 80))));
    }
    Ok(())
}

impl Request {
    /// Checks that it is of a size the helper can serve.
    ///
    /// # Errors
    /// What is too large, and of which object.
    pub fn check(&self) -> Result<(), TooMuch> {
        match self {
            Self::Trace(request) => trace(request),
            Self::Accelerate(request) => accelerate(request),
            Self::Choose(ChoosePods { pods, elsewhere: others }) => {
                chosen(pods)?;
                elsewhere(others)
            }
            Self::Pause(PauseRequest { pods, .. }) | Self::Resume(ResumeRequest { pods }) => {
                at_most(pods.len(), MOST_PODS_ELSEWHERE, "pods", "the request")?;
                pods.iter().try_for_each(pod_name)
            }
            Self::Stop(request) => name(&request.by, "who asks"),
            Self::Hello { secret } => secret.as_deref().map_or(Ok(()), |secret| identifier(secret, "the session")),
            Self::Probe(_)
            | Self::LookForBypass
            | Self::Status
            | Self::Doctor
            | Self::Cleanup
            | Self::Clock { .. }
            | Self::Heartbeat
            | Self::Finish => Ok(()),
        }
    }
}

fn trace(request: &TraceRequest) -> Result<(), TooMuch> {
    pod(&request.source)?;
    at_most(request.targets.len(), MOST_OF_SERVICE, "targets", "the request")?;
    request.targets.iter().try_for_each(pod)?;
    at_most(request.addresses.len(), MOST_OF_ONE, "addresses", "the target")?;
    at_most(request.services.len(), MOST_SERVICES, "Services", "the request")?;
    request.services.iter().try_for_each(service)?;
    nodes(&request.nodes)
}

fn accelerate(request: &AccelerateRequest) -> Result<(), TooMuch> {
    chosen(&request.pods)?;
    elsewhere(&request.elsewhere)?;
    nodes(&request.nodes)?;
    at_most(request.socket_programs.len(), MOST_PROGRAMS, "programs", "the request")?;
    request.socket_programs.iter().try_for_each(|program| name(program, "a program"))?;
    name(&request.owner, "the owner")
}

fn chosen(pods: &[Pod]) -> Result<(), TooMuch> {
    at_most(pods.len(), MOST_PODS, "pods of one node", "the request")?;
    pods.iter().try_for_each(pod)
}

fn elsewhere(pods: &[PodElsewhere]) -> Result<(), TooMuch> {
    at_most(pods.len(), MOST_PODS_ELSEWHERE, "pods of other nodes", "the request")?;
    pods.iter().try_for_each(|p| {
        pod_name(&p.pod)?;
        at_most(p.ips.len(), MOST_OF_ONE, "addresses", &p.pod)
    })
}

fn pod_name(pod: &PodName) -> Result<(), TooMuch> {
    name(&pod.namespace, "the namespace")?;
    name(&pod.name, "the pod")
}

fn pod(pod: &Pod) -> Result<(), TooMuch> {
    name(&pod.namespace, "the namespace")?;
    name(&pod.name, "the pod")?;
    name(&pod.node, "the node")?;
    identifier(&pod.uid, "the pod's UID")?;
    let of = || format!("pod {}/{}", pod.namespace, pod.name);
    at_most(pod.ips.len(), MOST_OF_ONE, "addresses", of())?;
    at_most(pod.containers.len(), MOST_OF_ONE, "containers", of())?;
    for container in &pod.containers {
        name(&container.name, "the container")?;
        identifier(&container.id, "the container's id")?;
    }
    match &pod.locate {
        Locate::Uid => Ok(()),
        Locate::Node { netns } => netns.as_deref().map_or(Ok(()), |netns| name(netns, "the namespace file")),
        Locate::Path { netns, cgroup } => {
            name(netns, "the namespace file")?;
            name(cgroup, "the cgroup")
        }
    }
}

fn nodes(nodes: &[Node]) -> Result<(), TooMuch> {
    at_most(nodes.len(), MOST_NODES, "nodes", "the request")?;
    nodes.iter().try_for_each(|node| {
        name(&node.name, "the node")?;
        at_most(node.ips.len(), MOST_OF_ONE, "addresses", format_args!("node {}", node.name))?;
        node.netns.as_deref().map_or(Ok(()), |netns| name(netns, "the namespace file"))
    })
}

fn service(service: &Service) -> Result<(), TooMuch> {
    name(&service.namespace, "the namespace")?;
    name(&service.name, "the Service")?;
    let of = || format!("Service {}/{}", service.namespace, service.name);
    at_most(service.frontends.len(), MOST_OF_SERVICE, "addresses", of())?;
    at_most(service.backends.len(), MOST_OF_SERVICE, "backends", of())
}

impl Message {
    /// Checks that it is of a size the plugin can keep, and cuts the texts in it that are longer than [`LONGEST_FIELD`].
    ///
    /// # Errors
    /// What is too large, and of which object.
    pub fn check(&mut self) -> Result<(), TooMuch> {
        match self {
            Self::Hello(hello) => hello.check(),
            Self::Armed(armed) => armed.check(),
            Self::Place(place) => {
                place.cut();
                Ok(())
            }
            Self::Packet(packet) => packet.check(),
            Self::Incident(Incident { detail, .. }) => {
                cut_some(detail);
                Ok(())
            }
            Self::Counters(counters) => {
                at_most(counters.programs.len().max(counters.conntrack.len()), MOST_ITEMS, "programs or nodes", "a message of totals")?;
                counters.conntrack.iter_mut().for_each(|of| cut(&mut of.node));
                Ok(())
            }
            Self::Probed(probed) => {
                cut(&mut probed.to);
                cut_some(&mut probed.error);
                probed.why.iter_mut().try_for_each(|why| {
                    cut(&mut why.detail);
                    why.cause.check()
                })
            }
            Self::Pairs(snapshot) => snapshot.check(),
            Self::Bypassed { found } => {
                at_most(found.len(), MOST_PAIRS, "entries", "the list of what would be bypassed")?;
                for one in found {
                    at_most(one.pods.len(), MOST_PODS, "pods", "an entry of what would be bypassed")?;
                    [&mut one.what, &mut one.place].into_iter().chain(&mut one.pods).for_each(cut);
                }
                Ok(())
            }
            Self::Status(status) => {
                cut_some(&mut status.owner);
                status.pairs.check()
            }
            Self::Canary(test) => {
                [&mut test.name, &mut test.detail].into_iter().for_each(cut);
                Ok(())
            }
            Self::Check(check) => {
                [&mut check.name, &mut check.found].into_iter().chain(&mut check.remedy).for_each(cut);
                Ok(())
            }
            Self::Removed { what: text } | Self::Warning { text } => {
                cut(text);
                Ok(())
            }
            Self::Error { text, code } => {
                [text, code].into_iter().for_each(cut);
                Ok(())
            }
            Self::Summary(summary) => {
                cut_some(&mut summary.stopped_by);
                Ok(())
            }
            Self::Clock(_) | Self::Heartbeat | Self::End(_) => Ok(()),
        }
    }
}

/// Cuts a text. What does harm to a terminal stays: that is the matter of where it is shown.
fn cut(text: &mut String) {
    cut_to(text, LONGEST_FIELD);
}

fn cut_to(text: &mut String, most: usize) {
    if text.len() > most
        && let Some((at, _)) = text.char_indices().nth(most)
    {
        text.truncate(at);
        text.push_str("...");
        text.shrink_to_fit();
    }
}

fn cut_some(text: &mut Option<String>) {
    text.iter_mut().for_each(cut);
}

impl Hello {
    fn check(&mut self) -> Result<(), TooMuch> {
        [&mut self.version, &mut self.kernel, &mut self.arch, &mut self.boot].into_iter().for_each(cut);
        at_most(self.features.len(), MOST_ITEMS, "features", "the hello")?;
        self.features.keys().try_for_each(|feature| name(feature, "a feature"))
    }
}

impl Armed {
    fn check(&mut self) -> Result<(), TooMuch> {
        at_most(self.hooks.len(), MOST_ITEMS, "hooks", "the trace")?;
        at_most(self.unavailable.len(), MOST_ITEMS, "hooks that are not available", "the trace")?;
        at_most(self.filters.len(), MOST_PODS, "devices with filters", "the trace")?;
        self.hooks.iter_mut().chain(self.unavailable.values_mut()).for_each(cut);
        self.filters.iter_mut().try_for_each(|DeviceFilters { node, device, ingress, egress, .. }| {
            at_most(ingress.len().max(egress.len()), MOST_ITEMS, "filters", "a device")?;
            [node, device].into_iter().chain(ingress).chain(egress).for_each(cut);
            Ok(())
        })
    }
}

impl Place {
    fn cut(&mut self) {
        let device = self.device.iter_mut().flat_map(|Device { name, peer, bridge, .. }| [name].into_iter().chain(peer).chain(bridge));
        [&mut self.node].into_iter().chain(&mut self.pod).chain(device).for_each(|name| cut_to(name, LONGEST_LABEL));
    }
}

impl Packet {
    fn check(&mut self) -> Result<(), TooMuch> {
        at_most(self.hops.len(), MOST_HOPS, "hops", format_args!("packet {}", self.id))?;
        for Hop { hook, context, rule, note, facts, .. } in &mut self.hops {
            cut(hook);
            cut_some(note);
            if let Context::Process { comm, .. } = context {
                cut(comm);
            }
            rule.iter_mut().try_for_each(|rule| rule.check())?;
            facts.iter_mut().flat_map(|f| f.input.iter_mut().chain(&mut f.output)).for_each(cut);
        }
        if let Outcome::Dropped(Drop { reason, location, socket, detail, rule, cause, .. }) = &mut self.outcome {
            cut(reason);
            cut_some(location);
            cut_some(socket);
            cut_some(detail);
            rule.iter_mut().try_for_each(|rule| rule.check())?;
            cause.iter_mut().try_for_each(|cause| cause.check())?;
        }
        Ok(())
    }
}

impl Cause {
    fn check(&mut self) -> Result<(), TooMuch> {
        at_most(self.evidence.len(), MOST_ITEMS, "sentences of evidence", "a drop")?;
        at_most(self.candidates.len(), MOST_ITEMS, "rules that may have done it", "a drop")?;
        self.evidence.iter_mut().for_each(cut);
        self.candidates.iter_mut().try_for_each(Rule::check)
    }
}

impl Rule {
    fn check(&mut self) -> Result<(), TooMuch> {
        at_most(self.via.len(), MOST_ITEMS, "chains that lead there", "a rule")?;
        let element = self.element.iter_mut().flat_map(|e| [&mut e.set].into_iter().chain(&mut e.comment));
        [&mut self.table, &mut self.chain].into_iter().chain(&mut self.comment).chain(&mut self.via).chain(element).for_each(cut);
        Ok(())
    }
}

impl PairsSnapshot {
    fn check(&mut self) -> Result<(), TooMuch> {
        at_most(self.pairs.len(), MOST_PAIRS, "pairs", "a snapshot")?;
        for pair in &mut self.pairs {
            cut_some(&mut pair.client_pod);
            cut_some(&mut pair.server_pod);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::{PauseReason, StopRequest};
    use crate::packet::{Direction, Flow, PacketKind};
    use crate::pod::Container;
    use crate::request::Protocol;
    use crate::stage::StageId;

    fn a_pod() -> Pod {
        Pod {
            namespace: "default".into(),
            name: "web".into(),
            uid: "0a1b-2c".into(),
            node: "n1".into(),
            ips: Vec::new(),
            host_network: false,
            containers: vec![Container { name: "c".into(), id: "abc123".into() }],
            locate: Locate::Uid,
        }
    }

    fn choose(pods: Vec<Pod>) -> Result<(), String> {
        Request::Choose(ChoosePods { pods, elsewhere: Vec::new() }).check().map_err(|e| e.to_string())
    }

    #[test]
    fn requests_are_bounded() {
        assert_eq!(choose(vec![a_pod()]), Ok(()));
        assert_eq!(Request::Stop(StopRequest { drain_ms: u64::MAX, by: String::new() }).check(), Ok(()));
        let error = choose(vec![a_pod(); MOST_PODS + 1]).unwrap_err();
        assert_eq!(error, "the request has 4097 pods of one node, at most 4096 are supported");
        let error = choose(vec![Pod { name: "x".repeat(LONGEST_NAME + 1), ..a_pod() }]).unwrap_err();
        assert!(error.starts_with("the pod `xxx") && error.ends_with("...` has 1025 bytes, at most 1024 are supported"), "{error}");
        let error = choose(vec![Pod { ips: vec![[1, 1, 1, 1].into(); MOST_OF_ONE + 1], ..a_pod() }]).unwrap_err();
        assert_eq!(error, "pod default/web has 257 addresses, at most 256 are supported");
        assert!(choose(vec![Pod { name: "a\x1b[2Jb".into(), ..a_pod() }]).unwrap_err().contains("`a?[2Jb` holds control"));
        let pods = vec![PodName { namespace: "x\n".into(), name: "y".into() }];
        assert!(Request::Pause(PauseRequest { pods, reason: PauseReason::NetworkPolicy }).check().is_err());
    }

    #[test]
    fn identifiers_are_one_component_of_a_path() {
        for bad in ["../..", "..", ".", "a/b", "a b", "a\0"] {
            assert!(choose(vec![Pod { uid: bad.into(), ..a_pod() }]).is_err(), "{bad}");
            let containers = vec![Container { name: "c".into(), id: bad.into() }];
            assert!(choose(vec![Pod { containers, ..a_pod() }]).is_err(), "{bad}");
        }
    }

    #[test]
    fn messages_are_bounded() {
        let hop = Hop {
            stage: StageId::SocketWrite,
            hook: "h".into(),
            at_ns: 1,
            place: 0,
            cpu: 0,
            context: Context::Softirq,
            len: 1,
            segments: 1,
            rewritten: None,
            rule: None,
            offsets: None,
            note: Some("ä".repeat(LONGEST_FIELD + 1)),
            facts: None,
        };
        let address = || "10.0.0.1:1".parse().unwrap();
        let packet = |hops| {
            Message::Packet(Box::new(Packet {
                id: 7,
                conversation: 1,
                direction: Direction::Request,
                protocol: Protocol::Tcp,
                kind: PacketKind::Data,
                flow: Flow { from: address(), to: address() },
                seq: 0,
                ack: 0,
                payload: 0,
                hops,
                outcome: Outcome::Delivered,
            }))
        };
        let mut one = packet(vec![hop.clone()]);
        assert_eq!(one.check(), Ok(()));
        let Message::Packet(one) = one else { panic!("a packet") };
        assert_eq!(one.hops[0].note.as_ref().map(|n| n.chars().count()), Some(LONGEST_FIELD + 3));
        let error = packet(vec![hop; MOST_HOPS + 1]).check().unwrap_err().to_string();
        assert_eq!(error, "packet 7 has 513 hops, at most 512 are supported");
        let mut warning = Message::Warning { text: "x".repeat(1 << 20) };
        assert_eq!(warning.check(), Ok(()));
        assert!(matches!(warning, Message::Warning { text } if text.len() == LONGEST_FIELD + 3));
    }
}
