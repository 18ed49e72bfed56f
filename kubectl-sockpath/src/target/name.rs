//! The forms a SOURCE or TARGET may take. Nothing is looked up here.

use std::net::{IpAddr, Ipv6Addr};

use crate::exit::UsageError;
use crate::inventory::Kind;

/// What was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// `NAME`, `pod/NAME`, `NS/NAME`, `NS/pod/NAME`.
    Pod {
        /// Namespace, when given.
        namespace: Option<String>,
        /// Name; with dots it may be one of DNS as well.
        name: String,
    },
    /// `deploy/NAME`, `NS/sts/NAME` and the other kinds that have pods.
    Workload {
        /// Which kind.
        kind: Kind,
        /// Namespace, when given.
        namespace: Option<String>,
        /// Name.
        name: String,
    },
    /// `svc/NAME`, `NS/svc/NAME`.
    Service {
        /// Namespace, when given.
        namespace: Option<String>,
        /// Name.
        name: String,
    },
    /// `app=web`, `NS/app=web,tier!=db`: pods by their labels.
    Labels {
        /// Namespace, when given.
        namespace: Option<String>,
        /// The selector.
        selector: String,
    },
    /// `node/NAME`.
    Node(String),
    /// An address.
    Ip(IpAddr),
    /// The source's own pod: `localhost:PORT`, `:PORT`.
    Same,
}

impl Name {
    /// The namespace, when given.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Pod { namespace, .. }
            | Self::Workload { namespace, .. }
            | Self::Service { namespace, .. }
            | Self::Labels { namespace, .. } => namespace.as_deref(),
            Self::Node(_) | Self::Ip(_) | Self::Same => None,
        }
    }
}

/// A port as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortName {
    /// By its number.
    Number(u16),
    /// By its name in the Service or the container.
    Named(String),
}

impl std::fmt::Display for PortName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// Something that was named, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What was named.
    pub name: Name,
    /// The port, when given.
    pub port: Option<PortName>,
}

const FORMS: &str = "NAME, pod/NAME, NS/NAME, KIND/NAME (deploy, sts, ds, rs, job, rc, svc, node), LABEL=VALUE, a DNS name, IP, \
                     [IPV6]:PORT or :PORT, where PORT is a number or a name";

impl Endpoint {
    /// Reads one.
    ///
    /// # Errors
    /// A usage error that says which forms there are.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let wrong = |why: &str| UsageError::new(format!("`{text}` {why}; use {FORMS}"));
        if text.is_empty() {
            return Err(wrong("names nothing"));
        }
        let (name, port) = split(text).map_err(wrong)?;
        let port = port.map(|port| read_port(port, &wrong)).transpose()?;
        if name.is_empty() || name == "localhost" {
            if port.is_none() {
                return Err(wrong("needs a port"));
            }
            return Ok(Self { name: Name::Same, port });
        }
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Ok(Self { name: Name::Ip(ip), port });
        }
        let name = if name.contains('=') { labels(name, &wrong)? } else { reference(name, &wrong)? };
        Ok(Self { name, port })
    }
}

/// Splits what was typed into what is named and the port behind it: `fd00::1` and `53` of `[fd00::1]:53`.
///
/// # Errors
/// What is wrong with it.
pub fn split(text: &str) -> Result<(&str, Option<&str>), &'static str> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text, None));
    }
    let Some(rest) = text.strip_prefix('[') else {
        return match text.rsplit_once(':') {
            Some((name, _)) if name.contains(':') => Err("has more than one colon and is not an IPv6 address"),
            Some((name, port)) => Ok((name, Some(port))),
            None => Ok((text, None)),
        };
    };
    let (address, after) = rest.split_once(']').ok_or("has no closing bracket")?;
    if address.parse::<Ipv6Addr>().is_err() {
        return Err("has no IPv6 address in the brackets");
    }
    match after {
        "" => Ok((address, None)),
        _ => Ok((address, Some(after.strip_prefix(':').ok_or("has something other than a port after the brackets")?))),
    }
}

fn read_port(text: &str, wrong: &dyn Fn(&str) -> anyhow::Error) -> anyhow::Result<PortName> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return match text.parse::<u16>() {
            Ok(p) if p != 0 => Ok(PortName::Number(p)),
            _ => Err(wrong("has a port that is not from 1 to 65535")),
        };
    }
    // Of a Service it may have up to 63 letters, of a container up to 15.
    if is_name(text) && text.len() <= 63 && !text.contains('.') {
        Ok(PortName::Named(text.to_owned()))
    } else {
        Err(wrong("has a port that is neither a number from 1 to 65535 nor a name"))
    }
}

