//! BPF programs that were there before ours, by name.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};
use libbpf_rs::btf::{Btf, BtfType};
use libbpf_rs::libbpf_sys as sys;
use libbpf_rs::query::{LinkInfo, LinkInfoIter, LinkTypeInfo, ProgInfoIter};
use libbpf_rs::{ProgramAttachType, ProgramType};

/// Programs that can hang at one place.
const MOST: usize = 64;

/// The programs that are loaded, by id.
#[derive(Debug, Default)]
pub struct Programs(HashMap<u32, (String, ProgramType)>);

impl Programs {
    /// Asks the kernel for all; that needs CAP_SYS_ADMIN.
    pub fn loaded() -> Result<Self> {
        Ok(Self(ProgInfoIter::default().map(|p| (p.id, (p.name.to_string_lossy().into_owned(), p.ty))).collect()))
    }

    /// A program by its id: its name, where it has one.
    pub fn name(&self, id: u32) -> String {
        match self.0.get(&id).map(|(name, _)| name.as_str()) {
            Some(name) if !name.is_empty() => format!("{name} (id {id})"),
            _ => format!("id {id}"),
        }
    }

    /// Programs that see what a control group sends and receives, or its TCP events: its own and those of the groups above it.
    pub fn of_cgroup(&self, dir: &Path) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (kind, what) in
            [(sys::BPF_CGROUP_INET_INGRESS, "ingress"), (sys::BPF_CGROUP_INET_EGRESS, "egress"), (sys::BPF_CGROUP_SOCK_OPS, "sock_ops")]
        {
            let programs = self.in_effect(dir, kind).with_context(|| format!("{what} programs"))?;
            found.extend(programs.into_iter().map(|name| format!("{what} program {name}")));
        }
        Ok(found)
    }

    /// Programs of one kind (`BPF_CGROUP_*`) that are run for a control group, its own and those of the groups above it, by name and id.
    pub fn in_effect(&self, dir: &Path, kind: u32) -> Result<Vec<String>> {
        let file = File::open(dir).with_context(|| format!("cannot open the cgroup {}", dir.display()))?;
        let ids = attached(file.as_raw_fd(), kind, sys::BPF_F_QUERY_EFFECTIVE)?;
        Ok(ids.into_iter().map(|id| self.name(id)).collect())
    }

    /// Programs of BPF LSM at a hook (`socket_connect`): they may refuse it to any process.
    pub fn of_lsm(&self, hook: &str) -> Vec<String> {
        let Ok(btf) = Btf::from_vmlinux() else { return Vec::new() };
        let function = format!("bpf_lsm_{hook}");
        let is_at_hook = |link: &LinkInfo| match &link.info {
            LinkTypeInfo::Tracing(at) if matches!(at.attach_type, ProgramAttachType::LsmMac) => {
                let target: Option<BtfType<'_>> = btf.type_by_id(at.target_btf_id.into());
                target.and_then(|t| t.name()).is_some_and(|name| name == function.as_str())
            }
            _ => false,
        };
        LinkInfoIter::default().filter(is_at_hook).map(|link| self.name(link.prog_id)).collect()
    }

    /// Programs of sockmaps: their owner may own sockets of the pods.
    pub fn of_sockmaps(&self) -> Vec<String> {
        let word = |kind: ProgramType| match kind {
            ProgramType::SkMsg => Some("sk_msg"),
            ProgramType::SkSkb => Some("sk_skb"),
            _ => None,
        };
        self.0.iter().filter_map(|(id, (_, kind))| Some(format!("{} program {}", word(*kind)?, self.name(*id)))).collect()
    }
}

/// Ids of the programs at an attachment point: of a cgroup by its descriptor, of a device by its index.
pub fn attached(target: i32, kind: u32, flags: u32) -> Result<Vec<u32>> {
    let mut ids = [0; MOST];
    let mut count = u32::try_from(MOST)?;
    // SAFETY: `ids` has room for `count` ids, and neither outlives the call; no flags are set.
    let r = unsafe { sys::bpf_prog_query(target, kind, flags, std::ptr::null_mut(), ids.as_mut_ptr(), &raw mut count) };
    if r < 0 {
        return Err(std::io::Error::from_raw_os_error(-r).into());
    }
    Ok(ids.into_iter().take(count as usize).collect())
}
