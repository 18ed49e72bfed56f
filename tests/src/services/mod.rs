//! Real servers inside lab pods, for the tests of real programs and for the benchmarks.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::lab::Lab;
use crate::state::look;

mod prepare;

/// A server of Debian's in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// redis-server.
    Redis,
    /// PostgreSQL with a pgbench database of scale 1.
    Postgres,
    /// MariaDB with a sysbench table of 1,000 rows; root has no password.
    MariaDb,
    /// nginx: `/small` of 1 KiB and `/large` of 8 MiB by sendfile(2), on a deferred listener.
    Nginx,
    /// nginx as Debian configures it, but for one worker: `/ok`, `/post` (reads a request body and answers with its length), and
    /// `/proxy/` to [`Program::Nginx`] in another pod, with connections that are kept.
    NginxProxy,
    /// Apache with its event MPM and the files of [`Program::Nginx`].
    Apache,
    /// HAProxy that splices where it can, before [`Program::Nginx`].
    HaProxy,
    /// An echo server of gRPC in Python, with `client.py ADDRESS:PORT SECONDS` beside it, which prints the number of messages.
    Grpc,
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
            Self::MariaDb => ("/usr/sbin/mariadbd", "mariadb-server"),
            Self::Apache => ("/usr/sbin/apache2", "apache2-bin"),
            Self::HaProxy => ("/usr/sbin/haproxy", "haproxy"),
            Self::Grpc => ("/usr/lib/python3/dist-packages/grpc/__init__.py", "python3-grpcio"),
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
            Self::MariaDb => 5306,
            Self::Apache => 5081,
            Self::HaProxy => 5082,
            Self::Grpc => 5051,
            Self::Memcached => 5211,
            Self::Sshd => 5022,
            Self::Iperf => 5201,
            Self::Asyncio => 5500,
        }
    }

    /// The server that it forwards to, if it is a proxy.
    #[must_use]
    pub fn upstream(self) -> Option<Self> {
        matches!(self, Self::NginxProxy | Self::HaProxy).then_some(Self::Nginx)
    }

    /// The signal that ends it with all its processes.
    fn end(self) -> Signal {
        if matches!(self, Self::Apache | Self::HaProxy) { Signal::SIGTERM } else { Signal::SIGQUIT }
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

/// Size of the file `/large`, in bytes.
pub const LARGE: usize = 8 << 20;

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
        let words = prepare::prepare(program, &dir, upstream)?;
        let log = std::fs::File::create(dir.join("log"))?;
        let mut command = lab.exec(pod, &words);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {program:?}"))?;
        let mut service = Self { program, dir, child };
        service.await_listening(lab, pod)?;
        for fill in prepare::fill(program) {
            let out = lab.exec(pod, &fill).output()?;
            ensure!(out.status.success(), "{fill:?}: {}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
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
        // What ignores it is killed.
        let _ = nix::sys::signal::kill(group, self.program.end());
        let _ = look(Duration::from_secs(2), || matches!(self.child.try_wait(), Ok(Some(_))).then_some(()));
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
