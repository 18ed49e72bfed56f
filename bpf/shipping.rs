//! Which builds may have test switches: they corrupt connections, so nothing that ships may.

use std::path::Path;

/// The profile of a build by the `OUT_DIR` of a build script: `TARGET/[TRIPLE/]PROFILE/build/PACKAGE-HASH/out`.
fn profile(out: &Path) -> Option<&str> {
    out.ancestors().nth(3)?.file_name()?.to_str()
}

/// Why a build with test switches is refused, if it is. Only profiles that nothing is shipped from are let through.
pub fn refusal(out: &Path) -> Option<String> {
    let profile = profile(out).unwrap_or("unknown");
    let is_for_tests = matches!(profile, "debug" | "release");
    (!is_for_tests).then(|| {
        format!("the feature test-switches corrupts connections and is for tests: build profile {profile} without it, or tests with profile release")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ships_is_built_without_test_switches() {
        for fine in ["/t/release/build/sockpath-bpf-1/out", "/t/x86_64-unknown-linux-gnu/release/build/sockpath-bpf-1/out"] {
            assert_eq!(refusal(Path::new(fine)), None, "{fine}");
        }
        for refused in ["/t/dist/build/sockpath-bpf-1/out", "/release/t/x86_64-unknown-linux-gnu/dist/build/sockpath-bpf-1/out", "/out"] {
            assert!(refusal(Path::new(refused)).is_some_and(|why| why.contains("test-switches")), "{refused}");
        }
    }
}
