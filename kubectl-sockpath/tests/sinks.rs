//! Nothing that comes from outside does anything to a terminal but print: by construction of the program (there is one exit to stdout
//! and stderr), and by trying it with text that would.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use kubectl_sockpath::output::Text;
use kubectl_sockpath::recording;
use kubectl_sockpath::render::pairs::{self, Changes, NodePairs};
use kubectl_sockpath::render::picture::{Picture, mermaid, svg};
use kubectl_sockpath::render::{bypassed, diff, html, pcapng, perfetto, plain, waterfall, wide};
use kubectl_sockpath::report::{self, Report};
use kubectl_sockpath::terminal::Style;
use serde_json::Value;
use sockpath_protocol::accel::{Pair, PairState, PairsSnapshot, Reason, Totals};
use sockpath_protocol::bypass::{BypassKind, Bypassed};
use sockpath_protocol::text::{columns, is_harmless};

mod xml;

const PLUGIN: &str = env!("CARGO_BIN_EXE_kubectl-sockpath");

/// Each attacks differently: erases the screen, sets the title, forges one of our lines, writes backwards, hides itself, covers
/// what is beside it, is markup, is long.
const HOSTILE: [&str; 12] = [
    "\x1b[2J\x1b[H\x1b[31m",
    "\x1b]0;title\x07\x1b]8;;http://evil\x1b\\",
    "a\nerror: forged\r\nwarning: forged\rforged",
    "\u{9b}2J\u{90}\u{9d}x\u{9c}\u{85}",
    "\u{202e}txt.exe\u{202a}\u{202b}\u{202d}\u{2066}\u{2067}\u{2068}\u{2069}\u{200e}\u{200f}\u{61c}",
    "z\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}\u{ad}\u{34f}\u{e0041}w",
    "\u{2028}forged\u{2029}forged",
    "Z\u{300}\u{301}\u{302}\u{303}\u{304}\u{489}",
    "</td><script>alert(1)</script><img src=x onerror='alert(1)' style=\"x\">&",
    "\0\u{7f}\x08\x08\x08\t\x0b\x0c",
    "日本語日本語日本語日本語日本語日本語日本語日本語",
    "{} %s $(reboot) `reboot` \\u001b[2J",
];

/// Something hostile for each place, long enough now and then to need a cut.
fn hostile(place: usize) -> String {
    let one = HOSTILE[place % HOSTILE.len()];
    if place % 97 == 3 { one.repeat(600) } else { one.to_owned() }
}

/// Rust source files below a directory, by their path from there.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn there_is_one_exit() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    // What may appear in these files (or folders) only.
    let only: [(&str, &[&str]); 12] = [
        ("println!", &["output/"]),
        ("print!(", &["output/"]),
        ("dbg!", &["output/"]),
        ("io::stdout", &["output/"]),
        ("io::stderr", &["output/"]),
        ("/dev/std", &["output/"]),
        ("e.print()", &["output/"]),
        ("\\x1b", &["output/"]),
        ("\\u{1b}", &["output/"]),
        ("ProgressDrawTarget::std", &["output/"]),
        ("indicatif", &["output/", "progress.rs"]),
        ("comfy_table", &["render/table.rs"]),
    ];
    let files = sources(&src);
    assert!(files.len() > 60, "{} files", files.len());
    let mut found = 0;
    for file in files {
        let name = file.strip_prefix(&src).expect("below src").to_string_lossy().into_owned();
        if name.ends_with("_tests.rs") || name.ends_with("/tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a source file");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for (word, places) in only {
                let here = line.contains(word);
                found += usize::from(here);
                let allowed = places.iter().any(|place| name.starts_with(place));
                assert!(!here || allowed, "{name}:{}: `{word}` belongs to {places:?}: {line}", number + 1);
            }
        }
    }
    assert!(found > 5, "the words are not found where they belong");
}

