//! manifests/ against a real API server: who may create pods in the helpers' namespace, and has nothing but our Role, runs our helper
//! and nothing else.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sockpath_tests::apiserver::Proxy;
use sockpath_tests::changes::{Undo, Unenforced, apply};
use sockpath_tests::cluster::{Cluster, HELPERS, Held, IN_FORCE, Setup, cluster_or_skip, output, own_cluster_or_skip, run, text};
use sockpath_tests::pod_fields::{ACCOUNT, Other, RUNTIME_CLASS, with_another_value, with_one_less, with_one_more};

/// Has the Role `sockpath-user`, and no other right.
const USER: &str = "alice";
const PODS: &str = "/api/v1/namespaces/sockpath/pods";

/// What the API server writes itself, whatever is sent.
const OF_THE_SERVER: [&str; 5] = ["creationTimestamp", "generation", "managedFields", "resourceVersion", "uid"];
/// What is refused before the policy is evaluated, with the words of that refusal.
const REFUSED_BEFORE: [(&str, &str); 3] = [
    ("/spec/ephemeralContainers", "cannot be set on create"),
    ("/spec/preemptionPolicy", "priority admission controller computed"),
    ("/spec/priority", "priority admission controller computed"),
];
/// What is admitted beside the helper's own shape, because it is what the kubelet does without it.
const HARMLESS: [&str; 1] = ["/spec/containers/0/resizePolicy"];
/// Values that are the user's, and host PIDs, without which a helper has less.
const FREE: [&str; 8] = [
    "/metadata/annotations/sockpath~1client",
    "/metadata/annotations/sockpath~1client-process",
    "/metadata/annotations/sockpath~1started-by",
    "/metadata/labels/app.kubernetes.io~1version",
    "/metadata/labels/sockpath~1session",
    "/metadata/name",
    "/spec/hostPID",
    "/spec/nodeName",
];
/// Fields without which a helper has fewer rights or says less, or that the API server fills in as we do.
const DISPENSABLE: [&str; 12] = [
    "/metadata/annotations",
    "/metadata/annotations/sockpath~1client",
    "/metadata/annotations/sockpath~1client-process",
    "/metadata/annotations/sockpath~1started-by",
    "/metadata/labels/app.kubernetes.io~1version",
    "/metadata/labels/sockpath~1session",
    "/metadata/namespace",
    "/spec/hostPID",
    "/spec/tolerations",
    "/spec/containers/0/imagePullPolicy",
    "/spec/containers/0/securityContext/capabilities/add",
    // Of the mount that is written to: it is false.
    "/spec/containers/0/volumeMounts/1/readOnly",
];
/// Servers before 1.31 drop it.
const DROPPED_BY_OLD_SERVERS: &str = "/spec/containers/0/volumeMounts/0/recursiveReadOnly";

/// The cluster, with a user who has our Role for helpers.
fn prepared(test: &str) -> Option<Held> {
    let cluster = cluster_or_skip(test, Setup::RoutesNftables)?;
    bind(&cluster);
    Some(cluster)
}

fn bind(cluster: &Cluster) {
    let args = ["-n", HELPERS, "create", "rolebinding", "e2e-alice", "--role=sockpath-user", "--user=alice"];
    let _ = output(cluster.kubectl().args(args));
}

/// The pod that a command of the plugin creates.
fn helper_pod(cluster: &Cluster, args: &[&str]) -> Value {
    let out = run(cluster.plugin_anywhere().args(args).args(["--dry-run=client", "-o", "json"]));
    serde_json::from_str(&out).unwrap()
}

/// What would become of a pod.
enum Outcome {
    Denied(String),
    Refused(String),
    Admitted(Value),
}

