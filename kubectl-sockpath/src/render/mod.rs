//! From a report to what people and scripts read: pure functions.

mod axis;
pub mod bypassed;
mod columns;
mod connection;
pub mod diff;
pub mod heading;
pub mod html;
mod line;
mod page;
pub mod pairs;
pub mod pcapng;
pub mod perfetto;
pub mod picture;
pub mod plain;
mod shorten;
pub(crate) mod table;
pub mod waterfall;
pub mod wide;
