//! Planted causes: does the first finding name the cause, its place and its mechanism, and is nothing innocent called a problem? Each row
//! has a control run, in which the same setting does no harm.

use std::path::Path;
use std::time::Duration;

use libbpf_rs::libbpf_sys as sys;
use sockpath_tests::lab::{Lab, output};
use sockpath_tests::planted::{Attached, Planted};
use sockpath_tests::trace::{Trace, Traced};
use sockpath_tests::{program_or_skip, root_or_skip, skipped, state};

mod conntrack;
mod halves;
mod rows;
mod subsystems;
use rows::{BRIDGES, NEIGHBOURS, PROGRAMS, ROUTES, RULES, SHAPES, TRANSLATIONS, TRANSPORT};

/// A planted cause. In commands and arguments `{}` is what makes the difference, `$V` and `$C` are the node's ends of httpbin's and curl's
/// veth pairs, `$B` is the bridge of node-1.
struct Row {
    name: &'static str,
    /// A file that this machine has to have; the row is left out where it has not.
    needs: &'static str,
    /// Lines `PLACE: COMMAND`, for a shell in that pod or node.
    plant: &'static str,
    /// The setting that does harm, and the same that does none.
    differs: (&'static str, &'static str),
    /// A BPF program that answers the setting: at `xdp` or `tc` (egress) of httpbin's eth0, or at what curl's control group sends
    /// (`cgroup`), connects to (`connect`) or sends to without a connection (`sendto`).
    program: &'static str,
    /// As `plant`: takes it away.
    undo: &'static str,
    /// Arguments of the trace.
    trace: &'static str,
    /// A line `PLACE: COMMAND` that sends packets; a probe does where it is empty.
    traffic: &'static str,
    /// Id of the first finding.
    id: &'static str,
    /// Its mechanism, for drops and probes that have one.
    mechanism: &'static str,
    /// What the text of the first finding has to say: place and rule.
    says: &'static [&'static str],
}

/// Names of devices.
struct Devices {
    httpbin: String,
    curl: String,
    bridge: String,
}

impl Devices {
    fn of(lab: &Lab) -> Self {
        let httpbin = lab.host_veth("httpbin", "node-1");
        let line = lab.run("node-1", ["ip", "-o", "link", "show", "dev", &httpbin]);
        let bridge = line.split_whitespace().skip_while(|word| *word != "master").nth(1).expect("a bridge").to_owned();
        Self { curl: lab.host_veth("curl", "node-1"), httpbin, bridge }
    }

    fn fill(&self, text: &str, setting: &str) -> String {
        text.replace("{}", setting).replace("$V", &self.httpbin).replace("$C", &self.curl).replace("$B", &self.bridge)
    }
}

/// Runs lines `PLACE: COMMAND`; an indented line goes on with the command before.
fn script(lab: &Lab, text: &str) -> Result<(), String> {
    let mut commands: Vec<String> = Vec::new();
    for line in text.lines().filter(|l| !l.is_empty()) {
        match commands.last_mut().filter(|_| line.starts_with(' ')) {
            Some(command) => command.extend(["\n", &line[1..]]),
            None => commands.push(line.to_owned()),
        }
    }
    for command in commands {
        let (place, command) = command.split_once(": ").expect("PLACE: COMMAND");
        let out = output(&mut lab.exec(place, ["sh", "-ec", command]));
        if !out.status.success() {
            return Err(format!("{place}: {command}: {}", String::from_utf8_lossy(&out.stderr)));
        }
    }
    Ok(())
}

/// Attaches the row's program. What stays where it is goes with `undo`.
fn attach(lab: &Lab, place: &str, setting: &str) -> Option<Attached> {
    let load = |kind| Planted::load(kind, "planted_cause", setting.parse().expect("a number"));
    match place {
        "xdp" => {
            let program = load(sys::BPF_PROG_TYPE_XDP);
            lab.inside("httpbin", || program.at_xdp("eth0"));
            None
        }
        "tc" => {
            lab.run("httpbin", "tc qdisc add dev eth0 clsact".split(' '));
            let program = load(sys::BPF_PROG_TYPE_SCHED_CLS);
            lab.inside("httpbin", || program.at_tc_egress("eth0"));
            None
        }
        "cgroup" => Some(load(sys::BPF_PROG_TYPE_CGROUP_SKB).at_cgroup_egress(Path::new(&lab.pod("curl").cgroup))),
        "connect" | "sendto" => {
            let answer = setting.parse().expect("a number");
            let call = if place == "connect" { sys::BPF_CGROUP_INET4_CONNECT } else { sys::BPF_CGROUP_UDP4_SENDMSG };
            let program = Planted::load_for(sys::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, "planted_cause", answer, call);
            Some(program.at_cgroup(Path::new(&lab.pod("curl").cgroup), call))
        }
        _ => None,
    }
}

/// States of a socket in which TCP retransmits unacknowledged segments without its program.
const STILL_SENDING: &str = "state syn-sent state syn-recv state fin-wait-1 state closing state last-ack";

/// Longer than a SYN-ACK is sent again (net.ipv4.tcp_synack_retries is 5 by default: 63 s).
const MOST_REPEATS: Duration = Duration::from_secs(90);

