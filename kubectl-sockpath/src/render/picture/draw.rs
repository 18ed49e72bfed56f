//! Shapes and colours. Every shape has its colour for light pages as an attribute, which slides and viewers without style sheets use, and a
//! class, by which a page replaces it.

use super::layout::Rect;
use crate::render::page::Page;

/// A colour, by what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// Text.
    Text,
    /// Less important text.
    Dim,
    /// Time spent working.
    Work,
    /// Time spent waiting.
    Wait,
    /// The path of the packets.
    Path,
    /// A translated address.
    Rewrite,
    /// Packets ended.
    Bad,
    /// An accelerated path.
    Good,
    /// The background of the whole.
    Paper,
    /// The background of a node.
    Node,
    /// A frame.
    Frame,
}

impl Ink {
    fn class(self) -> &'static str {
        match self {
            Self::Text => "c-text",
            Self::Dim => "c-dim",
            Self::Work => "c-work",
            Self::Wait => "c-wait",
            Self::Path => "c-path",
            Self::Rewrite => "c-nat",
            Self::Bad => "c-bad",
            Self::Good => "c-good",
            Self::Paper => "c-paper",
            Self::Node => "c-node",
            Self::Frame => "c-frame",
        }
    }

    /// On light paper; contrast of text with both backgrounds is at least 4.5.
    fn light(self) -> &'static str {
        match self {
            Self::Text => "#1b2430",
            Self::Dim => "#52606d",
            Self::Work => "#1d6fb8",
            Self::Wait => "#b45309",
            Self::Path => "#33475b",
            Self::Rewrite => "#7b2cbf",
            Self::Bad => "#b42318",
            Self::Good => "#1a7f37",
            Self::Paper => "#ffffff",
            Self::Node => "#f1f4f8",
            Self::Frame => "#74818f",
        }
    }
}

/// Weight and size of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Font {
    pub size: i32,
    pub bold: bool,
    /// Which end of the text its place is.
    pub end: bool,
}

impl Font {
    pub(super) const fn of(size: i32) -> Self {
        Self { size, bold: false, end: false }
    }

    pub(super) const fn bold(size: i32) -> Self {
        Self { size, bold: true, end: false }
    }

    /// Right-aligned.
    pub(super) const fn to_the_right(self) -> Self {
        Self { end: true, ..self }
    }
}

/// A line's strokes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stroke {
    /// Unbroken.
    Solid,
    /// Dashes: not taken, not reached.
    Dashed,
}

/// What is drawn on.
pub(super) struct Canvas<'p>(pub &'p mut Page);

