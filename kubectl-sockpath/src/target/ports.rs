//! What a port that was typed means at a target: numbers and names, and the protocol that goes with them.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use sockpath_protocol::request::{Protocol, Service};

use super::find::Found;
use super::name::PortName;
use crate::exit::UsageError;
use crate::inventory::{PodInfo, Port};

/// A port with the protocol that the Service or the container declares for it, where one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resolved {
    pub number: u16,
    pub protocol: Option<Protocol>,
}

/// Finds the port that was typed, or the one that `container` declares first; none where neither says one.
///
/// # Errors
/// When there is no such port or container; with those there are.
pub(super) fn resolve(typed: Option<&PortName>, container: Option<&str>, found: &Found) -> Result<Option<Resolved>> {
    let of_container = container.map(|name| ports_of_container(&found.pods, name)).transpose()?;
    let known: Vec<&Port> = match (&found.service, &of_container) {
        (Some(service), None) => service.ports.iter().collect(),
        (_, Some(ports)) => ports.clone(),
        (None, None) => found.pods.iter().flat_map(PodInfo::ports).collect(),
    };
    let resolved = |port: &Port| Resolved { number: port.number, protocol: Some(port.protocol) };
    match typed {
        None => Ok(of_container.and_then(|ports| ports.first().map(|port| resolved(port)))),
        Some(PortName::Number(number)) => {
            if let Some(service) = &found.service {
                check_number(&service.service, *number)?;
            }
            let declared = known.iter().find(|p| p.number == *number).map(|p| p.protocol);
            let dialled = || found.service.iter().flat_map(|s| &s.service.frontends).find(|f| f.addr.port() == *number).map(|f| f.protocol);
            Ok(Some(Resolved { number: *number, protocol: declared.or_else(dialled) }))
        }
        Some(PortName::Named(name)) => match known.iter().find(|p| p.name.as_deref() == Some(name)) {
            Some(port) => Ok(Some(resolved(port))),
            None if found.pods.is_empty() && found.service.is_none() => {
                Err(UsageError::new(format!("an address has no port named `{name}`: use a number")))
            }
            None => bail!("{} has no port named `{name}`; it has {}", found.what(), listed(&known)),
        },
    }
}

/// The ports that a container declares.
fn ports_of_container<'f>(pods: &'f [PodInfo], name: &str) -> Result<Vec<&'f Port>> {
    let all = || pods.iter().flat_map(|p| &p.containers);
    if let Some(container) = all().find(|c| c.name == name) {
        return Ok(container.ports.iter().collect());
    }
    let known: BTreeSet<&str> = all().map(|c| c.name.as_str()).collect();
    let known: Vec<&str> = known.into_iter().collect();
    bail!("the target has no container `{name}`; it has {}", if known.is_empty() { "none that run".to_owned() } else { known.join(", ") })
}

fn check_number(service: &Service, port: u16) -> Result<()> {
    let of_pods: BTreeSet<u16> = service.backends.iter().map(std::net::SocketAddr::port).collect();
    let of_service: BTreeSet<u16> = service.frontends.iter().map(|f| f.addr.port()).collect();
    // A headless Service is dialled at its pods.
    let ports = if of_service.is_empty() { &of_pods } else { &of_service };
    if ports.is_empty() || ports.contains(&port) {
        return Ok(());
    }
    let listed = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let hint = if of_pods.contains(&port) { format!(" ({port} is the port of its pods: use a pod's name)") } else { String::new() };
    bail!("Service {} has no port {port}; it has {listed}{hint}", service.name)
}

/// `http (80), dns (53/UDP), 9090`.
fn listed(ports: &[&Port]) -> String {
    let one = |port: &Port| {
        let number = if port.protocol == Protocol::Udp { format!("{}/UDP", port.number) } else { port.number.to_string() };
        port.name.as_ref().map_or_else(|| number.clone(), |name| format!("{name} ({number})"))
    };
    let all: BTreeSet<String> = ports.iter().map(|port| one(port)).collect();
    if all.is_empty() { "no declared ports".to_owned() } else { all.into_iter().collect::<Vec<_>>().join(", ") }
}
