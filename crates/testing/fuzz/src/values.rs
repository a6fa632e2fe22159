//! The control file, and the small values that redo changes.

use borealis_redo::apply_meta;
use borealis_redo::counters::Counters;
use borealis_types::{DatabaseKey, Lsn, MetaKey, RecordSpan};
use borealis_wal::Record;
use borealis_wal::layout::control_file::{self, CONTROL_VERSION, ControlFile};
use borealis_wal::layout::{CheckPointRecord, relation_map};

use crate::sample::take_meta_key;
use crate::{Input, Sample};

const SPAN: RecordSpan = RecordSpan { start: Lsn(0x1_0000_0028), end: Lsn(0x1_0000_0100) };

/// A `pg_control` of any content, with the right checksum or without.
///
/// # Panics
/// When one that is accepted does not survive the round trip.
pub fn control_file(data: &[u8]) {
    let mut input = Input::new(data);
    let sealed = input.u8() & 1 == 1;
    let mut file = input.rest().to_vec();
    if sealed {
        file.resize(file.len().max(control_file::CRC_OFFSET + 4), 0);
        file[8..12].copy_from_slice(&CONTROL_VERSION.to_le_bytes());
        let checksum = crc32c::crc32c(&file[..control_file::CRC_OFFSET]);
        file[control_file::CRC_OFFSET..control_file::CRC_OFFSET + 4].copy_from_slice(&checksum.to_le_bytes());
    }
    let Ok(decoded) = ControlFile::decode(&file) else { return };
    let encoded = decoded.encode();
    let again = ControlFile::decode(&encoded).expect("what was encoded decodes");
    // Bytes, for a floating-point field may be no number and not equal to itself.
    assert!(again.encode() == encoded, "a control file changes in the round trip");
    let counters = Counters::from_control_file(&decoded);
    let stored = Counters::decode(&counters.encode()).expect("what was encoded decodes");
    assert!(stored.encode() == counters.encode(), "counters change in the round trip");
    let checkpoint = counters.to_checkpoint(Lsn(0x28), 5);
    let _ = decoded.shut_down_at(checkpoint, &decoded.parameters()).encode();
}

/// A record on values that are not its own: a [`Sample`] whose values are made to pass their checks.
///
/// # Panics
/// When counters that are accepted do not survive the round trip.
pub fn meta_value(data: &[u8]) {
    let mut input = Input::new(data);
    let sample = Sample::decode(&mut input);
    let bytes = sample.record_bytes(Lsn(0x28));
    let Ok(record) = Record::parse(sample.server_version(), SPAN, &bytes) else { return };
    let further = take_meta_key(&mut input);
    let database = DatabaseKey { tablespace: 1663, database: 5 };
    let fixed = [MetaKey::Counters, MetaKey::RelationMap(database), further];
    let values = sample.values.iter().map(|(_, value)| value.clone()).chain([input.rest().to_vec()]);
    for value in values {
        if let Some(counters) = Counters::decode(&value) {
            let encoded = counters.encode();
            let again = Counters::decode(&encoded).expect("what was encoded decodes");
            assert!(again.encode() == encoded, "counters change in the round trip");
        }
        let _ = CheckPointRecord::decode(&value);
        for key in fixed.iter().chain(sample.values.iter().map(|(key, _)| key)) {
            for value in [None, Some(value.clone()), sealed(key, &value)] {
                let _ = apply_meta(&record, key, value);
            }
        }
    }
}

/// The value with the length, version and checksum that values of this key have.
fn sealed(key: &MetaKey, value: &[u8]) -> Option<Vec<u8>> {
    let mut value = value.to_vec();
    match key {
        MetaKey::Counters => {
            let template = Counters::default().encode();
            value.resize(template.len(), 0);
            value[0] = template[0];
        }
        MetaKey::RelationMap(_) => {
            value.resize(relation_map::CRC_OFFSET + 8, 0);
            let checksum = crc32c::crc32c(&value[..relation_map::CRC_OFFSET]);
            value[relation_map::CRC_OFFSET..relation_map::CRC_OFFSET + 4]
                .copy_from_slice(&checksum.to_le_bytes());
        }
        _ => return None,
    }
    Some(value)
}
