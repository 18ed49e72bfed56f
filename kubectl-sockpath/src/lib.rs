//! `kubectl sockpath`: trace every kernel stage between two pods, then bypass the ones you don't need.
//!
//! The plugin reads arguments, resolves names, starts helpers and renders what they report. It needs no privilege and
//! knows no BPF. `--lab` runs it on this machine without a cluster.

pub mod backend;
pub mod cli;
pub mod cluster;
pub mod command;
pub mod duration;
pub mod exit;
pub mod interrupt;
pub mod inventory;
pub mod invocation;
pub mod lab;
pub mod mode;
pub mod output;
pub mod platform;
pub mod progress;
pub mod recording;
pub mod render;
pub mod report;
pub mod session;
pub mod target;
pub mod terminal;
pub mod user;
