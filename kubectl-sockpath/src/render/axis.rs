//! Columns of the picture, its time axis and the bars on it.

use super::line::Line;
use crate::duration::nanos;
use crate::output::Text;
use crate::report::stage_row::StageRow;
use crate::report::times::Times;
use crate::terminal::{Paint, Style};

/// Columns of the step number.
pub(super) const STEP: usize = 4;
/// Columns of a time.
pub(super) const TIME: usize = 8;
/// Columns of a stage's name where there is room.
const NAME: usize = 26;
/// Fewest columns of the bars.
const BARS_MIN: usize = 8;
/// From this width on p99 has its own column.
const WIDE: usize = 100;

/// Where columns lie.
pub(super) struct Layout<'s> {
    pub(super) style: &'s Style,
    /// Columns of a stage's name.
    pub(super) name: usize,
    p99: bool,
    /// First column of the bars.
    pub(super) bars: usize,
    /// Columns of the bars.
    width: usize,
}

impl<'s> Layout<'s> {
    pub(super) fn new(style: &'s Style) -> Self {
        let p99 = style.width >= WIDE;
        let fixed = STEP + 1 + 1 + TIME + 1 + if p99 { TIME + 1 } else { 0 };
        let name = NAME.min(style.width.saturating_sub(fixed + BARS_MIN)).max(8);
        let bars = fixed + name;
        Self { style, name, p99, bars, width: style.width.saturating_sub(bars).max(1) }
    }

    pub(super) fn time_end(&self) -> usize {
        STEP + 1 + self.name + 1 + TIME
    }

    /// Adds a right-aligned time at its column, and p99 where there is a column for it.
    pub(super) fn times<'a>(&self, line: Line<'a>, paint: Option<Paint>, times: &Times) -> Line<'a> {
        let show = |t: Option<u64>| t.map_or_else(String::new, nanos);
        let put = |line: Line<'a>, end: usize, text: &str| {
            let line = line.to(end.saturating_sub(text.chars().count()));
            match paint {
                Some(p) => line.paint(p, text),
                None => line.text(text),
            }
        };
        let line = put(line, self.time_end(), &show(times.p50_ns));
        if self.p99 { put(line, self.time_end() + 1 + TIME, &show(times.p99_ns)) } else { line }
    }

    /// Adds a bar that begins at `start` of the drawn axis.
    pub(super) fn bar<'a>(&self, line: Line<'a>, waits: bool, start: u64, took: u64, axis: &Axis) -> Line<'a> {
        let (offset, text) = bar(self.style.unicode, waits, self.width, start, axis.drawn(took), axis.length());
        let line = line.to(self.bars + offset);
        let mut text: String = text.chars().take(line.room()).collect();
        if axis.is_broken() && took >= axis.limit {
            let middle = text.chars().count() / 2;
            let mark = if self.style.unicode { '≈' } else { '~' };
            text = text.chars().enumerate().map(|(i, c)| if i == middle { mark } else { c }).collect();
        }
        line.paint(if waits { Paint::Wait } else { Paint::Work }, &text)
    }
}

/// A bar's first column and its text. Every bar has at least one column, and none leaves the axis.
fn bar(unicode: bool, waits: bool, width: usize, start: u64, took: u64, scale: u64) -> (usize, String) {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let scale = u128::from(scale.max(1));
    let units = width as u128 * 8;
    let from = (u128::from(start) * units / scale).min(units - 1);
    let to = (u128::from(start.saturating_add(took)) * units).div_ceil(scale).clamp(from + 1, units);
    let (Ok(offset), Ok(length)) = (usize::try_from(from / 8), usize::try_from(to - from / 8 * 8)) else { return (0, String::new()) };
    let offset = offset.min(width - 1);
    // Blocks grow from the left, so a bar that begins inside a column begins at its left edge; lengths stay true to an eighth.
    let length = length.saturating_sub(usize::try_from(from % 8).unwrap_or(0)).clamp(1, (width - offset) * 8);
    let columns = length.div_ceil(8);
    let text = match (unicode, waits) {
        (true, true) => "░".repeat(columns),
        (true, false) => format!("{}{}", "█".repeat(length / 8), EIGHTHS[length % 8]),
        (false, true) => "-".repeat(columns),
        (false, false) => "#".repeat(columns),
    };
    (offset, text)
}

/// The time axis: as long as all known times. Where one stage takes most of it (a reader that sleeps), that one is drawn shortened
/// and marked, so that the others remain distinguishable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    total: u64,
    /// From this length on a stage is shortened to [`Axis::short`].
    pub(super) limit: u64,
    short: u64,
}

impl Axis {
    /// Of these stages' times.
    pub(super) fn of(times: &[u64]) -> Self {
        let total = times.iter().sum::<u64>().max(1);
        let longest = times.iter().copied().max().unwrap_or(0);
        let others = total - longest.min(total);
        // More than two thirds for one stage: it gets two fifths of the axis.
        if longest > total / 3 * 2 && others > 0 {
            Self { total, limit: longest, short: (others / 3 * 2).max(1) }
        } else {
            Self { total, limit: u64::MAX, short: 0 }
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.limit != u64::MAX
    }

    /// How long a stage is drawn.
    pub(super) fn drawn(&self, took: u64) -> u64 {
        if took >= self.limit { self.short } else { took }
    }

    /// How long the whole is drawn.
    fn length(&self) -> u64 {
        if self.is_broken() { self.total - self.limit + self.short } else { self.total }
    }
}

pub(super) fn known_times(stages: &[StageRow]) -> Vec<u64> {
    stages.iter().filter_map(|s| s.times.p50_ns).collect()
}

pub(super) fn axis_line(layout: &Layout<'_>, axis: &Axis, out: &mut Text) {
    let style = layout.style;
    let legend = match (style.unicode, axis.is_broken()) {
        (true, false) => "█ works ░ waits",
        (true, true) => "█ works ░ waits ≈ cut",
        (false, false) => "# works - waits",
        (false, true) => "# works - waits ~ cut",
    };
    let mut line = Line::new(style).to(STEP + 1).paint(Paint::Dim, &crate::terminal::fit(legend, layout.name, style.unicode));
    line = line.to(layout.time_end() - 3).paint(Paint::Dim, "p50");
    if layout.p99 {
        line = line.to(layout.time_end() + 1 + TIME - 3).paint(Paint::Dim, "p99");
    }
    let end = nanos(axis.total);
    let mut ticks = vec![(0, "0".to_owned())];
    let last = layout.width.saturating_sub(end.chars().count());
    if layout.width >= 24 && !axis.is_broken() {
        let half = nanos(axis.total / 2);
        let at = layout.width / 2;
        if at + half.chars().count() < last {
            ticks.push((at, half));
        }
    }
    if last > 1 {
        ticks.push((last, end));
    }
    for (at, text) in ticks {
        line = line.to(layout.bars + at).paint(Paint::Dim, &text);
    }
    line.end(out);
}
