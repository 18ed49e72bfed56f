//! The plugin as a program: exit codes, streams, signals, and helpers that misbehave. The helper is a shell script here, so none of
//! this needs root or a kernel feature.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

mod dir;

use dir::Dir;

const PLUGIN: &str = env!("CARGO_BIN_EXE_kubectl-sockpath");

const STATUS: &str = r#"{"up":true,"overlay":"none",
"nodes":[{"name":"node-1","ips":["10.0.0.1"],"netns":"/run/netns/node-1","pod_cidrs":["10.42.1.0/24"]}],
"pods":[{"name":"curl","namespace":"default","uid":"u1","node":"node-1","ips":["10.42.1.2"],"netns":"/x","cgroup":"/y","containers":[{"name":"curl","id":"c1","pid":1,"port":8080}]},
{"name":"httpbin","namespace":"default","uid":"u2","node":"node-1","ips":["10.42.1.3"],"netns":"/x","cgroup":"/y","containers":[{"name":"httpbin","id":"c2","pid":2,"port":8080}]}],
"services":[]}"#;

const HELLO: &str = r#"{"type":"hello","protocol":1,"version":"0.1.0","kernel":"6.18","arch":"x86_64","boot":"b","features":{},"monotonic_ns":1,"realtime_ns":2}"#;
const ARMED: &str = r#"{"type":"armed","hooks":["tp_btf/net_dev_queue"],"unavailable":{},"took_ns":1000000}"#;
const END: &str = r#"{"type":"end","reason":"finished"}"#;
const PLACE: &str = r#"{"type":"place","index":0,"node":"node-1","pod":"default/curl","netns":1,"device":null}"#;

fn packet(id: u32) -> String {
    format!(
        r#"{{"type":"packet","id":{id},"conversation":1,"direction":"request","protocol":"tcp","kind":"data","flow":{{"from":"10.42.1.2:4000","to":"10.42.1.3:8080"}},"seq":{id},"ack":1,"payload":10,"hops":[{{"stage":"socket-write","hook":"h","at_ns":1000,"place":0,"cpu":0,"context":{{"in":"softirq"}},"len":10,"segments":1}},{{"stage":"copied","hook":"h","at_ns":3000,"place":0,"cpu":0,"context":{{"in":"softirq"}},"len":10,"segments":1}}],"outcome":{{"as":"delivered"}}}}"#
    )
}

/// Ends on `finish`, and ignores all other requests.
const UNTIL_FINISH: &str = r#"while read -r line; do case "$line" in *finish*) break;; esac; done"#;

