//! The API server: kubeconfig and flags, requests and their errors, lists and watches.

pub mod client;
pub mod follow;
pub mod kubeconfig;
pub mod lean;
#[cfg(test)]
pub mod mock;
pub mod options;
pub mod problem;
pub mod rate_limit;
