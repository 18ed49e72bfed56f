//! What must not be redirected.

use std::net::SocketAddr;

use sockpath_protocol::accel::{PairState, Reason};
use sockpath_tests::planted::Planted;

use crate::fixture::{Family, Fixture, await_refused, await_short, exchange, rows};

/// A pod that sends with another's address and ports gets nothing redirected: the flow is the device's, too.
#[test]
fn a_spoofed_address_is_not_redirected() {
    let Some(fixture) = Fixture::new("a_spoofed_address_is_not_redirected") else { return };
    let mut on = fixture.accelerate();
    let to = SocketAddr::new(fixture.ip("httpbin-remote", Family::V4), 6000);
    let (client, server) = fixture.connect_to(&fixture.remote, 6000, to);
    await_short(&mut on, &client, &server);
    let count = |on: &mut _| rows(on, &client).iter().map(|p| p.bypassed_messages).sum::<u64>();
    let before = count(&mut on);
    let from = client.local();
    let ips = [from.ip().to_canonical(), to.ip()].map(|ip| match ip {
        std::net::IpAddr::V4(ip) => ip.octets(),
        std::net::IpAddr::V6(_) => panic!("an IPv4 address"),
    });
    let spoof = |pod: &str| fixture.lab.inside(pod, || send_segment(ips, [from.port(), to.port()]));
    for _ in 0..20 {
        spoof("httpbin");
    }
    assert_eq!(count(&mut on), before, "a spoofed packet was redirected");
    // The same packet from the pod whose address it is would have been.
    for _ in 0..20 {
        spoof("curl");
    }
    assert!(count(&mut on) > before, "these packets are never redirected: the test shows nothing");
    exchange(&client, &server, 5);
    on.finish().expect("end");
}

/// Sends an acknowledgement of something long ago, which TCP ignores.
fn send_segment(ips: [[u8; 4]; 2], ports: [u16; 2]) {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
    packet.extend(ips.concat());
    packet.extend(ports.map(u16::to_be_bytes).concat());
    packet.extend([0; 8]);
    packet.extend([0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    // SAFETY: makes a socket; the descriptor is checked and closed below.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW) };
    assert!(socket >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: an all-zero sockaddr_in is a valid one.
    let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    to.sin_family = u16::try_from(libc::AF_INET).expect("a small number");
    to.sin_addr.s_addr = u32::from_ne_bytes(ips[1]);
    let length = u32::try_from(size_of::<libc::sockaddr_in>()).expect("a small number");
    // SAFETY: packet and address live until the call returns, with the lengths that are given.
    let sent = unsafe { libc::sendto(socket, packet.as_ptr().cast(), packet.len(), 0, (&raw const to).cast(), length) };
    assert_eq!(sent, 40, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is this function's own.
    unsafe { libc::close(socket) };
}

#[test]
fn another_program_at_the_device_is_left_alone() {
    const SCHED_CLS: u32 = 3;
    let Some(fixture) = Fixture::new("another_program_at_the_device_is_left_alone") else { return };
    let device = fixture.lab.host_veth("httpbin", "node-1");
    if fixture.links_at("httpbin").is_none() {
        sockpath_tests::skipped("another_program_at_the_device_is_left_alone", "this kernel has no tcx links (Linux 6.6)");
        return;
    }
    let foreign = Planted::load(SCHED_CLS, "foreign", -1);
    let attached = fixture.lab.inside("node-1", || foreign.at_tcx_ingress(&device));
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect(6000);
    await_refused(&mut on, &client, &server, Reason::ForeignProgram);
    on.finish().expect("end");
    drop(attached);
    let mut on = fixture.accelerate();
    await_short(&mut on, &client, &server);
    on.finish().expect("end");
}

#[test]
fn a_pod_that_is_not_chosen_is_left_alone() {
    use sockpath_protocol::accel::Via;
    use sockpath_tests::torture::accelerator::{Accelerator, Choice};
    let Some(fixture) = Fixture::new("a_pod_that_is_not_chosen_is_left_alone") else { return };
    let choice = Choice { via: Via::Short, pods: vec!["curl".into()], ..Choice::default() };
    let mut on = Accelerator::start_with(&fixture.lab, &choice).expect("start");
    let (client, server) = fixture.connect(6000);
    await_refused(&mut on, &client, &server, Reason::PeerNotChosen);
    let rows = rows(&mut on, &client);
    assert!(rows.iter().all(|p| p.state == PairState::LeftAlone && p.bypassed_messages == 0), "{rows:#?}");
    on.finish().expect("end");
}
