//! Records the driver still holds: not yet durable, or not yet acknowledged by every node.

use std::collections::VecDeque;

use borealis_types::{GroupSet, Lsn, RecordForm, RecordSpan, invariant};
use borealis_wire::GroupLink;

/// Bytes of an ordinary chunk. A chunk is freed when all its records are gone, so this is also the grain in
/// which memory comes back.
const CHUNK_BYTES: usize = 256 << 10;

/// A record that some node may still need, where it lies in the chunks.
#[derive(Clone, Copy, Debug)]
pub struct RetainedRecord<'a> {
    /// Where it stands in the volume.
    pub span: RecordSpan,
    /// The groups that it was shipped to.
    pub groups: GroupSet,
    /// Its place in each group's chain, in group order.
    pub links: &'a [GroupLink],
    /// What part of a record it is.
    pub form: RecordForm,
    /// What PostgreSQL wrote, without page headers; of a piece, after its checksum.
    pub bytes: &'a [u8],
}

#[derive(Debug)]
struct Entry {
    span: RecordSpan,
    groups: GroupSet,
    form: RecordForm,
    /// Number of the chunk, counted from the first chunk ever.
    chunk: u64,
    bytes: (u32, u32),
    links: (u32, u16),
}

#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    links: Vec<GroupLink>,
}

/// A queue of records, numbered from zero in the order they were pushed. Bytes and links live in chunks, so
/// pushing a record allocates nothing most of the time.
#[derive(Debug, Default)]
pub struct RetainedQueue {
    entries: VecDeque<Entry>,
    /// Number of `entries[0]`; of the next record when empty.
    first: u64,
    chunks: VecDeque<Chunk>,
    /// How many chunks were freed before `chunks[0]`: numbers of chunks are never used again.
    first_chunk: u64,
    /// An emptied chunk to use again.
    spare: Option<Chunk>,
    bytes: usize,
}

impl RetainedQueue {
    /// Number of the oldest record held; equal to [`RetainedQueue::end`] when empty.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Number that the next record will get.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Bytes of all records held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a record after all others.
    pub fn push(
        &mut self,
        span: RecordSpan,
        groups: GroupSet,
        links: &[GroupLink],
        form: RecordForm,
        bytes: &[u8],
    ) {
        let fits = self
            .chunks
            .back()
            .is_some_and(|chunk| chunk.bytes.len() + bytes.len() <= CHUNK_BYTES.max(chunk.bytes.capacity()));
        if !fits {
            let mut chunk = self.spare.take().unwrap_or_default();
            chunk.bytes.reserve(CHUNK_BYTES.max(bytes.len()));
            self.chunks.push_back(chunk);
        }
        let chunk_number = self.first_chunk + self.chunks.len() as u64 - 1;
        let chunk = self.chunks.back_mut().expect("a chunk was pushed if there was none with room");
        let entry = Entry {
            span,
            groups,
            form,
            chunk: chunk_number,
            bytes: (chunk.bytes.len() as u32, bytes.len() as u32),
            links: (chunk.links.len() as u32, links.len() as u16),
        };
        chunk.bytes.extend_from_slice(bytes);
        chunk.links.extend_from_slice(links);
        self.bytes += bytes.len();
        self.entries.push_back(entry);
    }

