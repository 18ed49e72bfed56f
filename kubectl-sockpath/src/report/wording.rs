//! Words for counts and places, of which the texts of findings consist.

use sockpath_protocol::packet::Direction;

/// `1 reset was`, `3 resets were`.
pub(super) fn counted(count: usize, one: &str, verb: bool) -> String {
    let (s, be) = if count == 1 { ("", " was") } else { ("s", " were") };
    format!("{count} {one}{s}{}", if verb { be } else { "" })
}

/// As [`counted`], of a count that may be larger than memory.
pub(super) fn large(count: u64, one: &str) -> String {
    counted(usize::try_from(count).unwrap_or(usize::MAX), one, false)
}

/// `once`, `3 times`.
pub(super) fn times(count: usize) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

/// `1 reply packet was`, `3 request packets were`.
pub(super) fn packets(count: usize, direction: Direction) -> String {
    let what = match direction {
        Direction::Request => "request",
        Direction::Reply => "reply",
    };
    counted(count, &format!("{what} packet"), true)
}

/// `in pod x on node y at device z`, with what is known.
pub(super) fn place(node: Option<&str>, pod: Option<&str>, device: Option<&str>) -> String {
    let mut text = match (pod, node) {
        (Some(pod), _) => format!("in pod {pod}"),
        (None, Some(node)) if !node.is_empty() => format!("on {node}"),
        _ => "somewhere".to_owned(),
    };
    if let Some(device) = device {
        text.push_str(&format!(" at {device}"));
    }
    text
}
