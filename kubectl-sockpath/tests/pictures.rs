//! The picture of a path: what it shows for recorded traces, and that its drawings are whole. `UPDATE_GOLDEN=1` writes the golden ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kubectl_sockpath::recording;
use kubectl_sockpath::render::picture::{Bypass, Item, LinkKind, Namespace, Picture, State, mermaid, svg};
use kubectl_sockpath::report::{self, Report};
use serde_json::{Value, json};

mod golden_files;
mod xml;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings")
}

fn recordings() -> Vec<(String, Report)> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir()).expect("recordings").map(|e| e.expect("entry").path()).collect();
    found.retain(|p| p.extension().is_some_and(|e| e == "jsonl"));
    found.sort();
    assert!(found.len() >= 9, "recordings are missing");
    let name = |p: &Path| p.file_stem().expect("stem").to_string_lossy().into_owned();
    found.iter().map(|p| (name(p), report_of(&fs::read_to_string(p).expect("a recording")))).collect()
}

fn report_of(recorded: &str) -> Report {
    report::report(&Arc::new(recording::read(recorded.as_bytes(), "a recording").expect("a capture")))
}

fn recorded(name: &str) -> String {
    fs::read_to_string(dir().join(format!("{name}.jsonl"))).expect("a recording")
}

fn picture(name: &str) -> Picture {
    Picture::of(&report_of(&recorded(name)))
}

/// The recording with its packets changed: those for which `change` returns false are left out.
fn changed(name: &str, change: impl Fn(&mut Value) -> bool) -> String {
    let mut out = String::new();
    for line in recorded(name).lines() {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        if line["message"]["type"] != "packet" || change(&mut line["message"]) {
            out.push_str(&format!("{line}\n"));
        }
    }
    out
}

fn namespace<'p>(picture: &'p Picture, title: &str) -> &'p Namespace {
    let all = || picture.nodes.iter().flat_map(|n| &n.namespaces);
    all().find(|ns| ns.title == title).unwrap_or_else(|| panic!("no {title}: {:?}", all().map(|ns| &ns.title).collect::<Vec<_>>()))
}

#[test]
fn times_of_the_picture_are_those_of_the_report() {
    for (name, report) in recordings() {
        let picture = Picture::of(&report);
        assert_eq!(picture.links.len() + 1, picture.lanes().count(), "{name}");
        let lanes: u64 = picture.lanes().filter_map(|(_, lane)| lane.took_ns).sum();
        let stages: u64 = report.stages.iter().filter_map(|s| s.times.p50_ns).sum();
        assert_eq!(lanes, stages, "{name}");
        if let Some(total) = report.end_to_end.p50_ns {
            let bar = picture.bars.iter().find(|b| b.name == "request").expect("a bar");
            assert!(bar.whole && bar.total_ns() == total, "{name}");
        }
        let observed = report.stages.iter().filter(|s| s.observed_by.is_some()).count();
        let drawn = picture.lanes().flat_map(|(_, lane)| &lane.items).filter(|i| matches!(i, Item::Stage(_))).count();
        assert_eq!(drawn, observed, "{name}");
        let rewrites = picture.lanes().flat_map(|(_, lane)| &lane.items).filter(|i| matches!(i, Item::Rewrite(_))).count();
        let of_requests = report.rewrites.iter().filter(|r| r.direction == sockpath_protocol::packet::Direction::Request).count();
        assert_eq!(rewrites, of_requests, "{name}");
    }
}