fn attempt(proxy: &Proxy, pod: &Value) -> Outcome {
    let (code, answer) = proxy.create(Some(USER), &format!("{PODS}?dryRun=All"), pod);
    let message = answer["message"].as_str().unwrap_or_default();
    match message.split_once("ValidatingAdmissionPolicy 'sockpath-helper' with binding 'sockpath-helper' denied request: ") {
        Some((_, why)) => Outcome::Denied(why.to_owned()),
        None if code == 201 => Outcome::Admitted(answer),
        None => Outcome::Refused(format!("{code}: {message}")),
    }
}

/// Tries each pod; fails with all that were not denied, but for those that `expected` knows.
fn assert_denied(proxy: &Proxy, others: &[Other], expected: impl Fn(&Other, &Outcome) -> bool) {
    let mut wrong = Vec::new();
    for other in others {
        let outcome = attempt(proxy, &other.pod);
        let field = &other.field;
        match &outcome {
            _ if expected(other, &outcome) => {}
            Outcome::Denied(why) => assert!(!why.contains("resulted in error"), "{field}: {why}"),
            Outcome::Refused(why) => wrong.push(format!("{field}: not by the policy: {why}")),
            Outcome::Admitted(_) => wrong.push(format!("{field}: admitted: {}", other.pod.pointer(field).unwrap_or(&Value::Null))),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), others.len(), wrong.join("\n"));
}

#[test]
fn every_mode_of_the_plugin_is_admitted() {
    let Some(cluster) = prepared("every_mode_of_the_plugin_is_admitted") else { return };
    let proxy = Proxy::start(&cluster);
    for args in [
        &["trace", "a", "b"][..],
        &["trace", "a", "b", "--seccomp", "Unconfined"],
        &["accelerate", "a", "b"],
        &["accelerate", "a", "b", "--detach", "--for", "1h"],
    ] {
        match attempt(&proxy, &helper_pod(&cluster, args)) {
            Outcome::Admitted(_) => {}
            Outcome::Denied(why) | Outcome::Refused(why) => panic!("{args:?}: {why}"),
        }
    }
}

