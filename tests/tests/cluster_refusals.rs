//! Helpers that a cluster does not let start, each refusal for real: the message, the exit code, and that nothing is left.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sockpath_tests::changes::{Changing, SeccompProfile, Undo, Unenforced, apply};
use sockpath_tests::cluster::{Cluster, HELPERS, IN_FORCE, NAMESPACE, Setup, cluster_or_skip, output, own_cluster_or_skip, run, text};

const TRACE: [&str; 4] = ["trace", "client", "web:8080", "--probe"];

/// Runs the plugin, which has to fail with these words, each of them, and to leave nothing.
#[track_caller]
fn assert_refused(cluster: &Cluster, args: &[&str], words: &[&str]) -> String {
    let out = output(cluster.plugin().args(args));
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{args:?}: {said}");
    assert!(said.lines().any(|l| l.starts_with("error: ")), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: '{word}' is missing in: {said}");
    }
    cluster.assert_no_helpers();
    said
}

#[test]
fn a_cordoned_node_and_taints_do_not_keep_the_helper_away() {
    let Some(cluster) = own_cluster_or_skip("a_cordoned_node_and_taints_do_not_keep_the_helper_away") else { return };
    let _undo = Undo::by(&cluster, &["uncordon n1", "taint node n1 e2e-"]);
    run(cluster.kubectl().args(["cordon", "n1"]));
    run(cluster.kubectl().args(["taint", "node", "n1", "e2e=x:NoExecute", "e2e=x:NoSchedule"]));
    run(cluster.plugin().args(TRACE).args(["-o", "json"]));
    cluster.assert_no_helpers();
}

#[test]
fn a_full_node_is_reported() {
    let Some(cluster) = own_cluster_or_skip("a_full_node_is_reported") else { return };
    let _undo = Undo::by(&cluster, &["-n sockpath-e2e delete pod filler --now --ignore-not-found"]);
    let cpus = run(cluster.kubectl().args(["get", "node", "n1", "-o", "jsonpath={.status.allocatable.cpu}"]));
    apply(
        &cluster,
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "filler", "namespace": NAMESPACE}, "spec": {"nodeName": "n1", "containers": [
            {"name": "app", "image": Cluster::workload_image(), "command": ["sleep", "10000"], "resources": {"requests": {"cpu": cpus}}}]}}),
    );
    run(cluster.kubectl().args(["-n", NAMESPACE, "wait", "--for=condition=Ready", "pod/filler", "--timeout=60s"]));
    let words = ["on node n1 was refused by the kubelet (OutOfcpu)", "kubectl describe node n1", "10m CPU and 64Mi"];
    assert_refused(&cluster, &TRACE, &words);
    assert_refused(&cluster, &["trace", "client", "web-1:8080", "--probe"], &words);
    assert_refused(&cluster, &["accelerate", "client", "web"], &words);
}

