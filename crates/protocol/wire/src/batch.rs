//! Redo batches: the one encoding of records, on the wire and in a node's log.
//!
//! ```text
//! batch  = header record*
//! header = postcard(BatchHeader)
//! record = postcard(RecordHeader) bytes
//! ```
//!
//! A record is a whole one of PostgreSQL's or a piece of one ([`Part`]). A piece's bytes begin with a checksum of their
//! own (`borealis_wal::piece`); to this encoding they are bytes.
//!
//! Positions are differences to the record before, written as variable-length integers: an ordinary record
//! costs about eight bytes more than PostgreSQL's own bytes of it. All records of a batch were written in
//! one volume epoch.

use borealis_types::{
    GroupId, GroupSet, Lsn, MAX_GROUPS, Part, RecordForm, RecordSpan, VolumeEpoch, invariant,
};
use serde::{Deserialize, Serialize};

/// Where a group's redo ends as of some volume position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupTail {
    /// The group whose end is told.
    pub group: GroupId,
    /// End of its last record at or below that position; zero if it has none.
    pub last_end: Lsn,
}

/// What a writer tells its peers with each batch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct BatchHeader {
    /// The epoch in which the records were written.
    pub volume_epoch: VolumeEpoch,
    /// The volume durable LSN (VDL), as the span of the last durable record.
    pub durable: RecordSpan,
    /// Nobody will ask for a page version below it (PGMRPL).
    pub minimum_read_point: Lsn,
    /// Where each group's redo ends at `durable.end`; empty in batches that come from a peer.
    #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, { MAX_GROUPS as usize }>")]
    pub tails: Vec<GroupTail>,
}

/// A record's place in one group's chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupLink {
    /// The group whose chain is meant.
    pub group: GroupId,
    /// End of the group's record before this one; zero for its first.
    pub previous_end: Lsn,
}

/// One record in a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchRecord<'a> {
    /// Where it stands in the volume.
    pub span: RecordSpan,
    /// The groups that have it, in group order, and its place in each.
    pub links: Vec<GroupLink>,
    /// What part of a record it is, and what its bytes do not say of its place.
    pub form: RecordForm,
    /// Its bytes as PostgreSQL wrote them, without page headers; of a piece, after its checksum.
    pub bytes: &'a [u8],
}

impl BatchRecord<'_> {
    /// The groups that have it.
    #[must_use]
    pub fn groups(&self) -> GroupSet {
        self.links.iter().fold(GroupSet::EMPTY, |set, link| set.with(link.group))
    }

    /// The link of one group, if it has the record.
    #[must_use]
    pub fn link(&self, group: GroupId) -> Option<GroupLink> {
        self.links.iter().copied().find(|link| link.group == group)
    }
}

/// Links follow it, each as the group and how far before `start` its previous record ended; then, if the form says so, how
/// far before `start` the entry before it in the volume starts.
#[derive(Serialize, Deserialize)]
struct RecordHeader {
    /// From the end of the record before (from zero for the first).
    start_delta: i64,
    span_length: u64,
    byte_length: u32,
    /// How many links follow, times [`LINK_COUNT_UNIT`], with the record's form in the low bits.
    links_and_form: u64,
}

/// The low bits of a record header's number of links are its form: two for the part, one for a start of the entry before.
const LINK_COUNT_UNIT: u64 = 8;
const HAS_PREVIOUS_START: u8 = 4;

/// Bytes that are not a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed redo batch: {0}")]
pub struct BatchError(&'static str);

/// Encodes a batch, record by record.
#[derive(Debug)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    last_end: Lsn,
    record_count: usize,
}

impl BatchBuilder {
    /// An empty batch with this header.
    #[must_use]
    pub fn new(header: &BatchHeader) -> BatchBuilder {
        let bytes = postcard::to_extend(header, Vec::with_capacity(4096))
            .expect("plain numbers and lists always encode into a growing buffer");
        BatchBuilder { bytes, last_end: Lsn::ZERO, record_count: 0 }
    }

