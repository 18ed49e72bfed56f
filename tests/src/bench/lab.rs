//! How fast a lab comes up and goes.

use std::time::Instant;

use anyhow::Result;

use super::environment::Environment;
use super::measure::Effort;
use super::stats::Sample;
use super::table::{Table, goal};
use crate::lab::{Lab, succeed};

/// The table of the lab.
///
/// # Errors
/// None: a lab that does not come up is a panic, as in tests.
pub fn lab(_: &Environment, effort: Effort) -> Result<Vec<Table>> {
    let mut table = Table::new("The lab", &["what", "measured", "goal"]);
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..effort.repeats {
        let lab = Lab::reserve();
        let start = Instant::now();
        succeed(lab.helper().arg("up"));
        up.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        succeed(lab.helper().arg("down"));
        down.push(start.elapsed().as_secs_f64());
    }
    let (up, down) = (Sample(up), Sample(down));
    table.row(vec!["`lab up`".to_owned(), format!("{up:.2} s"), goal("< 2 s", up.median() < 2.0)]);
    table.row(vec!["`lab down`".to_owned(), format!("{down:.2} s"), "-".to_owned()]);
    Ok(vec![table])
}
