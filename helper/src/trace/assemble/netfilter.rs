//! What a packet's events say about netfilter: which hook it was in, and what its rules saw.

use sockpath_bpf::trace::types::trace_flag;
use sockpath_protocol::packet::{ConnectionState, RuleFacts};
use sockpath_protocol::request::Protocol;
use sockpath_ruleset::{Engine, Hook as At};

use super::open::Open;
use crate::trace::event::{Event, Facts, rules_of};
use crate::trace::places::Places;
use crate::trace::rules::{DropQuestion, ElsewhereQuestion, PacketFacts, Question, What};

/// A netfilter hook by the name that events have for it.
pub fn hook_named(name: &str) -> Option<At> {
    Some(match name {
        "PRE_ROUTING" => At::PreRouting,
        "LOCAL_IN" => At::LocalIn,
        "FORWARD" => At::Forward,
        "LOCAL_OUT" => At::LocalOut,
        "POST_ROUTING" => At::PostRouting,
        _ => return None,
    })
}

/// Indexes of the devices a hook knows, in and out: unknown, none (0), or one.
fn devices(event: &Event, at: At) -> (Option<u32>, Option<u32>) {
    // Only netfilter links note the second one.
    let second = event.attach.is_none().then_some(event.arg);
    match at {
        At::PreRouting | At::LocalIn => (Some(event.ifindex), Some(0)),
        At::Forward => (Some(event.ifindex), second),
        At::LocalOut => (Some(0), Some(event.ifindex)),
        At::PostRouting => (second, Some(event.ifindex)),
    }
}

/// What the rules of a hook see of a packet besides its headers.
pub fn rule_facts(event: &Event, places: &mut Places) -> Option<RuleFacts> {
    let (at, facts) = (hook_named(rules_of(event.hook)?.0)?, event.facts?);
    let (input, output) = devices(event, at);
    let mut name = |index: Option<u32>| places.device(event.netns, index.unwrap_or(0)).map(|d| d.name.clone());
    Some(RuleFacts {
        connection: state(&facts),
        reply: facts.connection.is_some_and(|c| c.is_reply()),
        mark: facts.mark,
        connection_mark: facts.connection.map_or(0, |c| c.mark),
        input: name(input),
        output: name(output),
        tcp_flags: (event.protocol == Some(Protocol::Tcp)).then_some(event.kind),
    })
}

fn state(facts: &Facts) -> ConnectionState {
    match facts.connection {
        // `enum ip_conntrack_info`; replies have the same in the same order.
        Some(c) => [ConnectionState::Established, ConnectionState::Related, ConnectionState::New][usize::from(c.info % 3)],
        None if facts.untracked => ConnectionState::Untracked,
        None => ConnectionState::None,
    }
}

/// About a drop between the hooks of IP: rules of the families bridge and netdev have hooks of their own.
fn elsewhere(open: &Open, drop: &Event) -> Option<Question> {
    if drop.has(trace_flag::TRACE_F_TUNNEL) {
        return None;
    }
    let facts = PacketFacts { flow: drop.flow, kind: drop.kind, length: open.events.last().map(|s| s.len), facts: drop.facts };
    let what = What::Elsewhere(ElsewhereQuestion { protocol: drop.protocol?, dropped: facts });
    Some(Question { netns: drop.netns, at: drop.at, what })
}

/// What to ask the rules about a packet that netfilter dropped.
pub fn drop_question(open: &Open, drop: &Event, engine: Option<Engine>, places: &mut Places) -> Option<Question> {
    let before = |s: &&Event| s.netns == drop.netns && s.at <= drop.at;
    let Some(last) = open.events.iter().filter(before).filter(|s| rules_of(s.hook).is_some()).max_by_key(|s| s.at) else {
        return elsewhere(open, drop);
    };
    let (name, is_first) = rules_of(last.hook)?;
    let hook = hook_named(name)?;
    let behind_rules = !is_first;
    let is_last_hook = matches!(hook, At::LocalIn | At::PostRouting) && engine != Some(Engine::Nftables);
    if behind_rules && !is_last_hook {
        return elsewhere(open, drop);
    }
    let entered = open.events.iter().filter(before).filter(|s| rules_of(s.hook) == Some((name, true))).max_by_key(|s| s.at).unwrap_or(last);
    // The rules see the tunnel's packet, whose headers are not known here.
    if [entered, last, drop].iter().any(|s| s.has(trace_flag::TRACE_F_TUNNEL)) {
        return None;
    }
    let (input, output) = devices(last, hook);
    let device = |index: Option<u32>, places: &mut Places| match index? {
        0 => Some(None),
        index => Some(Some((index, places.device(drop.netns, index).map(|d| d.name.clone())))),
    };
    let (input, output) = (device(input, places), device(output, places));
    // Where the hook did not record it, the drop shows what came in: the conntrack lookup comes earlier.
    let asked_earlier = !matches!(hook, At::PreRouting | At::LocalOut);
    let facts = |event: &Event, other: Option<Facts>| PacketFacts {
        flow: event.flow,
        kind: event.kind,
        length: Some(last.len),
        facts: event.facts.or(other),
    };
    Some(Question {
        netns: drop.netns,
        at: drop.at,
        what: What::Drop(DropQuestion {
            protocol: drop.protocol?,
            hook,
            behind_rules,
            entered: facts(entered, drop.facts.filter(|_| asked_earlier)),
            dropped: facts(drop, None),
            input,
            output,
            engine,
        }),
    })
}
