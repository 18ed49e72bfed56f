//! Sets, maps and their elements.

use crate::decode::expression::verdict;
use crate::decode::user_data::user_comment;
use crate::model::{Data, Element, Set};
use sockpath_netlink::Attributes;

const INTERVAL: u32 = 4;
const TIMEOUT: u32 = 0x10;
const EVAL: u32 = 0x20;

/// Elements kept of all of one set.
const MOST: usize = 200_000;

/// Attributes of NFT_MSG_NEWSET.
pub fn set(a: &Attributes<'_>) -> Set {
    let flags = a.network_word(3).unwrap_or(0);
    let concatenation = a.nested(9).and_then(|d| d.nested(2));
    let fields = concatenation.iter().flat_map(Attributes::values).filter_map(|f| Attributes::of(f).network_word(1));
    Set {
        name: a.text(2).unwrap_or_default().into(),
        key_length: u8::try_from(a.network_word(5).unwrap_or(0)).unwrap_or(u8::MAX),
        ranges: flags & INTERVAL != 0,
        changes: flags & (TIMEOUT | EVAL) != 0,
        fields: fields.filter_map(|f| u8::try_from(f).ok()).collect(),
        ..Set::default()
    }
}

/// Adds a list of elements.
pub fn add(set: &mut Set, list: &Attributes<'_>, chain: &dyn Fn(&str) -> Option<u32>) {
    for element in list.values() {
        if set.elements.len() >= MOST {
            set.incomplete = true;
            return;
        }
        if let Some(element) = element_of(&Attributes::of(element), chain) {
            set.elements.push(element);
        }
    }
}

/// An element; the end of a range is one of its own until `finish`, without key but with an end.
fn element_of(a: &Attributes<'_>, chain: &dyn Fn(&str) -> Option<u32>) -> Option<Element> {
    const INTERVAL_END: u32 = 1;
    const CATCH_ALL: u32 = 2;
    let flags = a.network_word(3).unwrap_or(0);
    let value = |kind| a.nested(kind).and_then(|k| k.get(1)).map(Box::<[u8]>::from);
    let data = a.nested(2).map_or(Data::Nothing, |d| match (d.get(1), d.nested(2)) {
        (_, Some(v)) => Data::Verdict(verdict(&v, chain)),
        (Some(bytes), None) => Data::Value(bytes.into()),
        (None, None) => Data::Nothing,
    });
    let nested = a.nested(11);
    let expressions = a.get(7).into_iter().chain(nested.iter().flat_map(Attributes::values));
    let counter = |e: &[u8]| {
        let e = Attributes::of(e);
        (e.text(1).as_deref() == Some("counter")).then(|| e.nested(2)?.network_long(2)).flatten()
    };
    let packets = expressions.filter_map(counter).next();
    let comment = a.get(6).and_then(user_comment).map(Into::into);
    let (key, end) = match (flags & INTERVAL_END != 0, flags & CATCH_ALL != 0) {
        (true, _) => (Box::default(), Some(value(1)?)),
        (_, true) => (Box::default(), None),
        _ => (value(1)?, value(10)),
    };
    Some(Element { key, end, data, comment, packets })
}

/// Joins the ends of ranges with their beginnings, and makes the index of what has none.
pub fn finish(set: &mut Set) {
    if set.ranges && set.fields.len() < 2 {
        join_ranges(set);
    } else if !set.ranges {
        set.by_key = set.elements.iter().enumerate().map(|(i, e)| (e.key.clone(), u32::try_from(i).unwrap_or(u32::MAX))).collect();
    }
}

/// A tree of ranges lists where each begins and, as an element of its own, the first value after it.
fn join_ranges(set: &mut Set) {
    let begins = |e: &Element| !e.key.is_empty() || e.end.is_none();
    let (mut starts, ends): (Vec<Element>, Vec<Element>) = std::mem::take(&mut set.elements).into_iter().partition(begins);
    let mut ends: Vec<Box<[u8]>> = ends.into_iter().filter_map(|e| e.end).collect();
    ends.sort_unstable();
    starts.sort_by(|a, b| a.key.cmp(&b.key));
    for start in starts.iter_mut().filter(|s| !s.key.is_empty() && s.end.is_none()) {
        let after = ends.partition_point(|e| **e <= *start.key);
        start.end = Some(ends.get(after).map_or_else(|| vec![u8::MAX; start.key.len()].into(), |e| before(e)));
    }
    set.elements = starts;
}

/// The number before this one.
fn before(value: &[u8]) -> Box<[u8]> {
    let mut bytes: Box<[u8]> = value.into();
    for byte in bytes.iter_mut().rev() {
        let (less, borrow) = byte.overflowing_sub(1);
        *byte = less;
        if !borrow {
            break;
        }
    }
    bytes
}
