//! What nobody can need any more.
//!
//! Two things must stay reachable: every point that was reached within the retention's window, and every point with a name. For the
//! beginning of the window that takes one snapshot at or before it, its *floor*, and redo from there on; everything newer stays anyhow. For a
//! named point before the floor it takes a snapshot at or before that point, and redo between the two. What is left over goes, if
//! it has been there for so long that everybody who lists sees it; of page objects, those of before the floor alone, for others may
//! be of a snapshot whose manifest comes tomorrow.
//!
//! A backup has redo objects by the million, so nothing here takes all of them at once: whoever deletes lists a group's redo from the
//! floor on and hands each name to [`Reach::take`], until the beginning of the window is reached; then it lists what is before the floor, and
//! asks [`Keep`] of each. Nothing of a group goes before all that must stay was seen to be there.
//!
//! Manifests go before their pages, so that none is left whose pages are gone. An interrupted deletion leaves a part of what was to
//! go, and everything that was to stay.

use std::collections::BTreeSet;

use borealis_types::{EpochHistory, GroupId, Lsn, invariant};

use crate::inventory::Stored;
use crate::known::{admits_durable, kept_of};
use crate::marks::Mark;
use crate::name::{ManifestName, MarksName, PagesName, RedoName};
use crate::restorable::stretch_of;
use crate::settings::Retention;

/// The newest time at which it is sure that so much time has passed, of the times at which a store got lists of marks; zero if there is none. A
/// clock that jumps ahead for a while must not make everything look old, and in a folder store and nodes have one clock. So after a pause
/// of half a window, which a jump is and a long stop too, time counts only once a seventh of a window has passed in small steps.
#[must_use]
pub fn trusted_now_ms(modified_ms: impl IntoIterator<Item = u64>, retention: Retention) -> u64 {
    let mut times: Vec<u64> = modified_ms.into_iter().collect();
    times.sort_unstable();
    let (pause_ms, proof_ms) = (retention.window_ms / 2, retention.window_ms / 7);
    let stretches = times.chunk_by(|one, next| next - one <= pause_ms);
    let mut proved = stretches.filter(|stretch| {
        stretch.last().zip(stretch.first()).is_some_and(|(last, first)| last - first >= proof_ms)
    });
    proved.next_back().and_then(|stretch| stretch.last().copied()).unwrap_or(0)
}

/// From when on points stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// The time, in milliseconds since 1970. Both the store and whoever deletes must have reached it.
    pub now_ms: u64,
    /// How long what is kept.
    pub retention: Retention,
}

impl Window {
    /// When it begins, in milliseconds since 1970.
    #[must_use]
    pub fn begins_ms(&self) -> u64 {
        self.now_ms.saturating_sub(self.retention.window_ms)
    }

    /// Whether an object has been there for long enough that nobody is about to build on it, and everybody who lists sees it.
    #[must_use]
    pub fn is_settled(&self, stored: Stored) -> bool {
        stored.modified_ms.saturating_add(self.retention.unfinished_ms) <= self.now_ms
    }

    /// Whether a list of marks was over when the window began, by the clock of the node that wrote it and by the store's: the clock of
    /// a node alone may be years behind, and would make everything look old.
    #[must_use]
    pub fn is_before(&self, list: &MarksName, stored: Stored) -> bool {
        list.to_ms.max(stored.modified_ms) <= self.begins_ms()
    }

    /// Whether a list of marks can go: it is over, settled, and does not say where the window begins.
    #[must_use]
    pub fn can_go(&self, list: &MarksName, stored: Stored, start: Lsn) -> bool {
        self.is_before(list, stored) && self.is_settled(stored) && list.lsn < start
    }
}

/// The lists of marks that may say what was durable when the window began, the best one first.
#[must_use]
pub fn lists_before(lists: &[(MarksName, Stored)], window: &Window) -> Vec<MarksName> {
    let before = lists.iter().filter(|(list, stored)| window.is_before(list, *stored));
    let mut before: Vec<MarksName> = before.map(|(list, _)| *list).collect();
    before.sort_by_key(|list| std::cmp::Reverse((list.lsn, *list)));
    before
}

