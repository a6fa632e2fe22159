//! Offering a batch to the segments: who may send it, and which of them take each record.

use borealis_quorum::segment::{Offer, Source};
use borealis_quorum::{ChainLink, Promise};
use borealis_types::{GroupId, GroupSet, VolumeEpoch, invariant};
use borealis_wire::{GroupLink, Refusal};

use crate::append::batch::{OfferedBatch, misuse};
use crate::metrics::count;
use crate::segment::hosted::HostedSegment;
use crate::segment::state::State;
use crate::{Store, StoreError};

/// Who sends a batch; it decides by which rules a segment takes its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The live writer, which holds this promise. Only its positions count.
    Writer(Promise),
    /// A peer of this group; only its segment is offered the records.
    Peer(GroupId),
    /// A recovery that holds this promise brings records of this group.
    Recovery(Promise, GroupId),
}

impl Origin {
    /// Whether a segment of `group` is offered the records.
    pub(super) fn concerns(self, group: GroupId) -> bool {
        match self {
            Origin::Writer(_) => true,
            Origin::Peer(only) | Origin::Recovery(_, only) => only == group,
        }
    }
}

/// The result of offering a batch to the segments, besides which segments took each record.
#[derive(Default)]
pub(super) struct Outcome {
    pub concerned: GroupSet,
    pub too_far_ahead: GroupSet,
    /// Why the batch was refused; the records after the refused one were not offered.
    pub refused: Option<StoreError>,
}

/// Refuses a batch when a segment here knows another release for its epoch: a recovery opens an epoch with
/// one release in all groups.
pub(super) fn check_release(state: &State, batch: &OfferedBatch<'_>) -> Result<(), StoreError> {
    let epoch = batch.header.volume_epoch;
    for hosted in state.segments.values() {
        let known = hosted.segment.history().server_version_of(epoch);
        if known.is_some() && known != batch.server_version {
            let group = hosted.group();
            return Err(misuse(format!(
                "group {group} knows another writer of epoch {epoch} than other groups here"
            )));
        }
    }
    Ok(())
}

impl Store {
    /// Whether a segment is joining and has not heard of the epoch in which a writer sends. It counts for nothing yet, and its
    /// base or its peers bring what it misses: it must not keep the other segments here from their redo.
    fn is_passed_over(hosted: &HostedSegment, epoch: VolumeEpoch, origin: Origin) -> bool {
        let of_writer = matches!(origin, Origin::Writer(_));
        of_writer && hosted.is_joining() && hosted.segment.history().newest_epoch() < epoch
    }

    pub(super) fn check_origin(
        &self,
        state: &State,
        batch: &OfferedBatch<'_>,
        origin: Origin,
    ) -> Result<(), StoreError> {
        let promise = match origin {
            Origin::Peer(_) => return Ok(()),
            Origin::Writer(promise) => {
                if batch.header.volume_epoch != promise.epoch {
                    let what = "a writer sends records of its own epoch only";
                    return Err(misuse(what));
                }
                promise
            }
            Origin::Recovery(promise, _) => promise,
        };
        let concerned = batch.links.iter().fold(GroupSet::EMPTY, |set, link| set.with(link.group));
        for hosted in state.segments.values() {
            // An empty batch concerns every segment.
            let named = batch.records.is_empty() || concerned.contains(hosted.group());
            if !named || !origin.concerns(hosted.group()) {
                continue;
            }
            let standing = hosted.segment.promise();
            if standing == promise {
                continue;
            }
            if Store::is_passed_over(hosted, promise.epoch, origin) && standing.epoch <= promise.epoch {
                continue;
            }
            if standing.epoch < promise.epoch {
                return Err(StoreError::NeedsHistory { group: hosted.group(), epoch: promise.epoch });
            }
            // A promise learned from a peer does not name the writer. An epoch has one writer, so whoever
            // sends records of it is that writer.
            let unnamed = standing.epoch == promise.epoch && standing.writer.0 == 0;
            if !unnamed {
                return Err(Refusal::Fenced(standing.epoch).into());
            }
        }
        Ok(())
    }

    /// Offers each record to its segments, and notes which of them took it.
    pub(super) fn offer(&self, state: &mut State, batch: &mut OfferedBatch<'_>, origin: Origin) -> Outcome {
        let source = match origin {
            Origin::Writer(_) => Source::Writer,
            Origin::Peer(_) => Source::Peer,
            Origin::Recovery(..) => Source::Recovery,
        };
        let epoch = batch.header.volume_epoch;
        let mut offered = Outcome::default();
        for record in &mut batch.records {
            for &GroupLink { group, previous_end } in &batch.links[record.links.clone()] {
                if !origin.concerns(group) {
                    continue;
                }
                let Some(hosted) = state.segments.get_mut(&group) else { continue };
                if Store::is_passed_over(hosted, epoch, origin) {
                    continue;
                }
                offered.concerned = offered.concerned.with(group);
                let link = ChainLink { previous_end, span: record.span };
                // This segment materialized to this LSN because the writer said that the group has no more
                // records below it. A new record there contradicts that.
                let complete = hosted.segment.segment_complete_lsn();
                let denied = link.span.end > complete && link.span.end <= hosted.materialized.lsn;
                let outcome = match denied {
                    true => Offer::Conflict,
                    false => hosted.segment.offer(source, epoch, link),
                };
                match outcome {
                    Offer::Complete | Offer::Held => {
                        let known = hosted.segment.history().server_version_at(record.span.end);
                        invariant!(
                            "one-release-per-record",
                            known.is_some() && known == batch.server_version,
                            "group {group} takes the record at {} as of {known:?}, and it was looked at as of {:?}",
                            record.span.start,
                            batch.server_version
                        );
                        record.taken = record.taken.with(group);
                    }
                    Offer::Duplicate => count(&self.counters.records_duplicate, 1),
                    Offer::TooFarAhead => {
                        count(&self.counters.records_too_far_ahead, 1);
                        offered.too_far_ahead = offered.too_far_ahead.with(group);
                    }
                    Offer::Stale => {
                        count(&self.counters.records_stale, 1);
                        if source == Source::Writer {
                            let epoch = hosted.segment.promise().epoch;
                            offered.refused = Some(Refusal::Fenced(epoch).into());
                        }
                    }
                    Offer::NeedsHistory => {
                        offered.refused = Some(StoreError::NeedsHistory { group, epoch });
                    }
                    Offer::Conflict => {
                        count(&self.counters.records_conflicting, 1);
                        tracing::error!(group = group.0, start = %record.span.start, "conflicting record");
                        let what = format!(
                            "the record at {} contradicts what the segment of group {group} holds",
                            record.span.start
                        );
                        offered.refused = Some(misuse(what));
                    }
                }
            }
            if offered.refused.is_some() {
                break;
            }
        }
        offered
    }
}
