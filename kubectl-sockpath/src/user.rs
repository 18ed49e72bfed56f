//! Who runs the plugin, as other users see it.

use std::env;

/// `user@host`, without the host where that is not known.
#[must_use]
pub fn user_at_host() -> String {
    let users = [env::var("SUDO_USER"), env::var("USER"), env::var("LOGNAME"), env::var("USERNAME")];
    let user = users.into_iter().flatten().find(|user| !user.is_empty()).unwrap_or_else(|| "unknown".to_owned());
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    if host.is_empty() { user } else { format!("{user}@{host}") }
}
