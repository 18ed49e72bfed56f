//! Switches for tests. They are compiled in by the feature `test-switches` only, which builds of what ships refuse (bpf/build.rs).
//!
//! A program that has them says so in its version and in `hello`.

/// Whether the switches are compiled in.
pub const COMPILED_IN: bool = cfg!(feature = "test-switches");

/// What `--version` shows.
#[cfg(not(feature = "test-switches"))]
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What `--version` shows.
#[cfg(feature = "test-switches")]
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " with test switches, which corrupt connections: for tests only");

/// Whether the programs redirect without the order gate, which corrupts connections: the torture suite shows by it that it notices.
#[must_use]
pub fn without_order_gate() -> bool {
    #[cfg(feature = "test-switches")]
    return std::env::var_os("SOCKPATH_TEST_NO_ORDER_GATE").is_some_and(|v| v == "1");
    #[cfg(not(feature = "test-switches"))]
    false
}

/// The only kind of hook at functions of the kernel that may be used: `fentry`, `kprobe` or `none`. Without it the kernel decides.
#[must_use]
pub fn functions() -> Option<String> {
    #[cfg(feature = "test-switches")]
    return std::env::var("SOCKPATH_TEST_FUNCTIONS").ok().filter(|kind| !kind.is_empty());
    #[cfg(not(feature = "test-switches"))]
    None
}

/// Whether a mechanism of the kernel is to be taken for absent: `sockmap`, `short` (programs of the short path) or `tcx`, in a list with commas.
#[must_use]
pub fn is_absent(mechanism: &str) -> bool {
    #[cfg(feature = "test-switches")]
    return std::env::var("SOCKPATH_TEST_WITHOUT").is_ok_and(|list| list.split(',').any(|absent| absent == mechanism));
    #[cfg(not(feature = "test-switches"))]
    {
        let _ = mechanism;
        false
    }
}