#[test]
fn places_and_what_lies_between_them() {
    let kinds = |name: &str| picture(name).links.iter().map(|l| (l.kind, l.taken)).collect::<Vec<_>>();
    assert_eq!(kinds("same-node-service"), [(LinkKind::Veth, true); 2]);
    assert_eq!(kinds("cross-node-vxlan"), [(LinkKind::Veth, true), (LinkKind::Tunnel, true), (LinkKind::Veth, true)]);
    assert_eq!(kinds("lab-cross-node"), [(LinkKind::Veth, true), (LinkKind::Wire, true), (LinkKind::Veth, true)]);
    assert_eq!(kinds("in-pod"), [(LinkKind::Loopback, true)]);
    let inside = picture("in-pod");
    assert_eq!(namespace(&inside, "pod default/curl").lanes.len(), 2, "one namespace, out of the stack and back into it");
    let devices = |name: &str, title: &str| -> Vec<String> {
        let picture = picture(name);
        let lanes = namespace(&picture, title).lanes.iter().flat_map(|l| l.items.clone());
        lanes.filter_map(|i| if let Item::Device(d) = i { Some(format!("{} {:?} {:?}", d.name, d.kind, d.bridge)) } else { None }).collect()
    };
    let expected = [r#"vethc1 Some(Veth) Some("cni0")"#, "cni0 Some(Bridge) None", "vxlan0 Some(Tunnel) None", "eth0 Some(Veth) None"];
    assert_eq!(devices("cross-node-vxlan", "host network of node-1"), expected);
}

#[test]
fn drops_are_marked_where_they_happened_and_the_rest_is_not_reached() {
    for name in ["same-node-drop", "lab-nft-drop"] {
        let picture = picture(name);
        let items = &namespace(&picture, "host network of node-1").lanes[0].items;
        let at = items.iter().position(|i| matches!(i, Item::End(m) if m.text.contains("NETFILTER_DROP"))).expect("a drop");
        assert!(matches!(&items[at - 1], Item::Stage(s) if s.name == "node FORWARD"), "{name}: {items:?}");
        let target = namespace(&picture, "pod default/httpbin");
        assert_eq!((target.state, target.detail.as_str()), (State::NotReached, "not reached"), "{name}");
        assert!(picture.links.last().is_some_and(|l| !l.taken), "{name}");
    }
    let lost = picture("icmp-vanished");
    let marks = || lost.lanes().flat_map(|(_, lane)| &lane.items).filter(|i| matches!(i, Item::End(_)));
    assert_eq!(marks().count(), 1, "{lost:?}");
    let nothing = picture("nothing-seen");
    assert!(nothing.lanes().all(|(ns, _)| ns.state == State::NotReached) && nothing.figures.contains("no packet"), "{nothing:?}");
}

/// Three hops socket to socket.
fn bypass(packet: &mut Value) -> bool {
    let hops = packet["hops"].as_array().cloned().unwrap_or_default();
    let pick = |stage: &str| hops.iter().find(|h| h["stage"] == stage).cloned();
    let (Some(write), Some(woken), Some(copied)) = (pick("socket-write"), pick("reader-woken"), pick("copied")) else { return false };
    let at = write["at_ns"].as_u64().unwrap_or(0);
    let mut hops = vec![write, woken, copied];
    for (n, hop) in hops.iter_mut().enumerate() {
        hop["at_ns"] = json!(at + 1_000 * n as u64);
    }
    packet["hops"] = json!(hops);
    packet["kind"] = json!("bypass");
    true
}

#[test]
fn the_socket_path_stands_beside_the_normal_one_or_skips_the_node() {
    let both = changed("same-node-service", |packet| packet["id"].as_u64().unwrap_or(0) % 2 == 0 || bypass(packet));
    let drawn = Picture::of(&report_of(&both));
    let socket = drawn.beside.iter().find(|b| b.path == Bypass::Socket).expect("a socket path");
    assert!(socket.taken && socket.text.starts_with("socket path: 2.00 us, ") && socket.text.ends_with("% less time"), "{socket:?}");
    assert!(drawn.bars.iter().any(|b| b.name == "socket path" && b.total_ns() == 2_000), "{:?}", drawn.bars);

    let alone = Picture::of(&report_of(&changed("same-node-service", bypass)));
    let node = namespace(&alone, "host network of node-1");
    assert_eq!(node.state, State::Skipped);
    let socket = &alone.beside[..];
    assert!(matches!(socket, [one] if one.taken && one.path == Bypass::Socket && (one.from, one.to) == (0, 2)), "{socket:?}");
    assert!(alone.links.iter().all(|l| !l.taken), "{:?}", alone.links);
    xml::check("socket path", &svg::render(&alone));
}

#[test]
fn a_redirection_past_the_stack_is_shown_as_taken_and_otherwise_as_possible() {
    let beside = |report: &Report| Picture::of(report).beside.iter().map(|b| (b.path, b.taken)).collect::<Vec<_>>();
    let normal = report_of(&recorded("same-node-service"));
    assert_eq!(beside(&normal), [(Bypass::Socket, false), (Bypass::Short, false)]);
    let redirected = report_of(&changed("same-node-service", |packet| {
        let node = |hop: &Value| hop["stage"].as_str().is_some_and(|s| s.starts_with("node-") && s != "node-receive");
        packet["hops"].as_array_mut().expect("hops").retain(|hop| !node(hop));
        true
    }));
    assert!(beside(&redirected).contains(&(Bypass::Short, true)), "{:?}", beside(&redirected));
    let across = report_of(&recorded("lab-cross-node"));
    assert!(beside(&across).is_empty(), "nothing is known of it there");
}

#[test]
fn drawings_are_whole_and_need_nothing_else() {
    for (name, report) in recordings() {
        let picture = Picture::of(&report);
        let drawn = svg::render(&picture);
        let shapes = xml::check(&name, &drawn);
        let (width, height) = shapes[0].size("viewBox");
        for shape in &shapes {
            let inside = shape.corners().iter().all(|(x, y)| (0..=width).contains(x) && (0..=height).contains(y));
            assert!(inside, "{name}: {shape:?} leaves {width} x {height}");
        }
        for outside in ["http://", "https://", "href", "<image", "<script", "<style", "url("] {
            assert!(!drawn.replace("http://www.w3.org/2000/svg", "").contains(outside), "{name} holds {outside}");
        }
        assert!(shapes.iter().any(|s| s.name == "title") && shapes.iter().any(|s| s.name == "desc"), "{name}");
    }
}

#[test]
fn golden_drawings() {
    for name in ["same-node-service", "cross-node-vxlan", "lab-nft-drop", "in-pod"] {
        golden_files::check(&format!("{name}.svg"), &svg::render(&picture(name)));
        golden_files::check(&format!("{name}.mmd"), &mermaid::render(&picture(name)));
    }
}

/// The rules of Mermaid's flowcharts that a label could break.
#[test]
fn flowcharts_are_balanced_and_their_labels_stay_labels() {
    for (name, report) in recordings() {
        let picture = Picture::of(&report);
        let text = mermaid::render(&picture);
        let mut depth = 0;
        for line in text.lines().skip(3) {
            let line = line.trim();
            depth += i32::from(line.starts_with("subgraph ")) - i32::from(line == "end");
            assert_eq!(line.matches('"').count() % 2, 0, "{name}: {line}");
            for label in line.split('"').skip(1).step_by(2) {
                let plain = label.replace("<br/>", "").replace("#quot;", "").replace("#gt;", "").replace("#35;", "");
                assert!(!plain.contains(['<', '>', '`', ';']), "{name}: {label}");
            }
        }
        assert_eq!(depth, 0, "{name}");
        let lanes = picture.lanes().count();
        assert!((0..lanes).all(|n| text.contains(&format!("lane{n}[\""))) && !text.contains(&format!("lane{lanes}")), "{name}");
        assert!(text.len() < 50_000, "{name}: Mermaid refuses longer ones");
    }
}
