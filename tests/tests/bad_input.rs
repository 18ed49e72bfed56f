//! `trace` where something is wrong with what it was given or with the machine: a clear word, the right exit code, nothing left.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sockpath_tests::lab::Lab;
use sockpath_tests::snapshot::{Scope, Snapshot};
use sockpath_tests::trace::{Trace, trace};
use sockpath_tests::{program_or_skip, root_or_skip};

fn before(lab: &Lab) -> Snapshot {
    Snapshot::take(Scope { containing: lab.instance().to_owned(), bpf: true })
}

/// Runs a bash script in which `$PLUGIN` is the plugin.
fn script(lab: &Lab, text: &str) -> Output {
    let plugin = lab.plugin();
    let mut command = Command::new("bash");
    for (key, value) in plugin.get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    command.env("PLUGIN", plugin.get_program()).args(["-c", text]).stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn names_that_do_not_fit() {
    if !root_or_skip("names_that_do_not_fit") {
        return;
    }
    let lab = Lab::up();
    let before = before(&lab);
    for (args, word, code) in [
        (&["curl", "nonesuch"][..], "nonesuch", 1),
        (&["nonesuch", "httpbin"], "nonesuch", 1),
        (&["curl", "svc/nothing"], "nothing", 1),
        (&["curl", "deploy/nothing"], "nothing", 1),
        // The name of a port, which this pod does not have.
        (&["curl", "httpbin:http"], "port", 1),
        (&["curl", "httpbin:0"], "port", 2),
        (&["curl", "httpbin:70000"], "port", 2),
        (&["curl", "curl"], "same pod", 2),
        (&["curl"], "TARGET", 2),
    ] {
        let output = lab.plugin().arg("trace").arg("--lab").args(args).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
        assert!(said(&output).contains(word), "{args:?}: {}", said(&output));
    }
    before.assert_nothing_left();
}

#[test]
fn no_lab_no_root_no_btf() {
    if !root_or_skip("no_lab_no_root_no_btf") {
        return;
    }
    let absent = Lab::reserve();
    let output = absent.plugin().args(["trace", "--lab", "curl", "httpbin"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("lab up"), "{}", said(&output));

    let lab = Lab::up();
    let before = before(&lab);
    let hidden = "mount -t tmpfs none /sys/kernel/btf && exec \"$PLUGIN\" trace --lab curl httpbin --probe";
    let output = script(&lab, &format!("exec unshare -m sh -c '{hidden}'"));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("BTF"), "{}", said(&output));

    let output = script(&lab, "exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$PLUGIN\" trace --lab curl httpbin --probe");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).starts_with("error: ") || said(&output).contains("\nerror: "), "{}", said(&output));
    before.assert_nothing_left();
}

#[test]
fn a_killed_helper_fails_the_trace() {
    if !root_or_skip("a_killed_helper_fails_the_trace") {
        return;
    }
    let lab = Lab::up();
    let before = before(&lab);
    let running = Trace::start(&lab, &["curl", "httpbin", "--no-probe", "--duration", "30s"]);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.pid())).unwrap();
    let children: Vec<i32> = children.split_whitespace().filter_map(|p| p.parse().ok()).collect();
    let children = if children.is_empty() { children_of(running.pid()) } else { children };
    assert!(!children.is_empty(), "the plugin has no helper");
    for child in children {
        kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
    }
    let traced = running.finish();
    assert_eq!(traced.code, 1, "{}", traced.stderr);
    assert!(traced.stderr.contains("helper"), "{}", traced.stderr);
    before.assert_nothing_left();
}

/// A thread other than the first may have started it.
fn children_of(parent: u32) -> Vec<i32> {
    let is_child = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|l| l.strip_prefix("PPid:").is_some_and(|p| p.trim() == parent.to_string()))
    };
    let names = fs::read_dir("/proc").unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|n| n.parse::<i32>().is_ok() && is_child(n)).filter_map(|n| n.parse().ok()).collect()
}

#[test]
fn a_full_disk_and_a_closed_pipe() {
    if !root_or_skip("a_full_disk_and_a_closed_pipe") {
        return;
    }
    let lab = Lab::up();
    let before = before(&lab);
    let full = "mount -t tmpfs -o size=4k none /mnt && exec \"$PLUGIN\" trace --lab curl httpbin --probe --count 20 --record /mnt/r";
    let output = script(&lab, &format!("exec unshare -m sh -c '{full}'"));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("/mnt/r"), "{}", said(&output));
    for file in ["--record", "--html", "--svg", "--perfetto", "--pcapng"] {
        let output = script(&lab, &format!("exec \"$PLUGIN\" trace --lab curl httpbin --probe {file} /dev/full"));
        assert_eq!(output.status.code(), Some(1), "{file}: {}", said(&output));
        assert!(said(&output).contains("/dev/full"), "{file}: {}", said(&output));
    }
    for format in ["", "-o wide", "-o json", "-o jsonl"] {
        let output = script(&lab, &format!("exec \"$PLUGIN\" trace --lab curl httpbin --probe {format} >/dev/full"));
        assert_eq!(output.status.code(), Some(1), "{format}: {}", said(&output));
        assert!(said(&output).contains("stdout"), "{format}: {}", said(&output));
        let text = format!("\"$PLUGIN\" trace --lab curl httpbin --probe --count 20 {format} | head -1; echo ${{PIPESTATUS[0]}} >&2");
        let output = script(&lab, &text);
        let said = said(&output);
        assert!(!said.contains("error") && !said.contains("panic"), "{format}: {said}");
        assert_eq!(said.lines().last(), Some("0"), "{format}: {said}");
    }
    before.assert_nothing_left();
}

/// Most machines show their BPF file system to root only: a command that cannot look must not print that there is nothing.
#[test]
fn what_cannot_be_seen_is_not_called_nothing() {
    if !root_or_skip("what_cannot_be_seen_is_not_called_nothing") {
        return;
    }
    let lab = Lab::up();
    let before = before(&lab);
    for command in ["stop", "cleanup", "status"] {
        let unprivileged = format!("exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$PLUGIN\" {command} --lab");
        let hidden = format!("mount -t bpf -o mode=0700 none /sys/fs/bpf && {unprivileged}");
        let output = script(&lab, &format!("exec unshare -m sh -c '{hidden}'"));
        assert_eq!(output.status.code(), Some(1), "{command}: {}", said(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{command}");
        assert!(said(&output).contains("sudo"), "{command}: {}", said(&output));
    }
    before.assert_nothing_left();
}

#[test]
fn tcpdump_reads_what_pcapng_writes() {
    if !root_or_skip("tcpdump_reads_what_pcapng_writes") || !program_or_skip("tcpdump_reads_what_pcapng_writes", "tcpdump", "tcpdump") {
        return;
    }
    let lab = Lab::up();
    let file = std::env::temp_dir().join(format!("{}.pcapng", lab.instance()));
    let path = file.to_string_lossy();
    let traced = trace(&lab, &["curl", "svc/httpbin", "--probe", "--pcapng", &path]);
    assert_eq!(traced.code, 0, "{}", traced.dump());
    let read = Command::new("tcpdump").args(["-nr", &path]).output().unwrap();
    let _ = fs::remove_file(&file);
    let text = String::from_utf8_lossy(&read.stdout);
    assert!(read.status.success(), "{}", said(&read));
    // As the client sent it, and as it was rewritten.
    for part in ["> 10.96.0.10.80: Flags [S]", "> 10.42.1.3.8080: Flags [S]", "10.42.1.3.8080 > 10.42.1.2", "10.96.0.10.80 > 10.42.1.2"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}
