//! Medians and spreads.

use std::fmt;

/// Values of repeated runs, in the order they were measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample(pub Vec<f64>);

impl Sample {
    /// The median; NaN without values.
    #[must_use]
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// The smallest and the largest value.
    #[must_use]
    pub fn range(&self) -> (f64, f64) {
        self.0.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)))
    }

    /// Run by run, how often `base` fits into this: alternating runs share their moment's noise.
    #[must_use]
    pub fn over(&self, base: &Self) -> Self {
        Self(self.0.iter().zip(&base.0).map(|(v, b)| v / b).collect())
    }
}

impl fmt::Display for Sample {
    /// Median, and the range when there is one: `2.21 (2.05-2.40)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        if self.0.is_empty() {
            return write!(f, "-");
        }
        let (low, high) = self.range();
        write!(f, "{:.digits$}", self.median())?;
        if self.0.len() > 1 { write!(f, " ({low:.digits$}-{high:.digits$})") } else { Ok(()) }
    }
}

/// The `fraction` quantile of sorted values; 0 without values.
#[must_use]
pub fn quantile(sorted: &[u64], fraction: f64) -> u64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(((last as f64) * fraction).round() as usize).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_run_by_run() {
        let (plain, fast) = (Sample(vec![10.0, 5.0, 20.0]), Sample(vec![20.0, 12.0, 30.0]));
        assert_eq!(fast.over(&plain), Sample(vec![2.0, 2.4, 1.5]));
        assert_eq!(fast.over(&plain).to_string(), "2.00 (1.50-2.40)");
        assert_eq!(format!("{:.0}", Sample(vec![3.0])), "3");
        assert!(Sample::default().median().is_nan());
        assert_eq!(quantile(&[1, 2, 3, 4, 5], 0.5), 3);
    }
}
