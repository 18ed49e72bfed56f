//! The servers: what each needs, its port, its signal, and the files that web servers have.

use std::path::Path;

use nix::sys::signal::Signal;

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
    pub(super) fn end(self) -> Signal {
        if matches!(self, Self::Apache | Self::HaProxy) { Signal::SIGTERM } else { Signal::SIGQUIT }
    }

    /// Why it cannot run here, when it cannot.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let (path, package) = self.needs();
        (!Path::new(path).exists()).then(|| format!("{path} is not installed (apt-get install {package})"))
    }
}

/// Sizes of the files `/body-SIZE` of [`Program::Nginx`], in bytes.
pub const BODIES: [u64; 6] = [1_000, 20_000, 70_000, 200_000, 1_000_000, 10_000_000];

/// Size of the file `/large`, in bytes.
pub const LARGE: usize = 8 << 20;
