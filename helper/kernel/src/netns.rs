//! Doing something inside a network namespace: on a thread of its own, which ends with it. Its name is what a trace shows as the
//! process of a probe.

use std::fs::File;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// Runs `work` inside each of these namespaces, one after the other, with what belongs to it.
///
/// # Errors
/// When a namespace cannot be entered (CAP_SYS_ADMIN), and those of `work`.
pub fn inside_each<T: Sync>(namespaces: &[(File, T)], work: impl Fn(&T) -> Result<()> + Send + Sync) -> Result<()> {
    let Some((first, _)) = namespaces.first() else { return Ok(()) };
    inside(first, || {
        for (netns, of_it) in namespaces {
            setns(netns, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace (that needs CAP_SYS_ADMIN)")?;
            work(of_it)?;
        }
        Ok(())
    })
}

/// Runs `work` inside the namespace. The rest of the process never leaves its own.
///
/// # Errors
/// When the namespace cannot be entered (CAP_SYS_ADMIN), and those of `work`.
pub fn inside<T: Send>(netns: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("sockpath".to_owned()).spawn_scoped(scope, || {
            setns(netns, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace (that needs CAP_SYS_ADMIN)")?;
            work()
        });
        thread.context("cannot start a thread")?.join().map_err(|_| anyhow!("a thread in a network namespace panicked"))?
    })
}
