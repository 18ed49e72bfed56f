//! What a trace costs: run time of the programs as the kernel counts it, and the helper's own use.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use libbpf_rs::libbpf_sys;
use nix::sys::resource::{UsageWho, getrusage};
use sockpath_protocol::message::RunTime;

/// Runs a second from which on counting itself would be felt.
const BUSY: u64 = 20_000;
/// When busy, every so many looks are counted.
const SHARE: u32 = 50;

/// Counts what the programs cost. The kernel then reads the clock twice for every run of every program, so it counts all
/// the time only while there is little to count, and a fiftieth of the time when the programs run often.
#[derive(Debug)]
pub struct Meter {
    programs: Vec<(String, OwnedFd)>,
    counting: Option<OwnedFd>,
    since: Instant,
    counted: Duration,
    runs: u64,
    runs_per_second: u64,
    looks: u32,
    start: Instant,
}

impl Meter {
    /// Starts to count. A kernel that refuses (no BPF_ENABLE_STATS before 5.8) leaves all times 0.
    #[must_use]
    pub fn start(programs: Vec<(String, OwnedFd)>) -> Self {
        let now = Instant::now();
        Self {
            programs,
            counting: enable_stats().ok(),
            since: now,
            counted: Duration::ZERO,
            runs: 0,
            runs_per_second: 0,
            looks: 0,
            start: now,
        }
    }

    /// To be called about fifty times a second: decides whether the time until the next look is counted.
    pub fn look(&mut self) {
        self.looks += 1;
        let Some(counting) = self.counting.take() else {
            if self.looks.is_multiple_of(SHARE) {
                self.since = Instant::now();
                self.counting = enable_stats().ok();
            }
            return;
        };
        let counted = self.since.elapsed();
        self.counted += counted;
        self.since = Instant::now();
        let runs: u64 = self.programs.iter().filter_map(|(_, fd)| program_info(fd)).map(|i| i.runs).sum();
        let rate = (runs - self.runs.min(runs)).saturating_mul(1000) / u64::try_from(counted.as_millis().max(1)).unwrap_or(1);
        self.runs = runs;
        self.runs_per_second = rate;
        if rate < BUSY {
            self.counting = Some(counting);
        }
    }

    /// Runs of all programs in a second, when they were counted last.
    #[must_use]
    pub fn runs_per_second(&self) -> u64 {
        self.runs_per_second
    }

    /// Run time by hook, extrapolated from the share of the time that was counted, and how often a program could not run
    /// because it was running already.
    #[must_use]
    pub fn read(&self) -> (BTreeMap<String, RunTime>, u64) {
        let (mut times, misses) = run_times(&self.programs);
        let counted = self.counted + if self.counting.is_some() { self.since.elapsed() } else { Duration::ZERO };
        let (all, counted) = (self.start.elapsed().as_micros(), counted.as_micros());
        if counted > 0 && counted < all {
            let scale = |n: u64| u64::try_from(u128::from(n) * all / counted).unwrap_or(u64::MAX);
            for t in times.values_mut() {
                *t = RunTime { runs: scale(t.runs), ns: scale(t.ns) };
            }
        }
        (times, misses)
    }
}

fn enable_stats() -> io::Result<OwnedFd> {
    // SAFETY: the call takes an integer and gives a descriptor or an error.
    let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel knows about a program's runs.
#[derive(Debug, Clone, Copy, Default)]
struct ProgramInfo {
    runs: u64,
    ns: u64,
    recursion_misses: u64,
}

fn run_times(programs: &[(String, OwnedFd)]) -> (BTreeMap<String, RunTime>, u64) {
    let mut times: BTreeMap<String, RunTime> = BTreeMap::new();
    let mut misses = 0;
    for (hook, fd) in programs {
        let info = program_info(fd).unwrap_or_default();
        let time = times.entry(hook.clone()).or_default();
        time.runs += info.runs;
        time.ns += info.ns;
        misses += info.recursion_misses;
    }
    (times, misses)
}

fn program_info(fd: &OwnedFd) -> Option<ProgramInfo> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut len = u32::try_from(size_of::<libbpf_sys::bpf_prog_info>()).ok()?;
    // SAFETY: info is writable for len bytes; with all pointers in it 0 the kernel writes nowhere else.
    let r = unsafe { libbpf_sys::bpf_obj_get_info_by_fd(fd.as_raw_fd(), (&raw mut info).cast(), &raw mut len) };
    (r == 0).then_some(ProgramInfo { runs: info.run_cnt, ns: info.run_time_ns, recursion_misses: info.recursion_misses })
}

/// CPU time of this process, in nanoseconds.
#[must_use]
pub fn cpu_ns() -> u64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return 0 };
    let ns = |t: nix::sys::time::TimeVal| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_usec()).unwrap_or(0) * 1000
    };
    ns(usage.user_time()) + ns(usage.system_time())
}

/// Resident memory of this process, in bytes.
#[must_use]
pub fn rss_bytes() -> u64 {
    let Ok(text) = fs::read_to_string("/proc/self/statm") else { return 0 };
    let pages: u64 = text.split_ascii_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    // SAFETY: sysconf(3) takes an integer and writes to no memory of this process.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages * u64::try_from(page).unwrap_or(4096)
}
