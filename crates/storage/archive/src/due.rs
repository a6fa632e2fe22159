//! When a group's next snapshot is made.
//!
//! A snapshot costs reading every page of the group, and uploading those extents that changed. Without one a restore replays
//! everything since the last, and nothing of that can be deleted. So one is due when the redo since the last has become much, measured by
//! what the group has; after some time, however little it is; and at once where redo is missing, for only points after the
//! next snapshot can be restored then.

/// When snapshots are due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Redo objects since the last snapshot that are little for any group, in bytes.
    pub redo_bytes: u64,
    /// How many bytes of redo objects there may be for 100 bytes of the group's pages.
    pub redo_percent: u64,
    /// The longest time between two snapshots of a group that changed, in milliseconds.
    pub longest_ms: u64,
}

impl Default for Rule {
    fn default() -> Rule {
        Rule { redo_bytes: 64 << 20, redo_percent: 25, longest_ms: 24 * 60 * 60 * 1000 }
    }
}

/// What is known of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Bytes of redo objects that a restore from the newest snapshot reads, or from the group's beginning if there is none.
    pub redo_bytes: u64,
    /// How long ago the newest snapshot was made, in milliseconds; `None` if there is none.
    pub age_ms: Option<u64>,
    /// Bytes of all of the group's pages.
    pub group_bytes: u64,
    /// Redo is missing, and no snapshot is newer than what is.
    pub has_gap: bool,
}

impl Rule {
    /// Whether a snapshot is due.
    #[must_use]
    pub fn is_due(&self, standing: &Standing) -> bool {
        let Standing { redo_bytes, age_ms, group_bytes, has_gap } = *standing;
        let share_bytes = u128::from(group_bytes) * u128::from(self.redo_percent) / 100;
        let is_much = redo_bytes > self.redo_bytes && u128::from(redo_bytes) > share_bytes;
        let is_old = redo_bytes > 0 && age_ms.is_some_and(|age| age >= self.longest_ms);
        has_gap || is_much || is_old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { redo_bytes: 1_000, redo_percent: 25, longest_ms: 50 };

    #[test]
    fn redo_is_much_by_the_groups_size_and_never_below_the_floor() {
        let due = |redo_bytes, group_bytes| {
            RULE.is_due(&Standing { redo_bytes, group_bytes, ..Standing::default() })
        };
        assert!(!due(1_000, 0) && due(1_001, 0) && due(1_001, 4_000), "the floor");
        assert!(!due(2_500, 10_000) && due(2_501, 10_000), "the share");
        assert!(!due(u64::MAX / 8, u64::MAX) && due(u64::MAX, u64::MAX), "no size overflows");
    }

    #[test]
    fn a_snapshot_grows_old_only_where_something_happened() {
        let due = |age_ms, redo_bytes| RULE.is_due(&Standing { redo_bytes, age_ms, ..Standing::default() });
        assert!(!due(Some(49), 1) && due(Some(50), 1));
        assert!(!due(Some(500), 0), "an idle group costs nothing");
        assert!(!due(None, 1), "from the beginning there is little to replay");
    }

    #[test]
    fn a_gap_is_closed_at_once() {
        assert!(RULE.is_due(&Standing { has_gap: true, age_ms: Some(0), ..Standing::default() }));
    }
}
