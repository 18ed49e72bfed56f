//! The picture as SVG: a file by itself, or a part of a page.

use super::draw::{Canvas, Font, Ink, Stroke, Towards};
use super::layout::{LINE, LaneBox, Layout, NS_HEAD, Rect, Row, SMALL, TEXT, bar_height, beside_lines, cut};
use super::{Beside, Bypass, Item, Picture, StageMark, State};
use crate::duration::nanos;
use crate::render::page::Page;

pub use super::draw::PAGE_STYLE;
pub use super::layout::Form;

const FONT: &str = "system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, Liberation Sans, sans-serif";

/// A wide picture of at most this width can be read on paper of A4; a wider one is printed in its tall form.
const ON_PAPER: i32 = 1040;

/// A file of its own, on light paper.
#[must_use]
pub fn render(picture: &Picture) -> String {
    let mut page = Page::new();
    page.markup("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    draw(picture, Form::Wide, Place::File, &mut page);
    page.markup("\n");
    page.end()
}

/// Where a picture stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a file of its own.
    File,
    /// In a page that names it by this id and may contain it in both forms.
    Page(&'static str),
}

/// Draws it.
pub fn draw(picture: &Picture, form: Form, place: Place, page: &mut Page) {
    let layout = Layout::of(picture, form, place == Place::File);
    let size = |page: &mut Page, (w, h): (i32, i32), between: &'static str| {
        page.text(&w.to_string()).markup(between).text(&h.to_string()).markup("\"");
    };
    let id = if let Place::Page(id) = place { id } else { "picture" };
    page.markup("<svg");
    if place == Place::File {
        page.markup(" xmlns=\"http://www.w3.org/2000/svg\"");
    }
    page.markup(" role=\"img\" viewBox=\"0 0 ");
    size(page, (layout.width, layout.height), " ");
    page.markup(" width=\"");
    size(page, (layout.width, layout.height), "\" height=\"");
    if let Place::Page(_) = place {
        let fits = if form == Form::Wide { layout.width } else { Layout::of(picture, Form::Wide, false).width } <= ON_PAPER;
        page.markup(" class=\"pic").markup(if form == Form::Wide { " wide" } else { " tall" });
        page.markup(if (form == Form::Wide) == fits { " paper\"" } else { "\"" });
    }
    page.markup(" font-family=\"").markup(FONT).markup("\" aria-labelledby=\"");
    page.markup(id).markup("-title ").markup(id).markup("-desc\">\n<title id=\"").markup(id).markup("-title\">");
    page.text("Path of the packets: ").text(&picture.title).markup("</title>\n<desc id=\"").markup(id).markup("-desc\">");
    for sentence in picture.sentences() {
        page.text(&sentence).markup(" ");
    }
    page.markup("</desc>\n");
    let mut canvas = Canvas(page);
    if place == Place::File {
        canvas.fill(Rect { x: 0, y: 0, w: layout.width, h: layout.height }, Ink::Paper);
    }
    head(&mut canvas, &layout);
    boxes(&mut canvas, picture, &layout);
    for beside in &picture.beside {
        draw_beside(&mut canvas, beside, &layout);
    }
    names_of_beside(&mut canvas, picture, &layout);
    links(&mut canvas, picture, &layout);
    let longest = picture.longest_ns();
    for ((ns, _), lane) in picture.lanes().zip(&layout.lanes) {
        draw_lane(&mut canvas, lane, longest, ns.state);
    }
    bars(&mut canvas, picture, &layout);
    legend(&mut canvas, picture, &layout);
    canvas.0.markup("</svg>");
}

fn head(canvas: &mut Canvas<'_>, layout: &Layout<'_>) {
    let size = if layout.form == Form::Wide { 18 } else { 15 };
    let mut y = layout.margin;
    for line in &layout.title {
        y += size + 6;
        canvas.text(layout.margin, y - 6, Font::bold(size), Ink::Text, line);
    }
    for line in &layout.about {
        y += 17;
        canvas.text(layout.margin, y - 4, Font::of(12), Ink::Dim, line);
    }
}

