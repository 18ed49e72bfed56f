//! Every field that a pod may have, from the OpenAPI of a cluster, each put into the helper's pod with a value that is valid there.

use serde_json::{Map, Value, json};

/// The objects of the helper's pod and their schemas. What lies below other fields is not reached: the field itself is refused.
const OBJECTS: [(&str, &str); 14] = [
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "/metadata"),
    ("io.k8s.api.core.v1.PodSpec", "/spec"),
    ("io.k8s.api.core.v1.PodSecurityContext", "/spec/securityContext"),
    ("io.k8s.api.core.v1.Toleration", "/spec/tolerations/0"),
    ("io.k8s.api.core.v1.Volume", "/spec/volumes/0"),
    ("io.k8s.api.core.v1.HostPathVolumeSource", "/spec/volumes/0/hostPath"),
    ("io.k8s.api.core.v1.Container", CONTAINER),
    ("io.k8s.api.core.v1.ResourceRequirements", "/spec/containers/0/resources"),
    ("io.k8s.api.core.v1.VolumeMount", "/spec/containers/0/volumeMounts/0"),
    ("io.k8s.api.core.v1.SecurityContext", CONTEXT),
    ("io.k8s.api.core.v1.Capabilities", "/spec/containers/0/securityContext/capabilities"),
    ("io.k8s.api.core.v1.SELinuxOptions", "/spec/containers/0/securityContext/seLinuxOptions"),
    ("io.k8s.api.core.v1.SeccompProfile", "/spec/containers/0/securityContext/seccompProfile"),
    ("io.k8s.api.core.v1.AppArmorProfile", "/spec/containers/0/securityContext/appArmorProfile"),
];

const CONTAINER: &str = "/spec/containers/0";
const CONTEXT: &str = "/spec/containers/0/securityContext";

/// Objects in the cluster that samples name; the test makes them.
pub const ACCOUNT: &str = "e2e";
/// The same: a RuntimeClass.
pub const RUNTIME_CLASS: &str = "e2e-runtime";

/// A pod that is not the helper's.
#[derive(Debug, Clone)]
pub struct Other {
    /// What is different, as a JSON pointer.
    pub field: String,
    /// The whole pod.
    pub pod: Value,
}

/// The helper's pod with one field more, for each field that it has not.
///
/// # Panics
/// When the OpenAPI has no pod in it.
#[must_use]
pub fn with_one_more(openapi: &Value, helper: &Value) -> Vec<Other> {
    let schemas = &openapi["components"]["schemas"];
    let samples = samples();
    let mut others = Vec::new();
    for (schema, place) in OBJECTS {
        let fields = schemas[schema]["properties"].as_object().unwrap_or_else(|| panic!("the OpenAPI has no {schema}"));
        for (name, field) in fields {
            let pointer = format!("{place}/{name}");
            if helper.pointer(&pointer).is_some() {
                continue;
            }
            let mut pod = helper.clone();
            if schema.ends_with(".Volume") {
                // A volume has one source.
                set(&mut pod, "/spec/volumes/0/hostPath", &Value::Null);
            }
            let value = samples.get(&pointer).cloned().unwrap_or_else(|| sample(schemas, field));
            set(&mut pod, &pointer, &value);
            for (beside, value) in needs(&pointer).as_object().into_iter().flatten() {
                set(&mut pod, beside, value);
            }
            others.push(Other { field: pointer, pod });
        }
    }
    others
}

