//! Web servers, proxies and gRPC.

use sockpath_protocol::accel::Via;
use sockpath_tests::lab::Lab;
use sockpath_tests::services::{BODIES, LARGE, Program};
use sockpath_tests::torture::accelerator::Accelerator;
use sockpath_tests::torture::content::{Content, Direction};

use super::stage::{LOADS, Stage, over, stage};

/// Whether this kernel's FIONREAD counts TCP bytes of a socket in a sockmap.
fn fionread_counts(lab: &Lab) -> bool {
    let mut counts = false;
    let on = Accelerator::start_watching(lab, |test| counts |= test.name == "fionread-tcp" && test.passed);
    on.expect("acceleration does not start").finish().expect("acceleration does not end");
    counts
}

/// Requests by wrk(1): small and large answers on kept connections, and a connection for each request.
fn many_requests(stage: &Stage) {
    let port = stage.server.program.port();
    for url in [format!("http://{}:{port}/small", stage.service), format!("http://{}:{port}/large", stage.pod)] {
        let text = stage.client(&format!("wrk -t 1 -c 16 -d 3 --timeout 30s {url}"));
        assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
    }
    let text = stage.client(&format!("wrk -t 1 -c 8 -d 2 --timeout 30s -H Connection:close http://{}:{port}/small", stage.service));
    // With a connection for each request wrk may count an end as an error of reading.
    let refused = text.split_once("Socket errors: connect ").map_or("0", |(_, rest)| rest.split(',').next().unwrap_or_default());
    assert!(refused == "0" && !text.contains("Non-2xx"), "{text}");
}

/// Every byte of files, several on one connection: a server may send them by sendfile(2), a proxy may splice them.
fn whole_files(stage: &Stage) {
    let port = stage.server.program.port();
    let large = Content::new(1, 1, Direction::ToClient);
    for _ in 0..3 {
        let url = format!("http://{}:{port}/large", stage.service);
        let files = stage.downloaded(&[url.as_str(); 3]);
        assert_eq!(files.len(), 3 * LARGE);
        for file in files.chunks(LARGE) {
            large.check(0, file).expect("a file arrived altered");
        }
    }
    for size in BODIES {
        let (small, body) = (format!("http://{}:{port}/small", stage.service), format!("http://{}:{port}/body-{size}", stage.service));
        let got = stage.downloaded(&[&small, &body, &small]);
        assert_eq!(got.len() as u64, size + 2 * (1 << 10));
        let body = &got[1 << 10..got.len() - (1 << 10)];
        Content::new(size, 2, Direction::ToClient).check(0, body).expect("a body arrived altered");
    }
}

fn requests_and_files(stage: &Stage) {
    many_requests(stage);
    whole_files(stage);
}

#[test]
fn nginx() {
    let Some(stage) = stage("nginx", Program::Nginx) else { return };
    // Where FIONREAD cannot be trusted the socket path leaves it alone.
    let counts = fionread_counts(&stage.lab);
    let ((), carried) = stage.under_acceleration(Via::Socket, if counts { LOADS } else { 1 }, || requests_and_files(&stage));
    assert_eq!(carried > 0, counts, "{carried} messages were redirected");
    stage.toggled(Via::Short, || requests_and_files(&stage));
}

/// Its event MPM; files by sendfile(2).
#[test]
fn apache() {
    over(&[Via::Short], "apache", Program::Apache, requests_and_files);
}

/// It splices bodies between its two connections.
#[test]
fn haproxy_splices() {
    over(&[Via::Short], "haproxy_splices", Program::HaProxy, requests_and_files);
}

/// Messages from 1 B to 1 MB in streams of both directions.
#[test]
fn grpc_streams() {
    over(&[Via::Short], "grpc_streams", Program::Grpc, |stage| {
        let client = stage.server.dir.join("client.py");
        let text = stage.client(&format!("/usr/bin/python3 {} {}:{} 4", client.display(), stage.service, Program::Grpc.port()));
        let messages: u32 = text.trim().parse().expect("a number of messages");
        assert!(messages > 10, "{messages} messages");
    });
}
