//! Names of the kernel's numbers: drop reasons from its BTF, code addresses from /proc/kallsyms.

use std::collections::HashMap;
use std::fs;

use sockpath_ruleset::Engine;

/// Reads the names when they are first needed: most traces see no drop.
pub struct Names {
    reasons: HashMap<u32, String>,
    /// Whether nftables frees what it drops itself, so that the function tells who dropped.
    nft_frees: bool,
    symbols: Option<Vec<(u64, String)>>,
    read_symbols: fn() -> Vec<(u64, String)>,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("reasons", &self.reasons.len()).finish_non_exhaustive()
    }
}

impl Names {
    /// With the drop reasons of this kernel, as `enum skb_drop_reason` numbers them.
    #[must_use]
    pub fn new(reasons: HashMap<u32, String>) -> Self {
        Self { reasons, nft_frees: false, symbols: None, read_symbols: kallsyms }
    }

    /// On a kernel of this release (`uname -r`).
    #[must_use]
    pub fn with_release(mut self, release: &str) -> Self {
        let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        // nft_do_chain() since commit e0d4593140b0.
        self.nft_frees = version >= (6, 7);
        self
    }

    /// Whose rules dropped a packet that netfilter freed in this function, where that tells.
    #[must_use]
    pub fn engine(&self, location: &str) -> Option<Engine> {
        match location.split(['+', '.']).next()? {
            "nft_do_chain" => Some(Engine::Nftables),
            "nf_hook_slow" if self.nft_frees => Some(Engine::Legacy),
            _ => None,
        }
    }

    /// The reason, if the kernel has reasons and `enum skb_drop_reason` does not have this one: subsystems have others.
    #[must_use]
    pub fn unnamed(&self, reason: u32) -> Option<u32> {
        (!self.reasons.is_empty() && !self.reasons.contains_key(&reason)).then_some(reason)
    }

    /// A drop reason without its prefix.
    #[must_use]
    pub fn drop_reason(&self, reason: u32) -> String {
        match self.reasons.get(&reason) {
            Some(name) => name.clone(),
            // Those of subsystems are named later, in `subsystems`.
            None => format!("REASON_{reason:#x}"),
        }
    }

    /// What the function that dropped tells beyond its reason: a reason to report instead, where it gave none, and words.
    #[must_use]
    pub fn refine(reason: &str, location: &str) -> Option<(Option<&'static str>, &'static str)> {
        let function = location.split(['+', '.']).next().unwrap_or_default();
        match (reason, function) {
            // ip_forward() has this reason for one thing only.
            ("IP_INHDR", "ip_forward") | ("NOT_SPECIFIED" | "IP_INHDR", "ip6_forward") => Some((None, "the TTL ran out at this router")),
            ("NOT_SPECIFIED", "ip_error" | "ip6_pkt_drop" | "ip6_pkt_discard" | "ip6_pkt_discard_out") => {
                Some((Some("IP_INNOROUTES"), "there is no route, or it is a blackhole, unreachable or prohibited"))
            }
            ("NOT_SPECIFIED", "netif_receive_generic_xdp" | "do_xdp_generic" | "bpf_prog_run_generic_xdp" | "veth_xdp_rcv_skb") => {
                Some((Some("XDP"), "by a program at XDP"))
            }
            ("NOT_SPECIFIED", "ovs_dp_process_packet") => {
                Some((None, "no flow of Open vSwitch matched, and no process received the packet: is ovs-vswitchd running?"))
            }
            _ => None,
        }
    }

    /// Whether a packet without payload that has reached its socket may be freed for this reason and nothing is lost: a
    /// closing socket empties its queue, a reset is obeyed, and what a TIME_WAIT socket takes is freed without a reason.
    #[must_use]
    pub fn is_no_loss(&self, reason: u32) -> bool {
        let no_loss = ["QUEUE_PURGE", "SOCKET_CLOSE", "TCP_RESET", "NOT_SPECIFIED"];
        self.reasons.get(&reason).is_some_and(|name| no_loss.contains(&name.as_str()))
    }

    /// Whether the reason is that the next hop's address could not be had.
    #[must_use]
    pub fn is_neighbour(&self, reason: u32) -> bool {
        self.reasons.get(&reason).is_some_and(|name| name.starts_with("NEIGH_"))
    }

    /// The function an address lies in, with the offset; `None` when symbols cannot be read.
    pub fn symbol(&mut self, address: u64) -> Option<String> {
        if address == 0 {
            return None;
        }
        let symbols = self.symbols.get_or_insert_with(self.read_symbols);
        let after = symbols.partition_point(|(start, _)| *start <= address);
        let (start, name) = symbols.get(after.checked_sub(1)?)?;
        Some(format!("{name}+{:#x}", address - start))
    }
}

/// The functions of the kernel, by address. Empty when the addresses are hidden (no CAP_SYSLOG, kptr_restrict).
fn kallsyms() -> Vec<(u64, String)> {
    let Ok(text) = fs::read_to_string("/proc/kallsyms") else { return Vec::new() };
    let mut symbols: Vec<(u64, String)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok().filter(|a| *a != 0)?;
            let kind = words.next()?;
            let name = words.next()?;
            (kind.eq_ignore_ascii_case("t") && !name.starts_with("__pfx_")).then(|| (address, name.to_owned()))
        })
        .collect();
    symbols.sort_unstable_by_key(|(address, _)| *address);
    symbols.dedup_by_key(|(address, _)| *address);
    symbols
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_named_by_the_function_before_it() {
        let mut names =
            Names { reasons: HashMap::new(), nft_frees: false, symbols: None, read_symbols: || vec![(100, "a".into()), (200, "b".into())] };
        assert_eq!(names.symbol(0x96), Some("a+0x32".to_owned()));
        assert_eq!(names.symbol(200), Some("b+0x0".to_owned()));
        assert_eq!(names.symbol(99), None);
        assert_eq!(names.symbol(0), None);
    }

    #[test]
    fn a_function_tells_what_its_reason_does_not() {
        assert_eq!(Names::refine("IP_INHDR", "ip_forward+0x2c0"), Some((None, "the TTL ran out at this router")));
        assert_eq!(Names::refine("NOT_SPECIFIED", "ip_error+0x94").and_then(|r| r.0), Some("IP_INNOROUTES"));
        assert_eq!(Names::refine("IP_INHDR", "ip_rcv_core+0x10"), None);
    }

    #[test]
    fn the_function_tells_who_dropped_where_nftables_frees_itself() {
        let names = |release| Names::new(HashMap::new()).with_release(release);
        assert_eq!(names("6.18.0").engine("nft_do_chain+0x5b1"), Some(Engine::Nftables));
        assert_eq!(names("6.18.0").engine("nf_hook_slow+0xa0"), Some(Engine::Legacy));
        assert_eq!(names("6.1.0-37-amd64").engine("nf_hook_slow+0xa0"), None);
    }

    #[test]
    fn an_unknown_reason_keeps_its_number() {
        let names = Names::new(HashMap::from([(12, "NETFILTER_DROP".to_owned())]));
        assert_eq!(names.drop_reason(12), "NETFILTER_DROP");
        assert_eq!(names.drop_reason(0x10002), "REASON_0x10002");
    }
}