/// `NS/SELECTOR`, where keys of labels may have a slash as well: what stands before the first one is a namespace only when it can
/// be no prefix of a key, which has a dot.
fn labels(text: &str, wrong: &dyn Fn(&str) -> anyhow::Error) -> anyhow::Result<Name> {
    let (namespace, selector) = match text.split_once('/') {
        Some((first, rest)) if is_name(first) && !first.contains('.') && rest.contains('=') => (Some(first.to_owned()), rest),
        _ => (None, text),
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./=!,".contains(c);
    if !selector.chars().all(allowed) || selector.starts_with('=') {
        return Err(wrong("is not a label selector"));
    }
    Ok(Name::Labels { namespace, selector: selector.to_owned() })
}

fn reference(text: &str, wrong: &dyn Fn(&str) -> anyhow::Error) -> anyhow::Result<Name> {
    // Fully qualified names of DNS end in a dot.
    let text = text.strip_suffix('.').filter(|t| t.contains('.') && !t.contains('/')).unwrap_or(text);
    let parts: Vec<&str> = text.split('/').collect();
    if let Some(bad) = parts.iter().find(|p| !is_name(p)) {
        return Err(wrong(&format!("contains `{}`, which is not a valid name", sockpath_protocol::text::field(bad))));
    }
    let (namespace, kind, name) = match parts[..] {
        [name] => (None, Kind::Pod, name),
        [namespace, kind, name] => match Kind::of_word(kind) {
            Some(kind) => (Some(namespace.to_owned()), kind, name),
            None => return Err(wrong("has an unknown format")),
        },
        [first, name] => match Kind::of_word(first) {
            Some(kind) => (None, kind, name),
            None => (Some(first.to_owned()), Kind::Pod, name),
        },
        _ => return Err(wrong("has an unknown format")),
    };
    let name = name.to_owned();
    Ok(match kind {
        Kind::Pod => Name::Pod { namespace, name },
        Kind::Service => Name::Service { namespace, name },
        Kind::Node if namespace.is_some() => return Err(wrong("names a node in a namespace, but nodes have no namespace")),
        Kind::Node => Name::Node(name),
        kind => Name::Workload { kind, namespace, name },
    })
}

/// What a name with dots means in the cluster's DNS, whatever its domain is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dns<'a> {
    /// `web.shop`, `web.shop.svc`, `web.shop.svc.cluster.local`.
    Service {
        /// Name of the Service.
        service: &'a str,
        /// Its namespace.
        namespace: &'a str,
    },
    /// `db-0.db.shop.svc`: a pod behind a headless Service.
    Host {
        /// Name of the pod.
        host: &'a str,
        /// Name of the Service.
        service: &'a str,
        /// Their namespace.
        namespace: &'a str,
    },
    /// `10-42-1-3.shop.pod`.
    Address(IpAddr),
}

impl<'a> Dns<'a> {
    /// Reads one; `None` where it is none of these forms.
    #[must_use]
    pub fn of(name: &'a str) -> Option<Self> {
        let labels: Vec<&str> = name.trim_end_matches('.').split('.').collect();
        match labels[..] {
            [service, namespace] | [service, namespace, "svc", ..] => Some(Self::Service { service, namespace }),
            [address, _, "pod", ..] => {
                let (v4, v6) = (address.replace('-', "."), address.replace('-', ":"));
                v4.parse().or_else(|_| v6.parse()).ok().map(Self::Address)
            }
            [host, service, namespace, "svc", ..] => Some(Self::Host { host, service, namespace }),
            _ => None,
        }
    }
}

