//! What the objects say that a listing cannot: what recoveries kept, and when what was durable.

use std::collections::BTreeMap;

use borealis_types::{EpochHistory, GroupId, Lsn, Placement, VolumeEpoch};

use crate::marks::Mark;
use crate::name::MarksName;
use crate::ranges::LsnRange;

/// What was read of a volume's backup before anything is decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// Which groups there are.
    pub placement: Placement,
    /// The history with the newest epoch.
    pub history: EpochHistory,
    /// The marks of each list.
    pub marks: BTreeMap<MarksName, Vec<Mark>>,
}

/// The part of an epoch's stream that every later recovery kept: records that end after `after`, to `through`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kept {
    pub after: Lsn,
    pub through: Lsn,
}

/// What the history kept of an epoch; `None` if it does not know the epoch: then nobody may use anything of it.
pub(crate) fn kept_of(history: &EpochHistory, epoch: VolumeEpoch) -> Option<Kept> {
    let openings = history.openings();
    let at = openings.binary_search_by_key(&epoch, |opening| opening.epoch).ok()?;
    let through = openings.get(at + 1).map_or(Lsn::MAX, |next| next.last.end);
    Some(Kept { after: openings[at].last.end, through })
}

/// Whether a position that was durable in `epoch` is one of the volume that the history tells of.
pub(crate) fn admits_durable(history: &EpochHistory, epoch: VolumeEpoch, durable: Lsn) -> bool {
    kept_of(history, epoch).is_some_and(|kept| durable <= kept.through)
}

impl Known {
    /// Marks whose positions the history admits, with the list that each is of.
    pub fn admitted_marks(&self) -> impl Iterator<Item = (&MarksName, &Mark)> {
        let marks = self.marks.iter().flat_map(|(name, marks)| marks.iter().map(move |mark| (name, mark)));
        marks.filter(|(_, mark)| admits_durable(&self.history, mark.epoch, mark.durable))
    }

    /// The position that the volume had reached at a time; `None` if no mark is that old. Everything that a client was told to be
    /// committed a second before that is in it, and nothing that was committed after it, as far as the nodes' clocks agree.
    #[must_use]
    pub fn point_at(&self, clock_ms: u64) -> Option<Lsn> {
        let before = self.admitted_marks().filter(|(_, mark)| mark.clock_ms <= clock_ms);
        before.map(|(_, mark)| mark.durable).max()
    }

    /// The newest position that a mark names, and its time.
    #[must_use]
    pub fn newest_mark(&self) -> Option<(Lsn, u64)> {
        self.admitted_marks().map(|(_, mark)| (mark.durable, mark.clock_ms)).max()
    }

    /// About when the positions of a range were reached: the time of the last mark at or below its beginning, and of the
    /// first at or above its end; zero, and the largest number, if there is none.
    #[must_use]
    pub fn clock_of(&self, range: LsnRange) -> (u64, u64) {
        let (mut from, mut to) = (0, u64::MAX);
        for (_, mark) in self.admitted_marks() {
            if mark.durable <= range.from {
                from = from.max(mark.clock_ms);
            }
            if mark.durable >= range.through {
                to = to.min(mark.clock_ms);
            }
        }
        (from.min(to), to)
    }

    /// What marks say of one group: where its redo ends as of which durable position.
    pub(crate) fn tails_of(&self, group: GroupId) -> impl Iterator<Item = (Lsn, Lsn)> {
        self.admitted_marks().filter_map(move |(_, mark)| {
            let tail = mark.tails.iter().find(|tail| tail.group == group)?;
            Some((tail.last_end, mark.durable))
        })
    }
}
