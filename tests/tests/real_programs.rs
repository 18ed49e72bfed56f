//! Programs that people run, between lab pods and through a Service, while acceleration goes on and off in the middle.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sockpath_protocol::accel::Via;
use sockpath_tests::lab::Lab;
use sockpath_tests::polled::Polled;
use sockpath_tests::services::{Program, Service};
use sockpath_tests::torture::accelerator::{Accelerator, Choice};
use sockpath_tests::torture::content::{Content, Direction};
use sockpath_tests::torture::controller::forward_service_ports;
use sockpath_tests::torture::prng::Prng;

/// How long clients of our own go on.
const LOAD: Duration = Duration::from_secs(4);
/// A load is repeated at most so often until acceleration has carried something.
const LOADS: usize = 6;

/// A server in httpbin, clients in curl.
struct Stage {
    // The server first: it has to be gone before the lab is.
    server: Service,
    lab: Lab,
    service: IpAddr,
    pod: IpAddr,
}

fn stage(test: &str, program: Program) -> Option<Stage> {
    if !sockpath_tests::root_or_skip(test) {
        return None;
    }
    if let Some(why) = program.missing() {
        sockpath_tests::skipped(test, &why);
        return None;
    }
    let lab = Lab::up();
    let status = lab.status();
    forward_service_ports(&lab, &status).expect("Service rules");
    let v4 = |ips: &[IpAddr]| ips.iter().copied().find(IpAddr::is_ipv4).expect("no IPv4 address");
    let service = v4(&status.services.iter().find(|s| s.name == "httpbin").expect("no Service httpbin").cluster_ips);
    let pod = v4(&lab.pod("httpbin").ips);
    let server = Service::start(&lab, "httpbin", program).expect("the server does not start");
    Some(Stage { server, lab, service, pod })
}

impl Stage {
    /// Runs `work` while acceleration goes on and off, again until it has carried something, which it has to.
    fn toggled<T>(&self, work: impl Fn() -> T) -> T {
        let (result, messages) = self.under_acceleration(LOADS, work);
        assert!(messages > 0, "nothing was accelerated");
        result
    }

    /// Runs `work` while acceleration goes on and off: until that has carried something, or `most` times. Also tells how many
    /// messages were carried.
    fn under_acceleration<T>(&self, most: usize, work: impl Fn() -> T) -> (T, u64) {
        let over = AtomicBool::new(false);
        let carried = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let toggler = scope.spawn(|| {
                let (mut rng, mut times) = (Prng::new(1, 1), 0);
                while !over.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(rng.between(20, 300)));
                    let on = Accelerator::start(&self.lab).expect("acceleration does not start");
                    std::thread::sleep(Duration::from_millis(rng.between(200, 1_200)));
                    carried.fetch_add(on.finish().expect("acceleration does not end").totals.bypassed_messages, Ordering::AcqRel);
                    times += 1;
                }
                times
            });
            // How soon a pair is eligible depends on when its readers were seen; a load may be over before.
            let until_carried = || {
                let mut result = work();
                for _ in 1..most {
                    if carried.load(Ordering::Acquire) > 0 {
                        break;
                    }
                    result = work();
                }
                result
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(until_carried));
            over.store(true, Ordering::Release);
            let toggled = toggler.join();
            let result = result.unwrap_or_else(|e| std::panic::resume_unwind(e));
            let times = toggled.unwrap_or_else(|e| std::panic::resume_unwind(e));
            let messages = carried.load(Ordering::Acquire);
            eprintln!("acceleration was on {times} times and carried {messages} messages");
            assert!(times > 0, "acceleration was never on");
            (result, messages)
        })
    }

    /// Runs a client in curl; it has to succeed within a generous time.
    fn client(&self, command: &str) -> String {
        let words = ["timeout", "60"].into_iter().chain(command.split_whitespace());
        let out = self.lab.exec("curl", words).output().expect("cannot run a client");
        text_of(command, &out)
    }

    fn connect(&self, to: SocketAddr) -> Polled<TcpStream> {
        let stream = self.lab.inside("curl", || TcpStream::connect(to)).expect("connect");
        stream.set_nonblocking(true).expect("O_NONBLOCK");
        Polled(stream)
    }
}

/// Whether this kernel's FIONREAD counts TCP bytes of a socket in a sockmap.
fn fionread_counts(lab: &Lab) -> bool {
    let mut counts = false;
    let on = Accelerator::start_watching(lab, |canary| counts |= canary.name == "fionread-tcp" && canary.passed);
    on.expect("acceleration does not start").finish().expect("acceleration does not end");
    counts
}

fn text_of(command: &str, out: &Output) -> String {
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{command} failed with {}: {text}{}", out.status, String::from_utf8_lossy(&out.stderr));
    text
}

