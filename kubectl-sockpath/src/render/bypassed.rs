//! What bytes that go socket to socket would bypass, as a table.

use sockpath_protocol::bypass::Bypassed;

use super::line::Line;
use super::table::Table;
use crate::output::Text;
use crate::terminal::{Paint, Style};

/// Pods that are named in a row; the others are counted.
const NAMED: usize = 3;

/// The table.
#[must_use]
pub fn table(bypassed: &[Bypassed], style: &Style) -> Text {
    let mut out = Text::default();
    if bypassed.is_empty() {
        let text = "would be bypassed: the network path, with no policy, rule, limit, program or mirror on it";
        Line::new(style).paint(Paint::Heading, text).end(&mut out);
        return out;
    }
    Line::new(style).paint(Paint::Heading, "would be bypassed").end(&mut out);
    let mut table = Table::fitting(style, &["KIND", "WHAT", "WHERE", "PODS"]);
    for one in bypassed {
        table.row(None, None, [one.kind.text(), &one.what, &one.place, &pods(one)]);
    }
    table.end(true, &mut out);
    out
}

/// What is bypassed in a line: how many of each kind.
#[must_use]
pub fn brief(bypassed: &[Bypassed]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for one in bypassed {
        match counts.iter_mut().find(|(kind, _)| *kind == one.kind.text()) {
            Some((_, count)) => *count += 1,
            None => counts.push((one.kind.text(), 1)),
        }
    }
    if counts.is_empty() {
        return "bypassed: the network path; no policy, rule, limit, program or mirror was found on it".to_owned();
    }
    let counts: Vec<String> =
        counts.into_iter().map(|(kind, n)| if n == 1 { format!("1 {kind}") } else { format!("{n} x {kind}") }).collect();
    format!("bypassed: {} (accelerate --dry-run lists them)", counts.join(", "))
}

fn pods(one: &Bypassed) -> String {
    match one.pods.len() {
        0 => "any".to_owned(),
        n if n > NAMED => format!("{} and {} more", one.pods[..NAMED].join(", "), n - NAMED),
        _ => one.pods.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use sockpath_protocol::bypass::BypassKind;

    use super::*;

    fn some() -> Vec<Bypassed> {
        let one = |kind, what: &str, place: &str, pods: &[&str]| Bypassed {
            kind,
            what: what.into(),
            place: place.into(),
            pods: pods.iter().map(|p| (*p).to_owned()).collect(),
        };
        vec![
            one(BypassKind::NetworkPolicy, "deny-all (ingress)", "namespace shop", &["shop/a", "shop/b", "shop/c", "shop/d", "shop/e"]),
            one(BypassKind::NetfilterRule, "drop \"planted\" (handle 4)", "inet planted/fwd on node-1", &[]),
            one(BypassKind::Qdisc, "tbf 8001:, 1 Mbit/s", "veth1 on node-1", &["shop/a"]),
        ]
    }

    #[test]
    fn golden() {
        assert_eq!(
            table(&some(), &Style::plain(140)),
            "would be bypassed\n\
             \u{20}KIND              WHAT                       WHERE                       PODS\n\
             \u{20}NetworkPolicy     deny-all (ingress)         namespace shop              shop/a, shop/b, shop/c and 2 more\n\
             \u{20}netfilter rule    drop \"planted\" (handle 4)  inet planted/fwd on node-1  any\n\
             \u{20}queue discipline  tbf 8001:, 1 Mbit/s        veth1 on node-1             shop/a\n"
        );
        assert!(table(&[], &Style::plain(140)).contains("no policy, rule, limit"));
        let two = [some(), some()].concat();
        assert_eq!(
            brief(&two[1..]),
            "bypassed: 2 x netfilter rule, 2 x queue discipline, 1 NetworkPolicy (accelerate --dry-run lists them)"
        );
        assert!(brief(&[]).contains("no policy, rule, limit"));
    }

    #[test]
    fn it_fits_every_width() {
        for width in 40..=200 {
            for line in table(&some(), &Style::plain(width)).lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }
}
