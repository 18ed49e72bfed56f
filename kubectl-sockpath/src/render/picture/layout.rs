//! Where the parts of a picture lie: nodes beside each other for screens and slides, or below each other for phones and paper.

use sockpath_protocol::stage::Side;

use super::{Item, Lane, Picture};
use crate::terminal::{fit, wrap};

/// Form of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Nodes beside each other; receivers are read from the device at the bottom up to the socket.
    Wide,
    /// Nodes below each other.
    Tall,
}

/// A rectangle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rect {
    pub x: i32,
    pub y: i32,
    pub w: i32,
    pub h: i32,
}

impl Rect {
    pub(super) fn right(&self) -> i32 {
        self.x + self.w
    }

    pub(super) fn bottom(&self) -> i32 {
        self.y + self.h
    }
}

/// An item with its place: its text, broken into lines that fit.
#[derive(Debug, Clone)]
pub(super) struct Row<'p> {
    pub item: &'p Item,
    pub y: i32,
    pub h: i32,
    pub lines: Vec<String>,
}

/// A lane with its place.
#[derive(Debug, Clone)]
pub(super) struct LaneBox<'p> {
    pub rect: Rect,
    /// Packets pass it from the bottom to the top.
    pub upwards: bool,
    pub rows: Vec<Row<'p>>,
}

/// Distance of a lane's line from its left edge, and of its text.
pub(super) const LINE: i32 = 14;
pub(super) const TEXT: i32 = 30;
/// Space before and after the rows of a lane, for the line to enter and to leave.
const BAND: i32 = 16;
/// Head of a namespace: its name and its inode.
pub(super) const NS_HEAD: i32 = 40;
/// Head of a node: its name.
const NODE_HEAD: i32 = 26;
const NODE_PAD: i32 = 12;
/// Height of one line of small text.
pub(super) const SMALL: i32 = 15;
/// Columns of a character are taken as this many tenths of the font's size: fonts that are wider than most.
const TENTHS: i32 = 6;

/// Where everything lies.
#[derive(Debug, Clone)]
pub(super) struct Layout<'p> {
    pub form: Form,
    pub width: i32,
    pub height: i32,
    pub margin: i32,
    pub nodes: Vec<Rect>,
    pub namespaces: Vec<Rect>,
    pub lanes: Vec<LaneBox<'p>>,
    /// Title and what belongs to it, as lines that fit.
    pub title: Vec<String>,
    pub about: Vec<String>,
    /// First line of the time bars.
    pub bars: i32,
    /// The paths beside the normal one, in [`Form::Tall`]: first line of their names.
    pub beside: i32,
    /// The line that explains the colours.
    pub legend: i32,
}

/// Columns of text of this size that fit into this width.
pub(super) fn columns_in(width: i32, size: i32) -> usize {
    usize::try_from(width * 10 / (size * TENTHS)).unwrap_or(0).max(4)
}

/// A text of this size, cut to fit into this width.
pub(super) fn cut(text: &str, width: i32, size: i32) -> String {
    fit(&sockpath_protocol::text::field(text), columns_in(width, size), true)
}

impl<'p> Layout<'p> {
    /// Lays a picture out, with its title where it stands alone.
    pub(super) fn of(picture: &'p Picture, form: Form, titled: bool) -> Self {
        let (margin, lane_width, gap) = match form {
            Form::Wide => (20, 290, 48),
            Form::Tall => (6, if picture.beside.is_empty() { 324 } else { 300 }, 34),
        };
        let mut layout = Self {
            form,
            width: 0,
            height: 0,
            margin,
            nodes: Vec::new(),
            namespaces: Vec::new(),
            lanes: Vec::new(),
            title: Vec::new(),
            about: Vec::new(),
            bars: 0,
            beside: 0,
            legend: 0,
        };
        layout.width = match form {
            Form::Wide => layout.columns(picture, lane_width, gap, 0).max(720),
            Form::Tall => 360,
        };
        let size = if form == Form::Wide { 18 } else { 15 };
        if titled {
            layout.title_lines(picture, size);
        }
        let head = rows(layout.title.len()) * (size + 6) + rows(layout.about.len()) * 17 + if titled { margin + 10 } else { 4 };
        layout.nodes.clear();
        layout.namespaces.clear();
        layout.lanes.clear();
        let bottom = match form {
            Form::Wide => {
                let above = if picture.beside.iter().any(|b| b.path == super::Bypass::Socket) { 40 } else { 0 };
                layout.columns(picture, lane_width, gap, head + above);
                let below = if picture.beside.iter().any(|b| b.path == super::Bypass::Short) { 44 } else { 0 };
                layout.nodes.first().map_or(head, Rect::bottom) + below + 20
            }
            Form::Tall => layout.stack(picture, lane_width, gap, head) + 14,
        };
        layout.beside = bottom + 12;
        let named = if form == Form::Tall { picture.beside.iter().map(|b| beside_lines(&b.text).len()).sum() } else { 0 };
        layout.bars = bottom + rows(named) * SMALL + if named > 0 { 12 } else { 0 };
        layout.legend = layout.bars + rows(picture.bars.len()) * bar_height(form) + 16;
        layout.height = layout.legend + if form == Form::Wide { 14 } else { 3 * SMALL + 6 };
        layout
    }