#[test]
fn redis() {
    let Some(stage) = stage("redis", Program::Redis) else { return };
    stage.toggled(|| {
        for (clients, size, pipeline) in [(1, 64, 1), (50, 1_000, 1), (20, 100_000, 1), (20, 100, 16)] {
            let n = if size > 10_000 || clients == 1 { 4_000 } else { 40_000 };
            // A hundred large values in one answer would be gigabytes.
            let tests = if size > 10_000 { "set,get" } else { "set,get,lpush,lrange_100,mset" };
            let text = stage.client(&format!(
                "redis-benchmark -h {} -p 6379 -t {tests} -c {clients} -d {size} -P {pipeline} -n {n} -e --csv",
                stage.service
            ));
            assert!(!text.to_lowercase().contains("error"), "{text}");
        }
    });
}

/// The default takes a pair of proven programs on to the socket path, and leaves nginx, which asks FIONREAD and sends files, on the short one.
#[test]
fn auto_knows_proven_programs() {
    let choice = Choice { via: Via::Auto, ..Choice::default() };
    for (program, proven) in [(Program::Redis, true), (Program::Nginx, false)] {
        let Some(stage) = stage("auto_knows_proven_programs", program) else { return };
        let on = Accelerator::start_with(&stage.lab, &choice).expect("acceleration does not start");
        match program {
            Program::Redis => {
                stage.client(&format!("redis-benchmark -h {} -p 6379 -t set,get -c 4 -d 64 -n 40000 -e --csv", stage.service));
            }
            _ => {
                let text = stage.client(&format!("wrk -t 1 -c 4 -d 3 http://{}:5080/small", stage.service));
                assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
            }
        }
        let by_path = on.finish().expect("acceleration does not end").totals.by_path;
        assert!(by_path.short.units > 0, "{program:?}: {by_path:?}");
        assert_eq!(by_path.socket.units > 0, proven, "{program:?}: {by_path:?}");
    }
}

#[test]
fn postgresql() {
    let Some(stage) = stage("postgresql", Program::Postgres) else { return };
    stage.toggled(|| {
        for how in ["-S", "-N", "-S -C", "-S -M prepared"] {
            let text = stage.client(&format!("pgbench -h {} -p 5432 -U postgres {how} -n -c 8 -T 3 postgres", stage.service));
            assert!(text.contains("number of failed transactions: 0 "), "{text}");
        }
        let sql = "SELECT count(*) FROM (SELECT generate_series(1,200000) AS n, repeat('x',40)) AS t WHERE n > 0";
        let words = ["timeout", "60", "psql", "-h", &stage.pod.to_string(), "-U", "postgres", "-At", "-c", sql].map(str::to_owned);
        assert_eq!(text_of("psql", &stage.lab.exec("curl", &words).output().expect("psql")).trim(), "200000");
    });
}

#[test]
fn nginx() {
    let Some(stage) = stage("nginx", Program::Nginx) else { return };
    let large = Content::new(1, 1, Direction::ToClient);
    // Where FIONREAD cannot be trusted it is left alone.
    let carried = stage.under_acceleration(if fionread_counts(&stage.lab) { LOADS } else { 1 }, || {
        for url in [format!("http://{}:5080/small", stage.service), format!("http://{}:5080/large", stage.pod)] {
            let text = stage.client(&format!("wrk -t 1 -c 16 -d 3 --timeout 30s {url}"));
            assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
        }
        let text = stage.client(&format!("wrk -t 1 -c 8 -d 2 --timeout 30s -H Connection:close http://{}:5080/small", stage.service));
        // With a connection for each request wrk may count an end as an error of reading.
        let refused = text.split_once("Socket errors: connect ").map_or("0", |(_, rest)| rest.split(',').next().unwrap_or_default());
        assert!(refused == "0" && !text.contains("Non-2xx"), "{text}");
        // Every byte of files sent by sendfile(2), several on one connection.
        for _ in 0..3 {
            let url = format!("http://{}:5080/large", stage.service);
            let words = ["curl", "-sS", "--max-time", "60", &url, &url, &url].map(str::to_owned);
            let out = stage.lab.exec("curl", &words).output().expect("curl");
            assert!(out.status.success(), "curl: {}", String::from_utf8_lossy(&out.stderr));
            assert_eq!(out.stdout.len(), 3 * (8 << 20));
            for file in out.stdout.chunks(8 << 20) {
                large.check(0, file).expect("a file arrived altered");
            }
        }
    });
    assert_eq!(carried.1 > 0, fionread_counts(&stage.lab), "{} messages were redirected", carried.1);
}