    /// Adds a whole record whose bytes say where the one before it starts. `links` are in group order.
    ///
    /// # Panics
    /// As [`BatchBuilder::push_form`].
    pub fn push(&mut self, span: RecordSpan, links: &[GroupLink], record: &[u8]) {
        self.push_form(span, RecordForm::default(), links, record);
    }

    /// Adds a record. `links` are in group order.
    ///
    /// # Panics
    /// If a reader would refuse the record: what is asserted here it checks ([`BatchReader::next_into`]).
    pub fn push_form(&mut self, span: RecordSpan, form: RecordForm, links: &[GroupLink], record: &[u8]) {
        invariant!(
            "record-fits-its-span",
            !record.is_empty() && span.end.0.saturating_sub(span.start.0) >= record.len() as u64,
            "{} bytes at {span:?}",
            record.len()
        );
        invariant!(
            "links-ascend-and-point-back",
            !links.is_empty()
                && links.iter().all(|link| link.previous_end <= span.start)
                && links.windows(2).all(|pair| pair[0].group < pair[1].group),
            "{links:?} at {span:?}"
        );
        invariant!(
            "piece-names-the-entry-before",
            (form.previous_start.is_some() || !form.part.is_piece())
                && form.previous_start.is_none_or(|previous| previous < span.start),
            "{form:?} at {span:?}"
        );
        let before = |lsn: Lsn| span.start.0.wrapping_sub(lsn.0) as i64;
        let has_previous = if form.previous_start.is_some() { HAS_PREVIOUS_START } else { 0 };
        let header = RecordHeader {
            start_delta: span.start.0.wrapping_sub(self.last_end.0) as i64,
            span_length: span.end.0 - span.start.0,
            byte_length: record.len() as u32,
            links_and_form: links.len() as u64 * LINK_COUNT_UNIT
                + u64::from(form.part.number() | has_previous),
        };
        self.encode(&header);
        for link in links {
            self.encode(&(link.group, before(link.previous_end)));
        }
        if let Some(previous_start) = form.previous_start {
            self.encode(&before(previous_start));
        }
        self.bytes.extend_from_slice(record);
        self.last_end = span.end;
        self.record_count += 1;
    }

    fn encode(&mut self, value: &impl Serialize) {
        let bytes = std::mem::take(&mut self.bytes);
        self.bytes = postcard::to_extend(value, bytes)
            .expect("plain numbers and lists always encode into a growing buffer");
    }

    /// Size of the encoding so far, header included.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// How many records were added.
    #[must_use]
    pub fn record_count(&self) -> usize {
        self.record_count
    }

    /// The encoding, complete: a batch may end after any record.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Where a record stands, what part of one it is, and its bytes.
pub type PlacedBytes<'a> = (RecordSpan, RecordForm, &'a [u8]);

/// Reads a batch in place.
#[derive(Clone, Debug)]
pub struct BatchReader<'a> {
    whole: &'a [u8],
    rest: &'a [u8],
    last_end: Lsn,
    failed: bool,
}

impl<'a> BatchReader<'a> {
    /// Reads the header and stands before the first record.
    ///
    /// # Errors
    /// When the header is malformed.
    pub fn new(bytes: &'a [u8]) -> Result<(BatchHeader, BatchReader<'a>), BatchError> {
        let (header, rest): (BatchHeader, _) =
            postcard::take_from_bytes(bytes).map_err(|_| BatchError("header"))?;
        if header.tails.iter().any(|tail| tail.group.0 >= MAX_GROUPS) {
            return Err(BatchError("group number in header"));
        }
        Ok((header, BatchReader { whole: bytes, rest, last_end: Lsn::ZERO, failed: false }))
    }

