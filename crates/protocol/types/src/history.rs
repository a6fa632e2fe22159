//! What every recovery of a volume decided: where it cut, and which release of PostgreSQL writes from there.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Lsn, RecordSpan, ServerVersion, VolumeEpoch, invariant};

/// How one recovery opened an epoch. Every record of an older epoch that ends after `last.end` is gone for ever;
/// what comes after `last.end` is written in this epoch, by a server of this release.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct EpochOpening {
    /// The epoch the recovery opened.
    pub epoch: VolumeEpoch,
    /// The last record that stayed; the new writer continues at `last.end` and links back to `last.start`.
    pub last: RecordSpan,
    /// The release of PostgreSQL that writes in this epoch.
    pub server_version: ServerVersion,
}

/// Every opening of a volume, oldest first. Epochs strictly rise, and `last.end` never falls.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Openings", into = "Openings")]
pub struct EpochHistory {
    /// Shared: whoever reads records takes the history along that says who wrote them.
    openings: Arc<Vec<EpochOpening>>,
}

/// Openings of a history at most, or it is not even decoded: several times of what any volume has.
const DECODED_OPENINGS_MAX: usize = 1 << 16;

/// An [`EpochHistory`] as it is stored and sent, not checked yet.
#[derive(Serialize, Deserialize)]
struct Openings {
    #[serde(deserialize_with = "crate::bounded::list::<_, _, DECODED_OPENINGS_MAX>")]
    openings: Vec<EpochOpening>,
}

impl From<EpochHistory> for Openings {
    fn from(history: EpochHistory) -> Openings {
        Openings { openings: Arc::unwrap_or_clone(history.openings) }
    }
}

impl TryFrom<Openings> for EpochHistory {
    type Error = HistoryOrderError;

    fn try_from(stored: Openings) -> Result<EpochHistory, HistoryOrderError> {
        let mut history = EpochHistory::default();
        for opening in stored.openings {
            if !history.may_continue_with(&opening) {
                return Err(HistoryOrderError { epoch: opening.epoch });
            }
            Arc::make_mut(&mut history.openings).push(opening);
        }
        Ok(history)
    }
}

/// A history whose epochs do not rise, or in which an opening lies before an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the opening of volume epoch {epoch} does not follow the one before it")]
pub struct HistoryOrderError {
    /// The epoch out of order.
    pub epoch: VolumeEpoch,
}

impl EpochHistory {
    /// All openings, in epoch order and in log order.
    #[must_use]
    pub fn openings(&self) -> &[EpochOpening] {
        &self.openings
    }

    /// The newest opening; `None` for a volume that nobody ever opened.
    #[must_use]
    pub fn newest(&self) -> Option<&EpochOpening> {
        self.openings.last()
    }

    /// The newest epoch that finished a recovery, as far as this history knows.
    #[must_use]
    pub fn newest_epoch(&self) -> VolumeEpoch {
        self.newest().map_or(VolumeEpoch(0), |opening| opening.epoch)
    }

    /// Adds the newest opening.
    ///
    /// # Panics
    /// If its epoch is not above every epoch already there, or it lies before an older opening: a recovery never
    /// rewrites an older one, and never cuts below what an older one kept.
    pub fn push(&mut self, opening: EpochOpening) {
        let follows = self.may_continue_with(&opening);
        invariant!("openings-in-order", follows, "{opening:?} after {:?}", self.newest());
        Arc::make_mut(&mut self.openings).push(opening);
    }

    fn may_continue_with(&self, next: &EpochOpening) -> bool {
        next.epoch > self.newest_epoch()
            && self.newest().is_none_or(|before| before.last.end <= next.last.end)
    }

    /// The opening of the epoch in which the record was written that ends at `end` and survived every recovery.
    ///
    /// It is the newest one before the record: an older epoch's record there was cut by it, and no newer epoch's
    /// writer begins before its own opening. Of several at one position the last counts: no record lies between them.
    fn opening_before(&self, end: Lsn) -> Option<&EpochOpening> {
        let before = self.openings.partition_point(|opening| opening.last.end < end);
        before.checked_sub(1).map(|newest| &self.openings[newest])
    }

