//! The picture in words: for readers that do not see it.

use super::{Item, Lane, Namespace, Picture, State};
use crate::duration::nanos;

impl Picture {
    /// The picture in sentences, in the order of the path.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut number = 0_usize;
        for node in &self.nodes {
            for ns in &node.namespaces {
                for lane in &ns.lanes {
                    let link = number.checked_sub(1).and_then(|n| self.links.get(n)).map_or("", |l| l.kind.word());
                    let by = if link.is_empty() { String::new() } else { format!("by {link} to ") };
                    out.push(format!("{by}{}, {}: {}.", ns.title, node.title, lane_words(ns, lane)));
                    number += 1;
                }
            }
        }
        out.extend(self.beside.iter().map(|b| format!("{}.", b.text)));
        out.extend(self.bars.iter().map(|bar| {
            let parts: Vec<String> = bar.parts.iter().map(|p| format!("{} {}", p.place, nanos(p.took_ns))).collect();
            format!("{}: {} ({}).", bar.name, bar.time(), parts.join(", "))
        }));
        out
    }
}

fn lane_words(ns: &Namespace, lane: &Lane) -> String {
    if ns.state != State::Passed {
        return ns.detail.clone();
    }
    let words = lane.items.iter().map(|item| match item {
        Item::Socket(text) => text.clone(),
        Item::Device(device) => format!("device {}", device.words()),
        Item::Stage(stage) => {
            let step = stage.step.map_or_else(String::new, |s| format!("{s} "));
            let took = stage.took_ns.map_or_else(String::new, |t| format!(" {}", nanos(t)));
            format!("{step}{}{took}{}", stage.name, if stage.waits { " waiting" } else { "" })
        }
        Item::Rewrite(text) => format!("translated {text}"),
        Item::End(mark) => mark.text.clone(),
        Item::Unobserved(text) => format!("not observed: {text}"),
    });
    words.collect::<Vec<_>>().join("; ")
}