    /// Offset of the next record's header in the batch.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.whole.len() - self.rest.len()
    }

    /// Reads the next record and appends its links to `links`: where it stands, its form, and its bytes. For those
    /// who read many and keep all links in one list; everyone else iterates.
    ///
    /// # Errors
    /// When the record is malformed; nothing more is read then.
    pub fn next_into(&mut self, links: &mut Vec<GroupLink>) -> Option<Result<PlacedBytes<'a>, BatchError>> {
        if self.failed || self.rest.is_empty() {
            return None;
        }
        let record = self.read_record(links);
        self.failed = record.is_err();
        Some(record)
    }

    fn read_record(&mut self, links: &mut Vec<GroupLink>) -> Result<PlacedBytes<'a>, BatchError> {
        let (header, mut rest): (RecordHeader, _) =
            postcard::take_from_bytes(self.rest).map_err(|_| BatchError("record header"))?;
        let start = Lsn(self.last_end.0.wrapping_add(header.start_delta as u64));
        let end = start.checked_add(header.span_length).ok_or(BatchError("record end"))?;
        if header.span_length < u64::from(header.byte_length) || header.byte_length == 0 {
            return Err(BatchError("record length"));
        }
        let link_count = header.links_and_form / LINK_COUNT_UNIT;
        let form_bits = (header.links_and_form % LINK_COUNT_UNIT) as u8;
        if link_count == 0 {
            return Err(BatchError("record without a group"));
        }
        let mut last_group = None;
        for _ in 0..link_count {
            let ((group, delta), after): ((GroupId, i64), _) =
                postcard::take_from_bytes(rest).map_err(|_| BatchError("record header"))?;
            rest = after;
            let previous_end = Lsn(start.0.wrapping_sub(delta as u64));
            // Ascending numbers below a bound also bound how many there are.
            if group.0 >= MAX_GROUPS || last_group >= Some(group) || previous_end > start {
                return Err(BatchError("group link"));
            }
            last_group = Some(group);
            links.push(GroupLink { group, previous_end });
        }
        let mut form = RecordForm { part: Part::from_bits(form_bits), previous_start: None };
        if form_bits & HAS_PREVIOUS_START != 0 {
            let (delta, after): (i64, _) =
                postcard::take_from_bytes(rest).map_err(|_| BatchError("record header"))?;
            rest = after;
            let previous_start = Lsn(start.0.wrapping_sub(delta as u64));
            if previous_start >= start {
                return Err(BatchError("start of the record before"));
            }
            form.previous_start = Some(previous_start);
        } else if form.part.is_piece() {
            return Err(BatchError("a piece that does not name the entry before it"));
        }
        let bytes = rest.get(..header.byte_length as usize).ok_or(BatchError("record bytes"))?;
        self.rest = &rest[bytes.len()..];
        self.last_end = end;
        Ok((RecordSpan { start, end }, form, bytes))
    }
}

