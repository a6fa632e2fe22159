//! What a batch's records change that end with it and began earlier: learned outside of the lock, see
//! [`crate::segment::learned`].

use std::ops::RangeInclusive;
use std::sync::PoisonError;

use borealis_types::RecordSpan;

use crate::append::batch::OfferedBatch;
use crate::log::position::RecordRef;
use crate::log::record_reader::{Piece, assemble};
use crate::segment::learned::LearnedRecord;
use crate::segment::record_effects::RecordEffects;
use crate::{Origin, Store};

impl Store {
    /// Puts the records together whose last pieces a batch brings, and learns what they change.
    ///
    /// What cannot be learned now (the log cannot be read, or some piece is missing) is left out: whoever indexes the record
    /// sees for himself, and says what is wrong.
    pub(super) fn learn(&self, batch: &OfferedBatch<'_>, origin: Origin) -> Vec<LearnedRecord> {
        // Nobody takes records of an epoch that no segment knows.
        let Some(server_version) = batch.server_version else { return Vec::new() };
        let last_pieces = batch
            .records
            .iter()
            .enumerate()
            .filter(|(_, record)| record.form.part.is_piece() && record.form.part.ends_record());
        let mut learned = Vec::new();
        for (last, _) in last_pieces {
            let brought = brought_together(batch, last);
            let Some(in_log) = self.pieces_before(batch, *brought.start(), origin) else { continue };
            let brought = &batch.records[brought];
            let (Some(first), Some(last)) = (
                in_log.first().map(|piece| piece.span).or(brought.first().map(|piece| piece.span)),
                brought.last(),
            ) else {
                continue;
            };
            let span = RecordSpan { start: first.start, end: last.span.end };
            let from_log = in_log.iter().map(|piece| Piece::InLog(*piece));
            let pieces: Vec<Piece<'_>> = from_log
                .chain(brought.iter().map(|piece| Piece::Brought(piece.bytes, piece.span.start)))
                .collect();
            // One at a time: each may be as long as PostgreSQL lets a record be.
            let _turn = self.assembling.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(bytes) = assemble(&self.files, &pieces) else { continue };
            let mut effects = Vec::new();
            let record_effects =
                RecordEffects::of_pieces(self.context(), server_version, span, &bytes, &mut effects);
            let brought = brought.iter().map(|piece| piece.span).collect();
            learned.push(LearnedRecord { in_log, brought, record_effects, effects });
        }
        learned
    }

    /// The pieces in the log that a batch's piece goes on with, as the first segment has them that has them all; none if a
    /// record begins with it. `None` if no segment has them.
    fn pieces_before(&self, batch: &OfferedBatch<'_>, at: usize, origin: Origin) -> Option<Vec<RecordRef>> {
        let record = &batch.records[at];
        if record.form.part.begins_record() {
            return Some(Vec::new());
        }
        let state = self.lock();
        let groups = batch.links(at).iter().map(|link| link.group).filter(|group| origin.concerns(*group));
        let begun = groups.filter_map(|group| Some(state.segments.get(&group)?.cut.begun()));
        let mut goes_on = begun.filter(|begun| {
            let last = begun.last();
            last.is_some_and(|last| record.form.part.continues(last.part, last.span.end, record.span.start))
        });
        goes_on.next().map(<[RecordRef]>::to_vec)
    }
}

/// The records of a batch that are pieces of one, through its last.
fn brought_together(batch: &OfferedBatch<'_>, last: usize) -> RangeInclusive<usize> {
    let mut first = last;
    while let Some(before) = first.checked_sub(1).map(|at| &batch.records[at]) {
        let record = &batch.records[first];
        if !record.form.part.continues(before.form.part, before.span.end, record.span.start) {
            break;
        }
        first -= 1;
    }
    first..=last
}
