//! Room for an entry, made before anything is changed or promised that the entry is about.
//!
//! Segments take records in memory before their entry is written. If the disk were found full only then, what is in memory
//! and what is in the log would differ, and the store could promise nothing any more. So the file is begun and filled
//! with zeros first; if that fails, nothing has happened, and the append can be refused and tried again.

use crate::StoreError;
use crate::log::entry;
use crate::log::writer::{LARGE_ENTRY_BYTES, Log, ZERO_STRETCH_BYTES};

/// More than what the entries of one batch need beyond the batch, when it is written as several.
const SLACK_BYTES: u64 = 64 << 10;

impl Log {
    /// Whether an entry with a payload of this many bytes makes the log take more of the disk.
    pub(crate) fn would_grow(&self, payload_bytes: usize) -> bool {
        let end = self.end_of(payload_bytes);
        end > self.active.size || self.with_slack(end) > self.filled
    }

    fn with_slack(&self, end: u64) -> u64 {
        (end + SLACK_BYTES).min(self.active.size)
    }

    fn end_of(&self, payload_bytes: usize) -> u64 {
        u64::from(self.offset) + entry::entry_bytes(payload_bytes)
    }

    /// Makes room for an entry with a payload of at most this many bytes: writing it fails only if the disk does.
    /// A large entry is preceded by zeros only if `is_tight`: they would make the disk write everything twice.
    ///
    /// # Errors
    /// [`StoreError::Io`] when there is no room now: nothing has happened. [`StoreError::Poisoned`] when a sync failed.
    pub(crate) fn reserve(&mut self, payload_bytes: usize, is_tight: bool) -> Result<(), StoreError> {
        if self.end_of(payload_bytes) > self.active.size {
            self.roll(entry::entry_bytes(payload_bytes))?;
        }
        let end = self.end_of(payload_bytes);
        let with_slack = self.with_slack(end);
        if with_slack <= self.filled {
            return Ok(());
        }
        if end - u64::from(self.offset) >= LARGE_ENTRY_BYTES {
            return if is_tight { self.write_zeros_to(with_slack) } else { Ok(()) };
        }
        let stretch = ZERO_STRETCH_BYTES.min(self.file_bytes / 4).next_multiple_of(8);
        self.write_zeros_to(with_slack.max(end + stretch).min(self.active.size))
    }
}
