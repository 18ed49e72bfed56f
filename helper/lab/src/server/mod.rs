//! The built-in server of every container: HTTP/1.1 and echo on one TCP port, echo on the same UDP port.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use super::netns::Netns;
use super::plan::{self, Container, Entity, Instance, NAMESPACE, Pod};
use super::{cgroup, state};

mod echo;
mod http;

/// Connections that may wait for `accept`; the kernel caps it at net.core.somaxconn.
const BACKLOG: u32 = 4096;
/// The line that says that both sockets are bound.
const READY: &str = "ready\n";

/// A server that was started and has yet to say that it listens.
#[derive(Debug)]
pub struct Starting {
    child: Child,
    said: io::PipeReader,
}

impl Starting {
    /// Starts the server of a container. It joins the container's cgroup and namespace by itself.
    pub fn start(instance: &Instance, pod: &Pod, container: &Container) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let (said, tell) = io::pipe().context("cannot make a pipe")?;
        let mut command = Command::new(program);
        command.args(["serve", pod.name, container.name]).env(plan::INSTANCE_VAR, instance.name()).current_dir("/");
        command.stdin(Stdio::null()).stderr(tell.try_clone().context("cannot copy a pipe")?).stdout(tell);
        let open = open_descriptors();
        // SAFETY: `detach` makes system calls only and allocates nothing, so it is fit to run between fork and exec.
        unsafe { command.pre_exec(move || detach(&open)) };
        let child = command.spawn().context("cannot start the built-in server")?;
        Ok(Self { child, said })
    }

    /// Waits until it listens; returns its process id. It says one line and closes the pipe, or dies, which closes it too.
    pub fn ready(mut self) -> Result<u32> {
        let mut said = String::new();
        self.said.read_to_string(&mut said).context("cannot hear from the built-in server")?;
        if said != READY {
            let _ = self.child.wait();
            bail!("{}", said.trim().trim_start_matches("error: "));
        }
        Ok(self.child.id())
    }
}

/// A session of its own, so that no terminal's end reaches it, and no inherited descriptors: one may be the lock or the pipe
/// of the caller of `lab up`, who would otherwise never see its end.
fn detach(open: &[RawFd]) -> io::Result<()> {
    nix::unistd::setsid()?;
    // SAFETY: the call changes flags of this process's own descriptors only.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) } == 0 {
        return Ok(());
    }
    // CLOSE_RANGE_CLOEXEC came with 5.11. What this process opens is closed on exec anyway; what it inherited was open before.
    for fd in open.iter().filter(|fd| **fd > 2) {
        // SAFETY: the call changes a flag of this process's own descriptor; one that is closed by now gives an error, which is as good.
        unsafe { libc::fcntl(*fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// This process's descriptors at this moment.
fn open_descriptors() -> Vec<RawFd> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten();
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Serves until the lab is gone.
pub async fn serve(instance: &Instance, pod: &str, container: &str) -> Result<ExitCode> {
    let Entity::Pod(pod) = plan::find(pod)? else { bail!("{pod} is not a pod") };
    let container = plan::find_container(pod, Some(container))?;
    // Before joining, so that a lab that goes away in between is noticed.
    let gone = watch_end(instance)?;
    join(instance, pod, container)?;
    // The name that `ps` and a trace show; 15 bytes at most.
    let _ = fs::write("/proc/self/comm", container.name);
    raise_descriptor_limit();

    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, container.port));
    let tcp = listen(address).with_context(|| format!("cannot listen on TCP port {}", container.port))?;
    let udp = UdpSocket::bind(address).await.with_context(|| format!("cannot bind UDP port {}", container.port))?;
    // What its answers name it: `pod default/httpbin, container httpbin, on node-1`.
    let identity = format!("pod {NAMESPACE}/{}, container {}, on {}", pod.name, container.name, pod.node.name);
    tokio::spawn(echo::datagrams(udp));
    tokio::spawn(accept(tcp, identity.into()));
    say_ready()?;
    gone.await?;
    Ok(ExitCode::SUCCESS)
}

/// Joins the cgroup and namespace of a container.
fn join(instance: &Instance, pod: &Pod, container: &Container) -> Result<()> {
    let state = state::load(instance)?.context("the lab is not up")?;
    cgroup::join(&state.container_cgroup(instance, pod, container))?;
    let path = instance.netns_path(pod.name);
    Netns::open(&path).with_context(|| format!("cannot open {}", path.display()))?.enter()
}

/// One socket for both families: IPv4 arrives as v4-mapped addresses.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, identity: Arc<str>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(converse(stream, peer, Arc::clone(&identity)));
            }
            // Out of descriptors, or a connection that was reset before it was accepted. A pause lets others close.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    }
}

/// One connection. How it ends is the client's business.
async fn converse(mut stream: TcpStream, peer: SocketAddr, identity: Arc<str>) {
    let _ = stream.set_nodelay(true);
    let mut first = Vec::new();
    let _ = match http::detect(&mut stream, &mut first).await {
        Ok(true) => http::serve(stream, peer, first, &identity).await,
        Ok(false) => echo::stream(stream, first).await,
        Err(e) => Err(e),
    };
}

fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Reports that the server listens and detaches from its starter.
fn say_ready() -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(READY.as_bytes()).and_then(|()| out.flush()).context("cannot tell that the server is ready")?;
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stdout(&null).context("cannot close stdout")?;
    nix::unistd::dup2_stderr(&null).context("cannot close stderr")
}

/// Resolves when the instance's state directory is removed: `lab down` kills servers, this is for what it could not know of.
fn watch_end(instance: &Instance) -> Result<impl Future<Output = Result<()>> + use<>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).context("cannot watch the lab's state")?;
    inotify.add_watch(&instance.state_dir(), AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF).context("the lab is not up")?;
    // SAFETY: the wrapper owns the descriptor and hands out the same one until it is dropped, after its registration.
    let inotify =
        unsafe { AsyncFd::register_with_interest(InotifyFd(inotify), Interest::READABLE) }.context("cannot watch the lab's state")?;
    Ok(async move { inotify.readable().await.map(drop).context("cannot watch the lab's state") })
}

/// nix's `Inotify` has a borrowed descriptor only, tokio wants a raw one.
struct InotifyFd(Inotify);

impl std::os::fd::AsRawFd for InotifyFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsFd::as_fd(&self.0).as_raw_fd()
    }
}
