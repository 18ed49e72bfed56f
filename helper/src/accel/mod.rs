//! Letting pods of one node exchange bytes socket to socket.
//!
//! The programs (`bpf/src/accel`) watch the sockets of the chosen pods and carry the bytes; this side pairs sockets, orders
//! pairs into the sockmap and out of it, and renews the lease without which everything goes by TCP.

mod burst;
pub(crate) mod bypassed;
mod calibrate;
mod calls;
pub(crate) mod chosen;
mod connection;
mod counting;
mod decide;
pub(crate) mod event_loop;
mod holders;
mod insertion;
pub(crate) mod instance;
mod kernel;
mod links;
mod matching;
pub(crate) mod mechanism;
mod memory;
mod namespaces;
mod observation;
pub(crate) mod pairing;
mod private;
pub(crate) mod programs;
pub(crate) mod proven;
mod reinject;
pub(crate) mod report;
pub(crate) mod self_test;
pub(crate) mod start;
pub(crate) mod stop;
mod suspension;
pub(crate) mod tracked;
pub(crate) mod tracking;
mod trial;
mod upkeep;

pub use calls::Observed;
pub use mechanism::Mechanisms;
pub use trial::try_out;
