//! As much of XML as the drawings use: elements that nest, attributes in double quotes, text without markup.
#![allow(dead_code, reason = "tests that only check a document use a part of it")]

/// An element's start.
#[derive(Debug)]
pub struct Element {
    pub name: String,
    pub attributes: Vec<(String, String)>,
}

impl Element {
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.attribute(name).map(|v| v.parse().unwrap_or_else(|_| panic!("{name}=\"{v}\" in {self:?}")))
    }

    /// Width and height of a view box.
    pub fn size(&self, name: &str) -> (i64, i64) {
        let numbers: Vec<i64> = self.attribute(name).expect("a view box").split(' ').map(|n| n.parse().expect("a number")).collect();
        (numbers[2], numbers[3])
    }

    /// The corners of a rectangle, the points of a line.
    pub fn corners(&self) -> Vec<(i64, i64)> {
        let at = |x, y| Some((self.number(x)?, self.number(y)?));
        let mut points: Vec<(i64, i64)> = at("x", "y").or_else(|| at("cx", "cy")).into_iter().collect();
        if let ("rect", Some((x, y)), Some((w, h))) = (self.name.as_str(), at("x", "y"), at("width", "height")) {
            points.push((x + w, y + h));
        }
        for pair in self.attribute("points").into_iter().flat_map(|p| p.split(' ')) {
            let (x, y) = pair.split_once(',').expect("a point");
            points.push((x.parse().expect("x"), y.parse().expect("y")));
        }
        points
    }
}

/// Checks that a document is well formed, and that ids are unique; returns its elements.
pub fn check(what: &str, document: &str) -> Vec<Element> {
    let mut elements: Vec<Element> = Vec::new();
    let mut open: Vec<String> = Vec::new();
    let mut rest = document.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>").unwrap_or(document);
    while let Some((text, after)) = rest.split_once('<') {
        let entities = ["&amp;", "&lt;", "&gt;", "&quot;"].iter().fold(text.to_owned(), |text, entity| text.replace(entity, ""));
        assert!(!entities.contains(['&', '>']), "{what}: {text:?}");
        assert!(!open.is_empty() || text.trim().is_empty(), "{what}: {text:?} outside of all elements");
        let (tag, after) = after.split_once('>').unwrap_or_else(|| panic!("{what}: unclosed tag {after}"));
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "{what}");
            continue;
        }
        let (tag, alone) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        let attributes = attributes_of(what, attributes);
        if !alone {
            open.push(name.to_owned());
        }
        elements.push(Element { name: name.to_owned(), attributes });
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{what}: {open:?} {rest:?}");
    let mut ids: Vec<&str> = elements.iter().filter_map(|e| e.attribute("id")).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "{what}: ids are unique");
    elements
}

fn attributes_of(what: &str, text: &str) -> Vec<(String, String)> {
    let mut attributes = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{what}: attributes {text:?}"));
        let (value, after) = after.split_once('"').unwrap_or_else(|| panic!("{what}: attributes {text:?}"));
        assert!(!attributes.iter().any(|(known, _)| known == name.trim()), "{what}: {name} stands twice in {text:?}");
        attributes.push((name.trim().to_owned(), value.to_owned()));
        rest = after.trim();
    }
    attributes
}
