//! `status` and `stop`: one question to every node.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use sockpath_protocol::accel::{AccelStatus, AccelSummary, PairsSnapshot, StopRequest};
use sockpath_protocol::{Message, Request};

use super::accelerate::request::{UNWATCHED, owner};
use crate::backend::Backend;
use crate::cli::{self, Global, StatusOutput};
use crate::duration::human;
use crate::exit::{Exit, Interrupted};
use crate::interrupt::Interrupt;
use crate::inventory::{Inventory, Scope};
use crate::mode::Mode;
use crate::output::{self, Machine, Text};
use crate::progress::Progress;
use crate::render::pairs::{self, NodePairs};
use crate::session::{Event, Kept, Member};
use crate::terminal::{Paint, Style};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Messages of one node that are kept: `stop` tells of each thing that was removed, a few dozen.
const MESSAGES_KEPT: usize = 1_000;

/// What one node answered.
#[derive(Debug)]
struct Answer {
    node: String,
    /// The names of the nodes of its helper: a lab has one helper for all.
    nodes: Vec<String>,
    messages: Kept<Message>,
    lost: Option<String>,
}

impl Answer {
    fn of(member: &Member) -> Self {
        Self { node: member.name(), nodes: member.nodes.clone(), messages: Kept::of(MESSAGES_KEPT), lost: None }
    }

    /// Whether the node could say what there is.
    fn is_whole(&self) -> bool {
        self.lost.is_none() && !self.messages.iter().any(|m| matches!(m, Message::Error { .. }))
    }
}

/// Asks every node and waits until all have answered and ended.
/// `each` gets a node's answer as soon as it is complete, without waiting for the slowest node.
async fn ask(
    global: &Global,
    progress: &Progress,
    (request, patience): (&Request, Duration),
    mut each: impl FnMut(&Answer) -> Result<()>,
) -> Result<(Backend, Vec<Answer>)> {
    let interrupt = Interrupt::watch()?;
    let asking = async {
        progress.phase("", "querying the nodes");
        let backend = Backend::connect(global, false).await?;
        let (nodes, left_out) = backend.all_nodes(false).await?;
        if let Some(text) = &left_out {
            progress.note(&format!("note: {text}"));
        }
        // A lab that is not up may have left something in the kernel all the same.
        if nodes.is_empty() && !global.lab {
            if left_out.is_none() {
                bail!("no node can run a helper");
            }
            return Ok((backend, Vec::new()));
        }
        let started = backend.helpers(&nodes, Mode::Accelerate, progress);
        // Helpers know sockets, and only the plugin may ask whose addresses they have.
        let (fleet, names) = tokio::join!(started, names_of(&backend, request));
        let mut fleet = fleet?;
        let mut answers: Vec<Answer> = fleet.members().iter().map(Answer::of).collect();
        let mut shown = Ok(());
        fleet
            .ask_all(request, patience, |helper, event| {
                let Some(answer) = answers.get_mut(helper) else { return };
                match event {
                    Event::Joined(_) | Event::Disconnected(_) | Event::Reconnected(_) => return,
                    Event::Said(mut message) => {
                        if let Message::Status(status) = &mut *message {
                            name_pods(&mut status.pairs, &names);
                        }
                        answer.messages.push(*message);
                        return;
                    }
                    Event::Ended(_) => {}
                    Event::Lost(e) => answer.lost = Some(e.on(&answer.node)),
                }
                if shown.is_ok() {
                    shown = progress.suspended(|| each(answer));
                }
            })
            .await;
        shown?;
        Ok((backend, answers))
    };
    let answers = tokio::select! {
        biased;
        () = interrupt.wait() => Err(Interrupted.into()),
        answers = asking => answers,
    };
    progress.clear();
    answers
}

