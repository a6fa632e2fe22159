//! Parsing an incoming batch, and every check that needs no lock.

use std::ops::Range;

use borealis_types::{GroupSet, RecordForm, RecordSpan, ServerVersion};
use borealis_wal::{Effect, Record};
use borealis_wire::{BatchHeader, BatchReader, GroupLink, Refusal};

use crate::segment::record_effects::RecordEffects;
use crate::{Store, StoreError};

/// The longest batch accepted: as much as a frame can carry.
const BATCH_BYTES_MAX: usize = borealis_wire::frame::MAX_PAYLOAD_BYTES;

/// Size of an ordinary short record with its header in the batch, to estimate how many records a batch has.
const SHORT_RECORD_BYTES: usize = 80;

/// Most records that room is reserved for in advance, whatever size a batch has.
const LIKELY_RECORDS_MAX: usize = 512;

/// A parsed batch that passed every check that needs no lock.
pub(super) struct OfferedBatch<'a> {
    pub bytes: &'a [u8],
    pub header: BatchHeader,
    /// The release that writes in the batch's epoch. `None` if no segment here knows the epoch; then no
    /// segment takes any of its records.
    pub server_version: Option<ServerVersion>,
    pub records: Vec<OfferedRecord<'a>>,
    /// The links of all records, concatenated.
    pub links: Vec<GroupLink>,
    pub effects: Vec<Effect>,
}

/// A record of an [`OfferedBatch`].
pub(super) struct OfferedRecord<'a> {
    pub span: RecordSpan,
    pub form: RecordForm,
    pub bytes: &'a [u8],
    /// Offset of `bytes` in the batch.
    pub offset: usize,
    /// Which of the batch's links are this record's.
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
    /// Parses a batch, checks what needs no lock, and determines each record's effects. Done once, and
    /// outside of the lock, because it is most of the work of an append.
    pub(super) fn parse_batch<'a>(&self, bytes: &'a [u8]) -> Result<OfferedBatch<'a>, StoreError> {
        if bytes.len() > BATCH_BYTES_MAX {
            return Err(misuse(format!("a batch of {} bytes (limit {BATCH_BYTES_MAX})", bytes.len())));
        }
        let (header, mut reader) = BatchReader::new(bytes).map_err(|error| misuse(error.to_string()))?;
        let server_version = self.lock().release_in(header.volume_epoch);
        let group_count = self.identity.placement.group_count();
        let context = self.context();
        // Records are seldom much shorter, so these lists seldom have to grow.
        let likely = (bytes.len() / SHORT_RECORD_BYTES + 1).min(LIKELY_RECORDS_MAX);
        let (mut links, mut effects) = (Vec::with_capacity(likely), Vec::with_capacity(likely));
        let mut records = Vec::with_capacity(likely);
        loop {
            let first_link = links.len();
            let Some(record) = reader.next_into(&mut links) else { break };
            let (span, form, bytes) = record.map_err(|error| misuse(error.to_string()))?;
            if links[first_link..].iter().any(|link| link.group.0 >= group_count) {
                let start = span.start;
                return Err(misuse(format!("the record at {start} is of a group the volume does not have")));
            }
            let is_piece = form.part.is_piece();
            let verified = match is_piece {
                true => borealis_wal::piece::open(bytes, span.start).map(|_| ()),
                false => self.environment.redo.verify(bytes, span.start),
            };
            verified.map_err(|error| misuse(error.to_string()))?;
            let record_effects = match server_version {
                Some(_) if is_piece => RecordEffects::of_piece(),
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
                form,
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
