//! Packets that are complete but for the rules that did something to them.

use std::collections::HashMap;

use sockpath_protocol::packet::{Outcome, Packet};

use crate::trace::rules::Found;

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// The rewrite before this hop.
    Hop(usize),
    /// The drop.
    Outcome,
}

/// Packets and what they wait for.
#[derive(Debug, Default)]
pub struct Pending {
    packets: HashMap<u64, (Box<Packet>, usize)>,
    /// Question to packet, which is known by the number of its first question.
    questions: HashMap<u64, (u64, About)>,
}

impl Pending {
    /// Keeps a packet until its questions are answered.
    pub fn keep(&mut self, packet: Box<Packet>, questions: &[(u64, About)]) {
        let Some((first, _)) = questions.first() else { return };
        self.packets.insert(*first, (packet, questions.len()));
        self.questions.extend(questions.iter().map(|(number, about)| (*number, (*first, *about))));
    }

    /// Takes an answer. Returns the packet when it was the last that it waited for.
    pub fn answer(&mut self, number: u64, found: Found) -> Option<Box<Packet>> {
        let (key, about) = self.questions.remove(&number)?;
        let (packet, open) = self.packets.get_mut(&key)?;
        put(packet, about, found);
        *open -= 1;
        if *open > 0 {
            return None;
        }
        self.packets.remove(&key).map(|(packet, _)| packet)
    }

    /// The packets that still wait, as they are.
    pub fn give_up(&mut self) -> impl Iterator<Item = Box<Packet>> {
        self.questions.clear();
        let mut packets: Vec<_> = self.packets.drain().collect();
        packets.sort_unstable_by_key(|(key, _)| *key);
        packets.into_iter().map(|(_, (packet, _))| packet)
    }
}

fn put(packet: &mut Packet, about: About, found: Found) {
    match (about, &mut packet.outcome) {
        (About::Hop(at), _) => {
            if let Some(hop) = packet.hops.get_mut(at) {
                hop.rule = found.rule.map(Box::new);
            }
        }
        (About::Outcome, Outcome::Dropped(drop)) => {
            drop.rule = found.rule.map(Box::new);
            drop.cause = found.cause.map(Box::new);
            drop.detail = found.detail.or(drop.detail.take());
            if let Some(reason) = found.reason {
                drop.reason = reason;
            }
        }
        (About::Outcome, _) => {}
    }
}