/// The helper's pod with one value changed, for each value that it has.
#[must_use]
pub fn with_another_value(helper: &Value) -> Vec<Other> {
    let (mut leaves, values) = (Vec::new(), values());
    walk(helper, String::new(), &mut |pointer, value| {
        if !value.is_object() && !value.is_array() {
            leaves.push((pointer.to_owned(), value.clone()));
        }
    });
    let in_pod = |p: &str| p.starts_with("/spec") || p.starts_with("/metadata");
    leaves.retain(|(pointer, _)| in_pod(pointer));
    leaves
        .into_iter()
        .map(|(field, value)| {
            let mut pod = helper.clone();
            let changed = values.get(&field).cloned().unwrap_or_else(|| match &value {
                Value::Bool(b) => json!(!b),
                Value::Number(n) => json!(n.as_i64().unwrap_or_default() + 1),
                // A quantity, where it is one.
                Value::String(s) if field.contains("/resources/") => json!(format!("1{s}")),
                Value::String(s) => json!(format!("{s}x")),
                other => other.clone(),
            });
            set(&mut pod, &field, &changed);
            for (beside, value) in needs(&format!("{field}=")).as_object().into_iter().flatten() {
                set(&mut pod, beside, value);
            }
            Other { field, pod }
        })
        .collect()
}

/// The helper's pod with one field less, for each field that it has.
#[must_use]
pub fn with_one_less(helper: &Value) -> Vec<Other> {
    let mut fields = Vec::new();
    walk(helper, String::new(), &mut |pointer, _| fields.push(pointer.to_owned()));
    fields.retain(|p| (p.starts_with("/spec/") || p.starts_with("/metadata/")) && !p.ends_with(|c: char| c.is_ascii_digit()));
    fields
        .into_iter()
        .map(|field| {
            let mut pod = helper.clone();
            set(&mut pod, &field, &Value::Null);
            Other { field, pod }
        })
        .collect()
}

fn walk(value: &Value, pointer: String, visit: &mut impl FnMut(&str, &Value)) {
    visit(&pointer, value);
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, v)| walk(v, format!("{pointer}/{}", escape(key)), visit)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| walk(v, format!("{pointer}/{i}"), visit)),
        _ => {}
    }
}

/// Puts a value at a pointer, with the objects above it; null takes away what is there.
fn set(object: &mut Value, pointer: &str, value: &Value) {
    let Some((parent, key)) = pointer.rsplit_once('/') else { return };
    let key = key.replace("~1", "/").replace("~0", "~");
    if object.pointer(parent).is_none() {
        set(object, parent, &json!({}));
    }
    match object.pointer_mut(parent) {
        Some(Value::Object(fields)) if value.is_null() => drop(fields.remove(&key)),
        Some(Value::Object(fields)) => drop(fields.insert(key, value.clone())),
        Some(Value::Array(items)) => match key.parse::<usize>() {
            Ok(index) if index < items.len() => items[index] = value.clone(),
            _ => items.push(value.clone()),
        },
        _ => {}
    }
}

/// A value of a schema: the least that its required fields allow.
fn sample(schemas: &Value, schema: &Value) -> Value {
    let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    if let Some(name) = reference.and_then(|r| r.rsplit('/').next()) {
        return sample(schemas, &schemas[name]);
    }
    if schema["oneOf"].is_array() {
        return json!("1");
    }
    if let Some(value) = schema["enum"].as_array().and_then(|values| values.iter().find(|v| **v != json!(""))) {
        return value.clone();
    }
    match schema["type"].as_str() {
        Some("boolean") => json!(true),
        Some("integer" | "number") => json!(7),
        Some("string") if schema["format"] == "date-time" => json!("2020-01-01T00:00:00Z"),
        Some("string") => json!("x"),
        Some("array") => json!([sample(schemas, &schema["items"])]),
        _ if schema["additionalProperties"].is_object() => json!({"x": sample(schemas, &schema["additionalProperties"])}),
        _ => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            Value::Object(required.map(|r| (r.to_owned(), sample(schemas, &schema["properties"][r]))).collect())
        }
    }
}