/// A recording in which every text that this program did not choose is hostile.
fn spoiled(name: &str, shift: usize) -> Vec<u8> {
    /// Texts that are words of the protocol, or have a form that decoding checks.
    const WORDS: [&str; 25] = [
        "type",
        "reason",
        "stage",
        "direction",
        "protocol",
        "kind",
        "from",
        "to",
        "ips",
        "addresses",
        "addr",
        "in",
        "as",
        "by",
        "uid",
        "id",
        "what",
        "scenario",
        "boot",
        "expected",
        "frontends",
        "backends",
        "client",
        "dialled",
        "connection",
    ];
    fn spoil(value: &mut Value, count: &mut usize, origin: bool) {
        match value {
            Value::Object(map) => {
                let all = map.iter_mut().filter(|(key, _)| !WORDS.contains(&key.as_str()));
                all.for_each(|(_, value)| spoil(value, count, origin));
            }
            Value::Array(list) => list.iter_mut().for_each(|value| spoil(value, count, origin)),
            Value::String(text) => {
                *count += 1;
                // Names in the request are checked for control characters: those are the API server's.
                let hostile = hostile(*count);
                *text = if origin { hostile.chars().filter(|c| !c.is_control()).take(200).collect() } else { hostile };
            }
            _ => {}
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(name);
    let text = fs::read_to_string(path).expect("a recording");
    let mut count = shift;
    let mut out = Vec::new();
    for line in text.lines() {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        let origin = line.get("recording").is_some();
        spoil(&mut line, &mut count, origin);
        out.extend_from_slice(line.to_string().as_bytes());
        out.push(b'\n');
    }
    let extra = [
        serde_json::json!({"helper": 0, "message": {"type": "warning", "text": hostile(shift)}}),
        serde_json::json!({"helper": 0, "message": {"type": "error", "text": hostile(shift + 1), "code": hostile(shift + 2)}}),
        serde_json::json!({"helper": 0, "message": {"type": "probed", "protocol": "tcp", "to": hostile(shift + 3), "answered": false,
            "took_ns": 1, "error": hostile(shift + 4)}}),
        serde_json::json!({"helper": 0, "lost": hostile(shift + 5)}),
    ];
    for line in extra {
        out.extend_from_slice(format!("{line}\n").as_bytes());
    }
    out
}

fn recordings() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let names = fs::read_dir(dir).expect("recordings").map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|n| n.ends_with(".jsonl")).collect();
    names.sort();
    assert!(names.len() >= 9);
    names
}

/// The text without our own colours: `ESC [ digits m`.
fn uncoloured(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        out.push_str(before);
        let end = after.find('m').unwrap_or_else(|| panic!("no colour: {after:?}"));
        assert!(after[..end].chars().all(|c| c.is_ascii_digit() || c == ';'), "no colour: {after:?}");
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    out
}

/// No line starts like one of our messages.
fn assert_not_forged(what: &str, text: &str) {
    for line in text.lines() {
        assert!(!["error: forged", "warning: forged", "forged"].iter().any(|begin| line.starts_with(begin)), "{what}: {line}");
    }
}

fn assert_harmless(what: &str, text: &str, style: &Style) {
    let text = if style.color { uncoloured(text) } else { text.to_owned() };
    for line in text.lines() {
        let bad: Vec<char> = line.chars().filter(|c| !is_harmless(*c)).collect();
        assert!(bad.is_empty(), "{what}: {bad:?} in {line:?}");
    }
}

const STYLES: [Style; 4] = [
    Style { width: 40, color: false, unicode: true },
    Style { width: 80, color: true, unicode: true },
    Style { width: 80, color: false, unicode: false },
    Style { width: 200, color: false, unicode: true },
];

#[test]
fn hostile_recordings_are_rendered_harmlessly() {
    for name in recordings() {
        for shift in 0..HOSTILE.len() {
            let recorded = recording::read(&spoiled(&name, shift)[..], "x").unwrap_or_else(|e| panic!("{name}: {e:#}"));
            let report = report::report(&Arc::new(recorded));
            for style in &STYLES {
                let what = format!("{name}, {shift}, {style:?}");
                let picture = waterfall::render(&report, style);
                assert_harmless(&what, &picture, style);
                for line in uncoloured(&picture).lines() {
                    assert!(columns(line) <= style.width, "{what}: {} columns: {line}", columns(line));
                    assert!(style.unicode || line.is_ascii(), "{what}: {line}");
                }
                assert_harmless(&what, &wide::render(&report, style), style);
                let rows = wide::render(&report, style).lines().count();
                assert!(rows < 2_000 + 2 * report.packets.iter().map(|p| p.hops.len()).max().unwrap_or(0), "{what}: {rows} lines");
            }
            exports(&format!("{name}, {shift}"), &report);
        }
    }
}

