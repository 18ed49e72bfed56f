//! What ships: the helper has no lab, nothing that ships has test switches, and no environment variable changes what becomes of
//! connections.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use sockpath_tests::programs;

/// How names of our own environment variables begin.
const OURS: &[u8] = b"SOCKPATH_";

/// Where in a file some bytes are.
fn positions<'a>(file: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    file.windows(wanted.len()).enumerate().filter(move |(_, w)| *w == wanted).map(|(at, _)| at)
}

fn contains(file: &[u8], wanted: &str) -> bool {
    positions(file, wanted.as_bytes()).next().is_some()
}

/// What a program answers to these requests in a session.
fn answers(program: &Path, requests: &str) -> Vec<Value> {
    let mut child = Command::new(program).arg("session").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(requests.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&out.stdout).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn version(program: &Path) -> String {
    String::from_utf8_lossy(&Command::new(program).arg("--version").output().unwrap().stdout).into_owned()
}

#[test]
fn the_helper_has_no_lab() {
    let status = Command::new(programs::helper()).args(["lab", "status"]).output().unwrap().status;
    assert_eq!(status.code(), Some(2), "`sockpath-helper lab` is a command");
    let (helper, lab) = (fs::read(programs::helper()).unwrap(), fs::read(programs::lab()).unwrap());
    for of_the_lab in ["KUBE-SVC-", "KUBE-IPTABLES-HINT", "iptables-restore"] {
        assert!(contains(&lab, of_the_lab), "{of_the_lab} is not in sockpath-lab: this test looks for the wrong words");
        assert!(!contains(&helper, of_the_lab), "{of_the_lab} is in sockpath-helper");
    }
}

#[test]
fn only_the_program_for_tests_has_test_switches() {
    let test = programs::lab_with_test_switches();
    let has = |program: &Path| {
        let hello = answers(program, "{\"type\":\"finish\"}\n").remove(0);
        assert_eq!(hello["type"], "hello", "{hello}");
        (hello["test_switches"] == true, version(program).contains("test switches"), fs::read(program).unwrap())
    };
    let (in_hello, in_version, file) = has(&test);
    assert!(in_hello && in_version, "{} does not say what it is", test.display());
    for word in ["SOCKPATH_TEST", "no_order_gate"] {
        assert!(contains(&file, word), "{word} is not in {}: this test looks for the wrong words", test.display());
    }
    for program in [programs::helper(), programs::lab()] {
        let (in_hello, in_version, file) = has(&program);
        assert!(!in_hello && !in_version, "{} says that it has test switches", program.display());
        for word in ["SOCKPATH_TEST", "no_order_gate"] {
            assert!(!contains(&file, word), "{word} is in {}", program.display());
        }
    }
}

#[test]
fn programs_know_no_other_variables_of_ours() {
    // The plugin does not read the last one: `doctor` requests a pod that has it, which the policy has to refuse.
    let plugin = ["SOCKPATH_LAB_PROGRAM", "SOCKPATH_HELPER_IMAGE", "SOCKPATH_HELPER_NAMESPACE", "SOCKPATH_DOCTOR"];
    for (program, known) in [(programs::helper(), &[][..]), (programs::lab(), &["SOCKPATH_LAB"]), (programs::plugin(), &plugin)] {
        let file = fs::read(&program).unwrap();
        for at in positions(&file, OURS) {
            // What follows may be another string: nothing is between two of them.
            let name = String::from_utf8_lossy(&file[at..file.len().min(at + 32)]).into_owned();
            assert!(known.iter().any(|k| name.starts_with(k)), "{} knows {name}", program.display());
        }
        for name in known {
            assert!(contains(&file, name), "{} does not know {name}", program.display());
        }
    }
}

/// The Rust sources of a directory, without tests.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            sources(&path, found);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// What follows each `before` in a text, up to `end`.
fn between<'a>(text: &'a str, before: &'a str, end: char) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).filter_map(move |rest| rest.split(end).next())
}

