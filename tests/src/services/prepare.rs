//! Configuration and command line of each server.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::program::{BODIES, LARGE, Program};
use crate::torture::content::{Content, Direction};

/// The echo server of [`Program::Asyncio`].
const ECHO: &str = "
import asyncio, sys
async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    finally:
        writer.close()
async def main():
    server = await asyncio.start_server(echo, None, int(sys.argv[1]))
    async with server:
        await server.serve_forever()
asyncio.run(main())
";

/// The echo server of [`Program::Grpc`]: messages of a stream come back in their order. Without serializers they are bytes.
const GRPC_SERVER: &str = "
import sys, grpc
from concurrent import futures
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.stream_stream_rpc_method_handler(lambda messages, context: messages)
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
server.add_generic_rpc_handlers((Echo(),))
assert server.add_insecure_port('[::]:' + sys.argv[1])
server.start()
server.wait_for_termination()
";

/// Four streams, each of messages of all sizes that are compared with what was sent.
const GRPC_CLIENT: &str = "
import collections, random, sys, threading, time, grpc
counts, failed = [], []
def stream(seed):
    chance, sent, count = random.Random(seed), collections.deque(), 0
    end = time.monotonic() + float(sys.argv[2])
    def messages():
        while time.monotonic() < end:
            message = chance.randbytes(int(10 ** chance.uniform(0, 6)))
            sent.append(message)
            yield message
    with grpc.insecure_channel(sys.argv[1]) as channel:
        for echo in channel.stream_stream('/echo/Echo')(messages()):
            if echo != sent.popleft():
                failed.append(f'message {count} of stream {seed} came back altered')
            count += 1
    if sent:
        failed.append(f'{len(sent)} messages of stream {seed} did not come back')
    counts.append(count)
threads = [threading.Thread(target=stream, args=(seed,)) for seed in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
if failed or len(counts) != 4: sys.exit(str(failed or 'a stream failed'))
print(sum(counts))
";

fn done(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

/// Writes what a server needs into its directory; yields the command that runs it in the foreground.
pub fn prepare(program: Program, dir: &Path, upstream: Option<SocketAddr>) -> Result<Vec<String>> {
    let port = program.port().to_string();
    let at = dir.to_string_lossy().into_owned();
    let words = match program {
        Program::Redis => {
            format!("/usr/bin/redis-server --port {port} --bind * -::* --protected-mode no --save  --dir {at}")
        }
        Program::Postgres => return postgres(dir, &port),
        Program::Nginx => {
            write_files(dir)?;
            let conf = dir.join("nginx.conf");
            let listen = format!("listen {port} deferred; listen [::]:{port} deferred;");
            std::fs::write(
                &conf,
                format!(
                    "user root; daemon off; worker_processes 1; pid {at}/pid; error_log stderr;\nevents {{ worker_connections 4096; }}\n\
                     http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; \
                     client_body_temp_path {at}/1; proxy_temp_path {at}/2; fastcgi_temp_path {at}/3; uwsgi_temp_path {at}/4; scgi_temp_path {at}/5;\n\
                     server {{ {listen} root {at}; }} }}\n"
                ),
            )?;
            format!("/usr/sbin/nginx -p {at} -c {}", conf.display())
        }
        Program::NginxProxy => {
            let upstream = upstream.context("a proxy needs an upstream")?;
            let conf = dir.join("nginx.conf");
            std::fs::write(
                &conf,
                format!(
                    "user root; daemon off; worker_processes 1; pid {at}/pid; error_log stderr;\nevents {{ worker_connections 1024; }}\n\
                     http {{ access_log off; sendfile on; tcp_nopush on; client_max_body_size 100m; keepalive_requests 1000000; \
                     client_body_temp_path {at}/1; proxy_temp_path {at}/2; fastcgi_temp_path {at}/3; uwsgi_temp_path {at}/4; scgi_temp_path {at}/5;\n\
                     upstream files {{ server {upstream}; keepalive 8; }}\n\
                     server {{ listen {port}; location /ok {{ return 200 \"ok\\n\"; }} \
                     location /post {{ proxy_pass http://127.0.0.1:5181; }} \
                     location /proxy/ {{ proxy_pass http://files/; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n\
                     server {{ listen 127.0.0.1:5181; location / {{ return 200 \"$content_length\\n\"; }} }} }}\n"
                ),
            )?;
            format!("/usr/sbin/nginx -p {at} -c {}", conf.display())
        }
        Program::MariaDb => return mariadb(dir, &port),
        Program::Apache => {
            write_files(dir)?;
            let conf = dir.join("apache.conf");
            std::fs::write(
                &conf,
                format!(
                    "ServerRoot {at}\nServerName x\nPidFile {at}/pid\nMutex file:{at}\nErrorLog {at}/log\nListen {port}\n\
                     LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so\n\
                     LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so\n\
                     User www-data\nGroup www-data\nDocumentRoot {at}\nEnableSendfile on\nMaxKeepAliveRequests 0\nKeepAliveTimeout 60\n\
                     StartServers 1\nThreadsPerChild 32\nMaxRequestWorkers 32\nServerLimit 1\n"
                ),
            )?;
            format!("/usr/sbin/apache2 -D FOREGROUND -f {}", conf.display())
        }
        Program::HaProxy => {
            let upstream = upstream.context("a proxy needs an upstream")?;
            let conf = dir.join("haproxy.conf");
            std::fs::write(
                &conf,
                format!(
                    "global\n maxconn 256\n nbthread 1\ndefaults\n mode http\n option splice-auto\n timeout connect 30s\n timeout client 60s\n \
                     timeout server 60s\nlisten files\n bind :::{port} v4v6\n server upstream {upstream}\n"
                ),
            )?;
            format!("/usr/sbin/haproxy -db -f {}", conf.display())
        }
        Program::Grpc => {
            let server = dir.join("server.py");
            std::fs::write(&server, GRPC_SERVER)?;
            std::fs::write(dir.join("client.py"), GRPC_CLIENT)?;
            format!("/usr/bin/python3 {} {port}", server.display())
        }
        Program::Memcached => format!("/usr/bin/memcached -u root -p {port} -U 0 -l 0.0.0.0,:: -c 1024"),
        Program::Sshd => {
            for key in ["host", "user"] {
                done(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key)))?;
            }
            std::fs::copy(dir.join("user.pub"), dir.join("authorized_keys"))?;
            std::fs::create_dir_all("/run/sshd")?;
            let conf = dir.join("sshd_config");
            std::fs::write(
                &conf,
                format!(
                    "Port {port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized_keys\nPermitRootLogin yes\nStrictModes no\nUsePAM no\n\
                     PidFile none\n"
                ),
            )?;
            format!("/usr/sbin/sshd -D -e -f {}", conf.display())
        }
        Program::Iperf => format!("/usr/bin/iperf3 -s -p {port}"),
        Program::Asyncio => {
            let script = dir.join("echo.py");
            std::fs::write(&script, ECHO)?;
            format!("/usr/bin/python3 {} {port}", script.display())
        }
    };
    // An empty word is the empty value of an option.
    Ok(words.split(' ').map(str::to_owned).collect())
}

