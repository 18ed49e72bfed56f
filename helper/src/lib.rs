//! The privileged half of sockpath. It finds pods on its node, loads BPF, runs one session and cleans up.
//!
//! It has no Kubernetes credentials, never runs a shell, and takes only typed requests from the plugin.

pub mod accel;
pub mod accelerate;
pub mod capability;
pub mod cli;
mod coded;
pub mod doctor;
mod lease;
mod memory;
pub mod node;
pub mod pins;
mod schedule;
pub mod seccomp;
pub mod serve;
pub mod session;
pub mod short;
pub mod site;
pub mod stderr;
pub mod switches;
pub mod trace;
