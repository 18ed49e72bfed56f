//! Helper pods: what they are, how they start and are attached to, and how they are deleted.

mod admitted;
pub mod advice;
pub mod attach;
pub mod board;
pub mod garbage;
#[cfg(test)]
mod manifests_tests;
pub mod owner;
pub mod pod;
pub mod privilege;
pub mod start;
pub mod startup;
mod waiting;
mod yaml;
