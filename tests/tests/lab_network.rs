//! The lab's network: every path between its pods, what the Services translate, and commands inside pods.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::{Read, Write};
use std::process::Stdio;

use sockpath_protocol::lab::Overlay;
use sockpath_tests::lab::{Lab, output};
use sockpath_tests::{program_or_skip, root_or_skip};

/// What `curl` prints in that place for each address; every request is a new connection.
fn fetch(lab: &Lab, from: &str, to: &str) -> String {
    lab.run(from, ["curl", "-sS", "--max-time", "10", to])
}

fn every_path(lab: &Lab) {
    for (from, to, served_by, seen_as) in [
        // In the pod, over lo.
        ("curl", "127.0.0.1:8081", "default/curl, container sidecar", "for 127.0.0.1:"),
        ("curl", "[::1]:8081", "default/curl, container sidecar", "for [::1]:"),
        ("curl", "10.42.1.2:8081", "default/curl, container sidecar", "for 10.42.1.2:"),
        // On the node: veth, bridge, veth.
        ("curl", "10.42.1.3:8080", "default/httpbin,", "for 10.42.1.2:"),
        ("curl", "[fd00:10:42:1::3]:8080", "default/httpbin,", "for [fd00:10:42:1::2]:"),
        // To the other node, and back.
        ("curl", "10.42.2.2:8080", "default/httpbin-remote,", "for 10.42.1.2:"),
        ("curl", "[fd00:10:42:2::2]:8080", "default/httpbin-remote,", "for [fd00:10:42:1::2]:"),
        ("httpbin-remote", "10.42.1.2:8081", "default/curl, container sidecar", "for 10.42.2.2:"),
        // Through the Services: the pod's own address arrives.
        ("curl", "10.96.0.10", "default/httpbin,", "for 10.42.1.2:"),
        ("curl", "[fd00:10:96::a]", "default/httpbin,", "for [fd00:10:42:1::2]:"),
        ("curl", "10.96.0.11", "default/httpbin-remote,", "for 10.42.1.2:"),
        ("curl", "[fd00:10:96::b]", "default/httpbin-remote,", "for [fd00:10:42:1::2]:"),
        ("httpbin-remote", "10.96.0.10", "default/httpbin,", "for 10.42.2.2:"),
        // Hairpin: a pod that reaches itself through its Service is masqueraded as its node's bridge.
        ("httpbin", "10.96.0.10", "default/httpbin,", "for 10.42.1.1:"),
        ("httpbin", "[fd00:10:96::a]", "default/httpbin,", "for [fd00:10:42:1::1]:"),
        ("httpbin-remote", "10.96.0.11", "default/httpbin-remote,", "for 10.42.2.1:"),
        // From a node: outside the cluster's pod subnets, so masqueraded.
        ("node-1", "10.96.0.10", "default/httpbin,", "for 10.42.1.1:"),
        ("node-1", "10.42.2.2:8080", "default/httpbin-remote,", "for "),
        ("node-2", "10.96.0.10", "default/httpbin,", "for "),
        ("node-2", "[fd00:10:96::b]", "default/httpbin-remote,", "for "),
    ] {
        let answer = fetch(lab, from, to);
        assert!(answer.contains(served_by) && answer.contains(seen_as), "{from} to {to}: {answer}");
    }
}

#[test]
fn every_path_is_open_with_host_routes() {
    if !root_or_skip("every_path_is_open_with_host_routes") || !program_or_skip("every_path_is_open_with_host_routes", "curl", "curl") {
        return;
    }
    every_path(&Lab::up());
}

#[test]
fn every_path_is_open_with_vxlan() {
    if !root_or_skip("every_path_is_open_with_vxlan") || !program_or_skip("every_path_is_open_with_vxlan", "curl", "curl") {
        return;
    }
    let lab = Lab::up_with(Overlay::Vxlan);
    every_path(&lab);
    // The pods' packets really are in the tunnel, and large ones fit it.
    let counter =
        |name: &str| lab.run("node-1", ["cat", &format!("/sys/class/net/flannel.1/statistics/{name}")]).trim().parse::<u64>().unwrap();
    let before = counter("rx_bytes");
    assert_eq!(fetch(&lab, "curl", "10.96.0.11/bytes/3000000").len(), 3_000_000);
    assert!(counter("rx_bytes") - before > 3_000_000);
    for (place, device) in [("node-1", "flannel.1"), ("node-1", "cni0"), ("curl", "eth0"), ("httpbin-remote", "eth0")] {
        assert_eq!(lab.run(place, ["cat", &format!("/sys/class/net/{device}/mtu")]).trim(), "1450", "{place} {device}");
    }
    assert_eq!(lab.run("node-1", ["cat", "/sys/class/net/eth0/mtu"]).trim(), "1500");
}

