//! A packet's hops, out of its events.

use std::collections::VecDeque;
use std::mem;

use sockpath_bpf::trace::types::trace_flag;
use sockpath_protocol::packet::{Direction, Flow, Hop, PacketKind};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::StageId;

use super::conversation::Pair;
use super::netfilter::{hook_named, rule_facts};
use super::open::Open;
use super::stages::{Placed, Role, is_cut, stage_at};
use crate::trace::event::{Event, Hook, rules_of};
use crate::trace::places::Places;
use crate::trace::rules::{Question, TranslationQuestion, What};

/// A question for a neighbour is repeated every second, and three times.
const ASKED_AGE: u64 = 4_000_000_000;

/// What a namespace is to a packet of this direction, after it has or has not been received there.
fn role(places: &Places, direction: Direction, event: &Event) -> Role {
    let Some(t) = places.netns(event.netns) else { return Role::Node };
    let (sender, receiver) = match direction {
        Direction::Request => (t.source, t.target),
        Direction::Reply => (t.target, t.source),
    };
    match (sender, receiver) {
        (true, true) => Role::Both,
        (true, false) => Role::Sender,
        (false, true) => Role::Receiver,
        // The two ends may share a namespace with one more of the pair's pods, so a pod is never a node.
        (false, false) => Role::Node,
    }
}

/// A neighbour's address that became known: packets that waited for it go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Namespace that had asked.
    pub netns: u32,
    /// Device it had asked at.
    pub ifindex: u32,
    /// When, `CLOCK_MONOTONIC`, in nanoseconds.
    pub at: u64,
}

/// Turns the events of a packet into hops, in the order of time. With them come questions about the rules that translated it, each with
/// the position of its hop.
pub fn hops(
    open: &mut Open,
    places: &mut Places,
    pair: &Pair,
    answers: &VecDeque<Answer>,
    asked: &VecDeque<Answer>,
) -> (Vec<Hop>, Vec<(usize, Question)>) {
    let mut events = mem::take(&mut open.events);
    events.sort_by_key(|s| s.at);
    let waited = |i: usize| {
        let (here, next) = (&events[i], events.get(i + 1));
        let until = next.map_or(u64::MAX, |n| n.at);
        let answered = |a: &Answer| a.netns == here.netns && a.ifindex == here.ifindex && here.at < a.at && a.at < until;
        // Asked for it or for one before it, and not answered since.
        let silent = |a: &Answer| {
            let same = |b: &Answer| (a.netns, a.ifindex) == (b.netns, b.ifindex);
            (a.netns, a.ifindex) == (here.netns, here.ifindex)
                && a.at.abs_diff(here.at) < ASKED_AGE
                && !answers.iter().any(|b| same(b) && b.at > a.at)
        };
        let unresolved = || open.unresolved || asked.iter().any(silent);
        asks_neighbour(here.hook) && (answers.iter().any(answered) || next.is_none() && unresolved())
    };
    let placed: Vec<Placed<'_>> = events
        .iter()
        .enumerate()
        .map(|(i, event)| {
            let role = role(places, open.directed.direction, event);
            let device = places.traced_device(event.netns, event.ifindex);
            Placed { event, role, device: device.map(|e| e.device.clone()), qdisc: device.map(|e| e.qdisc.clone()), waited: waited(i) }
        })
        .collect();
    let mut hops: Vec<Hop> = Vec::with_capacity(placed.len());
    let mut questions = Vec::new();
    let mut flow = None;
    for (i, p) in placed.iter().enumerate() {
        let Some(stage) = stage_at(&placed, i) else { continue };
        // The socket's and the route's events carry no packet; their addresses are not the packet's.
        let rewritten = (p.event.id != 0 && has_addresses(p.event.hook)).then(|| flow.replace(p.event.flow)).flatten();
        let rewritten = rewritten.filter(|before| *before != p.event.flow).map(|before| (before, p.event.flow));
        let mut notes = notes(&placed, i, stage, open);
        if let Some((before, after)) = rewritten {
            notes.push(rewrite_note(&placed, i, pair, open.protocol, before.to != after.to, (before, after)));
        }
        // Replies undo the translation of the connection's first packet: no rule is run again.
        let there = open.directed.direction == Direction::Request;
        questions.extend(rewritten.filter(|_| there).map(|rewrite| (hops.len(), translation(&placed, i, open.protocol, rewrite))));
        hops.push(Hop {
            stage,
            hook: p.event.hook_name(),
            at_ns: p.event.at,
            place: places.number(p.event.netns, p.event.ifindex),
            cpu: p.event.cpu,
            context: p.event.context(),
            len: p.event.len,
            segments: p.event.segments.max(1),
            rewritten: rewritten.map(|(_, after)| after),
            rule: None,
            offsets: p.event.offsets,
            note: (!notes.is_empty()).then(|| notes.join(", ")),
            facts: rule_facts(p.event, places).map(Box::new),
        });
    }
    open.events = events;
    // The path of data ends when the reader has it. The sk_buff may be freed a while later, with another packet's work.
    if let Some(copied) = hops.iter().position(|h| h.stage == StageId::Copied) {
        hops.truncate(copied + 1);
        questions.retain(|(at, _)| *at <= copied);
    }
    (hops, questions)
}

