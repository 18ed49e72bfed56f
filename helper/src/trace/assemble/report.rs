//! Saying what became of packets: hops, outcomes, drops and incidents.

use sockpath_protocol::Message;
use sockpath_protocol::packet::{Direction, Drop, Hop, Incident, IncidentKind, Outcome, Packet, PacketKind};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::StageId;

use super::conversation::DirectedConversation;
use super::hops::Answer;
use super::open::Open;
use super::outcome::{Verdict, expected_after};
use super::pending::About;
use super::{Assembler, MAX_ANSWERS, hops, incident, netfilter};
use crate::trace::event::{Event, Hook};
use crate::trace::names::Names;
use crate::trace::places::Places;
use crate::trace::rules::{Question, What};
use crate::trace::settings::KernelDrop;

impl Assembler {
    pub(super) fn dropped(&mut self, event: Event) {
        if let Some(open) = self.open.get_mut(&event.id) {
            // A socket that closes frees what it has: that was delivered, unless it was data for a reader.
            // ICMP goes to raw sockets as clones, and the original is dropped if no other socket takes it.
            // But a SYN that a socket in TIME_WAIT took opens nothing: the kernel frees it without a reason, and answers with an ACK.
            let refused = open.kind == PacketKind::Syn && u32::from(event.socket_state) == incident::TIME_WAIT;
            let done_with = open.arrived_in.is_some() && !open.is_for_a_reader() && self.names.is_no_loss(event.arg) && !refused;
            let cloned = open.protocol == Protocol::Icmp && open.woken;
            // A bridge floods clones, which others drop.
            let flooded = event.shared && open.arrived_in.is_some_and(|netns| netns != event.netns);
            if !done_with && !cloned && !flooded {
                open.unresolved = self.names.is_neighbour(event.arg);
                open.drop = Some(event);
            }
            return;
        }
        if event.id != 0 && event.id <= self.last_id {
            // Its path had ended: the socket closed with it, or it was a clone's.
            return;
        }
        self.dropped_unrecorded(&event);
    }

    /// A drop is reported even if the packet was not recorded: with the one hop that is known.
    pub(super) fn dropped_unrecorded(&mut self, event: &Event) {
        let Some(protocol) = event.protocol else { return };
        let directed = self.conversations.of(protocol, event.flow, event.kind, event.seq);
        let mut open = Open::new(directed, protocol, event);
        let stage = self.stage_of_drop(directed, event);
        let place = self.places.number(event.netns, event.ifindex);
        let hop = Hop {
            stage,
            hook: event.hook_name(),
            at_ns: event.at,
            place,
            cpu: event.cpu,
            context: event.context(),
            len: event.len,
            segments: event.segments.max(1),
            rewritten: None,
            rule: None,
            offsets: event.offsets,
            note: Some("its path until here was not recorded".to_owned()),
            facts: None,
        };
        open.add(event.clone());
        let drop = self.drop_of(event, stage);
        let unnamed = self.names.unnamed(event.arg);
        let question = unnamed.map(|_| kernel_question(&drop, unnamed, event, &mut self.places));
        let asked = question.and_then(|q| Some((self.rules.ask(q)?, About::Outcome)));
        self.say(&open, vec![hop], Outcome::Dropped(drop), asked.as_slice());
    }

    pub(super) fn stage_of_drop(&self, directed: DirectedConversation, event: &Event) -> StageId {
        let Some(t) = self.places.netns(event.netns) else { return StageId::NodeReceive };
        match (directed.direction, t.source, t.target) {
            (Direction::Request, _, true) | (Direction::Reply, true, _) => StageId::ReceiveTransport,
            (Direction::Request, true, _) | (Direction::Reply, _, true) => StageId::SendNetwork,
            _ => StageId::NodeReceive,
        }
    }

