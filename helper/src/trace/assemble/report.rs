//! Saying what became of packets: hops, outcomes, drops and incidents.

use sockpath_protocol::Message;
use sockpath_protocol::packet::{Direction, Drop, Hop, Incident, IncidentKind, Outcome, Packet};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::StageId;

use super::conversation::Course;
use super::open::Open;
use super::outcome::{Verdict, expected_after};
use super::{Assembler, hops, incident};
use crate::trace::event::{Hook, Sight};
use crate::trace::names::Names;
use crate::trace::rules::At;

impl Assembler {
    pub(super) fn dropped(&mut self, sight: Sight) {
        if let Some(open) = self.open.get_mut(&sight.id) {
            // A socket that closes frees what it has: that was delivered, unless somebody should have read it.
            // ICMP goes to raw sockets as clones, and the original is dropped if nobody else wants it.
            let done_with = open.arrived_in.is_some() && !open.is_for_a_reader() && self.names.is_no_loss(sight.arg);
            let cloned = open.protocol == Protocol::Icmp && open.woken;
            // A bridge floods clones, which others drop.
            let flooded = sight.shared && open.arrived_in.is_some_and(|netns| netns != sight.netns);
            if !done_with && !cloned && !flooded {
                open.unresolved = self.names.is_neighbour(sight.arg);
                open.drop = Some(sight);
            }
            return;
        }
        if sight.id != 0 && sight.id <= self.last_id {
            // Its way was over: the socket closed with it, or it was a clone's.
            return;
        }
        self.dropped_unrecorded(&sight);
    }

    /// A drop is reported even if the packet was not recorded: with the one hop that is known.
    pub(super) fn dropped_unrecorded(&mut self, sight: &Sight) {
        let Some(protocol) = sight.protocol else { return };
        let course = self.conversations.of(protocol, sight.flow, sight.kind, sight.seq);
        let mut open = Open::new(course, protocol, sight);
        let stage = self.stage_of_drop(course, sight);
        let place = self.places.number(sight.netns, sight.ifindex);
        let hop = Hop {
            stage,
            hook: sight.hook_name(),
            at_ns: sight.at,
            place,
            cpu: sight.cpu,
            context: sight.context(),
            len: sight.len,
            segments: sight.segments.max(1),
            rewritten: None,
            rule: None,
            offsets: sight.offsets,
            note: Some("its way until here was not recorded".to_owned()),
        };
        open.add(sight.clone());
        let outcome = Outcome::Dropped(self.drop_of(sight, stage));
        self.say(&open, vec![hop], outcome);
    }

    pub(super) fn stage_of_drop(&self, course: Course, sight: &Sight) -> StageId {
        let Some(t) = self.places.territory(sight.netns) else { return StageId::NodeReceive };
        match (course.direction, t.source, t.target) {
            (Direction::Request, _, true) | (Direction::Reply, true, _) => StageId::ReceiveTransport,
            (Direction::Request, true, _) | (Direction::Reply, _, true) => StageId::SendNetwork,
            _ => StageId::NodeReceive,
        }
    }

    pub(super) fn drop_of(&mut self, sight: &Sight, stage: StageId) -> Drop {
        let mut reason = self.names.drop_reason(sight.arg);
        let location = self.names.symbol(sight.location);
        let mut detail = None;
        if let Some((better, why)) = location.as_deref().and_then(|l| Names::refine(&reason, l)) {
            detail = Some(why.to_owned());
            if let Some(better) = better {
                detail = Some(format!("{why}; the kernel says {reason}"));
                better.clone_into(&mut reason);
            }
        }
        let at = (reason == "NETFILTER_DROP").then(|| hook_of(stage)).flatten();
        let rule = at.zip(sight.protocol).and_then(|(at, protocol)| self.rules.drop(sight.netns, protocol, sight.flow, at));
        let place = self.places.number(sight.netns, sight.ifindex);
        Drop { reason, location, place, stage, detail, rule: rule.map(Box::new) }
    }

    pub(super) fn report(&mut self, id: u32, verdict: Verdict) {
        let Some(mut open) = self.open.remove(&id) else { return };
        self.sights = self.sights.saturating_sub(open.sights.len());
        if let Some(waiting) = self.waiting.get_mut(&open.course) {
            waiting.retain(|w| *w != id);
            if waiting.is_empty() {
                self.waiting.remove(&open.course);
            }
        }
        let hops = hops::hops(&mut open, &mut self.places, &mut self.rules, self.conversations.pair(), &self.answers);
        let last = hops.last().map_or(StageId::SendNetwork, |h| h.stage);
        let outcome = match (verdict, &open.drop) {
            (Verdict::Delivered, _) => Outcome::Delivered,
            (Verdict::Left, _) => Outcome::Left,
            (Verdict::Dropped, Some(drop)) => {
                let drop = drop.clone();
                Outcome::Dropped(self.drop_of(&drop, last))
            }
            (Verdict::Dropped | Verdict::Vanished, _) => Outcome::Vanished { expected: expected_after(last, open.protocol) },
        };
        if outcome == Outcome::Delivered && open.course.direction == Direction::Request && open.payload() > 0 {
            self.delivered_requests += 1;
        }
        self.say(&open, hops, outcome);
    }

    pub(super) fn say(&mut self, open: &Open, hops: Vec<Hop>, outcome: Outcome) {
        let Some(first) = open.first().or(open.sights.first()) else { return };
        self.reported += 1;
        // Recorded packets are numbered by the programs, from 1 on; the others come after all that those can number.
        let id = if first.id == 0 { (1 << 32) + self.reported } else { u64::from(first.id) };
        let mut flow = first.flow;
        if open.protocol == Protocol::Icmp {
            // An error carries the ports of the packet it is about.
            flow.from.set_port(0);
            flow.to.set_port(0);
        }
        self.ready.push(Message::Packet(Box::new(Packet {
            id,
            conversation: open.course.conversation,
            direction: open.course.direction,
            protocol: open.protocol,
            kind: open.kind,
            flow,
            seq: first.seq,
            ack: first.ack,
            payload: first.payload,
            hops,
            outcome,
        })));
    }

    pub(super) fn incident(&mut self, sight: &Sight) {
        let Some(what) = incident::kind(sight.hook) else { return };
        let mut known = sight.protocol.is_some();
        if what == IncidentKind::Neighbour {
            known = false;
            if sight.hook == Hook::TRACE_NEIGH_UPDATE && !incident::is_failure(sight) {
                return;
            }
        }
        let place = Some(self.places.number(sight.netns, sight.ifindex));
        self.ready.push(Message::Incident(Incident {
            at_ns: sight.at,
            what,
            flow: known.then_some(sight.flow),
            place,
            detail: incident::detail(sight),
        }));
    }
}

/// The netfilter hook whose rules run in this stage.
fn hook_of(stage: StageId) -> Option<At> {
    match stage {
        StageId::NfPreRouting | StageId::NodePreRouting => Some(At::PreRouting),
        StageId::NfLocalIn | StageId::NodeLocalIn => Some(At::LocalIn),
        StageId::NodeForward => Some(At::Forward),
        StageId::NfLocalOut | StageId::NodeLocalOut => Some(At::LocalOut),
        StageId::NfPostRouting | StageId::NodePostRouting => Some(At::PostRouting),
        _ => None,
    }
}