fn exports(what: &str, report: &Report) {
    let page = html::render(report);
    assert_harmless(what, &page, &Style::plain(80));
    for markup in ["<script", "<img", "</td><td><script"] {
        assert!(!page.contains(markup), "{what}: {markup}");
    }
    let tags = page.matches('<').count();
    assert_eq!(tags, page.matches('>').count(), "{what}");
    let picture = Picture::of(report);
    let drawn = svg::render(&picture);
    assert_harmless(what, &drawn, &Style::plain(80));
    xml::check(what, &drawn);
    let flowchart = mermaid::render(&picture);
    assert_harmless(what, &flowchart, &Style::plain(80));
    for line in flowchart.lines() {
        assert!(line.matches('"').count() % 2 == 0 && !line.contains("<script") && !line.contains('`'), "{what}: {line}");
    }
    let mut document = Vec::new();
    kubectl_sockpath::output::write_document(report, &mut document).expect("JSON");
    let document = String::from_utf8(document).expect("UTF-8");
    assert!(document.chars().all(|c| c == '\n' || is_harmless(c)), "{what}");
    let value: Value = serde_json::from_str(&document).expect("one JSON document");
    assert_eq!(value["packets"].as_array().map(Vec::len), Some(report.packets.len()));
    let style = Style::plain(80);
    assert_harmless(what, &plain::render(report), &style);
    let empty = report::report(&Arc::new(recording::read(&spoiled("nothing-seen.jsonl", 0)[..], "x").expect("a capture")));
    let found = report::diff::diff(&empty, report);
    assert_harmless(what, &diff::render(&found, &empty, report, &style), &style);
    let mut events = Vec::new();
    perfetto::write(report, &mut events).expect("a trace");
    let events = String::from_utf8(events).expect("UTF-8");
    assert!(events.chars().all(|c| c == '\n' || is_harmless(c)), "{what}");
    assert!(serde_json::from_str::<Value>(&events).is_ok(), "{what}");
    let mut capture = Vec::new();
    pcapng::write(report, &mut capture).expect("a capture file");
    for harmful in ["\x1b[2J", "\x1b]0;", "\u{202e}txt", "\u{200b}\u{200c}"] {
        assert!(!capture.windows(harmful.len()).any(|w| w == harmful.as_bytes()), "{what}: {harmful:?} in the capture file");
    }
}

#[test]
fn hostile_names_of_pairs_and_rules_are_rendered_harmlessly() {
    for shift in 0..HOSTILE.len() {
        let text = |n: usize| hostile(shift + n);
        let pair = |n: u16| Pair {
            client_pod: Some(text(usize::from(n))),
            server_pod: Some(text(usize::from(n) + 1)),
            client: ([10, 0, 0, 1], n).into(),
            dialled: ([10, 0, 0, 2], 80).into(),
            server: None,
            via_service: true,
            via: Default::default(),
            by_path: Default::default(),
            state: if n.is_multiple_of(2) { PairState::Accelerated } else { PairState::LeftAlone },
            reason: (!n.is_multiple_of(2)).then_some(Reason::BlockingReader),
            live: true,
            bypassed_bytes: 1 << 20,
            bypassed_messages: 3,
            passes: Default::default(),
            turnaround_before_ns: Some(1),
            turnaround_after_ns: Some(1),
        };
        let snapshot = PairsSnapshot { pairs: (1..6).map(pair).collect(), totals: Totals::default() };
        let nodes = [NodePairs { node: text(2), snapshot: snapshot.clone() }, NodePairs { node: text(3), snapshot }];
        let bypassed = Bypassed { kind: BypassKind::TcProgram, what: text(4), place: text(5), pods: (6..12).map(text).collect() };
        for style in &STYLES {
            let what = format!("{shift}, {style:?}");
            let table = pairs::table(&nodes, style, 20);
            assert_harmless(&what, &table, style);
            // The head, a line for each of ten pairs, and the advice.
            assert!(uncoloured(&table).lines().count() < 2 + 10 + 10, "{what}: {table}");
            let table = bypassed::table(std::slice::from_ref(&bypassed), style);
            assert_harmless(&what, &table, style);
            for line in uncoloured(&table).lines() {
                assert!(columns(line) <= style.width, "{what}: {line}");
            }
        }
        let changes = Changes::default().lines(&nodes);
        assert_harmless("changes", &changes, &Style::plain(80));
        assert_not_forged("changes", &changes);
        assert_eq!(changes.lines().count(), 10);
        let mut message = Text::default();
        message.message(&text(0));
        assert_harmless("a message", &message, &Style::plain(80));
        assert_not_forged("a message", &message);
    }
}

