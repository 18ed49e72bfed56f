//! The helper's half of `trace` on the real kernel: requests on its stdin, packets on its stdout.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod ends;
mod load;
mod paths;
mod session;
