//! How fast, and how often again: pauses between attempts, and a bound on the rate. Both know no clock of their own.

/// Pauses between attempts that grow, each a random part of its bound, so that six nodes that lost the same store do not come back to
/// it at once.
#[derive(Debug, Clone)]
pub struct Pauses {
    first_ms: u64,
    most_ms: u64,
    failures: u32,
    random: u64,
}

impl Pauses {
    /// Pauses of `first_ms` at most at first, twice that after the next failure, and so on up to `most_ms`; at least half of each. `seed` is
    /// another one for each who waits.
    #[must_use]
    pub fn new(first_ms: u64, most_ms: u64, seed: u64) -> Pauses {
        Pauses { first_ms: first_ms.max(1), most_ms: most_ms.max(first_ms).max(1), failures: 0, random: seed }
    }

    /// The pause after one more failure, in milliseconds.
    pub fn after_failure(&mut self) -> u64 {
        let bound = self.first_ms.saturating_mul(1 << self.failures.min(32)).min(self.most_ms);
        self.failures = self.failures.saturating_add(1);
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.random ^ self.random >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        let part = bound / 2;
        bound - part + (mixed ^ mixed >> 31) % (part + 1)
    }

    /// An attempt succeeded: the next failure begins anew.
    pub fn after_success(&mut self) {
        self.failures = 0;
    }

    /// How many attempts failed since one succeeded.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// A bound on bytes per second. What was not used within a second is not saved up.
#[derive(Debug, Clone)]
pub struct RateLimit {
    /// Zero for no bound.
    bytes_per_second: u64,
    /// Bytes that may go now; below zero after an object that was longer.
    allowance: i64,
    at_ms: u64,
}

impl RateLimit {
    /// At most so many bytes a second; zero for no bound.
    #[must_use]
    pub fn new(bytes_per_second: u64, now_ms: u64) -> RateLimit {
        RateLimit {
            bytes_per_second,
            allowance: i64::try_from(bytes_per_second).unwrap_or(i64::MAX),
            at_ms: now_ms,
        }
    }

    fn refill(&mut self, now_ms: u64) {
        let most = i64::try_from(self.bytes_per_second).unwrap_or(i64::MAX);
        let passed = now_ms.saturating_sub(self.at_ms);
        let earned = u128::from(passed) * u128::from(self.bytes_per_second) / 1000;
        self.allowance = self.allowance.saturating_add(i64::try_from(earned).unwrap_or(i64::MAX)).min(most);
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// How long to wait before the next bytes may go, in milliseconds; zero for now.
    pub fn wait_ms(&mut self, now_ms: u64) -> u64 {
        if self.bytes_per_second == 0 {
            return 0;
        }
        self.refill(now_ms);
        let lacking = u128::from(self.allowance.min(0).unsigned_abs());
        u64::try_from((lacking * 1000).div_ceil(u128::from(self.bytes_per_second))).unwrap_or(u64::MAX)
    }

    /// Bytes went.
    pub fn take(&mut self, bytes: u64, now_ms: u64) {
        if self.bytes_per_second > 0 {
            self.refill(now_ms);
            self.allowance = self.allowance.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pauses_grow_to_their_bound_and_differ_by_seed(first in 1u64..1000, factor in 1u64..1000, seed: u64) {
            let most = first * factor;
            let mut pauses = Pauses::new(first, most, seed);
            for failure in 0..70u32 {
                let bound = first.saturating_mul(1 << failure.min(32)).min(most);
                let pause = pauses.after_failure();
                prop_assert!((bound - bound / 2..=bound).contains(&pause), "{pause} of {bound}");
            }
            prop_assert_eq!(pauses.failures(), 70);
            pauses.after_success();
            prop_assert!(pauses.after_failure() <= first);
        }

        #[test]
        fn no_second_has_more_than_the_rate_and_one_object(
            rate in 1u64..10_000, steps in prop::collection::vec((0u64..400, 1u64..5000), 1..100),
        ) {
            let mut limit = RateLimit::new(rate, 0);
            let (mut now, mut sent, mut largest) = (0, 0u64, 0);
            for (pause, bytes) in steps {
                now += pause;
                now += limit.wait_ms(now);
                prop_assert_eq!(limit.wait_ms(now), 0);
                limit.take(bytes, now);
                sent += bytes;
                largest = largest.max(bytes);
                prop_assert!(sent <= rate + rate * now / 1000 + largest + 1, "{sent} bytes by {now} ms");
            }
        }
    }

    #[test]
    fn without_a_bound_nobody_waits() {
        let mut limit = RateLimit::new(0, 5);
        limit.take(u64::MAX, 5);
        assert_eq!(limit.wait_ms(5), 0);
    }

    #[test]
    fn two_who_fail_together_do_not_try_again_together() {
        let pauses = |seed| {
            let mut pauses = Pauses::new(1000, 60_000, seed);
            [(); 8].map(|()| pauses.after_failure())
        };
        assert_ne!(pauses(1), pauses(2));
        assert_eq!(pauses(1), pauses(1));
    }
}
