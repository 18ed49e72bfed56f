//! How much memory a process took.

/// The most resident memory that there was, in KiB; `process` is a number or `self`. Absent where the process has ended.
pub fn peak_kib(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok())
}
