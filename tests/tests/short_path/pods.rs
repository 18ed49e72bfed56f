//! Pods that are deleted, and pods that bridge their interface.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use libbpf_rs::{MapCore, MapHandle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sockpath_protocol::Request;
use sockpath_protocol::accel::{ChoosePods, PairState, Reason, Via};
use sockpath_protocol::lab::LabPod;
use sockpath_tests::lab::succeed;
use sockpath_tests::state::eventually;
use sockpath_tests::torture::accelerator::{Accelerator, Choice};
use sockpath_tests::torture::agent::{Answer, Op};
use sockpath_tests::torture::pods::{Pod, Remote};
use sockpath_tests::torture::reader::ReaderKind;

use crate::capture::{Capture, Seen};
use crate::fixture::{Family, Fixture, await_refused, exchange, rows};

const PATIENCE: Duration = Duration::from_secs(15);

fn name(fixture: &Fixture, entity: &str) -> String {
    format!("sockpath-{}-{entity}", fixture.lab.instance())
}

fn ip(words: &[&str]) {
    succeed(Command::new("ip").args(words));
}

/// As a node deletes a pod: its processes, its namespace, its control groups.
fn delete(fixture: &Fixture, httpbin: &LabPod) {
    fixture.httpbin.kill();
    for container in &httpbin.containers {
        kill(Pid::from_raw(i32::try_from(container.pid).expect("a process id")), Signal::SIGKILL).expect("kill");
    }
    ip(&["netns", "del", &name(fixture, "httpbin")]);
    let groups = httpbin.containers.iter().map(|c| Path::new(&httpbin.cgroup).join(&c.id)).chain([httpbin.cgroup.clone().into()]);
    groups.for_each(|group| eventually("a control group is empty", PATIENCE, || std::fs::remove_dir(&group).is_ok()));
}

