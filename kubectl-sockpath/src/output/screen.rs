//! A table on stdout that is drawn again and again, where stdout is a terminal.

use anyhow::Result;

use super::stdout;
use super::text::Text;

/// What of it is on the screen.
#[derive(Debug, Default)]
pub struct Screen {
    /// Lines above the cursor that are its own.
    drawn: usize,
}

impl Screen {
    /// Draws it in place of what was drawn before.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn draw(&mut self, text: &Text) -> Result<()> {
        self.erase()?;
        self.drawn = text.lines().count();
        stdout::write(text.as_bytes())
    }

    /// Takes it off the screen.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn erase(&mut self) -> Result<()> {
        match std::mem::take(&mut self.drawn) {
            0 => Ok(()),
            // Cursor up to its first line; erase from there to the end of the screen.
            lines => stdout::write(format!("\x1b[{lines}A\x1b[J").as_bytes()),
        }
    }
}
