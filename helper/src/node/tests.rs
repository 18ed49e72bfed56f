//! Fake cgroup and proc trees in temporary directories, one for each layout in the field.

use std::sync::atomic::{AtomicU32, Ordering};

use sockpath_protocol::pod::Container;

use super::*;
use crate::site::LabName;

const UID: &str = "0f3c1b52-7a3e-4b52-9a2f-1d7a0c8e9b10";
const APP: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const SANDBOX: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

struct Tree(PathBuf);

impl Tree {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = std::env::temp_dir().join(format!("sockpath-node-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(dir.join("cgroup")).unwrap();
        fs::create_dir_all(dir.join("proc")).unwrap();
        Self(dir)
    }

    /// A cgroup directory and all its parents, each with the files its version has.
    fn cgroup(&self, hierarchy: &str, v2: bool, path: &str, pids: &[u32]) -> PathBuf {
        let top = self.0.join("cgroup").join(hierarchy);
        let dir = top.join(path);
        fs::create_dir_all(&dir).unwrap();
        for d in dir.ancestors().take_while(|d| d.starts_with(&top)) {
            for file in ["cgroup.procs", "cgroup.controllers"].iter().take(if v2 { 2 } else { 1 }) {
                if !d.join(file).exists() {
                    fs::write(d.join(file), "").unwrap();
                }
            }
        }
        fs::write(dir.join("cgroup.procs"), pids.iter().map(|p| format!("{p}\n")).collect::<String>()).unwrap();
        dir
    }

    fn process(&self, pid: u32, started: u64) -> u32 {
        let dir = self.0.join("proc").join(pid.to_string());
        fs::create_dir_all(dir.join("ns")).unwrap();
        fs::write(dir.join("stat"), format!("{pid} (a) b) S 1 {}{started} 0", "0 ".repeat(17))).unwrap();
        fs::write(dir.join("ns/net"), "").unwrap();
        u32::try_from(fs::metadata(dir.join("ns/net")).unwrap().ino()).unwrap()
    }

    fn find(&self) -> Result<FoundPod> {
        find_by_uid(&pod(), &Hierarchies::mounted(&self.0.join("cgroup"))?, &self.0.join("proc"))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pod() -> Pod {
    Pod {
        namespace: "prod".into(),
        name: "api".into(),
        uid: UID.into(),
        node: "n1".into(),
        ips: vec![],
        host_network: false,
        containers: vec![Container { name: "app".into(), id: APP.into() }],
        locate: Locate::Uid,
    }
}

#[test]
fn every_known_layout_is_found() {
    let u = UID.replace('-', "_");
    let layouts = [
        ("", true, format!("kubepods/pod{UID}"), APP.to_owned(), "cgroupfs, guaranteed"),
        ("", true, format!("kubepods/burstable/pod{UID}"), APP.to_owned(), "cgroupfs, burstable"),
        ("", true, format!("kubepods/besteffort/pod{UID}"), format!("crio-{APP}"), "cgroupfs, CRI-O"),
        ("", true, format!("kubepods.slice/kubepods-pod{u}.slice"), format!("cri-containerd-{APP}.scope"), "systemd, guaranteed"),
        (
            "",
            true,
            format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{u}.slice"),
            format!("crio-{APP}.scope"),
            "systemd, CRI-O",
        ),
        (
            "",
            true,
            format!("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{u}.slice"),
            format!("cri-containerd-{APP}.scope"),
            "kind, systemd",
        ),
        ("", true, format!("kubelet/kubepods/besteffort/pod{UID}"), APP.to_owned(), "kind, cgroupfs"),
        ("", true, format!("system.slice/kubelet.service/kubepods/burstable/pod{UID}"), APP.to_owned(), "below the kubelet's unit"),
        ("", true, format!("kn-n1/kubepods/burstable/pod{UID}"), APP.to_owned(), "cgroupRoot"),
        ("unified", true, format!("kubepods/burstable/pod{UID}"), APP.to_owned(), "hybrid"),
        ("memory", false, format!("kubepods/burstable/pod{UID}"), APP.to_owned(), "v1"),
    ];
    for (hierarchy, v2, dir, container, what) in layouts {
        let tree = Tree::new();
        let dir = tree.cgroup(hierarchy, v2, &dir, &[]);
        let container_dir = dir.join(&container);
        tree.cgroup(hierarchy, v2, container_dir.strip_prefix(tree.0.join("cgroup").join(hierarchy)).unwrap().to_str().unwrap(), &[41, 40]);
        let inode = tree.process(40, 100);
        tree.process(41, 200);
        let found = tree.find().unwrap_or_else(|e| panic!("{what}: {e:#}"));
        assert_eq!(found.netns.inode, inode, "{what}: the oldest process tells");
        assert_eq!(
            found.processes.iter().map(|p| (p.pid, p.container.as_deref())).collect::<Vec<_>>(),
            [(40, Some("app")), (41, Some("app"))],
            "{what}"
        );
        let expected = if v2 { Placement::Own(Cgroup::open(dir).unwrap()) } else { Placement::Nowhere };
        assert_eq!(found.cgroup, expected, "{what}");
    }
}

#[test]
fn a_directory_of_v2_without_the_processes_is_not_the_pods() {
    let tree = Tree::new();
    let v2 = tree.cgroup("unified", true, &format!("kubepods/pod{UID}"), &[]);
    let root = v2.ancestors().nth(2).unwrap().to_owned();
    tree.cgroup("pids", false, &format!("kubepods/pod{UID}/{APP}"), &[7]);
    let inode = tree.process(7, 1);
    let found = tree.find().unwrap();
    assert_eq!((found.netns.inode, found.cgroup), (inode, Placement::Root(Cgroup::open(root).unwrap())));
}

#[test]
fn the_sandbox_is_asked_before_containers() {
    let tree = Tree::new();
    tree.cgroup("", true, &format!("kubepods/pod{UID}/{APP}"), &[10]);
    tree.cgroup("", true, &format!("kubepods/pod{UID}/{SANDBOX}"), &[20]);
    tree.process(10, 1);
    let sandbox = tree.process(20, 2);
    assert_eq!(tree.find().unwrap().netns.inode, sandbox);
}

#[test]
fn a_monitor_is_not_a_process_of_the_pod() {
    let tree = Tree::new();
    let pod = format!("kubepods.slice/kubepods-pod{}.slice", UID.replace('-', "_"));
    tree.cgroup("", true, &format!("{pod}/crio-conmon-{APP}.scope"), &[5]);
    tree.cgroup("", true, &format!("{pod}/crio-{APP}.scope/container"), &[6]);
    tree.process(5, 1);
    tree.process(6, 2);
    let found = tree.find().unwrap();
    assert_eq!(found.processes.iter().map(|p| p.pid).collect::<Vec<_>>(), [6]);
    assert_eq!(found.processes[0].container.as_deref(), Some("app"));
}

#[test]
fn a_pod_cannot_pass_itself_off_as_another() {
    let tree = Tree::new();
    // A container that may write cgroups imitates the kubelet's tree below its own directory; the real pod is elsewhere.
    tree.cgroup("", true, &format!("kubepods/pod11111111-2222-3333-4444-555555555555/{SANDBOX}/kubepods/pod{UID}/{APP}"), &[66]);
    tree.process(66, 1);
    assert!(format!("{:#}", tree.find().unwrap_err()).contains("has no cgroup on this node"));
    let real = tree.cgroup("", true, &format!("kubepods/burstable/pod{UID}/{APP}"), &[67]);
    tree.process(67, 2);
    assert_eq!(tree.find().unwrap().processes[0].cgroup, real);
}

#[test]
fn two_claims_are_refused() {
    let tree = Tree::new();
    tree.cgroup("", true, &format!("kubepods/pod{UID}/{APP}"), &[1]);
    tree.cgroup("", true, &format!("kubepods/burstable/pod{UID}/{APP}"), &[2]);
    assert!(format!("{:#}", tree.find().unwrap_err()).contains("two cgroups claim"));
}

#[test]
fn what_is_missing_is_named() {
    let tree = Tree::new();
    assert!(format!("{:#}", tree.find().unwrap_err()).contains("no cgroup file system is mounted"));
    tree.cgroup("", true, &format!("kubepods/pod{UID}/{APP}"), &[0, 0]);
    assert!(format!("{:#}", tree.find().unwrap_err()).contains("hostPID"));
    let mut bad = pod();
    bad.uid = "../../etc".into();
    let error = find_by_uid(&bad, &Hierarchies::mounted(&tree.0.join("cgroup")).unwrap(), &tree.0.join("proc")).unwrap_err();
    assert!(format!("{error:#}").contains("not the UID of a pod"));
}

#[test]
fn container_names_of_every_runtime() {
    for name in [
        APP.to_owned(),
        format!("cri-containerd-{APP}.scope"),
        format!("crio-{APP}.scope"),
        format!("crio-{APP}"),
        format!("docker-{APP}.scope"),
    ] {
        assert_eq!(process::container_id(&name), Some(APP), "{name}");
    }
    for name in ["init.scope", "crio-conmon-aaaaaaaaaaaaaaaa.scope", "system.slice", ""] {
        assert_eq!(process::container_id(name), None, "{name}");
    }
}

#[test]
fn paths_are_opened_in_the_lab_only() {
    let lab = Site::Lab(LabName::new("").unwrap());
    let node = Node { name: "n1".into(), ips: vec![], netns: Some("/proc/self/ns/net".into()) };
    node_netns(&lab, &node).unwrap();
    assert!(format!("{:#}", node_netns(&Site::Node, &node).unwrap_err()).contains("only sockpath-lab"));

    let locate = Locate::Path { netns: "/proc/self/ns/net".into(), cgroup: "/nowhere".into() };
    let pod = Pod { locate, ..pod() };
    assert!(format!("{:#}", find(&Site::Node, &pod).unwrap_err()).contains("only sockpath-lab"));
}