/// The question which rule translated a packet between the event before and this one.
fn translation(placed: &[Placed<'_>], i: usize, protocol: Protocol, (before, after): (Flow, Flow)) -> Question {
    let event = placed[i].event;
    let here = placed[..i].iter().rev().filter(|p| p.event.netns == event.netns);
    let hook = here.filter_map(|p| rules_of(p.event.hook)).next().and_then(|(name, _)| hook_named(name));
    Question { netns: event.netns, at: event.at, what: What::Translation(TranslationQuestion { protocol, hook, before, after }) }
}

/// Whether what comes next is the next hop's MAC address.
pub fn asks_neighbour(hook: Hook) -> bool {
    matches!(hook, Hook::TRACE_NF_LAST_POST_ROUTING | Hook::TRACE_FN_IP_FINISH_OUTPUT2 | Hook::TRACE_FN_IP6_FINISH_OUTPUT2)
}

fn has_addresses(hook: Hook) -> bool {
    !matches!(
        hook,
        Hook::TRACE_COPY_DATAGRAM
            | Hook::TRACE_CONSUME_SKB
            | Hook::TRACE_RECV_LENGTH
            | Hook::TRACE_RCV_SPACE_ADJUST
            | Hook::TRACE_DATA_READY
            | Hook::TRACE_FN_SOCK_DEF_READABLE
    )
}

fn notes(placed: &[Placed<'_>], i: usize, stage: StageId, open: &Open) -> Vec<String> {
    let mut notes = Vec::new();
    let here = &placed[i];
    let next = placed.get(i + 1);
    match stage {
        // A segment of an established connection goes by the route its socket keeps.
        StageId::NfLocalOut
            if open.protocol == Protocol::Tcp
                && !open.was_at(Hook::TRACE_FIB_LOOKUP)
                && !matches!(open.kind, PacketKind::Syn | PacketKind::SynAck) =>
        {
            notes.push("cached route".to_owned());
        }
        StageId::LinkHeader | StageId::NodeLinkHeader if next.is_some_and(|n| n.event.hook == Hook::TRACE_DEV_QUEUE) => {
            notes.push("cached neighbour".to_owned());
        }
        StageId::SendStackDone | StageId::NodeQueue if next.is_some_and(|n| n.event.hook == Hook::TRACE_DEV_XMIT) => {
            // An empty queue may be passed by (TCQ_F_CAN_BYPASS).
            notes.push(match here.qdisc.as_deref() {
                None | Some("noqueue" | "") => "noqueue".to_owned(),
                Some(other) => format!("{other}, not queued"),
            });
        }
        StageId::Qdisc | StageId::NodeQdisc => notes.push(format!("queue length {}", here.event.arg)),
        StageId::RouteOut | StageId::NodeRoute if here.event.hook == Hook::TRACE_FIB_LOOKUP && here.event.arg != 0 => {
            notes.push(format!("table {}", table_name(here.event.arg)));
        }
        _ => {}
    }
    if let Some(before) = i.checked_sub(1).map(|b| &placed[b])
        && before.event.offsets.is_some()
        && here.event.offsets.is_some()
    {
        let (was, is) = (before.event.segments.max(1), here.event.segments.max(1));
        let fragment = |s: &Event| s.has(trace_flag::TRACE_F_MORE_FRAGMENTS);
        if is_cut(before.event, here.event) {
            notes.push(if fragment(here.event) { "first fragment".to_owned() } else { format!("first of {was} segments") });
        } else if fragment(before.event) && !fragment(here.event) {
            notes.push("fragments put together".to_owned());
        } else if is > was && here.event.payload > before.event.payload {
            notes.push(format!("{is} segments merged"));
        }
    }
    notes
}

/// `ip rule`'s names of the routing tables that every kernel has.
fn table_name(table: u32) -> String {
    match table {
        253 => "default".to_owned(),
        254 => "main".to_owned(),
        255 => "local".to_owned(),
        n => n.to_string(),
    }
}

/// Who rewrote a packet: the netfilter hook whose rules ran between this event and the one before.
fn rewrite_note(
    placed: &[Placed<'_>],
    i: usize,
    pair: &Pair,
    protocol: Protocol,
    destination: bool,
    (before, after): (Flow, Flow),
) -> String {
    let here = placed[..i].iter().rev().filter(|p| p.event.netns == placed[i].event.netns);
    let by = here.filter_map(|p| rules_of(p.event.hook)).next().map_or("an unknown place", |(hook, _)| hook);
    let (what, from, to) = if destination { ("destination", before.to, after.to) } else { ("source", before.from, after.from) };
    let service = pair.service_at(before.to, protocol).filter(|_| destination).map(|s| format!(" (Service {s})"));
    let back = pair.service_at(after.from, protocol).filter(|_| !destination).map(|s| format!(" (Service {s})"));
    format!("{by} rewrote {what} {from} to {to}{}", service.or(back).unwrap_or_default())
}
