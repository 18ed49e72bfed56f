//! Saying what became of packets: hops, outcomes, drops and incidents.

use sockpath_protocol::Message;
use sockpath_protocol::packet::{Direction, Drop, Hop, Incident, IncidentKind, Outcome, Packet, PacketKind};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::StageId;

use super::conversation::Course;
use super::hops::Answer;
use super::open::Open;
use super::outcome::{Verdict, expected_after};
use super::pending::About;
use super::{Assembler, MAX_ANSWERS, hops, incident, netfilter};
use crate::trace::event::{Hook, Sight};
use crate::trace::names::Names;
use crate::trace::places::Places;
use crate::trace::rules::{Question, What};
use crate::trace::settings::KernelDrop;

impl Assembler {
    pub(super) fn dropped(&mut self, sight: Sight) {
        if let Some(open) = self.open.get_mut(&sight.id) {
            // A socket that closes frees what it has: that was delivered, unless it was data for a reader.
            // ICMP goes to raw sockets as clones, and the original is dropped if no other socket takes it.
            // But a SYN that a socket in TIME_WAIT took opens nothing: the kernel frees it without a reason, and answers with an ACK.
            let refused = open.kind == PacketKind::Syn && u32::from(sight.socket_state) == incident::TIME_WAIT;
            let done_with = open.arrived_in.is_some() && !open.is_for_a_reader() && self.names.is_no_loss(sight.arg) && !refused;
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
            // Its path had ended: the socket closed with it, or it was a clone's.
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
            note: Some("its path until here was not recorded".to_owned()),
            facts: None,
        };
        open.add(sight.clone());
        let drop = self.drop_of(sight, stage);
        let unnamed = self.names.unnamed(sight.arg);
        let question = unnamed.map(|_| kernel_question(&drop, unnamed, sight, &mut self.places));
        let asked = question.and_then(|q| Some((self.rules.ask(q)?, About::Outcome)));
        self.say(&open, vec![hop], Outcome::Dropped(drop), asked.as_slice());
    }

    pub(super) fn stage_of_drop(&self, course: Course, sight: &Sight) -> StageId {
        let Some(t) = self.places.netns(sight.netns) else { return StageId::NodeReceive };
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
        let place = self.places.number(sight.netns, sight.ifindex);
        let socket = (sight.socket_state != 0).then(|| incident::state(sight.socket_state.into()).to_owned());
        Drop { reason, location, place, stage, socket, detail, rule: None, cause: None }
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
        let (hops, translations) = hops::hops(&mut open, &mut self.places, self.conversations.pair(), &self.answers, &self.asked);
        let mut questions: Vec<(u64, About)> =
            translations.into_iter().filter_map(|(hop, question)| Some((self.rules.ask(question)?, About::Hop(hop)))).collect();
        let last = hops.last().map_or(StageId::SendNetwork, |h| h.stage);
        let outcome = match (verdict, &open.drop) {
            (Verdict::Delivered, _) => Outcome::Delivered,
            (Verdict::Left, _) => Outcome::Left,
            (Verdict::Dropped, Some(drop)) => {
                let sight = drop.clone();
                let drop = self.drop_of(&sight, last);
                let question = match drop.reason.as_str() {
                    "NETFILTER_DROP" => {
                        let engine = drop.location.as_deref().and_then(|l| self.names.engine(l));
                        netfilter::drop_question(&open, &sight, engine, &mut self.places)
                    }
                    _ => Some(kernel_question(&drop, self.names.unnamed(sight.arg), &sight, &mut self.places)),
                };
                questions.extend(question.and_then(|q| Some((self.rules.ask(q)?, About::Outcome))));
                Outcome::Dropped(drop)
            }
            (Verdict::Dropped | Verdict::Vanished, _) => Outcome::Vanished { expected: expected_after(last, open.protocol) },
        };
        if outcome == Outcome::Delivered && open.course.direction == Direction::Request && open.payload() > 0 {
            self.delivered_requests += 1;
        }
        self.say(&open, hops, outcome, &questions);
    }

    pub(super) fn say(&mut self, open: &Open, hops: Vec<Hop>, outcome: Outcome, questions: &[(u64, About)]) {
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
        // The call that writes a datagram knows no headers; with those the packet is known on other nodes.
        let sent = open.sights.iter().find(|s| s.id != 0 && s.hook != Hook::TRACE_WRITE_CALL).unwrap_or(first);
        let packet = Box::new(Packet {
            id,
            conversation: open.course.conversation,
            direction: open.course.direction,
            protocol: open.protocol,
            kind: open.kind,
            flow,
            seq: sent.seq,
            ack: sent.ack,
            payload: first.payload,
            hops,
            outcome,
        });
        match questions {
            [] => self.ready.push(Message::Packet(packet)),
            questions => self.pending.keep(packet, questions),
        }
    }

    pub(super) fn incident(&mut self, sight: &Sight) {
        let Some(what) = incident::kind(sight.hook) else { return };
        let mut known = sight.protocol.is_some();
        if what == IncidentKind::Neighbour {
            known = false;
            if sight.hook == Hook::TRACE_NEIGH_SEND {
                if self.asked.len() >= MAX_ANSWERS {
                    self.asked.pop_front();
                }
                self.asked.push_back(Answer { netns: sight.netns, ifindex: sight.ifindex, at: sight.at });
            }
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

/// What to ask the settings of the namespace about a drop that no rule did.
fn kernel_question(drop: &Drop, unnamed: Option<u32>, sight: &Sight, places: &mut Places) -> Question {
    let function = drop.location.as_deref().and_then(|l| l.split(['+', '.']).next()).unwrap_or_default();
    let device = places.device(sight.netns, sight.ifindex).map(|d| (d.ifindex, d.name.clone()));
    // Segments of a large packet are as long as its payload's share, and the headers.
    let segments = u32::from(sight.segments.max(1));
    let length = if segments == 1 { sight.len } else { sight.payload.div_ceil(segments) + sight.len.saturating_sub(sight.payload) };
    let (reason, function) = (drop.reason.clone(), function.to_owned());
    let what = KernelDrop { reason, unnamed, function, flow: sight.flow, length, device, ports: places.ports_to_pods(sight.netns) };
    Question { netns: sight.netns, at: sight.at, what: What::Kernel(what) }
}
