//! An HTML page: markup is part of this program, everything else comes in as text and cannot become markup.

use sockpath_protocol::text::field;

/// A page that is being put together.
#[derive(Debug)]
pub struct Page(String);

impl Page {
    /// An empty one.
    pub fn new() -> Self {
        Self(String::with_capacity(32 << 10))
    }

    /// Adds markup.
    pub fn markup(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Adds text, also within the double quotes of an attribute.
    pub fn text(&mut self, text: &str) -> &mut Self {
        for c in field(text).chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                c => self.0.push(c),
            }
        }
        self
    }

    /// The whole page.
    pub fn end(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_never_becomes_markup() {
        let mut page = Page::new();
        page.markup("<td title=\"").text("\"><script>'x'&\x1b\u{202e}\n").markup("\">");
        assert_eq!(page.end(), "<td title=\"&quot;&gt;&lt;script&gt;'x'&amp;?? \">");
    }
}
