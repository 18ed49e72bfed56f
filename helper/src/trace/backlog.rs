//! Listeners without room. The kernel consumes a SYN that finds the backlog full as if it had been served
//! (tcp_conn_request(), called by tcp_rcv_state_process()), so no hook tells; but it counts it, in each network namespace
//! (LINUX_MIB_LISTENOVERFLOWS, shown in /proc/net/netstat).

use std::fs::File;

use anyhow::{Context, Result};

use super::netns::inside;
use super::scene::Scene;

/// The counters of the targets' namespaces.
#[derive(Debug)]
pub struct Backlogs {
    watched: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    netns: File,
    inode: u32,
    overflows: u64,
}

impl Backlogs {
    /// Notes how the counters stand. A namespace that cannot be read is not watched.
    pub fn watch(scene: &Scene) -> Self {
        let targets = scene.netns.iter().filter(|(_, t)| t.target);
        let watched = targets.filter_map(|(netns, t)| {
            let file = netns.file.try_clone().ok()?;
            let overflows = overflows(&file).ok()?;
            Some(Watched { netns: file, inode: t.netns, overflows })
        });
        Self { watched: watched.collect() }
    }

    /// Namespaces in which listeners refused since the last call, and how many connections.
    pub fn overflowed(&mut self) -> Vec<(u32, u64)> {
        let mut grown = Vec::new();
        for w in &mut self.watched {
            // A pod that is gone has no listeners.
            let Ok(now) = overflows(&w.netns) else { continue };
            if now > w.overflows {
                grown.push((w.inode, now - w.overflows));
            }
            w.overflows = now;
        }
        grown
    }
}

fn overflows(netns: &File) -> Result<u64> {
    let text = inside(netns, || std::fs::read_to_string("/proc/thread-self/net/netstat").context("cannot read /proc/net/netstat"))?;
    counter(&text, "TcpExt:", "ListenOverflows").context("/proc/net/netstat has no ListenOverflows")
}

/// A counter of a file of line pairs: names, then values, both after the same prefix.
fn counter(text: &str, prefix: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|l| l.strip_prefix(prefix));
    let at = lines.next()?.split_whitespace().position(|n| n == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::counter;

    #[test]
    fn a_counter_is_found_by_its_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 7 9\nIpExt: InNoRoutes\nIpExt: 3\n";
        assert_eq!(counter(text, "TcpExt:", "ListenOverflows"), Some(7));
        assert_eq!(counter(text, "IpExt:", "InNoRoutes"), Some(3));
        assert_eq!(counter(text, "TcpExt:", "Unknown"), None);
    }
}
