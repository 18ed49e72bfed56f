//! Errors with a word for scripts.

/// An error with a word that scripts can rely on.
#[derive(Debug)]
pub struct Coded {
    code: &'static str,
    text: String,
}

impl Coded {
    /// An error that reaches the plugin as `code` and `text`.
    #[expect(clippy::new_ret_no_self, reason = "it is only ever used as an error value")]
    #[must_use]
    pub fn new(code: &'static str, text: impl Into<String>) -> anyhow::Error {
        Self { code, text: text.into() }.into()
    }

    /// The word.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }
}

impl std::fmt::Display for Coded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Coded {}