#[test]
fn connection_tracking_shows_the_translation() {
    const NAME: &str = "connection_tracking_shows_the_translation";
    if !root_or_skip(NAME) || !program_or_skip(NAME, "conntrack", "conntrack") || !program_or_skip(NAME, "curl", "curl") {
        return;
    }
    let lab = Lab::up();
    fetch(&lab, "curl", "10.96.0.10");
    fetch(&lab, "httpbin", "10.96.0.10");
    fetch(&lab, "curl", "[fd00:10:96::b]");
    let table = |family: &str| lab.run("node-1", ["conntrack", "-L", "-p", "tcp", "-f", family]);
    let (v4, v6) = (table("ipv4"), table("ipv6"));
    let has = |table: &str, words: &[&str]| table.lines().any(|l| words.iter().all(|w| l.contains(w)));
    assert!(has(&v4, &["src=10.42.1.2 dst=10.96.0.10", "dport=80", "src=10.42.1.3 dst=10.42.1.2 sport=8080"]), "{v4}");
    assert!(has(&v4, &["src=10.42.1.3 dst=10.96.0.10", "src=10.42.1.3 dst=10.42.1.1 sport=8080"]), "hairpin: {v4}");
    let (there, back) = ("src=fd00:10:42:1::2 dst=fd00:10:96::b", "src=fd00:10:42:2::2 dst=fd00:10:42:1::2 sport=8080");
    assert!(has(&v6, &[there, back]), "{v6}");
}

#[test]
fn a_service_without_pods_refuses() {
    if !root_or_skip("a_service_without_pods_refuses") || !program_or_skip("a_service_without_pods_refuses", "curl", "curl") {
        return;
    }
    let lab = Lab::up();
    for to in ["10.96.0.12", "[fd00:10:96::c]"] {
        // 7: could not connect, at once; a timeout would be 28.
        let out = output(&mut lab.exec("curl", ["curl", "-sS", "--max-time", "5", to]));
        assert_eq!(out.status.code(), Some(7), "{to}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn nodes_are_shaped_as_kubelet_leaves_them() {
    if !root_or_skip("nodes_are_shaped_as_kubelet_leaves_them") {
        return;
    }
    let lab = Lab::up();
    for (path, value) in [
        ("/proc/sys/net/bridge/bridge-nf-call-iptables", "1"),
        ("/proc/sys/net/bridge/bridge-nf-call-ip6tables", "1"),
        ("/proc/sys/net/ipv4/ip_forward", "1"),
        ("/proc/sys/net/ipv6/conf/all/forwarding", "1"),
        ("/proc/sys/net/ipv4/conf/eth0/rp_filter", "0"),
        ("/proc/sys/net/ipv4/conf/all/rp_filter", "0"),
    ] {
        assert_eq!(lab.run("node-1", ["cat", path]).trim(), value, "{path}");
    }
    let ports = lab.run("node-1", ["ls", "/sys/class/net/cni0/brif"]);
    assert_eq!(ports.lines().count(), 2, "one port per pod: {ports}");
    for port in ports.lines() {
        assert_eq!(lab.run("node-1", ["cat", &format!("/sys/class/net/cni0/brif/{port}/hairpin_mode")]).trim(), "1");
    }
    // Nothing leads out: the machine's own namespace has no part in it.
    let rules = lab.run("node-1", ["iptables-save", "-t", "nat"]);
    for wanted in ["-j KUBE-SERVICES", "KUBE-SVC-", "KUBE-SEP-", "--to-destination 10.42.1.3:8080", "-j KUBE-MARK-MASQ", "-j MASQUERADE"] {
        assert!(rules.contains(wanted), "{wanted} is missing in {rules}");
    }
    assert!(lab.run("node-2", ["ip6tables-save", "-t", "nat"]).contains("--to-destination [fd00:10:42:1::3]:8080"));
    assert!(lab.run("node-1", ["iptables-save", "-t", "filter"]).contains("-A KUBE-FORWARD"));
}

#[test]
fn exec_passes_exit_codes_on() {
    if !root_or_skip("exec_passes_exit_codes_on") {
        return;
    }
    let lab = Lab::up();
    let code = |target: &str, command: &[&str]| output(&mut lab.exec(target, command)).status.code();
    assert_eq!(code("curl", &["true"]), Some(0));
    assert_eq!(code("curl", &["sh", "-c", "exit 42"]), Some(42));
    assert_eq!(code("node-2", &["sh", "-c", "exit 3"]), Some(3));
    assert_eq!(code("curl", &["/no/such/program"]), Some(127));
    assert_eq!(code("curl", &["no-such-program-in-path"]), Some(127));
    assert_eq!(code("curl", &["/etc/passwd"]), Some(126));
    for name in ["pod/curl", "default/curl", "pod/default/curl", "node/node-1"] {
        assert_eq!(code(name, &["true"]), Some(0), "{name}");
    }
    let unknown = output(&mut lab.exec("nope", ["true"]));
    assert_eq!(unknown.status.code(), Some(1));
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(said.starts_with("error: ") && said.contains("httpbin-remote"), "{said}");
    let container = output(lab.helper().args(["exec", "curl", "-c", "nope", "--", "true"]));
    assert_eq!(container.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&container.stderr).contains("sidecar"));
    assert_eq!(output(lab.helper().args(["exec", "curl"])).status.code(), Some(2));

    assert!(lab.down().status.success());
    let down = output(&mut lab.exec("curl", ["true"]));
    assert_eq!(down.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&down.stderr).contains("lab up"));
}

