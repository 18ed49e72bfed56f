//! The lab's life: up, down, again, after crashes, and the errors where it cannot be.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sockpath_protocol::lab::Overlay;
use sockpath_tests::lab::{Lab, output, succeed};
use sockpath_tests::root_or_skip;
use sockpath_tests::snapshot::{Scope, Snapshot};
use sockpath_tests::state::eventually;

fn snapshot(lab: &Lab) -> Snapshot {
    Snapshot::take(Scope { containing: lab.instance().to_owned(), bpf: false })
}

fn stderr(command: &mut Command) -> String {
    String::from_utf8_lossy(&output(command).stderr).into_owned()
}

#[test]
fn up_is_idempotent_and_down_leaves_nothing() {
    if !root_or_skip("up_is_idempotent_and_down_leaves_nothing") {
        return;
    }
    let lab = Lab::reserve();
    let before = snapshot(&lab);
    let up = succeed(lab.helper().args(["up"]));
    assert!(up.stdout.is_empty(), "stdout is for data");
    assert_ne!(before, snapshot(&lab));

    let status = lab.status();
    assert!(status.up && status.overlay == Overlay::None);
    assert_eq!(status.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["node-1", "node-2"]);
    assert_eq!(status.nodes[0].pod_cidrs, ["10.42.1.0/24", "fd00:10:42:1::/64"]);
    let pods: Vec<_> = status.pods.iter().map(|p| (p.name.as_str(), p.node.as_str(), p.namespace.as_str())).collect();
    assert_eq!(pods, [("curl", "node-1", "default"), ("httpbin", "node-1", "default"), ("httpbin-remote", "node-2", "default")]);
    let services: Vec<_> = status.services.iter().map(|s| (s.name.as_str(), s.cluster_ips[0].to_string())).collect();
    assert_eq!(services, [("httpbin", "10.96.0.10".into()), ("httpbin-remote", "10.96.0.11".into()), ("empty", "10.96.0.12".into())]);
    for pod in &status.pods {
        assert!(Path::new(&pod.netns).exists(), "{}", pod.netns);
        for container in &pod.containers {
            let members = fs::read_to_string(format!("{}/{}/cgroup.procs", pod.cgroup, container.id)).unwrap();
            assert_eq!(members.trim(), container.pid.to_string());
        }
    }
    let containers: Vec<_> = status.pods[0].containers.iter().map(|c| (c.name.as_str(), c.port)).collect();
    assert_eq!(containers, [("curl", 8080), ("sidecar", 8081)]);

    let again = succeed(lab.helper().args(["up"]));
    assert!(String::from_utf8_lossy(&again.stderr).contains("already up"));
    assert_eq!(lab.status(), status, "the second up changed something");

    let other = output(lab.helper().args(["up", "--overlay", "vxlan"]));
    assert_eq!(other.status.code(), Some(1));
    let text = String::from_utf8_lossy(&other.stderr);
    assert!(text.starts_with("error: ") && text.contains("overlay none") && text.contains("lab down"), "{text}");

    assert!(lab.down().status.success());
    before.assert_nothing_left();
    assert!(lab.down().status.success(), "down is idempotent too");
    before.assert_nothing_left();
}

#[test]
fn status_of_no_lab_says_what_to_do() {
    if !root_or_skip("status_of_no_lab_says_what_to_do") {
        return;
    }
    let lab = Lab::reserve();
    let text = output(lab.helper().args(["status"]));
    assert_eq!(text.status.code(), Some(1));
    let said = String::from_utf8_lossy(&text.stderr);
    assert!(said.starts_with("error: the lab is not up") && said.contains("lab up"), "{said}");
    assert!(!lab.status().up, "-o json is a document in any case");
}

