//! Benchmarks: what acceleration gains and what tracing costs, as ratios of alternating runs.

pub mod accel;
pub mod cluster;
pub mod crowd;
pub mod environment;
pub mod lab;
pub mod many;
pub mod measure;
pub mod peer;
pub mod programs;
pub mod short;
pub mod stats;
pub mod suite;
pub mod table;
pub mod trace;
