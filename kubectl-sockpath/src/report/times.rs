//! Figures over many packets, so that the parts add up to the whole.

use serde::Serialize;

/// Times of one stage, or of the whole path, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// The typical time. Absent where it cannot be measured.
    pub p50_ns: Option<u64>,
    /// 99 of 100 took at most this.
    pub p99_ns: Option<u64>,
    /// Mean over all packets.
    pub mean_ns: Option<u64>,
}

/// Positions of the typical packets in a list sorted by total time: from the 45th to the 55th percentile, at least one.
#[must_use]
pub fn typical(n: usize) -> std::ops::Range<usize> {
    if n == 0 {
        return 0..0;
    }
    let low = n * 45 / 100;
    let high = (n * 55).div_ceil(100).max(low + 1);
    low..high.min(n)
}

/// The value that 99 of 100 do not exceed (nearest rank). `sorted` must be sorted.
#[must_use]
pub fn p99(sorted: &[u64]) -> Option<u64> {
    let rank = (sorted.len() * 99).div_ceil(100);
    rank.checked_sub(1).and_then(|i| sorted.get(i)).copied()
}

/// Means of sums over `n` packets as whole nanoseconds, rounded so that they add up to the rounded mean of the total.
#[must_use]
pub fn means(sums: &[u128], n: usize) -> Vec<u64> {
    let n = n.max(1) as u128;
    let total: u128 = sums.iter().sum();
    let target = (total + n / 2) / n;
    let mut means: Vec<u128> = sums.iter().map(|s| s / n).collect();
    let mut missing = target.saturating_sub(means.iter().sum());
    let mut order: Vec<usize> = (0..sums.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(sums[*i] % n));
    for i in order {
        if missing == 0 {
            break;
        }
        means[i] += 1;
        missing -= 1;
    }
    means.into_iter().map(|m| u64::try_from(m).unwrap_or(u64::MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typical_packets_lie_in_the_middle() {
        assert_eq!(typical(0), 0..0);
        assert_eq!(typical(1), 0..1);
        assert_eq!(typical(2), 0..2);
        assert_eq!(typical(3), 1..2);
        assert_eq!(typical(100), 45..55);
        for n in 1..300 {
            let r = typical(n);
            assert!(!r.is_empty() && r.end <= n, "{n}");
            assert!(r.contains(&(n / 2)) || r.contains(&((n - 1) / 2)), "{n} {r:?}");
        }
    }

    #[test]
    fn parts_add_up() {
        for (sums, n) in [(vec![10u128, 11, 12], 3), (vec![1, 1, 1], 2), (vec![0], 1), (vec![7, 7, 7, 7, 7, 7, 7], 9), (vec![], 4)] {
            let total: u128 = sums.iter().sum();
            let expected = (total + n as u128 / 2) / n as u128;
            let means = means(&sums, n);
            assert_eq!(means.iter().map(|m| u128::from(*m)).sum::<u128>(), expected, "{sums:?} / {n}");
        }
    }

    #[test]
    fn percentiles() {
        assert_eq!(p99(&[]), None);
        assert_eq!(p99(&[5]), Some(5));
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(p99(&hundred), Some(99));
        let many: Vec<u64> = (1..=1000).collect();
        assert_eq!(p99(&many), Some(990));
    }
}