/// What is written without a format option: errors, warnings, usage, the helper's stderr.
#[test]
fn the_program_writes_nothing_harmful() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sinks-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory");
    let helper = dir.join("sockpath-lab");
    let hello = |version: &str| {
        serde_json::json!({"type": "hello", "protocol": 1, "version": version, "kernel": "\u{1b}[31mk", "arch": "x", "boot": "b", "features": {},
            "monotonic_ns": 1, "realtime_ns": 2})
    };
    for (number, text) in HOSTILE.into_iter().enumerate() {
        let said = dir.join(format!("said-{number}"));
        let status = dir.join(format!("status-{number}"));
        let complaint = dir.join(format!("complaint-{number}"));
        let lines = [
            hello(text),
            serde_json::json!({"type": "warning", "text": text}),
            serde_json::json!({"type": "status", "active": true, "owner": text, "lease_left_ms": 5000, "detached": true,
                "pairs": {"pairs": [], "totals": {"open": 0, "accelerated": 0, "closed": 0, "bypassed_bytes": 0, "bypassed_messages": 0, "passes": {}}}}),
            serde_json::json!({"type": "check", "name": text, "state": "failed", "found": text, "remedy": text}),
            serde_json::json!({"type": "canary", "name": text, "passed": false, "corruption_risk": true, "detail": text}),
            serde_json::json!({"type": "removed", "what": text}),
            serde_json::json!({"type": "error", "text": text, "code": text}),
            serde_json::json!({"type": "end", "reason": "finished"}),
        ];
        fs::write(&said, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).expect("a file");
        fs::write(&complaint, format!("{text}\n")).expect("a file");
        let pod = serde_json::json!({"name": text, "namespace": "default", "uid": "u", "node": text, "ips": ["10.42.1.2"], "netns": "/x",
            "cgroup": "/y", "containers": [{"name": text, "id": "c", "pid": 1, "port": 8080}]});
        let lab = serde_json::json!({"up": true, "overlay": "none", "pods": [pod], "services": [],
            "nodes": [{"name": text, "ips": ["10.0.0.1"], "netns": "/run/netns/x", "pod_cidrs": ["10.42.1.0/24"]}]});
        fs::write(&status, lab.to_string()).expect("a file");
        let script = format!(
            "#!/bin/sh\ncat '{}' >&2\n[ \"$1\" = status ] && exec cat '{}'\ncat '{}'\n",
            complaint.display(),
            status.display(),
            said.display()
        );
        write_program(&helper, &script);
        let commands: [&[&str]; 9] = [
            &["status", "--lab"],
            &["stop", "--lab", "-v"],
            &["doctor", "--lab"],
            &["cleanup", "--lab"],
            &["status", "--lab", "-o", "json"],
            &["trace", "--lab", text, "10.42.1.9:1", "-v"],
            &["trace", "--lab", "x", "svc/y"],
            &["accelerate", "--lab"],
            &["trace", "--replay", said.to_str().expect("UTF-8")],
        ];
        for args in commands.iter().filter(|args| !args.iter().any(|a| a.contains('\0'))) {
            let out = run(&helper, args);
            // What the lab's program said has come through.
            let shown = String::from_utf8_lossy(&out.stdout);
            assert!(args[..] != ["status", "--lab"] || shown.contains("detached, lease 5s"), "{text:?}: {shown}");
            for (stream, bytes) in [("stdout", &out.stdout), ("stderr", &out.stderr)] {
                let what = format!("{args:?}, {text:?}, {stream}");
                let shown = String::from_utf8(bytes.clone()).unwrap_or_else(|e| panic!("{what}: {e}"));
                let bad: Vec<char> = shown.chars().filter(|c| *c != '\n' && !is_harmless(*c)).collect();
                assert!(bad.is_empty(), "{what}: {bad:?} in {shown:?}");
                assert_not_forged(&what, &shown);
            }
        }
        if !text.contains('\0') {
            for args in [&["trace", "--bogus", text][..], &[text], &["trace", "a", "b", "-o", text], &["trace", "a", text]] {
                let out = run(&helper, args);
                let shown = String::from_utf8(out.stderr).expect("UTF-8");
                assert!(shown.chars().all(|c| c == '\n' || is_harmless(c)), "{args:?}: {shown:?}");
            }
        }
    }
    let _ = fs::remove_dir_all(&dir);
}

/// Through a file of another name: a program that another thread is just starting cannot be written.
fn write_program(path: &Path, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    let new = path.with_extension("new");
    fs::write(&new, script).expect("a script");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("permissions");
    fs::rename(&new, path).expect("a script");
}

fn run(helper: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(PLUGIN);
    command.env("SOCKPATH_LAB_PROGRAM", helper).env("KUBECONFIG", "/nonexistent").env("SOCKPATH_HELPER_IMAGE", "\u{202e}image");
    command.args(args).stdin(Stdio::null()).output().expect("the plugin runs")
}

#[test]
fn the_environment_does_not_choose_any_width() {
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/in-pod.jsonl");
    let mut command = Command::new(PLUGIN);
    command.args(["trace", "--replay"]).arg(recording).env("COLUMNS", "4000000000").stdin(Stdio::null());
    let out = command.output().expect("the plugin runs");
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let widest = text.lines().map(columns).max();
    assert!(out.status.success() && widest.is_some_and(|w| w > 200 && w <= 1_000), "{widest:?}");
}
