//! Letting pods of one node exchange bytes socket to socket.
//!
//! The programs (`bpf/src/accel`) watch the sockets of the chosen pods and carry the bytes; this side pairs sockets, orders
//! pairs into the sockmap and out of it, and renews the lease without which everything goes by TCP.

mod abandon;
mod attend;
mod burst;
mod bypassed;
mod calibrate;
mod calls;
mod canary;
mod chosen;
mod connections;
mod counting;
pub mod detached;
mod foreground;
mod holders;
mod instance;
mod kernel;
mod links;
mod matching;
mod mechanism;
mod meeting;
mod namespaces;
mod observation;
pub mod pins;
mod private;
mod programs;
mod relay;
mod report;
mod review;
mod shared;
mod stop;
mod suspension;
mod trial;

pub use abandon::Abandoned;
pub use calls::Observed;
pub use foreground::run;
pub use mechanism::Mechanisms;
pub use stop::{cleanup, status, stop};
pub use trial::try_out;
