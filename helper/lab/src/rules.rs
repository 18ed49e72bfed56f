//! The netfilter rules that kube-proxy (iptables mode) and kubelet leave on a node, as `iptables-restore` reads them.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::netns::Netns;
use super::plan::{CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, NAMESPACE, SERVICES, Service};

/// Address family of a rule set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// iptables.
    V4,
    /// ip6tables.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables-restore",
            Self::V6 => "ip6tables-restore",
        }
    }

    fn cluster_cidr(self) -> &'static str {
        match self {
            Self::V4 => CLUSTER_CIDR_V4,
            Self::V6 => CLUSTER_CIDR_V6,
        }
    }

    fn host(self, ip: IpAddr) -> String {
        match self {
            Self::V4 => format!("{ip}/32"),
            Self::V6 => format!("{ip}/128"),
        }
    }

    fn reject(self) -> &'static str {
        match self {
            Self::V4 => "icmp-port-unreachable",
            Self::V6 => "icmp6-port-unreachable",
        }
    }
}

/// One port of a Service with its pods, in one family.
struct Port {
    /// As kube-proxy writes it: `default/httpbin:http`.
    name: String,
    protocol: &'static str,
    address: IpAddr,
    port: u16,
    /// As kube-proxy writes them: `10.42.1.3:8080`.
    endpoints: Vec<(IpAddr, String)>,
}

impl Port {
    fn all(family: Family) -> Vec<Self> {
        let of = |service: &Service, protocol, port_name| {
            let address = match family {
                Family::V4 => IpAddr::V4(service.ipv4()),
                Family::V6 => IpAddr::V6(service.ipv6()),
            };
            let endpoints = service.pods().map(|pod| match family {
                Family::V4 => (pod.ipv4().into(), format!("{}:{}", pod.ipv4(), service.target_port)),
                Family::V6 => (pod.ipv6().into(), format!("[{}]:{}", pod.ipv6(), service.target_port)),
            });
            Self {
                name: format!("{NAMESPACE}/{}:{port_name}", service.name),
                protocol,
                address,
                port: service.port,
                endpoints: endpoints.collect(),
            }
        };
        SERVICES.iter().flat_map(|s| [of(s, "tcp", "http"), of(s, "udp", "echo")]).collect()
    }

    fn service_chain(&self) -> String {
        chain_name("KUBE-SVC-", &[&self.name, self.protocol])
    }

    fn endpoint_chain(&self, endpoint: &str) -> String {
        chain_name("KUBE-SEP-", &[&self.name, self.protocol, endpoint])
    }
}

/// kube-proxy's chain names: a prefix and 16 digits of the base32 form of the SHA-256 of what the chain is about.
fn chain_name(prefix: &str, parts: &[&str]) -> String {
    let digest = Sha256::digest(parts.concat());
    let bits = digest.iter().take(10).fold(0u128, |n, b| (n << 8) | u128::from(*b));
    let digit = |i: u32| char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[usize::try_from((bits >> (75 - 5 * i)) & 31).unwrap_or(0)]);
    prefix.chars().chain((0..16).map(digit)).collect()
}

/// All rules of a node in one family.
#[must_use]
pub fn render(family: Family) -> String {
    let ports = Port::all(family);
    let mut out = String::with_capacity(8192);
    // Writing to a String cannot fail.
    let _ =
        render_mangle(&mut out).and_then(|()| render_filter(&mut out, family, &ports)).and_then(|()| render_nat(&mut out, family, &ports));
    out
}

fn render_mangle(out: &mut String) -> std::fmt::Result {
    out.write_str("*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n")
}

fn render_filter(out: &mut String, family: Family, ports: &[Port]) -> std::fmt::Result {
    out.write_str(
        r#"*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"#,
    )?;
    if family == Family::V4 {
        // kubelet's guard for route_localnet: other hosts must not reach listeners on 127/8.
        out.write_str(concat!(
            "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" ",
            "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n"
        ))?;
    }
    for p in ports.iter().filter(|p| p.endpoints.is_empty()) {
        writeln!(
            out,
            "-A KUBE-SERVICES -d {} -p {proto} -m comment --comment \"{} has no endpoints\" -m {proto} --dport {} -j REJECT --reject-with {}",
            family.host(p.address),
            p.name,
            p.port,
            family.reject(),
            proto = p.protocol,
        )?;
    }
    out.write_str("COMMIT\n")
}

