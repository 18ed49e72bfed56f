//! Accelerations: which of the two paths connections take, from the start to the end.
//!
//! The short path (`short`) and the socket path (`accel`) know nothing of each other. What owns both is here: one claim of the node, one
//! lease, one table of connections, one end.

pub mod detached;
mod driver;
mod ending;
mod engines;
mod existing;
mod foreground;
mod merge;
mod released;

pub use ending::{cleanup, status, stop};
pub use foreground::run;
pub use released::Released;
