//! BPF programs at a pod's control groups that refuse calls and packets.

use std::net::IpAddr;
use std::path::Path;

use libbpf_rs::libbpf_sys as sys;
use sockpath_protocol::packet::{Cause, Certainty, Mechanism};

use crate::node::programs::Programs;

/// The call of a socket that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// socket().
    Open,
    /// connect().
    Connect,
    /// sendto() with an address, of a socket that is not connected; no packet was made.
    SendTo,
    /// send(), or sendto() of a raw socket.
    Send,
}

impl Call {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "socket()",
            Self::Connect => "connect()",
            Self::SendTo => "sendto()",
            Self::Send => "send()",
        }
    }

    /// The hook of security modules.
    fn hook(self) -> &'static str {
        match self {
            Self::Open => "socket_create",
            Self::Connect => "socket_connect",
            Self::SendTo | Self::Send => "socket_sendmsg",
        }
    }

    /// The programs that the kernel runs for it: their kind, and its name as bpftool and libbpf write it.
    fn runs(self, to: IpAddr) -> (u32, &'static str) {
        match (self, to.is_ipv4()) {
            (Self::Open, _) => (sys::BPF_CGROUP_INET_SOCK_CREATE, "cgroup/sock_create"),
            (Self::Connect, true) => (sys::BPF_CGROUP_INET4_CONNECT, "cgroup/connect4"),
            (Self::Connect, false) => (sys::BPF_CGROUP_INET6_CONNECT, "cgroup/connect6"),
            (Self::SendTo, true) => (sys::BPF_CGROUP_UDP4_SENDMSG, "cgroup/sendmsg4"),
            (Self::SendTo, false) => (sys::BPF_CGROUP_UDP6_SENDMSG, "cgroup/sendmsg6"),
            (Self::Send, _) => (sys::BPF_CGROUP_INET_EGRESS, "cgroup_skb/egress"),
        }
    }
}

/// What made a call of a pod fail with EPERM. `group` is the control group that its socket belonged to, where it was the pod's.
pub fn of_call(call: Call, to: IpAddr, group: Option<&Path>) -> (String, Cause) {
    let (kind, what) = call.runs(to);
    let loaded = Programs::loaded().unwrap_or_default();
    explain_call(call, what, in_effect(&loaded, group, kind).as_deref(), &loaded.of_lsm(call.hook()))
}

/// Which program dropped what a pod sent.
pub fn of_drop(group: Option<&Path>) -> Option<(String, Cause)> {
    let (kind, what) = (sys::BPF_CGROUP_INET_EGRESS, "cgroup_skb/egress");
    by_program(what, &in_effect(&Programs::loaded().unwrap_or_default(), group, kind)?, Vec::new())
}

/// The programs of a kind that are run for a group; `None` where they cannot be listed.
fn in_effect(loaded: &Programs, group: Option<&Path>, kind: u32) -> Option<Vec<String>> {
    loaded.in_effect(group?, kind).ok()
}

fn explain_call(call: Call, what: &str, programs: Option<&[String]>, lsm: &[String]) -> (String, Cause) {
    let mut evidence = vec![format!("{} fails with EPERM", call.name())];
    if call != Call::Send {
        evidence.push(format!("no rule of netfilter made {} fail: there was no packet yet", call.name()));
    }
    if !lsm.is_empty() {
        evidence.push(format!("programs of BPF LSM may refuse it, too: {}", lsm.join(", ")));
    }
    if let Some((detail, mut cause)) = programs.and_then(|programs| by_program(what, programs, evidence.clone())) {
        // What drops a packet makes send() fail with the same errno, also a rule; the packet's drop shows which it was.
        if call == Call::Send || !lsm.is_empty() {
            cause.certainty = Certainty::Possible;
        }
        return (detail, cause);
    }
    let rule = if call == Call::Send { "a rule of the pod's OUTPUT or POSTROUTING, " } else { "" };
    let program = if programs.is_none() { format!("a program {what}, ") } else { String::new() };
    if programs.is_some() {
        evidence.push(format!("no program {what} is in effect for the pod"));
    }
    let detail = format!("by {rule}{program}the kernel or a security module");
    (detail, Cause { mechanism: Mechanism::SendRefused, certainty: Certainty::Possible, evidence, candidates: Vec::new() })
}

