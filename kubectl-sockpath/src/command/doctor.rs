//! `doctor`: one table of what was examined; each row that is not well ends in what to do.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use sockpath_protocol::message::{Check, CheckState};
use sockpath_protocol::{Message, Request};

use crate::backend::Backend;
use crate::cli::{self, Global, TableOutput};
use crate::exit::{Exit, Interrupted};
use crate::interrupt::Interrupt;
use crate::mode::Mode;
use crate::output::{self, Machine, Text};
use crate::platform;
use crate::progress::Progress;
use crate::render::table::Table;
use crate::session::{Event, Fleet, Kept};
use crate::terminal::{Paint, Style};

/// Rows of one node that are kept: it has some 40.
const ROWS_KEPT: usize = 1_000;

/// How long a node's checks may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Nodes that are named one by one.
const NODES_NAMED: usize = 3;

/// One row of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What was examined: `client`, `cluster`, or a node.
    pub scope: String,
    /// How it came out.
    #[serde(flatten)]
    pub check: Check,
}

#[derive(Serialize)]
struct Document<'a> {
    ok: bool,
    checks: &'a [Row],
}

/// Runs it.
///
/// # Errors
/// When the output cannot be written, or the user interrupts; what is wrong with client, cluster or nodes are rows.
pub async fn run(args: &cli::Doctor, global: &Global, progress: &Progress) -> Result<Exit> {
    let interrupt = Interrupt::watch()?;
    let mut rows = Vec::new();
    let backend = match Backend::connect(global, false).await {
        Ok(backend) => Some(backend),
        Err(e) => {
            rows.push(failed("client", if global.lab { "lab" } else { "kubeconfig" }, &e));
            None
        }
    };
    if let Some(backend) = &backend {
        let finished = tokio::select! {
            biased;
            () = interrupt.wait() => false,
            () = preflight(backend, progress, &mut rows) => true,
        };
        if !finished {
            return Err(Interrupted.into());
        }
    }
    progress.clear();
    if global.lab && !platform::is_root() {
        for row in rows.iter_mut().filter(|r| r.check.remedy.is_some() && r.check.name.starts_with("capability")) {
            row.check.remedy = Some("the lab's helper needs root: try it with sudo".to_owned());
        }
    }
    let ok = !rows.iter().any(|r| r.check.state == CheckState::Failed);
    match args.output {
        Some(TableOutput::Json) => output::emit(&Machine::document(&Document { ok, checks: &rows })?)?,
        None => output::print(&table(&rows, &Style::of_stdout(global.color)))?,
    }
    Ok(if ok { Exit::Done } else { Exit::Failed })
}

async fn preflight(backend: &Backend, progress: &Progress, rows: &mut Vec<Row>) {
    progress.phase("", "checking client and cluster");
    rows.extend(backend.preflight().await.into_iter().map(|(scope, check)| Row { scope, check }));
    if rows.iter().any(|r| r.check.state == CheckState::Failed) && matches!(backend, Backend::Cluster(_)) {
        // Without rights or namespace every node would only repeat the refusal.
        return;
    }
    // That nodes may not be listed is a row of its own.
    let nodes = match backend.all_nodes(true).await {
        Ok((nodes, left_out)) if nodes.is_empty() && left_out.is_some() => return,
        Ok((nodes, _)) => nodes,
        Err(e) => return rows.push(failed("cluster", "nodes", &e)),
    };
    match backend.expect(&nodes, Mode::Doctor, progress) {
        Ok(fleet) => rows.extend(ask(fleet).await),
        Err(e) => rows.push(failed("this machine", "helper", &e)),
    }
}

/// Asks all nodes at once: one that cannot run a helper must not hide what the others say.
async fn ask(mut fleet: Fleet) -> Vec<Row> {
    // A lab that is not up: its kernel is this one all the same.
    let scope = |name: String| if name.is_empty() { "this machine".to_owned() } else { format!("node {name}") };
    let mut nodes: Vec<(String, Kept<Row>)> = fleet.members().iter().map(|m| (scope(m.name()), Kept::of(ROWS_KEPT))).collect();
    fleet
        .ask_all(&Request::Doctor, PATIENCE, |index, event| {
            let Some((scope, rows)) = nodes.get_mut(index) else { return };
            match event {
                Event::Said(message) => match *message {
                    Message::Check(check) => rows.extend([Row { scope: scope.clone(), check }]),
                    Message::Canary(c) => rows.extend([Row { scope: scope.clone(), check: self_test_row(&c) }]),
                    Message::Error { text, .. } => rows.extend([failed(scope, "helper", &anyhow::anyhow!(text))]),
                    _ => {}
                },
                Event::Lost(e) => rows.extend([failed(scope, "helper", &e.into())]),
                Event::Joined(_) | Event::Ended(_) | Event::Disconnected(_) | Event::Reconnected(_) => {}
            }
        })
        .await;
    nodes.iter().flat_map(|(_, rows)| rows.to_vec()).collect()
}

fn self_test_row(test: &sockpath_protocol::accel::SelfTest) -> Check {
    let state = match (test.passed, test.corruption_risk) {
        (true, _) => CheckState::Ok,
        (false, false) => CheckState::Degraded,
        (false, true) => CheckState::Failed,
    };
    let remedy = match state {
        CheckState::Ok => None,
        CheckState::Degraded => Some("no action needed: such connections are excluded, others are accelerated".to_owned()),
        CheckState::Failed => Some("this kernel's sockmap fails this test: accelerate is refused on this node, trace works".to_owned()),
    };
    Check { name: format!("canary {}", test.name), state, found: test.detail.clone(), remedy }
}

