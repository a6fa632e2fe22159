//! PostgreSQL's statistics, which outlive a server that was stopped in order.
//!
//! Such a server writes them into a file when it has written its last record, and the next one reads them if nothing was
//! written since (`pgstat_write_statsfile` and `pgstat_restore_stats` in `src/backend/utils/activity/pgstat.c`). Here the
//! driver ships the file after that record, as small values: parts, then a head. A start uses them only if the head is
//! the volume's last record. After anything else, a crash above all, they are of an earlier state, and PostgreSQL
//! throws its file away then, too.

use borealis_types::{Lsn, MetaKey, RecordSpan};
use borealis_wal::native::Native;
use borealis_wal::page::WalLayout;

use crate::ImportedRecord;
use crate::import::Stream;

/// The file, by its path below the data directory.
pub const STATISTICS_FILE: &str = "pg_stat/pgstat.stat";

/// What is kept at most: some twenty thousand tables and indexes. Each node of the meta group has it in memory, and in each
/// checkpoint.
pub const STATISTICS_BYTES_MAX: usize = 4 << 20;

/// The bytes of a part, small enough for a record that is not cut.
const PART_BYTES: usize = 512 << 10;

/// The head's record begins where the last part's ends, or after the head of a WAL page; it is longer than this itself.
const HEAD_BEGINS_WITHIN_BYTES: u64 = 64;

fn head_key() -> MetaKey {
    MetaKey::SmallFile(format!("kept/{STATISTICS_FILE}"))
}

fn part_key(part: usize) -> MetaKey {
    MetaKey::SmallFile(format!("kept/{STATISTICS_FILE}/{part}"))
}

/// Whether statistics are kept under this key, or a part of them.
#[must_use]
pub fn is_key(key: &MetaKey) -> bool {
    *key == head_key() || (0..STATISTICS_BYTES_MAX / PART_BYTES).any(|part| *key == part_key(part))
}

/// How many parts there are among the values, those that a driver which died did not get to remove included.
#[must_use]
pub fn parts(values: &[(MetaKey, Vec<u8>)]) -> usize {
    let is_there = |part: &usize| values.iter().any(|(key, _)| *key == part_key(*part));
    (0..STATISTICS_BYTES_MAX / PART_BYTES).rev().find(is_there).map_or(0, |last| last + 1)
}

/// The records that keep the statistics, after the last one of a server that was stopped. `None` if they are too large.
#[must_use]
pub fn records(
    layout: WalLayout,
    last: RecordSpan,
    statistics: &[u8],
    parts_before: usize,
) -> Option<Vec<ImportedRecord>> {
    if statistics.len() > STATISTICS_BYTES_MAX {
        return None;
    }
    let mut stream = Stream { layout, next: last.end, previous_start: last.start };
    let mut records = Vec::new();
    let parts = statistics.chunks(PART_BYTES);
    let count = parts.len();
    for (part, value) in parts.enumerate() {
        records.push(stream.native(&Native::PutMeta { key: part_key(part), value: Some(value) }));
    }
    for part in count..parts_before {
        records.push(stream.native(&Native::PutMeta { key: part_key(part), value: None }));
    }
    let head = [stream.next.0.to_le_bytes(), (statistics.len() as u64).to_le_bytes()].concat();
    records.push(stream.native(&Native::PutMeta { key: head_key(), value: Some(&head) }));
    Some(records)
}

