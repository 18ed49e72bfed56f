//! Databases and caches.

use std::net::SocketAddr;
use std::time::Instant;

use sockpath_protocol::accel::Via;
use sockpath_tests::services::Program;
use sockpath_tests::torture::accelerator::{Accelerator, Choice};
use sockpath_tests::torture::content::{Content, Direction};
use sockpath_tests::torture::prng::Prng;

use super::stage::{LOAD, Stage, over, stage, text_of};

/// Programs that are proven for the socket path run over both.
const BOTH: [Via; 2] = [Via::Socket, Via::Short];

#[test]
fn redis() {
    over(&BOTH, "redis", Program::Redis, |stage| {
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
    over(&BOTH, "postgresql", Program::Postgres, |stage| {
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
fn mariadb() {
    over(&BOTH, "mariadb", Program::MariaDb, |stage| {
        let port = Program::MariaDb.port();
        // Transactions that write would deadlock now and then.
        for test in ["oltp_point_select", "oltp_read_only", "oltp_update_non_index"] {
            let text = stage.client(&format!(
                "sysbench {test} --db-driver=mysql --mysql-host={} --mysql-port={port} --mysql-user=root --mysql-db=test --table-size=1000 \
                 --threads=8 --time=3 run",
                stage.service
            ));
            assert!(text.contains("ignored errors:                      0 "), "{text}");
        }
        // Small questions, and answers of megabytes, on one connection.
        let large = "SELECT seq, repeat('x', 40) FROM test.seq_1_to_100000;";
        let sql = ["SELECT 1;", large, "SELECT 2;", large, "SELECT 3;"].concat();
        let (host, port) = (stage.service.to_string(), port.to_string());
        let words = ["timeout", "60", "mariadb", "--no-defaults", "-h", &host, "-P", &port, "-u", "root", "-N", "-B", "-e", &sql];
        let text = text_of("mariadb", &stage.lab.exec("curl", words).output().expect("mariadb"));
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), 200_003);
        for (at, row) in rows[1..100_001].iter().enumerate() {
            assert_eq!(*row, format!("{}\t{}", at + 1, "x".repeat(40)));
        }
        assert_eq!([rows[0], rows[100_001], rows[200_002]], ["1", "2", "3"]);
    });
}

#[test]
fn memcached() {
    over(&BOTH, "memcached", Program::Memcached, |stage| {
        let to = SocketAddr::new(stage.service, Program::Memcached.port());
        std::thread::scope(|scope| {
            for connection in 0..4 {
                scope.spawn(move || set_and_get(stage, to, connection));
            }
        });
        // A tenth of the values are compared.
        let text = stage.client(&format!("memcaslap -s {to} -T 2 -c 16 -t 2s -v 0.1"));
        for failures in ["get_misses: 0\n", "verify_misses: 0\n", "verify_failed: 0\n"] {
            assert!(text.contains(failures), "{text}");
        }
    });
}

/// Values of all sizes on one connection, compared byte by byte.
fn set_and_get(stage: &Stage, to: SocketAddr, connection: u64) {
    use std::io::{BufRead, BufReader, Read, Write};
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
}