fn render_nat(out: &mut String, family: Family, ports: &[Port]) -> std::fmt::Result {
    out.write_str(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :KUBE-MARK-MASQ - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-PROXY-CANARY - [0:0]\n:KUBE-SERVICES - [0:0]\n",
    )?;
    let served: Vec<&Port> = ports.iter().filter(|p| !p.endpoints.is_empty()).collect();
    for p in &served {
        writeln!(out, ":{} - [0:0]", p.service_chain())?;
        for (_, endpoint) in &p.endpoints {
            writeln!(out, ":{} - [0:0]", p.endpoint_chain(endpoint))?;
        }
    }
    out.write_str(
        r#"-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
"#,
    )?;
    for p in &served {
        let (name, proto, port, chain, address) = (&p.name, p.protocol, p.port, p.service_chain(), family.host(p.address));
        writeln!(
            out,
            "-A KUBE-SERVICES -d {address} -p {proto} -m comment --comment \"{name} cluster IP\" -m {proto} --dport {port} -j {chain}"
        )?;
        writeln!(
            out,
            "-A {chain} ! -s {} -d {address} -p {proto} -m comment --comment \"{name} cluster IP\" -m {proto} --dport {port} -j KUBE-MARK-MASQ",
            family.cluster_cidr()
        )?;
        let n = p.endpoints.len();
        for (i, (ip, endpoint)) in p.endpoints.iter().enumerate() {
            let sep = p.endpoint_chain(endpoint);
            let share =
                if i + 1 < n { format!("-m statistic --mode random --probability {:.11} ", 1.0 / (n - i) as f64) } else { String::new() };
            writeln!(out, "-A {chain} -m comment --comment \"{name} -> {endpoint}\" {share}-j {sep}")?;
            writeln!(out, "-A {sep} -s {} -m comment --comment \"{name}\" -j KUBE-MARK-MASQ", family.host(*ip))?;
            writeln!(out, "-A {sep} -p {proto} -m comment --comment \"{name}\" -m {proto} -j DNAT --to-destination {endpoint}")?;
        }
    }
    out.write_str(concat!(
        "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" ",
        "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n"
    ))
}

/// The programs that load the rules; the error for missing ones names their package.
#[derive(Debug)]
pub struct Restore {
    v4: PathBuf,
    v6: PathBuf,
}

/// A load in progress.
#[derive(Debug)]
pub struct Loading {
    program: &'static str,
    node: &'static str,
    child: Child,
}

impl Restore {
    /// Finds `iptables-restore` and `ip6tables-restore`.
    pub fn find() -> Result<Self> {
        Ok(Self { v4: find_program(Family::V4.program())?, v6: find_program(Family::V6.program())? })
    }

    /// Starts to load a node's rules of one family.
    pub fn start(&self, node: &'static str, netns: &Netns, family: Family) -> Result<Loading> {
        let path = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        let mut command = Command::new(path);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = netns.run(|| command.spawn().with_context(|| format!("cannot start {}", path.display())))?;
        // The rules are far smaller than a pipe, so this does not block on a child that does not read.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(render(family).as_bytes()));
        match written {
            // The program died; what it said comes with `finish`.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => bail!("cannot send the rules to {}: {e}", path.display()),
            _ => Ok(Loading { program: family.program(), node, child }),
        }
    }
}

impl Loading {
    /// Waits until the rules are in force.
    pub fn finish(self) -> Result<()> {
        let out = self.child.wait_with_output().with_context(|| format!("cannot wait for {}", self.program))?;
        if out.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&out.stderr);
        bail!(
            "{} failed on {}: {}; does this kernel have nf_tables (or ip_tables), NAT and connection tracking?",
            self.program,
            self.node,
            said.trim().replace('\n', "; ")
        )
    }
}

/// Looks in PATH, and in the directories of system programs, which are not in every root's PATH.
fn find_program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).filter(|d| d.is_absolute()).chain(system).map(|d| d.join(name)).find(|p| p.is_file());
    found.with_context(|| format!("{name} is not installed: the lab's Services need it (`apt-get install iptables`)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_named_as_kube_proxy_names_them() {
        // Names seen on every cluster: the `kubernetes` Service and kube-dns.
        assert_eq!(chain_name("KUBE-SVC-", &["default/kubernetes:https", "tcp"]), "KUBE-SVC-NPX46M4PTMTKRN6Y");
        assert_eq!(chain_name("KUBE-SVC-", &["kube-system/kube-dns:dns", "udp"]), "KUBE-SVC-TCOU7JCQXEZGVUNU");
        assert_eq!(chain_name("KUBE-SVC-", &["kube-system/kube-dns:dns-tcp", "tcp"]), "KUBE-SVC-ERIFXISQEP7F7OF4");
    }

    #[test]
    fn every_jump_has_its_chain() {
        for family in Family::ALL {
            let rules = render(family);
            for table in rules.split_inclusive("COMMIT\n") {
                let chains: Vec<&str> = table.lines().filter_map(|l| l.strip_prefix(':')?.split(' ').next()).collect();
                for line in table.lines().filter(|l| l.starts_with("-A")) {
                    let words: Vec<&str> = line.split(' ').collect();
                    let target = words.iter().position(|w| *w == "-j").map(|i| words[i + 1]).unwrap();
                    let builtin = ["ACCEPT", "DROP", "REJECT", "RETURN", "MARK", "MASQUERADE", "DNAT"].contains(&target);
                    assert!(builtin || chains.contains(&target), "{line}");
                    assert!(chains.contains(&words[1]), "{line}");
                }
            }
        }
    }

    #[test]
    fn a_service_without_pods_is_rejected_and_not_translated() {
        let rules = render(Family::V4);
        let about_empty: Vec<&str> = rules.lines().filter(|l| l.contains("default/empty")).collect();
        assert_eq!(about_empty.len(), 2, "{about_empty:?}");
        assert!(about_empty.iter().all(|l| l.contains("10.96.0.12/32") && l.contains("-j REJECT")));
    }
}
