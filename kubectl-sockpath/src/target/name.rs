//! The forms a SOURCE or TARGET may take. Nothing is looked up here.

use std::net::{IpAddr, Ipv6Addr};

use crate::exit::UsageError;

/// What was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// `NAME`, `pod/NAME`, `NS/NAME`, `NS/pod/NAME`.
    Pod {
        /// Namespace, when given.
        namespace: Option<String>,
        /// Name.
        name: String,
    },
    /// `deploy/NAME`, `NS/deploy/NAME`.
    Deployment {
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
    /// An address.
    Ip(IpAddr),
    /// The source's own pod: `localhost:PORT`, `:PORT`.
    Same,
}

/// Something that was named, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What was named.
    pub name: Name,
    /// The port, when given.
    pub port: Option<u16>,
}

const FORMS: &str = "NAME, pod/NAME, NS/NAME, deploy/NAME, svc/NAME, IP, [IPV6]:PORT or :PORT";

impl Endpoint {
    /// Reads one.
    ///
    /// # Errors
    /// A usage error that says which forms there are.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let wrong = |why: &str| UsageError::new(format!("`{text}` {why}; write {FORMS}"));
        if text.is_empty() {
            return Err(wrong("names nothing"));
        }
        let (name, digits) = split(text).map_err(wrong)?;
        let port = digits.map(|digits| port(digits, &wrong)).transpose()?;
        if name.is_empty() || name == "localhost" {
            if port.is_none() {
                return Err(wrong("needs a port"));
            }
            return Ok(Self { name: Name::Same, port });
        }
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Ok(Self { name: Name::Ip(ip), port });
        }
        Ok(Self { name: reference(name, &wrong)?, port })
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
            Some((name, _)) if name.contains(':') => Err("has more than one colon and is no IPv6 address"),
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

fn port(digits: &str, wrong: &dyn Fn(&str) -> anyhow::Error) -> anyhow::Result<u16> {
    match digits.parse::<u16>() {
        Ok(p) if p != 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(p),
        _ => Err(wrong("has a port that is no number from 1 to 65535")),
    }
}

fn reference(text: &str, wrong: &dyn Fn(&str) -> anyhow::Error) -> anyhow::Result<Name> {
    let parts: Vec<&str> = text.split('/').collect();
    if let Some(bad) = parts.iter().find(|p| !is_name(p)) {
        return Err(wrong(&format!("holds `{}`, which no object can be called", sockpath_protocol::text::field(bad))));
    }
    let (namespace, kind, name) = match parts[..] {
        [name] => (None, "pod", name),
        [first, name] if is_kind(first) => (None, first, name),
        [namespace, name] => (Some(namespace.to_owned()), "pod", name),
        [namespace, kind, name] if is_kind(kind) => (Some(namespace.to_owned()), kind, name),
        _ => return Err(wrong("is not of a known form")),
    };
    let name = name.to_owned();
    Ok(match kind {
        "pod" | "pods" | "po" => Name::Pod { namespace, name },
        "deploy" | "deployment" | "deployments" | "deployment.apps" | "deployments.apps" => Name::Deployment { namespace, name },
        _ => Name::Service { namespace, name },
    })
}

fn is_kind(text: &str) -> bool {
    matches!(
        text,
        "pod"
            | "pods"
            | "po"
            | "deploy"
            | "deployment"
            | "deployments"
            | "deployment.apps"
            | "deployments.apps"
            | "svc"
            | "service"
            | "services"
    )
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
        let service = |namespace: Option<&str>| Name::Service { namespace: namespace.map(str::to_owned), name: "web".to_owned() };
        for (text, name, port) in [
            ("curl", pod(None, "curl"), None),
            ("curl:80", pod(None, "curl"), Some(80)),
            ("pod/curl", pod(None, "curl"), None),
            ("po/curl:1", pod(None, "curl"), Some(1)),
            ("prod/curl", pod(Some("prod"), "curl"), None),
            ("prod/pod/curl", pod(Some("prod"), "curl"), None),
            ("web-6f9d.x", pod(None, "web-6f9d.x"), None),
            ("deploy/web", Name::Deployment { namespace: None, name: "web".to_owned() }, None),
            ("deployment.apps/web", Name::Deployment { namespace: None, name: "web".to_owned() }, None),
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
            assert_eq!(Endpoint::parse(text).unwrap(), Endpoint { name, port }, "{text}");
        }
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
    fn what_is_no_form() {
        for text in [
            "",
            ":",
            "a:",
            "a:0",
            "a:65536",
            "a:+80",
            "a:b",
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
