//! What the newest records changed, so that truncating them costs what they are, not what the index is.

use std::collections::VecDeque;

use borealis_types::Lsn;

/// The changes of records that a recovery may still truncate, in LSN order, each with the end of its record.
///
/// No recovery truncates what is known to be durable, so this is short: as much as is under way.
#[derive(Debug)]
pub(super) struct Recent<T> {
    changes: VecDeque<(Lsn, T)>,
    /// Changes of records that end above are all here.
    above: Lsn,
}

impl<T> Default for Recent<T> {
    fn default() -> Recent<T> {
        Recent { changes: VecDeque::new(), above: Lsn::ZERO }
    }
}

impl<T> Recent<T> {
    pub(super) fn push(&mut self, lsn: Lsn, change: T) {
        if lsn > self.above {
            self.changes.push_back((lsn, change));
        }
    }

    /// Drops what no recovery can truncate any more: the records through `certain`.
    pub(super) fn settle(&mut self, certain: Lsn) {
        self.above = self.above.max(certain);
        while self.changes.front().is_some_and(|(lsn, _)| *lsn <= certain) {
            self.changes.pop_front();
        }
    }

    /// Whether everything is here that a truncation of the records above `lsn` has to take back.
    pub(super) fn reaches(&self, lsn: Lsn) -> bool {
        lsn >= self.above
    }

    /// Takes the changes of the records above `lsn`, newest first.
    pub(super) fn cut(&mut self, lsn: Lsn) -> Vec<T> {
        let kept = self.changes.partition_point(|(of, _)| *of <= lsn);
        self.changes.drain(kept..).rev().map(|(_, change)| change).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_certain_is_dropped_and_what_is_cut_is_returned() {
        let mut recent = Recent::default();
        for lsn in [10, 20, 20, 30, 40] {
            recent.push(Lsn(lsn), lsn);
        }
        recent.settle(Lsn(10));
        assert!(recent.reaches(Lsn(10)) && !recent.reaches(Lsn(9)));
        assert_eq!(recent.cut(Lsn(20)), [40, 30]);
        recent.push(Lsn(25), 25);
        assert_eq!(recent.cut(Lsn(15)), [25, 20, 20]);
        recent.push(Lsn(10), 10);
        assert_eq!(recent.len(), 0, "it is certain");
    }
}