    pub(super) fn drop_of(&mut self, event: &Event, stage: StageId) -> Drop {
        let mut reason = self.names.drop_reason(event.arg);
        let location = self.names.symbol(event.location);
        let mut detail = None;
        if let Some((better, why)) = location.as_deref().and_then(|l| Names::refine(&reason, l)) {
            detail = Some(why.to_owned());
            if let Some(better) = better {
                detail = Some(format!("{why}; the kernel says {reason}"));
                better.clone_into(&mut reason);
            }
        }
        let place = self.places.number(event.netns, event.ifindex);
        let socket = (event.socket_state != 0).then(|| incident::state(event.socket_state.into()).to_owned());
        Drop { reason, location, place, stage, socket, detail, rule: None, cause: None }
    }

    pub(super) fn report(&mut self, id: u32, verdict: Verdict) {
        let Some(mut open) = self.open.remove(&id) else { return };
        self.events = self.events.saturating_sub(open.events.len());
        if let Some(waiting) = self.waiting.get_mut(&open.directed) {
            waiting.retain(|w| *w != id);
            if waiting.is_empty() {
                self.waiting.remove(&open.directed);
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
                let event = drop.clone();
                let drop = self.drop_of(&event, last);
                let question = match drop.reason.as_str() {
                    "NETFILTER_DROP" => {
                        let engine = drop.location.as_deref().and_then(|l| self.names.engine(l));
                        netfilter::drop_question(&open, &event, engine, &mut self.places)
                    }
                    _ => Some(kernel_question(&drop, self.names.unnamed(event.arg), &event, &mut self.places)),
                };
                questions.extend(question.and_then(|q| Some((self.rules.ask(q)?, About::Outcome))));
                Outcome::Dropped(drop)
            }
            (Verdict::Dropped | Verdict::Vanished, _) => Outcome::Vanished { expected: expected_after(last, open.protocol) },
        };
        if outcome == Outcome::Delivered && open.directed.direction == Direction::Request && open.payload() > 0 {
            self.delivered_requests += 1;
        }
        self.say(&open, hops, outcome, &questions);
    }

    pub(super) fn say(&mut self, open: &Open, hops: Vec<Hop>, outcome: Outcome, questions: &[(u64, About)]) {
        let Some(first) = open.first().or(open.events.first()) else { return };
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
        let sent = open.events.iter().find(|s| s.id != 0 && s.hook != Hook::TRACE_WRITE_CALL).unwrap_or(first);
        let packet = Box::new(Packet {
            id,
            conversation: open.directed.conversation,
            direction: open.directed.direction,
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

    pub(super) fn incident(&mut self, event: &Event) {
        let Some(what) = incident::kind(event.hook) else { return };
        let mut known = event.protocol.is_some();
        if what == IncidentKind::Neighbour {
            known = false;
            if event.hook == Hook::TRACE_NEIGH_SEND {
                if self.asked.len() >= MAX_ANSWERS {
                    self.asked.pop_front();
                }
                self.asked.push_back(Answer { netns: event.netns, ifindex: event.ifindex, at: event.at });
            }
            if event.hook == Hook::TRACE_NEIGH_UPDATE && !incident::is_failure(event) {
                return;
            }
        }
        let place = Some(self.places.number(event.netns, event.ifindex));
        self.ready.push(Message::Incident(Incident {
            at_ns: event.at,
            what,
            flow: known.then_some(event.flow),
            place,
            detail: incident::detail(event),
        }));
    }
}

/// What to ask the settings of the namespace about a drop that no rule did.
fn kernel_question(drop: &Drop, unnamed: Option<u32>, event: &Event, places: &mut Places) -> Question {
    let function = drop.location.as_deref().and_then(|l| l.split(['+', '.']).next()).unwrap_or_default();
    let device = places.device(event.netns, event.ifindex).map(|d| (d.ifindex, d.name.clone()));
    // Segments of a large packet are as long as its payload's share, and the headers.
    let segments = u32::from(event.segments.max(1));
    let length = if segments == 1 { event.len } else { event.payload.div_ceil(segments) + event.len.saturating_sub(event.payload) };
    let (reason, function) = (drop.reason.clone(), function.to_owned());
    let what = KernelDrop { reason, unnamed, function, flow: event.flow, length, device, ports: places.ports_to_pods(event.netns) };
    Question { netns: event.netns, at: event.at, what: What::Kernel(what) }
}
