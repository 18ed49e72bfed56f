//! What the short path gains, beside the whole stack: on one node, through a Service, and between nodes by routes and by VXLAN.

use anyhow::Result;
use sockpath_protocol::accel::Via;
use sockpath_protocol::lab::Overlay;

use super::accel::{accelerated_with, size_name};
use super::environment::{Cpus, Environment, Route};
use super::measure::{Case, Column, Effort};
use super::peer::Load;
use super::table::{Table, reached};
use crate::torture::accelerator::Choice;

const KIB: usize = 1 << 10;

/// A row: what is run, and the least ratio to the stack.
struct Row {
    case: Case,
    route: Route,
    least: f64,
    stack: Column,
    short: Column,
}

impl Row {
    fn new(route: Route, load: Load, size: usize, cpus: Cpus, least: f64) -> Self {
        Self { case: Case { load, size, cpus }, route, least, stack: Column::default(), short: Column::default() }
    }

    fn cells(&self, place: &str) -> Vec<String> {
        let gain = self.short.rates().over(&self.stack.rates());
        let load = match self.case.load {
            Load::RequestResponse => "request-response",
            Load::Blocking => "request-response, readers block in recv",
            Load::Stream => "stream",
            Load::Connect => "connect-request-close",
            Load::Datagrams => "UDP request-response",
        };
        let service = if self.route == Route::Service { ", through the Service" } else { "" };
        let rate = |c: &Column| match self.case.load {
            Load::Stream => format!("{} Gbit/s", c.gbit()),
            _ => format!("{:.0} /s", c.rates()),
        };
        let cpu = |c: &Column| format!("{:.1}", c.cpu_us());
        vec![
            format!("{place}{service}: {load} {}, {}", size_name(self.case.size), self.case.cpus.text()),
            rate(&self.stack),
            rate(&self.short),
            gain.to_string(),
            reached(gain.median(), self.least),
            cpu(&self.stack),
            cpu(&self.short),
        ]
    }
}

/// The rows of one node: docs/benchmarks.md has the same numbers.
fn on_one_node() -> Vec<Row> {
    use Cpus::{One, Two};
    use Load::{Blocking, Connect, Datagrams, RequestResponse, Stream};
    use Route::{Direct, Service};
    let mut rows = vec![
        Row::new(Direct, RequestResponse, 64, One, 1.25),
        Row::new(Direct, RequestResponse, KIB, One, 1.25),
        Row::new(Direct, RequestResponse, 16 * KIB, One, 1.35),
        Row::new(Service, RequestResponse, 64, One, 1.25),
        Row::new(Direct, Blocking, 64, One, 1.25),
        Row::new(Direct, RequestResponse, 64, Two, 1.1),
        Row::new(Direct, RequestResponse, 16 * KIB, Two, 1.1),
        Row::new(Direct, Datagrams, 64, One, 1.2),
        Row::new(Direct, Connect, 64, One, 0.98),
    ];
    for (cpus, least) in [(One, 1.05), (Two, 0.98)] {
        rows.extend([4 * KIB, 16 * KIB, 64 * KIB, KIB * KIB].map(|size| Row::new(Direct, Stream, size, cpus, least)));
    }
    rows
}

/// The rows between two nodes: request-response of 64 B and 16 KiB, streams of 4 KiB and 64 KiB.
fn between_nodes(least: [f64; 4]) -> Vec<Row> {
    use Load::{RequestResponse, Stream};
    let [small, large, short_writes, long_writes] = least;
    let row = |load, size, least| Row::new(Route::Remote, load, size, Cpus::One, least);
    vec![
        row(RequestResponse, 64, small),
        row(RequestResponse, 16 * KIB, large),
        row(Stream, 4 * KIB, short_writes),
        row(Stream, 64 * KIB, long_writes),
    ]
}

/// In each round every row of one kind of CPUs by the stack, then by the short path.
fn measure(environment: &Environment, rows: &mut [Row], effort: Effort) -> Result<()> {
    for cpus in [Cpus::One, Cpus::Two] {
        let mut rows: Vec<&mut Row> = rows.iter_mut().filter(|r| r.case.cpus == cpus).collect();
        for _ in 0..if rows.is_empty() { 0 } else { effort.repeats } {
            for row in &mut rows {
                row.stack.0.push(row.case.run(environment, row.route, effort.time)?);
            }
            let choice = Choice { via: Via::Short, ..Choice::default() };
            accelerated_with(environment, cpus, &choice, |_| {
                for row in &mut rows {
                    row.short.0.push(row.case.run(environment, row.route, effort.time)?);
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// The short path.
///
/// # Errors
/// When a peer or the helper fails.
pub fn short(environment: &Environment, effort: Effort) -> Result<Vec<Table>> {
    let head = ["what", "stack", "short path", "ratio", "goal", "client CPU us, stack", "short path"];
    let mut table = Table::new("The short path", &head);
    let mut rows = on_one_node();
    measure(environment, &mut rows, effort)?;
    rows.iter().for_each(|r| table.row(r.cells("same node")));
    let mut rows = between_nodes([1.45, 1.6, 1.0, 1.15]);
    measure(environment, &mut rows, effort)?;
    rows.iter().for_each(|r| table.row(r.cells("two nodes, routes")));
    let tunnelled = Environment::with_overlay(Overlay::Vxlan)?;
    let mut rows = between_nodes([1.35, 1.35, 1.1, 1.1]);
    measure(&tunnelled, &mut rows, effort)?;
    rows.iter().for_each(|r| table.row(r.cells("two nodes, VXLAN")));
    Ok(vec![table])
}
