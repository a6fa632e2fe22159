//! Releasing log files that are needed neither for a restart nor by a peer nor for a backup.

use borealis_types::{GroupId, Lsn, invariant};

use crate::log::position::LogPosition;
use crate::metrics::count;
use crate::{Store, StoreError};

impl Store {
    /// Releases log files before `replay_from`, oldest first. A file that a peer or a backup may need is kept
    /// while the log is within its retention limit.
    pub(crate) fn release_log(&self, replay_from: LogPosition) -> Result<u64, StoreError> {
        let mut state = self.lock_to_change()?;
        let mut freed = Vec::new();
        let mut kept_bytes = self.files.total_bytes();
        for number in self.files.numbers() {
            if number >= replay_from.file() {
                break;
            }
            let ranges =
                state.batch_locations.files.get(&number).map(|file| file.ranges.clone()).unwrap_or_default();
            let floor = |group: &GroupId| state.peer_floors.get(group).copied().unwrap_or(Lsn::ZERO);
            let is_here = |group: &GroupId| state.segments.contains_key(group);
            let needed =
                ranges.iter().any(|range| is_here(&range.group) && range.last_end > floor(&range.group));
            let backed_up = |group: &GroupId| match &state.backup_floors {
                Some(floors) => floors.get(group).copied().unwrap_or(Lsn::ZERO),
                None => Lsn::MAX,
            };
            let to_upload =
                ranges.iter().any(|range| is_here(&range.group) && range.last_end > backed_up(&range.group));
            if (needed || to_upload) && kept_bytes <= self.options.log_retention_bytes {
                break;
            }
            if needed {
                count(&self.counters.log_files_lost_to_peers, 1);
            }
            invariant!(
                "log-released-below-checkpoint",
                number < state.replay_from.file(),
                "file {number}, and the newest checkpoint needs the log from {:?}",
                state.replay_from
            );
            freed.extend(state.log.release(number));
            state.batch_locations.files.remove(&number);
            kept_bytes = self.files.total_bytes();
        }
        // An absent peer can keep many files. Their batch locations are dropped to save memory, and read
        // again if the peer comes back.
        for (_, file) in state.batch_locations.files.range_mut(..replay_from.file()) {
            file.batches = None;
        }
        drop(state);
        let freed_count = freed.len() as u64;
        // Appends need not wait while files are removed.
        self.preparation.dispose(freed)?;
        Ok(freed_count)
    }
}
