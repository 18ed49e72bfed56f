//! Asking a namespace for its tables of iptables-legacy
//! (include/uapi/linux/netfilter_ipv4/ip_tables.h and netfilter_ipv6/ip6_tables.h).

use std::fs;
use std::io;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::decode::legacy::{LegacyFamily, Table as LegacyTable};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, and the same of IPv6.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;

/// Of `struct ipt_get_entries`, before the entries.
const ENTRIES: usize = 40;
const NAME: usize = 32;

/// `struct xt_entry_target`, after which a standard target has its verdict.
const TARGET: usize = 32;

/// The verdict of a policy that drops: `-NF_DROP - 1`.
const DROPS: i32 = -1;

/// One of the two families.
struct Family {
    name: &'static str,
    tables: &'static str,
    kind: LegacyFamily,
    socket: AddressFamily,
    level: libc::c_int,
    /// Of `target_offset` in an entry, after its addresses, devices and `nfcache`.
    target_offset: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "iptables-legacy",
        tables: "/proc/thread-self/net/ip_tables_names",
        kind: LegacyFamily::V4,
        socket: AddressFamily::Inet,
        level: libc::SOL_IP,
        target_offset: 88,
    },
    Family {
        name: "ip6tables-legacy",
        tables: "/proc/thread-self/net/ip6_tables_names",
        kind: LegacyFamily::V6,
        socket: AddressFamily::Inet6,
        level: libc::SOL_IPV6,
        target_offset: 140,
    },
];

/// `struct ipt_getinfo`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Info {
    name: [u8; NAME],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    num_entries: u32,
    size: u32,
}

/// Takes a table: its family, name and entries.
type Take<'a> = &'a mut dyn FnMut(&Family, &str, &Info, &[u8]);

/// The tables of the namespace this thread is in that are not as empty as they begin, in words (`3 entries in filter of
/// iptables-legacy`).
///
/// # Errors
/// When the kernel refuses: it takes CAP_NET_ADMIN in the namespace.
pub fn summaries() -> Result<Vec<String>> {
    let mut found = Vec::new();
    each(&mut |family, table, info, entries| found.extend(describe(family, table, info, entries)))?;
    Ok(found)
}