/// A DNS subdomain (RFC 1123), as names of Kubernetes objects are.
fn is_name(text: &str) -> bool {
    let alphanumeric = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= 253
        && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.')
        && alphanumeric(text.bytes().next())
        && alphanumeric(text.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: Option<&str>, name: &str) -> Name {
        Name::Pod { namespace: namespace.map(str::to_owned), name: name.to_owned() }
    }

    #[test]
    fn every_form() {
        let ip = |s: &str| Name::Ip(s.parse().unwrap());
        let workload =
            |kind, namespace: Option<&str>| Name::Workload { kind, namespace: namespace.map(str::to_owned), name: "web".to_owned() };
        let labels = |namespace: Option<&str>, selector: &str| Name::Labels {
            namespace: namespace.map(str::to_owned),
            selector: selector.to_owned(),
        };
        let service = |namespace: Option<&str>| Name::Service { namespace: namespace.map(str::to_owned), name: "web".to_owned() };
        for (text, name, port) in [
            ("curl", pod(None, "curl"), None),
            ("curl:80", pod(None, "curl"), Some(80)),
            ("pod/curl", pod(None, "curl"), None),
            ("po/curl:1", pod(None, "curl"), Some(1)),
            ("prod/curl", pod(Some("prod"), "curl"), None),
            ("prod/pod/curl", pod(Some("prod"), "curl"), None),
            ("web-6f9d.x", pod(None, "web-6f9d.x"), None),
            ("deploy/web", workload(Kind::Deployment, None), None),
            ("deployment.apps/web", workload(Kind::Deployment, None), None),
            ("sts/web", workload(Kind::StatefulSet, None), None),
            ("shop/statefulsets.apps/web:80", workload(Kind::StatefulSet, Some("shop")), Some(80)),
            ("ds/web", workload(Kind::DaemonSet, None), None),
            ("rs/web", workload(Kind::ReplicaSet, None), None),
            ("job/web", workload(Kind::Job, None), None),
            ("rc/web", workload(Kind::ReplicationController, None), None),
            ("node/n1.example", Name::Node("n1.example".to_owned()), None),
            ("web.shop.svc.cluster.local.", pod(None, "web.shop.svc.cluster.local"), None),
            ("app=web", labels(None, "app=web"), None),
            ("shop/app=web,tier!=db:80", labels(Some("shop"), "app=web,tier!=db"), Some(80)),
            ("app.kubernetes.io/name=web", labels(None, "app.kubernetes.io/name=web"), None),
            ("shop/app.kubernetes.io/name=web", labels(Some("shop"), "app.kubernetes.io/name=web"), None),
            ("svc/web:65535", service(None), Some(65535)),
            ("prod/svc/web", service(Some("prod")), None),
            ("10.0.0.1", ip("10.0.0.1"), None),
            ("10.0.0.1:80", ip("10.0.0.1"), Some(80)),
            ("::1", ip("::1"), None),
            ("[::1]", ip("::1"), None),
            ("[fd00::5]:8080", ip("fd00::5"), Some(8080)),
            ("fd00::5:8080", ip("fd00::5:8080"), None),
            (":8081", Name::Same, Some(8081)),
            ("localhost:8081", Name::Same, Some(8081)),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap(), Endpoint { name, port: port.map(PortName::Number) }, "{text}");
        }
        let named = Endpoint::parse("svc/dns:dns-tcp").unwrap();
        assert_eq!(named.port, Some(PortName::Named("dns-tcp".to_owned())));
    }

    #[test]
    fn a_port_is_no_part_of_a_name() {
        for (typed, name) in [
            ("192.0.2.1:53", "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1"),
            ("[fd00::1]:53", "fd00::1"),
            ("[fd00::1]", "fd00::1"),
            ("fd00::1", "fd00::1"),
            ("svc/web:80", "svc/web"),
            ("prod/deploy/web", "prod/deploy/web"),
        ] {
            assert_eq!(split(typed).map(|(name, _)| name), Ok(name), "{typed}");
        }
    }

    #[test]
    fn names_of_dns() {
        let service = Some(Dns::Service { service: "web", namespace: "shop" });
        let host = Some(Dns::Host { host: "db-0", service: "db", namespace: "shop" });
        let address = |ip: &str| Some(Dns::Address(ip.parse().unwrap()));
        for (name, means) in [
            ("web.shop", service),
            ("web.shop.svc", service),
            ("web.shop.svc.cluster.local", service),
            ("web.shop.svc.corp.example.", service),
            ("db-0.db.shop.svc.cluster.local", host),
            ("10-42-1-3.shop.pod.cluster.local", address("10.42.1.3")),
            ("fd00-42--3.shop.pod", address("fd00:42::3")),
            ("web", None),
            ("a.b.c", None),
        ] {
            assert_eq!(Dns::of(name), means, "{name}");
        }
    }

    #[test]
    fn what_is_no_form() {
        for text in [
            "",
            ":",
            "a:",
            "a:0",
            "a:65536",
            "a:+80",
            "a:B",
            "a:b_c",
            "=web",
            "app=we b",
            "shop/node/n1",
            "[::1",
            "[x]:1",
            "[::1]80",
            "[10.0.0.1]:80",
            "a/b/c",
            "a//b",
            "/a",
            "A",
            "-a",
            "a_b",
            "localhost",
            "a b",
            "a\x1b[31m",
            "1/2/3/4",
            "svc/",
            "fd00::5::1",
        ] {
            let error = Endpoint::parse(text).expect_err(text);
            assert_eq!(crate::exit::of_error(&error), crate::exit::Exit::Usage, "{text}");
            assert!(!format!("{error}").contains('\x1b') || text.contains('\x1b'));
        }
    }
}
