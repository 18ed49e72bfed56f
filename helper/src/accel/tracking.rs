//! Tracking the sockets that pods open from now on: by a program on each pod's cgroup, or, for pods without a directory in cgroup v2, on
//! the root. In both places the network namespace decides whose socket it is.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::instance::Instance;
use super::links::{pin, pinned};
use crate::node::{Cgroup, FoundPod, Placement};
use crate::pins::{ESTABLISHED, take_away};
use anyhow::{Context, Result, bail};

/// The program on a pod's cgroup, or on the root.
pub const PROGRAM: &str = "established";

/// Tracks the sockets that these pods open from now on. Those of a pod without a directory in cgroup v2 cannot be tracked where none is
/// mounted.
///
/// # Errors
/// When the kernel refuses.
pub fn attach(instance: &Instance, pods: &[FoundPod]) -> Result<()> {
    for pod in pods {
        instance.namespaces.track(instance.control(), &pod.netns)?;
        match &pod.cgroup {
            Placement::Own(cgroup) => attach_to(instance, cgroup)?,
            Placement::Root(root) if !instance.pins().has(&link_to(root)) => attach_to(instance, root)?,
            Placement::Root(_) | Placement::Nowhere => {}
        }
    }
    Ok(())
}

/// Takes over pods that another process of this acceleration has attached to.
///
/// # Errors
/// When a namespace cannot be identified or held.
pub fn take_over(instance: &Instance, pods: &[FoundPod]) -> Result<()> {
    pods.iter().try_for_each(|pod| instance.namespaces.track(instance.control(), &pod.netns))
}

/// No longer tracks the sockets that this pod opens from now on.
///
/// # Errors
/// When the kernel refuses.
pub fn detach(instance: &Instance, pod: &FoundPod) -> Result<()> {
    instance.namespaces.release(instance.control(), &pod.netns)?;
    if let Placement::Own(cgroup) = &pod.cgroup {
        take_away(&instance.pins().path(&link_to(cgroup)))?;
    }
    Ok(())
}

