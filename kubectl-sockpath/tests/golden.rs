//! Recorded traces and what becomes of them on screen and in files. `UPDATE_GOLDEN=1 cargo test` writes what is there now.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kubectl_sockpath::output::Machine;
use kubectl_sockpath::recording;
use kubectl_sockpath::render::{diff, html, pcapng, plain, waterfall, wide};
use kubectl_sockpath::report::{self, Report};
use kubectl_sockpath::terminal::Style;

use golden_files::check;

mod browser;
mod golden_files;
mod xml;

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn recordings() -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(dir("recordings"))
        .expect("recordings")
        .map(|e| e.expect("entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
        .map(|p| (p.file_stem().expect("stem").to_string_lossy().into_owned(), p))
        .collect();
    found.sort();
    assert!(found.len() >= 9, "recordings are missing");
    found
}

fn report_of(path: &Path) -> Report {
    report::report(&Arc::new(recording::replay(path).unwrap_or_else(|e| panic!("{}: {e:#}", path.display()))))
}

#[test]
fn waterfalls() {
    for (name, path) in recordings() {
        check(&format!("{name}.txt"), &waterfall::render(&report_of(&path), &Style::plain(80)));
    }
}

#[test]
fn waterfall_on_other_terminals() {
    let report = report_of(&dir("recordings").join("same-node-service.jsonl"));
    check("same-node-service.wide-terminal.txt", &waterfall::render(&report, &Style::plain(130)));
    check("same-node-service.narrow-terminal.txt", &waterfall::render(&report, &Style::plain(46)));
    check("same-node-service.ascii.txt", &waterfall::render(&report, &Style { width: 80, color: false, unicode: false }));
    check("same-node-service.color.txt", &waterfall::render(&report, &Style { width: 80, color: true, unicode: true }));
}

/// As a helper pod of a cluster records it, which may not read rules.
#[test]
fn unreadable_rules_are_reported_where_they_had_an_effect() {
    let unread = |name: &str, blind: bool| {
        let text = fs::read_to_string(dir("recordings").join(format!("{name}.jsonl"))).expect("a recording");
        let lines = text.lines().map(|line| {
            let mut line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let message = &mut line["message"];
            if blind && message["type"] == "armed" {
                message["unavailable"] = serde_json::json!({"netfilter rules": "reading them needs CAP_NET_ADMIN"});
            }
            for hop in message["hops"].as_array_mut().into_iter().flatten() {
                hop["rule"] = serde_json::Value::Null;
            }
            format!("{line}\n")
        });
        let path = std::env::temp_dir().join(format!("sockpath-golden-{}-{name}-{blind}.jsonl", std::process::id()));
        fs::write(&path, lines.collect::<String>()).expect("a file");
        let report = report_of(&path);
        let _ = fs::remove_file(path);
        report.findings.into_iter().find(|f| f.id == "rules-unread").map(|f| f.text)
    };
    let text = "which rules of netfilter did this on node-1 is not known: reading them needs CAP_NET_ADMIN";
    assert_eq!(unread("lab-same-node-service", true).as_deref(), Some(text));
    assert_eq!(unread("lab-same-node-service", false), None, "they may be read, and it was none of them");
    assert_eq!(unread("lab-cross-node", true), None, "nothing was rewritten");
}

/// Packets arrive when their paths end, not when they begin.
#[test]
fn packets_are_listed_by_the_time_of_their_first_hop() {
    for (name, path) in recordings() {
        let text = fs::read_to_string(&path).expect("a recording");
        let is_packet = |line: &&str| line.replace(": ", ":").contains(r#""type":"packet""#);
        let mut packets = text.lines().filter(is_packet).rev();
        let backwards = text.lines().filter_map(|line| if is_packet(&line) { packets.next() } else { Some(line) });
        let file = std::env::temp_dir().join(format!("sockpath-golden-{}-{name}-backwards.jsonl", std::process::id()));
        fs::write(&file, backwards.flat_map(|line| [line, "\n"]).collect::<String>()).expect("a file");
        let starts = |path| report_of(path).packets.iter().filter_map(|p| p.hops.first().map(|h| h.at_ns)).collect::<Vec<u64>>();
        let (forwards, backwards) = (starts(&path), starts(&file));
        let _ = fs::remove_file(file);
        assert_eq!(forwards, backwards, "{name}");
    }
}

#[test]
fn wide_tables() {
    for name in ["same-node-service", "cross-node-vxlan"] {
        let report = report_of(&dir("recordings").join(format!("{name}.jsonl")));
        check(&format!("{name}.wide.txt"), &wide::render(&report, &Style::plain(80)));
    }
}

#[test]
fn plain_reports_have_no_drawing_characters() {
    for (name, path) in recordings() {
        let report = report_of(&path);
        let text = plain::render(&report);
        assert!(text.is_ascii() && !text.lines().any(|l| l.starts_with(' ')), "{name}: {}", &*text);
        for finding in &report.findings {
            assert!(text.contains(&*finding.text), "{name}: {}", finding.text);
        }
    }
    for name in ["same-node-service", "lab-nft-drop"] {
        check(&format!("{name}.plain.txt"), &plain::render(&report_of(&dir("recordings").join(format!("{name}.jsonl")))));
    }
}

#[test]
fn differences() {
    let of = |name: &str| report_of(&dir("recordings").join(format!("{name}.jsonl")));
    let (works, dropped, across) = (of("same-node-service"), of("same-node-drop"), of("cross-node-vxlan"));
    let text = |a: &Report, b: &Report, width| diff::render(&report::diff::diff(a, b), a, b, &Style::plain(width));
    check("drop.diff.txt", &text(&works, &dropped, 80));
    check("cross-node.diff.txt", &text(&works, &across, 80));
    check("same.diff.txt", &text(&works, &works, 80));
    check("drop.diff.json", &Machine::document(&report::diff::diff(&works, &dropped)).expect("JSON"));
    for (a, b) in [(&works, &dropped), (&works, &across), (&dropped, &across)] {
        for width in 40..=120 {
            for line in text(a, b, width).lines() {
                assert!(columns(line) <= width && line.trim_end() == line, "{width}: {line:?}");
            }
        }
    }
}

#[test]
fn documents() {
    for name in ["same-node-drop", "in-pod", "no-endpoints", "unexpected-dnat-lost"] {
        let report = report_of(&dir("recordings").join(format!("{name}.jsonl")));
        check(&format!("{name}.json"), &Machine::document(&report).expect("JSON"));
    }
}

#[test]
fn pages_are_whole_and_need_nothing_else() {
    for (name, path) in recordings() {
        let page = html::render(&report_of(&path));
        assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"), "{name}");
        for outside in ["http://", "https://", "src=", "<link", "@import", "url("] {
            assert!(!page.contains(outside), "{name} holds {outside}");
        }
    }
}

/// What assistive programs, links and style sheets refer to is there, in every page.
#[test]
fn pages_are_well_formed_and_accessible() {
    for (name, path) in recordings() {
        let page = html::render(&report_of(&path));
        let body = page.split_once("<body>").and_then(|(_, b)| b.rsplit_once("</body>")).expect("a body").0;
        let elements = xml::check(&name, &format!("<body>{body}</body>"));
        let ids: Vec<&str> = elements.iter().filter_map(|e| e.attribute("id")).collect();
        let count = |tag: &str| elements.iter().filter(|e| e.name == tag).count();
        assert_eq!([count("main"), count("header"), count("footer"), count("nav"), count("h1")], [1; 5], "{name}");
        assert_eq!(count("script"), 0, "{name}");
        for element in &elements {
            let named = |attribute: &str| element.attribute(attribute).into_iter().flat_map(|v| v.split(' ')).collect::<Vec<_>>();
            assert!(named("aria-labelledby").iter().all(|id| ids.contains(id)), "{name}: {element:?}");
            match element.name.as_str() {
                "svg" => assert!(element.attribute("role") == Some("img") && named("aria-labelledby").len() == 2, "{name}: {element:?}"),
                "section" => assert_eq!(named("aria-labelledby").len(), 1, "{name}: {element:?}"),
                "th" => assert!(element.attribute("scope").is_some(), "{name}: {element:?}"),
                "a" => {
                    let target = element.attribute("href").and_then(|h| h.strip_prefix('#')).expect("a link within the page");
                    assert!(ids.contains(&target), "{name}: {element:?}");
                }
                _ => {}
            }
            let scrolls = element.attribute("class") == Some("scroll");
            assert!(!scrolls || element.attribute("tabindex") == Some("0"), "{name}: the keyboard reaches what scrolls");
        }
        assert!(page.contains("prefers-color-scheme:dark") && page.contains("@media print"), "{name}");
        let first = body.find("id=\"findings\"").expect("findings");
        assert!(
            ["picture", "time"].iter().all(|id| body.find(&format!("id=\"{id}\"")).is_some_and(|at| at > first)),
            "{name}: findings come first"
        );
    }
}

#[test]
fn a_page_of_many_packets_stays_small_and_shows_those_that_ended() {
    let capture = Arc::new(recording::read(&repeated("same-node-drop", 3_000)[..], "many").expect("capture"));
    let page = html::render(&report::report(&capture));
    assert!(page.len() < 400_000, "{} bytes", page.len());
    assert!(page.contains("24 of 3000 packets") && page.contains("dropped: NETFILTER_DROP"));
    assert_eq!(page.matches("<details class=\"packet\">").count(), 24);
}

#[test]
fn a_page() {
    let report = report_of(&dir("recordings").join("same-node-service.jsonl"));
    check("same-node-service.html", &html::render(&report));
}

/// In a real browser: nothing is wider than a phone or a desktop, in light and dark.
#[test]
fn pages_fit_phones_and_desktops() {
    let Some(browser) = browser::find() else {
        eprintln!("skipped: no Chromium or Chrome in PATH");
        return;
    };
    for name in ["same-node-service", "cross-node-vxlan", "lab-nft-drop", "nothing-seen"] {
        let page = html::render(&report_of(&dir("recordings").join(format!("{name}.jsonl"))));
        for (width, form) in [(360, "tall"), (1280, "wide")] {
            match browser::measure(&browser, &page, width) {
                Ok(seen) => {
                    assert!(seen.content <= seen.window, "{name} at {width}: {seen:?}");
                    assert_eq!(seen.form, form, "{name} at {width}: {seen:?}");
                }
                Err(why) => eprintln!("skipped {name} at {width}: {why}"),
            }
        }
    }
}

#[test]
fn capture_files_are_well_formed() {
    for (name, path) in recordings() {
        let mut bytes = Vec::new();
        pcapng::write(&report_of(&path), &mut bytes).expect("a file");
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
        let (mut at, mut interfaces, mut frames) = (0, 0, 0);
        while at < bytes.len() {
            let (kind, length) = (word(at), word(at + 4));
            assert!(length.is_multiple_of(4) && word(at + length - 4) == length, "{name} at {at}");
            match kind {
                1 => interfaces += 1,
                6 => {
                    frames += 1;
                    assert!(word(at + 8) < interfaces, "{name}: a frame of an undeclared interface");
                    assert!(word(at + 20) <= word(at + 24), "{name}: more captured than there was");
                }
                _ => assert_eq!(at, 0, "{name}: a block of kind {kind:#x}"),
            }
            at += length;
        }
        assert_eq!(frames > 0, name != "nothing-seen", "{name}");
    }
}

/// Columns of a line as a terminal counts them: colour sequences take none.
fn columns(line: &str) -> usize {
    let mut columns = 0;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            for c in chars.by_ref() {
                if c == 'm' {
                    break;
                }
            }
        } else {
            columns += 1;
        }
    }
    columns
}

