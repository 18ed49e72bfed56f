//! SOURCE and TARGET: reading what was typed, and finding what it means.

mod find;
pub mod name;
mod ports;
mod resolve;
mod suggest;

pub use resolve::{Plan, Scenario, plan, select_pods};
