//! Assertions that carry the name of the invariant they guard.

/// Asserts an invariant of the table in `ARCHITECTURE.md`, by the name it has there. It stays on in release builds.
///
/// An invariant is asserted in pairs where it can be: before a write and after the read, at the sender and at the
/// receiver. It speaks of our own logic only: bytes from a disk, a network or a user are checked, refused and reported,
/// never asserted. `scripts/check-invariants.py` holds code, table and tests together: each name stands in the table,
/// and a test has seen each one fail.
///
/// ```
/// # use borealis_types::invariant;
/// let (complete, floor) = (7, 5);
/// invariant!("complete-above-floor", complete >= floor, "complete {complete}, floor {floor}");
/// ```
///
/// # Panics
/// If the condition is false, with the text `invariant NAME is broken`, and the detail if there is one.
#[macro_export]
macro_rules! invariant {
    ($name:literal, $condition:expr $(,)?) => {
        assert!($condition, concat!("invariant ", $name, " is broken"))
    };
    ($name:literal, $condition:expr, $($detail:tt)+) => {
        assert!($condition, concat!("invariant ", $name, " is broken: {}"), format_args!($($detail)+))
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_holds_is_silent() {
        invariant!("sum-of-parts", 1 + 1 == 2);
        invariant!("sum-of-parts", 1 + 1 == 2, "one and one is {}", 1 + 1);
    }

    #[test]
    #[should_panic(expected = "invariant sum-of-parts is broken: one and one is 2")]
    fn what_does_not_hold_names_itself() {
        let sum = 1 + 1;
        invariant!("sum-of-parts", sum == 3, "one and one is {sum}");
    }
}
