//! Who runs the plugin, as other users see it.

use std::env;
use std::fs;

/// `user@host`, without the host where that is not known.
#[must_use]
pub fn user_at_host() -> String {
    let user = first_of(&["SUDO_USER", "USER", "LOGNAME", "USERNAME"]).unwrap_or_else(|| "unknown".to_owned());
    let kernel = fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned());
    match kernel.filter(|name| !name.is_empty()).or_else(|| first_of(&["HOSTNAME", "COMPUTERNAME"])) {
        Some(host) => format!("{user}@{host}"),
        None => user,
    }
}

/// The first of these variables that is set and not empty.
fn first_of(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
}