#[test]
fn killed_up_leaves_nothing_that_down_or_up_does_not_handle() {
    if !root_or_skip("killed_up_leaves_nothing_that_down_or_up_does_not_handle") {
        return;
    }
    let lab = Lab::reserve();
    let before = snapshot(&lab);
    // How long it takes here, to spread the moments over it.
    let started = Instant::now();
    succeed(lab.helper().args(["up"]));
    let whole = started.elapsed();
    assert!(lab.down().status.success());

    const MOMENTS: u32 = 24;
    let mut caught = 0;
    for moment in 0..MOMENTS {
        let overlay = if moment % 2 == 0 { "none" } else { "vxlan" };
        let mut up = lab.helper().args(["up", "--overlay", overlay]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * moment / MOMENTS);
        up.kill().unwrap();
        if up.wait().unwrap().signal() == Some(9) {
            caught += 1;
        }
        if moment % 3 == 0 {
            // Instead of `down`, a second `up` repairs. The first may have been for the other overlay, and was not complete.
            succeed(lab.helper().args(["up", "--overlay", overlay]));
            assert_eq!(lab.exec("curl", ["true"]).status().unwrap().code(), Some(0));
        }
        let down = lab.down();
        assert!(down.status.success(), "moment {moment}: {}", String::from_utf8_lossy(&down.stderr));
        before.assert_nothing_left();
    }
    assert!(caught > MOMENTS / 4, "up was caught at work only {caught} times");
}

#[test]
fn interrupted_up_cleans_up_by_itself() {
    if !root_or_skip("interrupted_up_cleans_up_by_itself") {
        return;
    }
    let lab = Lab::reserve();
    let before = snapshot(&lab);
    let mut caught = 0;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let up = lab.helper().args(["up"]).stderr(Stdio::null()).spawn().unwrap();
        // It is at work, and its handlers are in place, once it has given the first namespace its name.
        while !lab.netns("node-1").exists() {
            std::thread::yield_now();
        }
        kill(Pid::from_raw(up.id().cast_signed()), signal).unwrap();
        let status = up.wait_with_output().unwrap().status;
        match status.code() {
            Some(130) => {
                caught += 1;
                before.assert_nothing_left();
            }
            // It was done before the signal came.
            Some(0) => assert!(lab.down().status.success()),
            _ => panic!("{status}"),
        }
    }
    assert!(caught > 0, "up was never interrupted");
}

#[test]
fn damage_is_seen_and_repaired() {
    if !root_or_skip("damage_is_seen_and_repaired") {
        return;
    }
    let lab = Lab::up();
    let before = lab.status();

    let pid = lab.pod("httpbin").containers[0].pid;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    let mut status = lab.helper();
    status.args(["status"]);
    // The process is gone from its cgroup as soon as it is dead, which `kill` does not wait for.
    while output(&mut status).status.success() {
        std::thread::yield_now();
    }
    let said = stderr(&mut status);
    assert!(said.contains("broken") && said.contains("httpbin") && said.contains("lab up"), "{said}");
    let up = succeed(lab.helper().args(["up"]));
    assert!(String::from_utf8_lossy(&up.stderr).contains("repairing the lab: the server of pod httpbin"));

    lab.run("node-2", ["ip", "link", "del", "cni0"]);
    assert!(stderr(lab.helper().args(["up"])).contains("repairing the lab: device cni0 of node-2"));
    lab.run("curl", ["curl", "-sS", "--max-time", "5", "10.96.0.11"]);

    // Everything but the process ids is as it was.
    let mut after = lab.status();
    for (a, b) in after.pods.iter_mut().zip(&before.pods) {
        for (a, b) in a.containers.iter_mut().zip(&b.containers) {
            a.pid = b.pid;
        }
    }
    assert_eq!(after, before);
}

#[test]
fn a_damaged_state_file_is_no_obstacle() {
    if !root_or_skip("a_damaged_state_file_is_no_obstacle") {
        return;
    }
    let lab = Lab::reserve();
    let before = snapshot(&lab);
    succeed(lab.helper().args(["up"]));
    let state = format!("/run/sockpath/lab-{}/state.json", lab.instance());
    fs::write(&state, "{").unwrap();
    let said = stderr(lab.helper().args(["status"]));
    assert!(said.starts_with("error: ") && said.contains("damaged") && said.contains("lab down"), "{said}");
    assert!(lab.down().status.success());
    before.assert_nothing_left();

    // And none at all: everything is found by name. The servers notice that their lab is gone.
    succeed(lab.helper().args(["up"]));
    fs::remove_dir_all(format!("/run/sockpath/lab-{}", lab.instance())).unwrap();
    assert!(lab.down().status.success());
    before.assert_nothing_left();
}