/// A plugin command whose helper runs this script as its session.
fn with_helper(dir: &Dir, session: &str) -> Command {
    let status = dir.join("status.json");
    fs::write(&status, STATUS).expect("status");
    let script = dir.join("sockpath-lab");
    let text = format!(
        "#!/bin/sh\ncase $1 in\nstatus) exec cat '{}' ;;\nsession) ;;\n*) echo \"$@\"; exit 7 ;;\nesac\n{session}\n",
        status.display()
    );
    fs::write(&script, text).expect("script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("permissions");
    let mut command = Command::new(PLUGIN);
    command.env("SOCKPATH_LAB_PROGRAM", &script).env_remove("NO_COLOR").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn session(before_finish: &[&str]) -> String {
    let mut lines = vec![HELLO, ARMED];
    lines.extend(before_finish);
    let said: String = lines.iter().map(|l| format!("echo '{l}'\n")).collect();
    format!("{said}{UNTIL_FINISH}\necho '{END}'")
}

fn run(command: &mut Command, args: &[&str]) -> Output {
    command.args(args).output().expect("the plugin runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

#[test]
fn a_trace_that_sees_something() {
    let dir = Dir::new("sees");
    let packets = [packet(1), packet(2)];
    let helper = session(&[PLACE, &packets[0], &packets[1]]);
    let out = run(&mut with_helper(&dir, &helper), &["trace", "--lab", "curl", "httpbin", "--count", "2"]);
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("default/curl → default/httpbin:8080") && text.contains("2.00 us end to end"), "{text}");
    assert!(stderr(&out).contains("watching"), "{}", String::from_utf8_lossy(&out.stderr));

    let out = run(&mut with_helper(&dir, &helper), &["trace", "--lab", "curl", "httpbin", "--count", "2", "-o", "json"]);
    let document: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one JSON document");
    assert_eq!(document["scenario"], "in-pod", "as observed: both hops in one namespace");
    assert_eq!(document["packets"].as_array().map(Vec::len), Some(2));

    let out = run(&mut with_helper(&dir, &helper), &["trace", "--lab", "curl", "httpbin", "--count", "2", "-o", "jsonl"]);
    let lines: Vec<serde_json::Value> =
        String::from_utf8(out.stdout).expect("UTF-8").lines().map(|l| serde_json::from_str(l).expect("JSON line")).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["hops"][0]["took_ns"], 2000);
}

#[test]
fn a_recording_replays_to_the_same() {
    let dir = Dir::new("record");
    let file = dir.join("r.jsonl");
    let file = file.to_str().expect("UTF-8");
    let one = packet(1);
    let out =
        run(&mut with_helper(&dir, &session(&[PLACE, &one])), &["trace", "--lab", "curl", "httpbin", "--count", "1", "--record", file]);
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    let replayed = run(&mut with_helper(&dir, "exit 9"), &["trace", "--replay", file]);
    assert_eq!(code(&replayed), 0, "{}", stderr(&replayed));
    assert_eq!(String::from_utf8_lossy(&replayed.stdout), String::from_utf8_lossy(&out.stdout));
}

#[test]
fn recordings_are_compared() {
    let recording = |name: &str| format!("{}/tests/recordings/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let (works, drops) = (recording("same-node-service"), recording("same-node-drop"));
    let same = run(&mut Command::new(PLUGIN), &["trace", "--diff", &works, &works]);
    assert!(code(&same) == 0 && String::from_utf8_lossy(&same.stdout).ends_with("\nno difference\n"), "{}", stderr(&same));
    let differ = run(&mut Command::new(PLUGIN), &["trace", "-o", "json", "--diff", &works, &drops]);
    let document: serde_json::Value = serde_json::from_slice(&differ.stdout).expect("one JSON document");
    let subjects: Vec<&str> = document["changes"].as_array().expect("changes").iter().filter_map(|c| c["subject"].as_str()).collect();
    assert!(document["same"] == false && ["path", "drops", "findings"].iter().all(|s| subjects.contains(s)), "{document}");
    let wide = run(&mut Command::new(PLUGIN), &["trace", "-o", "wide", "--diff", &works, &drops]);
    assert_eq!(code(&wide), 2, "{}", stderr(&wide));
    let absent = run(&mut Command::new(PLUGIN), &["trace", "--diff", &works, "/nonexistent/x"]);
    assert!(code(&absent) == 1 && stderr(&absent).contains("/nonexistent/x"), "{}", stderr(&absent));
}

#[test]
fn nothing_seen_is_exit_code_3() {
    let dir = Dir::new("nothing");
    let out = run(&mut with_helper(&dir, &session(&[])), &["trace", "--lab", "curl", "httpbin", "--no-probe", "--duration", "50ms"]);
    assert_eq!(code(&out), 3, "{}", stderr(&out));
    assert!(out.stdout.is_empty() && stderr(&out).contains("no packet from curl to httpbin"), "{}", stderr(&out));
}

#[test]
fn mistakes_have_their_codes() {
    let dir = Dir::new("mistakes");
    for (args, expected, words) in [
        (&["trace", "--lab", "crul", "httpbin"][..], 1, "did you mean curl?"),
        (&["trace", "--lab", "curl", "svc/nope"], 1, "Service `nope`"),
        (&["trace", "--lab", "curl", "curl"], 2, "the same pod"),
        (&["trace", "--lab", "curl", "httpbin:99999"], 2, "65535"),
        (&["trace", "--lab", "curl"], 2, "required"),
        (&["trace", "--lab", "curl", "192.0.2.1", "--probe"], 2, "needs a port"),
        (&["trace", "--lab", "curl", "httpbin", "-o", "yaml"], 2, "--dry-run=client"),
        (&["trace", "--lab", "curl", "httpbin", "--record", "/nonexistent/x"], 1, "/nonexistent/x"),
        (&["trace", "--replay", "/nonexistent/x"], 1, "/nonexistent/x"),
        (&["accelerate", "--lab", "--for", "0"], 2, "--for takes"),
        (&["accelerate", "--lab", "--detach", "--for", "365d"], 2, "--for takes"),
        (&["accelerate", "--lab", "nope"], 1, "pod `nope`"),
        (&["accelerate", "--lab", "-l", "app=x"], 1, "no labels"),
        (&["nonsense"], 2, "nonsense"),
    ] {
        let out = run(&mut with_helper(&dir, "exit 9"), args);
        assert_eq!(code(&out), expected, "{args:?}: {}", stderr(&out));
        assert!(stderr(&out).contains("error: ") && stderr(&out).contains(words), "{args:?}: {}", stderr(&out));
        assert!(out.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn helpers_that_misbehave_are_reported() {
    let dir = Dir::new("misbehave");
    let one = packet(1);
    let cut_off = format!("echo '{HELLO}'\necho '{ARMED}'\necho '{PLACE}'\necho '{one}'\nkill -9 $$");
    let version = format!("echo '{}'\n{UNTIL_FINISH}", HELLO.replace(r#""protocol":1"#, r#""protocol":2"#));
    let refused = format!(
        "echo '{HELLO}'\necho '{{\"type\":\"error\",\"text\":\"no BTF\",\"code\":\"no-btf\"}}'\necho '{{\"type\":\"end\",\"reason\":\"failed\"}}'"
    );
    for (script, words) in [
        ("echo 'error: not root' >&2; exit 1", "not root"),
        ("echo hello", "of the same release"),
        ("exit 0", "did not start"),
        (version.as_str(), "use a helper of release"),
        (cut_off.as_str(), "killed by signal 9"),
        (refused.as_str(), "no BTF"),
    ] {
        let out = run(&mut with_helper(&dir, script), &["trace", "--lab", "curl", "httpbin", "--duration", "5s"]);
        assert_eq!(code(&out), 1, "{script}: {}", stderr(&out));
        assert!(stderr(&out).contains(words), "{script}: {}", stderr(&out));
    }
    // What was seen before the helper died is shown all the same.
    let out = run(&mut with_helper(&dir, &cut_off), &["trace", "--lab", "curl", "httpbin", "--duration", "5s"]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("socket write"), "{}", stderr(&out));
}

#[test]
fn a_full_disk_ends_the_trace_in_order() {
    let dir = Dir::new("full");
    let ended = dir.join("ended");
    let one = packet(1);
    let script = format!("{}\necho yes > '{}'", session(&[PLACE, &one]), ended.display());
    let out = run(&mut with_helper(&dir, &script), &["trace", "--lab", "curl", "httpbin", "--count", "1", "--record", "/dev/full"]);
    assert_eq!(code(&out), 1);
    assert!(stderr(&out).contains("/dev/full") && stderr(&out).contains("No space left"), "{}", stderr(&out));
    assert!(ended.exists(), "the session was not ended in order");
    assert!(!out.stdout.is_empty(), "what was seen is shown all the same");
}

#[test]
fn a_reader_that_goes_away_is_a_quiet_end() {
    let dir = Dir::new("pipe");
    let packets: String = (1..2000).map(|i| format!("echo '{}'\n", packet(i))).collect();
    let script = format!("echo '{HELLO}'\necho '{ARMED}'\necho '{PLACE}'\n{packets}{UNTIL_FINISH}\necho '{END}'");
    let mut child = with_helper(&dir, &script).args(["trace", "--lab", "curl", "httpbin", "-o", "jsonl"]).spawn().expect("plugin");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout"));
    let mut first = String::new();
    lines.read_line(&mut first).expect("a line");
    drop(lines);
    let status = child.wait().expect("the plugin ends");
    let mut said = String::new();
    child.stderr.take().expect("stderr").read_to_string(&mut said).expect("stderr");
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!said.contains("error"), "{said}");
}

#[test]
fn ctrl_c_ends_at_once_with_what_was_seen() {
    let dir = Dir::new("interrupt");
    let one = packet(1);
    let mut child = with_helper(&dir, &session(&[PLACE, &one]))
        .args(["trace", "--lab", "curl", "httpbin", "--no-probe", "--duration", "60s"])
        .spawn()
        .expect("plugin");
    let mut said = BufReader::new(child.stderr.take().expect("stderr"));
    let mut line = String::new();
    while !line.contains("watching") {
        line.clear();
        assert_ne!(said.read_line(&mut line).expect("stderr"), 0, "never armed");
    }
    let begun = Instant::now();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    let out = child.wait_with_output().expect("the plugin ends");
    assert_eq!(code(&out), 130);
    // The contract is 300 ms; a loaded test machine gets more.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
fn called_by_kubectl_it_says_so() {
    let out = run(&mut Command::new(PLUGIN), &["trace", "--help"]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("Usage: kubectl sockpath trace"));
    let dir = Dir::new("argv0");
    let link = dir.join("sockpath");
    symlink(PLUGIN, &link).expect("link");
    let out = run(&mut Command::new(&link), &["trace", "--help"]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("Usage: sockpath trace"));
}

#[test]
fn completion_answers_kubectl() {
    let dir = Dir::new("complete");
    let mut command = with_helper(&dir, "exit 9");
    let helper = command.get_envs().find(|(k, _)| *k == "SOCKPATH_LAB_PROGRAM").and_then(|(_, v)| v).expect("helper").to_owned();
    let out = run(&mut command, &["__complete", "trace", "--lab", "curl", "ht"]);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "httpbin\tpod\n:4\n");
    let link = dir.join("kubectl_complete-sockpath");
    symlink(PLUGIN, &link).expect("link");
    let out = run(Command::new(&link).env("SOCKPATH_LAB_PROGRAM", helper), &["trace", "--lab", ""]);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "curl\tpod\nhttpbin\tpod\nnode/node-1\tnode\n:4\n");
    let config = dir.join("config");
    let contexts =
        "contexts: [{name: prod-eu, context: {cluster: c}}, {name: prod-us, context: {cluster: c}}, {name: test, context: {cluster: c}}]\n";
    fs::write(&config, contexts).expect("a kubeconfig");
    let ask = ["status", "--kubeconfig", config.to_str().expect("UTF-8"), "--context", "prod"];
    let out = run(&mut Command::new(&link), &ask);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "prod-eu\tcontext\nprod-us\tcontext\n:4\n");
    // Nothing is printed on failure, and nothing waits for a file that does not end.
    for file in ["/nonexistent/config", "/dev/zero"] {
        let out = run(&mut Command::new(&link), &["status", "--kubeconfig", file, "--context", ""]);
        assert_eq!((String::from_utf8_lossy(&out.stdout), stderr(&out)), (":4\n".into(), String::new()), "{file}");
    }
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let out = run(&mut Command::new(PLUGIN), &["completion", shell]);
        assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("__complete"), "{shell}");
    }
}

#[test]
fn lab_commands_are_forwarded() {
    let dir = Dir::new("lab");
    let out = run(&mut with_helper(&dir, ""), &["lab", "exec", "curl", "--", "ls", "-l"]);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "exec curl -- ls -l\n");
    assert_eq!(code(&out), 7, "the exit code of sockpath-lab is ours");
}