    /// The record with this number, if it is held.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<RetainedRecord<'_>> {
        let entry = self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?)?;
        let chunks = self.first_chunk..self.first_chunk + self.chunks.len() as u64;
        invariant!(
            "chunk-outlives-its-records",
            chunks.contains(&entry.chunk),
            "record {number} is in chunk {}, there are {chunks:?}",
            entry.chunk
        );
        let chunk = &self.chunks[(entry.chunk - self.first_chunk) as usize];
        let (bytes, links) = (entry.bytes, entry.links);
        Some(RetainedRecord {
            span: entry.span,
            groups: entry.groups,
            form: entry.form,
            links: &chunk.links[links.0 as usize..links.0 as usize + usize::from(links.1)],
            bytes: &chunk.bytes[bytes.0 as usize..(bytes.0 + bytes.1) as usize],
        })
    }

    /// Position and size in bytes of a record held, without its contents.
    #[must_use]
    pub fn span(&self, number: u64) -> Option<(RecordSpan, GroupSet, usize)> {
        let entry = self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?)?;
        Some((entry.span, entry.groups, entry.bytes.1 as usize))
    }

    /// Drops records from the front: those below number `acknowledged`, and beyond that as many as bring the
    /// queue down to `limit_bytes`; but none that ends above `durable`.
    pub fn release(&mut self, durable: Lsn, acknowledged: u64, limit_bytes: usize) {
        while let Some(entry) = self.entries.front() {
            let wanted = self.first >= acknowledged && self.bytes <= limit_bytes;
            if entry.span.end > durable || wanted {
                break;
            }
            self.bytes -= entry.bytes.1 as usize;
            self.entries.pop_front();
            self.first += 1;
            invariant!(
                "empty-queue-holds-no-bytes",
                !self.entries.is_empty() || self.bytes == 0,
                "{} bytes are left",
                self.bytes
            );
            let oldest_chunk = self.entries.front().map(|entry| entry.chunk);
            // The last chunk stays, for the records to come.
            while self.chunks.len() > 1 && oldest_chunk.is_none_or(|oldest| self.first_chunk < oldest) {
                self.recycle_front();
            }
            if self.entries.is_empty()
                && let Some(chunk) = self.chunks.back_mut()
            {
                chunk.bytes.clear();
                chunk.links.clear();
                // One record of many megabytes must not hold its memory for ever.
                chunk.bytes.shrink_to(CHUNK_BYTES);
            }
        }
    }

    fn recycle_front(&mut self) {
        if let Some(mut chunk) = self.chunks.pop_front() {
            self.first_chunk += 1;
            if chunk.bytes.capacity() <= CHUNK_BYTES {
                chunk.bytes.clear();
                chunk.links.clear();
                self.spare = Some(chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::GroupId;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Release { durable_records: u64, acknowledged_records: u64, limit_bytes: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1usize..200).prop_map(Step::Push),
            1 => Just(Step::Push(CHUNK_BYTES + 77)),
            2 => (0u64..40, 0u64..40, 0usize..400_000).prop_map(|(durable_records, acknowledged_records, limit_bytes)| {
                Step::Release { durable_records, acknowledged_records, limit_bytes }
            }),
        ]
    }

    fn with_one_record() -> RetainedQueue {
        let mut queue = RetainedQueue::default();
        let span = RecordSpan { start: Lsn(8), end: Lsn(40) };
        let link = GroupLink { group: GroupId(0), previous_end: Lsn(0) };
        queue.push(span, GroupSet::EMPTY.with(GroupId(0)), &[link], RecordForm::default(), &[7; 30]);
        queue
    }

    #[test]
    #[should_panic(expected = "invariant chunk-outlives-its-records is broken: record 0 is in chunk 0")]
    fn a_chunk_freed_too_early_is_noticed() {
        let mut queue = with_one_record();
        queue.recycle_front();
        let _ = queue.get(0);
    }

    #[test]
    #[should_panic(expected = "invariant empty-queue-holds-no-bytes is broken: 5 bytes are left")]
    fn bytes_that_nobody_counts_down_are_noticed() {
        let mut queue = with_one_record();
        queue.bytes += 5;
        queue.release(Lsn(40), 1, 0);
    }

    proptest! {
        #[test]
        fn behaves_as_a_list_of_records(steps in prop::collection::vec(step(), 1..120)) {
            let mut queue = RetainedQueue::default();
            let mut model: Vec<(RecordSpan, Vec<GroupLink>, Vec<u8>)> = Vec::new();
            let mut first = 0usize;
            let mut position = 8u64;
            for step in steps {
                match step {
                    Step::Push(length) => {
                        let span = RecordSpan { start: Lsn(position), end: Lsn(position + length as u64) };
                        position = span.end.0;
                        let bytes = vec![model.len() as u8; length];
                        let links: Vec<_> = (0..length as u16 % 3 + 1)
                            .map(|g| GroupLink { group: GroupId(g), previous_end: Lsn(model.len() as u64) })
                            .collect();
                        let groups = links.iter().fold(GroupSet::EMPTY, |set, link| set.with(link.group));
                        queue.push(span, groups, &links, RecordForm::default(), &bytes);
                        model.push((span, links, bytes));
                    }
                    Step::Release { durable_records, acknowledged_records, limit_bytes } => {
                        let durable_count = (first + durable_records as usize).min(model.len());
                        let durable = if durable_count == 0 { Lsn(0) } else { model[durable_count - 1].0.end };
                        let acknowledged = first as u64 + acknowledged_records;
                        queue.release(durable, acknowledged, limit_bytes);
                        while first < durable_count {
                            let held: usize = model[first..].iter().map(|m| m.2.len()).sum();
                            if first as u64 >= acknowledged && held <= limit_bytes {
                                break;
                            }
                            first += 1;
                        }
                    }
                }
                prop_assert_eq!(queue.first(), first as u64);
                prop_assert_eq!(queue.end(), model.len() as u64);
                prop_assert_eq!(queue.size_bytes(), model[first..].iter().map(|m| m.2.len()).sum::<usize>());
                prop_assert!(queue.get(model.len() as u64).is_none());
                for (number, expected) in model.iter().enumerate().skip(first) {
                    let record = queue.get(number as u64).unwrap();
                    prop_assert_eq!(record.span, expected.0);
                    prop_assert_eq!(record.links, expected.1.as_slice());
                    prop_assert_eq!(record.bytes, expected.2.as_slice());
                }
            }
        }
    }
}
