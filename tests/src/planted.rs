//! BPF programs of another owner, for tests of what sockpath reports about them: each returns one number and does nothing else.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use libbpf_rs::libbpf_sys as sys;

/// `BPF_ALU64 | BPF_MOV | BPF_K`: a number into r0, which is what a program answers.
const ANSWER: u8 = 0xb7;

/// `BPF_JMP | BPF_EXIT`.
const EXIT: u8 = 0x95;

/// `XDP_FLAGS_SKB_MODE`, which every device has.
const GENERIC: u32 = 1 << 1;

/// A program that is loaded, and in the kernel for as long as this lives or it hangs somewhere.
#[derive(Debug)]
pub struct Planted(OwnedFd);

/// Keeps a program where it was attached.
#[derive(Debug)]
pub struct Attached {
    _end: OwnedFd,
}

impl Planted {
    /// Loads a program of a type (`BPF_PROG_TYPE_*`) that always answers `answer`.
    ///
    /// # Panics
    /// When the kernel refuses it.
    #[must_use]
    pub fn load(kind: sys::bpf_prog_type, name: &str, answer: i32) -> Self {
        Self::load_for(kind, name, answer, 0)
    }

    /// As [`Planted::load`], for one attachment point (`BPF_CGROUP_*`), which programs at calls of sockets need.
    ///
    /// # Panics
    /// When the kernel refuses it.
    #[must_use]
    pub fn load_for(kind: sys::bpf_prog_type, name: &str, answer: i32, place: sys::bpf_attach_type) -> Self {
        let name = CString::new(name).expect("a name");
        let code = [(ANSWER, answer), (EXIT, 0)].map(|(code, imm)| sys::bpf_insn { code, imm, ..Default::default() });
        let mut opts =
            sys::bpf_prog_load_opts { sz: size_of::<sys::bpf_prog_load_opts>() as u64, expected_attach_type: place, ..Default::default() };
        // SAFETY: name, licence, the two instructions and the options live until the call returns; the options carry their size.
        let fd = unsafe { sys::bpf_prog_load(kind, name.as_ptr(), c"GPL".as_ptr(), code.as_ptr(), code.len() as u64, &raw mut opts) };
        Self(owned("load a program", fd))
    }

    /// Hangs it into tc at a device of this thread's network namespace that has a clsact discipline, at egress. It stays
    /// there.
    ///
    /// # Panics
    /// When the kernel refuses it.
    pub fn at_tc_egress(&self, device: &str) {
        let (hook_size, opts_size) = (size_of::<sys::bpf_tc_hook>() as u64, size_of::<sys::bpf_tc_opts>() as u64);
        let hook = sys::bpf_tc_hook { sz: hook_size, ifindex: index(device), attach_point: sys::BPF_TC_EGRESS, ..Default::default() };
        let mut opts = sys::bpf_tc_opts { sz: opts_size, prog_fd: self.0.as_raw_fd(), ..Default::default() };
        // SAFETY: both structs live until the call returns and carry their sizes.
        let outcome = unsafe { sys::bpf_tc_attach(&raw const hook, &raw mut opts) };
        assert!(outcome == 0, "cannot attach to tc: {}", io::Error::from_raw_os_error(-outcome));
    }

    /// Hangs it into XDP at a device of this thread's network namespace, where it stays.
    ///
    /// # Panics
    /// When the kernel refuses it.
    pub fn at_xdp(&self, device: &str) {
        // SAFETY: it takes numbers only; there are no options.
        let outcome = unsafe { sys::bpf_xdp_attach(index(device), self.0.as_raw_fd(), GENERIC, std::ptr::null()) };
        assert!(outcome == 0, "cannot attach to XDP: {}", io::Error::from_raw_os_error(-outcome));
    }

    /// Hangs it into tcx at a device of this thread's network namespace, at ingress (Linux 6.6 or later).
    ///
    /// # Panics
    /// When the kernel refuses it.
    #[must_use]
    pub fn at_tcx_ingress(&self, device: &str) -> Attached {
        self.link(index(device), sys::BPF_TCX_INGRESS)
    }

    /// Hangs it at what a control group sends.
    ///
    /// # Panics
    /// When the kernel refuses it.
    #[must_use]
    pub fn at_cgroup_egress(&self, dir: &Path) -> Attached {
        let dir = File::open(dir).expect("a control group");
        self.link(dir.as_raw_fd(), sys::BPF_CGROUP_INET_EGRESS)
    }

    /// Attaches it to a control group, where it was loaded for (`BPF_CGROUP_*`).
    ///
    /// # Panics
    /// When the kernel refuses it.
    #[must_use]
    pub fn at_cgroup(&self, dir: &Path, place: sys::bpf_attach_type) -> Attached {
        let dir = File::open(dir).expect("a control group");
        self.link(dir.as_raw_fd(), place)
    }

    /// Makes it the verdict on messages of a sockmap of its own.
    ///
    /// # Panics
    /// When the kernel refuses it.
    #[must_use]
    pub fn at_a_sockmap(&self) -> Attached {
        // SAFETY: the name lives until the call returns; there are no options.
        let map = unsafe { sys::bpf_map_create(sys::BPF_MAP_TYPE_SOCKMAP, c"planted".as_ptr(), 4, 4, 1, std::ptr::null()) };
        let map = owned("make a sockmap", map);
        // SAFETY: it takes numbers only.
        let outcome = unsafe { sys::bpf_prog_attach(self.0.as_raw_fd(), map.as_raw_fd(), sys::BPF_SK_MSG_VERDICT, 0) };
        assert!(outcome == 0, "cannot attach to a sockmap: {}", io::Error::from_raw_os_error(-outcome));
        Attached { _end: map }
    }

    fn link(&self, target: i32, place: sys::bpf_attach_type) -> Attached {
        // SAFETY: it takes numbers only; there are no options.
        let fd = unsafe { sys::bpf_link_create(self.0.as_raw_fd(), target, place, std::ptr::null()) };
        Attached { _end: owned("attach a program", fd) }
    }
}

/// How many programs are attached by tcx to a device of this thread's network namespace, at ingress; `None` before Linux 6.6, which has no
/// such links.
///
/// # Panics
/// When the device does not exist, or the kernel does not report it.
#[must_use]
pub fn tcx_ingress_programs(device: &str) -> Option<usize> {
    let (mut ids, mut flags) = ([0_u32; 64], 0);
    let mut count = u32::try_from(ids.len()).expect("a small number");
    // SAFETY: the kernel writes to flags, count and at most `count` ids, which live until the call returns.
    let outcome = unsafe { sys::bpf_prog_query(index(device), sys::BPF_TCX_INGRESS, 0, &raw mut flags, ids.as_mut_ptr(), &raw mut count) };
    assert!([0, -libc::EINVAL].contains(&outcome), "cannot query the programs of {device}: {}", io::Error::from_raw_os_error(-outcome));
    (outcome == 0).then_some(count as usize)
}

fn owned(what: &str, fd: i32) -> OwnedFd {
    assert!(fd >= 0, "cannot {what}: {}", io::Error::from_raw_os_error(-fd));
    // SAFETY: the kernel has just given this descriptor, and no other object owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn index(device: &str) -> i32 {
    let index = nix::net::if_::if_nametoindex(device).unwrap_or_else(|e| panic!("device {device}: {e}"));
    i32::try_from(index).expect("an index")
}