/// What the history admits of a list's marks.
#[must_use]
pub fn admitted(mut marks: Vec<Mark>, history: &EpochHistory) -> Vec<Mark> {
    marks.retain(|mark| admits_durable(history, mark.epoch, mark.durable));
    marks
}

/// Snapshots of a group that a restore to a point may begin with, the best one first.
#[must_use]
pub fn bases_for(
    manifests: impl IntoIterator<Item = ManifestName>,
    history: &EpochHistory,
    point: Lsn,
) -> Vec<ManifestName> {
    let usable = |manifest: &ManifestName| {
        manifest.lsn <= point && admits_durable(history, manifest.epoch, manifest.lsn)
    };
    let mut bases: Vec<ManifestName> = manifests.into_iter().filter(usable).collect();
    bases.sort_by_key(|manifest| std::cmp::Reverse((manifest.lsn, *manifest)));
    bases
}

/// How far a group's redo goes without a gap, as its names come by in the order of a listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach {
    end: Lsn,
    complete_through: Lsn,
}

impl Reach {
    /// From a snapshot on; from the group's first record on without one.
    #[must_use]
    pub fn from(base: Option<&ManifestName>) -> Reach {
        base.map_or(Reach { end: Lsn::ZERO, complete_through: Lsn::ZERO }, |base| Reach {
            end: base.tail_end,
            complete_through: base.lsn,
        })
    }

    /// The next object. Of one that a recovery cut, as much counts as it kept; what only an object behind it makes good is not seen, and
    /// then less is deleted than could be.
    pub fn take(&mut self, name: &RedoName, history: &EpochHistory) {
        if let Some(stretch) = stretch_of(name, history).filter(|stretch| stretch.after <= self.end) {
            self.end = self.end.max(stretch.through);
            self.complete_through = self.complete_through.max(stretch.complete_through);
        }
    }

    /// Whether the group can be restored to a point with what came by, and with these marks, each of which the history must admit.
    #[must_use]
    pub fn has<'a>(&self, point: Lsn, group: GroupId, marks: impl IntoIterator<Item = &'a Mark>) -> bool {
        self.end.max(self.complete_through) >= point
            || marks.into_iter().any(|mark| {
                let tail = mark.tails.iter().find(|tail| tail.group == group);
                mark.durable >= point && tail.is_some_and(|tail| tail.last_end <= self.end)
            })
    }
}

/// What must stay of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keep {
    /// The snapshot before the window's beginning. It and everything after it stays.
    pub floor: ManifestName,
    /// Named points before it, each with the snapshot to begin with; `None` is the group's first record.
    pub named: Vec<(Option<ManifestName>, Lsn)>,
}

impl Keep {
    /// Whether an object must stay. One that ends where a snapshot does may be all that says how far the group is complete. What is of an
    /// epoch that the history does not have stays, for it may be newer than the history.
    #[must_use]
    pub fn needs_redo(&self, redo: &RedoName, history: &EpochHistory) -> bool {
        let of_named = |(base, point): &(Option<ManifestName>, Lsn)| {
            redo.last_end >= base.map_or(Lsn::ZERO, |base| base.tail_end) && redo.previous_end < *point
        };
        redo.last_end >= self.floor.tail_end
            || kept_of(history, redo.epoch).is_none()
            || self.named.iter().any(of_named)
    }

    /// Checks of an object that is about to be deleted that no point which must stay has records in it: between each snapshot to begin with
    /// and its point.
    ///
    /// # Panics
    /// When one does.
    pub fn assert_superfluous(&self, redo: &RedoName) {
        let of_floor = (self.floor.tail_end, Lsn::MAX);
        let of_named =
            self.named.iter().map(|(base, point)| (base.map_or(Lsn::ZERO, |base| base.tail_end), *point));
        for (after, through) in of_named.chain([of_floor]) {
            invariant!(
                "kept-points-stay-restorable",
                redo.last_end <= after || redo.previous_end >= through,
                "{redo:?} has what a restore from {after} to {through} applies"
            );
        }
    }