/// That it was a program, where there are any. Of several it is not known which one.
fn by_program(what: &str, programs: &[String], mut evidence: Vec<String>) -> Option<(String, Cause)> {
    let (detail, certainty) = match programs {
        [] => return None,
        [only] => {
            evidence.push(format!("it is the only program {what} that is in effect for the pod"));
            (format!("by the BPF program {only} at {what}"), Certainty::Inferred)
        }
        several => {
            evidence.push(format!("{} programs {what} are in effect for the pod", several.len()));
            (format!("by one of the BPF programs at {what}: {}", several.join(", ")), Certainty::Possible)
        }
    };
    Some((detail, Cause { mechanism: Mechanism::CgroupProgram, certainty, evidence, candidates: Vec::new() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(call: Call, programs: Option<&[&str]>) -> (Mechanism, Certainty, String) {
        let named: Option<Vec<String>> = programs.map(|p| p.iter().map(|n| (*n).to_owned()).collect());
        let (detail, cause) = explain_call(call, "cgroup/connect4", named.as_deref(), &[]);
        assert!(cause.evidence[0].contains("EPERM"), "{cause:?}");
        (cause.mechanism, cause.certainty, detail)
    }

    #[test]
    fn a_program_is_named_only_where_it_is_the_only_one() {
        let (mechanism, certainty, detail) = explained(Call::Connect, Some(&["deny (id 7)"]));
        assert_eq!((mechanism, certainty), (Mechanism::CgroupProgram, Certainty::Inferred));
        assert!(detail.contains("deny (id 7)"), "{detail}");
        let (mechanism, certainty, detail) = explained(Call::Connect, Some(&["deny (id 7)", "allow (id 8)"]));
        assert_eq!((mechanism, certainty), (Mechanism::CgroupProgram, Certainty::Possible));
        assert!(detail.contains("one of") && detail.contains("allow (id 8)"), "{detail}");
    }

    #[test]
    fn what_is_sent_may_be_refused_by_a_rule_too() {
        let (mechanism, certainty, _) = explained(Call::Send, Some(&["count (id 7)"]));
        assert_eq!((mechanism, certainty), (Mechanism::CgroupProgram, Certainty::Possible));
        let (_, dropped) = by_program("cgroup_skb/egress", &["deny (id 7)".to_owned()], Vec::new()).expect("a cause");
        assert_eq!(dropped.certainty, Certainty::Inferred, "the kernel's reason leaves no rule");
    }

    #[test]
    fn a_program_of_bpf_lsm_leaves_doubt() {
        let lsm = ["restrict (id 9)".to_owned()];
        let (_, cause) = explain_call(Call::Connect, "cgroup/connect4", Some(&["deny (id 7)".to_owned()]), &lsm);
        assert_eq!((cause.mechanism, cause.certainty), (Mechanism::CgroupProgram, Certainty::Possible));
        let (detail, cause) = explain_call(Call::Connect, "cgroup/connect4", Some(&[]), &lsm);
        assert!(detail.contains("security module") && cause.evidence.iter().any(|e| e.contains("restrict (id 9)")), "{cause:?}");
    }

    #[test]
    fn without_a_program_nothing_is_certain() {
        for programs in [Some(&[][..]), None] {
            let (mechanism, certainty, detail) = explained(Call::Connect, programs);
            assert_eq!((mechanism, certainty), (Mechanism::SendRefused, Certainty::Possible));
            assert!(detail.contains("security module") && !detail.contains("OUTPUT"), "{detail}");
            assert_eq!(detail.contains("program"), programs.is_none(), "{detail}");
        }
        assert!(explained(Call::Send, Some(&[])).2.contains("OUTPUT"), "a rule may refuse what is sent");
    }

    #[test]
    fn programs_are_those_of_the_call_and_the_family() {
        let (v4, v6): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [0u16, 0, 0, 0, 0, 0, 0, 1].into());
        assert_eq!((Call::Connect.runs(v4).1, Call::Connect.runs(v6).1), ("cgroup/connect4", "cgroup/connect6"));
        assert_eq!((Call::SendTo.runs(v4).1, Call::SendTo.runs(v6).1), ("cgroup/sendmsg4", "cgroup/sendmsg6"));
        assert_eq!(Call::Send.runs(v4), Call::Send.runs(v6));
    }
}