fn boxes(canvas: &mut Canvas<'_>, picture: &Picture, layout: &Layout<'_>) {
    for (node, rect) in picture.nodes.iter().zip(&layout.nodes) {
        let passed = node.namespaces.iter().any(|ns| ns.state != State::NotReached);
        canvas.frame(*rect, Ink::Node, if passed { Stroke::Solid } else { Stroke::Dashed });
        canvas.text(rect.x + 12, rect.y + 18, Font::of(12), Ink::Dim, &cut(&node.title, rect.w - 24, 12));
    }
    let namespaces = picture.nodes.iter().flat_map(|node| &node.namespaces);
    for (ns, rect) in namespaces.zip(&layout.namespaces) {
        let (stroke, ink) = if ns.state == State::Passed { (Stroke::Solid, Ink::Text) } else { (Stroke::Dashed, Ink::Dim) };
        canvas.frame(*rect, if ns.state == State::Passed { Ink::Paper } else { Ink::Node }, stroke);
        let took: Vec<u64> = ns.lanes.iter().filter_map(|lane| lane.took_ns).collect();
        let room = rect.w - 24 - if took.is_empty() { 0 } else { 64 };
        // In a tall picture the line of the packets passes on the left.
        let indent = if layout.form == Form::Tall { TEXT } else { 12 };
        canvas.text(rect.x + indent, rect.y + 18, Font::bold(13), ink, &cut(&ns.title, rect.w - indent - 8, 13));
        canvas.text(rect.x + indent, rect.y + 33, Font::of(11), Ink::Dim, &cut(&ns.detail, room - indent + 12, 11));
        if !took.is_empty() {
            canvas.text(rect.right() - 10, rect.y + 33, Font::bold(12).to_the_right(), ink, &nanos(took.iter().sum()));
        }
    }
}

/// Where the line of a lane begins and ends.
fn line_ends(lane: &LaneBox<'_>) -> ((i32, i32), (i32, i32)) {
    let x = lane.rect.x + LINE;
    let (top, bottom) = ((x, lane.rect.y + 8), (x, lane.rect.bottom() - 8));
    if lane.upwards { (bottom, top) } else { (top, bottom) }
}

fn draw_lane(canvas: &mut Canvas<'_>, lane: &LaneBox<'_>, longest: u64, state: State) {
    for row in &lane.rows {
        draw_row(canvas, lane, row, longest);
    }
    if state == State::Skipped {
        let (from, to) = line_ends(lane);
        canvas.line(&[from, to], Ink::Frame, Stroke::Dashed, 2);
    }
}

fn draw_row(canvas: &mut Canvas<'_>, lane: &LaneBox<'_>, row: &Row<'_>, longest: u64) {
    let (x, text) = (lane.rect.x + LINE, lane.rect.x + TEXT);
    let room = lane.rect.right() - text - 10;
    let small = |canvas: &mut Canvas<'_>, ink: Ink, more: i32| {
        let mut y = row.y + more;
        for line in &row.lines {
            y += SMALL;
            canvas.text(text, y - 4, Font::of(11), ink, line);
        }
    };
    match row.item {
        Item::Socket(_) | Item::Device(_) => {
            let label = row.lines.first().map_or("", String::as_str);
            let width = (wide_as(label, 11) + 18).min(lane.rect.w - 14);
            canvas.chip(Rect { x: x - 9, y: row.y + 4, w: width, h: 20 }, &cut(label, width - 16, 11));
        }
        Item::Stage(stage) => {
            canvas.dot(x, row.y + 9, stage.waits);
            draw_stage(canvas, stage, (text, row.y + 13), room);
            if let Some(took) = stage.took_ns {
                let bar = Rect { x: text, y: row.y + 17, w: scaled(took, longest, room), h: 3 };
                canvas.bar(bar, stage.waits, "");
            }
        }
        Item::Rewrite(_) => small(canvas, Ink::Rewrite, 0),
        Item::End(_) => {
            canvas.cross(x, row.y + 10);
            small(canvas, Ink::Bad, 2);
        }
        Item::Unobserved(_) => small(canvas, Ink::Dim, 4),
    }
}

fn draw_stage(canvas: &mut Canvas<'_>, stage: &StageMark, (x, y): (i32, i32), room: i32) {
    let indent = if stage.step.is_some() { 27 } else { 0 };
    if let Some(step) = stage.step {
        canvas.text(x, y, Font::of(11), Ink::Dim, step);
    }
    canvas.text(x + indent, y, Font::of(12), Ink::Text, stage.name);
    match (stage.took_ns, stage.unmeasurable) {
        (Some(took), _) => {
            canvas.text(x + room, y, Font::of(12).to_the_right(), if stage.waits { Ink::Wait } else { Ink::Text }, &nanos(took))
        }
        (None, true) => canvas.text(x + room, y, Font::of(11).to_the_right(), Ink::Dim, "two clocks"),
        (None, false) => {}
    }
}

/// `part` of `whole` in a room of this width, at least 2.
fn scaled(part: u64, whole: u64, room: i32) -> i32 {
    let width = u128::from(part) * u128::from(room.unsigned_abs()) / u128::from(whole.max(1));
    i32::try_from(width).unwrap_or(room).clamp(2, room.max(2))
}

