//! Markdown tables.

use std::fmt::Write;

/// A table under a heading.
#[derive(Debug, Clone, Default)]
pub struct Table {
    title: String,
    notes: Vec<String>,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new(title: &str, head: &[&str]) -> Self {
        Self { title: title.to_owned(), notes: Vec::new(), head: head.iter().map(|h| (*h).to_owned()).collect(), rows: Vec::new() }
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

/// `yes` or `no` beside what must be reached.
#[must_use]
pub fn reached(value: f64, least: f64) -> String {
    if value.is_nan() {
        return format!(">= {least}: -");
    }
    format!(">= {least}: {}", if value >= least { "yes" } else { "**no**" })
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
        assert_eq!(reached(2.0, 2.0), ">= 2: yes");
        assert_eq!(reached(f64::NAN, 2.0), ">= 2: -");
    }
}
