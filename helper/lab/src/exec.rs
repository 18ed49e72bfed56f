//! `lab exec`: a command inside a pod or node.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::cgroup;
use super::netns::Netns;
use super::plan::{self, Entity, Instance};
use super::preflight::require_root;
use super::state::{self, Phase};

/// Becomes the command; returns only when that fails.
pub fn exec(instance: &Instance, target: &str, container: Option<&str>, command: &[OsString]) -> Result<ExitCode> {
    let entity = plan::find(target)?;
    require_root()?;
    let Some(state) = state::load(instance)? else {
        bail!("the lab is not up; run `{}`", instance.command("up"));
    };
    if state.phase != Phase::Up {
        bail!("the lab is not complete; run `{}` to repair it", instance.command("up"));
    }
    let (name, cgroup) = match entity {
        Entity::Node(_) if container.is_some() => bail!("-c chooses a container of a pod; {target} is a node"),
        Entity::Node(node) => (node.name, state.node_cgroup(instance, node)),
        Entity::Pod(pod) => (pod.name, state.container_cgroup(instance, pod, plan::find_container(pod, container)?)),
    };
    let path = instance.netns_path(name);
    let netns = Netns::open(&path)
        .with_context(|| format!("{name} is gone ({}); run `{}` to repair the lab", path.display(), instance.command("up")))?;
    cgroup::join(&cgroup)?;
    netns.enter()?;
    private_sys().context("cannot give the command a /sys of its own")?;

    let [program, args @ ..] = command else { bail!("no command given") };
    // The signal dispositions that the Rust runtime changed are restored by `exec`.
    let error = Command::new(program).args(args).exec();
    eprintln!("error: {}: {error}", program.to_string_lossy());
    Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }))
}

/// A mount namespace in which /sys shows the devices of the network namespace this thread is in, as `ip netns exec` has it,
/// and still the cgroup and BPF file systems, which that hides.
fn private_sys() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
    // Slave: mounts of this namespace stay here, and those that go away outside (a lab that ends) go away here.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>).context("make / a slave mount")?;
    let kept: Vec<_> = ["/sys/fs/cgroup", "/sys/fs/bpf", "/sys/kernel/tracing", "/sys/kernel/debug"]
        .into_iter()
        .filter_map(|dir| Some((dir, OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir).ok()?)))
        .collect();
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, None::<&str>)
        .context("mount sysfs")?;
    for (dir, file) in kept {
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        mount(Some(Path::new(&source)), dir, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .with_context(|| format!("keep {dir}"))?;
    }
    Ok(())
}