/// Ends what connections of earlier runs have left: a listener that got no answer to its SYN-ACK sends it again for a minute, and each
/// is a reply of no connection to the trace that sees it.
fn end_connections(lab: &Lab) {
    for place in ["curl", "httpbin"] {
        // A kernel without CONFIG_INET_DIAG_DESTROY leaves them; they end by themselves then.
        let _ = output(&mut lab.exec(place, ["sh", "-c", &format!("ss --kill {STILL_SENDING}")]));
        let list = format!("ss -Htan {STILL_SENDING}");
        state::eventually("every connection is over", MOST_REPEATS, || lab.run(place, ["sh", "-c", &list]).trim().is_empty());
    }
}

/// One trace with the setting.
fn run(lab: &Lab, row: &Row, devices: &Devices, setting: &str) -> Result<Traced, String> {
    let trace = devices.fill(row.trace, setting);
    let mut args: Vec<&str> = trace.split(' ').collect();
    let undo = || script(lab, &devices.fill(row.undo, setting));
    if let Err(e) = script(lab, &devices.fill(row.plant, setting)) {
        let _ = undo();
        return Err(e);
    }
    let _attached = attach(lab, row.program, setting);
    let traced = if row.traffic.is_empty() {
        args.extend(["--probe", "--duration", "1s"]);
        Trace::start(lab, &args).finish()
    } else {
        args.extend(["--no-probe", "--duration", "8s"]);
        let running = Trace::start(lab, &args);
        // Whether it succeeds is what the trace is about.
        let _ = script(lab, &devices.fill(row.traffic, setting));
        running.interrupt();
        running.finish()
    };
    undo()?;
    end_connections(lab);
    Ok(traced)
}

/// The first finding is the cause, and nothing else is one.
fn planted(row: &Row, devices: &Devices, traced: &Traced) -> Result<(), String> {
    let findings = traced.list("findings");
    let first = findings.first().ok_or("no finding")?;
    let text = format!("{} {}", first["text"].as_str().unwrap_or_default(), first["evidence"]);
    if first["id"] != row.id {
        return Err(format!("the first finding is {}: {text}", first["id"]));
    }
    if let Some(missing) = row.says.iter().map(|s| devices.fill(s, row.differs.0)).find(|s| !text.contains(s.as_str())) {
        return Err(format!("the first finding does not say `{missing}`: {text}"));
    }
    if !row.mechanism.is_empty() && first["mechanism"] != row.mechanism {
        return Err(format!("the mechanism is {}: {text}", first["mechanism"]));
    }
    match findings.iter().skip(1).find(|f| f["severity"] == "critical" && f["root"] != 0) {
        Some(other) => Err(format!("another cause is named: {}: {}", other["id"], other["text"])),
        None => Ok(()),
    }
}

/// Nothing is a problem.
fn harmless(traced: &Traced) -> Result<(), String> {
    let unanswered = traced.list("probes").iter().find(|p| p["answered"] != true);
    let accused = traced.list("findings").iter().find(|f| f["severity"] == "critical");
    match (accused, unanswered) {
        (Some(finding), _) => Err(format!("something innocent is named: {}: {}", finding["id"], finding["text"])),
        (None, Some(probe)) => Err(format!("the probe got no answer: {probe}")),
        (None, None) => Ok(()),
    }
}

/// Runs a table in a lab of its own and says of all its rows at once what is wrong.
fn check(test: &str, rows: &[Row]) {
    let programs = [("nft", "nftables"), ("iptables", "iptables"), ("tc", "iproute2"), ("curl", "curl"), ("python3", "python3")];
    if !root_or_skip(test) || !programs.iter().all(|(program, package)| program_or_skip(test, program, package)) {
        return;
    }
    let only = std::env::var("CAUSE").unwrap_or_default();
    let lab = Lab::up();
    let devices = Devices::of(&lab);
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|r| r.name.contains(&only)) {
        if !row.needs.is_empty() && !Path::new(row.needs).exists() {
            skipped(test, &format!("{}: this machine has no {}", row.name, row.needs));
            continue;
        }
        let control = run(&lab, row, &devices, row.differs.1).and_then(|t| harmless(&t).map_err(|e| format!("control: {e}")));
        let cause = run(&lab, row, &devices, row.differs.0)
            .and_then(|t| planted(row, &devices, &t).map_err(|e| if only.is_empty() { e } else { format!("{e}\n{}", t.dump()) }));
        wrong.extend([control, cause].into_iter().filter_map(Result::err).map(|e| format!("{}: {e}", row.name)));
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

#[test]
fn causes_in_routes() {
    check("causes_in_routes", ROUTES);
}

#[test]
fn causes_in_bridges() {
    check("causes_in_bridges", BRIDGES);
}

#[test]
fn causes_in_neighbours() {
    check("causes_in_neighbours", NEIGHBOURS);
}

#[test]
fn causes_in_rules() {
    check("causes_in_rules", RULES);
}

#[test]
fn causes_in_rulesets_of_known_shapes() {
    check("causes_in_rulesets_of_known_shapes", SHAPES);
}

#[test]
fn causes_in_translations() {
    check("causes_in_translations", TRANSLATIONS);
}

#[test]
fn causes_in_transport() {
    check("causes_in_transport", TRANSPORT);
}

#[test]
fn causes_in_queues_and_programs() {
    check("causes_in_queues_and_programs", PROGRAMS);
}
