//! What `doctor` finds on this machine's kernel, and a helper whose container refuses bpf(2).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use libbpf_rs::{MapHandle, MapType};
use serde_json::Value;
use sockpath_tests::{programs, root_or_skip};

fn doctor() -> Value {
    let out = programs::plugin_command().args(["doctor", "--lab", "-o", "json"]).env("SOCKPATH_LAB", "doctor").output().unwrap();
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)))
}

fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    let rows = report["checks"].as_array().unwrap();
    rows.iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("{name}: {report:#}"))
}

#[test]
fn the_kernel_is_tried_out_and_nothing_is_left() {
    if !root_or_skip("the_kernel_is_tried_out_and_nothing_is_left") {
        return;
    }
    let report = doctor();
    for name in
        ["kernel", "BTF", "seccomp", "cgroups", "bpffs", "capabilities", "canary redirect", "canary order", "canary fionread", "canary fin"]
    {
        assert_eq!(row(&report, name)["state"], "ok", "{report:#}");
    }
    for unwell in report["checks"].as_array().unwrap().iter().filter(|c| c["state"] != "ok") {
        assert!(unwell["remedy"].is_string(), "{unwell:#}");
    }
    assert!(!std::path::Path::new("/sys/fs/bpf/sockpath-doctor").exists());
}

#[test]
fn other_owners_of_socket_maps_are_named() {
    if !root_or_skip("other_owners_of_socket_maps_are_named") {
        return;
    }
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as libbpf_rs::libbpf_sys::size_t,
        ..Default::default()
    };
    let other = MapHandle::create(MapType::Sockhash, Some("cilium_sock_ops"), 4, 4, 1, &options).unwrap();
    let report = doctor();
    let maps = row(&report, "socket maps");
    assert!(maps["state"] == "degraded" && maps["found"].as_str().unwrap().contains("cilium_sock_ops"), "{maps:#}");
    assert!(maps["remedy"].as_str().unwrap().contains("excluded"), "{maps:#}");
    drop(other);
}

/// Refuses bpf(2) as a runtime's profile does: with EPERM, whatever the capabilities.
fn refuse_bpf() -> std::io::Result<()> {
    const BPF_LD_W_ABS: u16 = 0x20;
    const BPF_JEQ_K: u16 = 0x15;
    const BPF_RET_K: u16 = 0x06;
    let statement = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = u32::try_from(libc::SYS_bpf).unwrap_or(0);
    let mut filter = [
        statement(BPF_LD_W_ABS, 0, 0, 0),
        statement(BPF_JEQ_K, 0, 1, number),
        statement(BPF_RET_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(BPF_RET_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: a filter of four instructions that outlives the call.
    let r = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if r == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn a_seccomp_profile_that_refuses_bpf_ends_in_the_remedy() {
    if !root_or_skip("a_seccomp_profile_that_refuses_bpf_ends_in_the_remedy") {
        return;
    }
    let answers = |requests: &str| {
        let mut command = Command::new(programs::lab());
        command.arg("session").env("SOCKPATH_LAB", "doctor").stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: only system calls between fork and exec.
        let mut child = unsafe { command.pre_exec(refuse_bpf) }.spawn().unwrap();
        child.stdin.take().unwrap().write_all(requests.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        String::from_utf8_lossy(&out.stdout).lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>()
    };
    let doctor = answers("{\"type\":\"doctor\"}\n{\"type\":\"finish\"}\n");
    let seccomp = doctor.iter().find(|m| m["name"] == "seccomp").unwrap_or_else(|| panic!("{doctor:#?}"));
    assert!(seccomp["state"] == "failed" && seccomp["remedy"].as_str().unwrap().contains("--seccomp Unconfined"), "{seccomp:#}");

    let pod = r#"{"namespace":"a","name":"b","uid":"00000000","node":"n","ips":[],"locate":{"by":"path","netns":"/proc/self/ns/net","cgroup":"/"}}"#;
    let accelerate = format!("{{\"type\":\"trace\",\"source\":{pod},\"targets\":[],\"nodes\":[]}}\n{{\"type\":\"finish\"}}\n");
    let said = answers(&accelerate);
    let error = said.iter().find(|m| m["type"] == "error").unwrap_or_else(|| panic!("{said:#?}"));
    assert!(error["code"] == "seccomp" && error["text"].as_str().unwrap().contains("--seccomp Unconfined"), "{error:#}");
}
