//! The heading of a picture or table: source and target, where they are, and the packets behind the figures.

use std::net::{IpAddr, SocketAddr};

use sockpath_protocol::request::Protocol;

use super::line::Line;
use crate::duration::nanos;
use crate::output::Text;
use crate::report::Report;
use crate::report::document::Party;
use crate::target::Scenario;
use crate::terminal::{Paint, Style, wrap};

/// Source and target, where they are, and the packets behind the figures.
#[must_use]
pub fn heading(report: &Report, style: &Style) -> Text {
    let mut out = Text::default();
    let arrow = if style.unicode { " → " } else { " -> " };
    let no_endpoint = report.via_service.is_some() && report.target.ips.is_empty();
    let target = if no_endpoint { "no endpoints".to_owned() } else { with_port(&report.target) };
    let service = match (&report.via_service, report.dialled) {
        (Some(service), Some(dialled)) => format!("Service {service} {dialled}{arrow}"),
        _ => String::new(),
    };
    let both = format!("{}{arrow}{service}{target}", party(&report.source));
    for line in wrap(&both, style.width) {
        Line::new(style).paint(Paint::Heading, &line).end(&mut out);
    }
    let mut about = vec![place_words(report)];
    if let (Some(service), None) = (&report.via_service, report.dialled) {
        about.push(format!("via Service {service}"));
    }
    if let Some(request) = &report.request {
        let protocol = match request.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Icmp => "ICMP",
        };
        let plural = if request.count == 1 { "packet" } else { "packets" };
        about.push(format!("{} {protocol} {} {plural}", request.count, request.packets_of));
    }
    about.push(format!("kernel {}", report.kernel));
    for line in wrap(&about.join(", "), style.width) {
        Line::new(style).text(&line).end(&mut out);
    }
    out.append(&clocks(report, style));
    out
}

/// How the nodes' clocks lie to each other, where there are several.
fn clocks(report: &Report, style: &Style) -> Text {
    let mut out = Text::default();
    for row in &report.clocks {
        let doubt = nanos(row.uncertainty_ns);
        let text = if row.offset_ns.unsigned_abs() <= row.uncertainty_ns {
            format!("clocks of {} and {}: no measurable difference ({doubt} in either direction)", row.against, row.node)
        } else {
            let word = if row.offset_ns > 0 { "ahead of" } else { "behind" };
            let offset = nanos(row.offset_ns.unsigned_abs());
            format!("clock of {}: {offset} {word} that of {}, {doubt} in either direction", row.node, row.against)
        };
        for line in wrap(&text, style.width) {
            Line::new(style).paint(Paint::Dim, &line).end(&mut out);
        }
    }
    out
}

fn party(party: &Party) -> String {
    match &party.namespace {
        Some(namespace) => format!("{namespace}/{}", party.name),
        None => party.name.clone(),
    }
}

/// `default/web:80`, and where it is an address `192.0.2.1:80` or `[fd00::1]:80`.
fn with_port(party: &Party) -> String {
    let name = self::party(party);
    match (party.port, name.parse::<IpAddr>()) {
        (Some(port), Ok(ip)) => SocketAddr::new(ip, port).to_string(),
        (Some(port), Err(_)) => format!("{name}:{port}"),
        (None, _) => name,
    }
}

fn place_words(report: &Report) -> String {
    let node = |p: &Party| p.node.clone().unwrap_or_else(|| "?".to_owned());
    match report.scenario {
        Scenario::InPod => format!("inside one pod on {}", node(&report.source)),
        Scenario::SameNode => format!("same node ({})", node(&report.source)),
        Scenario::CrossNode => format!("cross-node ({} to {})", node(&report.source), node(&report.target)),
        Scenario::External if report.target.node.is_some() => format!("from {} to {} itself", node(&report.source), node(&report.target)),
        Scenario::External if report.via_service.is_some() => format!("from {}", node(&report.source)),
        Scenario::External => format!("from {} to an external address", node(&report.source)),
    }
}