#[test]
fn every_width_fits() {
    for (name, path) in recordings() {
        let report = report_of(&path);
        for width in 40..=200 {
            for (color, unicode) in [(false, true), (true, true), (false, false)] {
                let text = waterfall::render(&report, &Style { width, color, unicode });
                for line in text.lines() {
                    assert!(columns(line) <= width, "{name} at {width}: {line}");
                    assert!(color || line.trim_end() == line, "{name} at {width}: trailing space in {line:?}");
                    assert!(unicode || line.is_ascii(), "{name} at {width}: {line}");
                }
            }
        }
    }
}

#[test]
fn stages_add_up_to_the_whole() {
    for (name, path) in recordings() {
        let report = report_of(&path);
        let legs = report.reply.iter().map(|r| (&r.stages, r.end_to_end)).chain([(&report.stages, report.end_to_end)]);
        for (stages, whole) in legs {
            let Some(whole) = whole.p50_ns else { continue };
            let sum: u64 = stages.iter().filter_map(|s| s.times.p50_ns).sum();
            assert_eq!(sum, whole, "{name}");
            let shares: f64 = stages.iter().filter_map(|s| s.share).sum();
            assert!((shares - 1.0).abs() < 0.01, "{name}: shares add up to {shares}");
        }
    }
}

#[test]
fn what_was_not_observed_has_no_time() {
    for (name, path) in recordings() {
        for stage in report_of(&path).stages {
            assert_eq!(stage.observed_by.is_none(), stage.count == 0, "{name} {:?}", stage.id);
            assert!(stage.observed_by.is_some() || stage.times.p50_ns.is_none(), "{name} {:?}", stage.id);
        }
    }
}