    /// Whether a record written in `epoch` and ending at `end` survived every recovery in this history.
    #[must_use]
    pub fn admits(&self, epoch: VolumeEpoch, end: Lsn) -> bool {
        self.opening_before(end).is_some_and(|opening| opening.epoch == epoch)
    }

    /// The release that wrote the record that ends at `end`, which this history must admit; `None` if no opening lies
    /// before it, and so nobody can have written it.
    ///
    /// Later openings lie at or after the end of a record that stays: a history that grows never gives another answer
    /// for it.
    #[must_use]
    pub fn server_version_at(&self, end: Lsn) -> Option<ServerVersion> {
        self.opening_before(end).map(|opening| opening.server_version)
    }

    /// The release that writes in `epoch`; `None` if this history has no such epoch.
    #[must_use]
    pub fn server_version_of(&self, epoch: VolumeEpoch) -> Option<ServerVersion> {
        let at = self.openings.binary_search_by_key(&epoch, |opening| opening.epoch);
        at.ok().map(|at| self.openings[at].server_version)
    }

    /// Whether both histories name the same release for every record that ends at or before `through`.
    #[must_use]
    pub fn same_releases_through(&self, other: &EpochHistory, through: Lsn) -> bool {
        // Between two neighbouring openings of either, neither changes its answer.
        let starts = self.openings.iter().chain(&*other.openings).map(|opening| opening.last.end);
        starts
            .filter_map(|end| end.checked_add(1))
            .filter(|&first| first <= through)
            .all(|first| self.server_version_at(first) == other.server_version_at(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn release(minor: u32) -> ServerVersion {
        ServerVersion::new(150_000 + minor).unwrap()
    }

    fn opening(epoch: u64, end: u64, minor: u32) -> EpochOpening {
        let last = RecordSpan { start: Lsn(end.saturating_sub(8)), end: Lsn(end) };
        EpochOpening { epoch: VolumeEpoch(epoch), last, server_version: release(minor) }
    }

    /// A record of a volume's life: its epoch, its end, and who wrote it.
    type Written = (VolumeEpoch, Lsn, ServerVersion);

    /// The life of a volume: in each epoch a server of some release writes records, and the next recovery keeps some
    /// of them. The history as each epoch found it, and every record ever written.
    fn life() -> impl Strategy<Value = (Vec<EpochHistory>, Vec<Written>)> {
        let epoch = (prop::collection::vec(1u64..5, 0..6), any::<prop::sample::Index>(), 0u32..3, 1u64..3);
        prop::collection::vec(epoch, 1..8).prop_map(|epochs| {
            let (mut history, mut histories, mut written) = (EpochHistory::default(), vec![], vec![]);
            let (mut last, mut epoch) = (0, 0);
            for (lengths, keep, minor, step) in epochs {
                epoch += step;
                history.push(opening(epoch, last, minor));
                histories.push(history.clone());
                let mut ends = vec![last];
                for length in lengths {
                    ends.push(ends.last().unwrap() + 8 * length);
                }
                written.extend(ends[1..].iter().map(|&end| (VolumeEpoch(epoch), Lsn(end), release(minor))));
                last = ends[keep.index(ends.len())];
            }
            (histories, written)
        })
    }

    proptest! {
        #[test]
        fn a_record_survives_if_no_later_epoch_opened_before_it((histories, written) in life()) {
            for history in &histories {
                for &(epoch, end, _) in written.iter().filter(|(epoch, ..)| *epoch <= history.newest_epoch()) {
                    let cut = history.openings().iter().any(|later| later.epoch > epoch && later.last.end < end);
                    prop_assert_eq!(history.admits(epoch, end), !cut);
                }
            }
        }

        #[test]
        fn a_record_that_survived_has_the_release_of_its_writer((histories, written) in life()) {
            for history in &histories {
                for &(epoch, end, server_version) in &written {
                    if epoch <= history.newest_epoch() && history.admits(epoch, end) {
                        prop_assert_eq!(history.server_version_at(end), Some(server_version));
                        prop_assert_eq!(history.server_version_of(epoch), Some(server_version));
                    }
                }
            }
        }

        #[test]
        fn a_history_that_grows_changes_no_answer_up_to_its_newest_opening((histories, _) in life()) {
            for pair in histories.windows(2) {
                let kept = pair[1].newest().unwrap().last.end;
                prop_assert!(pair[0].same_releases_through(&pair[1], kept));
                for end in 0..=kept.0 {
                    prop_assert_eq!(pair[0].server_version_at(Lsn(end)), pair[1].server_version_at(Lsn(end)));
                }
            }
        }

        #[test]
        fn agreement_is_that_of_every_single_position((ours, _) in life(), (theirs, _) in life(), through in 0u64..80) {
            let (ours, theirs) = (ours.last().unwrap(), theirs.last().unwrap());
            let each = (0..=through).all(|end| {
                ours.server_version_at(Lsn(end)) == theirs.server_version_at(Lsn(end))
            });
            prop_assert_eq!(ours.same_releases_through(theirs, Lsn(through)), each);
        }
    }

    #[test]
    fn the_boundary_belongs_to_the_older_release_and_the_later_of_two_openings_counts() {
        let mut history = EpochHistory::default();
        assert_eq!(history.server_version_at(Lsn(8)), None);
        for opening in [opening(1, 0, 18), opening(2, 40, 19), opening(5, 40, 20)] {
            history.push(opening);
        }
        assert_eq!(history.server_version_at(Lsn::ZERO), None);
        assert_eq!(history.server_version_at(Lsn(8)), Some(release(18)));
        assert_eq!(history.server_version_at(Lsn(40)), Some(release(18)));
        assert_eq!(history.server_version_at(Lsn(41)), Some(release(20)));
        assert_eq!(history.server_version_at(Lsn::MAX), Some(release(20)));
        assert!(history.admits(VolumeEpoch(1), Lsn(40)) && history.admits(VolumeEpoch(5), Lsn(41)));
        // Nobody wrote in epoch 3, and the writer of epoch 5 not where epoch 1's record is.
        assert!(!history.admits(VolumeEpoch(3), Lsn(41)) && !history.admits(VolumeEpoch(5), Lsn(40)));
        assert_eq!(history.server_version_of(VolumeEpoch(2)), Some(release(19)));
        assert_eq!(history.server_version_of(VolumeEpoch(3)), None);
    }

    #[test]
    #[should_panic(expected = "invariant openings-in-order is broken")]
    fn an_opening_before_an_older_one_is_noticed() {
        let mut history = EpochHistory::default();
        history.push(opening(1, 40, 18));
        history.push(opening(2, 32, 18));
    }

    #[test]
    fn a_history_longer_than_any_is_not_decoded() {
        for (length, is_decoded) in [(DECODED_OPENINGS_MAX, true), (DECODED_OPENINGS_MAX + 1, false)] {
            let openings = (1..=length as u64).map(|epoch| opening(epoch, 40, 18)).collect();
            let encoded = postcard::to_stdvec(&Openings { openings }).unwrap();
            assert_eq!(
                postcard::from_bytes::<EpochHistory>(&encoded).is_ok(),
                is_decoded,
                "{length} openings"
            );
        }
    }

    #[test]
    fn a_stored_history_out_of_order_is_refused() {
        let stored =
            |openings: &[EpochOpening]| EpochHistory::try_from(Openings { openings: openings.to_vec() });
        assert!(stored(&[opening(1, 0, 18), opening(2, 40, 18), opening(3, 40, 18)]).is_ok());
        assert!(stored(&[opening(1, 0, 18), opening(1, 40, 18)]).is_err());
        assert!(stored(&[opening(2, 40, 18), opening(3, 32, 18)]).is_err());
        assert!(stored(&[opening(0, 0, 18)]).is_err());
    }
}