/// Values where the least that the schema allows is not valid.
fn samples() -> Map<String, Value> {
    let mut samples = volumes();
    let exec = json!({"exec": {"command": ["/proc/1/root/bin/sh", "-c", "true"]}});
    let in_spec = json!({
        "hostAliases": [{"ip": "10.0.0.1"}], "initContainers": [{"name": "x", "image": "x"}], "os": {"name": "linux"}, "overhead": {"cpu": "1"},
        "priorityClassName": "system-node-critical", "resourceClaims": [{"name": "x", "resourceClaimName": "x"}],
        "runtimeClassName": RUNTIME_CLASS, "schedulingGates": [{"name": "sockpath.test/x"}], "schedulingGroup": {"podGroupName": "x"},
        "securityContext": {"runAsUser": 1}, "serviceAccount": ACCOUNT, "serviceAccountName": ACCOUNT,
        "securityContext/appArmorProfile": {"type": "RuntimeDefault"}, "securityContext/seccompProfile": {"type": "RuntimeDefault"},
        "securityContext/seLinuxChangePolicy": "Recursive",
    });
    let in_container = json!({
        "envFrom": [{"secretRef": {"name": "x"}}], "livenessProbe": exec, "readinessProbe": exec, "startupProbe": exec, "lifecycle": {"postStart": exec},
        "resizePolicy": [{"resourceName": "memory", "restartPolicy": "NotRequired"}], "restartPolicy": "Always",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}],
        "volumeDevices": [{"name": "x", "devicePath": "/x"}], "resources/claims": [{"name": "x"}],
        "volumeMounts/0/mountPropagation": "HostToContainer", "securityContext/procMount": "Unmasked",
    });
    samples.insert("/metadata/finalizers".to_owned(), json!(["sockpath.test/held"]));
    for (place, fields) in [("/spec", in_spec), (CONTAINER, in_container)] {
        samples.extend(fields.as_object().into_iter().flatten().map(|(k, v)| (format!("{place}/{k}"), v.clone())));
    }
    samples
}

fn volumes() -> Map<String, Value> {
    let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let sources = json!({
        "azureDisk": {"diskName": "x", "diskURI": "https://a.blob.core.windows.net/c/d.vhd"}, "configMap": {"name": "x"},
        "ephemeral": {"volumeClaimTemplate": claim}, "fc": {"targetWWNs": ["x"], "lun": 1}, "flocker": {"datasetName": "x"},
        "image": {"reference": "x"}, "iscsi": {"targetPortal": "x", "iqn": "iqn.2001-04.com.example:x", "lun": 1},
        "nfs": {"server": "x", "path": "/"}, "quobyte": {"registry": "x:1", "volume": "x"}, "secret": {"secretName": "x"},
        "scaleIO": {"gateway": "x", "system": "x", "secretRef": {"name": "x"}, "volumeName": "x"}, "storageos": {"volumeName": "x"},
    });
    sources.as_object().into_iter().flatten().map(|(k, v)| (format!("/spec/volumes/0/{k}"), v.clone())).collect()
}

/// Other values, where the general rule makes one that is not valid.
fn values() -> Map<String, Value> {
    let in_spec = json!({
        "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "volumes/0/hostPath/path": "/", "volumes/1/hostPath/path": "/sys",
        "volumes/0/hostPath/type": "DirectoryOrCreate", "volumes/1/hostPath/type": "DirectoryOrCreate", "tolerations/0/operator": "Equal",
    });
    let in_container = json!({
        "imagePullPolicy": "Never", "terminationMessagePolicy": "File", "volumeMounts/0/recursiveReadOnly": "Enabled",
        "securityContext/seccompProfile/type": "Localhost", "securityContext/appArmorProfile/type": "RuntimeDefault",
        "securityContext/capabilities/add/0": "SYS_MODULE", "securityContext/capabilities/drop/0": "NET_RAW",
    });
    let mut values = Map::new();
    for (place, fields) in [("/spec", in_spec), (CONTAINER, in_container)] {
        values.extend(fields.as_object().into_iter().flatten().map(|(k, v)| (format!("{place}/{k}"), v.clone())));
    }
    values
}