#[test]
fn the_article_is_complete_for_a_delivered_packet() {
    let report = report_of(&dir("recordings").join("same-node-service.jsonl"));
    let mut steps: Vec<&str> = report.stages.iter().filter_map(|s| s.step).collect();
    let expected: Vec<String> = (1..=16).map(|n| format!("S{n}")).chain((1..=20).map(|n| format!("R{n}"))).collect();
    assert_eq!(steps.len(), expected.len());
    steps.dedup();
    assert_eq!(steps, expected);
    assert_eq!(report.stack_traversals, 3);
    assert_eq!(report.via_service.as_deref(), Some("default/httpbin"));
    assert_eq!(report.rewrites.len(), 2);
}

/// A recording with `packets` copies of the packets of another.
fn repeated(name: &str, packets: usize) -> Vec<u8> {
    let text = fs::read_to_string(dir("recordings").join(format!("{name}.jsonl"))).expect("recording");
    let (packet_lines, others): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|l| l.contains(r#""type": "packet""#) || l.contains(r#""type":"packet""#));
    let mut out = others[..others.len() - 2].join("\n").into_bytes();
    for line in packet_lines.iter().cycle().take(packets) {
        out.push(b'\n');
        out.extend_from_slice(line.as_bytes());
    }
    out
}

#[test]
fn many_packets_stay_bounded() {
    for count in [10_000, 30_000] {
        let capture = Arc::new(recording::read(&repeated("in-pod", count)[..], "many").expect("capture"));
        assert_eq!(capture.packets.len(), count.min(report::PACKETS_KEPT));
        assert_eq!(capture.not_kept, (count - capture.packets.len()) as u64);
        let report = report::report(&capture);
        let sum: u64 = report.stages.iter().filter_map(|s| s.times.p50_ns).sum();
        assert_eq!(Some(sum), report.end_to_end.p50_ns);
        assert!(waterfall::render(&report, &Style::plain(80)).len() < 20_000);
    }
}

#[test]
fn few_hops() {
    let text = fs::read_to_string(dir("recordings").join("in-pod.jsonl")).expect("recording");
    let first = text.lines().find(|l| l.contains(r#""packet""#)).expect("packet");
    let mut entry: serde_json::Value = serde_json::from_str(first).expect("JSON");
    let hops = entry["message"]["hops"].as_array().expect("hops").clone();
    for keep in [0, 1, 2] {
        entry["message"]["hops"] = hops[..keep].to_vec().into();
        // Places are omitted on purpose: a hop may refer to one that was never sent.
        let recording = format!("{}\n{entry}\n", text.lines().next().expect("head"));
        let report = report::report(&Arc::new(recording::read(recording.as_bytes(), "few").expect("capture")));
        for width in [40, 80, 200] {
            let rendered = waterfall::render(&report, &Style::plain(width));
            assert!(!rendered.is_empty());
        }
        assert!(!wide::render(&report, &Style::plain(80)).is_empty());
        assert!(Machine::document(&report).is_ok() && !html::render(&report).is_empty());
    }
}

#[test]
fn damaged_recordings_are_refused() {
    let text = fs::read_to_string(dir("recordings").join("in-pod.jsonl")).expect("recording");
    let cut = &text[..text.len() - 40];
    assert!(recording::read(cut.as_bytes(), "cut").is_ok(), "a last line cut short is the end of it");
    for (input, words) in [
        ("", "is not a recording"),
        ("hello\n", "is not a recording"),
        ("{\"recording\":99}\n", "format 99"),
        ("{\"recording\":1}\n", "damaged"),
    ] {
        let error = format!("{:#}", recording::read(input.as_bytes(), "x").expect_err(input));
        assert!(error.contains(words), "{input}: {error}");
    }
    let damaged = text.replacen("{\"helper\"", "{\"helpless\"", 1);
    let error = format!("{:#}", recording::read(damaged.as_bytes(), "x").expect_err("damaged"));
    assert!(error.contains("line 2"), "{error}");
}

/// What is advised can be typed as it stands, and does what it says.
#[test]
fn the_advice_to_accelerate_names_the_namespace_and_spares_host_pods() {
    let text = fs::read_to_string(dir("recordings").join("same-node-service.jsonl")).expect("a recording");
    let advice = |text: String| {
        let file = std::env::temp_dir().join(format!("sockpath-advice-{}.jsonl", std::process::id()));
        fs::write(&file, text).expect("a recording is written");
        let report = report_of(&file);
        let _ = fs::remove_file(&file);
        report.findings.iter().find(|f| f.id == "could-accelerate").map(|f| f.next.clone().unwrap_or_default())
    };
    assert_eq!(advice(text.clone()).as_deref(), Some("kubectl sockpath accelerate curl httpbin"));
    let elsewhere = text.replace("\"default\"", "\"shop\"").replace("\"default/", "\"shop/");
    assert_eq!(advice(elsewhere).as_deref(), Some("kubectl sockpath accelerate -n shop curl httpbin"));
    let of_host = text.replacen("\"host_network\": false", "\"host_network\": true", 1);
    assert_ne!(of_host, text);
    assert_eq!(advice(of_host), None);
}
