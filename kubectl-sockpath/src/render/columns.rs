//! Connections as rows that fit a terminal: columns that say less go first, then reasons become numbers, then names are cut.

use sockpath_protocol::accel::Pair;
use sockpath_protocol::text::{columns as width_of, field_within};

use super::connection::{bytes, client, server, shown_state, turnaround, why};
use super::shorten;
use super::table::LONGEST_CELL;
use crate::terminal::Style;

/// Spaces between two columns.
const GAP: usize = 2;

/// Names are cut to this many columns of the terminal where there is no room for more.
const LEAST_NAME: usize = 14;

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Node,
    Client,
    Server,
    Via,
    State,
    Bypassed,
    Messages,
    Turnaround,
    Why,
}

impl Column {
    fn head(self) -> &'static str {
        match self {
            Self::Node => "NODE",
            Self::Client => "CLIENT",
            Self::Server => "SERVER",
            Self::Via => "VIA",
            Self::State => "STATE",
            Self::Bypassed => "BYPASSED",
            Self::Messages => "MESSAGES",
            Self::Turnaround => "TURNAROUND",
            Self::Why => "WHY",
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Self::Bypassed | Self::Messages)
    }
}

/// Lines of a table, the first its head, and what its marks mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lines {
    pub rows: Vec<String>,
    pub legend: Vec<String>,
}

/// The rows as wide as the terminal at most, as far as that can be without cutting addresses. Nodes are shown where there are `several`.
pub(super) fn fit(pairs: &[(&str, &Pair)], several: bool, style: &Style) -> Lines {
    let Style { width, unicode, .. } = *style;
    let mut columns = vec![Column::Client, Column::Server, Column::Via, Column::State, Column::Bypassed];
    columns.extend([Column::Messages, Column::Turnaround, Column::Why]);
    if several {
        columns.insert(0, Column::Node);
    }
    let mut table = Cells::of(pairs, &columns, style);
    let mut legend = Vec::new();
    if table.width() > width {
        table.drop_column(Column::Messages);
    }
    if table.width() > width {
        legend = table.number_reasons();
    }
    if table.width() > width {
        table.drop_column(Column::Turnaround);
    }
    if table.width() > width && table.mark_services() {
        legend.push("* dialled through a Service".to_owned());
    }
    if table.width() > width {
        table.cut_names(width, unicode);
    }
    for column in [Column::Bypassed, Column::Via, Column::Node] {
        if table.width() > width {
            table.drop_column(column);
        }
    }
    if table.width() > width {
        table.cut_names(width, unicode);
    }
    Lines { rows: table.lines(), legend }
}

/// The text of every cell, harmless and of bounded length.
struct Cells {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Cells {
    fn of(pairs: &[(&str, &Pair)], columns: &[Column], style: &Style) -> Self {
        let text = |node: &str, pair: &Pair, column: Column| match column {
            Column::Node => node.to_owned(),
            Column::Client => client(pair),
            Column::Server => server(pair),
            Column::Via => pair.via.text().to_owned(),
            Column::State => shown_state(pair).to_owned(),
            Column::Bypassed => bytes(pair.bypassed_bytes),
            Column::Messages => pair.bypassed_messages.to_string(),
            Column::Turnaround => turnaround(pair),
            Column::Why => why(pair),
        };
        let cell =
            |node: &str, pair: &Pair, column: Column| style.shown(&field_within(&text(node, pair, column), LONGEST_CELL)).into_owned();
        let rows = pairs.iter().map(|(node, pair)| columns.iter().map(|c| cell(node, pair, *c)).collect()).collect();
        Self { columns: columns.to_vec(), rows }
    }

    fn widths(&self) -> Vec<usize> {
        let of_column = |i: usize, column: &Column| {
            let longest = self.rows.iter().map(|row| width_of(&row[i])).max().unwrap_or(0);
            longest.max(column.head().len())
        };
        self.columns.iter().enumerate().map(|(i, c)| of_column(i, c)).collect()
    }

    fn width(&self) -> usize {
        let widths = self.widths();
        widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
    }

    fn index(&self, column: Column) -> Option<usize> {
        self.columns.iter().position(|c| *c == column)
    }

    fn drop_column(&mut self, column: Column) {
        let Some(index) = self.index(column) else { return };
        self.columns.remove(index);
        for row in &mut self.rows {
            row.remove(index);
        }
    }

    /// Has each reason be a number; what they mean.
    fn number_reasons(&mut self) -> Vec<String> {
        let Some(index) = self.index(Column::Why) else { return Vec::new() };
        let mut reasons: Vec<String> = Vec::new();
        for row in &mut self.rows {
            // With how often, a reason would be another one in every row.
            let reason = row[index].rsplit_once(" (").map_or(row[index].as_str(), |(reason, _)| reason).to_owned();
            if reason.is_empty() {
                continue;
            }
            let number = reasons.iter().position(|r| *r == reason).unwrap_or_else(|| {
                reasons.push(reason);
                reasons.len() - 1
            });
            row[index] = format!("[{}]", number + 1);
        }
        reasons.iter().enumerate().map(|(i, reason)| format!("[{}] {reason}", i + 1)).collect()
    }

    /// Has a star stand for the Service's address; whether there is one.
    fn mark_services(&mut self) -> bool {
        let Some(index) = self.index(Column::Server) else { return false };
        let mut marked = false;
        for row in &mut self.rows {
            if let Some((server, _)) = row[index].split_once(" via ") {
                row[index] = format!("{server}*");
                marked = true;
            }
        }
        marked
    }

    /// Cuts the names of clients and servers as far as it takes.
    fn cut_names(&mut self, width: usize, unicode: bool) {
        let names: Vec<usize> = [Column::Client, Column::Server].into_iter().filter_map(|c| self.index(c)).collect();
        let widths = self.widths();
        let others = self.width() - names.iter().map(|i| widths[*i]).sum::<usize>();
        let room = width.saturating_sub(others);
        // The shorter column keeps what it needs, if that is less than its half.
        let (short, long) = if widths[names[0]] <= widths[names[1]] { (names[0], names[1]) } else { (names[1], names[0]) };
        let for_short = widths[short].min(room / 2).max(LEAST_NAME);
        let for_long = room.saturating_sub(for_short).max(LEAST_NAME);
        for (index, width) in [(short, for_short), (long, for_long)] {
            let cells: Vec<String> = self.rows.iter().map(|row| row[index].clone()).collect();
            for (row, name) in self.rows.iter_mut().zip(shorten::all(&cells, width, unicode)) {
                row[index] = name;
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let widths = self.widths();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let padded = cells.zip(&self.columns).zip(&widths).map(|((cell, column), width)| {
                let space = " ".repeat(width.saturating_sub(width_of(cell)));
                if column.is_number() { space + cell } else { cell.to_owned() + &space }
            });
            padded.collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end().to_owned()
        };
        let head = line(&mut self.columns.iter().map(|c| c.head()));
        std::iter::once(head).chain(self.rows.iter().map(|row| line(&mut row.iter().map(String::as_str)))).collect()
    }
}
