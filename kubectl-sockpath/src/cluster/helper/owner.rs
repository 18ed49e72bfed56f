//! Who started a helper pod, stored in its annotations, so that a later run can distinguish stale pods from running sessions.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::user::user_at_host;

const CLIENT: &str = "sockpath/client";
const PROCESS: &str = "sockpath/client-process";
const USER: &str = "sockpath/started-by";
const UNTIL: &str = "sockpath/detached-until";

/// The run of the plugin that starts helper pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Name of this run; a label of its pods.
    pub session: String,
    /// This machine since its last boot, as a hash, to keep the host's name private.
    pub client: String,
    /// Process id and start time of the plugin.
    pub process: String,
    /// `user@host`, for people.
    pub user: String,
}

impl Owner {
    /// This process.
    #[must_use]
    pub fn this_process() -> Self {
        Self {
            session: format!("{}{}", random_suffix(), random_suffix()),
            client: this_client(),
            process: process_identity(std::process::id()),
            user: user_at_host(),
        }
    }

    /// As annotations of a pod.
    #[must_use]
    pub fn annotations(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (CLIENT.to_owned(), self.client.clone()),
            (PROCESS.to_owned(), self.process.clone()),
            (USER.to_owned(), self.user.clone()),
        ])
    }

    /// Whether the annotations name a process of this machine that has ended. `false` where that cannot be known.
    #[must_use]
    pub fn has_ended(annotations: &BTreeMap<String, String>) -> bool {
        let (Some(client), Some(process)) = (annotations.get(CLIENT), annotations.get(PROCESS)) else { return false };
        let Some((pid, started)) = process.split_once('-').and_then(|(p, s)| Some((p.parse::<u32>().ok()?, s))) else { return false };
        // Without a start time (no procfs) a process id alone proves nothing: it may have been given out again.
        *client == this_client() && !started.is_empty() && process_identity(pid) != *process
    }

    /// Who started it, for people.
    #[must_use]
    pub fn user_of(annotations: &BTreeMap<String, String>) -> Option<&str> {
        annotations.get(USER).map(String::as_str)
    }
}

/// Says that a helper goes on for this long after its plugin has ended.
#[must_use]
pub fn until(lease: Duration) -> BTreeMap<String, String> {
    let seconds = i64::try_from(lease.as_secs()).unwrap_or(i64::MAX);
    let end = Timestamp::from_second(Timestamp::now().as_second().saturating_add(seconds)).unwrap_or(Timestamp::MAX);
    BTreeMap::from([(UNTIL.to_owned(), end.to_string())])
}

/// Whether a helper was started to go on after its plugin has ended.
#[must_use]
pub fn stays(annotations: &BTreeMap<String, String>) -> bool {
    annotations.contains_key(UNTIL)
}

/// The PID namespace is part of it: in a container the same ids mean other processes.
fn this_client() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").map(|l| l.to_string_lossy().into_owned()).unwrap_or_default();
    // No boot id (not Linux): nothing can be said about other runs, so every run is a client of its own.
    let boot = if boot.is_empty() { random_suffix() } else { boot };
    let mut hasher = DefaultHasher::new();
    (boot, namespace).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// `PID-STARTTIME`; the start time (field 22 of `/proc/PID/stat`, counted after the bracketed name) tells two processes of one id apart.
fn process_identity(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let started = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)).unwrap_or_default();
    format!("{pid}-{started}")
}

/// Five letters and digits, as the API server's own `generateName` makes them: without vowels, so without words.
#[must_use]
pub fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    // The standard library seeds each RandomState differently from the system's random source.
    let mut bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let mut suffix = String::with_capacity(5);
    for _ in 0..5 {
        suffix.push(char::from(ALPHABET[(bits % ALPHABET.len() as u64) as usize]));
        bits /= ALPHABET.len() as u64;
    }
    suffix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_ended_process_of_this_machine_counts_as_ended() {
        let me = Owner::this_process();
        assert!(!Owner::has_ended(&me.annotations()), "this test is running");
        let with = |client: &str, process: &str| Owner { client: client.into(), process: process.into(), ..me.clone() }.annotations();
        assert!(Owner::has_ended(&with(&me.client, "4194999-123")), "no such process");
        assert!(Owner::has_ended(&with(&me.client, &format!("{}-1", std::process::id()))), "the id was given out again");
        assert!(!Owner::has_ended(&with("elsewhere", "4194999-123")), "another machine's processes are unknown here");
        assert!(!Owner::has_ended(&with(&me.client, "nonsense")));
        assert!(!Owner::has_ended(&with(&me.client, "4194999-")), "nothing is known without a start time");
        assert!(!Owner::has_ended(&BTreeMap::new()));
    }
}
