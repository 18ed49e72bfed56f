use std::io;

use indicatif::TermLike;

use super::*;

const WIDTH: u16 = 40;

/// A terminal as indicatif sees one.
#[derive(Debug, Clone, Default)]
struct Screen(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    rows: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Shown {
    fn put(&mut self, text: &str) {
        for c in text.chars() {
            if c == '\n' || self.column == usize::from(WIDTH) {
                (self.row, self.column) = (self.row + 1, 0);
            }
            match c {
                '\n' => {}
                '\r' => self.column = 0,
                c => {
                    let row = self.row_mut();
                    *row = c;
                    self.column += 1;
                }
            }
        }
    }

    fn row_mut(&mut self) -> &mut char {
        if self.rows.len() <= self.row {
            self.rows.resize(self.row + 1, Vec::new());
        }
        let row = &mut self.rows[self.row];
        if row.len() <= self.column {
            row.resize(self.column + 1, ' ');
        }
        &mut row[self.column]
    }
}

impl Screen {
    fn with<T>(&self, act: impl FnOnce(&mut Shown) -> T) -> io::Result<T> {
        Ok(act(&mut self.0.lock().unwrap()))
    }

    /// The rows that hold something, without the spinners.
    fn text(&self) -> Vec<String> {
        let shown = self.0.lock().unwrap();
        let rows = shown.rows.iter().map(|row| row.iter().collect::<String>());
        rows.filter(|row| !row.trim().is_empty()).map(|row| row.chars().skip(2).collect::<String>().trim_end().to_owned()).collect()
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        WIDTH
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.with(|s| s.row = s.row.saturating_sub(n))
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.with(|s| s.row += n)
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.with(|s| s.column += n)
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.with(|s| s.column = s.column.saturating_sub(n))
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.with(|s| {
            s.put(text);
            s.put("\n");
        })
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.with(|s| s.put(text))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.with(|s| {
            s.column = 0;
            if let Some(row) = s.rows.get_mut(s.row) {
                row.clear();
            }
        })
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Frames are drawn by threads of their own, at most twenty times a second.
#[track_caller]
fn shows(screen: &Screen, rows: &[&str]) {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while screen.text() != rows {
        assert!(std::time::Instant::now() < until, "{:?} is not {rows:?}", screen.text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn each_node_has_a_line_that_names_its_phase() {
    let screen = Screen::default();
    let progress = Progress::on(ProgressDrawTarget::term_like(Box::new(screen.clone())), 0);
    assert!(progress.is_live());
    progress.phase("", "looking up names");
    shows(&screen, &["looking up names"]);
    progress.phase("n2", "creating the helper pod");
    progress.phase("n1", "creating the helper pod");
    shows(&screen, &["n1: creating the helper pod", "n2: creating the helper pod"]);
    progress.phase("n1", "pulling the image again after: failed to pull and unpack");
    shows(&screen, &["n1: pulling the image again after: fai", "n2: creating the helper pod"]);
    progress.done("n1");
    shows(&screen, &["n2: creating the helper pod"]);
    progress.done("n2");
    shows(&screen, &[]);
    progress.phase("", "attaching hooks");
    shows(&screen, &["attaching hooks"]);
    progress.clear();
    shows(&screen, &[]);
}

#[test]
fn where_there_is_no_terminal_nothing_is_drawn() {
    let progress = Progress::on(ProgressDrawTarget::hidden(), 0);
    progress.phase("n1", "creating the helper pod");
    assert!(!progress.is_live());
    progress.done("n1");
}
