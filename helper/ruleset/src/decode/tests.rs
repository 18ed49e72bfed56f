use sockpath_netlink::Body;

use super::*;
use crate::model::{Data, Expression, Verdict};

/// An attribute, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    Body::default().with(kind, value).bytes().to_vec()
}

fn text_of(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, [text.as_bytes(), &[0]].concat().as_slice())
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
    attribute(kind, &attribute(1, bytes))
}

/// A set of addresses with ranges, its elements in this order.
fn ranges(elements: &[(&[u8], u32)]) -> Ruleset {
    let mut reader = Reader::default();
    let named = [text_of(1, "t"), text_of(2, "s")].concat();
    reader.message(NEW_SET, 2, &[named.clone(), number(3, 4), number(5, 4)].concat());
    let list: Vec<u8> = elements.iter().flat_map(|(key, flags)| attribute(1, &[value(1, key), number(3, *flags)].concat())).collect();
    reader.message(NEW_ELEMENTS, 2, &[named, attribute(3, &list)].concat());
    reader.finish()
}

#[test]
fn ranges_are_joined_with_their_ends_in_any_order() {
    let rules = ranges(&[(&[10, 9, 0, 4], 1), (&[10, 9, 0, 0], 0), (&[0, 0, 0, 0], 1), (&[255, 255, 255, 0], 0)]);
    let elements: Vec<(&[u8], Option<&[u8]>)> = rules.sets[0].elements.iter().map(|e| (&*e.key, e.end.as_deref())).collect();
    assert_eq!(elements, [(&[10, 9, 0, 0][..], Some(&[10, 9, 0, 3][..])), (&[255, 255, 255, 0][..], Some(&[255, 255, 255, 255][..]))]);
}

#[test]
fn a_set_whose_elements_cannot_be_read_is_incomplete() {
    let mut reader = Reader::default();
    let named = [text_of(1, "t"), text_of(2, "s")].concat();
    reader.message(NEW_SET, 2, &[named.clone(), number(3, 0), number(5, 4)].concat());
    reader.message(NEW_ELEMENTS, 2, &named);
    assert!(reader.finish().sets[0].incomplete);
}

#[test]
fn elements_of_a_verdict_map_carry_comment_and_verdict() {
    let mut reader = Reader::default();
    reader.message(NEW_CHAIN, 2, &[text_of(1, "t"), text_of(3, "c")].concat());
    let named = [text_of(1, "t"), text_of(2, "m")].concat();
    reader.message(NEW_SET, 2, &[named.clone(), number(3, 8), number(5, 2)].concat());
    let jump = attribute(2, &attribute(2, &[number(1, (-3i32).cast_unsigned()), text_of(2, "c")].concat()));
    let element = [value(1, &[0, 80]), jump, attribute(6, &[0, 4, b'w', b'e', b'b', 0])].concat();
    reader.message(NEW_ELEMENTS, 2, &[named, attribute(3, &attribute(1, &element))].concat());
    let rules = reader.finish();
    let element = &rules.sets[0].elements[0];
    assert!(matches!(element.data, Data::Verdict(Verdict::Jump(0))));
    assert_eq!(element.comment.as_deref(), Some("web"));
}

#[test]
fn what_is_not_understood_leaves_a_test_open_and_nothing_panics() {
    let mut reader = Reader::default();
    reader.message(NEW_CHAIN, 2, &[text_of(1, "t"), text_of(3, "c")].concat());
    let expression = |name: &str, data: &[u8]| attribute(1, &[text_of(1, name), attribute(2, data)].concat());
    let list = ["from the future", "cmp", "bitwise", "lookup", "immediate", "target", "match", "payload", "nat"];
    let list: Vec<u8> = list.iter().flat_map(|name| expression(name, &number(1, 1))).collect();
    let rule = [text_of(1, "t"), text_of(2, "c"), attribute(3, &7u64.to_be_bytes()), attribute(4, &list)].concat();
    reader.message(NEW_RULE, 2, &rule);
    for length in 0..rule.len() {
        reader.message(NEW_RULE, 2, &rule[..length]);
    }
    let rules = reader.finish();
    let rule = &rules.chains[0].rules[0];
    assert_eq!(rule.handle, 7);
    assert!(matches!(rule.expressions[0], Expression::Unknown { to: None, may_fail: true }));
}

#[test]
fn a_legacy_table_that_is_cut_short_is_read_as_far_as_it_goes() {
    let entries = vec![0xff; 300];
    for length in 0..entries.len() {
        let table = legacy::Table {
            family: legacy::LegacyFamily::V4,
            name: "filter",
            hooks: 0b1110,
            begins: [0, 0, 152, 304, 0],
            policies: [0, 0, 152, 304, 0],
            entries: &entries[..length],
        };
        let mut reader = Reader::default();
        reader.legacy(&table);
        assert!(reader.finish().chains.iter().all(|c| c.rules.is_empty()));
    }
}