/// The pods of all addresses, if requested and as far as the user may list pods.
async fn names_of(backend: &Backend, request: &Request) -> HashMap<IpAddr, String> {
    if !matches!((backend, request), (Backend::Cluster(_), Request::Status)) {
        return HashMap::new();
    }
    let own = || Scope { namespace: Some(backend.namespace().to_owned()), selector: None };
    let pods = match backend.pods(&Scope::default()).await {
        Ok(pods) => pods,
        Err(_) => backend.pods(&own()).await.unwrap_or_default(),
    };
    let alone = pods.into_iter().map(|p| p.pod).filter(|pod| !pod.host_network);
    alone.flat_map(|pod| pod.ips.iter().map(|ip| (*ip, format!("{}/{}", pod.namespace, pod.name))).collect::<Vec<_>>()).collect()
}

/// Names the pods of pairs by their addresses, where the helper does not know them.
fn name_pods(pairs: &mut PairsSnapshot, names: &HashMap<IpAddr, String>) {
    for pair in &mut pairs.pairs {
        let at = |ip: IpAddr| names.get(&ip.to_canonical()).cloned();
        pair.client_pod = pair.client_pod.take().or_else(|| at(pair.client.ip()));
        pair.server_pod = pair.server_pod.take().or_else(|| at(pair.server?.ip()));
    }
}

/// Warnings to stderr, errors to the caller.
fn complaints(answers: &[Answer]) -> Result<()> {
    let mut errors = Vec::new();
    for answer in answers {
        for message in answer.messages.iter() {
            match message {
                Message::Warning { text } => {
                    output::say(&format!("warning: {}: {text}", answer.node));
                }
                Message::Error { text, .. } => errors.push(format!("{}: {text}", answer.node)),
                _ => {}
            }
        }
        if answer.messages.more() > 0 {
            let text = format!("{} more messages; {MESSAGES_KEPT} are shown", answer.messages.more());
            output::say(&format!("warning: {}: {text}", answer.node));
        }
        if let Some(text) = &answer.lost {
            errors.push(text.clone());
        }
    }
    if errors.is_empty() { Ok(()) } else { bail!("{}", errors.join("\n")) }
}

#[derive(Serialize)]
struct NodeStatus<'a> {
    node: &'a str,
    #[serde(flatten)]
    status: &'a AccelStatus,
}

fn statuses_of(answer: &Answer) -> impl Iterator<Item = NodeStatus<'_>> {
    answer.messages.iter().filter_map(|m| match m {
        Message::Status(status) => Some(NodeStatus { node: &answer.node, status }),
        _ => None,
    })
}

/// `status`.
pub async fn status(args: &cli::Status, global: &Global, progress: &Progress) -> Result<Exit> {
    let style = Style::of_stdout(global.color).for_table(args.output == Some(StatusOutput::Wide));
    let show = |answer: &Answer| match args.output {
        Some(StatusOutput::Json) => Ok(()),
        Some(StatusOutput::Name) => {
            let nodes = statuses_of(answer).filter(|s| is_accelerating(s.status)).flat_map(|_| &answer.nodes);
            nodes.into_iter().try_for_each(|node| output::print(&Text::of_line(&format!("node/{node}"))))
        }
        None | Some(StatusOutput::Wide) => statuses_of(answer).try_for_each(|s| output::print(&status_text(s.node, s.status, &style))),
    };
    let (backend, answers) = ask(global, progress, (&Request::Status, PATIENCE), show).await?;
    let statuses: Vec<NodeStatus<'_>> = answers.iter().flat_map(statuses_of).collect();
    // The lab's pods stay as they are, and it has no policies.
    let note = (matches!(backend, Backend::Cluster(_)) && statuses.iter().any(|s| goes_on_alone(s.status))).then_some(UNWATCHED);
    match args.output {
        Some(StatusOutput::Json) => {
            let active = statuses.iter().any(|s| s.status.active);
            output::emit(&Machine::document(&serde_json::json!({ "active": active, "note": note, "nodes": statuses }))?)?;
        }
        Some(StatusOutput::Name) => {}
        None | Some(StatusOutput::Wide) => {
            if let Some(note) = note {
                output::print(&Text::of_line(&format!("note: {note}")))?;
            } else if answers.is_empty() {
                output::print(&Text::constant("nothing is accelerated\n"))?;
            }
        }
    }
    complaints(&answers)?;
    Ok(Exit::Done)
}