#[test]
fn sources_read_these_environment_variables_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for dir in ["helper/src", "helper/kernel/src", "helper/lab/src", "helper/protocol/src", "helper/ruleset/src", "kubectl-sockpath/src"] {
        sources(&root.join(dir), &mut files);
    }
    assert!(files.len() > 150, "only {} sources were found", files.len());
    let mut reads = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(&root).unwrap().display().to_string();
        let calls = ["env::var(", "env::var_os(", "env::vars(", "env::vars_os("].into_iter().flat_map(|call| between(&text, call, ')'));
        reads.extend(calls.chain(between(&text, "env = \"", '"')).map(|variable| format!("{name}: {}", variable.trim_matches('"'))));
    }
    let expected = [
        // Which lab, and where programs are: nothing of a connection.
        "helper/lab/src/plan.rs: INSTANCE_VAR",
        "helper/lab/src/rules.rs: PATH",
        // In test builds only.
        "helper/src/switches.rs: SOCKPATH_TEST_FUNCTIONS",
        "helper/src/switches.rs: SOCKPATH_TEST_NO_ORDER_GATE",
        "helper/src/switches.rs: SOCKPATH_TEST_WITHOUT",
        // Options of the command line, which `--help` shows.
        "kubectl-sockpath/src/cli.rs: SOCKPATH_HELPER_IMAGE",
        "kubectl-sockpath/src/cli.rs: SOCKPATH_HELPER_NAMESPACE",
        // As kubectl has them: KUBECONFIG, and KUBERNETES_SERVICE_HOST for a plugin that runs in a pod.
        "kubectl-sockpath/src/cluster/api/client.rs: name",
        "kubectl-sockpath/src/cluster/api/kubeconfig.rs: KUBECONFIG",
        "kubectl-sockpath/src/lab.rs: PATH",
        "kubectl-sockpath/src/lab.rs: SOCKPATH_LAB_PROGRAM",
        // COLUMNS, NO_COLOR, TERM and the locale.
        "kubectl-sockpath/src/output/style.rs: COLUMNS",
        "kubectl-sockpath/src/terminal.rs: name",
        // Who asks, for labels and for a second user.
        "kubectl-sockpath/src/user.rs: LOGNAME",
        "kubectl-sockpath/src/user.rs: SUDO_USER",
        "kubectl-sockpath/src/user.rs: USER",
        "kubectl-sockpath/src/user.rs: USERNAME",
    ];
    assert_eq!(reads, expected.into_iter().map(str::to_owned).collect());
}

#[test]
fn a_helper_finds_nothing_by_path() {
    let pod =
        r#"{"namespace":"a","name":"b","uid":"00000000","node":"n","ips":[],"locate":{"by":"path","netns":"/nowhere/netns","cgroup":"/"}}"#;
    let requests = [
        format!(r#"{{"type":"trace","source":{pod},"targets":[],"nodes":[{{"name":"n","ips":[]}}]}}"#),
        format!(r#"{{"type":"accelerate","pods":[{pod}],"lease_ms":1000,"detach":false,"owner":"o"}}"#),
    ];
    let error = |program: &Path, request: &str| {
        let said = answers(program, &format!("{request}\n{{\"type\":\"finish\"}}\n"));
        assert_eq!(said.last().map(|m| &m["reason"]), Some(&Value::from("failed")), "{said:#?}");
        let error = said.iter().find(|m| m["type"] == "error").unwrap_or_else(|| panic!("{said:#?}"));
        (error["code"].as_str().unwrap().to_owned(), error["text"].as_str().unwrap().to_owned())
    };
    for request in &requests {
        let (code, text) = error(&programs::helper(), request);
        assert_eq!(code, "lab-only", "{text}");
        assert!(text.contains("pod b") && text.contains("sockpath-lab"), "{text}");
        let (code, text) = error(&programs::lab(), request);
        assert_ne!(code, "lab-only", "{text}");
    }
    let (_, text) = error(&programs::lab(), &requests[0]);
    assert!(!text.contains("sockpath-lab"), "{text}");
}
