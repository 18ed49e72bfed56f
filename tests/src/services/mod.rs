//! Real servers inside lab pods, for the tests of real programs and for the benchmarks.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::Lab;
use crate::state::look;

mod prepare;
mod program;

pub use program::{BODIES, LARGE, Program};

/// A running server; killed, and its files removed, when dropped.
#[derive(Debug)]
pub struct Service {
    /// Which one.
    pub program: Program,
    /// Its directory.
    pub dir: PathBuf,
    child: Child,
}

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
