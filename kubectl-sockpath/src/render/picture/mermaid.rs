//! The picture as a Mermaid flowchart, which trackers and wikis draw from text.

use super::{Bypass, Item, Lane, LinkKind, Namespace, Picture, State};
use crate::duration::nanos;
use crate::output::Text;

/// Renders it.
#[must_use]
pub fn render(picture: &Picture) -> Text {
    let mut out = Text::default();
    out.line("---");
    out.line(&format!("title: {}", quoted(&picture.title)));
    out.line("---");
    out.line("flowchart LR");
    let (mut number, mut namespace) = (0, 0);
    for (n, node) in picture.nodes.iter().enumerate() {
        out.line(&format!("  subgraph node{n}[{}]", quoted(&node.title)));
        for ns in &node.namespaces {
            out.line(&format!("    subgraph ns{namespace}[{}]", quoted(&format!("{}{}", ns.title, time(ns)))));
            for lane in &ns.lanes {
                // Its parts are bounded, each by itself.
                out.push_columns(&format!("      lane{number}[{}]", label(ns, lane)));
                out.end_line();
                number += 1;
            }
            out.line("    end");
            namespace += 1;
        }
        out.line("  end");
    }
    for (n, link) in picture.links.iter().enumerate() {
        let (arrow, word) = (if link.taken { "-->" } else { "-.->" }, link.kind.word());
        let name = if link.kind == LinkKind::Unknown { String::new() } else { format!("|{}|", quoted(word)) };
        out.line(&format!("  lane{n} {arrow}{name} lane{}", n + 1));
    }
    for beside in &picture.beside {
        let arrow = if beside.taken { "==>" } else { "-.->" };
        out.line(&format!("  lane{} {arrow}|{}| lane{}", beside.from, quoted(&beside.text), beside.to));
    }
    classes(picture, &mut out);
    out
}

/// Colours: where packets ended, what they did not pass, and accelerated paths.
fn classes(picture: &Picture, out: &mut Text) {
    let (mut ended, mut greyed) = (Vec::new(), Vec::new());
    for (n, (ns, lane)) in picture.lanes().enumerate() {
        if ns.state != State::Passed {
            greyed.push(format!("lane{n}"));
        } else if lane.items.iter().any(|i| matches!(i, Item::End(_))) {
            ended.push(format!("lane{n}"));
        }
    }
    for (name, lanes, style) in [
        ("ended", ended, "stroke:#b42318,stroke-width:3px"),
        ("grey", greyed, "fill:#eeeeee,stroke:#74818f,color:#52606d,stroke-dasharray:4 4"),
    ] {
        if !lanes.is_empty() {
            out.line(&format!("  classDef {name} {style}"));
            out.line(&format!("  class {} {name}", lanes.join(",")));
        }
    }
    for (n, beside) in picture.beside.iter().enumerate() {
        let dash = if beside.path == Bypass::Short { ",stroke-dasharray:4 4" } else { "" };
        out.line(&format!("  linkStyle {} stroke:#1a7f37{dash}", picture.links.len() + n));
    }
}

fn time(ns: &Namespace) -> String {
    let took: Vec<u64> = ns.lanes.iter().filter_map(|lane| lane.took_ns).collect();
    if took.is_empty() { String::new() } else { format!(", {}", nanos(took.iter().sum())) }
}

/// What a lane contains, a line each.
fn label(ns: &Namespace, lane: &Lane) -> String {
    let mut lines: Vec<String> = lane.items.iter().map(line).collect();
    if lines.is_empty() || ns.state != State::Passed {
        lines = vec![ns.detail.clone()];
    }
    let escaped: Vec<String> = lines.iter().map(|line| escaped(line)).collect();
    format!("\"{}\"", escaped.join("<br/>"))
}

fn line(item: &Item) -> String {
    match item {
        Item::Socket(text) => text.clone(),
        Item::Device(device) => format!("[{}]", device.words()),
        Item::Stage(stage) => {
            let step = stage.step.map_or_else(String::new, |s| format!("{s} "));
            let took = match (stage.took_ns, stage.unmeasurable) {
                (Some(took), _) => format!(" {}", nanos(took)),
                (None, true) => " (two clocks)".to_owned(),
                (None, false) => String::new(),
            };
            format!("{step}{}{took}{}", stage.name, if stage.waits { " waiting" } else { "" })
        }
        Item::Rewrite(text) => text.clone(),
        Item::End(mark) => format!("✗ {}", mark.text),
        Item::Unobserved(text) => format!("({text})"),
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

/// Longest text of one label, in characters: Mermaid refuses diagrams of more than 50,000.
const LONGEST: usize = 400;

/// Text that cannot end its quotes, become markup or Markdown: Mermaid's own entities, which also Markdown around it leaves as they are.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in sockpath_protocol::text::field_within(text, LONGEST).chars() {
        match c {
            '"' => out.push_str("#quot;"),
            '#' => out.push_str("#35;"),
            '<' => out.push_str("#lt;"),
            '>' => out.push_str("#gt;"),
            '&' => out.push_str("#amp;"),
            '`' => out.push_str("#96;"),
            '\\' => out.push_str("#92;"),
            ';' => out.push_str("#59;"),
            '*' => out.push_str("#42;"),
            c => out.push(c),
        }
    }
    out
}
