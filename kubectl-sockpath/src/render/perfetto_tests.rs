//! The rules of the JSON trace event format, and what this program writes in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;

fn recordings() -> Vec<(String, Report)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "jsonl"));
    files.sort();
    assert!(files.len() > 9);
    let report = |file: &PathBuf| crate::report::report(&Arc::new(crate::recording::replay(file).unwrap()));
    files.iter().map(|f| (f.file_stem().unwrap().to_string_lossy().into_owned(), report(f))).collect()
}

fn written(report: &Report) -> Vec<Value> {
    let mut out = Vec::new();
    write(report, &mut out).unwrap();
    let document: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(document["displayTimeUnit"], "ns");
    document["traceEvents"].as_array().unwrap().clone()
}

/// Whole nanoseconds of a time in microseconds.
fn nanoseconds(event: &Value, name: &str) -> i64 {
    let micros = event[name].as_f64().unwrap_or_else(|| panic!("{name} of {event}"));
    let nanos = (micros * 1e3).round();
    assert!(micros >= 0.0 && (micros * 1e3 - nanos).abs() < 1e-3, "{event}: {name} in microseconds, to the nanosecond");
    nanos as i64
}

fn thread(event: &Value) -> (u64, u64) {
    (event["pid"].as_u64().unwrap_or_else(|| panic!("pid of {event}")), event["tid"].as_u64().unwrap_or_else(|| panic!("tid of {event}")))
}

#[test]
fn every_event_follows_the_rules_of_its_phase() {
    for (name, report) in recordings() {
        let (mut processes, mut threads, mut used) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for event in written(&report) {
            assert!(event["name"].as_str().is_some_and(|n| !n.is_empty()), "{name}: {event}");
            match event["ph"].as_str().unwrap_or_default() {
                "M" => match event["name"].as_str().unwrap() {
                    "process_name" => assert!(processes.insert(event["pid"].as_u64().unwrap()) && event["args"]["name"].is_string()),
                    "thread_name" => assert!(threads.insert(thread(&event)) && event["args"]["name"].is_string()),
                    "process_sort_index" | "thread_sort_index" => assert!(event["args"]["sort_index"].is_u64(), "{name}: {event}"),
                    other => panic!("{name}: metadata {other}"),
                },
                "X" => {
                    used.insert(thread(&event));
                    nanoseconds(&event, "ts");
                    nanoseconds(&event, "dur");
                }
                "i" => assert!(event["s"] == "t" && used.contains(&thread(&event)) && nanoseconds(&event, "ts") >= 0, "{name}: {event}"),
                "s" | "t" | "f" => {
                    assert!(event["id"].is_u64() && event["cat"].is_string() && nanoseconds(&event, "ts") >= 0, "{name}: {event}")
                }
                other => panic!("{name}: phase {other}"),
            }
        }
        assert_eq!(threads, used, "{name}: threads have names, and none is empty");
        assert_eq!(processes, threads.iter().map(|(pid, _)| *pid).collect(), "{name}");
    }
}

#[test]
fn slices_of_one_thread_do_not_overlap() {
    for (name, report) in recordings() {
        let mut threads: BTreeMap<(u64, u64), Vec<(i64, i64)>> = BTreeMap::new();
        for event in written(&report).iter().filter(|e| e["ph"] == "X") {
            let at = nanoseconds(event, "ts");
            threads.entry(thread(event)).or_default().push((at, at + nanoseconds(event, "dur")));
        }
        for (thread, mut slices) in threads {
            slices.sort_unstable();
            for pair in slices.windows(2) {
                assert!(pair[0].1 <= pair[1].0, "{name} {thread:?}: {pair:?}");
            }
        }
    }
}

#[test]
fn each_packet_has_its_stages_and_one_chain_of_arrows() {
    for (name, report) in recordings() {
        let events = written(&report);
        let slices: f64 = events.iter().filter(|e| e["ph"] == "X").map(|e| e["dur"].as_f64().unwrap() * 1e3).sum();
        let known: u64 = report.packets.iter().flat_map(|p| p.hops).filter_map(|h| h.took_ns).sum();
        assert!((slices - known as f64).abs() < 1.0, "{name}: {slices} ns of slices, {known} ns observed");
        let mut arrows: BTreeMap<u64, String> = BTreeMap::new();
        for event in events.iter().filter(|e| ["s", "t", "f"].iter().any(|p| e["ph"] == *p)) {
            let at = nanoseconds(event, "ts");
            let begins = |e: &&Value| e["ph"] == "X" && thread(e) == thread(event) && nanoseconds(e, "ts") == at;
            assert!(events.iter().any(|e| begins(&e)), "{name}: an arrow stands at the beginning of a slice: {event}");
            assert_eq!(event["ph"] == "f", event["bp"] == "e", "{name}: {event}");
            arrows.entry(event["id"].as_u64().unwrap()).or_default().push_str(event["ph"].as_str().unwrap());
        }
        for (id, chain) in arrows {
            let inner = chain.strip_prefix('s').and_then(|c| c.strip_suffix('f'));
            assert!(inner.is_some_and(|c| c.chars().all(|c| c == 't')), "{name}: packet {id}: {chain}");
        }
        let ends = events.iter().filter(|e| e["ph"] == "i").count();
        let ended = report.packets.iter().filter(|p| matches!(p.outcome, Outcome::Dropped(_) | Outcome::Vanished { .. })).count();
        assert_eq!(ends, ended, "{name}");
    }
}

#[test]
fn packets_at_one_device_at_the_same_time_have_threads_of_their_own() {
    let (_, report) = recordings().into_iter().find(|(name, _)| name == "in-pod").unwrap();
    let capture = crate::recording::replay(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/in-pod.jsonl")).unwrap();
    let mut twice = capture.clone();
    // The same packets again, 100 ns later.
    for (helper, packet) in &capture.packets {
        let mut packet = packet.clone();
        packet.hops.iter_mut().for_each(|h| h.at_ns += 100);
        twice.packets.push((*helper, packet));
    }
    let names = |report: &Report| -> Vec<String> {
        let events = written(report).into_iter().filter(|e| e["name"] == "thread_name");
        events.map(|e| e["args"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert!(names(&report).iter().all(|n| !n.contains('(')), "{:?}", names(&report));
    let both = names(&crate::report::report(&Arc::new(twice)));
    assert!(both.contains(&"lo".to_owned()) && both.contains(&"lo (2)".to_owned()), "{both:?}");
}