impl<'a> Iterator for BatchReader<'a> {
    type Item = Result<BatchRecord<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut links = Vec::new();
        let record = self.next_into(&mut links)?;
        Some(record.map(|(span, form, bytes)| BatchRecord { span, links, form, bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> BatchHeader {
        BatchHeader {
            volume_epoch: VolumeEpoch(3),
            durable: RecordSpan { start: Lsn(100), end: Lsn(160) },
            minimum_read_point: Lsn(160),
            tails: vec![GroupTail { group: GroupId(0), last_end: Lsn(160) }],
        }
    }

    proptest! {
        #[test]
        fn what_is_pushed_is_read(records in prop::collection::vec((0u64..1000, prop::collection::vec(any::<u8>(), 1..200), prop::collection::btree_map(0u16..64, 0u64..5000, 1..5), (0u8..4, prop::option::of(1u64..5000))), 0..20)) {
            let mut builder = BatchBuilder::new(&header());
            let mut position = 1 << 24;
            let mut expected = Vec::new();
            for (gap, bytes, groups, (part, previous)) in &records {
                let start = Lsn(position + gap);
                let end = Lsn(start.0 + bytes.len() as u64).align_up();
                let links: Vec<_> = groups
                    .iter()
                    .map(|(&group, back)| GroupLink { group: GroupId(group), previous_end: Lsn(start.0 - back) })
                    .collect();
                let part = Part::from_bits(*part);
                let previous_start = previous.or(part.is_piece().then_some(7)).map(|back| Lsn(start.0 - back));
                let form = RecordForm { part, previous_start };
                builder.push_form(RecordSpan { start, end }, form, &links, bytes);
                expected.push((RecordSpan { start, end }, links, form, bytes.clone()));
                position = end.0;
            }
            let encoded = builder.finish();
            let (read_header, reader) = BatchReader::new(&encoded).unwrap();
            prop_assert_eq!(read_header, header());
            let read: Vec<_> = reader
                .map(|record| record.map(|r| (r.span, r.links, r.form, r.bytes.to_vec())))
                .collect::<Result<_, _>>()
                .unwrap();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn hostile_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok((_, reader)) = BatchReader::new(&bytes) {
                let _ = reader.collect::<Result<Vec<_>, _>>();
            }
        }

        #[test]
        fn a_mutated_batch_never_panics(at in 0usize..200, value: u8) {
            let mut builder = BatchBuilder::new(&header());
            let link = GroupLink { group: GroupId(1), previous_end: Lsn(80) };
            for start in [200, 300, 400] {
                builder.push(RecordSpan { start: Lsn(start), end: Lsn(start + 64) }, &[link], &[7; 60]);
            }
            let mut bytes = builder.finish();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok((_, reader)) = BatchReader::new(&bytes) {
                let _ = reader.collect::<Result<Vec<_>, _>>();
            }
        }
    }

    fn push(start: u64, end: u64, links: &[(u16, u64)]) {
        let links: Vec<_> = links
            .iter()
            .map(|&(group, end)| GroupLink { group: GroupId(group), previous_end: Lsn(end) })
            .collect();
        BatchBuilder::new(&header()).push(RecordSpan { start: Lsn(start), end: Lsn(end) }, &links, &[1; 60]);
    }

    #[test]
    #[should_panic(expected = "invariant record-fits-its-span is broken: 60 bytes at")]
    fn a_record_longer_than_its_span_is_not_sent() {
        push(200, 240, &[(1, 80)]);
    }

    #[test]
    #[should_panic(expected = "invariant piece-names-the-entry-before is broken")]
    fn a_piece_that_does_not_name_the_entry_before_is_not_sent() {
        let link = GroupLink { group: GroupId(1), previous_end: Lsn(80) };
        let form = RecordForm { part: Part::Last, previous_start: None };
        let span = RecordSpan { start: Lsn(200), end: Lsn(264) };
        BatchBuilder::new(&header()).push_form(span, form, &[link], &[1; 60]);
    }

    #[test]
    #[should_panic(expected = "invariant links-ascend-and-point-back is broken")]
    fn a_record_with_its_groups_out_of_order_is_not_sent() {
        push(200, 264, &[(2, 80), (1, 80)]);
    }

    #[test]
    #[should_panic(expected = "invariant links-ascend-and-point-back is broken")]
    fn a_record_after_one_that_comes_later_is_not_sent() {
        push(200, 264, &[(1, 208)]);
    }

    #[test]
    fn an_ordinary_record_costs_little_more_than_its_bytes() {
        let mut builder = BatchBuilder::new(&header());
        let links = [GroupLink { group: GroupId(2), previous_end: Lsn(0x1_0000_0000) }];
        builder.push(RecordSpan { start: Lsn(0x1_0000_0100), end: Lsn(0x1_0000_0160) }, &links, &[1; 92]);
        let before = builder.size_bytes();
        builder.push(RecordSpan { start: Lsn(0x1_0000_0160), end: Lsn(0x1_0000_01C0) }, &links, &[1; 92]);
        assert!(builder.size_bytes() - before <= 92 + 8, "{} bytes", builder.size_bytes() - before);
    }
}
