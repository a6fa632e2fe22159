//! Dropping one end of sorted lists: what was materialized, or what a recovery truncated.

use borealis_types::Lsn;

/// Which end of every list is dropped.
#[derive(Clone, Copy)]
pub(super) enum Forget {
    /// Records that end at or below: they are materialized.
    Through(Lsn),
    /// Records that end above: a recovery truncated them.
    Above(Lsn),
}

impl Forget {
    pub(super) fn lsn(self) -> Lsn {
        match self {
            Forget::Through(lsn) | Forget::Above(lsn) => lsn,
        }
    }

    /// Drops that end of a sorted list and returns how many entries that were.
    pub(super) fn apply<T>(self, list: &mut Vec<T>, end: impl Fn(&T) -> Lsn) -> u64 {
        let before = list.len();
        match self {
            Forget::Through(lsn) => drop(list.drain(..list.partition_point(|item| end(item) <= lsn))),
            Forget::Above(lsn) => list.truncate(list.partition_point(|item| end(item) <= lsn)),
        }
        if list.capacity() > 2 * list.len() + 16 {
            list.shrink_to_fit();
        }
        (before - list.len()) as u64
    }
}