#[test]
fn every_field_that_the_helper_has_not_is_denied() {
    let Some(cluster) = prepared("every_field_that_the_helper_has_not_is_denied") else { return };
    let _undo = Undo::by(&cluster, &["-n sockpath delete serviceaccount e2e", "delete runtimeclass e2e-runtime"]);
    // Samples name them; without them other admission plugins would refuse.
    apply(&cluster, &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": HELPERS}}));
    let (api, overhead) = ("node.k8s.io/v1", json!({"podFixed": {"cpu": "1"}}));
    apply(
        &cluster,
        &json!({"apiVersion": api, "kind": "RuntimeClass", "metadata": {"name": RUNTIME_CLASS}, "handler": "runc", "overhead": overhead}),
    );
    let proxy = Proxy::start(&cluster);
    let (code, openapi) = proxy.get("/openapi/v3/api/v1");
    assert_eq!(code, 200);
    let helper = helper_pod(&cluster, &["accelerate", "a", "b"]);
    let others = with_one_more(&openapi, &helper);
    assert!(others.len() > 100, "a pod has more fields: {}", others.len());
    let known = others.iter().find(|o| o.field == "/spec/runtimeClassName").unwrap();
    cluster.eventually("the runtime class is known", IN_FORCE, |_| matches!(attempt(&proxy, &known.pod), Outcome::Denied(_)));
    assert_denied(&proxy, &others, |other, outcome| {
        let field = other.field.as_str();
        match outcome {
            // The API server's own, or it has no such field where its feature is off: what is sent does not arrive.
            Outcome::Admitted(pod) => {
                let (sent, arrived) = (other.pod.pointer(field), pod.pointer(field));
                let name = field.rsplit('/').next().unwrap();
                if arrived.is_none() {
                    eprintln!("{field} is dropped by this API server");
                }
                HARMLESS.contains(&field)
                    || arrived.is_none()
                    || (OF_THE_SERVER.contains(&name) && (arrived != sent || name == "resourceVersion"))
            }
            Outcome::Refused(why) => REFUSED_BEFORE.iter().any(|(f, words)| *f == field && why.contains(words)),
            Outcome::Denied(_) => false,
        }
    });
    eprintln!("{} fields", others.len());
}

#[test]
fn every_value_of_the_helper_is_kept_to() {
    let Some(cluster) = prepared("every_value_of_the_helper_is_kept_to") else { return };
    let proxy = Proxy::start(&cluster);
    let helper = helper_pod(&cluster, &["accelerate", "a", "b"]);
    let others = with_another_value(&helper);
    assert_denied(&proxy, &others, |other, outcome| match outcome {
        Outcome::Admitted(_) => FREE.contains(&other.field.as_str()),
        // A pod for another namespace than the request's.
        Outcome::Refused(why) => other.field == "/metadata/namespace" && why.starts_with("400"),
        Outcome::Denied(why) => {
            assert!(!FREE.contains(&other.field.as_str()), "{}: {why}", other.field);
            false
        }
    });
    assert_denied(&proxy, &with_one_less(&helper), |other, outcome| match outcome {
        Outcome::Admitted(_) => DISPENSABLE.contains(&other.field.as_str()) || other.field == DROPPED_BY_OLD_SERVERS,
        // Without it, it is not a valid pod.
        Outcome::Refused(why) => why.starts_with("422"),
        Outcome::Denied(_) => false,
    });
    eprintln!("{} values", others.len());
}

/// The finding: a probe or a hook of the kubelet's runs any command with the helper's rights.
#[test]
fn with_our_role_alone_no_command_of_ones_own_runs_on_a_node() {
    let Some(cluster) = prepared("with_our_role_alone_no_command_of_ones_own_runs_on_a_node") else { return };
    let proxy = Proxy::start(&cluster);
    let helper = helper_pod(&cluster, &["accelerate", "a", "b"]);
    let exec = json!({"exec": {"command": ["/proc/1/root/usr/bin/touch", "/proc/1/root/tmp/sockpath-e2e-attack"]}});
    let probe = json!({"exec": exec["exec"], "periodSeconds": 1});
    let sidecar = json!([{"name": "x", "image": Cluster::workload_image(), "command": ["sh"], "restartPolicy": "Always"}]);
    for (pointer, field, value) in [
        ("/spec/containers/0", "livenessProbe", &probe),
        ("/spec/containers/0", "readinessProbe", &probe),
        ("/spec/containers/0", "startupProbe", &probe),
        ("/spec/containers/0", "lifecycle", &json!({"postStart": exec})),
        ("/spec/containers/0", "lifecycle", &json!({"preStop": exec})),
        ("/spec/containers/0", "env", &json!([{"name": "LD_PRELOAD", "value": "/proc/1/root/tmp/x.so"}])),
        ("/spec/containers/0", "args", &json!(["lab", "up"])),
        ("/spec", "initContainers", &sidecar),
    ] {
        let mut pod = helper.clone();
        pod.pointer_mut(pointer).unwrap()[field] = value.clone();
        // Not a dry run: what is admitted would run.
        let (code, answer) = proxy.create(Some(USER), PODS, &pod);
        assert_eq!(code, 422, "{field}: {value}: {answer:#}");
        let message = answer["message"].as_str().unwrap();
        assert!(
            message.contains(&format!("{}.{field}", pointer.trim_start_matches('/').replace("/0", "[0]").replace('/', "."))),
            "{message}"
        );
    }
    assert_eq!(cluster.helper_pods(), Vec::<Value>::new());
}

#[test]
fn our_role_has_no_other_rights() {
    let Some(cluster) = prepared("our_role_has_no_other_rights") else { return };
    let may = |verb: &str, what: &str| {
        let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
        let args = ["--as", USER, "-n", HELPERS, "auth", "can-i", verb, resource, &format!("--subresource={subresource}")];
        text(&output(cluster.kubectl().args(args)).stdout).trim() == "yes"
    };
    cluster.eventually("the role is bound", IN_FORCE, |_| may("create", "pods") && may("create", "pods/attach"));
    for verb in ["update", "patch", "deletecollection"] {
        assert!(!may(verb, "pods"), "{verb} pods");
    }
    for what in ["exec", "portforward", "proxy", "log", "ephemeralcontainers", "resize", "binding", "eviction", "status"]
        .map(|s| format!("pods/{s}"))
    {
        for verb in ["create", "get", "update", "patch"] {
            assert!(!may(verb, &what), "{verb} {what}");
        }
    }
    for what in
        ["secrets", "configmaps", "services", "serviceaccounts/token", "rolebindings", "roles", "deployments", "jobs", "resourcequotas"]
    {
        for verb in ["create", "get", "list", "update", "delete"] {
            assert!(!may(verb, what), "{verb} {what}");
        }
    }
}

/// Not even by an administrator, as long as the policy is there.
#[test]
fn a_running_helper_cannot_be_changed_or_entered() {
    let Some(cluster) = prepared("a_running_helper_cannot_be_changed_or_entered") else { return };
    let proxy = Proxy::start(&cluster);
    let mut pod = helper_pod(&cluster, &["accelerate", "a", "b"]);
    pod["spec"]["nodeName"] = json!(cluster.nodes()[0]);
    let (code, answer) = proxy.create(Some(USER), PODS, &pod);
    assert_eq!(code, 201, "{answer:#}");
    let name = pod["metadata"]["name"].as_str().unwrap();
    let kubectl = |args: &[&str]| {
        let mut command = cluster.kubectl();
        command.args(["-n", HELPERS]).args(args);
        output(&mut command)
    };
    let running = kubectl(&["wait", "--for=jsonpath={.status.phase}=Running", &format!("pod/{name}"), "--timeout=60s"]);
    assert!(running.status.success(), "{}", text(&running.stderr));
    let patch = |subresource: &str, patch: &Value| {
        let subresource = (!subresource.is_empty()).then(|| format!("--subresource={subresource}"));
        let (patch, mut args) = (patch.to_string(), vec!["patch", "pod", name, "--type=strategic", "-p"]);
        args.push(&patch);
        args.extend(subresource.as_deref());
        let out = kubectl(&args);
        (out.status.success(), text(&out.stderr))
    };
    let helper = |fields: Value| {
        let mut container = json!({"name": "helper"});
        container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"spec": {"containers": [container]}})
    };
    for (subresource, change) in [
        ("", helper(json!({"image": Cluster::workload_image()}))),
        ("", json!({"spec": {"tolerations": [{"operator": "Exists"}, {"key": "x", "operator": "Exists"}]}})),
        ("", json!({"metadata": {"annotations": {"io.kubernetes.cri-o.userns-mode": "auto"}}})),
        ("", json!({"metadata": {"finalizers": ["sockpath.test/held"]}})),
        ("", json!({"metadata": {"labels": {"x": "y"}}})),
        ("", json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "x"}]}})),
        (
            "ephemeralcontainers",
            json!({"spec": {"ephemeralContainers": [{"name": "x", "image": Cluster::workload_image(), "command": ["sh"]}]}}),
        ),
        ("resize", helper(json!({"resources": {"limits": {"memory": "512Mi"}}}))),
    ] {
        let (done, said) = patch(subresource, &change);
        assert!(!done && said.contains("ValidatingAdmissionPolicy 'sockpath-helper'"), "{subresource} {change}: {said}");
    }
    // What may be changed can be.
    let (done, said) = patch("", &json!({"metadata": {"annotations": {"sockpath/started-by": "e2e"}}}));
    assert!(done, "{said}");
    for entering in [
        &["exec", name, "--", "/sockpath-helper", "--version"][..],
        &["port-forward", &format!("pod/{name}"), "0:1"],
        &["get", "--raw", &format!("{PODS}/{name}:1/proxy/")],
    ] {
        let out = kubectl(entering);
        let said = text(&out.stderr);
        assert!(!out.status.success() && said.contains("only attach is admitted"), "{entering:?}: {said}");
    }
    // Controllers have to do with pods that go: the garbage collector takes a finalizer away.
    let deleted = kubectl(&["delete", "pod", name, "--cascade=foreground", "--timeout=60s"]);
    assert!(deleted.status.success(), "{}", text(&deleted.stderr));
    cluster.assert_no_helpers();
}

