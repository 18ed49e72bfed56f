//! Devices with MTU 9000, and paths whose MTU is smaller than the pods'.

use std::net::SocketAddr;

use sockpath_protocol::accel::{Pair, Reason};
use sockpath_protocol::lab::Overlay;
use sockpath_tests::torture::accelerator::Accelerator;
use sockpath_tests::torture::agent::Op;
use sockpath_tests::torture::pods::Remote;

use crate::echo::known;
use crate::fixture::{Family, Fixture, PODS, await_refused};
use crate::paths::carry;

const BYTES: usize = 8 << 20;
const NODES: [(&str, &[&str]); 2] = [("node-1", &["curl", "httpbin"]), ("node-2", &["httpbin-remote"])];

fn set_mtu(fixture: &Fixture, entity: &str, device: &str, mtu: u32) {
    fixture.lab.run(entity, ["ip", "link", "set", device, "mtu", &mtu.to_string()]);
}

/// 9000 for the pods, their devices and bridges, and the link between the nodes.
fn make_jumbo(fixture: &Fixture) {
    for pod in PODS {
        set_mtu(fixture, pod, "eth0", 9000);
    }
    for (node, pods) in NODES {
        for pod in pods {
            set_mtu(fixture, node, &fixture.lab.host_veth(pod, node), 9000);
        }
        set_mtu(fixture, node, "cni0", 9000);
        set_mtu(fixture, node, "eth0", 9000);
    }
}

/// Largest segment that it sends, in bytes.
fn segment(socket: &Remote) -> i64 {
    socket.number(Op::Get { level: libc::IPPROTO_TCP, name: libc::TCP_MAXSEG })
}

/// Every byte of bulk data in both directions arrives, and most by the short path; how many packets of each connection did not fit.
fn carry_all(fixture: &Fixture, on: &mut Accelerator, connections: &[(Remote, Remote)]) -> Vec<u64> {
    let before: Vec<Vec<Pair>> = connections.iter().map(|(client, server)| fixture.await_short(on, client, server)).collect();
    connections.iter().for_each(|(client, server)| carry(client, server, BYTES));
    let pairs = known(&fixture.lab);
    let after = connections.iter().zip(&before).map(|((client, _), before)| {
        let after: Vec<&Pair> = pairs.iter().filter(|p| p.client == before[0].client).collect();
        assert_eq!(after.len(), before.len(), "{client:?}: {after:#?}");
        for (before, after) in before.iter().zip(&after) {
            let moved = after.bypassed_bytes - before.bypassed_bytes;
            assert!(moved as usize > 2 * BYTES * 9 / 10, "most bytes took the stack: {after:#?}");
        }
        after.iter().filter_map(|p| p.passes.get(&Reason::PacketTooLarge)).sum()
    });
    after.collect()
}

fn are_all(connections: &[(Remote, Remote)], fine: impl Fn(i64) -> bool) -> bool {
    connections.iter().flat_map(|(client, server)| [client, server]).all(|socket| fine(segment(socket)))
}

fn connect_far(fixture: &Fixture, port: u16, family: Family) -> (Remote, Remote) {
    fixture.connect_to(&fixture.remote, port, SocketAddr::new(fixture.ip("httpbin-remote", family), port))
}

#[test]
fn jumbo_frames_and_smaller_mtus() {
    let Some(fixture) = Fixture::new("jumbo_frames_and_smaller_mtus") else { return };
    make_jumbo(&fixture);
    let mut on = fixture.accelerate();
    let all = [fixture.connect(6000), connect_far(&fixture, 6001, Family::V4), connect_far(&fixture, 6002, Family::V6)];
    assert_eq!(carry_all(&fixture, &mut on, &all), [0; 3], "packets did not fit");
    assert!(are_all(&all, |size| size > 8000), "segments are small: the test shows nothing");
    // The link between the nodes gets smaller than the pods' segments: the stack reports that to the pods, and smaller ones are carried.
    for (node, _) in NODES {
        set_mtu(&fixture, node, "eth0", 1500);
    }
    let far = &all[1..];
    assert!(carry_all(&fixture, &mut on, far).iter().all(|n| *n > 0), "no packet was too large: the test shows nothing");
    assert!(are_all(far, |size| size < 1500));
    // A pod with 9000 and one with 1500.
    set_mtu(&fixture, "httpbin", "eth0", 1500);
    set_mtu(&fixture, "node-1", &fixture.lab.host_veth("httpbin", "node-1"), 1500);
    let (client, server) = fixture.connect(6003);
    await_refused(&mut on, &client, &server, Reason::MtuDiffers);
    carry(&client, &server, BYTES);
    on.finish().expect("end");
}

/// The tunnel's MTU is smaller than the pods', as where a pod's plugin does not know of the tunnel.
#[test]
fn jumbo_frames_through_vxlan() {
    let Some(fixture) = Fixture::with("jumbo_frames_through_vxlan", Overlay::Vxlan) else { return };
    make_jumbo(&fixture);
    for (node, _) in NODES {
        set_mtu(&fixture, node, "flannel.1", 8950);
    }
    let mut on = fixture.accelerate();
    let all = [connect_far(&fixture, 6000, Family::V4), connect_far(&fixture, 6001, Family::V6)];
    assert!(are_all(&all, |size| size > 8910), "segments fit into the tunnel: the test shows nothing");
    assert!(carry_all(&fixture, &mut on, &all).iter().all(|n| *n > 0), "no packet was too large: the test shows nothing");
    assert!(are_all(&all, |size| (8000..8910).contains(&size)));
    on.finish().expect("end");
}
