//! Real servers inside lab pods, for the tests of real programs and for the benchmarks.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::Lab;
use crate::state::look;

/// A server of Debian's in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// redis-server.
    Redis,
    /// PostgreSQL with a pgbench database of scale 1.
    Postgres,
    /// nginx: `/small` of 1 KiB and `/large` of 8 MiB by sendfile(2), on a deferred listener.
    Nginx,
    /// nginx as Debian configures it, but for one worker: `/ok`, `/post` (reads a request body and answers with its length), and
    /// `/proxy/` to [`Program::Nginx`] in another pod, with connections that are kept.
    NginxProxy,
    /// memcached.
    Memcached,
    /// sshd for root by key.
    Sshd,
    /// iperf3.
    Iperf,
    /// An echo server on Python's asyncio.
    Asyncio,
}

impl Program {
    /// The executable that has to be there, and the Debian package that brings it.
    #[must_use]
    pub fn needs(self) -> (&'static str, &'static str) {
        match self {
            Self::Redis => ("/usr/bin/redis-server", "redis-server"),
            Self::Postgres => ("/usr/bin/pgbench", "postgresql"),
            Self::Nginx | Self::NginxProxy => ("/usr/sbin/nginx", "nginx-light"),
            Self::Memcached => ("/usr/bin/memcached", "memcached"),
            Self::Sshd => ("/usr/sbin/sshd", "openssh-server"),
            Self::Iperf => ("/usr/bin/iperf3", "iperf3"),
            Self::Asyncio => ("/usr/bin/python3", "python3"),
        }
    }

    /// Its port, within those that the torture's rules forward from the Service.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Redis => 6379,
            Self::Postgres => 5432,
            Self::Nginx => 5080,
            Self::NginxProxy => 5180,
            Self::Memcached => 5211,
            Self::Sshd => 5022,
            Self::Iperf => 5201,
            Self::Asyncio => 5500,
        }
    }

    /// Why it cannot run here, when it cannot.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let (path, package) = self.needs();
        (!Path::new(path).exists()).then(|| format!("{path} is not installed (apt-get install {package})"))
    }
}

/// A running server; killed, and its files removed, when dropped.
#[derive(Debug)]
pub struct Service {
    /// Which one.
    pub program: Program,
    /// Its directory.
    pub dir: PathBuf,
    child: Child,
}

/// Sizes of the files `/body-SIZE` of [`Program::Nginx`], in bytes.
pub const BODIES: [u64; 6] = [1_000, 20_000, 70_000, 200_000, 1_000_000, 10_000_000];

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

impl Service {
    /// Starts a server in a pod and waits until it accepts.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(lab: &Lab, pod: &str, program: Program) -> Result<Self> {
        Self::start_before(lab, pod, program, None)
    }

    /// The same for a proxy before a server that runs at this address.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_before(lab: &Lab, pod: &str, program: Program, upstream: Option<SocketAddr>) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("sockpath-{}-{program:?}", lab.instance()).to_lowercase());
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let words = prepare(program, &dir, upstream)?;
        let log = std::fs::File::create(dir.join("log"))?;
        let mut command = lab.exec(pod, &words);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {program:?}"))?;
        let mut service = Self { program, dir, child };
        service.await_listening(lab, pod)?;
        if program == Program::Postgres {
            let port = program.port().to_string();
            let fill = ["/usr/bin/pgbench", "-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-i", "-s", "1", "-q", "postgres"];
            let out = lab.exec(pod, fill).output()?;
            ensure!(out.status.success(), "pgbench -i: {}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(service)
    }

    fn await_listening(&mut self, lab: &Lab, pod: &str) -> Result<()> {
        let to = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), self.program.port());
        // Nothing tells when a foreign server listens, so connecting is tried.
        let listens = look(Duration::from_secs(20), || match (lab.inside(pod, || TcpStream::connect(to)), self.child.try_wait()) {
            (Ok(_), _) => Some(Ok(())),
            (_, Ok(None)) => None,
            (_, ended) => Some(Err(ended)),
        });
        match listens {
            Some(Ok(())) => Ok(()),
            Some(Err(ended)) => bail!("{:?} ended at once ({ended:?}): {}", self.program, self.log()),
            None => bail!("{:?} does not listen: {}", self.program, self.log()),
        }
    }

    /// What it printed.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        // SIGQUIT ends PostgreSQL, nginx and redis with all their processes; what ignores it is killed.
        let _ = nix::sys::signal::kill(group, nix::sys::signal::Signal::SIGQUIT);
        let _ = look(Duration::from_secs(2), || matches!(self.child.try_wait(), Ok(Some(_))).then_some(()));
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn done(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

/// Writes what a server needs into its directory; yields the command that runs it in the foreground.
fn prepare(program: Program, dir: &Path, upstream: Option<SocketAddr>) -> Result<Vec<String>> {
    let port = program.port().to_string();
    let at = dir.to_string_lossy().into_owned();
    let words = match program {
        Program::Redis => {
            format!("/usr/bin/redis-server --port {port} --bind * -::* --protected-mode no --save  --dir {at}")
        }
        Program::Postgres => return postgres(dir, &port),
        Program::Nginx => {
            std::fs::write(dir.join("small"), [b's'; 1 << 10])?;
            std::fs::write(
                dir.join("large"),
                crate::torture::content::Content::new(1, 1, crate::torture::content::Direction::ToClient).bytes(0, 8 << 20),
            )?;
            for size in BODIES {
                let content = crate::torture::content::Content::new(size, 2, crate::torture::content::Direction::ToClient);
                std::fs::write(dir.join(format!("body-{size}")), content.bytes(0, usize::try_from(size)?))?;
            }
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
