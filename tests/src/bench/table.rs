//! Markdown tables.

use std::fmt::Write;

/// A table under a heading.
#[derive(Debug, Clone, Default)]
pub struct Table {
    title: String,
    notes: Vec<String>,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    unmeasured: Vec<String>,
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new(title: &str, head: &[&str]) -> Self {
        Self { title: title.to_owned(), head: head.iter().map(|h| (*h).to_owned()).collect(), ..Self::default() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        eprintln!("  {}", cells.join(" | "));
        self.rows.push(cells);
    }

    /// Adds a line below the table.
    pub fn note(&mut self, text: String) {
        eprintln!("  {text}");
        self.notes.push(text);
    }

    /// The goals that are missed, in words: table, row, column before the goal, goal.
    #[must_use]
    pub fn missed(&self) -> Vec<String> {
        let mut missed = self.unmeasured.clone();
        for row in &self.rows {
            for (n, cell) in row.iter().enumerate().skip(1) {
                if MISSED.iter().any(|end| cell.ends_with(end)) {
                    let column = self.head.get(n - 1).map_or("", String::as_str);
                    missed.push(format!("{}: {}: {column} {}, goal {cell}", self.title, row[0], row[n - 1]));
                }
            }
        }
        missed
    }

    /// Adds a line below the table about rows with goals that could not be measured, which are missed goals.
    pub fn unmeasured(&mut self, text: String) {
        self.unmeasured.push(format!("{}: {text}", self.title));
        self.note(text);
    }

    /// The table as markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let mut line = |cells: &[String]| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        };
        if !self.rows.is_empty() {
            line(&self.head);
            line(&vec!["---".to_owned(); self.head.len()]);
            for row in &self.rows {
                line(row);
            }
        }
        let notes: String = self.notes.iter().map(|n| format!("\n{n}\n")).collect();
        format!("\n## {}\n\n{out}{notes}", self.title)
    }
}

/// What a cell with a goal ends with where the goal is missed, and where nothing was measured.
const MISSED: [&str; 2] = [": **no**", ": -"];

/// A goal, and whether it is reached: `< 2 s: yes`.
#[must_use]
pub fn goal(what: &str, is_reached: bool) -> String {
    if is_reached { format!("{what}: yes") } else { format!("{what}{}", MISSED[0]) }
}

/// A least value as a goal; `-` where the value is none.
#[must_use]
pub fn reached(value: f64, least: f64) -> String {
    let what = format!(">= {least}");
    if value.is_nan() { format!("{what}{}", MISSED[1]) } else { goal(&what, value >= least) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_markdown() {
        let mut t = Table::new("Title", &["a", "b"]);
        t.row(vec!["1".to_owned(), "2".to_owned()]);
        t.note("why".to_owned());
        assert_eq!(t.markdown(), "\n## Title\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\nwhy\n");
        assert_eq!(t.missed(), Vec::<String>::new());
    }

    #[test]
    fn missed_goals_are_listed() {
        assert_eq!([reached(2.0, 2.0), reached(1.9, 2.0), reached(f64::NAN, 2.0)], [">= 2: yes", ">= 2: **no**", ">= 2: -"]);
        let mut t = Table::new("Rates", &["what", "ratio", "goal", "time", "goal"]);
        let row = |what: &str, ratio: f64, time: f64| {
            vec![what.to_owned(), ratio.to_string(), reached(ratio, 2.0), format!("{time} s"), goal("< 3 s", time < 3.0)]
        };
        t.row(row("fast", 2.5, 1.0));
        t.row(row("slow", 1.5, 1.0));
        t.row(row("late", f64::NAN, 4.0));
        t.row(vec!["no goal".to_owned(), "1".to_owned(), "-".to_owned()]);
        t.unmeasured("wrk was not measured".to_owned());
        let missed = [
            "Rates: wrk was not measured",
            "Rates: slow: ratio 1.5, goal >= 2: **no**",
            "Rates: late: ratio NaN, goal >= 2: -",
            "Rates: late: time 4 s, goal < 3 s: **no**",
        ];
        assert_eq!(t.missed(), missed);
    }
}