    /// Whether a manifest must stay.
    #[must_use]
    pub fn needs_manifest(&self, manifest: &ManifestName) -> bool {
        manifest.lsn >= self.floor.lsn || self.named.iter().any(|(base, _)| base.as_ref() == Some(manifest))
    }

    /// Whether a page object may be of a snapshot whose manifest comes yet, whatever the clocks say: that one is newer than the floor.
    #[must_use]
    pub fn awaits_manifest(&self, pages: &PagesName) -> bool {
        pages.lsn >= self.floor.lsn
    }
}

/// Lists of marks that may say of a named point that a group was complete to it: the first that go as far.
#[must_use]
pub fn evidence_for(lists: &[(MarksName, Stored)], point: Lsn, most: usize) -> BTreeSet<MarksName> {
    let mut beyond: Vec<MarksName> =
        lists.iter().map(|(list, _)| *list).filter(|list| list.lsn >= point).collect();
    beyond.sort_by_key(|list| (list.lsn, *list));
    beyond.truncate(most);
    beyond.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Digest;
    use borealis_types::{EpochOpening, NodeId, RecordSpan, ServerVersion, VolumeEpoch};
    use borealis_wire::GroupTail;

    const GROUP: GroupId = GroupId(0);

    fn redo(previous_end: u64, last_end: u64, complete_through: u64) -> RedoName {
        RedoName {
            group: GROUP,
            last_end: Lsn(last_end),
            previous_end: Lsn(previous_end),
            epoch: VolumeEpoch(1),
            complete_through: Lsn(complete_through),
            node: NodeId(1),
            digest: Digest([1; 16]),
        }
    }

    fn manifest(lsn: u64, tail_end: u64) -> ManifestName {
        let (lsn, tail_end, epoch, node) = (Lsn(lsn), Lsn(tail_end), VolumeEpoch(1), NodeId(1));
        ManifestName { group: GROUP, lsn, tail_end, epoch, node, digest: Digest([2; 16]) }
    }

    fn list(from_ms: u64, to_ms: u64, lsn: u64) -> MarksName {
        MarksName { to_ms, from_ms, lsn: Lsn(lsn), node: NodeId(2), digest: Digest([3; 16]) }
    }

    fn history(openings: &[(u64, u64)]) -> EpochHistory {
        let mut history = EpochHistory::default();
        for &(epoch, end) in openings {
            let last = RecordSpan { start: Lsn(end), end: Lsn(end) };
            let server_version = ServerVersion::NEWEST_TESTED;
            history.push(EpochOpening { epoch: VolumeEpoch(epoch), last, server_version });
        }
        history
    }

    fn stored(modified_ms: u64) -> Stored {
        Stored { bytes: 1, modified_ms }
    }

    #[test]
    fn a_nodes_clock_alone_makes_nothing_old() {
        let retention = Retention { window_ms: 1_000, unfinished_ms: 500 };
        let window = Window { now_ms: 10_000, retention };
        // Written a moment ago, by a node whose clock is far behind.
        let behind = (list(10, 20, 900), stored(9_990));
        let old = (list(7_000, 8_000, 300), stored(8_001));
        let older = (list(6_000, 7_000, 200), stored(7_001));
        let lists = [behind, old, older];
        assert_eq!(lists_before(&lists, &window), [old.0, older.0]);
        let can_go = |(list, stored)| window.can_go(&list, stored, Lsn(300));
        assert_eq!(lists.map(can_go), [false, false, true]);
    }

    #[test]
    fn a_clock_that_jumps_ahead_for_a_while_makes_nothing_old() {
        let retention = Retention { window_ms: 7_000, unfinished_ms: 500 };
        let usual = (0..20).map(|step| 50_000 + step * 500);
        assert_eq!(trusted_now_ms(usual.clone(), retention), 59_500);
        let jumped = [999_000, 999_500];
        assert_eq!(trusted_now_ms(usual.clone().chain(jumped), retention), 59_500);
        // After a long stop it takes a while.
        let later = (0..=2).map(|step| 90_000 + step * 500);
        assert_eq!(trusted_now_ms(usual.chain(later), retention), 91_000);
        assert_eq!(trusted_now_ms([], retention), 0);
    }

    #[test]
    fn redo_that_ends_where_a_snapshot_does_stays_while_it_says_how_far_the_group_is_complete() {
        let (history, floor) = (history(&[(1, 0)]), manifest(200, 160));
        let keep = Keep { floor, named: Vec::new() };
        assert!(keep.needs_redo(&redo(0, 160, 400), &history));
        assert!(!keep.needs_redo(&redo(0, 152, 152), &history));
    }

    #[test]
    fn a_named_point_keeps_its_snapshot_and_the_redo_between() {
        let history = history(&[(1, 0)]);
        let (first, floor) = (manifest(100, 96), manifest(900, 880));
        let keep = Keep { floor, named: vec![(Some(first), Lsn(300))] };
        let stays = [redo(0, 80, 80), redo(80, 160, 160), redo(160, 320, 320), redo(320, 480, 480)];
        assert_eq!(stays.map(|redo| keep.needs_redo(&redo, &history)), [false, true, true, false]);
        assert!(keep.needs_manifest(&first) && !keep.needs_manifest(&manifest(500, 480)));
        let from_the_first_record = Keep { floor, named: vec![(None, Lsn(300))] };
        assert!(from_the_first_record.needs_redo(&redo(0, 80, 80), &history));
    }

    #[test]
    #[should_panic(expected = "invariant kept-points-stay-restorable is broken")]
    fn a_deletion_that_would_lose_a_point_is_noticed() {
        let keep = Keep { floor: manifest(900, 880), named: vec![(Some(manifest(100, 96)), Lsn(300))] };
        keep.assert_superfluous(&redo(0, 96, 96));
        keep.assert_superfluous(&redo(300, 400, 400));
        keep.assert_superfluous(&redo(280, 400, 400));
    }

    #[test]
    fn redo_of_an_epoch_that_the_history_does_not_have_stays() {
        let keep = Keep { floor: manifest(900, 880), named: Vec::new() };
        let strange = RedoName { epoch: VolumeEpoch(7), ..redo(0, 80, 80) };
        assert!(keep.needs_redo(&strange, &history(&[(1, 0)])));
    }

    #[test]
    fn a_point_is_reached_by_redo_without_a_gap_or_by_a_mark_that_says_so() {
        let history = history(&[(1, 0), (2, 320)]);
        let base = manifest(100, 96);
        let mut reach = Reach::from(Some(&base));
        assert!(reach.has(Lsn(100), GROUP, []) && !reach.has(Lsn(101), GROUP, []));
        reach.take(&redo(96, 160, 200), &history);
        assert!(reach.has(Lsn(200), GROUP, []) && !reach.has(Lsn(201), GROUP, []));
        let mark = |last_end| Mark {
            clock_ms: 0,
            epoch: VolumeEpoch(1),
            durable: Lsn(300),
            tails: vec![GroupTail { group: GROUP, last_end: Lsn(last_end) }],
        };
        assert!(reach.has(Lsn(300), GROUP, [&mark(160)]) && !reach.has(Lsn(300), GROUP, [&mark(168)]));
        assert!(!reach.has(Lsn(300), GroupId(1), [&mark(160)]) && !reach.has(Lsn(301), GROUP, [&mark(160)]));
        // Behind a gap nothing counts, and what a recovery cut does not either.
        reach.take(&redo(200, 280, 280), &history);
        assert!(!reach.has(Lsn(201), GROUP, []));
        reach.take(&redo(160, 480, 480), &history);
        assert!(reach.has(Lsn(320), GROUP, []) && !reach.has(Lsn(321), GROUP, []));
    }

    #[test]
    fn of_marks_those_count_that_the_history_admits() {
        let history = history(&[(1, 0), (2, 320)]);
        let mark = |epoch, durable| Mark {
            clock_ms: 0,
            epoch: VolumeEpoch(epoch),
            durable: Lsn(durable),
            tails: Vec::new(),
        };
        let marks = vec![mark(1, 300), mark(1, 400), mark(3, 500)];
        assert_eq!(admitted(marks, &history), [mark(1, 300)]);
    }
}