impl Canvas<'_> {
    fn attr(&mut self, name: &'static str, value: i32) -> &mut Self {
        self.0.markup(name).text(&value.to_string()).markup("\"");
        self
    }

    fn ink(&mut self, of: &'static str, ink: Ink) -> &mut Self {
        self.0.markup(of).markup(ink.light()).markup("\"");
        self
    }

    fn class(&mut self, prefix: &'static str, ink: Ink) -> &mut Self {
        self.0.markup(" class=\"").markup(prefix).markup(ink.class()).markup("\"");
        self
    }

    /// A frame with its background.
    pub(super) fn frame(&mut self, rect: Rect, fill: Ink, stroke: Stroke) {
        self.0.markup("<rect");
        self.place(rect).attr(" rx=\"", 6).ink(" fill=\"", fill).ink(" stroke=\"", Ink::Frame);
        if stroke == Stroke::Dashed {
            self.0.markup(" stroke-dasharray=\"5 4\"");
        }
        self.class("f-", fill);
        self.0.markup("/>");
    }

    /// The label of a device or socket: a rounded frame.
    pub(super) fn chip(&mut self, rect: Rect, text: &str) {
        self.0.markup("<rect");
        self.place(rect).attr(" rx=\"", 10).ink(" fill=\"", Ink::Node).ink(" stroke=\"", Ink::Path).class("f-", Ink::Path);
        self.0.markup("/>");
        self.text(rect.x + 9, rect.y + 14, Font::of(11), Ink::Text, text);
    }

    /// A bar: filled for work, an outline for waiting, so that they differ without colours. `text` is its explanation.
    pub(super) fn bar(&mut self, rect: Rect, waits: bool, text: &str) {
        let ink = if waits { Ink::Wait } else { Ink::Work };
        self.0.markup("<rect");
        self.place(rect).ink(" fill=\"", ink);
        if waits {
            self.ink(" stroke=\"", ink);
            self.0.markup(" fill-opacity=\"0.25\"");
        }
        self.class(if waits { "o-" } else { "" }, ink);
        if text.is_empty() {
            self.0.markup("/>");
        } else {
            self.0.markup("><title>").text(text).markup("</title></rect>");
        }
    }

    /// A filled rectangle.
    pub(super) fn fill(&mut self, rect: Rect, ink: Ink) {
        self.0.markup("<rect");
        self.place(rect).ink(" fill=\"", ink).class("", ink);
        self.0.markup("/>");
    }

    fn place(&mut self, rect: Rect) -> &mut Self {
        self.attr(" x=\"", rect.x).attr(" y=\"", rect.y).attr(" width=\"", rect.w.max(1)).attr(" height=\"", rect.h.max(1))
    }

    /// A line of text.
    pub(super) fn text(&mut self, x: i32, y: i32, font: Font, ink: Ink, text: &str) {
        self.0.markup("<text");
        self.attr(" x=\"", x).attr(" y=\"", y).attr(" font-size=\"", font.size).ink(" fill=\"", ink);
        if font.bold {
            self.0.markup(" font-weight=\"600\"");
        }
        if font.end {
            self.0.markup(" text-anchor=\"end\"");
        }
        self.class("", ink);
        self.0.markup(">").text(text).markup("</text>");
    }

    /// A dot on a line: filled for a stage that works, a ring for one that waits.
    pub(super) fn dot(&mut self, x: i32, y: i32, waits: bool) {
        self.0.markup("<circle");
        self.attr(" cx=\"", x).attr(" cy=\"", y).attr(" r=\"", 4);
        let (fill, ink) = if waits { (Ink::Paper, Ink::Wait) } else { (Ink::Work, Ink::Work) };
        self.ink(" fill=\"", fill).ink(" stroke=\"", ink);
        self.0.markup(" stroke-width=\"2\"");
        self.class(if waits { "r-" } else { "d-" }, ink);
        self.0.markup("/>");
    }

    /// A cross: packets ended here.
    pub(super) fn cross(&mut self, x: i32, y: i32) {
        self.line(&[(x - 5, y - 5), (x + 5, y + 5)], Ink::Bad, Stroke::Solid, 3);
        self.line(&[(x + 5, y - 5), (x - 5, y + 5)], Ink::Bad, Stroke::Solid, 3);
    }

    /// A line through these points.
    pub(super) fn line(&mut self, points: &[(i32, i32)], ink: Ink, stroke: Stroke, width: i32) {
        self.0.markup("<polyline fill=\"none\"");
        self.points(points).ink(" stroke=\"", ink).attr(" stroke-width=\"", width);
        if stroke == Stroke::Dashed {
            self.0.markup(" stroke-dasharray=\"6 5\"");
        }
        self.class("s-", ink);
        self.0.markup("/>");
    }

    /// The head of an arrow at this point.
    pub(super) fn arrow(&mut self, (x, y): (i32, i32), towards: Towards, ink: Ink) {
        let tip = match towards {
            Towards::Right => [(x, y), (x - 8, y - 4), (x - 8, y + 4)],
            Towards::Left => [(x, y), (x + 8, y - 4), (x + 8, y + 4)],
            Towards::Down => [(x, y), (x - 4, y - 8), (x + 4, y - 8)],
            Towards::Up => [(x, y), (x - 4, y + 8), (x + 4, y + 8)],
        };
        self.0.markup("<polygon");
        self.points(&tip).ink(" fill=\"", ink).class("", ink);
        self.0.markup("/>");
    }

    fn points(&mut self, points: &[(i32, i32)]) -> &mut Self {
        self.0.markup(" points=\"");
        for (n, (x, y)) in points.iter().enumerate() {
            if n > 0 {
                self.0.markup(" ");
            }
            self.0.text(&x.to_string()).markup(",").text(&y.to_string());
        }
        self.0.markup("\"");
        self
    }
}

/// Where an arrow points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Towards {
    /// Up.
    Up,
    /// Down.
    Down,
    /// To the left.
    Left,
    /// To the right.
    Right,
}

/// Colours of the classes, for a page with variables of these names.
pub const PAGE_STYLE: &str = "\
.pic .c-text{fill:var(--text)}.pic .c-dim{fill:var(--dim)}.pic .c-work{fill:var(--work)}.pic .c-wait{fill:var(--wait)}\
.pic .c-path{fill:var(--path)}.pic .c-nat{fill:var(--nat)}.pic .c-bad{fill:var(--bad)}.pic .c-good{fill:var(--good)}.pic .c-paper{fill:var(--paper)}\
.pic .f-c-paper{fill:var(--paper);stroke:var(--frame)}.pic .f-c-node{fill:var(--node);stroke:var(--frame)}.pic .f-c-path{fill:var(--node);stroke:var(--path)}\
.pic .o-c-wait{fill:var(--wait);stroke:var(--wait)}.pic .d-c-work{fill:var(--work);stroke:var(--work)}.pic .r-c-wait{fill:var(--paper);stroke:var(--wait)}\
.pic .s-c-path{stroke:var(--path)}.pic .s-c-bad{stroke:var(--bad)}.pic .s-c-good{stroke:var(--good)}.pic .s-c-frame{stroke:var(--frame)}.pic .s-c-dim{stroke:var(--dim)}";