#[test]
fn memcached() {
    use std::io::{BufRead, BufReader, Read, Write};
    let Some(stage) = stage("memcached", Program::Memcached) else { return };
    stage.toggled(|| {
        let to = SocketAddr::new(stage.service, Program::Memcached.port());
        std::thread::scope(|scope| {
            for connection in 0..4u64 {
                let stage = &stage;
                scope.spawn(move || {
                    let mut stream = BufReader::new(stage.connect(to));
                    let mut rng = Prng::new(2, connection);
                    let mut line = String::new();
                    let start = Instant::now();
                    for n in (0..).take_while(|_| start.elapsed() < LOAD) {
                        let content = Content::new(connection, n, Direction::ToServer);
                        let value = content.bytes(0, usize::try_from(rng.log_between(1, 200_000)).expect("a small number"));
                        let key = format!("k{connection}-{}", n % 10);
                        let mut set = format!("set {key} 0 0 {}\r\n", value.len()).into_bytes();
                        set.extend(&value);
                        set.extend(b"\r\n");
                        stream.get_mut().write_all(&set).expect("set");
                        line.clear();
                        stream.read_line(&mut line).expect("set");
                        assert_eq!(line, "STORED\r\n");
                        stream.get_mut().write_all(format!("get {key}\r\n").as_bytes()).expect("get");
                        line.clear();
                        stream.read_line(&mut line).expect("get");
                        assert_eq!(line, format!("VALUE {key} 0 {}\r\n", value.len()));
                        let mut got = vec![0; value.len() + 7];
                        stream.read_exact(&mut got).expect("get");
                        content.check(0, &got[..value.len()]).expect("a value came back altered");
                        assert_eq!(&got[value.len()..], b"\r\nEND\r\n");
                    }
                });
            }
        });
    });
}

#[test]
fn ssh() {
    use std::io::Write;
    let Some(stage) = stage("ssh", Program::Sshd) else { return };
    let dir = stage.server.dir.clone();
    let options = format!(
        "-i {} -p 5022 -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o IdentityAgent=none",
        dir.join("user").display()
    );
    stage.toggled(|| {
        let host = format!("root@{}", stage.service);
        // Bulk both ways through one session, then many small round trips through another.
        let data = Content::new(3, 3, Direction::ToServer);
        let command = format!("ssh {options} {host} cat");
        let words = ["timeout", "90"].into_iter().chain(command.split(' '));
        let mut bulk = stage.lab.exec("curl", words);
        let mut child = bulk.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().expect("ssh");
        let mut stdin = child.stdin.take().expect("stdin");
        let writer = std::thread::spawn(move || {
            for n in 0..64u64 {
                stdin.write_all(&data.bytes(n << 19, 1 << 19)).expect("ssh does not read");
            }
        });
        let out = child.wait_with_output().expect("ssh");
        writer.join().expect("the writing thread");
        assert!(out.status.success(), "{out:?}");
        assert_eq!(out.stdout.len(), 32 << 20);
        data.check(0, &out.stdout).expect("bytes came back altered");
        for n in 0..10 {
            assert_eq!(stage.client(&format!("ssh {options} {host} echo {n}")).trim(), n.to_string());
        }
    });
}

#[test]
fn iperf3() {
    let Some(stage) = stage("iperf3", Program::Iperf) else { return };
    // Streams are left to TCP (hazard 16), so nothing need be carried; they have to go on undisturbed.
    stage.under_acceleration(1, || {
        for how in ["", "-R", "--bidir", "-P 4", "-l 1000", "-Z"] {
            let text = stage.client(&format!("iperf3 -c {} -p 5201 -t 2 -J {how}", stage.pod));
            let json: serde_json::Value = serde_json::from_str(&text).expect("iperf3 -J");
            assert!(json.get("error").is_none(), "{text}");
            assert!(json["end"]["sum_received"]["bytes"].as_u64().is_some_and(|b| b > 0), "{text}");
        }
    });
}

#[test]
fn python_asyncio() {
    use std::io::{Read, Write};
    let Some(stage) = stage("python_asyncio", Program::Asyncio) else { return };
    stage.toggled(|| {
        let to = SocketAddr::new(stage.service, Program::Asyncio.port());
        std::thread::scope(|scope| {
            for connection in 0..6u64 {
                let stage = &stage;
                scope.spawn(move || {
                    let stream = stage.connect(to);
                    let content = Content::new(connection, 5, Direction::ToServer);
                    let mut rng = Prng::new(5, connection);
                    let mut at = 0;
                    let start = Instant::now();
                    while start.elapsed() < LOAD {
                        let n = rng.log_between(1, 50_000);
                        let data = content.bytes(at, usize::try_from(n).expect("a small number"));
                        let (mut reader, mut writer) = (Polled(&stream.0), Polled(&stream.0));
                        let mut got = vec![0; data.len()];
                        std::thread::scope(|inner| {
                            inner.spawn(|| writer.write_all(&data).expect("write"));
                            reader.read_exact(&mut got).expect("read");
                        });
                        content.check(at, &got).expect("bytes came back altered");
                        at += n;
                    }
                    stream.0.shutdown(std::net::Shutdown::Write).expect("shutdown");
                    assert_eq!(Polled(&stream.0).read(&mut [0; 1]).expect("end of stream"), 0);
                });
            }
        });
    });
}
