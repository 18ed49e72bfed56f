//! Durations as people write them: `10s`, `1m30s`, `500ms`, `1h`; a bare number is seconds.

use std::time::Duration;

/// Reads a duration.
///
/// # Errors
/// When it is empty, has an unknown unit, or does not fit.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("invalid duration `{text}`: use 500ms, 10s, 1m30s or 2h");
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| wrong());
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(wrong()),
        };
        let part = Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &rest[letters..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// Nanoseconds in at most five characters and a unit: `850 ns`, `12.3 us`, `1.25 ms`.
#[must_use]
pub fn nanos(ns: u64) -> String {
    const UNITS: [(&str, f64); 4] = [("us", 1e3), ("ms", 1e6), ("s", 1e9), ("min", 60e9)];
    if ns < 1_000 {
        return format!("{ns} ns");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = ns as f64;
    let mut shown = String::new();
    for (name, unit) in UNITS {
        let scaled = value / unit;
        shown = match scaled {
            s if s < 9.995 => format!("{s:.2} {name}"),
            s if s < 99.95 => format!("{s:.1} {name}"),
            s => format!("{s:.0} {name}"),
        };
        let limit = if name == "s" { 59.95 } else { 999.5 };
        if scaled < limit {
            break;
        }
    }
    shown
}

/// A duration in words a person would use: `10s`, `1m30s`, `2h`.
#[must_use]
pub fn human(d: Duration) -> String {
    let seconds = d.as_secs();
    if seconds < 1 || (seconds < 10 && d.subsec_millis() != 0) {
        return if d.as_millis().is_multiple_of(1000) { format!("{seconds}s") } else { format!("{}ms", d.as_millis()) };
    }
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut text = String::new();
    for (n, unit) in [(h, 'h'), (m, 'm'), (s, 's')] {
        if n > 0 {
            text.push_str(&format!("{n}{unit}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, ms) in [("10s", 10_000), ("1m30s", 90_000), ("500ms", 500), ("2h", 7_200_000), ("1.5s", 1_500), ("7", 7_000), ("0", 0)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "10x", "-1s", "1s2", "nan", "inf", "1e400", "99999999999999999999h", "10 s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn writes_short_times() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 us"),
            (9_994, "9.99 us"),
            (9_999, "10.0 us"),
            (99_999, "100 us"),
            (999_600, "1.00 ms"),
            (1_250_000, "1.25 ms"),
            (2_000_000_000, "2.00 s"),
            (90_000_000_000, "1.50 min"),
        ] {
            assert_eq!(nanos(ns), text);
        }
        assert!(nanos(u64::MAX).len() < 20);
    }

    #[test]
    fn says_durations() {
        for (ms, text) in
            [(10_000, "10s"), (90_000, "1m30s"), (7_200_000, "2h"), (1_500, "1500ms"), (300, "300ms"), (0, "0s"), (2_000, "2s")]
        {
            assert_eq!(human(Duration::from_millis(ms)), text);
        }
    }
}