#[test]
fn exec_is_in_namespace_and_cgroup_and_passes_input_and_signals_on() {
    if !root_or_skip("exec_is_in_namespace_and_cgroup_and_passes_input_and_signals_on") {
        return;
    }
    let lab = Lab::up();
    let pod = lab.pod("curl");
    let cgroups = lab.run("curl", ["cat", "/proc/self/cgroup"]);
    let own = cgroups.lines().find_map(|l| l.strip_prefix("0::")).unwrap();
    assert!(pod.cgroup.ends_with(own.rsplit_once('/').unwrap().0) && own.ends_with(&pod.containers[0].id), "{own}");
    let sidecar = output(lab.helper().args(["exec", "curl", "--container", "sidecar", "--", "cat", "/proc/self/cgroup"]));
    assert!(String::from_utf8_lossy(&sidecar.stdout).contains(&pod.containers[1].id));

    let inode = |file: String| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(file).unwrap());
    assert_eq!(lab.run("curl", ["readlink", "/proc/self/ns/net"]).trim(), format!("net:[{}]", inode(pod.netns.clone())));
    // The server's, too.
    assert_eq!(inode(format!("/proc/{}/ns/net", pod.containers[1].pid)), inode(pod.netns));

    // /sys shows the pod's devices, and still the cgroups.
    assert_eq!(lab.run("curl", ["ls", "/sys/class/net"]).split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);
    assert!(std::path::Path::new("/sys/class/net/lo").exists());
    assert_eq!(
        lab.run("curl", ["ls", "/sys/fs/cgroup"]),
        String::from_utf8(output(std::process::Command::new("ls").arg("/sys/fs/cgroup")).stdout).unwrap()
    );

    let mut cat = lab.exec("curl", ["cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    cat.stdin.take().unwrap().write_all(b"through").unwrap();
    let mut said = String::new();
    cat.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "through");
    assert!(cat.wait().unwrap().success());
    // The command is the helper's own process, with default signal handling: a closed pipe ends it quietly.
    let mut yes = lab.exec("curl", ["yes"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(yes.stdout.take());
    let status = yes.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGPIPE));
}

#[test]
fn the_plugin_forwards() {
    if !root_or_skip("the_plugin_forwards") {
        return;
    }
    let lab = Lab::reserve();
    let run = |args: &[&str]| output(lab.plugin().args(args));
    assert!(run(&["lab", "up"]).status.success());
    let status = run(&["lab", "status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("httpbin-remote"));
    assert_eq!(run(&["lab", "exec", "curl", "--", "sh", "-c", "exit 9"]).status.code(), Some(9));
    assert_eq!(run(&["lab", "exec", "curl", "--", "/no/such/program"]).status.code(), Some(127));
    assert!(run(&["lab", "down"]).status.success());
    assert_eq!(run(&["lab", "status"]).status.code(), Some(1));
}
