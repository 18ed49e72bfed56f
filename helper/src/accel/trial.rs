//! The canaries without an acceleration, for `doctor`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sockpath_protocol::accel::Canary;

use super::canary;
use super::instance::{Instance, Start};
use super::pins::{BPFFS, Pins};

/// Tries the kernel out on private sockets. Everything is pinned in a BPF file system of its own, which goes with the thread: nothing
/// can be left behind, and whoever accelerates on this node meanwhile is not disturbed.
pub fn try_out() -> Result<Vec<Canary>> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace (needs CAP_SYS_ADMIN)")?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .context("cannot keep mounts private")?;
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
                .with_context(|| format!("cannot mount a BPF file system of our own on {BPFFS}"))?;
            let pins = Pins::of_this_instance()?;
            if !pins.claim()? {
                bail!("{} exists in a fresh file system", pins.dir().display());
            }
            let start = Start { owner: "doctor", lease: Duration::from_secs(30), leave_blocking_readers: true, detached: false };
            let instance = Instance::create(&pins, &start)?;
            canary::run(&instance).context("the kernel could not be tried out on private sockets")
        });
        thread.join().unwrap_or_else(|_| bail!("the thread that tried it out panicked"))
    })
}