/// PostgreSQL refuses to run as root.
fn postgres(dir: &Path, port: &str) -> Result<Vec<String>> {
    let bin = std::fs::read_dir("/usr/lib/postgresql")
        .ok()
        .and_then(|d| d.flatten().map(|e| e.path().join("bin")).find(|p| p.join("initdb").exists()))
        .context("no initdb under /usr/lib/postgresql")?;
    let data = dir.join("data");
    done(Command::new("chown").arg("postgres:").arg(dir))?;
    let drop = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];
    let mut initdb = Command::new(drop[0]);
    initdb.args(&drop[1..]).arg(bin.join("initdb")).args(["--no-sync", "-A", "trust", "-U", "postgres", "-D"]).arg(&data);
    done(initdb.current_dir(dir))?;
    std::fs::write(data.join("pg_hba.conf"), "host all all all trust\n")?;
    let mut words: Vec<String> = drop.iter().map(|w| (*w).to_owned()).collect();
    words.push(bin.join("postgres").to_string_lossy().into_owned());
    words.extend(["-D".to_owned(), data.to_string_lossy().into_owned()]);
    for setting in [&format!("port={port}"), "listen_addresses=*", "unix_socket_directories=", "fsync=off"] {
        words.extend(["-c".to_owned(), setting.to_owned()]);
    }
    Ok(words)
}

/// MariaDB with a new data directory.
fn mariadb(dir: &Path, port: &str) -> Result<Vec<String>> {
    let data = dir.join("data");
    let datadir = format!("--datadir={}", data.display());
    let install = ["--no-defaults", "--user=root", "--auth-root-authentication-method=normal", "--skip-test-db", &datadir];
    done(Command::new("mariadb-install-db").args(install))?;
    let mut words = vec!["/usr/sbin/mariadbd".to_owned(), "--no-defaults".to_owned(), "--user=root".to_owned(), datadir];
    words.extend([format!("--port={port}"), format!("--socket={}", dir.join("socket").display())]);
    // Without grant tables no client needs an account.
    words.extend(["--bind-address=*", "--skip-grant-tables", "--innodb-flush-log-at-trx-commit=0", "--skip-log-bin"].map(str::to_owned));
    Ok(words)
}

/// What web servers have to offer.
fn write_files(dir: &Path) -> Result<()> {
    std::fs::write(dir.join("small"), [b's'; 1 << 10])?;
    std::fs::write(dir.join("large"), Content::new(1, 1, Direction::ToClient).bytes(0, LARGE))?;
    for size in BODIES {
        let content = Content::new(size, 2, Direction::ToClient);
        std::fs::write(dir.join(format!("body-{size}")), content.bytes(0, usize::try_from(size)?))?;
    }
    Ok(())
}

/// Commands that fill a running server, from inside its pod.
pub fn fill(program: Program) -> Vec<Vec<String>> {
    let port = program.port();
    let commands = match program {
        Program::Postgres => vec![format!("/usr/bin/pgbench -h 127.0.0.1 -p {port} -U postgres -i -s 1 -q postgres")],
        Program::MariaDb => vec![
            format!("/usr/bin/mariadb-admin --no-defaults -h 127.0.0.1 -P {port} -u root create test"),
            format!(
                "/usr/bin/sysbench oltp_point_select --db-driver=mysql --mysql-host=127.0.0.1 --mysql-port={port} --mysql-user=root \
                 --mysql-db=test --table-size=1000 prepare"
            ),
        ],
        _ => Vec::new(),
    };
    commands.iter().map(|command| command.split(' ').map(str::to_owned).collect()).collect()
}
