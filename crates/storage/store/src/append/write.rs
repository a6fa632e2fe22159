//! Writing the records that segments took to the log, and adding them to the index.

use borealis_types::{GroupSet, Lsn, RecordSpan};
use borealis_wire::BatchBuilder;

use crate::append::batch::OfferedBatch;
use crate::log::entry::EntryKind;
use crate::log::payload::{BATCH_PREFIX_BYTES, BatchPrefix};
use crate::log::position::{LogPosition, RecordRef};
use crate::segment::learned::LearnedRecord;
use crate::segment::state::{EnteredRecord, State};
use crate::{Origin, Store, StoreError};

impl Store {
    /// Writes the records that segments took, and adds them to the index. If every segment took all of its
    /// records, the batch is written unchanged; otherwise records are grouped into entries by the set of
    /// groups that took them. `learned` is what is known of records in pieces that end here.
    pub(super) fn write(
        &self,
        state: &mut State,
        mut batch: OfferedBatch<'_>,
        learned: &[LearnedRecord],
        positions_count: bool,
    ) -> Result<(), StoreError> {
        // An entry names one set of groups. Each of its records counts as taken by those groups of the set
        // that it links to.
        let everyone = batch.records.iter().fold(GroupSet::EMPTY, |set, record| set.union(record.taken));
        let fits = |at: usize| batch.groups_of(at, everyone) == batch.records[at].taken;
        let new: Vec<usize> =
            (0..batch.records.len()).filter(|&at| !batch.records[at].taken.is_empty()).collect();
        // Where each record's bytes are in the log.
        let mut positions = vec![LogPosition(0); batch.records.len()];
        if (0..batch.records.len()).all(fits) {
            let start = self.write_entry(state, everyone, positions_count, batch.bytes, || {
                batch.records.iter().map(|record| record.span)
            })?;
            for (position, record) in positions.iter_mut().zip(&batch.records) {
                *position = start.plus(record.offset);
            }
        } else {
            let mut entries: Vec<(GroupSet, Vec<usize>)> = Vec::new();
            for at in new.iter().copied() {
                let groups = batch.records[at].taken;
                match entries.iter_mut().find(|(of, _)| *of == groups) {
                    Some((_, members)) => members.push(at),
                    None => entries.push((groups, vec![at])),
                }
            }
            if new.iter().all(|&at| fits(at)) {
                entries = vec![(everyone, new.clone())];
            }
            for (groups, members) in entries {
                let mut builder = BatchBuilder::new(&batch.header);
                let mut offsets = Vec::with_capacity(members.len());
                for &at in &members {
                    let record = &batch.records[at];
                    builder.push_form(record.span, record.form, batch.links(at), record.bytes);
                    offsets.push(builder.size_bytes() - batch.records[at].bytes.len());
                }
                let start = self.write_entry(state, groups, positions_count, &builder.finish(), || {
                    members.iter().map(|&at| batch.records[at].span)
                })?;
                for (&at, offset) in members.iter().zip(offsets) {
                    positions[at] = start.plus(offset);
                }
            }
        }
        // Indexed only after all entries are written: the index takes a chain's records in order, and entries
        // of different groups interleave.
        let effects = std::mem::take(&mut batch.effects);
        let records = batch.records.into_iter().zip(positions).filter(|(record, _)| !record.taken.is_empty());
        let entered: Vec<EnteredRecord> = records
            .map(|(record, position)| EnteredRecord {
                reference: RecordRef {
                    span: record.span,
                    position,
                    length: record.bytes.len() as u32,
                    part: record.form.part,
                },
                groups: record.taken,
                record_effects: record.record_effects,
            })
            .collect();
        let entered = state.enter(self.context(), &self.files, entered, &effects, learned);
        // The segments have taken these records already. If they cannot be read back from the log because they are not
        // what was written, the store can promise nothing.
        entered.map_err(|error| self.poisoned(&error))
    }

    /// Indexes what the log could not be read for before. As long as it cannot, its segment takes nothing more.
    pub(super) fn index_put_off(
        &self,
        state: &mut State,
        batch: &OfferedBatch<'_>,
        origin: Origin,
    ) -> Result<(), StoreError> {
        let concerned = batch.links.iter().map(|link| link.group).filter(|group| origin.concerns(*group));
        for group in concerned {
            if state.segments.get(&group).is_none_or(|hosted| hosted.unread.is_none()) {
                continue;
            }
            let indexed = state.index_pending(self.context(), &self.files, group);
            indexed.map_err(|error| self.poisoned(&error))?;
            if let Some(hosted) = state.segments.get(&group) {
                hosted.check_read_through(Lsn::MAX)?;
            }
        }
        Ok(())
    }

    /// Writes a batch entry with the records at `spans`, which `groups` took. Returns the position of its
    /// batch.
    fn write_entry<S: Iterator<Item = RecordSpan>>(
        &self,
        state: &mut State,
        groups: GroupSet,
        positions_count: bool,
        batch: &[u8],
        spans: impl FnOnce() -> S,
    ) -> Result<LogPosition, StoreError> {
        let prefix = BatchPrefix { groups, positions_count }.encode();
        let position = self.append_entry(state, EntryKind::Batch, &[&prefix, batch])?;
        state.note_batch(position, BATCH_PREFIX_BYTES + batch.len(), groups, spans());
        Ok(position.plus(BATCH_PREFIX_BYTES))
    }
}
