//! From a report to what people and scripts read: pure functions.

mod axis;
pub mod bypassed;
pub mod heading;
pub mod html;
pub mod json;
mod line;
pub mod pairs;
pub mod pcapng;
pub mod waterfall;
pub mod wide;