/// The statistics among the values, if they are of the very end of the volume, whose last record is `last`.
#[must_use]
pub fn current(values: &[(MetaKey, Vec<u8>)], last: RecordSpan) -> Option<Vec<u8>> {
    let value = |key: MetaKey| values.iter().find(|(own, _)| *own == key).map(|(_, value)| value);
    let (begin, length) = value(head_key())?.split_first_chunk::<8>()?;
    let begin = Lsn(u64::from_le_bytes(*begin));
    let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
    let is_head = last.start.0.checked_sub(begin.0).is_some_and(|bytes| bytes < HEAD_BEGINS_WITHIN_BYTES);
    if !is_head || length > STATISTICS_BYTES_MAX {
        return None;
    }
    let mut statistics = Vec::new();
    for part in 0..length.div_ceil(PART_BYTES) {
        statistics.extend_from_slice(value(part_key(part))?);
    }
    (statistics.len() == length).then_some(statistics)
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_redo::apply_meta;
    use borealis_types::{PostgresVersion, ServerVersion};
    use borealis_wal::{Effect, Record, effects};
    use std::collections::BTreeMap;

    const LAYOUT: WalLayout = WalLayout {
        version: PostgresVersion::NEWEST,
        timeline: 1,
        system_identifier: 1,
        segment_bytes: WalLayout::DEFAULT_SEGMENT_BYTES,
    };

    /// Redoes the records as a node does; the last one's span.
    fn redo(values: &mut BTreeMap<MetaKey, Vec<u8>>, records: &[ImportedRecord]) -> RecordSpan {
        for record in records {
            let parsed =
                Record::parse(ServerVersion::NEWEST_TESTED, record.span, &record.bytes).expect("a record");
            let mut changed = Vec::new();
            effects(&parsed, &mut changed).expect("known");
            for effect in changed {
                let Effect::Meta(key) = effect else { panic!("{effect:?}") };
                match apply_meta(&parsed, &key, values.get(&key).cloned()).expect("applied") {
                    Some(value) => values.insert(key, value),
                    None => values.remove(&key),
                };
            }
        }
        records.last().expect("at least the head").span
    }

    fn list(values: &BTreeMap<MetaKey, Vec<u8>>) -> Vec<(MetaKey, Vec<u8>)> {
        values.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    #[test]
    fn statistics_are_there_again_if_nothing_was_written_since() {
        let mut values = BTreeMap::new();
        // Also where a record begins behind the head of a page.
        let mut last = RecordSpan { start: Lsn(0x100_0000 + 8192 - 120), end: Lsn(0x100_0000 + 8192) };
        for bytes in [0, 1, PART_BYTES, 3 * PART_BYTES + 5, STATISTICS_BYTES_MAX, 7] {
            let statistics: Vec<u8> = (0..bytes).map(|byte| byte as u8).collect();
            let before = parts(&list(&values));
            let records = records(LAYOUT, last, &statistics, before).expect("small enough");
            // A driver that died before the head.
            let mut without_head = values.clone();
            if let [parts @ .., _] = &records[..]
                && !parts.is_empty()
            {
                let end = redo(&mut without_head, parts);
                assert_eq!(current(&list(&without_head), end), None, "{bytes}");
            }
            last = redo(&mut values, &records);
            assert_eq!(current(&list(&values), last).as_deref(), Some(&statistics[..]), "{bytes}");
            assert_eq!(parts(&list(&values)), bytes.div_ceil(PART_BYTES), "parts that are over are removed");
            assert!(values.keys().all(is_key));
            let later = RecordSpan { start: last.end, end: Lsn(last.end.0 + 64) };
            assert_eq!(current(&list(&values), later), None, "something was written since");
        }
        assert!(records(LAYOUT, last, &vec![0; STATISTICS_BYTES_MAX + 1], 0).is_none());
    }

    #[test]
    fn a_part_behind_one_that_is_gone_counts() {
        let values = [0, 3].map(|part| (part_key(part), Vec::new()));
        assert_eq!((parts(&values), parts(&[])), (4, 0));
    }

    #[test]
    fn damaged_values_are_no_statistics() {
        let last = RecordSpan { start: Lsn(0x100_0028), end: Lsn(0x100_0080) };
        let mut values = BTreeMap::new();
        let end = redo(&mut values, &records(LAYOUT, last, b"statistics", 0).expect("small enough"));
        for key in [head_key(), part_key(0)] {
            let mut damaged = values.clone();
            damaged.get_mut(&key).expect("there").pop();
            assert_eq!(current(&list(&damaged), end), None, "{key:?}");
            damaged.remove(&key);
            assert_eq!(current(&list(&damaged), end), None, "{key:?}");
        }
        assert!(!is_key(&MetaKey::SmallFile(format!("kept/{STATISTICS_FILE}/8"))));
    }
}
