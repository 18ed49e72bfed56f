//! Names cut in the middle so that different ones stay different. Ports and addresses are never cut.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use sockpath_protocol::text::{columns, columns_of};

/// Shortest form of a name that still says something.
const LEAST: usize = 8;

/// Cuts those of the names that are longer than `width`, all alike, so that no two that differ become the same: `shop/che…x2x4z:41000`.
/// What cannot be cut any further stays longer.
#[must_use]
pub fn all(names: &[String], width: usize, unicode: bool) -> Vec<String> {
    let distinct: BTreeSet<&String> = names.iter().collect();
    // What comes last tells pods of one workload apart, so that the more of the end is kept the less is left of the beginning.
    let longest = names.iter().map(|n| columns(n)).max().unwrap_or(0);
    for width in width..=longest {
        for share in [2, 3, 5, usize::MAX] {
            let shortened: BTreeSet<String> = distinct.iter().map(|name| one(name, width, share, unicode)).collect();
            if shortened.len() == distinct.len() {
                return names.iter().map(|name| one(name, width, share, unicode)).collect();
            }
        }
    }
    names.to_vec()
}

/// One name in at most `width` columns, one `share`th of which, at most, is its beginning.
fn one(name: &str, width: usize, share: usize, unicode: bool) -> String {
    let is_address = name.parse::<SocketAddr>().is_ok();
    if columns(name) <= width || is_address {
        return name.to_owned();
    }
    // The port, and what was dialled.
    let (body, tail) = match name.find(':') {
        Some(at) => name.split_at(at),
        None => (name, ""),
    };
    let room = width.saturating_sub(columns(tail)).max(LEAST);
    if columns(body) <= room {
        return name.to_owned();
    }
    let head = (room - 1) / share;
    let end = room - 1 - head;
    let mark = if unicode { '…' } else { '~' };
    let begins: String = within(body.chars(), head).collect();
    let ends: Vec<char> = within(body.chars().rev(), end).collect();
    begins + &String::from(mark) + &ends.into_iter().rev().collect::<String>() + tail
}

/// The first characters that have room in so many columns.
fn within(text: impl Iterator<Item = char>, room: usize) -> impl Iterator<Item = char> {
    text.scan(0, move |used, c| {
        *used += columns_of(c);
        (*used <= room).then_some(c)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn long_names_are_cut_in_the_middle_and_ports_stay() {
        let all = all(&names(&["shop/checkout-7d9f8c6b5-x2x4z:41000", "shop/db:5432"]), 20, true);
        assert_eq!(all, ["shop/c…5-x2x4z:41000", "shop/db:5432"]);
        assert!(all.iter().all(|n| n.chars().count() <= 20));
    }

    #[test]
    fn names_that_differ_stay_different() {
        let pods = names(&[
            "shop/web-7d9f8c6b5-aaaaa:80",
            "shop/web-7d9f8c6b5-baaaa:80",
            "shop/web-6d9f8c6b5-aaaaa:80",
            "prod/web-7d9f8c6b5-aaaaa:80",
        ]);
        for width in 8..40 {
            let short = all(&pods, width, false);
            let distinct: BTreeSet<&String> = short.iter().collect();
            assert_eq!(distinct.len(), pods.len(), "{width}: {short:?}");
            assert!(short.iter().all(|n| n.ends_with(":80")), "{short:?}");
        }
    }

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!(all(&names(&["日本語日本語日本語:80", "a:1"]), 11, true), ["日…本語:80", "a:1"]);
    }

    #[test]
    fn addresses_are_never_cut() {
        let addresses = names(&["10.42.1.2:41000", "[fd00:42:aaaa:bbbb::2]:41000"]);
        assert_eq!(all(&addresses, 8, true), addresses);
    }
}