fn attach_to(instance: &Instance, cgroup: &Cgroup) -> Result<()> {
    let program = pinned(instance.pins(), PROGRAM)?;
    let dir = File::open(&cgroup.dir).with_context(|| format!("cannot open the cgroup {}", cgroup.dir.display()))?;
    // SAFETY: both descriptors are open; no options.
    let fd = unsafe {
        libbpf_rs::libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            dir.as_raw_fd(),
            libbpf_rs::libbpf_sys::BPF_CGROUP_SOCK_OPS,
            std::ptr::null(),
        )
    };
    if fd < 0 {
        bail!("cannot attach to the cgroup {}: {}", cgroup.dir.display(), std::io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: a fresh descriptor without another owner.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    pin(&link, &instance.pins().path(&link_to(cgroup)))
}

/// The pin of the link to a cgroup; the id of a cgroup is not given out again while the machine runs.
fn link_to(cgroup: &Cgroup) -> String {
    format!("{ESTABLISHED}{}", cgroup.id)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use anyhow::Context;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt};

    use super::super::private::{connected_pair, in_private_netns, on_this_kernel};
    use super::super::start::Start;
    use super::super::tracked::tracked;
    use super::*;
    use crate::node::{Hierarchies, Netns};

    /// A network namespace of its own.
    fn private() -> Result<Netns> {
        in_private_netns(|| Netns::open("/proc/thread-self/ns/net").context("its own"))
    }

    /// A pod with a network namespace, but without a directory in cgroup v2.
    fn pod() -> Result<FoundPod> {
        let cgroup = Placement::outside(&Hierarchies::mounted(Path::new("/sys/fs/cgroup"))?)?;
        Ok(FoundPod { netns: private()?, cgroup, processes: Vec::new() })
    }

    /// Two sockets of a namespace that are connected with each other.
    fn talk_in(netns: &Netns) -> Result<(TcpStream, TcpStream)> {
        sockpath_kernel::netns::inside(&netns.file, connected_pair)
    }

    /// Two sockets of the calling thread's namespace that take each other for connected: their process sets what TCP would agree on.
    fn repaired_pair() -> Result<(TcpStream, TcpStream)> {
        let end = |from: u16, to: u16| -> Result<TcpStream> {
            let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            let on: libc::c_int = 1;
            // SAFETY: the option is an int that lives through the call.
            let r = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, (&raw const on).cast(), 4) };
            anyhow::ensure!(r == 0, "TCP_REPAIR: {}", std::io::Error::last_os_error());
            bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, from))?;
            connect(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, to))?;
            Ok(TcpStream::from(fd))
        };
        Ok((end(4000, 4001)?, end(4001, 4000)?))
    }

    #[test]
    fn sockets_whose_process_set_their_sequence_numbers_are_left_alone() {
        on_this_kernel("sockets_whose_process_set_their_sequence_numbers_are_left_alone", |pins| {
            let instance = Instance::create(pins, &Start::sample(true))?;
            let pod = pod()?;
            attach(&instance, std::slice::from_ref(&pod))?;
            let ordinary = talk_in(&pod.netns)?;
            assert_eq!(tracked(&instance).len(), 2, "ordinary sockets are tracked");
            let repaired = sockpath_kernel::netns::inside(&pod.netns.file, repaired_pair)?;
            instance.track_live(&pod)?;
            assert_eq!(tracked(&instance).len(), 2, "a socket with sequence numbers of its process's choice is tracked");
            drop((ordinary, repaired));
            Ok(())
        });
    }

    #[test]
    fn one_pod_cannot_use_up_the_slots_of_the_others() {
        on_this_kernel("one_pod_cannot_use_up_the_slots_of_the_others", |pins| {
            let instance = Instance::create(pins, &Start::sample(true))?;
            let pods = [pod()?, pod()?];
            attach(&instance, &pods)?;
            let all = u32::try_from(instance.ends.len())?;
            assert_eq!(instance.control().fair_share.get(), all / 2);

            // As if half of the slots were in use and two were a fair share.
            let greedy = talk_in(&pods[0].netns)?;
            instance.control().pretend(all / 2, 2);
            let more = talk_in(&pods[0].netns)?;
            assert_eq!(tracked(&instance).len(), 2, "a pod got more than its share");
            let modest = talk_in(&pods[1].netns)?;
            assert_eq!(tracked(&instance).len(), 4, "a pod did not get its share");
            let refused: Vec<u32> = instance.namespaces.open_shares().iter().map(|(_, share)| share.refused).collect();
            assert_eq!(refused, [2, 0]);

            // What is over is free again.
            drop((greedy, more));
            let until = Instant::now() + Duration::from_secs(5);
            while tracked(&instance).len() > 2 {
                assert!(Instant::now() < until, "slots of closed sockets are not freed");
                instance.look()?;
            }
            let again = talk_in(&pods[0].netns)?;
            assert_eq!(tracked(&instance).len(), 4);
            drop((modest, again));
            Ok(())
        });
    }

    #[test]
    fn sockets_are_tracked_by_their_namespace_where_pods_have_no_directory() {
        on_this_kernel("sockets_are_tracked_by_their_namespace_where_pods_have_no_directory", |pins| {
            let instance = Instance::create(pins, &Start::sample(true))?;
            let (pod, other) = (pod()?, private()?);
            let ports = || {
                let mut ports: Vec<u16> = tracked(&instance).iter().filter_map(|k| Some(instance.ends.get(k.slot)?.lport.get())).collect();
                ports.sort_unstable();
                ports
            };
            let of = |(a, b): &(TcpStream, TcpStream)| -> Result<Vec<u16>> {
                let mut ports = vec![a.local_addr()?.port(), b.local_addr()?.port()];
                ports.sort_unstable();
                Ok(ports)
            };

            let before = talk_in(&pod.netns)?;
            attach(&instance, std::slice::from_ref(&pod))?;
            let theirs = talk_in(&other)?;
            assert_eq!(ports(), [0u16; 0], "a socket of another namespace, or from before, is tracked");
            let ours = talk_in(&pod.netns)?;
            assert_eq!(ports(), of(&ours)?);
            // Twice is as good, and the link is there already.
            attach(&instance, std::slice::from_ref(&pod))?;
            detach(&instance, &pod)?;
            let after = talk_in(&pod.netns)?;
            assert_eq!(ports(), of(&ours)?, "a socket of a pod that was let go is tracked");
            drop((before, theirs, ours, after));
            Ok(())
        });
    }
}