#[test]
fn servers_end_when_their_lab_is_gone() {
    if !root_or_skip("servers_end_when_their_lab_is_gone") {
        return;
    }
    let lab = Lab::up();
    let pids: Vec<u32> = lab.status().pods.iter().flat_map(|p| p.containers.iter().map(|c| c.pid)).collect();
    let alive = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| !c.is_empty());
    assert!(pids.iter().all(alive), "there are no servers");
    fs::remove_dir_all(format!("/run/sockpath/lab-{}", lab.instance())).unwrap();
    eventually("servers end with their lab", Duration::from_secs(5), || !pids.iter().any(alive));
}

#[test]
fn another_owners_namespace_is_not_touched() {
    if !root_or_skip("another_owners_namespace_is_not_touched") {
        return;
    }
    let lab = Lab::reserve();
    let before = snapshot(&lab);
    let path = lab.netns("httpbin");
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    succeed(Command::new("ip").args(["netns", "add", &name]));
    let mut up = lab.helper();
    let up = output(up.args(["up"]));
    let down = lab.down();
    let kept = File::open(&path).is_ok();
    succeed(Command::new("ip").args(["netns", "del", &name]));
    assert_eq!(up.status.code(), Some(1));
    let said = String::from_utf8_lossy(&up.stderr);
    assert!(
        said.starts_with("error: ") && said.contains(&name) && said.contains("ip netns del") && said.contains("SOCKPATH_LAB"),
        "{said}"
    );
    assert!(down.status.success() && kept, "down removed a namespace that is not the lab's");
    before.assert_nothing_left();
}

#[test]
fn an_incomplete_start_is_undone() {
    if !root_or_skip("an_incomplete_start_is_undone") {
        return;
    }
    let lab = Lab::reserve();
    let before = snapshot(&lab);
    // Programs of the right name that fail, found first.
    let dir = std::env::temp_dir().join(format!("sockpath-{}", lab.instance()));
    fs::create_dir(&dir).unwrap();
    for name in ["iptables-restore", "ip6tables-restore"] {
        std::os::unix::fs::symlink("/bin/false", dir.join(name)).unwrap();
    }
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let up = output(lab.helper().args(["up"]).env("PATH", path));
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(up.status.code(), Some(1));
    let said = String::from_utf8_lossy(&up.stderr);
    assert!(said.starts_with("error: iptables-restore failed on node-1"), "{said}");
    before.assert_nothing_left();
}

#[test]
fn down_names_who_keeps_a_namespace_alive() {
    if !root_or_skip("down_names_who_keeps_a_namespace_alive") {
        return;
    }
    let lab = Lab::up();
    // In the namespace but not in the cgroup, so it is not the lab's to kill.
    let mut guest = lab.inside("httpbin", || Command::new("sleep").arg("60").spawn().unwrap());
    let down = lab.down();
    let alive = guest.try_wait().unwrap().is_none();
    guest.kill().unwrap();
    guest.wait().unwrap();
    let said = String::from_utf8_lossy(&down.stderr);
    assert!(down.status.success() && alive);
    assert!(said.contains(&format!("process {} (sleep)", guest.id())) && said.contains("httpbin"), "{said}");
}

#[test]
fn instances_do_not_meet() {
    if !root_or_skip("instances_do_not_meet") {
        return;
    }
    let (a, b) = (Lab::up(), Lab::up_with(Overlay::Vxlan));
    let (in_a, in_b) = (a.pod("httpbin"), b.pod("httpbin"));
    assert!(in_a.uid != in_b.uid && in_a.netns != in_b.netns && in_a.cgroup != in_b.cgroup);
    assert!(b.down().status.success());
    assert!(a.run("curl", ["curl", "-sS", "--max-time", "5", "10.96.0.10"]).contains("default/httpbin"));
}

#[test]
fn concurrent_ups_wait_for_each_other() {
    if !root_or_skip("concurrent_ups_wait_for_each_other") {
        return;
    }
    let lab = Lab::reserve();
    let ups: Vec<_> = (0..4).map(|_| lab.helper().args(["up"]).stderr(Stdio::piped()).spawn().unwrap()).collect();
    let said: Vec<String> = ups
        .into_iter()
        .map(|up| {
            let out = up.wait_with_output().unwrap();
            assert!(out.status.success());
            String::from_utf8_lossy(&out.stderr).into_owned()
        })
        .collect();
    assert_eq!(said.iter().filter(|s| s.contains("already up")).count(), 3, "{said:?}");
}