/// Whether connections may be accelerated there now: it has not expired and is not a remainder.
fn is_accelerating(status: &AccelStatus) -> bool {
    status.active && status.lease_left_ms > 0
}

/// Whether it was detached and has not ended.
fn goes_on_alone(status: &AccelStatus) -> bool {
    is_accelerating(status) && status.detached && !status.helper_gone
}

/// One node's state as text.
fn status_text(node: &str, status: &AccelStatus, style: &Style) -> Text {
    let head = match (status.active, status.owner.as_deref(), status.lease_left_ms) {
        (false, ..) => return Text::of_line(&format!("{node}: nothing is accelerated")),
        (true, Some(owner), 0) => {
            format!("{node}: remains from {owner}, the lease has expired: connections use TCP, `stop` removes the rest")
        }
        (true, Some(owner), left) if status.helper_gone => {
            let left = human(Duration::from_secs(left.div_ceil(1000)));
            format!(
                "{node}: the helper that accelerated for {owner} is gone: connections return to TCP within {left}, `stop` removes the rest"
            )
        }
        (true, Some(owner), left) => {
            let detached = if status.detached { ", detached" } else { "" };
            format!("{node}: accelerated by {owner}{detached}, lease {}", human(Duration::from_secs(left.div_ceil(1000))))
        }
        (true, None, _) => format!("{node}: resources without an owner, `stop` or `cleanup` removes them"),
    };
    let pairs = [NodePairs { node: node.to_owned(), snapshot: status.pairs.clone() }];
    let mut text = Text::default();
    text.paint(style, Paint::Heading, &head);
    text.end_line();
    text.append(&pairs::table(&pairs, style, usize::MAX));
    text
}

#[derive(Serialize)]
struct NodeStop<'a> {
    node: &'a str,
    summary: Option<&'a AccelSummary>,
    removed: Vec<&'a str>,
}

/// `stop`.
pub async fn stop(args: &cli::Stop, global: &Global, progress: &Progress) -> Result<Exit> {
    let style = Style::of_stdout(global.color);
    let request = Request::Stop(StopRequest { drain_ms: u64::try_from(args.drain.as_millis()).unwrap_or(u64::MAX), by: owner() });
    let (backend, answers) = ask(global, progress, (&request, args.drain + PATIENCE), |_| Ok(())).await?;
    let mut stops = Vec::new();
    for answer in &answers {
        let mut stop = NodeStop { node: &answer.node, summary: None, removed: Vec::new() };
        for message in answer.messages.iter() {
            match message {
                Message::Summary(summary) => stop.summary = Some(summary),
                Message::Removed { what } => stop.removed.push(what),
                _ => {}
            }
        }
        stops.push(stop);
    }
    // Where sockets are left, or it is not known whether, the pod goes on until its lease ends.
    let has_ended = |(s, answer): &(&NodeStop<'_>, &Answer)| answer.is_whole() && s.summary.is_none_or(|s| s.left_enrolled == 0);
    let ended: Vec<String> = stops.iter().zip(&answers).filter(has_ended).map(|(s, _)| s.node.to_owned()).collect();
    let pods = backend.remove_detached(&ended).await?;
    if args.output.is_some() {
        output::emit(&Machine::document(&serde_json::json!({ "nodes": stops, "removed": pods }))?)?;
    } else {
        output::print(&stop_text(&stops, &pods, answers.iter().all(Answer::is_whole), &style))?;
    }
    complaints(&answers)?;
    Ok(Exit::Done)
}

/// What was stopped and removed as text; `answered` says whether every node could tell.
fn stop_text(stops: &[NodeStop<'_>], pods: &[String], answered: bool, style: &Style) -> Text {
    let mut text = Text::default();
    let summaries: Vec<AccelSummary> = stops.iter().filter_map(|s| s.summary.cloned()).collect();
    if !summaries.is_empty() {
        text.append(&pairs::summary(&summaries, style));
    }
    for stop in stops {
        stop.removed.iter().for_each(|what| text.line(&format!("{}: removed {what}", stop.node)));
    }
    pods.iter().for_each(|what| text.line(&format!("removed {what}")));
    if text.is_empty() && answered {
        text.line("nothing was accelerated");
    }
    text
}
