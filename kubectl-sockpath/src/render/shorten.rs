//! Names cut in the middle so that different ones stay different. Ports and addresses are never cut.

use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Shortest form of a name that still says something.
const LEAST: usize = 8;

/// Cuts those of the names that are longer than `width`, all alike, so that no two that differ become the same: `shop/che…x2x4z:41000`.
/// What cannot be cut any further stays longer.
#[must_use]
pub fn all(names: &[String], width: usize, unicode: bool) -> Vec<String> {
    let distinct: BTreeSet<&String> = names.iter().collect();
    // What comes last tells pods of one workload apart, so that the more of the end is kept the less is left of the beginning.
    let longest = names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
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

/// One name in at most `width` characters, one `share`th of which, at most, is its beginning.
fn one(name: &str, width: usize, share: usize, unicode: bool) -> String {
    let is_address = name.parse::<SocketAddr>().is_ok();
    if name.chars().count() <= width || is_address {
        return name.to_owned();
    }
    // The port, and what was dialled.
    let (body, tail) = match name.find(':') {
        Some(at) => name.split_at(at),
        None => (name, ""),
    };
    let body: Vec<char> = body.chars().collect();
    let room = width.saturating_sub(tail.chars().count()).max(LEAST);
    if body.len() <= room {
        return name.to_owned();
    }
    let head = (room - 1) / share;
    let end = room - 1 - head;
    let mark = if unicode { '…' } else { '~' };
    let kept = body[..head].iter().chain([&mark]).chain(&body[body.len() - end..]);
    kept.collect::<String>() + tail
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
    fn addresses_are_never_cut() {
        let addresses = names(&["10.42.1.2:41000", "[fd00:42:aaaa:bbbb::2]:41000"]);
        assert_eq!(all(&addresses, 8, true), addresses);
    }
}
