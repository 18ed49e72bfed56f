//! Peers that put connections under every load we can think of, and the controller that runs them over the lab.

pub mod accelerator;
pub mod agent;
pub mod chaos;
pub mod client;
pub mod content;
pub mod controller;
pub mod conversation;
pub mod listener;
pub mod net;
pub mod outcome;
pub mod peers;
pub mod plan;
pub mod pods;
pub mod prng;
pub mod reader;
pub mod report;
pub mod server;
pub mod side;
pub mod sockmap;
pub mod tally;
pub mod tight;
pub mod uring;
pub mod watch;
pub mod writer;
