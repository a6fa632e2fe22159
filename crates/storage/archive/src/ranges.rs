//! Sets of positions.

use std::fmt;

use borealis_types::Lsn;

/// All positions from `from` to `through`, both among them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LsnRange {
    /// The first.
    pub from: Lsn,
    /// The last, not before `from`.
    pub through: Lsn,
}

impl fmt::Display for LsnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.from, self.through)
    }
}

/// A set of positions, as ranges that neither overlap nor touch, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LsnRanges(Vec<LsnRange>);

impl LsnRanges {
    /// Every position.
    #[must_use]
    pub fn all() -> LsnRanges {
        LsnRanges(vec![LsnRange { from: Lsn::ZERO, through: Lsn::MAX }])
    }

    /// The ranges, in order.
    #[must_use]
    pub fn ranges(&self) -> &[LsnRange] {
        &self.0
    }

    /// Whether a position is in the set.
    #[must_use]
    pub fn contains(&self, lsn: Lsn) -> bool {
        let before = self.0.partition_point(|range| range.from <= lsn);
        before.checked_sub(1).is_some_and(|at| lsn <= self.0[at].through)
    }

    /// The highest position in the set that is not above `lsn`.
    #[must_use]
    pub fn at_or_below(&self, lsn: Lsn) -> Option<Lsn> {
        let before = self.0.partition_point(|range| range.from <= lsn);
        before.checked_sub(1).map(|at| lsn.min(self.0[at].through))
    }

    /// The lowest position in the set that is not below `lsn`.
    #[must_use]
    pub fn at_or_above(&self, lsn: Lsn) -> Option<Lsn> {
        let at = self.0.partition_point(|range| range.through < lsn);
        self.0.get(at).map(|range| lsn.max(range.from))
    }

    /// What is in both sets.
    #[must_use]
    pub fn intersection(&self, other: &LsnRanges) -> LsnRanges {
        let (mut one, mut two) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = Vec::new();
        while let (Some(left), Some(right)) = (one.peek(), two.peek()) {
            let (from, through) = (left.from.max(right.from), left.through.min(right.through));
            if from <= through {
                common.push(LsnRange { from, through });
            }
            if left.through < right.through {
                one.next()
            } else {
                two.next()
            };
        }
        LsnRanges(common)
    }

    /// What is in this set and not in the other.
    #[must_use]
    pub fn without(&self, other: &LsnRanges) -> LsnRanges {
        self.intersection(&other.complement())
    }

    fn complement(&self) -> LsnRanges {
        let mut rest = Vec::new();
        let mut next = Some(Lsn::ZERO);
        for range in &self.0 {
            if let (Some(from), Some(through)) = (next, range.from.0.checked_sub(1)) {
                let through = Lsn(through);
                if from <= through {
                    rest.push(LsnRange { from, through });
                }
            }
            next = range.through.checked_add(1);
        }
        rest.extend(next.map(|from| LsnRange { from, through: Lsn::MAX }));
        LsnRanges(rest)
    }
}

impl FromIterator<LsnRange> for LsnRanges {
    /// Of ranges in any order, which may overlap; those that end before they begin have nothing.
    fn from_iter<I: IntoIterator<Item = LsnRange>>(ranges: I) -> LsnRanges {
        let mut sorted: Vec<LsnRange> =
            ranges.into_iter().filter(|range| range.from <= range.through).collect();
        sorted.sort_unstable();
        let mut merged: Vec<LsnRange> = Vec::new();
        for range in sorted {
            match merged.last_mut() {
                Some(last) if range.from.0 <= last.through.0.saturating_add(1) => {
                    last.through = last.through.max(range.through);
                }
                _ => merged.push(range),
            }
        }
        LsnRanges(merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sets() -> impl Strategy<Value = LsnRanges> {
        let range = (0u64..40, 0u64..12)
            .prop_map(|(from, length)| LsnRange { from: Lsn(from), through: Lsn(from + length) });
        prop::collection::vec(range, 0..6).prop_map(|ranges| ranges.into_iter().collect())
    }

    proptest! {
        #[test]
        fn sets_are_what_their_positions_say(one in sets(), two in sets()) {
            let (common, rest) = (one.intersection(&two), one.without(&two));
            for lsn in (0..60).map(Lsn).chain([Lsn::MAX]) {
                let (in_one, in_two) = (one.contains(lsn), two.contains(lsn));
                prop_assert_eq!(common.contains(lsn), in_one && in_two);
                prop_assert_eq!(rest.contains(lsn), in_one && !in_two);
                let below = (0..=lsn.0.min(60)).rev().map(Lsn).find(|&below| one.contains(below));
                prop_assert_eq!(one.at_or_below(lsn), below);
                let above = (lsn.0..60).map(Lsn).find(|&above| one.contains(above));
                prop_assert_eq!(one.at_or_above(lsn), above);
            }
            for set in [&one, &common, &rest] {
                let apart = |pair: &[LsnRange]| pair[0].through.0 + 1 < pair[1].from.0;
                prop_assert!(set.ranges().windows(2).all(apart), "{set:?}");
            }
            prop_assert_eq!(LsnRanges::all().intersection(&one), one.clone());
            prop_assert_eq!(LsnRanges::all().without(&LsnRanges::all()), LsnRanges::default());
        }
    }
}
