//! SOURCE and TARGET: reading what was typed, and finding what it means.

pub mod name;
mod resolve;

pub use name::{Endpoint, Name};
pub use resolve::{Plan, Scenario, closest, plan, select_pods};