/// The line of the packets: through every lane that they passed, and from one to the next.
fn links(canvas: &mut Canvas<'_>, picture: &Picture, layout: &Layout<'_>) {
    for ((ns, _), lane) in picture.lanes().zip(&layout.lanes) {
        let (from, to) = line_ends(lane);
        if ns.state == State::Passed && !lane.rows.is_empty() {
            // A path that ends in this lane ends at its mark.
            let request = |item: &Item| matches!(item, Item::End(m) if m.direction == sockpath_protocol::packet::Direction::Request);
            let is_last = picture.lanes().filter(|(ns, _)| ns.state == State::Passed).count() == place_of(layout, lane) + 1;
            let end = lane.rows.iter().rev().find(|row| is_last && request(row.item)).map(|row| (to.0, row.y + 10));
            let end = end.or_else(|| is_last.then(|| last_stage(lane)).flatten()).unwrap_or(to);
            let begin = if place_of(layout, lane) == 0 { first_item(lane).unwrap_or(from) } else { from };
            canvas.line(&[begin, end], Ink::Path, Stroke::Solid, 2);
        }
    }
    for (link, pair) in picture.links.iter().zip(layout.lanes.windows(2)) {
        let [a, b] = pair else { continue };
        let (exit, entry) = (line_ends(a).1, line_ends(b).0);
        let (ink, stroke) = if link.taken { (Ink::Path, Stroke::Solid) } else { (Ink::Frame, Stroke::Dashed) };
        match layout.form {
            Form::Wide => {
                let gutter = a.rect.right() + (b.rect.x - a.rect.right()) / 2;
                canvas.line(&[exit, (gutter, exit.1), (gutter, entry.1), entry], ink, stroke, 2);
                canvas.arrow((b.rect.x + 2, entry.1), Towards::Right, ink);
                canvas.text(gutter - 19, exit.1 + 14, Font::of(11), Ink::Dim, link.kind.word());
            }
            Form::Tall => {
                canvas.line(&[exit, entry], ink, stroke, 2);
                canvas.arrow(entry, Towards::Down, ink);
                canvas.text(exit.0 + 10, (a.rect.bottom() + b.rect.y - NS_HEAD) / 2 + 4, Font::of(11), Ink::Dim, link.kind.word());
            }
        }
    }
}

fn place_of(layout: &Layout<'_>, lane: &LaneBox<'_>) -> usize {
    layout.lanes.iter().position(|l| std::ptr::eq(l, lane)).unwrap_or(0)
}

/// Where the last stage or socket of a lane stands.
fn last_stage(lane: &LaneBox<'_>) -> Option<(i32, i32)> {
    let row = lane.rows.iter().rev().find(|r| matches!(r.item, Item::Stage(_) | Item::Socket(_)))?;
    Some((lane.rect.x + LINE, row.y + row.h / 2))
}

fn first_item(lane: &LaneBox<'_>) -> Option<(i32, i32)> {
    let row = lane.rows.first()?;
    Some((lane.rect.x + LINE, row.y + row.h / 2))
}

/// A path beside the normal one: above the nodes from socket to socket, below them from device to device.
fn draw_beside(canvas: &mut Canvas<'_>, beside: &Beside, layout: &Layout<'_>) {
    let (Some(from), Some(to)) = (layout.lanes.get(beside.from), layout.lanes.get(beside.to)) else { return };
    let stroke = if beside.taken { Stroke::Solid } else { Stroke::Dashed };
    if layout.form == Form::Tall {
        let x = layout.width - layout.margin - if beside.path == Bypass::Socket { 4 } else { 14 };
        let (a, b) = match beside.path {
            Bypass::Socket => (from.rect.y + 24, to.rect.bottom() - 24),
            Bypass::Short => (from.rect.bottom() - 16, to.rect.y + 16),
        };
        canvas.line(&[(from.rect.right(), a), (x, a), (x, b), (to.rect.right(), b)], Ink::Good, stroke, 2);
        canvas.arrow((to.rect.right(), b), Towards::Left, Ink::Good);
        return;
    }
    let (a, b) = (from.rect.right() - 60, to.rect.x + 60);
    let node = layout.nodes.first().copied().unwrap_or_default();
    let middle = (a + b) / 2;
    let half = wide_as(&beside.text, 12) / 2;
    match beside.path {
        Bypass::Socket => {
            let (top, edge) = (node.y - 18, from.rect.y - 40);
            canvas.line(&[(a, edge), (a, top), (b, top), (b, edge)], Ink::Good, stroke, 3);
            canvas.arrow((b, edge), Towards::Down, Ink::Good);
            canvas.text(middle - half, top - 7, Font::bold(12), Ink::Good, &beside.text);
        }
        Bypass::Short => {
            let (low, edge) = (node.bottom() + 16, from.rect.bottom());
            canvas.line(&[(a, edge), (a, low), (b, low), (b, edge)], Ink::Good, stroke, 3);
            canvas.arrow((b, edge), Towards::Up, Ink::Good);
            canvas.text(middle - half, low + 16, Font::bold(12), Ink::Good, &beside.text);
        }
    }
}