#[test]
fn what_is_missing_is_named() {
    if !root_or_skip("what_is_missing_is_named") {
        return;
    }
    let lab = Lab::reserve();
    // As an unprivileged user, who may not reach the program's directory: it is opened first.
    let program = File::open(sockpath_tests::programs::lab()).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&program));
    for command in [&["up"][..], &["down"], &["exec", "curl", "--", "true"]] {
        let mut unprivileged = Command::new(&path);
        unprivileged.args(command).env("SOCKPATH_LAB", lab.instance()).uid(65534).gid(65534);
        nix::fcntl::fcntl(&program, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let out = output(&mut unprivileged);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.starts_with("error: ") && said.contains("root") && said.contains("sudo"), "{said}");
    }

    // A machine without iptables: nothing is in the directories of programs.
    let mut up = lab.helper();
    let hide = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)?;
        for dir in ["/usr/sbin", "/usr/local/sbin", "/sbin"] {
            match mount(Some("none"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>) {
                Ok(()) | Err(nix::Error::ENOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    };
    // SAFETY: only system calls and no allocation between fork and exec.
    unsafe { up.args(["up"]).env("PATH", "/nowhere").pre_exec(hide) };
    let said = stderr(&mut up);
    assert!(said.contains("iptables-restore is not installed") && said.contains("apt-get install iptables"), "{said}");

    for name in ["../etc", "UPPER", "a b"] {
        let out = output(lab.helper().args(["up"]).env("SOCKPATH_LAB", name));
        assert_eq!(out.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&out.stderr).starts_with("error: SOCKPATH_LAB="));
    }
    let usage = output(lab.helper().args(["up", "--overlay", "gre"]));
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn without_a_cgroup_v2_mount_the_lab_has_its_own() {
    if !root_or_skip("without_a_cgroup_v2_mount_the_lab_has_its_own") {
        return;
    }
    let lab = Lab::reserve();
    // All in one mount namespace, where nothing of type cgroup2 is mounted.
    let script = "umount -a -t cgroup2 && \"$0\" up && \"$0\" exec curl -- cat /proc/self/cgroup && \"$0\" status -o json && \"$0\" down";
    let mut machine = Command::new("unshare");
    machine.args(["--mount", "sh", "-c", script]).arg(sockpath_tests::programs::lab()).env("SOCKPATH_LAB", lab.instance());
    let out = succeed(&mut machine);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(said.contains("/run/sockpath/cgroup/sockpath-lab-") && said.contains("/kubepods/burstable/pod"), "{said}");
    assert!(!Path::new("/run/sockpath/cgroup").exists(), "the private mount's directory is left");
}

#[test]
fn a_file_that_only_has_the_name_is_not_removed() {
    if !root_or_skip("a_file_that_only_has_the_name_is_not_removed") {
        return;
    }
    let lab = Lab::reserve();
    let path = lab.netns("curl");
    fs::create_dir_all("/run/netns").unwrap();
    fs::write(&path, "a user's notes").unwrap();
    let up = output(lab.helper().args(["up"]));
    let down = lab.down();
    let kept = fs::read_to_string(&path);
    let _ = fs::remove_file(&path);
    assert_eq!(up.status.code(), Some(1), "{}", String::from_utf8_lossy(&up.stderr));
    assert!(down.status.success() && kept.is_ok_and(|k| k == "a user's notes"));
    // An empty one is what a crash leaves.
    fs::write(&path, "").unwrap();
    succeed(lab.helper().args(["up"]));
}

#[test]
fn down_from_inside_is_refused() {
    if !root_or_skip("down_from_inside_is_refused") {
        return;
    }
    let lab = Lab::up();
    let program = sockpath_tests::programs::lab();
    let out = output(&mut lab.exec("curl", [program.as_os_str(), "down".as_ref()]));
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("inside the lab"));
    assert!(lab.status().up);
}

#[test]
fn the_process_that_starts_the_lab_is_not_held_by_it() {
    if !root_or_skip("the_process_that_starts_the_lab_is_not_held_by_it") {
        return;
    }
    let lab = Lab::reserve();
    // A pipe of the caller's that is open in `lab up`: it ends with `lab up`, not with the lab.
    let (reader, writer) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    succeed(lab.helper().args(["up"]));
    drop(writer);
    assert_eq!(std::io::read_to_string(reader).unwrap(), "");
}
