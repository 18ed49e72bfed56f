//! BPF programs that were there before ours, by name.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};
use libbpf_rs::ProgramType;
use libbpf_rs::libbpf_sys as sys;
use libbpf_rs::query::ProgInfoIter;

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
        let file = File::open(dir).with_context(|| format!("cannot open the cgroup {}", dir.display()))?;
        let mut found = Vec::new();
        for (kind, what) in
            [(sys::BPF_CGROUP_INET_INGRESS, "ingress"), (sys::BPF_CGROUP_INET_EGRESS, "egress"), (sys::BPF_CGROUP_SOCK_OPS, "sock_ops")]
        {
            let ids = attached(file.as_raw_fd(), kind, sys::BPF_F_QUERY_EFFECTIVE).with_context(|| format!("{what} programs"))?;
            found.extend(ids.into_iter().map(|id| format!("{what} program {}", self.name(id))));
        }
        Ok(found)
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
