//! Summaries of repeated measurements.

use serde::Serialize;

/// Several values of one thing: the middle, and how far they lie apart.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Summary {
    /// The median; the mean of the middle two for an even count.
    pub median: f64,
    /// The smallest value of the sample.
    pub min: f64,
    /// The largest value of the sample.
    pub max: f64,
    /// How many values the sample has.
    pub count: usize,
}

impl Summary {
    /// The summary of `values`, without those that are no numbers; `None` if none is left.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Summary> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Summary { median, min, max, count: sorted.len() })
    }

    /// `median (min to max)`, with the digits the size deserves.
    #[must_use]
    pub fn text(&self) -> String {
        if self.count == 1 {
            return number(self.median);
        }
        format!("{} ({} to {})", number(self.median), number(self.min), number(self.max))
    }
}

/// A number with about three digits that mean something.
#[must_use]
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The value that `fraction` (0 to 1) of all are at or below, by the nearest rank. `sorted` is ascending; `None` if
/// it is empty.
#[must_use]
pub fn percentile(sorted: &[u64], fraction: f64) -> Option<u64> {
    let rank = (sorted.len() as f64 * fraction.clamp(0.0, 1.0)).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// The fractions at which a latency distribution is kept: enough to draw it, few enough to store.
#[must_use]
pub fn kept_fractions() -> Vec<f64> {
    let mut fractions: Vec<f64> = (0..=49).map(|step| f64::from(step) * 0.02).collect();
    fractions.extend([0.985, 0.99, 0.995, 0.998, 0.999, 0.9995, 1.0]);
    fractions
}

/// A distribution of durations in microseconds at [`kept_fractions`]: (fraction, microseconds).
#[must_use]
pub fn distribution(mut values: Vec<u64>) -> Vec<(f64, u64)> {
    values.sort_unstable();
    kept_fractions()
        .into_iter()
        .filter_map(|fraction| Some((fraction, percentile(&values, fraction)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_the_spread_the_ends() {
        let odd = Summary::of([9.0, 1.0, 5.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max, odd.count), (5.0, 1.0, 9.0, 3));
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([f64::NAN, 2.0]).unwrap().count, 1);
        assert_eq!(odd.text(), "5.00 (1.00 to 9.00)");
        assert_eq!(Summary::of([1234.4]).unwrap().text(), "1234");
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let sorted: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&sorted, 0.5), Some(50));
        assert_eq!(percentile(&sorted, 0.99), Some(99));
        assert_eq!(percentile(&sorted, 1.0), Some(100));
        assert_eq!(percentile(&sorted, 0.0), Some(1));
        assert_eq!(percentile(&[7], 0.99), Some(7));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_distribution_rises() {
        let kept = distribution((0..10_000).rev().collect());
        assert_eq!(kept.len(), kept_fractions().len());
        assert!(kept.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
        assert_eq!(kept.last(), Some(&(1.0, 9_999)));
        assert!(distribution(Vec::new()).is_empty());
    }
}