/// A pod from before the policy that cannot be deleted would keep its namespace from being deleted.
#[test]
fn a_pod_that_is_being_deleted_loses_its_finalizers_whatever_it_is() {
    let test = "a_pod_that_is_being_deleted_loses_its_finalizers_whatever_it_is";
    let Some(cluster) = own_cluster_or_skip(test) else { return };
    {
        let _unenforced = Unenforced::of(&cluster);
        let metadata = json!({"name": "e2e-older", "namespace": HELPERS, "finalizers": ["sockpath.test/held"]});
        let container = json!({"name": "x", "image": Cluster::workload_image(), "command": ["sleep", "1000"]});
        apply(&cluster, &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}));
    }
    run(cluster.kubectl().args(["-n", HELPERS, "delete", "pod", "e2e-older", "--wait=false"]));
    run(cluster.kubectl().args(["-n", HELPERS, "patch", "pod", "e2e-older", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]));
    run(cluster.kubectl().args(["-n", HELPERS, "wait", "--for=delete", "pod/e2e-older", "--timeout=60s"]));
}

/// A trace with a probe from pod to pod of one node, as administrator; its helper has to start.
fn trace(cluster: &Cluster) {
    run(cluster.plugin().args(["trace", "client", "web:8080", "--probe", "-o", "json"]));
}