#[test]
fn a_helper_without_its_tolerations_is_reported() {
    let Some(cluster) = own_cluster_or_skip("a_helper_without_its_tolerations_is_reported") else { return };
    let _unenforced = Unenforced::of(&cluster);
    let _changing = Changing::by(&cluster, r#"[JSONPatch{op: "remove", path: "/spec/tolerations"}]"#);
    let _undo = Undo::by(&cluster, &["taint node n1 e2e-"]);
    run(cluster.kubectl().args(["taint", "node", "n1", "e2e=x:NoExecute"]));
    // The kubelet refuses it, or the controller that evicts deletes it first.
    let said = assert_refused(&cluster, &TRACE, &["on node n1", "spec.tolerations[0] was removed", "mutatingadmissionpolicies"]);
    assert!(said.contains("(TaintToleration)") || said.contains("was deleted by another client"), "{said}");
}

#[test]
fn a_helper_that_is_left_to_the_scheduler_is_reported() {
    let Some(cluster) = own_cluster_or_skip("a_helper_that_is_left_to_the_scheduler_is_reported") else { return };
    let _unenforced = Unenforced::of(&cluster);
    // Without a free node it stays pending, else it may run on the wrong one.
    let _changing = Changing::by(&cluster, r#"[JSONPatch{op: "remove", path: "/spec/nodeName"}]"#);
    let words = ["the helper pod for node n1", "without a node name", "spec.nodeName was removed", "mutatingwebhookconfigurations"];
    assert_refused(&cluster, &TRACE, &words);
}

#[test]
fn seccomp_profiles_that_are_missing_or_refuse_bpf_are_reported() {
    let Some(cluster) = own_cluster_or_skip("seccomp_profiles_that_are_missing_or_refuse_bpf_are_reported") else { return };
    let _unenforced = Unenforced::of(&cluster);
    let value = r#"Object.spec.containers.securityContext.seccompProfile{type: "Localhost", localhostProfile: "e2e.json"}"#;
    let path = "/spec/containers/0/securityContext/seccompProfile";
    let _changing = Changing::by(&cluster, &format!(r#"[JSONPatch{{op: "replace", path: "{path}", value: {value}}}]"#));
    let changed = "seccompProfile.type is Localhost instead of RuntimeDefault";
    let words = ["on node n1 cannot be started", "cannot load seccomp profile", "--seccomp Unconfined", changed];
    assert_refused(&cluster, &TRACE, &words);
    let refusing = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["bpf"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;
    let _profile = SeccompProfile::named(&cluster, "e2e.json", refusing);
    let words = ["n1: the seccomp profile of the helper's container refuses bpf(2)", "\n  run it with --seccomp Unconfined", changed];
    assert_refused(&cluster, &TRACE, &words);
    assert_refused(&cluster, &["accelerate", "client", "web"], &words);
    let doctor = output(cluster.plugin().args(["doctor", "-o", "json"]));
    let report: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let rows: Vec<&Value> = checks.iter().filter(|c| c["name"] == "seccomp" && c["state"] == "failed").collect();
    assert_eq!((doctor.status.code(), rows.len()), (Some(1), cluster.nodes().len()), "{report:#}");
    cluster.assert_nothing_left();
}

#[test]
fn helpers_of_another_release_or_none_are_reported() {
    let Some(cluster) = own_cluster_or_skip("helpers_of_another_release_or_none_are_reported") else { return };
    let answering = |hello: &str| {
        let end = r#"{"type":"end","reason":"finished"}"#;
        format!("while read -r line; do case $line in *finish*) echo '{end}'; exit;; *hello*) echo '{hello}';; esac; done")
    };
    let hello = |protocol: u32| {
        json!({"type": "hello", "protocol": protocol, "version": "9.9.9", "kernel": "6.1", "arch": "x86_64", "boot": "b", "features": {},
            "monotonic_ns": 1, "realtime_ns": 2})
        .to_string()
    };
    let fakes = [
        ("protocol", answering(&hello(2)), "the helper on n1 cannot be used: it is release 9.9.9 with protocol 2, this plugin is release"),
        ("other", answering("hello"), "are both of the same release?"),
        // Before it was attached to, or just after: its pod's status says so in both cases.
        ("gone", "echo usage: another tool >&2; exit 64".to_owned(), "exit code 64"),
    ];
    let release = ("registry.local/e2e:release".to_owned(), answering(&hello(1)));
    let names: Vec<String> = fakes.iter().map(|(name, ..)| format!("registry.local/e2e:{name}")).chain([release.0.clone()]).collect();
    let scripts = fakes.iter().map(|f| &f.1).chain([&release.1]);
    let images: Vec<String> = names.iter().zip(scripts).map(|(name, script)| cluster.load_fake_helper(name, script)).collect();
    cluster.admit(&images.iter().map(String::as_str).collect::<Vec<_>>());
    for image in &images {
        cluster.eventually("the image is admitted", IN_FORCE, |c| c.admitted(image).is_ok());
    }
    for (image, (_, _, words)) in images.iter().zip(&fakes) {
        assert_refused(&cluster, &["--helper-image", image, "trace", "client", "web:8080"], &[words]);
    }
    assert_refused(
        &cluster,
        &["--helper-image", &images[0], "accelerate", "client", "web"],
        &["\n  use a helper of release", "--helper-image"],
    );
    let gone = ["--helper-image", &images[2], "trace", "client", "web:8080"];
    assert_refused(&cluster, &gone, &["on node n1", "exit code 64", ": usage: another tool", "check --helper-image"]);
    // One with the same protocol goes on, with a note about its release; this one then says nothing of hooks.
    let mut plugin = cluster.plugin();
    plugin.args(["--helper-image", &images[fakes.len()], "trace", "client", "web:8080"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut plugin = plugin.spawn().unwrap();
    let mut said = String::new();
    let mut stderr = plugin.stderr.take().unwrap();
    while !said.ends_with('\n') {
        let mut byte = [0];
        assert_eq!(stderr.read(&mut byte).unwrap(), 1, "{said}");
        said.push(char::from(byte[0]));
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(plugin.id()).unwrap()), nix::sys::signal::Signal::SIGINT).unwrap();
    plugin.wait().unwrap();
    assert!(said.starts_with("warning: the helper on n1 is release 9.9.9, this plugin is release"), "{said}");
    cluster.admit(&[]);
    cluster.assert_no_helpers();
}

#[test]
fn what_the_policy_refuses_is_reported_with_what_it_admits() {
    let Some(cluster) = cluster_or_skip("what_the_policy_refuses_is_reported_with_what_it_admits", Setup::RoutesNftables) else { return };
    let foreign = Cluster::workload_image();
    cluster.eventually("the policy is in force", IN_FORCE, |c| c.admitted(&foreign).is_err() && c.admitted(c.image()).is_ok());
    let not_admitted = format!("image {foreign} is not among the images of this policy");
    let asked = "kubectl get validatingadmissionpolicy sockpath-helper -o jsonpath='{.spec.variables[0].expression}'";
    let args = ["--helper-image", &foreign, "trace", "client", "web-1:8080", "--probe"];
    let said = assert_refused(&cluster, &args, &[&not_admitted, asked, "--helper-image"]);
    assert_eq!(said.matches(asked).count(), 1, "one cause on two nodes is printed once: {said}");
    // The command that is named does what it is named for.
    let path = asked.rsplit_once(' ').unwrap().1.trim_matches('\'');
    let images = run(cluster.kubectl().args(["get", "validatingadmissionpolicy", "sockpath-helper", "-o", path]));
    assert!(images.contains(cluster.image()), "{images}");
}

#[test]
fn a_helper_of_another_shape_is_refused_by_the_policy() {
    let Some(cluster) = own_cluster_or_skip("a_helper_of_another_shape_is_refused_by_the_policy") else { return };
    let _changing = Changing::by(&cluster, r#"[JSONPatch{op: "add", path: "/spec/hostNetwork", value: true}]"#);
    let words = ["the helper has no such spec.hostNetwork", "/manifests.yaml", "mutatingadmissionpolicies"];
    assert_refused(&cluster, &TRACE, &words);
}

#[test]
fn limits_and_a_namespace_that_goes_are_not_taken_for_missing_rights() {
    let test = "limits_and_a_namespace_that_goes_are_not_taken_for_missing_rights";
    let Some(cluster) = cluster_or_skip(test, Setup::RoutesNftables) else { return };
    {
        let _undo = Undo::by(&cluster, &["-n sockpath delete limitrange e2e"]);
        let limit = json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"memory": "128Mi"}});
        apply(
            &cluster,
            &json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "e2e", "namespace": HELPERS}, "spec": {"limits": [limit]}}),
        );
        let said = assert_refused(&cluster, &TRACE, &["minimum cpu usage per Container", "kubectl describe quota,limitrange -n sockpath"]);
        assert!(!said.contains("rolebinding"), "{said}");
    }
    {
        let _undo = Undo::by(&cluster, &["-n sockpath delete quota e2e"]);
        run(cluster.kubectl().args(["-n", HELPERS, "create", "quota", "e2e", "--hard=pods=0"]));
        // Before its controller has counted, the quota's status is unknown, which is a refusal, too.
        let counted = ["-n", HELPERS, "get", "quota", "e2e", "-o", "jsonpath={.status.hard.pods}"];
        cluster.eventually("the quota is counted", IN_FORCE, |c| run(c.kubectl().args(counted)) == "0");
        assert_refused(&cluster, &TRACE, &["exceeded quota", "kubectl describe quota,limitrange -n sockpath"]);
    }
    let _undo = Undo::by(&cluster, &[r#"-n e2e-going patch configmap held --type=merge -p {"metadata":{"finalizers":null}}"#]);
    run(cluster.kubectl().args(["create", "namespace", "e2e-going"]));
    let held = json!({"name": "held", "namespace": "e2e-going", "finalizers": ["sockpath.test/held"]});
    apply(&cluster, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": held}));
    run(cluster.kubectl().args(["delete", "namespace", "e2e-going", "--wait=false"]));
    let args = ["--helper-namespace", "e2e-going", "trace", "client", "web:8080"];
    let said = assert_refused(&cluster, &args, &["is being terminated", "kubectl wait --for=delete namespace/e2e-going"]);
    assert!(!said.contains("rolebinding"), "{said}");
}

#[test]
fn users_who_may_not_attach_see_what_to_ask_for() {
    let Some(cluster) = own_cluster_or_skip("users_who_may_not_attach_see_what_to_ask_for") else { return };
    let bind = |namespace: &str, args: &str| run(cluster.kubectl().args(["-n", namespace, "create"]).args(args.split(' ')));
    let _undo = Undo::by(
        &cluster,
        &[
            "-n sockpath delete role/e2e-maker rolebinding/e2e-maker role/e2e-get rolebinding/e2e-get",
            "-n sockpath-e2e delete rolebinding/e2e-dave",
        ],
    );
    bind(NAMESPACE, "rolebinding e2e-dave --clusterrole=sockpath-lookup --user=dave");
    bind(HELPERS, "role e2e-maker --verb=create,get,list,watch,delete --resource=pods");
    bind(HELPERS, "rolebinding e2e-maker --role=e2e-maker --user=dave");
    let args = ["--as", "dave", "trace", "client", "web:8080", "--probe"];
    let remedy = "kubectl create rolebinding -n sockpath sockpath-dave --role=sockpath-user --user=dave";
    assert_refused(&cluster, &args, &["cannot get resource \"pods/attach\"", remedy]);
    // From Kubernetes 1.35 on `get` alone is not enough, and the API server gives no reason.
    bind(HELPERS, "role e2e-get --verb=get --resource=pods/attach");
    bind(HELPERS, "rolebinding e2e-get --role=e2e-get --user=dave");
    cluster.eventually("the right is in force", IN_FORCE, |c| {
        let may = output(c.kubectl().args(["--as", "dave", "-n", HELPERS, "auth", "can-i", "get", "pods/attach"]));
        text(&may.stdout).trim() == "yes"
    });
    assert_refused(&cluster, &args, &["attaching needs get and, from Kubernetes 1.35, create on pods/attach", "--role=sockpath-user"]);
}

#[test]
fn a_node_that_does_not_react_is_asked_how_it_is() {
    let Some(cluster) = own_cluster_or_skip("a_node_that_does_not_react_is_asked_how_it_is") else { return };
    cluster.daemon("stop", "n1", "kubelet");
    // As the node controller does when a kubelet has not reported for 50 s.
    let condition =
        json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."});
    let patch = json!({"status": {"conditions": [condition]}}).to_string();
    run(cluster.kubectl().args(["patch", "node", "n1", "--subresource=status", "-p", &patch]));
    let began = Instant::now();
    let out = output(cluster.plugin().args(TRACE));
    let (said, took) = (text(&out.stderr), began.elapsed());
    cluster.daemon("cont", "n1", "kubelet");
    run(cluster.kubectl().args(["wait", "--for=condition=Ready", "node/n1", "--timeout=90s"]));
    run(cluster.kubectl().args(["-n", NAMESPACE, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s"]));
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("node n1 is not ready (NodeStatusUnknown)") && said.contains("kubectl describe node n1"), "{said}");
    assert!(took < Duration::from_secs(20), "an attempt to attach held it up: {took:?}: {said}");
    cluster.assert_no_helpers();
}

/// On a terminal, with a node that is slow to start its helper.
#[test]
fn the_spinner_names_the_phase_of_each_node_and_goes() {
    let Some(cluster) = own_cluster_or_skip("the_spinner_names_the_phase_of_each_node_and_goes") else { return };
    let plugin = cluster.plugin().get_program().to_string_lossy().into_owned();
    // script(1) is the terminal; stdout is none, so that all of it is stderr.
    let mut script = Command::new("script");
    script.env("TERM", "xterm").envs(cluster.plugin().get_envs().filter_map(|(k, v)| Some((k, v?))));
    let command = format!("stty rows 24 cols 60; {plugin} -n {NAMESPACE} trace client web-1:8080 --probe --count 1 -o json >/dev/null");
    cluster.daemon("stop", "n2", "kubelet");
    let mut script =
        script.args(["-qefc", &command, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut stdout, mut shown, mut thawed) = (script.stdout.take().unwrap(), Vec::new(), false);
    let mut chunk = [0; 4096];
    loop {
        let n = stdout.read(&mut chunk).unwrap();
        shown.extend_from_slice(&chunk[..n]);
        // n1's helper runs and n2 has no kubelet that would start one.
        if !thawed && (n == 0 || text(&shown).contains("n2: waiting for the kubelet")) {
            cluster.daemon("cont", "n2", "kubelet");
            thawed = true;
        }
        if n == 0 {
            break;
        }
    }
    let status = script.wait().unwrap();
    let shown = text(&shown);
    assert!(status.success(), "{shown}");
    for phase in ["n1: creating the helper pod", "n2: creating the helper pod", "n2: waiting for the kubelet"] {
        assert!(shown.contains(phase), "{phase}: {shown}");
    }
    let spins = |text: &str| text.chars().any(|c| ('\u{2800}'..='\u{28ff}').contains(&c));
    // One row each, whatever it says: a second one would not be erased. Rows are filled up and follow each other without a line break.
    let rows = shown.split(|c| ('\u{2800}'..='\u{28ff}').contains(&c)).skip(1);
    let widest = rows.map(|row| row.split(char::is_control).next().unwrap().chars().count() + 1).max();
    assert!(widest.is_some_and(|w| w <= 60), "{widest:?}: {shown}");
    let last = shown.rsplit("\x1b[2K").next().unwrap();
    assert!(!spins(last), "what is left of the spinner: {last}");
    // Where stderr is not a terminal nothing of that is printed.
    let quiet = output(cluster.plugin().args(["trace", "client", "web-1:8080", "--probe", "--count", "1", "-o", "json"]));
    let said = text(&quiet.stderr);
    assert!(quiet.status.success() && !spins(&said) && !said.contains("n1: ") && !said.contains("n2: "), "{said}");
    cluster.assert_no_helpers();
}
