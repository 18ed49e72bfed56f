//! Why a session with a helper failed.

use std::time::Duration;

use sockpath_protocol::{HEARTBEAT_TIMEOUT_MS, PROTOCOL_VERSION};

use super::transport::Aftermath;

/// This plugin's release.
pub(super) const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Seconds after which a helper ends that receives nothing.
const PATIENCE: u64 = HEARTBEAT_TIMEOUT_MS / 1000;

/// Why a session with a helper failed, for callers that decide on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionError {
    /// No helper could be started: the node takes no part.
    Absent {
        /// Why, and what to do.
        detail: String,
    },
    /// It was over before the helper had said hello.
    NoHello {
        /// What is known.
        detail: String,
    },
    /// It runs, but says nothing.
    Mute {
        /// What is known.
        detail: String,
    },
    /// It has said hello, and then nothing for a long time.
    Silent {
        /// For how long.
        patience: Duration,
        /// What is known.
        detail: String,
    },
    /// The helper speaks another version of the protocol.
    Version {
        /// Version of its protocol.
        protocol: u32,
        /// Its release.
        release: String,
    },
    /// It went away without saying `end`.
    CutOff {
        /// What is known.
        detail: String,
    },
    /// The connection to it broke and was not restored while it waited.
    Disconnected {
        /// How long there was none.
        after: Duration,
        /// Because this process stood still.
        suspended: bool,
        /// What is known.
        detail: String,
    },
    /// It received a signal, and not from this plugin.
    Terminated {
        /// Why.
        detail: String,
    },
    /// It received nothing from this plugin and ended.
    Abandoned {
        /// How long this process stood still, if it did.
        suspended: Option<Duration>,
    },
    /// It sent something that is not a message.
    Garbled {
        /// What was wrong with it.
        detail: String,
    },
}

impl std::fmt::Display for SessionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let with = |f: &mut std::fmt::Formatter<'_>, text: &str, detail: &str| {
            if detail.is_empty() { f.write_str(text) } else { write!(f, "{text}: {detail}") }
        };
        match self {
            Self::Absent { detail } => f.write_str(detail),
            Self::NoHello { detail } => {
                with(f, "it did not start", detail)?;
                f.write_str("\ncheck --helper-image (in the lab SOCKPATH_LAB_PROGRAM); kubectl sockpath doctor checks the requirements")
            }
            Self::Mute { detail } => {
                with(f, "it runs, but does not send its first message", detail)?;
                f.write_str("\nis it a sockpath helper? check --helper-image (in the lab SOCKPATH_LAB_PROGRAM)")
            }
            Self::Silent { patience, detail } => {
                with(f, &format!("no message from it for {} s", patience.as_secs()), detail)?;
                f.write_str("\nits node or kubelet may be unreachable, or it hangs; kubectl sockpath doctor checks the node")
            }
            Self::Version { protocol, release } => write!(
                f,
                "it is release {release} with protocol {protocol}, this plugin is release {RELEASE} with protocol {PROTOCOL_VERSION}\n\
                 use a helper of release {RELEASE} (--helper-image; in the lab SOCKPATH_LAB_PROGRAM) or the plugin of release {release}"
            ),
            Self::CutOff { detail } => with(f, "it ended early, its last observations are missing", detail),
            Self::Disconnected { after, suspended: true, detail } => with(f, &stood_still(*after), detail),
            Self::Disconnected { after, suspended: false, detail } => with(
                f,
                &format!("the connection to it was lost for {} s, and it ends without one after {PATIENCE} s", after.as_secs()),
                detail,
            ),
            Self::Terminated { detail } => with(f, "it was terminated", detail),
            Self::Abandoned { suspended: Some(slept) } => f.write_str(&stood_still(*slept)),
            Self::Abandoned { suspended: None } => {
                write!(f, "it received nothing from this plugin for {PATIENCE} s and ended: the connection between them was interrupted")
            }
            Self::Garbled { detail } => {
                with(f, "it sent a message that this plugin does not understand (are both of the same release?)", detail)
            }
        }
    }
}

fn stood_still(slept: Duration) -> String {
    format!("this machine or the plugin was suspended for {} s, and it ends when it receives nothing for {PATIENCE} s", slept.as_secs())
}

impl std::error::Error for SessionError {}

impl SessionError {
    /// The failure as a sentence about the helper on `name`.
    #[must_use]
    pub fn on(&self, name: &str) -> String {
        match self {
            // Most say on which node it was.
            Self::Absent { detail } if detail.lines().next().is_some_and(|line| line.contains(name)) => detail.clone(),
            Self::Absent { detail } => format!("node {name} was skipped: {detail}"),
            other => format!("the helper on {name}: {other}"),
        }
    }

    /// The same with what was found out afterwards.
    #[must_use]
    pub(super) fn with(self, aftermath: &Aftermath) -> Self {
        match self {
            Self::CutOff { detail } => Self::CutOff { detail: join(&detail, aftermath) },
            Self::Terminated { .. } => Self::Terminated { detail: aftermath.cause.clone() },
            Self::NoHello { detail } => Self::NoHello { detail: join(&detail, aftermath) },
            Self::Silent { patience, detail } => Self::Silent { patience, detail: join(&detail, aftermath) },
            // It ran until we ended it; its exit status is not the cause.
            Self::Mute { detail } => {
                Self::Mute { detail: join(&detail, &Aftermath { cause: String::new(), stderr: aftermath.stderr.clone() }) }
            }
            other => other,
        }
    }
}

/// A detail, what is known about the end, and the last lines, as far as there are any.
pub(super) fn join(detail: &str, aftermath: &Aftermath) -> String {
    let stderr = aftermath.stderr.trim().trim_start_matches("error: ").replace('\n', "; ");
    [detail, &aftermath.cause, &stderr].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(": ")
}
