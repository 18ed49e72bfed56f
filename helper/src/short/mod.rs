//! The short path: packets of approved connections go from device to device, past the node's bridge, netfilter, routing and connection
//! tracking, with TCP left as it is.
//!
//! The programs (`bpf/src/short`) redirect packets of the flows in their maps; this side decides which those are. The stack approves a
//! connection first: connection tracking holds it as established and assured, and packets of both directions have come out of the stack since
//! the last change of rules, routes or devices. Whatever changes sends all connections back to the stack with one store (the epoch).

mod attach;
mod checksum;
mod connection;
mod connections;
mod devices;
mod eligible;
mod flow;
mod flow_map;
mod nodes;
mod outdated;
mod path;
pub mod pins;
mod pool;
mod programs;
mod report;
mod rules;
mod table;
mod timeouts;
mod worker;

pub use worker::{Standing, Worker};
