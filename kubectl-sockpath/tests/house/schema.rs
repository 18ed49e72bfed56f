//! docs/schema/trace.json describes every field of `trace -o json`, for every recording of the tests.

use std::process::Command;

use serde_json::Value;

use super::{files, read};

/// What is wrong with a value: the path in the document, and why. As strict as the schema can be read: fields that it does not name
/// are wrong, though consumers have to accept them.
fn faults(schema: &Value, rule: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(name) = rule["$ref"].as_str() {
        let definition = &schema["$defs"][name.trim_start_matches("#/$defs/")];
        assert!(definition.is_object(), "{name} is not defined");
        return faults(schema, definition, value, at, found);
    }
    if let Some(any) = rule["anyOf"].as_array() {
        let mut each = any.iter().map(|rule| {
            let mut found = Vec::new();
            faults(schema, rule, value, at, &mut found);
            found
        });
        let first = each.next().unwrap();
        if !first.is_empty() && each.all(|f| !f.is_empty()) {
            found.extend(first);
        }
        return;
    }
    if rule.get("const").is_some_and(|only| only != value) || rule["enum"].as_array().is_some_and(|all| !all.contains(value)) {
        found.push(format!("{at}: {value} is not in the schema"));
    }
    let types: Vec<&str> = match &rule["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !types.is_empty() && !types.iter().any(|t| is_of(value, t)) {
        return found.push(format!("{at}: {value} is not of type {types:?}"));
    }
    if rule["minimum"].as_i64().is_some_and(|least| value.as_i64().is_some_and(|v| v < least)) {
        found.push(format!("{at}: {value} is too small"));
    }
    match value {
        Value::Array(items) if rule["items"].is_object() => {
            for (index, item) in items.iter().enumerate() {
                faults(schema, &rule["items"], item, &format!("{at}[{index}]"), found);
            }
        }
        Value::Object(fields) => {
            for name in rule["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !fields.contains_key(name) {
                    found.push(format!("{at}: no {name}"));
                }
            }
            for (name, field) in fields {
                let known = rule["properties"].get(name).or_else(|| rule.get("additionalProperties"));
                match known {
                    Some(rule) => faults(schema, rule, field, &format!("{at}.{name}"), found),
                    None => found.push(format!("{at}: {name} is not in the schema")),
                }
            }
        }
        _ => {}
    }
}

fn is_of(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => panic!("type {kind} of the schema is unknown here"),
    }
}

/// The document of each recording.
fn replayed() -> Vec<(String, Value)> {
    let recordings = files("kubectl-sockpath/tests/recordings", ".jsonl");
    assert!(recordings.len() > 10, "only {} recordings", recordings.len());
    let replay = |name: String| {
        let path = super::root().join(&name);
        let args = ["trace", "-o", "json", "--replay"];
        let out = Command::new(env!("CARGO_BIN_EXE_kubectl-sockpath")).args(args).arg(path).output().unwrap();
        let document = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{name}: {e}"));
        (name, document)
    };
    recordings.into_iter().map(replay).collect()
}

#[test]
fn the_schema_describes_every_document() {
    let schema: Value = serde_json::from_str(&read("docs/schema/trace.json")).unwrap();
    for (name, document) in replayed() {
        let mut found = Vec::new();
        faults(&schema, &schema, &document, "$", &mut found);
        assert!(found.is_empty(), "{name}:\n{}", found.join("\n"));
        // It notices: another type, a field without description, a missing one.
        for (field, wrong) in [("kernel", Some(Value::from(1))), ("unheard-of", Some(Value::Null)), ("packets", None)] {
            let (mut changed, mut found) = (document.clone(), Vec::new());
            match wrong {
                Some(wrong) => changed[field] = wrong,
                None => drop(changed.as_object_mut().unwrap().remove(field)),
            }
            faults(&schema, &schema, &changed, "$", &mut found);
            assert_eq!(found.len(), 1, "{name}: {field}: {found:?}");
        }
    }
}

#[test]
fn every_field_of_the_schema_is_explained() {
    let schema: Value = serde_json::from_str(&read("docs/schema/trace.json")).unwrap();
    let page = read("docs/json.md");
    for field in schema["properties"].as_object().unwrap().keys() {
        assert!(page.contains(&format!("`{field}")), "docs/json.md does not explain {field}");
    }
}

#[test]
fn every_finding_is_listed_for_scripts() {
    let page = read("docs/scripts.md");
    for (name, document) in replayed() {
        for finding in document["findings"].as_array().unwrap() {
            let id = finding["id"].as_str().unwrap();
            assert!(page.contains(&format!("`{id}`")), "{name}: docs/scripts.md does not list {id}");
        }
    }
}
