//! A long value that a client reads in parts, kept so that it is made once.

use borealis_types::{MetaKey, ReadPoint};
use borealis_wire::ValuePart;
use borealis_wire::message::VALUE_PART_BYTES_MAX;

/// A value as of a read point.
#[derive(Debug)]
pub(crate) struct LongValue {
    key: MetaKey,
    at: ReadPoint,
    checksum: u32,
    value: Vec<u8>,
}

impl LongValue {
    /// `checksum` is that of the whole value.
    pub(crate) fn new(key: MetaKey, at: ReadPoint, checksum: u32, value: Vec<u8>) -> LongValue {
        LongValue { key, at, checksum, value }
    }

    pub(crate) fn is(&self, key: &MetaKey, at: ReadPoint) -> bool {
        self.key == *key && self.at == at
    }

    /// The part that begins at `offset`.
    pub(crate) fn part(&self, offset: u64) -> ValuePart {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.value.get(offset..));
        let rest = rest.unwrap_or_default();
        let bytes = rest.get(..VALUE_PART_BYTES_MAX).unwrap_or(rest).to_vec();
        ValuePart { total_bytes: self.value.len() as u64, checksum: self.checksum, bytes }
    }
}
