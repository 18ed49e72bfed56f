//! What TCP counts and no hook shows, in each pod's network namespace (/proc/net/netstat). A SYN that finds the accept queue full is
//! consumed as if it had been served (tcp_conn_request(), called by tcp_rcv_state_process()), so no drop is reported; it is counted.

use std::fs::File;

use anyhow::{Context, Result};
use sockpath_kernel::netns::inside;
use sockpath_protocol::packet::IncidentKind;

use super::environment::Environment;

/// Counters of `TcpExt`, and the incident that they stand for: as often as the one that rose most says.
struct Counter {
    names: &'static [&'static str],
    what: IncidentKind,
    /// The incident in words; `{}` is how often.
    words: &'static str,
}

const COUNTERS: &[Counter] = &[
    Counter { names: &["ListenOverflows"], what: IncidentKind::BacklogOverflow, words: "listeners refused {} connections" },
    Counter { names: &["TCPReqQFullDoCookies"], what: IncidentKind::SynCookies, words: "{} SYNs were answered with cookies" },
    Counter {
        names: &["TCPReqQFullDrop"],
        what: IncidentKind::SynQueueFull,
        words: "{} SYNs found the queue of half-open connections full",
    },
    // A window that is closed because a packet did not fit into the receive buffer is counted only when it opens again
    // (tcp_select_window(), ICSK_ACK_NOMEM).
    Counter {
        names: &["TCPToZeroWindowAdv", "TCPFromZeroWindowAdv"],
        what: IncidentKind::ZeroWindow,
        words: "receive windows were closed {} times",
    },
];

/// Namespaces of pods whose counters are watched.
#[derive(Debug)]
pub struct Watch {
    watched: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    netns: File,
    inode: u32,
    readings: Vec<Vec<u64>>,
}

/// What a counter says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rise {
    /// Inode of the namespace.
    pub netns: u32,
    /// What happened.
    pub what: IncidentKind,
    /// In words.
    pub detail: String,
}

impl Watch {
    /// Notes how the counters of the pods' namespaces stand. A namespace that cannot be read is not watched.
    pub fn begin(environment: &Environment) -> Self {
        // In a node's namespace they count all traffic of the node.
        let pods = environment.netns.iter().filter(|(_, t)| t.pod.is_some() && (t.source || t.target));
        let watched = pods.filter_map(|(netns, t)| {
            let file = netns.file.try_clone().ok()?;
            let readings = read(&file).ok()?;
            Some(Watched { netns: file, inode: t.netns, readings })
        });
        Self { watched: watched.collect() }
    }

    /// What has been counted since the last call.
    pub fn rises(&mut self) -> Vec<Rise> {
        let mut rises = Vec::new();
        for w in &mut self.watched {
            // A pod that is gone counts nothing.
            let Ok(now) = read(&w.netns) else { continue };
            for ((counter, before), now) in COUNTERS.iter().zip(&w.readings).zip(&now) {
                let rise = now.iter().zip(before).map(|(now, before)| now.saturating_sub(*before)).max().unwrap_or(0);
                if rise > 0 {
                    let detail = counter.words.replace("{}", &rise.to_string());
                    rises.push(Rise { netns: w.inode, what: counter.what, detail });
                }
            }
            w.readings = now;
        }
        rises
    }
}

fn read(netns: &File) -> Result<Vec<Vec<u64>>> {
    let text = inside(netns, || std::fs::read_to_string("/proc/thread-self/net/netstat").context("cannot read /proc/net/netstat"))?;
    // A kernel that has no such counter counts nothing.
    let of = |counter: &Counter| counter.names.iter().map(|name| value(&text, "TcpExt:", name).unwrap_or(0)).collect();
    Ok(COUNTERS.iter().map(of).collect())
}

/// A counter of a file of line pairs: names, then values, both after the same prefix.
fn value(text: &str, prefix: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|l| l.strip_prefix(prefix));
    let at = lines.next()?.split_whitespace().position(|n| n == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn a_counter_is_found_by_its_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 7 9\nIpExt: InNoRoutes\nIpExt: 3\n";
        assert_eq!(value(text, "TcpExt:", "ListenOverflows"), Some(7));
        assert_eq!(value(text, "IpExt:", "InNoRoutes"), Some(3));
        assert_eq!(value(text, "TcpExt:", "Unknown"), None);
    }
}