fn failed(scope: &str, name: &str, error: &anyhow::Error) -> Row {
    let text = format!("{error:#}");
    let (found, remedy) = text.split_once('\n').map_or((text.clone(), None), |(found, rest)| (found.to_owned(), Some(rest.to_owned())));
    Row { scope: scope.to_owned(), check: Check { name: name.to_owned(), state: CheckState::Failed, found, remedy } }
}

/// Rows that several nodes have in common are one.
fn together(rows: &[Row]) -> Vec<Row> {
    let node = |row: &Row| row.scope.strip_prefix("node ").map(str::to_owned);
    let all: BTreeSet<String> = rows.iter().filter_map(node).collect();
    let mut merged: Vec<(Row, Vec<String>)> = Vec::new();
    for row in rows {
        let known = merged.iter_mut().find(|(first, nodes)| !nodes.is_empty() && first.check == row.check);
        match (known, node(row)) {
            (Some((_, nodes)), Some(name)) => nodes.push(name),
            (_, name) => merged.push((row.clone(), name.into_iter().collect())),
        }
    }
    let scope = |nodes: &[String]| match nodes {
        [one] => format!("node {one}"),
        several if several.len() == all.len() => format!("all {} nodes", all.len()),
        several if several.len() <= NODES_NAMED => format!("nodes {}", several.join(", ")),
        [first, ..] => format!("node {first} and {} more", nodes.len() - 1),
        [] => String::new(),
    };
    let finish = |(row, nodes): (Row, Vec<String>)| if nodes.is_empty() { row } else { Row { scope: scope(&nodes), ..row } };
    merged.into_iter().map(finish).collect()
}

fn table(rows: &[Row], style: &Style) -> Text {
    let rows = &together(rows);
    let mut table = Table::wide(style, &["WHERE", "WHAT", "STATE", "FOUND"]);
    for row in rows {
        let state = match row.check.state {
            CheckState::Ok => "ok",
            CheckState::Degraded => "less",
            CheckState::Failed => "FAILED",
        };
        table.row(None, None, [&row.scope, &row.check.name, state, &row.check.found]);
    }
    let mut out = Text::default();
    table.end(false, &mut out);
    // One remedy may serve several rows.
    let mut remedies: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for row in rows {
        let Some(remedy) = row.check.remedy.as_deref() else { continue };
        match remedies.iter_mut().find(|(scope, known, _)| (*scope, *known) == (row.scope.as_str(), remedy)) {
            Some((.., names)) => names.push(&row.check.name),
            None => remedies.push((&row.scope, remedy, vec![&row.check.name])),
        }
    }
    if !remedies.is_empty() {
        out.end_line();
        out.paint(style, Paint::Heading, "What to do");
        out.end_line();
        for (scope, remedy, names) in remedies {
            out.line(&format!("  {scope}, {}:", names.join(", ")));
            remedy.lines().for_each(|line| out.line(&format!("    {line}")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ColorChoice;

    #[test]
    fn equal_nodes_are_one_row() {
        let row = |node: &str, found: &str| Row {
            scope: node.to_owned(),
            check: Check { name: "kernel".into(), state: CheckState::Ok, found: found.into(), remedy: None },
        };
        let nodes = ["node n1", "node n2", "node n3", "node n4", "node n5"];
        let mut rows: Vec<Row> = nodes.iter().map(|n| row(n, "6.18")).collect();
        rows.push(row("client", "6.18"));
        rows.extend(nodes[..2].iter().map(|n| row(n, "cgroup v2")));
        rows.extend(nodes[..4].iter().map(|n| row(n, "BTF")));
        let shown: Vec<(String, String)> = together(&rows).into_iter().map(|r| (r.scope, r.check.found)).collect();
        let pair = |scope: &str, found: &str| (scope.to_owned(), found.to_owned());
        assert_eq!(
            shown,
            [pair("all 5 nodes", "6.18"), pair("client", "6.18"), pair("nodes n1, n2", "cgroup v2"), pair("node n1 and 3 more", "BTF")]
        );
    }

    #[test]
    fn rows_that_are_not_well_end_in_what_to_do() {
        let row = |state, remedy: Option<&str>| Row {
            scope: "node n1".into(),
            check: Check { name: "BTF".into(), state, found: "f".into(), remedy: remedy.map(str::to_owned) },
        };
        let style = Style::of_stdout(ColorChoice::Never);
        let text = table(&[row(CheckState::Ok, None), row(CheckState::Failed, Some("do\nthis"))], &style);
        assert!(text.contains("FAILED") && text.ends_with("  node n1, BTF:\n    do\n    this\n"), "{text}");
        assert!(!table(&[row(CheckState::Ok, None)], &style).contains("What to do"));
        let twice = table(&[row(CheckState::Failed, Some("do")), row(CheckState::Degraded, Some("do"))], &style);
        assert!(twice.ends_with("  node n1, BTF, BTF:\n    do\n"), "{twice}");
        assert_eq!(failed("client", "kubeconfig", &anyhow::anyhow!("a\nb")).check.remedy.as_deref(), Some("b"));
    }
}