/// Another pod, in the same control groups, with httpbin's address and MAC address, behind a device of the same name that is not a port of the bridge yet.
fn make_another(fixture: &Fixture, old: &LabPod, address: IpAddr, device: &str, mac: &str) {
    for container in &old.containers {
        std::fs::create_dir_all(Path::new(&old.cgroup).join(&container.id)).expect("a control group");
    }
    let (node, pod) = (name(fixture, "node-1"), name(fixture, "httpbin"));
    ip(&["netns", "add", &pod]);
    ip(&["-n", &pod, "link", "set", "lo", "up", "alias", &format!("sockpath-lab-{}", fixture.lab.instance())]);
    ip(&["-n", &node, "link", "add", device, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", &pod]);
    ip(&["-n", &node, "link", "set", device, "up"]);
    ip(&["-n", &pod, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
    ip(&["-n", &pod, "link", "set", "eth0", "up"]);
    ip(&["-n", &pod, "route", "add", "default", "via", "10.42.1.1"]);
}

/// Flows of the maps of the short path that have this port.
fn flows_with(fixture: &Fixture, port: u16) -> usize {
    /// Of the two ports in `struct short_key4`: the tests use IPv4.
    const PORTS: std::ops::Range<usize> = 8..12;
    let of_node = |node: usize| {
        let path = fixture.pins().join(format!("short-flows4-{node}"));
        let map = MapHandle::from_pinned_path(path).expect("the map of flows");
        map.keys().filter(|key| key[PORTS].chunks(2).any(|p| p == port.to_be_bytes())).count()
    };
    (0..2).map(of_node).sum()
}

/// Packets that the client has sent, as a capture shows them.
fn count(capture: &Capture, client: &Remote, outgoing: bool) -> usize {
    let of_client = |seen: &&Seen| seen.outgoing == outgoing && seen.source.port() == client.local().port();
    capture.take().iter().filter(of_client).count()
}

/// A pod goes under traffic, and another one gets its address at once: it gets packets of the old connection by the stack only, and resets it.
#[test]
fn a_deleted_pods_address_is_given_to_another() {
    const BYTES: usize = 128 << 20;
    let Some(fixture) = Fixture::new("a_deleted_pods_address_is_given_to_another") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let device = fixture.lab.host_veth("httpbin", "node-1");
    let mac = fixture.lab.run("httpbin", ["cat", "/sys/class/net/eth0/address"]);
    let (old, address) = (fixture.lab.pod("httpbin"), fixture.ip("httpbin", Family::V4));
    let pods = Choice { via: Via::Short, ..Choice::default() }.request(&fixture.lab).pods;
    let captures = || [Capture::start(&fixture.lab, "httpbin", "eth0"), Capture::start(&fixture.lab, "node-1", &device)];
    // The node's end of the device shows what the stack delivers to the pod, and not what is redirected.
    let [inside, at_node] = captures();
    exchange(&client, &server, 20);
    assert!(count(&inside, &client, false) >= 20 && count(&at_node, &client, true) == 0, "not redirected: the test shows nothing");
    drop((inside, at_node));
    assert!(flows_with(&fixture, client.local().port()) >= 2);
    let before = on.next_pairs().expect("a table").totals.bypassed_bytes;
    let writing = client.start_on(1, Op::SendContent { id: 1, from: 0, len: BYTES });
    let _reading = server.start_on(1, Op::ReadContent { id: 1, from: 0, to: BYTES as u64, kind: ReaderKind::Poll, pause_us: 2_000 });
    on.await_pairs(PATIENCE, |t| t.totals.bypassed_bytes >= before + (4 << 20)).expect("nothing is redirected");

    fixture.lab.run("node-1", ["ip", "link", "del", &device]);
    delete(&fixture, &old);
    make_another(&fixture, &old, address, &device, mac.trim());
    let another = Pod::new(&fixture.lab, "httpbin");
    let _listener = another.listen(6000, &[]);
    let [inside, at_node] = captures();
    fixture.lab.run("node-1", ["ip", "link", "set", &device, "master", "cni0"]);
    let ended = writing.wait_for(Duration::from_secs(60));
    assert!(matches!(ended, Answer::Errno(libc::ECONNRESET | libc::EPIPE)), "{ended:?}");
    let arrived = count(&inside, &client, false);
    assert!(arrived > 0, "the other pod got nothing: the test shows nothing");
    assert_eq!(count(&at_node, &client, true), arrived, "packets of the old connection were redirected to the other pod");
    eventually("the flows of the old connection are gone", PATIENCE, || flows_with(&fixture, client.local().port()) == 0);
    let rows = rows(&mut on, &client);
    assert!(rows.iter().all(|p| p.state != PairState::Accelerated), "{rows:#?}");

    on.0.say(&Request::Choose(ChoosePods { pods, elsewhere: Vec::new() })).expect("say");
    let (client, server) = fixture.connect_to(&another, 6001, SocketAddr::new(address, 6001));
    fixture.await_short(&mut on, &client, &server);
    on.finish().expect("end");
}

/// A helper does not keep the namespace of a deleted pod, and with it its devices and addresses.
#[test]
fn a_deleted_pods_namespace_is_released() {
    for via in [Via::Short, Via::Auto] {
        let Some(fixture) = Fixture::new("a_deleted_pods_namespace_is_released") else { return };
        let mut on = Accelerator::start_with(&fixture.lab, &Choice { via, ..Choice::default() }).expect("start");
        let (client, _server) = fixture.connect_short(&mut on, 6000);
        let device = fixture.lab.host_veth("httpbin", "node-1");
        let is_there = || fixture.lab.inside("node-1", || nix::net::if_::if_nametoindex(device.as_str()).is_ok());
        assert!(is_there());
        delete(&fixture, &fixture.lab.pod("httpbin"));
        eventually("the device of the deleted pod is gone", PATIENCE, || !is_there());
        let ended = client.call(Op::Read { kind: ReaderKind::Poll, len: 1 });
        assert!(matches!(ended, Answer::Bytes(ref end) if end.is_empty()) || ended == Answer::Errno(libc::ECONNRESET), "{ended:?}");
        eventually("its flows are gone", PATIENCE, || flows_with(&fixture, client.local().port()) == 0);
        on.finish().expect("end");
    }
}

/// What comes in at a port of a bridge inside of the pod is for the bridge.
#[test]
fn a_pod_that_bridges_its_interface_is_refused() {
    let Some(fixture) = Fixture::new("a_pod_that_bridges_its_interface_is_refused") else { return };
    let (client, server) = fixture.connect(6000);
    let mut on = fixture.accelerate();
    fixture.await_short(&mut on, &client, &server);
    on.finish().expect("end");
    let pod = name(&fixture, "httpbin");
    let address = format!("{}/24", fixture.ip("httpbin", Family::V4));
    ip(&["-n", &pod, "link", "add", "br0", "type", "bridge"]);
    ip(&["-n", &pod, "link", "set", "eth0", "master", "br0"]);
    ip(&["-n", &pod, "address", "del", &address, "dev", "eth0"]);
    ip(&["-n", &pod, "address", "add", &address, "dev", "br0"]);
    ip(&["-n", &pod, "link", "set", "br0", "up"]);
    ip(&["-n", &pod, "route", "add", "default", "via", "10.42.1.1"]);
    let mut on = fixture.accelerate();
    await_refused(&mut on, &client, &server, Reason::PodBridge);
    exchange(&client, &server, 20);
    assert!(rows(&mut on, &client).iter().all(|p| p.bypassed_messages == 0));
    on.finish().expect("end");
}
