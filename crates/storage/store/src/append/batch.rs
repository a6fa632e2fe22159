//! A batch as it came: parsed, and checked as far as that is possible without the state.

use std::ops::Range;

use borealis_types::{GroupSet, RecordSpan, ServerVersion};
use borealis_wal::{Effect, Record};
use borealis_wire::{BatchHeader, BatchReader, GroupLink, Refusal};

use crate::segment::record_effects::RecordEffects;
use crate::{Store, StoreError};

/// The longest batch accepted: as much as a frame can carry.
const BATCH_BYTES_MAX: usize = borealis_wire::frame::MAX_PAYLOAD_BYTES;

/// An ordinary short record, with its header in the batch.
const SHORT_RECORD_BYTES: usize = 80;

/// Room made at once, however long a batch claims to be.
const LIKELY_RECORDS_MAX: usize = 512;

/// A batch that was taken apart, and everything checked that can be without the state.
pub(super) struct OfferedBatch<'a> {
    pub bytes: &'a [u8],
    pub header: BatchHeader,
    /// The release that writes in the batch's epoch; `None` if no segment here knows the epoch, and then none takes
    /// anything of it.
    pub server_version: Option<ServerVersion>,
    pub records: Vec<OfferedRecord<'a>>,
    /// Of all records, one after another.
    pub links: Vec<GroupLink>,
    pub effects: Vec<Effect>,
}

/// One record of it.
pub(super) struct OfferedRecord<'a> {
    pub span: RecordSpan,
    pub bytes: &'a [u8],
    /// Where `bytes` begin in the batch.
    pub offset: usize,
    /// Its part of the batch's links.
    pub links: Range<usize>,
    pub record_effects: RecordEffects,
    /// The segments that took it.
    pub taken: GroupSet,
}

impl OfferedBatch<'_> {
    pub(super) fn links(&self, at: usize) -> &[GroupLink] {
        &self.links[self.records[at].links.clone()]
    }

    /// The record's groups that are also in `groups`.
    pub(super) fn groups_of(&self, at: usize, groups: GroupSet) -> GroupSet {
        let linked = self.links(at).iter().filter(|link| groups.contains(link.group));
        linked.fold(GroupSet::EMPTY, |set, link| set.with(link.group))
    }
}

pub(super) fn misuse(what: impl Into<String>) -> StoreError {
    Refusal::Misuse(what.into()).into()
}

impl Store {
    /// Checks everything that can be checked without the state, and finds out what each record does: once, and
    /// while nobody waits for the lock.
    pub(super) fn parse_batch<'a>(&self, bytes: &'a [u8]) -> Result<OfferedBatch<'a>, StoreError> {
        if bytes.len() > BATCH_BYTES_MAX {
            return Err(misuse(format!("a batch of {} bytes (limit {BATCH_BYTES_MAX})", bytes.len())));
        }
        let (header, mut reader) = BatchReader::new(bytes).map_err(|error| misuse(error.to_string()))?;
        let server_version = self.lock().release_in(header.volume_epoch);
        let group_count = self.identity.placement.group_count();
        let context = self.context();
        // Records are seldom much shorter, so these seldom grow.
        let likely = (bytes.len() / SHORT_RECORD_BYTES + 1).min(LIKELY_RECORDS_MAX);
        let (mut links, mut effects) = (Vec::with_capacity(likely), Vec::with_capacity(likely));
        let mut records = Vec::with_capacity(likely);
        loop {
            let first_link = links.len();
            let Some(record) = reader.next_into(&mut links) else { break };
            let (span, bytes) = record.map_err(|error| misuse(error.to_string()))?;
            if links[first_link..].iter().any(|link| link.group.0 >= group_count) {
                let start = span.start;
                return Err(misuse(format!("the record at {start} is of a group the volume does not have")));
            }
            self.environment.redo.verify(bytes, span.start).map_err(|error| misuse(error.to_string()))?;
            let record_effects = match server_version {
                Some(server_version) => {
                    let parsed = Record::parse(server_version, span, bytes);
                    let parsed = parsed.map_err(|error| misuse(error.to_string()))?;
                    RecordEffects::of(context, &parsed, &mut effects)
                }
                None => RecordEffects::of_unknown_release(),
            };
            let offset = reader.offset() - bytes.len();
            let links = first_link..links.len();
            records.push(OfferedRecord {
                span,
                bytes,
                offset,
                links,
                record_effects,
                taken: GroupSet::EMPTY,
            });
        }
        Ok(OfferedBatch { bytes, header, server_version, records, links, effects })
    }
}
