//! Drops by subsystems that have reasons of their own: their names come from the BTF of the kernel and its modules.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use sockpath_kernel::btf::Btf;
use sockpath_tests::lab::Lab;
use sockpath_tests::openvswitch::{self, Action, Datapath};
use sockpath_tests::state::eventually;
use sockpath_tests::trace::{Trace, Traced};
use sockpath_tests::{program_or_skip, root_or_skip, skipped};

use super::{Devices, harmless};

/// Ports of the datapath.
const CURL: u32 = 1;
const HTTPBIN: u32 = 2;
/// How long a test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long traces last that end by themselves: one that is interrupted has 1.5 s to end, which is little for reading names in a virtual machine.
const LOADING: &str = "20s";
const CONNECTING: &str = "10s";
const SENDING: &str = "5s";
/// How long one lasts that is interrupted.
const LONG: &str = "30s";

/// The pods' devices leave the bridge and become ports of a datapath, which forwards between them.
fn switch(lab: &Lab, devices: &Devices) -> Datapath {
    for device in [&devices.curl, &devices.httpbin] {
        lab.run("node-1", ["ip", "link", "set", "dev", device, "nomaster"]);
    }
    let build = || {
        let mut datapath = Datapath::new("ovs-planted")?;
        datapath.add_port(CURL, &devices.curl)?;
        datapath.add_port(HTTPBIN, &devices.httpbin)?;
        for (from, to) in [(CURL, HTTPBIN), (HTTPBIN, CURL)] {
            datapath.set_flow(from, true, Action::Output(to))?;
            datapath.set_flow(from, false, Action::Output(to))?;
        }
        std::io::Result::Ok(datapath)
    };
    lab.inside("node-1", build).expect("the kernel makes a datapath with two ports")
}

fn connect(lab: &Lab) -> std::io::Result<TcpStream> {
    let httpbin: SocketAddr = "10.42.1.3:8080".parse().expect("an address");
    lab.inside("curl", || TcpStream::connect_timeout(&httpbin, Duration::from_secs(3)))
}

fn finish(running: Trace) -> Traced {
    running.interrupt();
    running.finish()
}

/// The first finding is a drop with this reason.
fn is_named(traced: &Traced, reason: &str, place: &str) {
    let first = traced.list("findings").first().unwrap_or_else(|| panic!("no finding: {}", traced.dump()));
    let text = first["text"].as_str().unwrap_or_default();
    assert!(first["id"] == "dropped" && text.contains(reason) && text.contains(place), "{text}: {}", traced.dump());
    assert!(first["next"].is_string(), "{reason} has no advice: {}", traced.dump());
    assert!(traced.list("drops").iter().any(|d| d["reason"] == reason), "{}", traced.dump());
}

#[test]
fn a_flow_of_open_vswitch_that_drops_is_named() {
    const TEST: &str = "a_flow_of_open_vswitch_that_drops_is_named";
    if !root_or_skip(TEST) || !program_or_skip(TEST, "ip", "iproute2") {
        return;
    }
    if let Err(why) = openvswitch::is_testable() {
        skipped(TEST, why);
        return;
    }
    let lab = Lab::up();
    let devices = Devices::of(&lab);
    let start = |duration: &str| Trace::start(&lab, &["curl", "httpbin:8080", "--no-probe", "--duration", duration]);

    // The module may be loaded after the trace began.
    let running = start(LOADING);
    openvswitch::load();
    let mut datapath = switch(&lab, &devices);
    datapath.set_flow(CURL, false, Action::Drop).expect("the kernel knows the action drop");
    assert!(connect(&lab).is_err(), "a connection passes the flow that drops");
    is_named(&running.finish(), "OVS_DROP_EXPLICIT", "on node-1");

    datapath.delete_flow(CURL, false).expect("a flow can be deleted");
    let running = start(CONNECTING);
    assert!(connect(&lab).is_err(), "a connection passes without a flow");
    is_named(&running.finish(), "NOT_SPECIFIED", "no flow of Open vSwitch matched");

    datapath.set_flow(CURL, false, Action::Output(HTTPBIN)).expect("a flow can be added");
    let running = start(LONG);
    connect(&lab).expect("the datapath forwards");
    let traced = finish(running);
    assert_eq!(harmless(&traced), Ok(()), "{}", traced.dump());
}

#[test]
fn a_queue_that_is_too_long_is_named_as_the_kernel_does() {
    const TEST: &str = "a_queue_that_is_too_long_is_named_as_the_kernel_does";
    if !root_or_skip(TEST) || !program_or_skip(TEST, "tc", "iproute2") {
        return;
    }
    let text = std::fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
    // Where queueing disciplines are a subsystem, they have reasons of their own: 7.2 has them, 6.18 has not.
    let is_subsystem = Btf::parse(&text).is_some_and(|btf| btf.enums().any(|e| e.name == "qdisc_drop_reason"));
    let reason = if is_subsystem { "QDISC_DROP_GENERIC" } else { "QDISC_DROP" };

    let lab = Lab::up();
    let devices = Devices::of(&lab);
    let set_limit = |limit: &str| {
        lab.run("node-1", ["tc", "qdisc", "replace", "dev", &devices.httpbin, "root", "pfifo", "limit", limit]);
    };
    let start = |duration: &str| Trace::start(&lab, &["curl", "httpbin:8080", "--protocol", "udp", "--no-probe", "--duration", duration]);
    let socket = lab.inside("curl", || UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    socket.connect("10.42.1.3:8080").expect("an address");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time");

    set_limit("1000");
    let running = start(LONG);
    socket.send(b"planted").expect("a datagram can be sent");
    socket.recv(&mut [0; 64]).expect("httpbin echoes datagrams");
    let traced = finish(running);
    assert_eq!(harmless(&traced), Ok(()), "{}", traced.dump());

    set_limit("0");
    let running = start(SENDING);
    socket.send(b"planted").expect("a datagram can be sent");
    eventually("the queue drops", PATIENCE, || {
        !lab.run("node-1", ["tc", "-s", "qdisc", "show", "dev", &devices.httpbin]).contains("(dropped 0,")
    });
    is_named(&running.finish(), reason, "on node-1");
}