    fn title_lines(&mut self, picture: &Picture, size: i32) {
        let room = self.width - 2 * self.margin;
        self.title = wrap(&picture.title, columns_in(room, size)).into_iter().take(4).collect();
        let about = picture.about.iter().chain([&picture.figures]);
        self.about = about.flat_map(|line| wrap(line, columns_in(room, 12))).take(12).collect();
    }

    /// Lays nodes out beside each other from `top`; returns the width of the whole.
    fn columns(&mut self, picture: &'p Picture, lane_width: i32, gap: i32, top: i32) -> i32 {
        let heights = picture.lanes().map(|(_, lane)| content(lane, lane_width));
        let inner = NS_HEAD + 2 * BAND + heights.max().unwrap_or(0);
        let mut x = self.margin;
        for node in &picture.nodes {
            let left = x;
            x += NODE_PAD;
            for ns in &node.namespaces {
                let lanes = rows(ns.lanes.len());
                let rect = Rect { x, y: top + NODE_HEAD, w: lanes * lane_width + (lanes - 1).max(0) * gap, h: inner };
                self.namespaces.push(rect);
                for lane in &ns.lanes {
                    let area = Rect { x, y: rect.y + NS_HEAD, w: lane_width, h: inner - NS_HEAD };
                    self.lanes.push(lane_box(lane, area, lane.side == Side::Receive));
                    x += lane_width + gap;
                }
            }
            x += NODE_PAD - gap;
            self.nodes.push(Rect { x: left, y: top, w: x - left, h: NODE_HEAD + inner + NODE_PAD });
            x += gap;
        }
        x - gap + self.margin
    }

    /// Lays nodes out below each other from `top`; returns where they end.
    fn stack(&mut self, picture: &'p Picture, lane_width: i32, gap: i32, top: i32) -> i32 {
        let mut y = top;
        for node in &picture.nodes {
            let (begin, x) = (y, self.margin + NODE_PAD);
            y += NODE_HEAD;
            for ns in &node.namespaces {
                let head = y;
                y += NS_HEAD;
                for lane in &ns.lanes {
                    let area = Rect { x, y, w: lane_width, h: content(lane, lane_width) + 2 * BAND };
                    self.lanes.push(lane_box(lane, area, false));
                    y = area.bottom();
                }
                self.namespaces.push(Rect { x, y: head, w: lane_width, h: y - head });
                y += gap;
            }
            y += NODE_PAD - gap;
            self.nodes.push(Rect { x: self.margin, y: begin, w: lane_width + 2 * NODE_PAD, h: y - begin });
            y += gap;
        }
        y - gap
    }
}

/// Height of one time bar with its text.
pub(super) fn bar_height(form: Form) -> i32 {
    if form == Form::Wide { 42 } else { 54 }
}

/// The name of a path beside the normal one, as lines of a tall picture.
pub(super) fn beside_lines(text: &str) -> Vec<String> {
    wrap(text, columns_in(300, 12)).into_iter().take(3).collect()
}

fn rows(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX / 100)
}

/// The lines of an item in a lane of this width, and its height.
fn lines(item: &Item, width: i32) -> (Vec<String>, i32) {
    let broken = |text: &str, most: usize| -> Vec<String> {
        let mut lines = wrap(text, columns_in(width - TEXT - 8, 11));
        if lines.len() > most {
            lines.truncate(most);
            if let Some(last) = lines.last_mut() {
                last.push_str(" …");
            }
        }
        lines
    };
    match item {
        Item::Socket(text) => (vec![cut(text, width - TEXT - 16, 12)], 28),
        Item::Device(device) => (vec![device.words()], 28),
        Item::Stage(_) => (Vec::new(), 21),
        Item::Rewrite(text) => sized(broken(text, 3), 2),
        Item::End(mark) => sized(broken(&mark.text, 6), 6),
        Item::Unobserved(text) => sized(broken(text, 6), 8),
    }
}

fn sized(lines: Vec<String>, more: i32) -> (Vec<String>, i32) {
    let height = rows(lines.len()) * SMALL + more;
    (lines, height)
}

fn content(lane: &Lane, width: i32) -> i32 {
    lane.items.iter().map(|item| lines(item, width).1).sum()
}

fn lane_box(lane: &Lane, rect: Rect, upwards: bool) -> LaneBox<'_> {
    let mut rows = Vec::with_capacity(lane.items.len());
    let mut y = if upwards { rect.bottom() - BAND } else { rect.y + BAND };
    for item in &lane.items {
        let (lines, h) = lines(item, rect.w);
        if upwards {
            y -= h;
            rows.push(Row { item, y, h, lines });
        } else {
            rows.push(Row { item, y, h, lines });
            y += h;
        }
    }
    LaneBox { rect, upwards, rows }
}

impl super::DeviceBox {
    /// `vethc1: veth, port of cni0`.
    pub(super) fn words(&self) -> String {
        use sockpath_protocol::packet::DeviceKind;
        let kind = match self.kind {
            Some(DeviceKind::Veth) => ": veth",
            Some(DeviceKind::Bridge) => ": bridge",
            Some(DeviceKind::Tunnel) => ": tunnel",
            Some(DeviceKind::Loopback) => ": loopback",
            Some(DeviceKind::Other) | None => "",
        };
        let port = self.bridge.as_ref().map_or_else(String::new, |bridge| format!(", port of {bridge}"));
        format!("{}{kind}{port}", self.name)
    }
}