/// The tables of the namespace this thread is in.
///
/// # Errors
/// When the kernel refuses.
pub fn read_tables(take: &mut dyn FnMut(&LegacyTable<'_>)) -> Result<()> {
    each(&mut |family, name, info, entries| {
        take(&LegacyTable {
            family: family.kind,
            name,
            hooks: info.valid_hooks,
            begins: info.hook_entry,
            policies: info.underflow,
            entries,
        });
    })
}

fn each(take: Take<'_>) -> Result<()> {
    for family in &FAMILIES {
        let names = match fs::read_to_string(family.tables) {
            Ok(names) => names,
            // A kernel without it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", family.tables)),
        };
        for table in names.split_whitespace() {
            let (info, entries) = read(family, table).with_context(|| format!("cannot read table {table} of {}", family.name))?;
            take(family, table, &info, &entries);
        }
    }
    Ok(())
}

/// What a table has beyond its built-in chains that accept.
fn describe(family: &Family, table: &str, info: &Info, entries: &[u8]) -> Option<String> {
    // Each built-in chain ends in its policy, the table in an error; a chain of a user's has two entries of its own.
    let own = info.valid_hooks.count_ones() + 1;
    let added = info.num_entries.saturating_sub(own);
    let drops = (0..info.underflow.len())
        .any(|hook| info.valid_hooks & (1 << hook) != 0 && policy(family, info.underflow[hook], entries) == Some(DROPS));
    let mut parts = Vec::new();
    if added > 0 {
        parts.push(format!("{added} {}", if added == 1 { "entry" } else { "entries" }));
    }
    if drops {
        parts.push("a policy that drops".to_owned());
    }
    (!parts.is_empty()).then(|| format!("{} in {table} of {}", parts.join(" and "), family.name))
}

/// The verdict of the standard target of the entry at this offset.
fn policy(family: &Family, at: u32, entries: &[u8]) -> Option<i32> {
    let entry = entries.get(usize::try_from(at).ok()?..)?;
    let target = entry.get(family.target_offset..family.target_offset + 2)?.try_into().ok().map(u16::from_ne_bytes)?;
    let verdict = entry.get(usize::from(target) + TARGET..)?.get(..4)?;
    verdict.try_into().ok().map(i32::from_ne_bytes)
}

fn read(family: &Family, table: &str) -> Result<(Info, Vec<u8>)> {
    let socket = socket(family.socket, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context("cannot open a socket")?;
    let mut name = [0; NAME];
    for (to, from) in name.iter_mut().take(NAME - 1).zip(table.bytes()) {
        *to = from;
    }
    let mut info = [0; size_of::<Info>()];
    info[..NAME].copy_from_slice(&name);
    ask(&socket, family, GET_INFO, &mut info)?;
    // SAFETY: of the struct's size, and any bit pattern is an `Info` (integers only).
    let info: Info = unsafe { info.as_ptr().cast::<Info>().read_unaligned() };
    let mut entries = vec![0; ENTRIES + usize::try_from(info.size)?];
    entries[..NAME].copy_from_slice(&name);
    entries[NAME..NAME + 4].copy_from_slice(&info.size.to_ne_bytes());
    ask(&socket, family, GET_ENTRIES, &mut entries)?;
    Ok((info, entries.split_off(ENTRIES)))
}

/// getsockopt(2) with a buffer whose beginning names the request. EAGAIN means that the table has changed in between: a failure
/// like any other.
fn ask(socket: &impl std::os::fd::AsRawFd, family: &Family, option: libc::c_int, buffer: &mut [u8]) -> Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len())?;
    // SAFETY: the buffer is as long as `length` says, and both outlive the call.
    let r = unsafe { libc::getsockopt(socket.as_raw_fd(), family.level, option, buffer.as_mut_ptr().cast(), &raw mut length) };
    if r < 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with INPUT, FORWARD and OUTPUT as the kernel gives it, its policies in this order.
    fn table(policies: [i32; 3], more: u32) -> (Info, Vec<u8>) {
        /// `struct ipt_entry` and a standard target.
        const ENTRY: usize = 112 + 40;
        let mut entries = Vec::new();
        for policy in policies {
            let mut entry = vec![0; ENTRY];
            entry[88..90].copy_from_slice(&112u16.to_ne_bytes());
            entry[112 + TARGET..112 + TARGET + 4].copy_from_slice(&policy.to_ne_bytes());
            entries.extend(entry);
        }
        let at = [0, 0, 152, 304, 0];
        let info = Info { name: [0; NAME], valid_hooks: 0b1110, hook_entry: at, underflow: at, num_entries: 4 + more, size: 456 };
        (info, entries)
    }

    #[test]
    fn a_table_with_rules_is_reported() {
        const ACCEPTS: i32 = -2;
        let text = |policies, more| {
            let (info, entries) = table(policies, more);
            describe(&FAMILIES[0], "filter", &info, &entries)
        };
        assert_eq!(text([ACCEPTS; 3], 0), None);
        assert_eq!(text([ACCEPTS; 3], 1).as_deref(), Some("1 entry in filter of iptables-legacy"));
        assert_eq!(text([ACCEPTS, DROPS, ACCEPTS], 0).as_deref(), Some("a policy that drops in filter of iptables-legacy"));
        assert_eq!(text([DROPS; 3], 2).as_deref(), Some("2 entries and a policy that drops in filter of iptables-legacy"));
        // Cut short, nothing is read beyond the end.
        let (info, entries) = table([DROPS; 3], 0);
        assert_eq!(describe(&FAMILIES[0], "filter", &info, &entries[..10]), None);
    }
}