/// What has to go along with a field (or, after `=`, with another value of one) for the pod to be valid.
fn needs(field: &str) -> Value {
    let profile = "/spec/containers/0/securityContext/seccompProfile";
    let armor = "/spec/containers/0/securityContext/appArmorProfile";
    match field {
        "/spec/overhead" => json!({"/spec/runtimeClassName": RUNTIME_CLASS}),
        "/spec/schedulingGates" => json!({"/spec/nodeName": null}),
        "/spec/shareProcessNamespace" | "/spec/hostUsers" => json!({"/spec/hostPID": null}),
        "/spec/tolerations/0/tolerationSeconds" => json!({"/spec/tolerations/0/effect": "NoExecute"}),
        "/spec/tolerations/0/value" => json!({"/spec/tolerations/0/key": "x", "/spec/tolerations/0/operator": "Equal"}),
        "/spec/tolerations/0/operator=" => json!({"/spec/tolerations/0/key": "x"}),
        "/spec/containers/0/restartPolicyRules" => json!({"/spec/containers/0/restartPolicy": "Never"}),
        "/spec/containers/0/volumeDevices" => json!({"/spec/volumes/9": {"name": "x", "persistentVolumeClaim": {"claimName": "x"}}}),
        "/spec/containers/0/resources/claims" => json!({"/spec/resourceClaims": [{"name": "x", "resourceClaimName": "x"}]}),
        "/spec/containers/0/volumeMounts/0/mountPropagation" | "/spec/containers/0/volumeMounts/0/readOnly=" => {
            json!({"/spec/containers/0/volumeMounts/0/recursiveReadOnly": null})
        }
        "/spec/containers/0/securityContext/procMount" => json!({"/spec/hostUsers": false, "/spec/hostPID": null}),
        "/spec/containers/0/securityContext/privileged=" => json!({"/spec/containers/0/securityContext/allowPrivilegeEscalation": true}),
        "/spec/containers/0/securityContext/seccompProfile/localhostProfile" => json!({format!("{profile}/type"): "Localhost"}),
        "/spec/containers/0/securityContext/seccompProfile/type=" => json!({format!("{profile}/localhostProfile"): "x"}),
        "/spec/containers/0/securityContext/appArmorProfile/localhostProfile" => json!({format!("{armor}/type"): "Localhost"}),
        "/spec/volumes/0/name=" => json!({"/spec/containers/0/volumeMounts/0/name": "cgroupx"}),
        "/spec/volumes/1/name=" => json!({"/spec/containers/0/volumeMounts/1/name": "bpfx"}),
        "/spec/containers/0/volumeMounts/0/name=" => json!({"/spec/containers/0/volumeMounts/0/name": "bpf"}),
        "/spec/containers/0/volumeMounts/1/name=" => json!({"/spec/containers/0/volumeMounts/1/name": "cgroup"}),
        _ => Value::Null,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
mod tests {
    use super::*;

    #[test]
    fn one_more_one_less_and_another_value() {
        let pod = json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": {"hostPID": true, "containers": [{"args": ["b"]}]}});
        let less: Vec<String> = with_one_less(&pod).into_iter().map(|o| o.field).collect();
        assert_eq!(less, ["/metadata/name", "/spec/containers", "/spec/containers/0/args", "/spec/hostPID"]);
        let other = with_another_value(&pod);
        let args = other.iter().find(|o| o.field == "/spec/containers/0/args/0").unwrap();
        assert_eq!((other.len(), &args.pod["spec"]["containers"][0]["args"]), (3, &json!(["bx"])));
        let mut schemas: Map<String, Value> = OBJECTS.iter().map(|(name, _)| ((*name).to_owned(), json!({"properties": {}}))).collect();
        let tall = json!({"allOf": [{"$ref": "#/components/schemas/Tall"}]});
        schemas.insert("Tall".to_owned(), json!({"required": ["m"], "properties": {"m": {"type": "integer"}, "n": {"type": "string"}}}));
        schemas.insert("io.k8s.api.core.v1.PodSpec".to_owned(), json!({"properties": {"hostPID": {"type": "boolean"}, "tall": tall}}));
        let more = with_one_more(&json!({"components": {"schemas": schemas}}), &pod);
        assert_eq!((more.len(), more[0].field.as_str(), &more[0].pod["spec"]["tall"]), (1, "/spec/tall", &json!({"m": 7})));
    }
}
