//! Traces compared with themselves, with other traces, and with changed copies.

use std::path::Path;
use std::sync::Arc;

use sockpath_protocol::stage::StageId;

use super::*;
use crate::report::report;

const NAMES: [&str; 6] = ["same-node-service", "cross-node-vxlan", "same-node-drop", "in-pod", "lab-udp", "nothing-seen"];

fn text(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/recordings/{name}.jsonl"))).unwrap()
}

fn of(text: &str) -> Report {
    report(&Arc::new(crate::recording::read(text.as_bytes(), "x").unwrap()))
}

fn about(diff: &Diff, subject: Subject) -> Vec<String> {
    let shown = |c: &Change| format!("{}: {} > {}", c.what, c.before.as_deref().unwrap_or("-"), c.after.as_deref().unwrap_or("-"));
    diff.changes.iter().filter(|c| c.subject == subject).map(shown).collect()
}

#[test]
fn a_trace_does_not_differ_from_itself() {
    for name in NAMES {
        let one = of(&text(name));
        let diff = diff(&one, &one);
        assert!(
            diff.same && diff.changes.is_empty() && diff.stages.is_empty() && diff.times.iter().all(|t| t.within_noise),
            "{name}: {diff:?}"
        );
    }
}

#[test]
fn what_is_new_in_one_order_is_gone_in_the_other() {
    let reports: Vec<Report> = NAMES.iter().map(|name| of(&text(name))).collect();
    for (a, b) in reports.iter().flat_map(|a| reports.iter().map(move |b| (a, b))) {
        let sorted = |mut changes: Vec<Change>| {
            changes.sort_by(|x, y| (x.subject, &x.what).cmp(&(y.subject, &y.what)));
            changes
        };
        let turned = |c: Change| Change { before: c.after, after: c.before, ..c };
        let back = sorted(diff(b, a).changes.into_iter().map(turned).collect());
        assert_eq!(sorted(diff(a, b).changes), back);
        let mut turned: Vec<StageChange> = diff(b, a).stages;
        turned.iter_mut().for_each(|c| std::mem::swap(&mut c.before, &mut c.after));
        let there = diff(a, b).stages;
        assert!(there.len() == turned.len() && there.iter().all(|c| turned.contains(c)), "{there:?} {turned:?}");
    }
}

#[test]
fn a_pod_with_a_new_name_is_one_change() {
    let old = text("same-node-service");
    let renamed =
        diff(&of(&old), &of(&old.replace("httpbin\"", "httpbin-7d4b\"").replace("httpbin-7d4b\", \"frontends", "httpbin\", \"frontends")));
    assert!(about(&renamed, Subject::Endpoints).contains(&"target: default/httpbin > default/httpbin-7d4b".to_owned()), "{renamed:?}");
    assert!(renamed.stages.is_empty() && about(&renamed, Subject::Path).is_empty(), "{renamed:?}");
    assert!(renamed.times.len() > 20 && renamed.times.iter().all(|t| t.within_noise), "times are compared all the same");
}

#[test]
fn a_slower_stage_is_beyond_noise_and_the_others_are_within() {
    let old = text("same-node-service");
    let mut slower = String::new();
    for line in old.lines() {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        let mut delay = 0;
        for hop in line["message"]["hops"].as_array_mut().into_iter().flatten() {
            hop["at_ns"] = (hop["at_ns"].as_u64().unwrap() + delay).into();
            if hop["stage"] == "node-forward" {
                delay = 50_000;
            }
        }
        slower.push_str(&format!("{line}\n"));
    }
    let found = diff(&of(&old), &of(&slower));
    let beyond: Vec<Option<StageId>> =
        found.times.iter().filter(|t| t.direction == Direction::Request && !t.within_noise).map(|t| t.stage).collect();
    assert!(beyond.contains(&None) && beyond.contains(&Some(StageId::NodeForward)) && beyond.len() == 2, "{beyond:?}");
    assert!(!found.same && found.changes.iter().all(|c| c.subject == Subject::Findings), "{:?}", found.changes);
}

#[test]
fn drops_translations_findings_and_kernels_are_listed() {
    let (works, dropped) = (of(&text("same-node-service")), of(&text("same-node-drop")));
    let found = diff(&works, &dropped);
    assert_eq!(about(&found, Subject::Drops), ["NETFILTER_DROP of the request in node FORWARD in the source's node: - > 3 packets"]);
    assert!(about(&found, Subject::Endpoints).contains(&"requests arrive: yes > no".to_owned()), "{:?}", found.changes);
    assert!(about(&found, Subject::Findings).iter().any(|f| f.starts_with("dropped: - > 3 request packets")), "{:?}", found.changes);
    let gone = about(&found, Subject::Rewrites);
    assert!(
        gone.iter()
            .any(|r| r.starts_with("DNAT of 10.96.0.10:80 to 10.42.1.3:8080 in node PRE_ROUTING in the source's node: ")
                && r.ends_with("> -")),
        "{gone:?}"
    );
    assert!(found.stages.is_empty() && found.times.is_empty(), "data and SYN packets are not compared stage by stage");
    let newer = diff(&works, &of(&text("same-node-service").replace("6.18.44", "6.19.1")));
    assert_eq!(about(&newer, Subject::Nodes), ["kernel of the source's node: 6.18.44 > 6.19.1"]);
    assert_eq!(newer.changes.len(), 1, "{:?}", newer.changes);
}

#[test]
fn stages_that_are_new_gone_or_skipped_are_listed() {
    let (one, across) = (of(&text("same-node-service")), of(&text("cross-node-vxlan")));
    let found = diff(&one, &across);
    let is = |stage, before, after| found.stages.iter().any(|c| (c.stage, c.before, c.after) == (stage, before, after));
    assert!(is(StageId::TunnelEncap, None, Some(Seen::Observed)), "{:?}", found.stages);
    let path = about(&found, Subject::Path);
    assert!(path[0].ends_with("> the source, the source's node, the target's node, the target"), "{path:?}");
    let looked_up = diff(&of(&text("in-pod")), &of(&text("lab-in-pod-ipv6")));
    let skipped = |c: &StageChange| c.before == Some(Seen::Skipped) || c.after == Some(Seen::Skipped);
    assert!(looked_up.stages.iter().all(|c| c.before != c.after) && looked_up.stages.iter().any(skipped), "{:?}", looked_up.stages);
}