#[test]
fn what_a_limit_range_and_the_node_add_is_admitted() {
    let Some(cluster) = own_cluster_or_skip("what_a_limit_range_and_the_node_add_is_admitted") else { return };
    let _undo = Undo::by(&cluster, &["-n sockpath delete limitrange e2e", "label node n1 topology.kubernetes.io/zone-"]);
    let limit = |storage: &str| {
        let limits = json!([{"type": "Container", "default": {"cpu": "1", "ephemeral-storage": storage}}]);
        json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "e2e", "namespace": HELPERS}, "spec": {"limits": limits}})
    };
    run(cluster.kubectl().args(["label", "node", "n1", "topology.kubernetes.io/zone=e2e"]));
    apply(&cluster, &limit("1Gi"));
    let limits = |c: &Cluster| c.admitted(c.image()).map(|spec| spec["containers"][0]["resources"]["limits"].clone());
    cluster.eventually("the limits are added", IN_FORCE, |c| {
        limits(c).is_ok_and(|l| l == json!({"cpu": "1", "ephemeral-storage": "1Gi", "memory": "256Mi"}))
    });
    trace(&cluster);
    apply(&cluster, &limit("2Gi"));
    cluster.eventually("more is denied", IN_FORCE, |c| limits(c).is_err_and(|e| e.contains("resources are not those of the helper")));
}