/// The paths beside the normal one in a tall picture, which has no room for their names at their lines.
fn names_of_beside(canvas: &mut Canvas<'_>, picture: &Picture, layout: &Layout<'_>) {
    let mut y = layout.beside;
    for beside in picture.beside.iter().filter(|_| layout.form == Form::Tall) {
        let stroke = if beside.taken { Stroke::Solid } else { Stroke::Dashed };
        canvas.line(&[(layout.margin, y - 4), (layout.margin + 26, y - 4)], Ink::Good, stroke, 2);
        for line in beside_lines(&beside.text) {
            canvas.text(layout.margin + 34, y, Font::of(12), Ink::Good, &line);
            y += SMALL;
        }
    }
}

/// The time of each direction, on one scale.
fn bars(canvas: &mut Canvas<'_>, picture: &Picture, layout: &Layout<'_>) {
    let longest = picture.bars.iter().map(super::Bar::total_ns).max().unwrap_or(1);
    let wide = layout.form == Form::Wide;
    let (left, right) = (layout.margin + if wide { 92 } else { 0 }, layout.width - layout.margin - if wide { 84 } else { 0 });
    for (number, bar) in picture.bars.iter().enumerate() {
        let top = layout.bars + i32::try_from(number).unwrap_or(0) * bar_height(layout.form);
        let (names, track) = if wide { (top + 14, top + 4) } else { (top + 12, top + 18) };
        canvas.text(layout.margin, names, Font::bold(12), Ink::Text, bar.name);
        canvas.text(layout.width - layout.margin, names, Font::bold(12).to_the_right(), Ink::Text, &bar.time());
        let at = |time: u64| left + scaled(time, longest, right - left);
        let (mut before, mut free) = (0, left);
        for part in &bar.parts {
            let (begin, end) = (if before == 0 { left } else { at(before) + 1 }, at(before + part.took_ns) - 1);
            before += part.took_ns;
            let about = format!("{}: {}, {} of it waiting", part.place, nanos(part.took_ns), nanos(part.waits_ns));
            let work = scaled(part.took_ns - part.waits_ns, part.took_ns, end - begin);
            if part.waits_ns < part.took_ns {
                canvas.bar(Rect { x: begin, y: track, w: work, h: 12 }, false, &about);
            }
            if part.waits_ns > 0 {
                let begin = if part.waits_ns < part.took_ns { begin + work } else { begin };
                canvas.bar(Rect { x: begin, y: track, w: end - begin, h: 12 }, true, &about);
            }
            // The whole place where there is room, else its name, else nothing: all of it is in the description.
            let name = part.place.rsplit('/').next().unwrap_or_default();
            let fits = |label: &String| begin >= free && begin + wide_as(label, 11) < if wide { right } else { end };
            let labels = [format!("{} {}", part.place, nanos(part.took_ns)), format!("{name} {}", nanos(part.took_ns)), name.to_owned()];
            let room = |label: &&String| begin + wide_as(label, 11) <= end;
            let label = labels.iter().find(room).or_else(|| labels.iter().rev().skip(1).find(|l| fits(l))).filter(|l| fits(l));
            if let Some(label) = label {
                canvas.text(begin, track + 25, Font::of(11), Ink::Dim, label);
                free = begin + wide_as(label, 11) + 8;
            }
        }
    }
}

/// About how wide a text of this size is.
fn wide_as(text: &str, size: i32) -> i32 {
    i32::try_from(sockpath_protocol::text::columns(text)).unwrap_or(0) * size * 6 / 10
}

fn legend(canvas: &mut Canvas<'_>, picture: &Picture, layout: &Layout<'_>) {
    let (mut x, y) = (layout.margin, layout.legend);
    canvas.dot(x + 4, y - 4, false);
    canvas.text(x + 14, y, Font::of(11), Ink::Dim, "works");
    canvas.dot(x + 62, y - 4, true);
    canvas.text(x + 72, y, Font::of(11), Ink::Dim, "waits");
    let dropped = picture.lanes().any(|(_, lane)| lane.items.iter().any(|i| matches!(i, Item::End(_))));
    if dropped {
        canvas.cross(x + 124, y - 4);
        canvas.text(x + 136, y, Font::of(11), Ink::Dim, "packets ended");
    }
    let [bars, grey] = ["bars: typical time (p50) of a stage", "grey: not observed or skipped"];
    if layout.form == Form::Wide {
        x += if dropped { 230 } else { 120 };
        canvas.text(x, y, Font::of(11), Ink::Dim, &format!("{bars}; {grey}"));
    } else {
        canvas.text(x, y + SMALL + 2, Font::of(11), Ink::Dim, bars);
        canvas.text(x, y + 2 * SMALL + 2, Font::of(11), Ink::Dim, grey);
    }
}
