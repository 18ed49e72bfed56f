//! What the plugin and the helper say to each other, and the tables both sides share.
//!
//! Both directions carry JSON lines: the plugin writes [`Request`]s to the helper's stdin, the helper writes
//! [`Message`]s to its stdout, `hello` first and `end` last. This crate knows no BPF and no Kubernetes.

pub mod accel;
pub mod advice;
pub mod bypass;
pub mod lab;
pub mod limits;
pub mod mechanism;
pub mod message;
pub mod packet;
pub mod pod;
pub mod request;
pub mod stage;
pub mod text;

pub use message::Message;
pub use request::Request;

/// Version of the protocol; both sides say theirs in the first line and refuse to guess when they differ.
pub const PROTOCOL_VERSION: u32 = 1;

/// The plugin sends a heartbeat this often, in milliseconds.
pub const HEARTBEAT_INTERVAL_MS: u64 = 2_000;

/// The helper ends by itself when nothing came from the plugin for this long, in milliseconds.
pub const HEARTBEAT_TIMEOUT_MS: u64 = 10_000;

/// The plugin gives a helper up when nothing came from it for this long, in milliseconds. A helper answers each heartbeat, unless it
/// is busy in the kernel: loading programs on a slow machine takes up to half a minute.
pub const SILENCE_TIMEOUT_MS: u64 = 45_000;