#[test]
fn pull_secrets_and_a_default_priority_class_are_admitted_by_name() {
    let Some(cluster) = own_cluster_or_skip("pull_secrets_and_a_default_priority_class_are_admitted_by_name") else { return };
    let _undo = Undo::by(
        &cluster,
        &[
            r#"-n sockpath patch serviceaccount default -p {"imagePullSecrets":null}"#,
            "delete priorityclass e2e-default --ignore-not-found",
        ],
    );
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "e2e-default"}, "value": 7,
        "globalDefault": true, "preemptionPolicy": "Never"});
    let denied = |c: &Cluster, words: &str| c.admitted(c.image()).is_err_and(|e| e.contains(words));
    for (variable, value) in [("pullSecrets", "['e2e-pull']"), ("priorityClasses", "['e2e-default']")] {
        match variable {
            "pullSecrets" => drop(run(cluster.kubectl().args([
                "-n",
                HELPERS,
                "patch",
                "serviceaccount",
                "default",
                "-p",
                r#"{"imagePullSecrets":[{"name":"e2e-pull"}]}"#,
            ]))),
            _ => apply(&cluster, &class),
        }
        let words = format!("not among the {variable} of this policy");
        cluster.eventually(&words, IN_FORCE, |c| denied(c, &words));
        let said = text(&output(cluster.plugin().args(["trace", "client", "web:8080", "--probe"])).stderr);
        assert!(said.contains("kubectl edit validatingadmissionpolicy sockpath-helper"), "{said}");
        cluster.set_policy_variable(variable, value);
        cluster.eventually("it is admitted by name", IN_FORCE, |c| c.admitted(c.image()).is_ok());
    }
    trace(&cluster);
    drop(_undo);
    for variable in ["pullSecrets", "priorityClasses"] {
        cluster.set_policy_variable(variable, "[]");
    }
    cluster.eventually("it is as it was", IN_FORCE, |c| c.admitted(c.image()).is_ok_and(|spec| spec["priority"] == 0));
}

#[test]
fn doctor_says_whether_the_policy_is_in_force() {
    let Some(cluster) = own_cluster_or_skip("doctor_says_whether_the_policy_is_in_force") else { return };
    let row = || {
        let out = output(cluster.plugin().args(["doctor", "-o", "json"]));
        let report: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out.stderr)));
        let row = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == "policy").cloned();
        row.unwrap_or_else(|| panic!("{report:#}"))
    };
    assert_eq!(row()["state"], "ok", "{:#}", row());
    let _unenforced = Unenforced::of(&cluster);
    let row = row();
    assert!(row["state"] == "degraded" && row["remedy"].to_string().contains("/manifests.yaml"), "{row:#}");
}

#[test]
fn the_files_of_the_repository_are_refused_with_what_to_do() {
    let Some(cluster) = prepared("the_files_of_the_repository_are_refused_with_what_to_do") else { return };
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let out = output(cluster.kubectl().args(["apply", "--dry-run=server", "-f"]).arg(&manifests));
    let said = text(&out.stderr);
    assert!(!out.status.success(), "{said}");
    for object in
        ["Namespace \"sockpath\" is invalid", "ValidatingAdmissionPolicy.admissionregistration.k8s.io \"sockpath-helper\" is invalid"]
    {
        let (_, about) = said.split_once(object).unwrap_or_else(|| panic!("{object} is missing in: {said}"));
        assert!(about.contains("manifests/render NAME@sha256:DIGEST | kubectl apply -f -"), "{said}");
    }
    assert!(cluster.admitted(cluster.image()).is_ok(), "the policy that is there stays");
}

#[test]
fn nothing_but_pods_fits_into_the_namespace() {
    let Some(cluster) = prepared("nothing_but_pods_fits_into_the_namespace") else { return };
    for args in [
        &["service", "clusterip", "e2e", "--tcp=80"][..],
        &["service", "nodeport", "e2e", "--tcp=80"],
        &["service", "loadbalancer", "e2e", "--tcp=80"],
        &["deployment", "e2e", "--image=x"],
        &["job", "e2e", "--image=x"],
        &["cronjob", "e2e", "--image=x", "--schedule=0 0 * * *"],
    ] {
        let out = output(cluster.kubectl().args(["-n", HELPERS, "create", "--dry-run=server"]).args(args));
        let said = text(&out.stderr);
        assert!(!out.status.success() && said.contains("exceeded quota: helpers"), "{args:?}: {said}");
    }
    let hard = ["-n", HELPERS, "get", "resourcequota", "helpers", "-o", "jsonpath={.status.hard.pods}"];
    cluster.eventually("pods are counted", Duration::from_secs(30), |c| run(c.kubectl().args(hard)) == "500");
}
