//! Alternating runs.

use std::time::Duration;

use anyhow::Result;

use super::environment::{Cpus, Environment, Route};
use super::peer::{Load, Run};
use super::stats::Sample;

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Runs of each kind.
    pub repeats: usize,
    /// Length of one run.
    pub time: Duration,
}

/// The runs of one column.
#[derive(Debug, Clone, Default)]
pub struct Column(pub Vec<Run>);

impl Column {
    /// Rates of the runs.
    #[must_use]
    pub fn rates(&self) -> Sample {
        Sample(self.0.iter().map(|r| r.rate).collect())
    }

    /// Rates of streams in Gbit/s.
    #[must_use]
    pub fn gbit(&self) -> Sample {
        Sample(self.0.iter().map(|r| r.rate * 8.0 / 1e9).collect())
    }

    /// Median turnarounds of the runs, in microseconds.
    #[must_use]
    pub fn p50_us(&self) -> Sample {
        Sample(self.0.iter().map(|r| r.p50_ns as f64 / 1e3).collect())
    }

    /// 99th percentiles of the runs, in microseconds.
    #[must_use]
    pub fn p99_us(&self) -> Sample {
        Sample(self.0.iter().map(|r| r.p99_ns as f64 / 1e3).collect())
    }

    /// CPU time of the client per exchange, in microseconds.
    #[must_use]
    pub fn cpu_us(&self) -> Sample {
        Sample(self.0.iter().map(|r| r.cpu_ns / 1e3).collect())
    }
}

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Load.
    pub load: Load,
    /// Bytes per message.
    pub size: usize,
    /// CPUs.
    pub cpus: Cpus,
}

impl Case {
    /// One run by one route.
    ///
    /// # Errors
    /// What the client says.
    pub fn run(&self, environment: &Environment, route: Route, time: Duration) -> Result<Run> {
        environment.run(route, self.cpus, self.load, self.size, time)
    }
}
