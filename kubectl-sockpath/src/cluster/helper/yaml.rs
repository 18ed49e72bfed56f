//! YAML with a comment beside what needs one, for `--dry-run=client -o yaml`: what is printed is meant to be reviewed.

use std::fmt::Write;

use serde_json::Value;

/// Prints a value as YAML. `comment` is called for each key and list element with its path (`spec.hostPID`,
/// `spec.containers[0].name`); its answer goes on lines above it.
#[must_use]
pub fn print(value: &Value, comment: &dyn Fn(&str, &Value) -> Option<String>) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => object(&mut out, map, "", 0, false, comment),
        Value::Array(list) if !list.is_empty() => array(&mut out, list, "", 0, comment),
        scalar => {
            out.push_str(&inline(scalar));
            out.push('\n');
        }
    }
    out
}

type Comment<'a> = &'a dyn Fn(&str, &Value) -> Option<String>;

/// `hanging` means the first line's indent is already written (it follows `- `).
fn object(out: &mut String, map: &serde_json::Map<String, Value>, path: &str, indent: usize, hanging: bool, comment: Comment<'_>) {
    let mut first = hanging;
    for (key, value) in map {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if let Some(text) = comment(&path, value).filter(|_| !first) {
            comment_lines(out, &text, indent);
        }
        if !std::mem::take(&mut first) {
            let _ = write!(out, "{:indent$}", "");
        }
        let _ = write!(out, "{}:", scalar_string(key));
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                object(out, map, &path, indent + 2, false, comment);
            }
            Value::Array(list) if !list.is_empty() => {
                out.push('\n');
                array(out, list, &path, indent, comment);
            }
            other => {
                let _ = writeln!(out, " {}", inline(other));
            }
        }
    }
}

fn array(out: &mut String, list: &[Value], path: &str, indent: usize, comment: Comment<'_>) {
    for (i, value) in list.iter().enumerate() {
        let path = format!("{path}[{i}]");
        if let Some(text) = comment(&path, value) {
            comment_lines(out, &text, indent);
        }
        // The first key of an object shares the line of the dash, so its comment goes above that.
        if let Some((key, first)) = value.as_object().and_then(|m| m.iter().next())
            && let Some(text) = comment(&format!("{path}.{key}"), first)
        {
            comment_lines(out, &text, indent);
        }
        let _ = write!(out, "{:indent$}- ", "");
        match value {
            Value::Object(map) if !map.is_empty() => object(out, map, &path, indent + 2, true, comment),
            other => {
                let _ = writeln!(out, "{}", inline(other));
            }
        }
    }
}

fn comment_lines(out: &mut String, text: &str, indent: usize) {
    for line in text.lines() {
        let _ = writeln!(out, "{:indent$}# {line}", "");
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(s) => scalar_string(s),
        // Nested empty lists and objects; anything else in here is a number, a bool or null, which JSON and YAML spell alike.
        other => other.to_string(),
    }
}

/// Plain where YAML reads it back as the same string, quoted (JSON strings are YAML) otherwise.
fn scalar_string(s: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let plain = s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && s.chars().all(|c| word(c) || c == ':' || c == '@')
        && !s.ends_with(':')
        && !matches!(s.to_ascii_lowercase().as_str(), "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n");
    if plain { s.to_owned() } else { Value::from(s).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
        let value = json!({
            "a": {"b": [1, "two", {"c": "yes", "d": ["x", {"e": null}]}], "empty": {}, "none": []},
            "text": "with \"quotes\": and # hash", "number-like": "1e3", "image": "r.io/x@sha256:0a", "bool": true,
            "t/x": "trailing:", "multi": "a\nb"
        });
        let text = print(&value, &|_, _| None);
        let back: Value = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(back, value, "\n{text}");
    }

    #[test]
    fn comments_stand_above() {
        let value = json!({"spec": {"hostPID": true, "list": ["A", "B"]}});
        let text = print(&value, &|path, v| match path {
            "spec.hostPID" => Some("one\ntwo".into()),
            "spec.list[1]" => Some(format!("about {v}")),
            _ => None,
        });
        assert_eq!(text, "spec:\n  # one\n  # two\n  hostPID: true\n  list:\n  - A\n  # about \"B\"\n  - B\n");
    }
}
