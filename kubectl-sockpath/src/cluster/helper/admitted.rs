//! What a cluster made of a helper pod while it admitted it: webhooks and policies change pods, and the API server does not say so.
//!
//! Pure: two objects in, words out.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::cluster::helper::advice::LIST_MUTATORS;

/// Newer fields, which an older API server drops without harm.
const MAY_BE_DROPPED: [&str; 1] = ["recursiveReadOnly"];

/// The differences between the requested and the admitted pod, e.g. `spec.tolerations[0] was removed`. Additions are
/// ignored, except for containers, which would run next to the helper.
#[must_use]
pub fn changes(wanted: &Pod, admitted: &Pod) -> Vec<String> {
    let value = |pod: &Pod| serde_json::to_value(&pod.spec).unwrap_or_default();
    let (wanted, admitted) = (value(wanted), value(admitted));
    let mut found = Vec::new();
    compare("spec", &wanted, &admitted, &mut found);
    for list in ["containers", "initContainers"] {
        let names = |spec: &Value| -> Vec<String> {
            let containers = spec[list].as_array().into_iter().flatten();
            containers.filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
        };
        let ours = names(&wanted);
        found.extend(
            names(&admitted)
                .into_iter()
                .filter(|name| !ours.contains(name))
                .map(|name| format!("spec.{list} has an additional entry, {name}")),
        );
    }
    found
}

fn compare(path: &str, wanted: &Value, admitted: &Value, found: &mut Vec<String>) {
    match (wanted, admitted) {
        (wanted, Value::Null) if is_default(wanted) => {}
        (_, Value::Null) => found.push(format!("{path} was removed")),
        (Value::Object(wanted), Value::Object(admitted)) => {
            for (key, value) in wanted.iter().filter(|(key, _)| !MAY_BE_DROPPED.contains(&key.as_str())) {
                compare(&format!("{path}.{key}"), value, admitted.get(key).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(wanted), Value::Array(admitted)) if wanted.iter().all(Value::is_object) => {
            for (index, value) in wanted.iter().enumerate() {
                // Lists with names are merged by them; a toleration is there or is not.
                let named = admitted.iter().find(|a| value.get("name").is_some_and(|name| a.get("name") == Some(name)));
                let other = named.or_else(|| admitted.iter().find(|a| *a == value)).unwrap_or(&Value::Null);
                compare(&format!("{path}[{index}]"), value, other, found);
            }
        }
        (wanted, admitted) if wanted != admitted => found.push(format!("{path} is {} instead of {}", shown(admitted), shown(wanted))),
        _ => {}
    }
}

/// Values the API server leaves out.
fn is_default(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false)) || value.as_array().is_some_and(Vec::is_empty)
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Those of the changes that are about what the helper may do.
#[must_use]
pub fn of_rights(mut changes: Vec<String>) -> Vec<String> {
    changes.retain(|c| c.contains(".securityContext."));
    changes
}

/// The changes and what to do about them, as lines to be added to what went wrong; `None` when nothing was changed.
#[must_use]
pub fn describe(changes: &[String], namespace: &str) -> Option<String> {
    (!changes.is_empty()).then(|| {
        format!(
            "the cluster changed the helper pod while it admitted it: {}\n\
             who may do that: {LIST_MUTATORS}; an administrator can except namespace {namespace} there",
            changes.join("; ")
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn wanted() -> Value {
        json!({
            "nodeName": "n1", "hostPID": true, "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "helper", "image": "i", "args": ["session"],
                "volumeMounts": [{"name": "bpf", "mountPath": "/sys/fs/bpf", "readOnly": false, "recursiveReadOnly": "IfPossible"}],
                "securityContext": {"privileged": false, "seccompProfile": {"type": "RuntimeDefault"}}}]
        })
    }

    fn after(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut admitted = wanted();
        change(&mut admitted);
        changes(&pod(wanted()), &pod(admitted))
    }

    #[test]
    fn defaults_and_additions_are_no_changes() {
        let none = after(|spec| {
            spec["containers"][0]["volumeMounts"][0] = json!({"name": "bpf", "mountPath": "/sys/fs/bpf"});
            spec["containers"][0]["env"] = json!([{"name": "A", "value": "b"}]);
            spec["tolerations"] = json!([{"key": "a", "operator": "Exists"}, {"operator": "Exists"}]);
            spec["schedulerName"] = "default-scheduler".into();
        });
        assert_eq!(none, Vec::<String>::new());
    }

    #[test]
    fn what_is_not_as_it_was_wanted_is_named() {
        assert_eq!(after(|spec| drop(spec.as_object_mut().unwrap().remove("nodeName"))), ["spec.nodeName was removed"]);
        assert_eq!(after(|spec| spec["tolerations"] = json!([{"key": "a"}])), ["spec.tolerations[0] was removed"]);
        assert_eq!(
            after(|spec| spec["containers"][0]["securityContext"]["seccompProfile"] = json!({"type": "Localhost", "localhostProfile": "x"})),
            ["spec.containers[0].securityContext.seccompProfile.type is Localhost instead of RuntimeDefault"]
        );
        assert_eq!(
            after(|spec| spec["containers"][0]["args"] = json!(["x"])),
            [r#"spec.containers[0].args is ["x"] instead of ["session"]"#]
        );
        let sidecar = after(|spec| spec["containers"].as_array_mut().unwrap().push(json!({"name": "proxy"})));
        assert_eq!(sidecar, ["spec.containers has an additional entry, proxy"]);
        assert!(describe(&sidecar, "tools").unwrap().contains("except namespace tools"));
        assert_eq!(describe(&[], "tools"), None);
    }
}
